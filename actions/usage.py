"""Who held how much for how long: hours of CPU, memory and GPU, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

from pydantic import Field

from actions.base import Effect, Reading, Result, Rules, ScopeAction, action, anyone
from actions.people import seen_domain
from domain.errors import InvalidRange, InvalidRequest, PermissionDenied
from domain.principal import Role
from repositories.usage import GROUPS, UsageRow, usage

_USUAL: Final = timedelta(days=30)
KEPT: Final = timedelta(days=400)
_NOTHING: Final = UsageRow(
    key="total", name="total", sessions=0, cpu_hours=0.0, mem_gib_hours=0.0, gpu_hours=0.0, other_hours={}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(Result):
    """Hours of what was held within [since, until), by group; `total` is of all of them."""

    since: datetime
    until: datetime
    by: str
    rows: list[UsageRow]
    total: UsageRow


@action(Rules(allow=anyone, effect=Effect.READ))
class GetUsageAction(ScopeAction[Reading, Usage]):
    """CPU-, memory- and GPU-hours by user, project, session, host or day: what was held, exactly, not sampled.

    One's own; for administrators and monitors everybody's. By default of the last 30 days; kept for 400 days.
    """

    by: Annotated[str, Field(max_length=16)] = "user"
    since: datetime | None = None
    until: datetime | None = None
    user: str | None = None  #: e-mail address or id; for administrators
    project: str | None = None

    async def run(self, call: Reading, /) -> Usage:
        if self.by not in GROUPS:
            raise InvalidRequest(f"A report is by {', '.join(GROUPS)}, not by '{self.by}'.", field="by")
        until = self.until or call.now
        since = self.since or until - _USUAL
        if since.tzinfo is None or until.tzinfo is None:
            raise InvalidRange("A time needs its zone: 2026-03-01T00:00:00Z.", field="since")
        if since >= until:
            raise InvalidRange(f"The range ends ({until:%Y-%m-%d %H:%M}) before it begins ({since:%Y-%m-%d %H:%M}).")
        if until - since > KEPT:
            raise InvalidRange(f"The range is longer than what is kept, {KEPT.days} days.", field="since")
        users = await self._users(call)
        rows, total = [await self._rows(call, by, since, until, users) for by in (self.by, "total")]
        return Usage(since=since, until=until, by=self.by, rows=rows, total=total[0] if total else _NOTHING)

    async def _rows(
        self, call: Reading, by: str, since: datetime, until: datetime, users: list[UUID] | None
    ) -> list[UsageRow]:
        return await usage(
            call.db.connection,
            since=since,
            until=until,
            now=call.now,
            by=by,
            user_id=None if call.by.sees_all or call.by.role is Role.DOMAIN_ADMIN else call.by.user_id,
            domain=call.by.domain if call.by.role is Role.DOMAIN_ADMIN else None,
            users=users,
            project=self.project,
        )

    async def _users(self, call: Reading) -> list[UUID] | None:
        if self.user is None:
            return None
        if not (call.by.sees_all or call.by.role is Role.DOMAIN_ADMIN):
            raise PermissionDenied("Only administrators see what others held.")
        found = await call.db.identity.user(self.user, domain=seen_domain(call.by))
        return [UUID(str(found["id"]))]
