"""What goes on in the background of a manager: numbering events, forgetting what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from manager.herald import Herald
from manager.loop import Loop
from manager.vault import AuditSeal
from repositories.audit import chain_audit
from repositories.database import Database
from repositories.upkeep import PURGE_BATCH, Retention, current_time, ensure_partitions, lead, purge, stamp_events


class Sequencer(Loop):
    """Numbers committed events and audit rows. One at a time works, whichever manager comes first."""

    name = "sequencer"
    gather_seconds = 0.01
    #: Between two batches, so that a busy hour costs twenty commits a second and not one for every change.
    rest_seconds = 0.05
    batch = 2000

    def __init__(self, database: Database, herald: Herald, *, seal: AuditSeal | None = None) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._seal = seal
        self._keyed = seal is None

    async def step(self) -> float | None:
        async with self._database.transaction("control.sequencer") as connection:
            if not await lead(connection, "sequencer"):
                return self.rest_seconds  # whoever leads may have looked before our rows were there
            begun = None
            if self._seal is not None and not self._keyed:
                begun = await self._seal.begin(connection, now=await current_time(connection))
            events = await stamp_events(connection, limit=self.batch)
            audited = await chain_audit(connection, key=self._seal.key if self._seal else None, limit=self.batch)
        if self._seal is not None and begun is not None:
            self._seal.note(begun)
        self._keyed = True
        if events:
            self._herald.announce("stamped")  # readers follow the numbers
        if events or audited:
            await asyncio.sleep(self.rest_seconds)  # whoever wakes it meanwhile goes into the next batch
            return 0.0
        return None


class Purger(Loop):
    """Forgets what is older than it has to be kept."""

    name = "purger"
    floor_seconds = 600.0

    def __init__(
        self, database: Database, *, keep: Retention, clock: Callable[[], datetime], seal: AuditSeal | None = None
    ) -> None:
        super().__init__()
        self._seal = seal
        self._database = database
        self._keep = keep
        self._clock = clock

    async def step(self) -> float | None:
        now = self._clock()
        async with self._database.reader() as connection:
            await ensure_partitions(connection, now=now, keep=self._keep)
            key = self._seal.key if self._seal else None
            removed = await purge(connection, now=now, keep=self._keep, audit_key=key)
        if any(removed.values()):
            self._log.info("forgotten: %s", ", ".join(f"{n} {name}" for name, n in removed.items() if n))
        return 1.0 if max(removed.values()) >= PURGE_BATCH else None
