"""Projects with their members and administrators, and domains, which everything belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Reading,
    Result,
    Rules,
    ScopeAction,
    Work,
    action,
    anyone,
    domain_admin,
    project_admin,
    superadmin,
    superadmin_or_monitor,
)
from actions.people import Word, asked_domain
from actions.views import DomainData, Done, ProjectData
from domain.errors import Conflict, InvalidRequest, PermissionDenied, ProjectNotFound

People: TypeAlias = Annotated[list[str], Field(max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectResult(Result):
    project: ProjectData


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectPage(Result):
    items: list[ProjectData]
    next_cursor: str | None = None


async def _users(call: Work, domain: str, users: Sequence[str]) -> list[UUID]:
    """Of the project's domain; nobody else is there. Raises UserNotFound."""
    return [(await call.db.identity.user(user, domain=domain))["id"] for user in dict.fromkeys(users)]


async def _seen(call: Reading, project: str, domain: str | None) -> dict[str, Any]:
    """A project that the asker may see. Raises ProjectNotFound."""
    by = call.by
    if domain is not None and domain != by.domain and not by.sees_all:
        raise ProjectNotFound(project=project)
    home = domain or by.domain
    member = None if by.watches_domain(home) else by.user_id
    return await call.db.identity.project(project, domain=home, member=member)


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class CreateProjectAction(ScopeAction[Work, ProjectResult]):
    """Add a project, in which its members create sessions."""

    project: Word
    domain: str | None = None  #: one's own when left out
    members: People = field(default_factory=list)
    admins: People = field(default_factory=list)  #: members who see and end its sessions and manage its members

    def target(self) -> str:
        return self.project

    async def run(self, call: Work, /) -> ProjectResult:
        domain, people = asked_domain(call.by, self.domain), call.db.identity
        project_id = call.new_id()
        await people.add_project(project_id, name=self.project, domain=domain)
        await people.join(project_id, await _users(call, domain, self.members))
        await people.appoint(project_id, await _users(call, domain, self.admins), administers=True)
        call.announce("identity")
        return ProjectResult(project=ProjectData(**await people.project(self.project, domain=domain)))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListProjectsAction(ScopeAction[Reading, ProjectPage]):
    """The projects one is a member of; for domain admins the domain's, for superadmins and monitors all."""

    async def run(self, call: Reading, /) -> ProjectPage:
        by = call.by
        rows = await call.db.identity.projects(
            domain=None if by.sees_all else by.domain, member=None if by.watches_domain(by.domain) else by.user_id
        )
        return ProjectPage(items=[ProjectData(**row) for row in rows])


@action(Rules(allow=anyone, effect=Effect.READ))
class GetProjectAction(ScopeAction[Reading, ProjectResult]):
    """One project, its members and who administers it."""

    project: str
    domain: str | None = None

    def target(self) -> str:
        return self.project

    async def run(self, call: Reading, /) -> ProjectResult:
        return ProjectResult(project=ProjectData(**await _seen(call, self.project, self.domain)))


