"""The same refusal again and again is on record at once, and then once more with how often it was repeated within a minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from typing import Any, Final

from domain.errors import MoorageError
from repositories.database import Database
from repositories.record import AuditRecord, write_audit

log = logging.getLogger("moorage.audit")

WINDOW_SECONDS: Final = 60.0
#: Kinds that are told apart within a window; beyond, what one asker tries is one kind.
MOST_KINDS: Final = 10_000


class Coalesced:
    """`write` is called with a row to be written; it does not raise."""

    def __init__(
        self,
        write: Callable[[AuditRecord], Coroutine[Any, Any, object]],
        *,
        window_seconds: float = WINDOW_SECONDS,
        most_kinds: int = MOST_KINDS,
    ) -> None:
        self._write = write
        self._window_seconds = window_seconds
        self._most_kinds = most_kinds
        self._repeats: dict[Hashable, int] = {}
        self._last: dict[Hashable, AuditRecord] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    async def record(self, kind: Hashable, record: AuditRecord) -> bool:
        """Whether it was the first of its kind, and is written."""
        if kind not in self._repeats and len(self._repeats) >= self._most_kinds:
            kind = "beyond", record.access_key
        if kind in self._repeats:
            self._repeats[kind] += 1
            self._last[kind] = record
            return False
        self._repeats[kind] = 0
        asyncio.get_running_loop().call_later(self._window_seconds, self._close, kind)
        await self._write(record)
        return True

    def _close(self, kind: Hashable) -> None:
        repeats, last = self._repeats.pop(kind), self._last.pop(kind, None)
        if repeats and last is not None:
            task = asyncio.get_running_loop().create_task(self._write(replace(last, repeats=repeats)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def written(database: Database, record: AuditRecord) -> bool:
    """A refusal, in a transaction of its own. A database that is away keeps nobody from being refused."""
    try:
        async with database.reader() as connection:
            await write_audit(connection, record)
    except MoorageError:
        log.warning("a refusal of %s to %s could not be audited", record.action, record.access_key)
        return False
    return True
