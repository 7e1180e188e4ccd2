"""Links to services in sessions: calls that share one, and one that is closed while calls are at it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
import grpc.aio
import pytest

from agent.client import KernelAddress
from domain.ids import AgentId, KernelId
from manager.compat.grpc.budget import Share
from manager.compat.grpc.links import Links
from manager.compat.grpc.methods import METHODS
from manager.compat.grpc.relay import Held, Message, Refused, relay

METHOD = next(method for method in METHODS.values() if not method.streams)
WHERE = KernelAddress(agent_id=AgentId("a"), kernel_id=KernelId(UUID(int=1)), attempt=1)


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            self.asked.set()
            await self.may_answer.wait()
            yield message[::-1]


class Context:
    """As much of a call's as a relay uses."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, metadata: Any) -> None: ...

    async def write(self, answer: bytes) -> None:
        self.answers.append(answer)


@pytest.fixture
async def service() -> AsyncIterator[tuple[Service, Links]]:
    server, handler = grpc.aio.server(), Service()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def dial(where: KernelAddress, _: int) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        return sock

    links = Links(dial, largest=2**20)
    yield handler, links
    await links.close()
    await server.stop(None)


async def _call(links: Links) -> list[bytes]:
    share, context = Share(2**20), Context()
    async with links.to(WHERE, 1, share) as link:
        await relay(context, METHOD, Message(b"abc"), Held(share), link)
    return context.answers


async def test_a_call_goes_on_when_another_has_found_their_link_wanting(service: tuple[Service, Links]) -> None:
    handler, links = service
    async with links.to(WHERE, 1, Share(2**20)) as link:
        other = asyncio.create_task(_call(links))
        await handler.asked.wait()
        links.forget(link)
    await asyncio.sleep(0)  # whatever closes it now has its chance
    assert not links.knows(link)
    handler.may_answer.set()
    assert await asyncio.wait_for(other, 20) == [b"cba"]
    assert await asyncio.wait_for(_call(links), 20) == [b"cba"]


async def test_a_link_that_is_closed_tells_who_is_at_it(service: tuple[Service, Links]) -> None:
    handler, links = service
    async with links.to(WHERE, 1, Share(2**20)) as link:
        other = asyncio.create_task(_call(links))
        await handler.asked.wait()
        await link.close()
        with pytest.raises(Refused) as refused:
            await asyncio.wait_for(other, 20)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_call_that_is_given_up_is_given_up(service: tuple[Service, Links]) -> None:
    handler, links = service
    call = asyncio.create_task(_call(links))
    await handler.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 20)
