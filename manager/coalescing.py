"""The same refusal again and again is on record at once, and then once more with how often it was repeated within a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from typing import Final

from repositories.record import AuditRecord

WINDOW_SECONDS: Final = 60.0
#: Kinds that are told apart within a window; beyond, what one asker tries is one kind.
MOST_KINDS: Final = 10_000


class Coalesced:
    """`write` is called with a row to be written; it does not raise."""

    def __init__(
        self,
        write: Callable[[AuditRecord], Awaitable[None]],
        *,
        window_seconds: float = WINDOW_SECONDS,
        most_kinds: int = MOST_KINDS,
    ) -> None:
        self._write = write
        self._window_seconds = window_seconds
        self._most_kinds = most_kinds
        self._repeats: dict[Hashable, int] = {}
        self._last: dict[Hashable, AuditRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()

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

    async def end_windows(self) -> None:
        """Have what was repeated so far on record now; the next of its kind is a first one again."""
        for kind in list(self._repeats):
            self._close(kind)
        await asyncio.gather(*self._tasks)

    def _close(self, kind: Hashable) -> None:
        repeats, last = self._repeats.pop(kind, 0), self._last.pop(kind, None)
        if repeats and last is not None:
            task = asyncio.get_running_loop().create_task(self._again(replace(last, repeats=repeats)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _again(self, record: AuditRecord) -> None:
        await self._write(record)
