"""Readers and writers at a fixed rate: a request that is late is late from when it should have been sent."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Measured:
    """Seconds by kind of request, and what was answered."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, seconds: float, status: int) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        self.statuses[f"{kind} {status}"] += 1

    def all(self, kinds: str) -> list[float]:
        return [one for kind, many in self.seconds.items() if kind.startswith(kinds) for one in many]


class Traffic:
    """`running` and `pending` are ids of sessions that are so when it begins."""

    def __init__(self, url: str, bearer: str, running: list[str], pending: list[str], body: dict[str, Any]) -> None:
        self._url = url
        self._bearer = bearer
        self._running, self._pending = running, pending
        self._body = body
        self._lots = random.Random(1)
        self._made = 0
        self.measured = Measured()

    async def run(self, seconds: float, *, reads: float, mutations: float, each_minute: Callable[[], None]) -> None:
        headers = {"Authorization": f"Bearer {self._bearer}"}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(self._url, headers=headers, connector=connector) as http:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._at_a_rate(http, seconds, reads, self._read))
                group.create_task(self._at_a_rate(http, seconds, mutations, self._mutate))
                group.create_task(self._watch(seconds, each_minute))

    async def _watch(self, seconds: float, each_minute: Callable[[], None]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.to_thread(each_minute)  # in this thread it would make every request of that moment late
            await asyncio.sleep(min(60.0, left))
        await asyncio.to_thread(each_minute)

    async def _at_a_rate(
        self, http: aiohttp.ClientSession, seconds: float, rate: float, send: Callable[..., Coroutine[Any, Any, None]]
    ) -> None:
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * rate)):
                due = begun + number / rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(send(http, due))

    # -- requests ------------------------------------------------------------------------------------------------------
    async def _read(self, http: aiohttp.ClientSession, due: float) -> None:
        lot, some = (
            self._lots.random(),
            self._lots.choice(self._running if self._lots.random() < 0.5 else self._pending),
        )
        if lot < 0.7:
            await self._ask(http, due, "read one", "GET", f"/v1/sessions/{some}")
        elif lot < 0.85:
            await self._ask(http, due, "read history", "GET", f"/v1/sessions/{some}/status-history")
        else:
            status = self._lots.choice(("RUNNING", "PENDING"))
            await self._ask(http, due, "read list", "GET", f"/v1/sessions?status={status}&limit=20")

    async def _mutate(self, http: aiohttp.ClientSession, due: float) -> None:
        lot = self._lots.random()
        if lot < 0.4:
            self._made += 1
            said = await self._ask(
                http, due, "mutate create", "POST", "/v1/sessions", {**self._body, "name": f"made-{self._made}"}
            )
            if said is not None:
                self._pending.append(said["id"])
        elif lot < 0.8:
            some = self._running if self._lots.random() < 0.5 else self._pending
            one = some.pop(self._lots.randrange(len(some)))
            await self._ask(http, due, "mutate destroy", "DELETE", f"/v1/sessions/{one}")
        else:
            self._made += 1
            one = self._lots.choice(self._running)
            await self._ask(
                http, due, "mutate rename", "POST", f"/v1/sessions/{one}/rename", {"new_name": f"named-{self._made}"}
            )

    async def _ask(
        self, http: aiohttp.ClientSession, due: float, kind: str, method: str, path: str, body: Any = None
    ) -> Any:
        try:
            async with http.request(method, path, json=body) as answer:
                said = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            said, status = b"", 0
        self.measured.add(kind, time.monotonic() - due, status)
        return json.loads(said) if status in (200, 201) else None
