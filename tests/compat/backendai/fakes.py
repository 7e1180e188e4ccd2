"""The front over a host that keeps everything in memory; alice, mallory and root may sign, watcher may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, cast

import aiohttp
import pytest

from agent.client import AgentClient
from manager.compat.backendai.answering import BackendAiFront
from manager.herald import Herald
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from manager.vault import Vault
from manager.world import World
from repositories.database import Database
from repositories.signing import secret_about
from tests.compat.backendai.signer import Signer
from tests.rest.conftest import populate
from tests.rest.host import MemoryHost

SECRET: Final = "mos_" + "s" * 43
VAULT: Final = Vault(b"k" * 32)


@dataclass
class Fronted:
    world: World
    door: RestDoor
    host: MemoryHost
    port: int
    http: aiohttp.ClientSession
    database: Database

    def as_(self, who: str, secret: str = SECRET) -> Signer:
        return Signer(self.http, self.port, f"KEY-{who}", secret)


@pytest.fixture
async def fronted(database: Database) -> AsyncIterator[Fronted]:
    await populate(database)
    async with database.reader() as connection:
        for who in ("alice", "mallory", "root"):
            sealed = VAULT.seal(SECRET, secret_about(f"KEY-{who}"))
            await connection.execute(
                "UPDATE keypairs SET signing_sealed = $2, signing_since = now() WHERE access_key = $1",
                f"KEY-{who}",
                sealed,
            )
    herald = Herald(database.dsn)
    await herald.start()
    host, metrics = MemoryHost(), Metrics()
    world = World.build(database, herald, cast(AgentClient, host), observe=metrics.observe, vault=VAULT)
    door = RestDoor(world, metrics)
    door.mount({"backendai": BackendAiFront(door, lambda: VAULT)})
    port = await door.listen("127.0.0.1", 0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        yield Fronted(world, door, host, port, http, database)
    await door.close(2.0)
    await herald.close()


@pytest.fixture
def alice(fronted: Fronted) -> Signer:
    return fronted.as_("alice")


@pytest.fixture
def mallory(fronted: Fronted) -> Signer:
    return fronted.as_("mallory")


@pytest.fixture
def root(fronted: Fronted) -> Signer:
    return fronted.as_("root")
