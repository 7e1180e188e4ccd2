"""Managers' doors are closed and opened again one after the other, under requests that nobody sends twice."""

from __future__ import annotations

import asyncio
import urllib.request
from dataclasses import dataclass
from typing import cast
from uuid import uuid4

from agent.client import AgentClient
from manager.herald import Herald
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from manager.world import World
from repositories.database import Database
from tests.faults.doors import creation
from tests.faults.managers import Manager
from tests.faults.rolling import LOOK_SECONDS, Balancer, Caller, Done
from tests.rest.conftest import SECRET, populate
from tests.rest.host import MemoryHost

BEARER = f"KEY-alice.{SECRET}"


@dataclass
class Rolled:
    """A door on a port that it keeps, as `Balancer` knows managers."""

    database: Database
    herald: Herald
    door: RestDoor | None = None
    port: int = 0

    async def open(self) -> None:
        metrics = Metrics()
        world = World.build(self.database, self.herald, cast(AgentClient, MemoryHost()), observe=metrics.observe)
        self.door = RestDoor(world, metrics)
        self.port = await self.door.listen("127.0.0.1", self.port)

    async def close(self, drain_seconds: float) -> None:
        assert self.door is not None
        await self.door.close(5.0, drain_seconds=drain_seconds)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


async def test_no_request_fails_while_managers_are_restarted_in_turn(database: Database) -> None:
    await populate(database)
    herald = Herald(database.dsn)
    await herald.start()
    group = [Rolled(database, herald), Rolled(database, herald)]
    for one in group:
        await one.open()
    done, stop = Done(), asyncio.Event()
    balancer = Balancer(cast(list[Manager], group), BEARER)
    looking = asyncio.create_task(balancer.look())

    async def ask(method: str, path: str, body: object = None) -> None:
        caller = Caller(balancer, done)
        while not stop.is_set():
            await caller.ask(method, path, body)
            await asyncio.sleep(0.005)
        caller.leave()

    async def wait() -> None:
        """For a session that nobody schedules: answered as it is when its manager goes."""
        caller = Caller(balancer, done)
        while not stop.is_set():
            status, said = await caller.ask("POST", "/v1/sessions?wait=60", creation(f"waits-{uuid4().hex[:8]}"))
            assert (status, b"PENDING" in said) == (201, True), said
        caller.leave()

    asking = [
        asyncio.create_task(one)
        for one in (
            ask("GET", "/v1/sessions"),
            ask("GET", "/v1/sessions/train"),
            ask("POST", "/v1/sessions/train/rename", {"new_name": "train"}),
            wait(),
        )
    ]
    for one in group * 2:
        await one.close(drain_seconds=3 * LOOK_SECONDS)
        await one.open()
        async with asyncio.timeout(10):
            while cast(Manager, one) not in balancer.ready:
                await asyncio.sleep(LOOK_SECONDS / 4)
    stop.set()
    for one in group:
        assert one.door is not None
        one.door.world.service.patience.end()
    await asyncio.gather(*asking)
    looking.cancel()
    for one in group:
        await one.close(0)
    await herald.close()
    assert done.failed == []
    assert set(done.answers) == {200, 201}


async def test_who_goes_says_so_first_and_serves_on_meanwhile(database: Database) -> None:
    await populate(database)
    herald = Herald(database.dsn)
    await herald.start()
    one = Rolled(database, herald)
    await one.open()
    closing = asyncio.create_task(one.close(drain_seconds=1.0))
    while await asyncio.to_thread(one.is_ready):
        await asyncio.sleep(0.01)
    assert not closing.done()
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(f"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BEARER}\r\n\r\n".encode())
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()
    writer.close()
    await closing
    await herald.close()
