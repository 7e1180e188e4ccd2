"""Nodes for tests: the server of containers, in this process, behind a real socket; and such as send whatever they like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from moorage.mesh import ClientConfig, RemoteManager

from runner.moorage_authorizers import AuthorizerBase
from runner.moorage_tensors import Limits
from runner.tensor_app import App
from runner.tensor_server import Server

SECRET = "a secret of sixteen bytes and more"


@dataclass
class TestNode:
    __test__ = False
    server: Server
    address: str = ""
    asked: list[tuple[str, Any, int]] = field(default_factory=list)  #: prompt, tensor, first output
    closed: int = 0  #: generators whose `finally` ran
    said: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def die(self) -> None:
        """As a killed container: nothing listens, and what was open is cut."""
        await self.server.close()


class Here(App):
    """An application that is no module of its own."""

    def __init__(self, run: Callable[..., Any], resume: str) -> None:
        super().__init__("here:run", path=".")
        self._given = run
        self.resume = resume

    async def _load(self) -> None:
        self._run = self._given


@asynccontextmanager
async def node(
    outputs: Callable[..., Any],
    *,
    resume: str = "none",
    authorizer: AuthorizerBase | None = None,
    concurrency: int = 16,
    limits: Limits = Limits(),  # noqa: B008
    peer_id: str | None = None,
) -> AsyncIterator[TestNode]:
    """Serves `outputs(node, prompt, tensor, start_at)`, an async generator."""

    async def run(prompt: str, tensor: Any, start_at: int = 0) -> AsyncIterator[Any]:
        made.asked.append((prompt, tensor, start_at))
        try:
            async for output in outputs(made, prompt, tensor, start_at):
                yield output
        finally:
            made.closed += 1
            made.loop.call_soon_threadsafe(made.ended.set)

    app = Here(run, resume)
    said: list[str] = []
    server = Server(
        app,
        peer_id=peer_id or f"node-{id(app):x}",
        limits=limits,
        concurrency=concurrency,
        authorizer=authorizer,
        say=said.append,
    )
    made = TestNode(server, said=said)
    await app.start()
    made.address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    try:
        yield made
    finally:
        await server.close()
        await app.close()


@asynccontextmanager
async def hostile(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of what tells well of itself, and answers streams by `answer`."""
    info = b'{"peer": "hostile", "load": {"active": 0, "limit": 9}}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(info) + info)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                await answer(writer)
            await writer.drain()
            writer.write_eof()
            await reader.read()  # until the other side has gone: what was sent is not overtaken by a reset
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def remote(*addresses: str, now: Callable[[], float] | None = None, **settings: Any) -> RemoteManager:
    config = ClientConfig(initial_peers=addresses, **{"min_backoff": 0.001, "connect_timeout": 5.0, **settings})
    return RemoteManager(config) if now is None else RemoteManager(config, now=now)
