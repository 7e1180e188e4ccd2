"""Ends sessions that nobody needs any more: warns first, and lets whoever comes back keep theirs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import ClassVar

from domain.idle import Verdict, judge_idle
from domain.ids import SessionId
from domain.session import Event
from manager.herald import Herald
from manager.loop import Loop
from repositories.database import Connection, Database
from repositories.idle import CAUSE, Candidate, candidates, clear, forget_ended, lock, warn
from repositories.transit import Asked, transit_many
from repositories.upkeep import lead


class IdleCheckers(Loop):
    """One manager at a time looks; what it decides is checked again on locked rows."""

    name: ClassVar[str] = "idle checkers"
    floor_seconds: ClassVar[float] = 5.0

    def __init__(self, database: Database, herald: Herald, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock

    async def step(self) -> float | None:
        now = self._clock()
        async with self._database.transaction("control.idle") as connection:
            if not await lead(connection, "idle checkers"):
                return None
            await forget_ended(connection)
            found = await candidates(connection, now=now)
            due = [one.facts.session_id for one in found if _step(one, now) is not None]
            changed, ended = await self._act(connection, due, now) if due else ([], [])
        if changed:
            self._herald.announce("sessions", *changed)
            self._herald.announce("events")
        if ended:
            self._herald.announce("dispatch")
            self._herald.announce("queue")
        times = [at for one in found if (at := _next(one, now)) is not None]
        return max(0.05, (min(times) - now).total_seconds()) if times else None

    async def _act(
        self, connection: Connection, due: list[SessionId], now: datetime
    ) -> tuple[list[SessionId], list[SessionId]]:
        changed, ending = [], []
        for one in await candidates(connection, now=now, only=await lock(connection, due)):
            match _step(one, now):
                case "clear":
                    await clear(connection, one, now=now)
                case "end":
                    verdict = judge_idle(one.facts, one.settings, now)
                    assert verdict is not None
                    ending.append(Asked(session_id=one.facts.session_id, reason=f"ended as idle: {verdict.reason}"))
                case Verdict() as verdict:
                    await warn(connection, one, verdict, due_at=max(verdict.due_at, now + verdict.lead), now=now)
                case _:
                    continue
            changed.append(one.facts.session_id)
        ended = await transit_many(connection, Event.EXPIRE, ending, cause=CAUSE, now=now) if ending else []
        return changed, [one.session_id for one in ended]


def _step(one: Candidate, now: datetime) -> Verdict | str | None:
    """A verdict to warn of, `end`, `clear`, or nothing to be done now."""
    verdict, warned = judge_idle(one.facts, one.settings, now), one.facts.warned
    if verdict is None or verdict.due_at - verdict.lead > now:
        return "clear" if warned is not None else None
    if warned is None or warned.checker is not verdict.checker:
        return verdict
    return "end" if warned.due_at <= now and verdict.ends else None


def _next(one: Candidate, now: datetime) -> datetime | None:
    """When there will be something to do with it, if nobody uses it."""
    verdict, warned = judge_idle(one.facts, one.settings, now), one.facts.warned
    if verdict is None:
        return None
    at = verdict.due_at - verdict.lead if warned is None else warned.due_at
    return at if at > now else None
