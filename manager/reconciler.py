"""What the control role decides by itself: what is over, which hosts are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import groupby
from typing import Final

from domain.ids import SessionId
from domain.placement import Blocked
from domain.session import DEADLINES
from manager.herald import Herald
from manager.loop import Loop
from manager.scheduling import think
from repositories.agents import find_lost
from repositories.database import Database
from repositories.due import Due, DueSession, a_wait_is_over, next_due, take_due
from repositories.snapshot import one_moment, snapshot
from repositories.transit import Asked, Cause, transit_many

DEADLINE: Final = Cause(by="deadline")


class Deadlines(Loop):
    """Ends what is over, in time; no status that is meant to pass lasts for ever."""

    name = "deadlines"

    def __init__(self, database: Database, herald: Herald, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock

    async def step(self) -> float | None:
        now = self._clock()
        async with self._database.reader() as connection:
            due_at = await next_due(connection)
        if due_at is None or due_at > now:
            return None if due_at is None else (due_at - now).total_seconds()
        return 0.0 if await self._end_what_is_due(now) else 0.1

    async def _end_what_is_due(self, now: datetime) -> bool:
        blocked = await self._blocked(now)
        async with self._database.transaction("control.deadlines") as connection:
            due = await take_due(connection, now=now)
            moved = []
            for event, sessions in groupby(sorted(due, key=lambda one: one.event), key=lambda one: one.event):
                asked = [Asked(session_id=one.session_id, reason=reason_of(one, blocked)) for one in sessions]
                moved += await transit_many(connection, event, asked, cause=DEADLINE, now=now)
        if moved:
            self._herald.announce("sessions", *(one.session_id for one in moved))
            for topic in ("dispatch", "queue", "events"):
                self._herald.announce(topic)
        return bool(moved)

    async def _blocked(self, now: datetime) -> Mapping[SessionId, Blocked]:
        """Why sessions wait, when there is one that has waited long enough: by the plan that the scheduler makes."""
        async with self._database.reader() as connection:
            if not await a_wait_is_over(connection, now=now):
                return {}
            async with one_moment(connection):
                seen = await snapshot(connection, now=now, holdings=True)
        return (await think(seen, now)).blocked


def reason_of(due: DueSession, blocked: Mapping[SessionId, Blocked]) -> str:
    """What its owner reads."""
    if due.due is Due.STATUS:
        return DEADLINES[due.status].reason
    seconds = f"{due.seconds:g} s" if due.seconds is not None else "the time that was given"
    if due.due is Due.LIFETIME:
        return f"its lifetime of {seconds} is over"
    if due.due is Due.IDLE:
        return f"nobody called it for its idle_timeout of {seconds}"
    if due.due is Due.WORK:
        return f"batch_timeout: its work was not done within {seconds}"
    why = blocked.get(due.session_id)
    missing = why.detail if why else "room became free only now"
    return f"resource_unavailable: no place was found within {seconds}: {missing}"


class LostAgents(Loop):
    """Says of agents that are not heard of that they are lost; their sessions go on, wherever they are."""

    name = "lost agents"

    def __init__(
        self, database: Database, herald: Herald, *, clock: Callable[[], datetime], lease_seconds: float
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock
        self._lease_seconds = lease_seconds
        self.look_again(after_seconds=lease_seconds)

    def look_again(self, *, after_seconds: float) -> None:
        self._blind_until = time.monotonic() + after_seconds

    def failed(self) -> None:
        """While the database was away nobody could renew a lease: agents get the time to do so."""
        self.look_again(after_seconds=self._lease_seconds)

    async def step(self) -> float | None:
        if time.monotonic() < self._blind_until:
            return None
        async with self._database.transaction() as connection:
            agents, sessions = await find_lost(connection, now=self._clock())
        if agents:
            self._log.warning("not heard of any more: %s", ", ".join(agents))
            self._herald.announce("agents")
            self._herald.announce("events")
        if sessions:
            self._herald.announce("sessions", *sessions)
        return None
