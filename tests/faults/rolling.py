"""Requests without end through a balancer that only knows `readyz`, while managers are restarted one after the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from tests.faults.managers import Manager

#: As often as a balancer looks; a manager drains for longer.
LOOK_SECONDS = 0.2


@dataclass
class Balancer:
    """Sends to those that are ready; keeps their connections; never sends a request a second time."""

    managers: Sequence[Manager]
    bearer: str
    ready: list[Manager] = field(default_factory=list)
    turn: int = 0

    async def look(self) -> None:
        """Until it is cancelled."""
        while True:
            states = await asyncio.gather(*(asyncio.to_thread(one.is_ready) for one in self.managers))
            self.ready = [one for one, is_ready in zip(self.managers, states, strict=True) if is_ready]
            await asyncio.sleep(LOOK_SECONDS)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Only this is tried again: nothing was sent yet."""
        for _ in range(200):
            if self.ready:
                self.turn += 1
                manager = self.ready[self.turn % len(self.ready)]
                try:
                    return await asyncio.open_connection("127.0.0.1", manager.port)
                except ConnectionError:
                    pass
            await asyncio.sleep(0.05)
        raise TimeoutError("no manager takes a connection")


@dataclass
class Done:
    """What came of all requests."""

    answers: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0


class Caller:
    """One connection at a time, kept for as long as the other side keeps it."""

    def __init__(self, balancer: Balancer, done: Done) -> None:
        self._balancer = balancer
        self._done = done
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        content = b"" if body is None else json.dumps(body).encode()
        key = "" if method == "GET" else f"Idempotency-Key: {uuid4()}\r\n"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: moorage\r\nAuthorization: Bearer {self._balancer.bearer}\r\n"
            f"Content-Type: application/json\r\n{key}Content-Length: {len(content)}\r\n\r\n"
        )
        began = time.monotonic()
        try:
            if self._streams is None:
                self._streams = await self._balancer.connect()
            reader, writer = self._streams
            writer.write(head.encode() + content)
            status, answer, last = await _read(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            self._done.failed.append(f"{method} {path} after {time.monotonic() - began:.3f} s: {error!r}")
            self.leave()
            return 0, b""
        self._done.answers[status] += 1
        self._done.longest_seconds = max(self._done.longest_seconds, time.monotonic() - began)
        if status >= 500:
            self._done.failed.append(f"{method} {path}: {status} {answer[:200]!r}")
        if last:
            self.leave()
        return status, answer

    def leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    async with asyncio.timeout(90):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        status = int(head.split(" ", 2)[1])
        body = await reader.readexactly(int(lines.get("content-length", "0")))
    return status, body, lines.get("connection") == "close"
