"""Limits of what users, projects, domains and keypairs hold at once, and how much of them is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from actions.base import Effect, Reading, Result, Rules, ScopeAction, Work, action, anyone, domain_admin
from actions.people import seen_domain
from domain.errors import InvalidLimit, InvalidRequest, PermissionDenied
from domain.limits import SCOPES, Wanted, is_ceiling, parse, slot_of
from domain.principal import Role

ScopeName: TypeAlias = Literal["keypair", "user", "project", "domain"]
LimitOwner = Annotated[str, Field(min_length=1, max_length=254)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSpec:
    """How much of something may be held at once."""

    max: int | float | str  #: CPUs, memory as '32g' or MiB, numbers; times as '8h'
    waits: bool = False  #: sessions beyond it wait in the queue, instead of being refused


Limits = Annotated[Mapping[str, int | float | str | LimitSpec | None], Field(max_length=100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaData:
    """One limit; cpu in thousandths, memory in MiB, times in seconds."""

    scope: str  #: keypair, user, project, domain
    scope_id: str
    of: str  #: the user's e-mail address, the project's or the domain's name, the access key
    name: str  #: of a resource, session.RESOURCE, or one of sessions, pending_sessions, lifetime, ...
    max: int
    used: int  #: by sessions that have a host
    queued: int  #: asked for by those that wait
    free: int | None  #: None where each session is limited by itself
    waits: bool  #: sessions beyond it wait; otherwise they are refused
    policy: str | None  #: that says so; None: it was set for this scope by itself

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> QuotaData:
        taken = row["used"] + (0 if row["waits"] else row["queued"])
        return cls(**row, free=None if is_ceiling(row["name"]) else max(0, row["max"] - taken))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaPage(Result):
    items: list[QuotaData]
    next_cursor: str | None = None


@action(Rules(allow=anyone, effect=Effect.READ))
class ListQuotasAction(ScopeAction[Reading, QuotaPage]):
    """The limits that bind oneself, and how much of them is in use; for administrators anybody's."""

    of: Annotated[str, Field(max_length=300)] | None = None  #: user:E-MAIL, project:NAME, domain:NAME, keypair:KEY
    everybody: bool = False

    async def run(self, call: Reading, /) -> QuotaPage:
        by = call.by
        if (self.of or self.everybody) and by.role is Role.USER:
            raise PermissionDenied("Only administrators see the limits of others; leave it out to see your own.")
        policies = call.db.policies
        if self.of:
            kind, _, name = self.of.partition(":")
            if kind not in SCOPES or not name:
                raise InvalidRequest(
                    "Say whose limits: user:E-MAIL, project:NAME, domain:NAME or keypair:KEY.", field="of"
                )
            whose = await policies.scope(kind, name, domain=by.domain, within=seen_domain(by))
        else:
            whose = ("user", str(by.user_id))
        if self.everybody and not self.of:
            scopes = None if by.sees_all else await policies.scopes_of_domain(by.domain)
        else:
            scopes = await policies.scopes_around(whose)
        rows = await policies.limits(scopes, viewer=call.by.user_id)
        return QuotaPage(items=[QuotaData.of_row(row) for row in rows])


async def wanted_limits(call: Reading, limits: Limits) -> tuple[list[Wanted], list[str]]:
    """What is to be, and what is lifted. Raises InvalidLimit for what is none."""
    wanted, lifted = [], []
    for name, value in limits.items():
        if value is None:
            lifted.append(name)
        elif isinstance(value, LimitSpec):
            wanted.append(parse(name, value.max, waits=value.waits))
        else:
            wanted.append(parse(name, value))
    await _check_slots(call, [one.name for one in wanted])
    return wanted, lifted


async def _check_slots(call: Reading, names: Sequence[str]) -> None:
    slots = {slot for name in names if (slot := slot_of(name)) is not None}
    if unknown := sorted(slots - {"cpu", "mem", "gpu", "gpu-mem"} - await call.db.policies.resources()):
        raise InvalidLimit(
            f"'{unknown[0]}' is no limit, and no host has such a resource; there are cpu, mem, gpu, gpu-mem, each also as "
            "session.RESOURCE, and sessions, pending_sessions, lifetime, idle, priority, volumes, images.",
            name=unknown[0],
        )


async def limited_scope(call: Work, scope: str, of: str) -> tuple[str, str]:
    """Whose limits the asker sets. A domain's own limits are what it is given, so nobody of it changes them."""
    by = call.by
    found = await call.db.policies.scope(scope, of, domain=by.domain, within=seen_domain(by))
    if scope == "domain" and not by.is_admin:
        raise PermissionDenied("The limits of a whole domain are set by superadmins.")
    return found


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class SetQuotaAction(ScopeAction[Work, QuotaPage]):
    """Limit what a user, project, domain or keypair holds at once; null lifts it, as far as no policy sets it.

    What is set here goes before what the scope's policy says.
    """

    scope: ScopeName
    of: LimitOwner  #: the user's e-mail address, the project's or the domain's name, the access key
    limits: Limits

    def target(self) -> str:
        return f"{self.scope} {self.of}"

    async def run(self, call: Work, /) -> QuotaPage:
        if not self.limits:
            raise InvalidRequest("Name at least one limit, such as sessions or cpu.", field="limits")
        policies = call.db.policies
        scope = await limited_scope(call, self.scope, self.of)
        await policies.set_own(scope, *await wanted_limits(call, self.limits))
        call.announce("queue")
        rows = await policies.limits([scope], viewer=call.by.user_id)
        return QuotaPage(items=[QuotaData.of_row(row) for row in rows])
