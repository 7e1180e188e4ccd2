"""Every listener of an installation on loopback, over a real PostgreSQL; only the host with its containers is made up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from agent import pki
from agent.client import AgentClient
from agent.direct import DirectFiles
from agent.hub import AgentHub
from manager.config import ManagerConfig
from manager.daemon import _Callbacks
from manager.gateway.authority import Authority
from manager.herald import Herald
from manager.metrics import Metrics
from manager.proxy import Proxy
from manager.rest.app import RestDoor
from manager.vault import Vault
from manager.world import World
from repositories.database import Database


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What listens. `address` names each by the URL at which it does."""

    database: Database
    world: World
    door: RestDoor
    proxy: Proxy
    hub: AgentHub
    direct: DirectFiles
    rest_port: int

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def services(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"


@asynccontextmanager
async def opened(dsn: str, folder: Path, agents: Any, **limits: Any) -> AsyncIterator[Stack]:
    """The API, the proxy, the listener for agents and that of a host for direct transfers, until the block is left."""
    async with AsyncExitStack() as stack:
        database = await Database.connect(dsn)
        stack.push_async_callback(database.close)
        herald = Herald(dsn)
        await herald.start()
        stack.push_async_callback(herald.close)
        client = cast(AgentClient, agents)  # a fake is one in all that is called
        metrics = Metrics()
        pki.ensure_authority(folder / "pki")
        world = World.build(database, herald, client, observe=metrics.observe, vault=Vault.of(folder / "pki"))
        config = ManagerConfig(data_dir=folder, database_url=dsn, ssh_port=22)
        world.service.ssh = Authority.of(config)
        door = RestDoor(world, metrics, join_token=lambda secret: f"join-{secret}", **limits)
        rest_port = await door.listen("127.0.0.1", 0)
        stack.push_async_callback(door.close, 2.0)
        proxy = Proxy(database, herald, client)
        await proxy.start("127.0.0.1", 0)
        stack.push_async_callback(proxy.close)
        hub = AgentHub(
            uuid4(), "api", tls=pki.server_context(folder / "pki"), ca_dir=folder / "pki", host="127.0.0.1", port=0,
            callbacks=_Callbacks(database, herald),
        )  # fmt: skip
        await hub.start()
        stack.push_async_callback(hub.close)
        direct = DirectFiles(cast(Any, None), "127.0.0.1:0", None, folder / "direct", now=lambda: 0.0)
        (folder / "direct").mkdir()
        await direct.start()
        stack.push_async_callback(direct.close)
        yield Stack(database=database, world=world, door=door, proxy=proxy, hub=hub, direct=direct, rest_port=rest_port)