@action(Rules(allow=project_admin, effect=Effect.DATABASE))
class ModifyProjectAction(ScopeAction[Work, ProjectResult]):
    """Let users join or leave a project, or administer it. Who leaves keeps the sessions that there are, and gets no new ones.

    A project's administrators let members in and out; who administers it, the domain's administrators say.
    """

    project: str
    domain: str | None = None
    add_members: People = field(default_factory=list)
    remove_members: People = field(default_factory=list)
    add_admins: People = field(default_factory=list)
    remove_admins: People = field(default_factory=list)  #: they stay members

    def target(self) -> str:
        return self.project

    async def run(self, call: Work, /) -> ProjectResult:
        by, people = call.by, call.db.identity
        found = await _seen(call, self.project, self.domain)
        domain, project_id = found["domain"], found["id"]
        if not by.administers_project(domain, self.project):
            raise PermissionDenied(f"You do not administer the project '{self.project}'.")
        if not (self.add_members or self.remove_members or self.add_admins or self.remove_admins):
            raise InvalidRequest(
                "Nothing to change was given; name one of add_members, remove_members, add_admins, remove_admins."
            )
        appoints = by.administers_domain(domain)
        if (self.add_admins or self.remove_admins) and not appoints:
            raise PermissionDenied("Who administers a project, the administrators of its domain say.")
        await people.join(project_id, await _users(call, domain, self.add_members))
        await people.appoint(project_id, await _users(call, domain, self.add_admins), administers=True)
        await people.appoint(project_id, await _users(call, domain, self.remove_admins), administers=False)
        leaving = [await people.user(user, domain=domain) for user in dict.fromkeys(self.remove_members)]
        if not appoints and (led := [one["email"] for one in leaving if self.project in one["administers"]]):
            raise PermissionDenied(
                f"{led[0]} administers the project; the administrators of its domain take that away first."
            )
        await people.leave(project_id, [one["id"] for one in leaving], also_admins=appoints)
        after = await people.project(self.project, domain=domain)
        call.announce("identity")
        return ProjectResult(project=ProjectData(**after))


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class DeleteProjectAction(ScopeAction[Work, Done]):
    """Remove a project that no session on record belongs to."""

    project: str
    domain: str | None = None

    def target(self) -> str:
        return self.project

    async def run(self, call: Work, /) -> Done:
        found = await _seen(call, self.project, self.domain)
        await call.db.policies.forget(("project", str(found["id"])))
        await call.db.identity.remove_project(found["id"], self.project)
        call.announce("identity")
        return Done()


# -- domains -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class DomainResult(Result):
    domain: DomainData


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPage(Result):
    items: list[DomainData]
    next_cursor: str | None = None


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class ListDomainsAction(ScopeAction[Reading, DomainPage]):
    """All domains."""

    async def run(self, call: Reading, /) -> DomainPage:
        return DomainPage(items=[DomainData(**row) for row in await call.db.identity.domains()])


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class GetDomainAction(ScopeAction[Reading, DomainResult]):
    """One domain."""

    domain: str

    def target(self) -> str:
        return self.domain

    async def run(self, call: Reading, /) -> DomainResult:
        return DomainResult(domain=DomainData(**await call.db.identity.domain(self.domain)))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class CreateDomainAction(ScopeAction[Work, DomainResult]):
    """Add a domain with a project 'default', which its users join. Its users see nothing of other domains."""

    domain: Word

    def target(self) -> str:
        return self.domain

    async def run(self, call: Work, /) -> DomainResult:
        return DomainResult(domain=DomainData(**await call.db.identity.add_domain(self.domain, call.new_id())))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class ModifyDomainAction(ScopeAction[Work, DomainResult]):
    """Close or open a domain: everybody of a closed one is locked out within a second. What runs goes on."""

    domain: str
    active: bool

    def target(self) -> str:
        return self.domain

    async def run(self, call: Work, /) -> DomainResult:
        row = await call.db.identity.domain(self.domain)
        if not self.active and row["name"] == call.by.domain:
            raise PermissionDenied("You are of this domain yourself: closing it would lock you out.")
        call.announce("identity")
        return DomainResult(domain=DomainData(**await call.db.identity.set_domain_active(self.domain, self.active)))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class DeleteDomainAction(ScopeAction[Work, Done]):
    """Remove a domain of which nobody and nothing is left."""

    domain: str

    def target(self) -> str:
        return self.domain

    async def run(self, call: Work, /) -> Done:
        if self.domain == "default":
            raise Conflict("The domain 'default' stays: whatever names no domain is of it.")
        people = call.db.identity
        await people.domain(self.domain)
        for project in await people.projects(domain=self.domain):
            await call.db.policies.forget(("project", str(project["id"])))
        await call.db.policies.forget(("domain", self.domain))
        await people.remove_domain(self.domain)
        return Done()
