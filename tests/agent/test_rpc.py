"""Two peers and the wire between them: what is asked is answered, and nothing that goes wrong harms anything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from aiohttp import WSMsgType

from agent.rpc import Peer
from agent.wire import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES
from domain.errors import AgentUnavailable, FileNotFound, Internal, InvalidRequest


@dataclass
class Frame:
    type: WSMsgType
    data: bytes = b""


class Pipe:
    """One end of a WebSocket without a network. `frames` are those it has sent; sending waits while `open` is not set."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Frame] = asyncio.Queue()
        self.other: Pipe
        self.frames: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()
        self.blocked = asyncio.Event()

    async def send_bytes(self, data: bytes) -> None:
        if not self.open.is_set():
            self.blocked.set()
        await self.open.wait()
        self.frames.append(data)
        self.other.inbox.put_nowait(Frame(WSMsgType.BINARY, data))
        await asyncio.sleep(0)

    async def receive(self) -> Frame:
        return await self.inbox.get()

    async def close(self) -> None:
        for end in (self, self.other):
            end.inbox.put_nowait(Frame(WSMsgType.CLOSED))


@dataclass
class Pair:
    manager: Peer
    agent: Peer
    up: Pipe  #: what the manager sends on
    down: Pipe  #: what the agent sends on


@asynccontextmanager
async def connected() -> AsyncIterator[Pair]:
    up, down = Pipe(), Pipe()
    up.other, down.other = down, up
    pair = Pair(Peer(up, "agent"), Peer(down, "manager"), up, down)
    running = [asyncio.create_task(peer.run()) for peer in (pair.manager, pair.agent)]
    try:
        yield pair
    finally:
        await pair.manager.close()
        await asyncio.gather(*running)


async def echo(arguments: dict[str, Any]) -> Any:
    return arguments


async def test_a_request_is_answered() -> None:
    async with connected() as pair:
        pair.agent.handle("echo", echo)
        answer = await pair.manager.request("echo", {"text": "ä", "bytes": b"\xff", "none": None}, timeout_seconds=5)
        assert answer == {"text": "ä", "bytes": b"\xff", "none": None}


async def test_both_ends_may_ask_at_once_with_the_same_numbers() -> None:
    async with connected() as pair:
        pair.agent.handle("echo", echo)
        pair.manager.handle("echo", echo)
        asked = [
            peer.request("echo", {"n": n}, timeout_seconds=5) for n in range(50) for peer in (pair.manager, pair.agent)
        ]
        assert [answer["n"] for answer in await asyncio.gather(*asked)] == [n for n in range(50) for _ in range(2)]


@pytest.mark.parametrize(
    "size", [0, MAX_FRAME_BYTES - 200, MAX_FRAME_BYTES, 3 * MAX_FRAME_BYTES, MAX_MESSAGE_BYTES - 100]
)
async def test_messages_of_any_size_arrive_in_frames_of_at_most_64_kib(size: int) -> None:
    async with connected() as pair:
        pair.agent.handle("echo", echo)
        body = bytes(size)
        assert await pair.manager.request("echo", {"b": body}, timeout_seconds=20) == {"b": body}
        assert max(map(len, pair.up.frames + pair.down.frames)) <= MAX_FRAME_BYTES


async def test_a_message_that_is_too_large_is_refused_and_harms_nothing() -> None:
    async with connected() as pair:
        pair.agent.handle("echo", echo)

        async def large(_arguments: dict[str, Any]) -> bytes:
            return bytes(MAX_MESSAGE_BYTES + 1)

        pair.agent.handle("large", large)
        with pytest.raises(InvalidRequest):
            await pair.manager.request("echo", {"b": bytes(MAX_MESSAGE_BYTES)}, timeout_seconds=5)
        with pytest.raises(InvalidRequest):
            await pair.manager.request("large", {}, timeout_seconds=5)
        assert await pair.manager.request("echo", {}, timeout_seconds=5) == {}


async def test_a_short_message_overtakes_a_long_one() -> None:
    async with connected() as pair:
        finished: list[str] = []

        async def ask(name: str, size: int) -> None:
            await pair.manager.request("echo", {"b": bytes(size)}, timeout_seconds=20)
            finished.append(name)

        pair.agent.handle("echo", echo)
        await asyncio.gather(ask("long", 4 << 20), ask("short", 1))
        assert finished == ["short", "long"]


async def test_an_error_comes_back_as_the_same_error() -> None:
    async with connected() as pair:

        async def fails(_arguments: dict[str, Any]) -> None:
            raise FileNotFound("There is no 'x'.", path="x", size=3)

        pair.agent.handle("fails", fails)
        with pytest.raises(FileNotFound, match="There is no 'x'") as caught:
            await pair.manager.request("fails", {}, timeout_seconds=5)
        assert caught.value.facts == {"path": "x", "size": 3}


