"""A connection to PostgreSQL that breaks at the worst moment: between a COMMIT and its answer, or just before it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import quote

_NAME: Final = ".s.PGSQL.5432"


class Cut(StrEnum):
    BEFORE = "before the commit"  #: it never arrives: rolled back
    AFTER = "after the commit"  #: it is done, and nobody hears of it


class CuttingProxy:
    """Armed, it cuts the connection of the next COMMIT, once. `cuts` counts."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._armed: Cut | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut = asyncio.Event()
        self.cuts = 0
        self.commits = 0

    @asynccontextmanager
    async def listening(self, folder: Path) -> AsyncIterator[str]:
        """The DSN of the database `moorage` by way of the proxy, whose socket is in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        server = await asyncio.start_unix_server(self._serve, folder / _NAME)
        try:
            yield f"postgresql://moorage@/moorage?host={quote(str(folder), safe='')}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def arm(self, cut: Cut) -> None:
        self.cut.clear()
        self._armed = cut

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [to_client]
        # a task of a stream's server must not end cancelled: asyncio would call that a failure
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            server, to_server = await asyncio.open_unix_connection(str(self._target / _NAME))
            writers.append(to_server)
            answers = asyncio.create_task(_pour(server, to_client))
            try:
                await self._requests(client, to_server, answers, server)
            finally:
                answers.cancel()
        for writer in writers:
            writer.transport.abort()

    async def _requests(
        self,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        answers: asyncio.Task[None],
        server: asyncio.StreamReader,
    ) -> None:
        first = await client.readexactly(4)
        to_server.write(first + await client.readexactly(struct.unpack("!i", first)[0] - 4))
        while True:
            head = await client.readexactly(5)
            body = await client.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            if head[:1] == b"Q" and body.startswith(b"COMMIT"):
                self.commits += 1
                if self._armed is not None:
                    await self._break(head + body, to_server, answers, server)
                    return
            to_server.write(head + body)
            await to_server.drain()

    async def _break(
        self, commit: bytes, to_server: asyncio.StreamWriter, answers: asyncio.Task[None], server: asyncio.StreamReader
    ) -> None:
        cut, self._armed = self._armed, None
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
        if cut is Cut.AFTER:
            to_server.write(commit)
            await to_server.drain()
            await server.read(1)  # the answer has come: it is committed
        self.cuts += 1
        self.cut.set()


async def _pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(65536):
            target.write(piece)
            await target.drain()
    target.close()
