"""A container engine that answers wrongly, on purpose and by a seed: a unix socket in front of the true one.

Each connection carries one request. What it is called ("POST containers/*/start") is counted; an armed fault falls on the
next request of its kind, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

_VERSION: Final = re.compile(r"^/v[0-9.]+")
_NAMES: Final = re.compile(r"^(containers|images|networks|exec)/(?!create$|json$|load$|prune$)(.+?)(/[a-z]+)?$")
_MOST_HEAD: Final = 256 * 1024
#: Their answers have no end, or are not HTTP any more: they are passed on as they come.
ENDLESS: Final = re.compile(
    r"GET events|POST images/create|POST images/load|GET containers/\*/logs|/attach|exec/\*/start"
)


class Fault(StrEnum):
    LOST = "reply lost"  #: it was done, and the connection breaks before the answer
    REFUSED = "500, not done"
    FAILED = "500, and done"
    TRUNCATED = "reply truncated"  #: it was done, and half of the answer comes
    DELAYED = "reply delayed"  #: it was done, and the answer comes much later
    DOUBLED = "done twice"  #: the request arrives twice, and the second answer comes
    LATE = "done late"  #: the connection breaks, and the engine does it afterwards


@dataclass
class Armed:
    kind: str
    fault: Fault
    fired: threading.Event


class EngineProxy:
    """Between `start` and `stop`; runs in a thread of its own. `slow_seconds` is added to every answer."""

    def __init__(self, socket: Path, engine: str, *, delay_seconds: float = 3.0) -> None:
        self.socket = socket
        self.host = f"unix://{socket}"
        self.seen: Counter[str] = Counter()
        self.slow_seconds = 0.0
        self.delay_seconds = delay_seconds
        self.event_filter: Callable[[bytes], list[bytes]] | None = None  #: what becomes of each chunk of events
        self._engine = engine.removeprefix("unix://")
        self._armed: Armed | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.socket.unlink(missing_ok=True)

    def arm(self, kind: str, fault: Fault) -> threading.Event:
        """Set once it has fallen."""
        armed = Armed(kind, fault, threading.Event())
        self._armed = armed
        return armed.fired

    def disarm(self) -> None:
        self._armed = None

    def _do(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()  # type: ignore[arg-type]  # a coroutine in each case

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._accepted, self.socket, limit=_MOST_HEAD)

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- one request -----------------------------------------------------------------------------------------------------
    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, asyncio.CancelledError):
            pass  # who is cut off asks again; cancelled by `stop` alone
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        kind = name_of(head)
        self.seen[kind] += 1
        if ENDLESS.search(kind):
            await self._splice(kind, head, reader, writer)
            return
        request = _closing(head) + await _body(head, reader)
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        armed = self._armed
        if armed is None or armed.kind != kind:
            writer.write(await self._ask(request))
            await writer.drain()
            return
        self._armed = None
        await self._harm(armed, request, writer)

    async def _harm(self, armed: Armed, request: bytes, writer: asyncio.StreamWriter) -> None:
        fault = armed.fault
        if fault is Fault.LATE:
            armed.fired.set()
            writer.close()
            await asyncio.sleep(self.delay_seconds / 2)
            await self._ask(request)
            return
        answer = b"" if fault is Fault.REFUSED else await self._ask(request)
        if fault is Fault.DOUBLED:
            answer = await self._ask(request)
        armed.fired.set()
        if fault is Fault.DELAYED:
            await asyncio.sleep(self.delay_seconds)
        if fault in (Fault.REFUSED, Fault.FAILED):
            answer = _FIVE_HUNDRED
        elif fault is Fault.LOST:
            answer = b""
        elif fault is Fault.TRUNCATED:
            start = answer.find(b"\r\n\r\n") + 4
            answer = answer[: start + (len(answer) - start) // 2] if len(answer) > start + 1 else answer[: start // 2]
        writer.write(answer)
        await writer.drain()

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._engine)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()  # until it closes, as it was asked to
        finally:
            writer.close()

    async def _splice(self, kind: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self._engine)
        change = self.event_filter if kind == "GET events" else None

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, events: bool = False) -> None:
            while data := await source.read(1 << 16):
                for piece in change(data) if events and change is not None and data[:4] != b"HTTP" else [data]:
                    sink.write(piece)
                await sink.drain()

        up_writer.write(_closing(head))
        ways = [
            asyncio.ensure_future(carry(reader, up_writer)),
            asyncio.ensure_future(carry(up_reader, writer, events=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(ways[1:], timeout=None if ways[0].done() and "events" not in kind else 0.1)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            with contextlib.suppress(OSError):
                up_writer.close()


def name_of(head: bytes) -> str:
    """POST containers/*/start"""
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    path = _VERSION.sub("", target.partition("?")[0]).strip("/")
    return f"{method} " + _NAMES.sub(lambda found: f"{found[1]}/*{found[3] or ''}", path)


def _closing(head: bytes) -> bytes:
    """One request a connection, so that the end of the answer is the end of the connection."""
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
    upgrades = any(line.lower().startswith(b"upgrade:") for line in lines)
    return b"\r\n".join([*lines, b"Connection: Upgrade" if upgrades else b"Connection: close"]) + b"\r\n\r\n"


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if found:
        return await reader.readexactly(int(found[1]))
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.read(1 << 16)
        return body
    return b""


_FIVE_HUNDRED: Final = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 39\r\n\r\n{"message":"something went very wrong"}'
)
