"""A proxy over a fake agent, whose kernels' ports are programs of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from actions import StartServiceAction
from actions.services import ServiceStarted
from domain.principal import Principal
from manager.herald import Herald
from manager.proxy import Proxy
from manager.world import World
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, ID, a_session, people_and_a_host

PORT = 8000


@dataclass
class Seen:
    """What programs in kernels were asked."""

    requests: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@dataclass
class Bed:
    world: World
    proxy: Proxy
    fake: FakeAgent
    seen: Seen
    http: aiohttp.ClientSession

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    async def start(
        self, name: str = "web", port: int = PORT, *, by: Principal = ALICE, **given: Any
    ) -> ServiceStarted:
        given.setdefault("kind", "http")
        action = StartServiceAction(session_name=str(ID), service=name, port=port, **given)
        started: ServiceStarted = await self.world.processors.start_service.wait_for_complete(action, by=by)
        return started

    def local(self, address: str) -> str:
        """An address as the world tells it, at the port where the proxy of this test listens."""
        return address.replace("http://127.0.0.1/", f"{self.base}/", 1)

    async def enter(self, **given: Any) -> str:
        """Start a service and exchange its ticket: the address to go on at. The pass is in the cookie jar."""
        started = await self.start(**given)
        async with self.http.get(self.local(started.wsproxy_addr), allow_redirects=False) as response:
            assert response.status == 303, await response.text()
            return self.base + response.headers["Location"]


def backend(seen: Seen) -> web.Application:
    async def echo(request: web.Request) -> web.StreamResponse:
        seen.requests.append(request)
        body = await request.read()
        seen.bodies.append(body)
        return web.Response(body=body or b"hello from " + request.path_qs.encode())

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(100):
            await response.write(b"%d\n" % number * 1000)
        return response

    async def socket(request: web.Request) -> web.WebSocketResponse:
        seen.requests.append(request)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(f"echo {message.data}")
        return ws

    async def cookies(request: web.Request) -> web.Response:
        response = web.Response(status=302, headers={"Location": "/next", "Service-Worker-Allowed": "/"})
        response.set_cookie("theirs", "1", path="/", domain="example.org")
        response.set_cookie("moorage_pass", "x" * 40)
        return response

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/stream", stream)
    app.router.add_get("/ws", socket)
    app.router.add_get("/cookies", cookies)
    app.router.add_route("*", "/{path:.*}", echo)
    return app


Serving = Callable[[web.Application], Awaitable[int]]


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """Serve an application at a port of its own."""
    runners: list[web.AppRunner] = []

    async def serve(app: web.Application) -> int:
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    yield serve
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def bed(database: Database, serving: Serving) -> AsyncIterator[Bed]:
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await a_session().put(connection)
    herald, fake, seen = Herald(database.dsn), FakeAgent(), Seen()
    await herald.start()
    fake.ports[PORT] = await serving(backend(seen))
    world = World.build(database, herald, fake, observe=lambda *_: None)
    proxy = Proxy(database, herald, fake)
    await proxy.start("127.0.0.1", 0)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, connector=aiohttp.TCPConnector(force_close=True)) as http:
        yield Bed(world, proxy, fake, seen, http)
    await proxy.close()
    await herald.close()


SESSION: UUID = ID
