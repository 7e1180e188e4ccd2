"""Empties the hosts that are drained, and sums up what users held: what follows from other rows, and nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from manager.herald import Herald
from manager.loop import Loop
from repositories.database import Database
from repositories.drains import carry_out, draining_agents
from repositories.fair_share import count_ended
from repositories.upkeep import lead


class Drains(Loop):
    """Tells, moves and ends the sessions of hosts that are drained. Whichever manager comes first does it."""

    name = "drains"

    def __init__(self, database: Database, herald: Herald, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            agents = await draining_agents(connection)
        now = self._clock()
        for agent_id, _ in agents:  # one transaction each: they lock all sessions of the host
            async with self._database.transaction() as connection:
                changed = await carry_out(connection, agent_id, now=now)
            if changed:
                self._herald.announce("dispatch")
                self._herald.announce("sessions", *changed)
        return min(((until - now).total_seconds() for _, until in agents if until and until > now), default=None)


class FairShares(Loop):
    """Sums up usage that has ended, so that whose turn it is stays quick to tell."""

    name = "fair_shares"
    floor_seconds = 2.0
    batch = 5000

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._clock = clock

    async def step(self) -> float | None:
        async with self._database.transaction("control.fair_shares") as connection:
            if not await lead(connection, "fair_shares"):
                return None
            counted = await count_ended(connection, now=self._clock(), limit=self.batch)
        return 0.0 if counted == self.batch else None
