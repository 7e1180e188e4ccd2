"""Resource groups: which hosts are shared, by whom, and by what policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import Field

from actions.base import Effect, Reading, Result, Rules, ScopeAction, Work, action, anyone, superadmin
from actions.views import Done
from domain.errors import ContradictoryPolicy, InvalidRequest, ResourceGroupNotFound
from domain.placement import DEFAULT_GROUP
from repositories import resource_groups as rows
from repositories.fair_share import recount

LEAST_HALF_LIFE_SECONDS: Final = 60.0
MOST_HALF_LIFE_SECONDS: Final = 10 * 365 * 86400.0
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
GroupName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Names = tuple[Annotated[str, Field(min_length=1, max_length=254)], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Who may use a group that is not open."""

    scope: str  #: user, project, domain
    of: str  #: the user's e-mail address, the project's or the domain's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Of a user in a group; who has none weighs 1."""

    user: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceGroupData:
    """Hosts that are shared by one policy."""

    name: str
    description: str
    ordering: str  #: fair_share, or fifo
    fit: str  #: pack, or spread
    backfill: bool
    gpu_sharing: bool
    half_life_seconds: float
    open: bool  #: everybody may use it
    active: bool  #: it takes sessions
    profile: str  #: what may be done inside its containers: hardened, or standard
    egress: str  #: where its containers may connect to: none, or open
    may_use: bool  #: whether you may
    agents: int
    agents_ready: int  #: that take sessions at the moment
    sessions: int  #: that have a host
    pending: int  #: that wait for one
    created_at: datetime
    access: tuple[Allowed, ...] = ()  #: for administrators
    weights: tuple[Weight, ...] = ()  #: for administrators

    @classmethod
    def of(cls, row: Mapping[str, Any], *, everything: bool) -> ResourceGroupData:
        same = (
            "name description ordering fit backfill gpu_sharing half_life_seconds open active profile egress agents "
            "agents_ready sessions pending created_at"
        )
        return cls(
            **{name: row[name] for name in same.split()},
            may_use=row["allowed"] or everything,
            access=tuple(Allowed(**one) for one in row["access"]) if everything else (),
            weights=tuple(Weight(**one) for one in row["weights"]) if everything else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceGroupResult(Result):
    resource_group: ResourceGroupData


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceGroupPage(Result):
    items: list[ResourceGroupData]
    next_cursor: str | None = None


async def found_groups(call: Reading, name: str | None = None) -> list[ResourceGroupData]:
    """Those that the asker may use; administrators see all."""
    by = call.by
    found = await rows.find_groups(call.db.connection, name, user_id=by.user_id, projects=by.projects, domain=by.domain)
    return [ResourceGroupData.of(row, everything=by.sees_all) for row in found if row["allowed"] or by.sees_all]


async def the_group(call: Reading, name: str) -> ResourceGroupData:
    """Raises ResourceGroupNotFound, also for one that the asker may not use."""
    found = await found_groups(call, name)
    if not found:
        raise ResourceGroupNotFound(
            f"There is no resource group '{name}' that you may use; 'moorage resource-group ls' lists those that you may.",
            resource_group=name,
        )
    return found[0]


@action(Rules(allow=anyone, effect=Effect.READ))
class ListResourceGroupsAction(ScopeAction[Reading, ResourceGroupPage]):
    """The resource groups that one may use, with their policy and their queue; for administrators all."""

    async def run(self, call: Reading, /) -> ResourceGroupPage:
        return ResourceGroupPage(items=await found_groups(call))


@action(Rules(allow=anyone, effect=Effect.READ))
class GetResourceGroupAction(ScopeAction[Reading, ResourceGroupResult]):
    """One resource group."""

    resource_group: str

    def target(self) -> str:
        return self.resource_group

    async def run(self, call: Reading, /) -> ResourceGroupResult:
        return ResourceGroupResult(resource_group=await the_group(call, self.resource_group))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class CreateResourceGroupAction(ScopeAction[Work, ResourceGroupResult]):
    """Add a resource group. It has no hosts yet, and nobody may use it unless it is open."""

    resource_group: GroupName
    description: Annotated[str, Field(max_length=1000)] = ""
    ordering: Literal["fair_share", "fifo"] = "fair_share"
    fit: Literal["pack", "spread"] = "pack"
    backfill: bool = True
    gpu_sharing: bool = False
    half_life_seconds: float | None = None  #: a week, when left out
    open: bool = False
    active: bool = True
    profile: Literal["hardened", "standard"] = "hardened"
    egress: Literal["none", "open"] = "open"

    def target(self) -> str:
        return self.resource_group

    async def run(self, call: Work, /) -> ResourceGroupResult:
        fields = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}
        _check_policy(self.ordering, self.half_life_seconds)
        await rows.add_group(call.db.connection, self.resource_group, fields, now=call.now)
        return await _changed(call, self.resource_group)


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class ModifyResourceGroupAction(ScopeAction[Work, ResourceGroupResult]):
    """Change a resource group's policy; what is left out stays. Another half-life counts all usage on record anew.

    Another profile or egress is that of containers that are started from then on.
    """

    resource_group: str
    description: Annotated[str, Field(max_length=1000)] | None = None
    ordering: Literal["fair_share", "fifo"] | None = None
    fit: Literal["pack", "spread"] | None = None
    backfill: bool | None = None
    gpu_sharing: bool | None = None
    half_life_seconds: float | None = None
    open: bool | None = None
    active: bool | None = None
    profile: Literal["hardened", "standard"] | None = None
    egress: Literal["none", "open"] | None = None

    def target(self) -> str:
        return self.resource_group

    async def run(self, call: Work, /) -> ResourceGroupResult:
        connection = call.db.connection
        fields = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}
        if not fields:
            raise InvalidRequest(f"Nothing to change was given; name one of {', '.join(_FIELDS)}.")
        before = await rows.lock_group(connection, self.resource_group)
        _check_policy(self.ordering or before["ordering"], self.half_life_seconds)
        if self.ordering == "fifo" and await rows.is_weighted(connection, self.resource_group):
            raise ContradictoryPolicy(
                f"Users have weights in '{self.resource_group}', and with the ordering fifo nobody's weight counts: take the "
                "weights away first.",
                field="ordering",
            )
        await rows.change_group(connection, self.resource_group, fields)
        if self.half_life_seconds not in (None, before["half_life_seconds"]):
            await recount(connection, self.resource_group, now=call.now)
        return await _changed(call, self.resource_group)


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class DeleteResourceGroupAction(ScopeAction[Work, Done]):
    """Remove a resource group without hosts and live sessions. Those that have ended are of the default group then."""

    resource_group: str

    def target(self) -> str:
        return self.resource_group

    async def run(self, call: Work, /) -> Done:
        if self.resource_group == DEFAULT_GROUP:
            raise ContradictoryPolicy(
                "The resource group 'default' cannot be removed: new hosts join it. Close it, or take it out of use with "
                "active=false.",
                field="resource_group",
            )
        await rows.lock_group(call.db.connection, self.resource_group)
        await rows.remove_group(call.db.connection, self.resource_group)
        call.announce("queue")
        return Done()


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class ModifyResourceGroupAccessAction(ScopeAction[Work, ResourceGroupResult]):
    """Let users, projects or domains use a resource group that is not open, or no longer; live sessions stay."""

    resource_group: str
    allowed: bool
    users: Names = ()  #: e-mail addresses
    projects: Names = ()
    domains: Names = ()
    domain: str = "default"  #: of the projects

    def target(self) -> str:
        return self.resource_group

    async def run(self, call: Work, /) -> ResourceGroupResult:
        if not (self.users or self.projects or self.domains):
            raise InvalidRequest("Name at least one of users, projects, domains.", field="users")
        connection = call.db.connection
        group = await rows.lock_group(connection, self.resource_group)
        if group["open"]:
            raise ContradictoryPolicy(
                f"The resource group '{self.resource_group}' is open, so everybody may use it: close it first (open=false).",
                field="open",
            )
        for scope, scope_id, said in await self._scopes(call):
            if self.allowed:
                await rows.allow(connection, self.resource_group, scope, scope_id)
            elif not await rows.deny(connection, self.resource_group, scope, scope_id):
                raise InvalidRequest(
                    f"The {scope} '{said}' is not among those that may use '{self.resource_group}'.", field=f"{scope}s"
                )
        return await _changed(call, self.resource_group)

    async def _scopes(self, call: Work) -> Sequence[tuple[str, str, str]]:
        identity = call.db.identity
        users = [("user", str((await identity.user(one))["id"]), one) for one in self.users]
        projects = [
            ("project", str(await identity.project_id(one, domain=self.domain, member=None)), one)
            for one in self.projects
        ]
        for one in self.domains:
            if not await rows.is_domain(call.db.connection, one):
                raise InvalidRequest(f"There is no domain '{one}'.", field="domains")
        return [*users, *projects, *(("domain", one, one) for one in self.domains)]


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class SetWeightAction(ScopeAction[Work, ResourceGroupResult]):
    """Say how much a user is entitled to in a resource group: with 2 twice as much as others; null is the usual 1."""

    resource_group: str
    user: str
    weight: float | None = None

    def target(self) -> str:
        return f"{self.resource_group} {self.user}"

    async def run(self, call: Work, /) -> ResourceGroupResult:
        connection = call.db.connection
        if self.weight is not None and not LEAST_WEIGHT <= self.weight <= MOST_WEIGHT:
            raise ContradictoryPolicy(
                f"A weight is between {LEAST_WEIGHT:g} and {MOST_WEIGHT:g}; to keep somebody out, deny the group to them.",
                field="weight",
            )
        group = await rows.lock_group(connection, self.resource_group)
        user_id: UUID = (await call.db.identity.user(self.user))["id"]
        if self.weight is not None and group["ordering"] == "fifo":
            raise ContradictoryPolicy(
                f"The resource group '{self.resource_group}' is ordered fifo, where nobody's weight counts: give it the "
                "ordering fair_share first.",
                field="weight",
            )
        await rows.set_weight(connection, self.resource_group, user_id, self.weight)
        return await _changed(call, self.resource_group)


_FIELDS: Final = (
    *("description", "ordering", "fit", "backfill", "gpu_sharing", "half_life_seconds", "open", "active"),
    *("profile", "egress"),
)


def _check_policy(ordering: str, half_life_seconds: float | None) -> None:
    if half_life_seconds is None:
        return
    if not LEAST_HALF_LIFE_SECONDS <= half_life_seconds <= MOST_HALF_LIFE_SECONDS:
        raise ContradictoryPolicy(
            "A half-life is between a minute and ten years: with less, nothing that was held would count. The ordering fifo "
            "counts nothing at all.",
            field="half_life_seconds",
        )
    if ordering == "fifo":
        raise ContradictoryPolicy(
            "With the ordering fifo, what was held does not count, so there is no half-life; leave it out, or choose the "
            "ordering fair_share.",
            field="half_life_seconds",
        )


async def _changed(call: Work, name: str) -> ResourceGroupResult:
    call.announce("queue")
    return ResourceGroupResult(resource_group=await the_group(call, name))
