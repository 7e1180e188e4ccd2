"""Lets sessions run, or not, once those that they wait for have ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import ClassVar

from manager.herald import Herald
from manager.loop import Loop
from repositories.database import Database
from repositories.resolve import anything_ended, resolve


class Dependencies(Loop):
    """Woken whenever a session has ended, as the scheduler is. What is to be done is read from the rows alone, so that
    nothing is lost with a manager; any number of them is safe."""

    name: ClassVar[str] = "dependencies"

    def __init__(self, database: Database, herald: Herald, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            if not await anything_ended(connection):
                return None
        async with self._database.transaction("control.dependencies") as connection:
            done = await resolve(connection, now=self._clock())
        if not done.anything:
            return None
        self._herald.announce("sessions", *(one.session_id for one in done.skipped), *done.unblocked)
        for topic in ("queue", "events"):
            self._herald.announce(topic)
        return 0.0  # whoever waits for one that was skipped is next
