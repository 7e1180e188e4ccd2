"""The time that all managers share: the database's."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from manager.loop import Loop
from repositories.database import Database
from repositories.upkeep import current_time


class DatabaseClock(Loop):
    """Tells PostgreSQL's time without asking it each time: leases and deadlines of one manager are read by the others,
    whose own clocks may be minutes apart. Between two looks it counts on the monotonic clock."""

    name = "clock"
    floor_seconds = 30.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._seen: tuple[datetime, float] | None = None

    def __call__(self) -> datetime:
        if self._seen is None:
            return datetime.now(UTC)
        at, monotonic = self._seen
        return at + timedelta(seconds=time.monotonic() - monotonic)

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            before = time.monotonic()
            now = await current_time(connection)
            self._seen = now, (before + time.monotonic()) / 2
        return None
