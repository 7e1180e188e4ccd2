"""`python -m tests.gate.server DSN FOLDER [bare]`: the stack in a process of its own, until its standard input ends.

`bare`: whoever has started it has put into the database what is to be there.

Prints one JSON line: where it listens. What fails inside is on standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from repositories.database import Database
from tests.gate.fake import SteadyAgent
from tests.gate.fuzz import MANY
from tests.gate.people import SUPERADMIN, USER, populate
from tests.gate.stack import opened
from tests.gate.things import MAKERS, SERVICE_PORT, add_store


async def serve(dsn: str, folder: Path, *, bare: bool) -> None:
    if not bare:
        database = await Database.connect(dsn)
        async with database.transaction() as connection:
            await populate(connection)
            await add_store(connection)
            for kind, make in MAKERS.items():
                first = MANY + 1 if kind == "worker" else 1  # those are sessions, too
                for number in range(first, first + MANY):
                    await make(connection, SUPERADMIN if number % 2 else USER, number)
        await database.close()
    agent = SteadyAgent()
    program = await asyncio.start_server(_program, "127.0.0.1", 0)
    agent.ports[SERVICE_PORT] = program.sockets[0].getsockname()[1]
    async with opened(dsn, folder, agent) as stack:
        told = {"rest": stack.rest, "services": stack.services, "agents": stack.hub.url, "files": stack.direct.url}
        print(json.dumps({**told, "pid": os.getpid()}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What listens in every kernel: greets, or changes to a WebSocket that says nothing."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade: websocket" in head.lower():
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
    writer.close()


@asynccontextmanager
async def running(dsn: str, folder: Path, *, bare: bool = False) -> AsyncIterator[dict[str, str | int]]:
    """What it has printed, while it runs. Fails when something in it went wrong unforeseen."""
    with (folder / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.gate.server", dsn, str(folder), *(["bare"] if bare else [])),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        if not line:
            raise AssertionError((folder / "server.log").read_text()[-4000:])
        yield json.loads(line)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    uvloop.run(serve(sys.argv[1], Path(sys.argv[2]), bare="bare" in sys.argv[3:]))
