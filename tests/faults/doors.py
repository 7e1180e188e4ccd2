"""Managers' doors in this process, on a PostgreSQL that may be harmed: no agents, no containers, only what the database decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import orjson

from agent.client import AgentClient
from manager.herald import Herald
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from manager.world import World
from repositories.database import Database
from tests.rest.conftest import SECRET
from tests.rest.host import MemoryHost


@dataclass
class Door:
    """One manager's."""

    world: World
    host: MemoryHost
    port: int
    http: aiohttp.ClientSession
    #: what did not fit: everything but 2xx, 4xx, and 503 with Retry-After
    unplanned: list[str] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, who: str = "alice"
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer KEY-{who}.{SECRET}", "Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        data = orjson.dumps(body) if body is not None else None
        async with self.http.request(
            method, f"http://127.0.0.1:{self.port}{path}", data=data, headers=headers
        ) as answer:
            content = await answer.read()
            if answer.status >= 500 and not (answer.status == 503 and "Retry-After" in answer.headers):
                self.unplanned.append(f"{method} {path}: {answer.status} {content[:300]!r}")
            return answer.status, orjson.loads(content) if content else None


@asynccontextmanager
async def doors(*dsns: str) -> AsyncIterator[list[Door]]:
    """One for each DSN, which may be the same."""
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        made = []
        for dsn in dsns:
            database = await Database.connect(dsn)
            stack.push_async_callback(database.close)
            herald = Herald(dsn)
            await herald.start()
            stack.push_async_callback(herald.close)
            host, metrics = MemoryHost(), Metrics()
            world = World.build(database, herald, cast(AgentClient, host), observe=metrics.observe)
            door = RestDoor(world, metrics)
            made.append(Door(world, host, await door.listen("127.0.0.1", 0), http))
            stack.push_async_callback(door.close, 2.0)
        yield made


def creation(name: str) -> dict[str, Any]:
    return {"name": name, "image": "python", "resource_slots": {"cpu": 1, "mem": "64m"}}
