"""What goes on in the background of a manager: numbering events, forgetting what is old, saying that it is there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from manager.herald import Herald
from manager.loop import Loop
from repositories.agents import drop_dead_managers, register_manager
from repositories.database import Database
from repositories.upkeep import PURGE_BATCH, Retention, chain_audit, ensure_partitions, lead, purge, stamp_events


class Sequencer(Loop):
    """Numbers committed events and audit rows. One at a time works, whichever manager comes first."""

    name = "sequencer"
    #: Between two batches, so that a busy hour costs fifty commits a second and not one for every change.
    rest_seconds = 0.02
    batch = 2000

    def __init__(self, database: Database, herald: Herald) -> None:
        super().__init__()
        self._database = database
        self._herald = herald

    async def step(self) -> float | None:
        async with self._database.transaction() as connection:
            if not await lead(connection, "sequencer"):
                return self.rest_seconds  # whoever leads may have looked before our rows were there
            events = await stamp_events(connection, limit=self.batch)
            audited = await chain_audit(connection, limit=self.batch)
        if events:
            self._herald.announce("events")  # readers follow the numbers
        return self.rest_seconds if events or audited else None


class Purger(Loop):
    """Forgets what is older than it has to be kept."""

    name = "purger"
    floor_seconds = 600.0

    def __init__(self, database: Database, *, keep: Retention, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._keep = keep
        self._clock = clock

    async def step(self) -> float | None:
        now = self._clock()
        async with self._database.reader() as connection:
            await ensure_partitions(connection, now=now, keep=self._keep)
            removed = await purge(connection, now=now, keep=self._keep)
        if any(removed.values()):
            self._log.info("forgotten: %s", ", ".join(f"{n} {name}" for name, n in removed.items() if n))
        return 1.0 if max(removed.values()) >= PURGE_BATCH else None


class Registrar(Loop):
    """Says that this process is there, and where agents reach it."""

    name = "registrar"
    floor_seconds = 5.0

    def __init__(
        self,
        database: Database,
        *,
        manager_id: UUID,
        role: str,
        agent_url: str | None,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__()
        self._database = database
        self._manager_id = manager_id
        self._role = role
        self._agent_url = agent_url
        self._clock = clock

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            await register_manager(
                connection, self._manager_id, role=self._role, agent_url=self._agent_url, now=self._clock()
            )
            await drop_dead_managers(connection, now=self._clock())
        return None
