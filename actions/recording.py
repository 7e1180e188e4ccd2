"""The record of an installation's sessions as a workload, for `moorage simulate`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from actions.base import Effect, Reading, Result, Rules, ScopeAction, action, superadmin_or_monitor
from domain.errors import InvalidRange
from repositories.trace import MOST, TraceSession, recorded

_USUAL: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Result):
    """Sessions that were submitted within [since, until) and have ended, in the fields of docs/simulation.md."""

    since: datetime
    until: datetime
    sessions: list[TraceSession]
    running: int  #: that have not ended, and are not among them
    never_ran: int  #: that have ended without holding anything


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class GetTraceAction(ScopeAction[Reading, Trace]):
    """What everybody's sessions asked for and how long they ran, as a workload to be replayed by `moorage simulate`.

    By default of the last 30 days; of sessions that are still on record.
    """

    since: datetime | None = None
    until: datetime | None = None

    async def run(self, call: Reading, /) -> Trace:
        until = self.until or call.now
        since = self.since or until - _USUAL
        if since.tzinfo is None or until.tzinfo is None:
            raise InvalidRange("A time needs its zone: 2026-03-01T00:00:00Z.", field="since")
        if since >= until:
            raise InvalidRange(f"The range ends ({until:%Y-%m-%d %H:%M}) before it begins ({since:%Y-%m-%d %H:%M}).")
        found = await recorded(call.db.connection, since=since, until=until)
        if len(found.sessions) > MOST:
            raise InvalidRange(f"More than {MOST:,} sessions were submitted in this range; ask for a shorter one.")
        return Trace(
            since=since, until=until, sessions=found.sessions, running=found.running, never_ran=found.never_ran
        )
