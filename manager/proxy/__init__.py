"""The proxy role: the door to services in sessions, on an origin of its own. Nothing of the API is served here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final

from agent.client import AgentClient
from domain.errors import MoorageError
from manager.config import ManagerConfig
from manager.proxy.access import Access, Announcements
from manager.proxy.balance import Balancer
from manager.proxy.client import Client
from repositories.database import Database

log = logging.getLogger("moorage.proxy")
_LOOK_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 1.0


class Proxy:
    """`start` and `close`."""

    def __init__(
        self,
        database: Database,
        herald: Announcements,
        agents: AgentClient,
        *,
        secure: bool = False,
        isolated: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.access = Access(database, herald, now)
        self._changed = asyncio.Event()
        herald.subscribe("identity", lambda _: self._changed.set())
        self.balancer = Balancer(agents.tunnel_socket)
        self.secure = secure
        self.isolated = isolated
        self.clients: set[Client] = set()
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Client(self), host, port, ssl=tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks = [
            asyncio.create_task(self._look()),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self.balancer.sweep()),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.leave()
        self.balancer.close()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._server.wait_closed()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            for client in list(self.clients):
                client.expire(now)

    async def _watch(self) -> None:
        """Whether those who are being answered, and those whose connections stay open, may stay: when anybody's rights
        change, and each second in any case. While the database does not answer, nobody is cut off."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _WATCH_SECONDS)
            self._changed.clear()
            held = {client.held for client in self.clients if client.held is not None}
            if not held:
                continue
            try:
                gone = await self.access.gone(list(held))
            except MoorageError:
                continue
            for client in list(self.clients):
                if client.held in gone:
                    client.cut()


async def serve(
    database: Database,
    herald: Announcements,
    agents: AgentClient,
    config: ManagerConfig,
    tls: ssl.SSLContext | None,
    stack: AsyncExitStack,
) -> None:
    """Listen on the proxy's own port until the stack is closed."""
    secure = tls is not None or config.proxy_url.startswith("https:")
    proxy = Proxy(database, herald, agents, secure=secure, isolated="*" in config.proxy_url)
    await proxy.start(config.host, config.proxy_port, tls)
    stack.push_async_callback(proxy.close)
    log.info("the proxy listens on port %d", proxy.port)
