"""Who gets a host: looks, plans, writes, whenever something may be schedulable."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Network
from typing import Final

from domain.crash import reach
from domain.ids import SessionId
from domain.placement import Placement, Plan, Reservation, Snapshot
from domain.scheduler import plan as plan
from manager.herald import Herald
from manager.loop import Loop
from repositories.clusters import DEFAULT_POOL
from repositories.database import Database
from repositories.fleet import holdings_of
from repositories.gangs import join_cluster, place_apart, place_cluster
from repositories.placement import place
from repositories.snapshot import Remembered, one_moment, snapshot

#: Why a session waits when others have what it needs: what they hold, and until when, decides who may pass it.
_FOR_ROOM: Final = frozenset({"insufficient", "reserved", "behind"})
#: Conflicts after which the same plan may work out: others took the room meanwhile. The rest is news by itself.
_WORTH_A_LOOK: Final = frozenset({"no_room", "quota", "changed"})


#: From so many sessions on, a plan is made beside the event loop, on which agents and others wait for answers.
MANY: Final = 500


class Scheduler(Loop):
    """Plans whenever something may be schedulable. Any number of them is safe: placing checks everything again."""

    name = "scheduler"
    #: Sessions placed by one statement; their locks are held until it has committed.
    batch: Final = 500
    #: Of the time that a look takes: how long others have the machine after it, and after one that could change nothing.
    rest_factor: float = 1.0
    unchanged_factor: float = 20.0

    def __init__(
        self, database: Database, herald: Herald, *, clock: Callable[[], datetime], pool: IPv4Network = DEFAULT_POOL
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock
        self._pool = pool
        self._known: Remembered = {}
        self._needs_holdings = False
        self._conflicts_in_a_row = 0
        #: what led to no placement, and when it is looked at again
        self._fruitless: tuple[Snapshot, float] | None = None

    async def step(self) -> float | None:
        started = time.monotonic()
        seen = await self._look(holdings=self._needs_holdings)
        if self._is_known_to_be_fruitless(seen):
            await self._breathe(time.monotonic() - started, seen)
            return self._until_next(seen)
        planned = await think(seen, self._clock())
        short = waits_for_room(planned, seen)
        if short and not self._needs_holdings:
            seen = await self._look(holdings=True)
            planned = await think(seen, self._clock())
        self._needs_holdings = short
        thought = time.monotonic()
        conflicts = await self._write(planned.placements, seen)
        if not planned.placements:
            self._fruitless = _without_time(seen), thought + self.unchanged_factor * (thought - started)
        # while it was written, others had their turn
        await self._breathe(thought - started - (time.monotonic() - thought), seen)
        again = bool(_WORTH_A_LOOK & conflicts.keys())
        self._conflicts_in_a_row = self._conflicts_in_a_row + 1 if again else 0
        if self._conflicts_in_a_row == 10:
            said = ", ".join(f"{number} {why}" for why, number in conflicts.items())
            self._log.warning("placements fail again and again: %s", said)
        if again:
            return min(0.001 * 2.0**self._conflicts_in_a_row, self.floor_seconds)
        return self._until_next(seen, planned.reservations)

    # -- looking -----------------------------------------------------------------------------------------------------
    async def _look(self, *, holdings: bool) -> Snapshot:
        async with self._database.reader() as connection:
            if not holdings:
                return await snapshot(connection, now=self._clock(), known=self._known)
            async with one_moment(connection):
                seen = await snapshot(connection, now=self._clock(), known=self._known)
                if self._is_known_to_be_fruitless(seen):
                    return seen
                return replace(seen, holdings=await holdings_of(connection, now=self._clock()))

    def _is_known_to_be_fruitless(self, seen: Snapshot) -> bool:
        """Only time has passed since a look that led to nothing; shares decay by it, so it is not for ever."""
        if self._fruitless is None:
            return False
        before, again_at = self._fruitless
        if time.monotonic() < again_at and before == _without_time(seen):
            return True
        self._fruitless = None
        return False

    def _until_next(self, seen: Snapshot, reservations: Sequence[Reservation] = ()) -> float | None:
        """Seconds until time alone makes something schedulable."""
        now = self._clock()
        times = [seen.next_start_at, *(one.at for one in reservations)]
        return min(((at - now).total_seconds() for at in times if at is not None and at > now), default=None)

    async def _breathe(self, took: float, seen: Snapshot) -> None:
        """Others work too: after a long look at a long queue, rest as long as it took, whatever wakes us."""
        if took > 0.05 and len(seen.pending) >= MANY:
            await asyncio.sleep(took * self.rest_factor)

    # -- writing -----------------------------------------------------------------------------------------------------
    async def _write(self, placements: Sequence[Placement], seen: Snapshot) -> Counter[str]:
        """The conflicts, by kind."""
        apart = {session.id for session in seen.pending if session.constraints.apart_from}
        single = [one for one in placements if not one.clustered and one.session_id not in apart]
        conflicts: Counter[str] = Counter()
        for at in range(0, len(single), self.batch):
            conflicts += await self._place(single[at : at + self.batch])
        for placement in placements:
            if placement.clustered or placement.session_id in apart:
                conflicts += await self._place_alone(placement)
        return conflicts

    async def _place(self, placements: Sequence[Placement]) -> Counter[str]:
        async with self._database.reader() as connection:
            reach("control.place.before")
            placed = await place(connection, placements, now=self._clock(), versions=self._versions(placements))
        reach("control.place.after")
        self._tell(placed.sessions)
        return Counter(placed.conflicts.values())

    async def _place_alone(self, placement: Placement) -> Counter[str]:
        """A transaction of its own: what happens to one cluster is no other session's business."""
        now, pool, versions = self._clock(), self._pool, self._versions([placement])
        async with self._database.transaction("control.place_alone") as connection:
            if placement.joins:
                conflict = await join_cluster(connection, placement, pool=pool, now=now)
            elif placement.clustered:
                conflict = await place_cluster(connection, placement, pool=pool, now=now, versions=versions)
            else:
                conflict = await place_apart(connection, placement, now=now, versions=versions)
        if conflict is None:
            self._tell([placement.session_id])
        return Counter([conflict] if conflict else [])

    def _versions(self, placements: Sequence[Placement]) -> dict[SessionId, int]:
        """Of the rows that were planned with."""
        return {p.session_id: self._known[p.session_id][0] for p in placements if p.session_id in self._known}

    def _tell(self, placed: Sequence[SessionId]) -> None:
        if placed:
            self._herald.announce("dispatch")
            self._herald.announce("sessions", *placed)
            self._herald.announce("events")


async def think(seen: Snapshot, now: datetime) -> Plan:
    return plan(seen, now) if len(seen.pending) < MANY else await asyncio.to_thread(plan, seen, now)


def waits_for_room(planned: Plan, seen: Snapshot) -> bool:
    """Somebody waits for what others hold, in a group where later sessions may pass: then it matters when they end."""
    strict = {group.name for group in seen.groups if not group.backfill}
    return any(
        blocked.code in _FOR_ROOM and session.resource_group not in strict
        for session in seen.pending
        if (blocked := planned.blocked.get(session.id)) is not None
    )


def _without_time(seen: Snapshot) -> Snapshot:
    """What decides, but for what changes by the clock alone; what is held shows in what is free."""
    return replace(seen, shares=(), holdings=())
