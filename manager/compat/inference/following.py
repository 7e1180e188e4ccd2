"""A task's stream: a line for each change of it, its partial outputs as they come, and at last the whole task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from actions import GetCallAction
from domain.errors import MoorageError
from manager.compat.inference import files, shapes
from manager.compat.inference.ask import Ask
from manager.compat.inference.logs import Printed, kept_records
from manager.compat.inference.records import call_records
from manager.rest.json import dumps
from manager.rest.streams import watched

log = logging.getLogger("moorage.inference")
#: A client has enough of heartbeats alone after 30 s, so that it gets the task itself, and often enough.
UPDATE_SECONDS: Final = 10.0
#: An asynchronous client breaks on lines longer than it buffers: 128 KiB, or 512. The end of a stream without the
#: end of its task makes it ask for the task, which may be of any size.
MAX_LINE_BYTES: Final = 100_000
_WAITING_RECORDS: Final = 64
HEADERS: Final = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
Told = Callable[..., Awaitable[dict[str, Any]]]


async def follow(
    ask: Ask, call: Any, told: Told, session_of: Callable[[Ask, Any], Awaitable[Any]]
) -> web.StreamResponse:
    response = await ask.begin(200, HEADERS)
    async with watched(ask) as watch:
        try:
            async with aclosing(_Following(ask, call, told, session_of).lines()) as lines:
                async for line in lines:
                    if line:
                        await ask.write(response, line)
        except (
            MoorageError
        ) as error:  # the answer has begun: its end without that of the task makes the client ask again
            log.warning("request %s: the stream of %s broke off: %s", ask.request_id, call.id, error)
    if watch.reason in (None, "closing"):
        await response.write_eof()
    else:
        ask.cut()
    return response


class _Following:
    def __init__(self, ask: Ask, call: Any, told: Told, session_of: Callable[[Ask, Any], Awaitable[Any]]) -> None:
        self._ask = ask
        self._call = call
        self._told = told
        self._session_of = session_of
        self._session: Any = None
        self._printed = Printed()
        self._partial: Any = None
        self._told_at = 0.0
        self._queue: asyncio.Queue[list[dict[str, Any]] | MoorageError | None] = asyncio.Queue(_WAITING_RECORDS)

    async def lines(self) -> AsyncGenerator[bytes]:
        """The last one is that of the finished task, unless it is too long for one."""
        tasks = [] if self._over else [asyncio.create_task(self._follow()), asyncio.create_task(self._watch())]
        try:
            if self._over:
                async with aclosing(kept_records(self._ask, self._call)) as pieces:
                    async for records in pieces:
                        async for line in self._tell(records):
                            yield line
            else:
                if self._call.status == "queued":
                    self._session = await self._session_of(self._ask, self._call)
                yield await self._line()
            while not self._over:
                async for line in self._next():
                    yield line
            yield await self._line()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _over(self) -> bool:
        return self._call.finished_at is not None

    async def _next(self) -> AsyncGenerator[bytes]:
        """What is to be told after the next thing that happens, or after a while in which nothing does."""
        try:
            async with asyncio.timeout_at(self._told_at + UPDATE_SECONDS):
                records = await self._queue.get()
        except TimeoutError:
            await self._look()
            if not self._over:
                yield await self._line()
            return
        if isinstance(records, MoorageError):
            raise records
        if records is None:
            before = self._status
            await self._look()
            if self._status is not before and not self._over:
                yield await self._line()
            return
        async for line in self._tell(records):
            yield line

    async def _tell(self, records: list[dict[str, Any]]) -> AsyncGenerator[bytes]:
        """A line for each partial output, and one for what was printed."""
        said = self._printed.add(records)
        for record in records:
            if record["kind"] == "call":
                self._call = record["data"]
            elif record["kind"] == "result" and "partial" in record["data"]:
                self._partial, said = record["data"]["partial"], False
                yield await self._line(running=True)
        if said and not self._over:
            yield await self._line()

    async def _look(self) -> None:
        self._call = (await self._ask.run(GetCallAction(call_id=self._call.id))).call
        if self._call.status == "queued":
            self._session = await self._session_of(self._ask, self._call)

    @property
    def _status(self) -> shapes.TaskStatus:
        return shapes.status_of(self._call, self._session)

    async def _line(self, *, running: bool = False) -> bytes:
        """`running`: of the time before its end, which may be over."""
        self._told_at = asyncio.get_running_loop().time()
        running = running or not self._over
        call = (
            replace(self._call, status="running", finished_at=None, error=None)
            if running and self._over
            else self._call
        )
        task = await self._told(self._ask, call, logs=self._printed.text, session=self._session)
        if running and self._partial is not None:
            task["output"], task["status"] = files.told(self._ask, self._partial), int(shapes.TaskStatus.RUNNING)
        line = dumps(task)
        for name in ("input", "logs", "output") if running else ():
            if len(line) <= MAX_LINE_BYTES:
                break
            task[name] = [] if name == "logs" else None
            line = dumps(task)
        return line + b"\n" if len(line) <= MAX_LINE_BYTES else b""

    async def _follow(self) -> None:
        """What the call says, to its end."""
        try:
            async for records in call_records(self._ask, self._call):
                await self._queue.put(records)
        except MoorageError as error:
            await self._queue.put(error)

    async def _watch(self) -> None:
        """A word whenever the call's session changes while the call waits for it."""
        changed = asyncio.Event()
        with self._ask.door.world.herald.watching(self._call.session_id, changed.set):
            while self._call.status == "queued":
                await changed.wait()
                changed.clear()
                await self._queue.put(None)
