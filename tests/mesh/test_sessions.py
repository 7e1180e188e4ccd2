"""Sessions over nodes that fail in every way, on real sockets: each output once, or an error that says why not."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from moorage.forwarding import Refused
from moorage.mesh import (
    ApplicationError,
    ClientConfig,
    InvalidInput,
    NodeFailed,
    NoNodes,
    RemoteManager,
    Session,
    SessionClosed,
    SessionManager,
    StreamInterrupted,
)
from moorage.mesh.nodes import SessionP2P

from tests.mesh.nodes import Clock, Here, TestNode, node, remote

TENSOR = np.arange(6, dtype=np.float32).reshape(2, 3)


async def ten(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
    for number in range(start_at, 10):
        yield tensor + number


async def three_and_death(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
    for number in range(start_at, 3):
        yield tensor + number
    here.loop.call_soon_threadsafe(here.server.cut)
    await asyncio.Event().wait()


async def silence(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield tensor


async def wrong(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
    yield tensor
    raise ValueError("no such layer")


def prefer(manager: RemoteManager, *addresses: str) -> None:
    """As if they were the faster ones, in this order."""
    for place, address in enumerate(addresses):
        manager.state.nodes[address].seconds = 0.001 * 10**place


async def numbers(session: Session, prompt: str = "p", tensor: Any = TENSOR) -> list[int]:
    return [int(output[0][0]) async for output in session.run_protocol_task(prompt, tensor)]


async def test_outputs_come_in_order_as_what_the_input_is() -> None:
    async with node(ten) as one, remote(one.address) as manager, SessionManager(manager).session() as session:
        outputs = [output async for output in session.run_protocol_task("a prompt", TENSOR)]
        assert [output.dtype for output in outputs] == [np.float32] * 10
        assert all((output == TENSOR + number).all() for number, output in enumerate(outputs))
        [(prompt, tensor, _)] = one.asked
        assert prompt == "a prompt"
        assert (tensor == TENSOR).all()


@pytest.mark.parametrize("resume", ["own", "repeat"])
async def test_a_node_that_dies_in_mid_stream_is_followed_by_another_without_repetition(resume: str) -> None:
    async with node(three_and_death, resume=resume) as weak, node(ten, resume=resume) as strong:
        async with remote(weak.address, strong.address) as manager:
            await manager.update()
            prefer(manager, weak.address, strong.address)
            async with SessionManager(manager).session() as session:
                assert await numbers(session) == list(range(10))
                assert session.peer == strong.address
            [(prompt, tensor, start_at)] = strong.asked
            assert (prompt, start_at) == ("p", 3 if resume == "own" else 0)
            assert (tensor == TENSOR).all()  # the input, not the last output
            assert [n.peer_id for n in manager.make_sequence()] == [strong.address]


async def test_what_cannot_go_on_is_interrupted_and_says_how_much_there_was() -> None:
    async with node(three_and_death) as weak, node(ten) as strong, remote(weak.address, strong.address) as manager:
        await manager.update()
        prefer(manager, weak.address, strong.address)
        got = []
        with pytest.raises(StreamInterrupted) as caught:
            async for output in Session(manager).run_protocol_task("p", TENSOR):
                got += [int(output[0][0])]
        assert (got, caught.value.outputs, strong.asked) == ([0, 1, 2], 3, [])


async def test_before_the_first_output_any_application_may_be_asked_elsewhere() -> None:
    async with node(silence) as silent, node(ten) as strong:
        async with remote(silent.address, strong.address, request_timeout=0.2) as manager:
            await manager.update()
            prefer(manager, silent.address, strong.address)
            assert await numbers(Session(manager)) == list(range(10))
            await asyncio.wait_for(silent.ended.wait(), 10)  # its generator was closed


async def test_an_error_of_the_application_is_told_once_and_nobody_else_is_asked() -> None:
    async with node(wrong) as one, node(ten) as other, remote(one.address, other.address) as manager:
        await manager.update()
        prefer(manager, one.address, other.address)
        with pytest.raises(ApplicationError, match="no such layer") as caught:
            await numbers(Session(manager))
        assert (caught.value.ename, caught.value.facts["outputs"]) == ("ValueError", 1)
        assert "raise ValueError" in caught.value.traceback
        assert (len(one.asked), other.asked) == (1, [])
        assert len(manager.make_sequence()) == 2  # nobody is banned for it
        assert "ValueError: no such layer" in one.said[0]


async def test_an_output_that_is_no_tensor_is_the_applications_error() -> None:
    async def words(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
        yield "words"

    async with node(words) as one, remote(one.address) as manager:
        with pytest.raises(ApplicationError, match="A str is no tensor"):
            await numbers(Session(manager))
        await asyncio.wait_for(one.ended.wait(), 10)


async def test_closed_means_closed() -> None:
    async def two_and_silence(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
        yield tensor
        yield tensor
        await asyncio.Event().wait()

    async with node(two_and_silence) as one, remote(one.address) as manager:
        session = Session(manager)
        stream = session.run_protocol_task("p", TENSOR)
        await anext(stream)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await session.close()
        with pytest.raises(SessionClosed):
            await waiting
        with pytest.raises(SessionClosed):
            await numbers(session)
        await asyncio.wait_for(one.ended.wait(), 10)
        assert (len(one.asked), one.closed) == (1, 1)


async def test_what_is_being_opened_when_a_session_is_closed_asks_nothing() -> None:
    async with node(ten) as one, remote(one.address) as manager:
        await manager.update()
        p2p: Any = manager.state.p2p
        session, connect = Session(manager), p2p.connect

        async def connect_late(peer: str) -> Any:
            connection = await connect(peer)
            await session.close()
            return connection

        p2p.connect = connect_late
        with pytest.raises(SessionClosed):
            await numbers(session)
        assert one.asked == []


async def test_a_load_that_is_no_number_to_reckon_with_counts_as_none() -> None:
    async with node(ten) as one, remote(one.address) as manager:
        await manager.update()
        manager.state.nodes[one.address].learn({"load": {"active": 10**400, "limit": 10**400}})
        assert await numbers(Session(manager)) == list(range(10))


async def test_a_pass_that_is_dropped_while_it_is_refused_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def port_pass(port: int, *, kernel: str) -> Any:
        asked.append(kernel)
        return SimpleNamespace(expires_at=None)

    async def connect_port(given: Any, config: Any) -> str:
        if len(asked) == 1:
            p2p._passes = {}  # as a look at the nodes does that finds this one unwell
            raise Refused("it was taken back")
        return "connected"

    async def get(name: str) -> Any:
        return SimpleNamespace(services=SimpleNamespace(port_pass=port_pass))

    client: Any = SimpleNamespace(config=None, sessions=SimpleNamespace(get=get))
    p2p: Any = SessionP2P(ClientConfig(session="model", client=client))
    monkeypatch.setattr("moorage.forwarding.connect_port", connect_port)
    await p2p._pass("node")
    assert await p2p.connect("node") == "connected"
    assert asked == ["node", "node"]


async def test_a_client_that_leaves_off_closes_the_generator() -> None:
    async def endless(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
        while True:
            yield tensor
            await asyncio.sleep(0.001)

    async with node(endless) as one, remote(one.address) as manager:
        stream = Session(manager).run_protocol_task("p", TENSOR)
        await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(one.ended.wait(), 10)


async def test_a_busy_node_is_passed_over_and_not_banned() -> None:
    async with node(silence, concurrency=1) as busy, node(ten) as free, remote(busy.address, free.address) as manager:
        async with remote(busy.address) as other:
            stream = Session(other).run_protocol_task("p", TENSOR)
            held = asyncio.ensure_future(anext(stream))
            while not busy.asked:
                await asyncio.sleep(0.001)
            await manager.update()
            prefer(manager, busy.address, free.address)
            manager.state.nodes[busy.address].active = 0  # as it was a moment ago
            assert await numbers(Session(manager)) == list(range(10))
            assert [n.peer_id for n in manager.make_sequence()] == [free.address, busy.address]
            held.cancel()


async def test_all_nodes_gone_is_an_error_and_the_loop_is_never_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("something sleeps on the event loop"))
    async with node(ten) as one, remote(one.address) as manager:
        await manager.update()
        await one.die()
        with pytest.raises(NoNodes, match="is tried again in"):
            await numbers(Session(manager))
        with pytest.raises(NodeFailed, match="cannot be reached"):
            async for _ in Session(remote(one.address)).run_protocol_task("p", TENSOR, max_retries=0):
                pass


async def test_bans_end_and_double(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    manager = remote("127.0.0.1:1", "127.0.0.1:2", now=clock)
    await manager.update()
    first = "127.0.0.1:1"
    for ban in (15, 30, 60):
        manager.on_request_failure(first)
        clock.now += ban - 1
        assert [n.peer_id for n in manager.make_sequence()] == ["127.0.0.1:2"]
        clock.now += 1
        assert len(manager.make_sequence()) == 2
    manager.on_request_success(first)
    manager.on_request_failure(first)
    clock.now += 15
    assert len(manager.make_sequence()) == 2
    for address in ("127.0.0.1:1", "127.0.0.1:2"):
        manager.on_request_failure(address)
    with pytest.raises(NoNodes, match="15 seconds"):
        manager.make_sequence()


async def test_the_fast_and_idle_come_first_and_only_those_that_are_allowed() -> None:
    addresses = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    manager = remote(*addresses)
    await manager.update()
    for address, seconds, active in zip(addresses, (0.01, 0.02, 0.01), (8, 0, 0), strict=True):
        n = manager.state.nodes[address]
        n.seconds, n.active, n.limit = seconds, active, 8
    assert [n.peer_id[-1] for n in manager.make_sequence()] == ["3", "2", "1"]
    with manager.using(addresses[2]):
        assert [n.peer_id[-1] for n in manager.make_sequence()] == ["2", "3", "1"]
    for setting, left in (("allowed_servers", 1), ("blocked_servers", 2)):
        settings: dict[str, Any] = {setting: {addresses[0]}}
        chosen = remote(*addresses, **settings)
        await chosen.update()
        assert len(chosen.state.nodes) == left


def test_delays_double_up_to_the_most() -> None:
    manager = remote("127.0.0.1:1", min_backoff=1, max_backoff=60)
    assert [manager.get_retry_delay(n) for n in (0, 1, 2, 3, 7, 2000)] == [0, 1, 2, 4, 60, 60]


async def test_a_protocol_of_ones_own() -> None:
    class Own:
        def __init__(self, remote_manager: RemoteManager, authorizer: object) -> None:
            self.manager = remote_manager
            self.asked = 0

        async def call_inference_stream(self, peer: str, prompt: str, tensor: Any) -> AsyncIterator[int]:
            self.asked += 1
            if self.asked == 1 and prompt != "break":
                raise ConnectionResetError("gone")
            yield 1
            if prompt == "break":
                raise ConnectionResetError("gone")

    manager = remote("127.0.0.1:1", "127.0.0.1:2")
    assert [x async for x in Session(manager, protocol=Own).run_protocol_task("p", None)] == [1]
    manager = remote("127.0.0.1:1")
    with pytest.raises(StreamInterrupted):
        async for _ in Session(manager, protocol=Own(manager, None)).run_protocol_task("break", None):
            pass


async def test_an_input_that_is_refused_is_told_and_not_tried_elsewhere() -> None:
    async with node(ten) as one, remote(one.address) as manager:
        for bad in ("words", {"a": object()}, np.array(["x"])):
            with pytest.raises(InvalidInput):
                await numbers(Session(manager), tensor=bad)
        assert one.asked == []
        named = {"a": TENSOR, "b": np.zeros((0, 4), dtype=np.int64)}

        async def echo(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
            yield tensor

    async with node(echo) as one, remote(one.address) as manager:
        [answer] = [output async for output in Session(manager).run_protocol_task("p", named)]
        assert {name: (value.dtype, value.shape) for name, value in answer.items()} == {
            "a": (np.float32, (2, 3)),
            "b": (np.int64, (0, 4)),
        }


async def test_a_client_that_is_gone_at_once_leaves_nothing_behind() -> None:
    """No coroutine that is never awaited, which is an error here."""
    app = Here(lambda prompt, tensor: ten(None, prompt, TENSOR, 0), "none")  # type: ignore[arg-type]
    await app.start()
    for _ in range(50):
        run = app.stream("p", None, 0, 1 << 20)
        step = asyncio.ensure_future(run.next())
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        await run.close()
    await app.close()
    gc.collect()
