"""Output without measure: gigabytes, bytes that are no text, no newline, a byte a line; and readers that never read."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from moorage import aio

from tests.faults.book import Book
from tests.faults.installation import Installation

SMALL: Final[dict[str, Any]] = {"cpu": 1, "mem": "256m"}
#: Of one run's ring, and some for the others' and for segments that are being written.
MOST_DISK_MIB: Final = 80
MOST_MORE_MIB: Final = 60


def _rss(pids: dict[str, int]) -> dict[str, int]:
    """MiB."""
    found = {}
    for name, pid in pids.items():
        words = Path(f"/proc/{pid}/statm").read_text().split()
        found[name] = int(words[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    return found


def _disk(installation: Installation) -> int:
    """MiB, of all rings."""
    files: Iterator[Path] = (installation.data_dir / "agent").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and "runtime" not in file.parts) >> 20


def codes(mebibytes: int) -> dict[str, str]:
    return {
        f"{mebibytes} MiB": f"b = b'x' * 1023 + b'\\n'\nfor _ in range({mebibytes}): w(b * 1024)",
        "bytes that are no text": "for _ in range(64): w(bytes(range(256)) * 4096)",
        "100 MiB without a newline": "for _ in range(100): w(b'x' * (1 << 20))",
        "2 million lines of a byte": "for _ in range(2000): w(b'x\\n' * 1000)",
    }


async def output(folder: Path, book: Book, *, mebibytes: int = 3072) -> None:
    with Installation.up(folder) as installation:
        async with installation.client() as client:
            for what, code in codes(mebibytes).items():
                await _flood(installation, client, book, what, code)
            await _silent_reader(installation, client, book)


async def _flood(installation: Installation, client: aio.Client, book: Book, what: str, code: str) -> None:
    found = []
    session = await client.sessions.create(f"flood-{len(book.faults)}", **SMALL)
    pids = {name: pid for name, pid in installation.pids().items() if name in ("api", "control", "agent")}
    before, disk = _rss(pids), _disk(installation)
    run = await session.executions.start(f"import sys\nw = sys.stdout.buffer.write\n{code}\nw(b'\\nTHE END\\n')")
    with book.timed(f"output: {what}"):
        done = await run.wait(timeout=300)
    more = {name: now - before[name] for name, now in _rss(pids).items() if now - before[name] > MOST_MORE_MIB}
    if more:
        found.append(f"I8 memory has grown by {more} MiB")
    if (grown := _disk(installation) - disk) > MOST_DISK_MIB:
        found.append(f"I8 {grown} MiB of it lie on the disk")
    if not done.stdout.endswith("THE END\n"):
        found.append(f"I7 the end is not there: {done.stdout[-20:]!r}")
    await session.destroy(wait=60)
    book.fault(f"output: {what}", found + await installation.check(client))


async def _silent_reader(installation: Installation, client: aio.Client, book: Book) -> None:
    """A WebSocket that is opened and never read from, while a run writes and others work."""
    session = await client.sessions.create("never-read", **SMALL)
    pids = {name: pid for name, pid in installation.pids().items() if name in ("api", "control", "agent")}
    run = await session.executions.start(
        "import sys\nfor _ in range(300): sys.stdout.write('y' * (1 << 20))\nprint('done')"
    )
    address = urlsplit(installation.endpoint)
    sockets = []
    for _ in range(5):
        raw = socket.create_connection((address.hostname or "", address.port or 80))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = base64.b64encode(os.urandom(16)).decode()
        raw.sendall(
            f"GET /v1/sessions/{session.id}/executions/{run.run_id}/stream HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {installation.access_key}.{installation.secret_key}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        sockets.append(raw)
    before = _rss(pids)
    done = await run.wait(timeout=120)
    other = await session.run_code("print(1)")
    more = {name: now - before[name] for name, now in _rss(pids).items() if now - before[name] > MOST_MORE_MIB}
    found = [f"I8 memory has grown by {more} MiB"] if more else []
    head = sockets[0].recv(15)
    if b"101" not in head and b"200" not in head:
        found.append(f"the stream was answered with {head!r}")
    if not done.stdout.endswith("done\n") or other.stdout != "1\n":
        found.append("others do not get what they ask for")
    for raw in sockets:
        raw.close()
    await session.destroy(wait=60)
    await asyncio.sleep(0)
    book.fault("5 readers that never read", found + await installation.check(client))
