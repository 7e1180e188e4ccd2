"""Users: who there is, what each may be, and whom an administrator looks after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

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
    domain_admin_or_monitor,
)
from actions.views import Done, UserData
from domain.errors import DomainNotFound, PermissionDenied
from domain.ids import AccessKey
from domain.principal import Credential, Principal, Role, TokenScope

Email = Annotated[str, Field(min_length=3, max_length=254, pattern=r"^[^\s@\x00]+@[^\s@\x00]+$")]
Word = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\w[\w.-]*$")]
PosixId = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserResult(Result):
    user: UserData


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPage(Result):
    items: list[UserData]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoAmI(Result):
    user: UserData
    access_key: AccessKey
    role: Role
    domain: str
    projects: tuple[str, ...]
    administers: tuple[str, ...]  #: of the projects
    credential: Credential  #: that was sent
    scopes: tuple[TokenScope, ...]  #: what it may be used for


def seen_domain(by: Principal) -> str | None:
    """Whose people an administrator or monitor sees; None: everybody."""
    return None if by.sees_all else by.domain


def check_manages(by: Principal, row: Mapping[str, Any], what: str) -> None:
    """Of somebody whom the asker may see: a user, or the owner of a credential."""
    if not by.manages(row["domain"], Role(row["role"])):
        raise PermissionDenied(f"{what} is a {row['role']}: that is above you; ask a superadmin.")


def asked_domain(by: Principal, domain: str | None) -> str:
    """One's own when none is named. Raises DomainNotFound for one that is not there for the asker."""
    if domain is not None and domain != by.domain and not by.sees_all:
        raise DomainNotFound(f"There is no domain '{domain}', or it is not yours.", domain=domain)
    return domain or by.domain


@action(Rules(allow=anyone, effect=Effect.READ))
class WhoAmIAction(ScopeAction[Reading, WhoAmI]):
    """Who the credential belongs to, and what it may be used for."""

    async def run(self, call: Reading, /) -> WhoAmI:
        by = call.by
        return WhoAmI(
            user=user_data(await call.db.identity.user(str(by.user_id))),
            access_key=by.access_key,
            role=by.role,
            domain=by.domain,
            projects=by.projects,
            administers=tuple(sorted(by.administers)),
            credential=by.credential,
            scopes=tuple(sorted(by.scopes)),
        )


def user_data(row: Mapping[str, Any]) -> UserData:
    return UserData(**row)


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class CreateUserAction(ScopeAction[Work, UserResult]):
    """Add a user, who becomes a member of the domain's default project. A keypair is made separately."""

    email: Email
    username: Word | None = None
    role: Role = Role.USER
    domain: str | None = None  #: one's own when left out

    def target(self) -> str:
        return self.email

    async def run(self, call: Work, /) -> UserResult:
        domain = asked_domain(call.by, self.domain)
        if not call.by.manages(domain, self.role):
            raise PermissionDenied(
                f"Only superadmins make a {self.role}; a domain admin makes users and domain admins."
            )
        user = await call.db.identity.add_user(
            call.new_id(),
            email=self.email,
            username=self.username or self.email.split("@")[0][:64],
            domain=domain,
            role=self.role,
        )
        return UserResult(user=user_data(user))


@action(Rules(allow=domain_admin_or_monitor, effect=Effect.READ))
class ListUsersAction(ScopeAction[Reading, UserPage]):
    """Users by e-mail address: all, or for domain admins those of the domain."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, /) -> UserPage:
        found = await call.db.identity.users(limit=self.limit, after=self.cursor, domain=seen_domain(call.by))
        items = [user_data(row) for row in found]
        return UserPage(items=items, next_cursor=items[-1].email if len(items) == self.limit else None)


@action(Rules(allow=domain_admin_or_monitor, effect=Effect.READ))
class GetUserAction(ScopeAction[Reading, UserResult]):
    """One user, by e-mail address or id."""

    user: str

    def target(self) -> str:
        return self.user

    async def run(self, call: Reading, /) -> UserResult:
        return UserResult(user=user_data(await call.db.identity.user(self.user, domain=seen_domain(call.by))))


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class ModifyUserAction(ScopeAction[Work, UserResult]):
    """Change a user's name or role, or close and open the account; a closed one is locked out within a second."""

    user: str
    username: Word | None = None
    role: Role | None = None
    active: bool | None = None
    uid: PosixId | None = None  #: of containers and volumes from now on, for homes on NFS
    gid: PosixId | None = None

    def target(self) -> str:
        return self.user

    async def run(self, call: Work, /) -> UserResult:
        by, people = call.by, call.db.identity
        user = await people.user(self.user, domain=seen_domain(by))
        if user["id"] == by.user_id and (self.active is False or self.role not in (None, by.role)):
            raise PermissionDenied("You cannot take your own administration away; let another administrator do it.")
        user = await people.lock_user(user["id"])  # so that nobody is raised in between
        check_manages(by, user, user["email"])
        if self.role is not None and not by.manages(user["domain"], self.role):
            raise PermissionDenied(
                f"Only superadmins make a {self.role}; a domain admin makes users and domain admins."
            )
        if (self.uid is not None or self.gid is not None) and not by.is_admin:
            raise PermissionDenied(
                "Only superadmins choose the ids that containers run as: hosts' files belong to them."
            )
        changes = {
            "username": self.username,
            "role": self.role,
            "active": self.active,
            "uid": self.uid,
            "gid": self.gid,
        }
        call.announce("identity")
        return UserResult(user=user_data(await people.edit_user(user["id"], changes)))


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class DeleteUserAction(ScopeAction[Work, Done]):
    """Remove a user who has no sessions on record, with all keypairs; otherwise close the account."""

    user: str

    def target(self) -> str:
        return self.user

    async def run(self, call: Work, /) -> Done:
        people = call.db.identity
        user = await people.user(self.user, domain=seen_domain(call.by))
        if user["id"] == call.by.user_id:
            raise PermissionDenied("You cannot remove yourself.")
        user = await people.lock_user(user["id"])
        check_manages(call.by, user, user["email"])
        await call.db.policies.forget(("user", str(user["id"])))
        await people.remove_user(user["id"])
        call.announce("identity")
        return Done()