async def test_a_bug_in_a_handler_is_an_error_of_that_request_only(caplog: pytest.LogCaptureFixture) -> None:
    async with connected() as pair:

        async def broken(arguments: dict[str, Any]) -> object:
            return object() if arguments.get("answer") else arguments["missing"]

        pair.agent.handle("broken", broken)
        pair.agent.handle("echo", echo)
        for arguments in ({}, {"answer": 1}):
            with pytest.raises(Internal):
                await pair.manager.request("broken", arguments, timeout_seconds=5)
        with pytest.raises(InvalidRequest):
            await pair.manager.request("unheard of", {}, timeout_seconds=5)
        assert await pair.manager.request("echo", {}, timeout_seconds=5) == {}
        assert "broken of manager failed" in caplog.text


async def test_notices_arrive_in_order_and_a_bug_in_taking_one_harms_nothing() -> None:
    async with connected() as pair:
        taken: list[int] = []
        all_there = asyncio.Event()

        def take(arguments: dict[str, Any]) -> None:
            taken.append(arguments["n"])
            if arguments["n"] == 4:
                all_there.set()

        pair.agent.on_notice("said", take)
        await pair.manager.notify("said", {})
        await pair.manager.notify("unheard of", {})
        for n in range(5):
            await pair.manager.notify("said", {"n": n})
        await all_there.wait()
        assert taken == [0, 1, 2, 3, 4]


async def test_no_answer_in_time_is_unknown_and_the_handler_is_stopped() -> None:
    async with connected() as pair:
        stopped = asyncio.Event()

        async def slow(_arguments: dict[str, Any]) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        pair.agent.handle("slow", slow)
        pair.agent.handle("echo", echo)
        with pytest.raises(AgentUnavailable):
            await pair.manager.request("slow", {}, timeout_seconds=0.05)
        await stopped.wait()
        assert await pair.manager.request("echo", {}, timeout_seconds=5) == {}


async def test_nothing_is_left_of_a_message_that_was_given_up_in_its_middle() -> None:
    async with connected() as pair:
        pair.agent.handle("echo", echo)
        for _ in range(300):  # more than may be unfinished at a time
            pair.up.blocked.clear()
            pair.up.open.clear()
            asked = asyncio.create_task(
                pair.manager.request("echo", {"b": bytes(3 * MAX_FRAME_BYTES)}, timeout_seconds=5)
            )
            await pair.up.blocked.wait()
            pair.up.open.set()
            while not pair.agent._partial:
                await asyncio.sleep(0)
            pair.up.open.clear()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            pair.up.open.set()
        assert await pair.manager.request("echo", {}, timeout_seconds=5) == {}
        assert not pair.agent._partial


async def test_when_the_connection_closes_all_that_waits_fails_at_once() -> None:
    async with connected() as pair:
        began, stopped = asyncio.Event(), asyncio.Event()

        async def slow(_arguments: dict[str, Any]) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        pair.agent.handle("slow", slow)
        asked = [asyncio.create_task(pair.manager.request("slow", {}, timeout_seconds=60)) for _ in range(10)]
        await began.wait()
        await pair.agent.close()
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, AgentUnavailable)
        await stopped.wait()
        with pytest.raises(AgentUnavailable):
            await pair.manager.request("slow", {}, timeout_seconds=5)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"not msgpack at all",
        msgpack.packb(3),
        msgpack.packb([0, 1]),
        msgpack.packb([0, 1, False, "text"]),
        msgpack.packb([7, 1, False, msgpack.packb(None)]),
        msgpack.packb([0, 1, False, msgpack.packb([])]),
        msgpack.packb([1, 1, False, b""]),
        msgpack.packb([3, 1, False, msgpack.packb(None)]),
        bytes(MAX_FRAME_BYTES + 1),
    ],
)
async def test_what_breaks_the_protocol_is_cut_off(frame: bytes) -> None:
    async with connected() as pair:
        await pair.up.send_bytes(frame)
        async with asyncio.timeout(5):
            await pair.agent.closed.wait()


async def test_unfinished_messages_do_not_fill_the_memory() -> None:
    async with connected() as pair:
        for number in range(300):
            await pair.up.send_bytes(msgpack.packb([0, number, True, b"x"]))
        async with asyncio.timeout(5):
            await pair.agent.closed.wait()
    async with connected() as pair:
        for _ in range(MAX_MESSAGE_BYTES // 60_000 + 2):
            await pair.up.send_bytes(msgpack.packb([0, 1, True, bytes(60_000)]))
        async with asyncio.timeout(5):
            await pair.agent.closed.wait()
