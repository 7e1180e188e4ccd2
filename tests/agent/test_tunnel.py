"""Tunnels: into real containers, and each of the three ways in which bytes travel, half-closes and slow readers included."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent import pki, tunnel
from agent.client import Output, ProcessEnd
from agent.hub import AgentHub
from agent.streams import Channel, Landing, PlainChannel, dial
from agent.tunnel import Handover, as_socket, carry, hand_over, streams_of
from agent.wire import ProcessSpec
from domain.errors import NothingListens
from domain.ids import RunId, uuid7
from tests.agent.bed import RealBed
from tests.agent.contract import Subject

#: Answers with the length and digest of everything that came, once the other side has ended its direction.
DIGEST = """
import hashlib, socket, threading
s = socket.create_server(("127.0.0.1", 8123), backlog=100)
print("up", flush=True)
def serve(c):
    h, n = hashlib.sha256(), 0
    while b := c.recv(1 << 16):
        h.update(b); n += len(b)
    c.sendall(f"{n} {h.hexdigest()}".encode()); c.close()
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""
PAYLOAD = bytes(range(256)) * 40_000
ANSWER = f"{len(PAYLOAD)} {hashlib.sha256(PAYLOAD).hexdigest()}".encode()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Send everything, end our direction, and read on: what comes then has passed a half-closed tunnel."""
    async with asyncio.timeout(20):
        for at in range(0, len(PAYLOAD), 1 << 20):
            writer.write(PAYLOAD[at : at + (1 << 20)])
            await writer.drain()
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return answer


# -- real containers -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
async def subject(engine_host: str, kernel_image: str) -> AsyncIterator[Subject]:
    bed = RealBed(engine_host, kernel_image)
    try:
        await bed.open()
        subject = Subject(bed)
        await subject.up()
        await serve(subject, DIGEST)
        yield subject
        await subject.down()
    finally:
        await bed.close()


async def serve(subject: Subject, program: str) -> RunId:
    """Start a program in the kernel, and wait until it has said something."""
    run = RunId(uuid7())
    await subject.execute("", run_id=run, mode="batch", wait_seconds=0, opts={"argv": ["python3", "-c", program]})
    await subject.agent.read(subject.where, run, from_seq=1, max_bytes=1000, wait_seconds=20)
    return run


@pytest.mark.containers
class TestIntoContainers:
    async def test_bytes_pass_both_ways_and_ends_too(self, subject: Subject) -> None:
        assert await digest(*await subject.agent.open_tunnel(subject.where, 8123)) == ANSWER

    async def test_through_pumps_as_well(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = subject.agent
        assert isinstance(hub, AgentHub)
        monkeypatch.setattr(hub._handover, "name", "nobody listens here")
        assert await digest(*await hub.open_tunnel(subject.where, 8123)) == ANSWER

    @pytest.mark.parametrize("pumped", [False, True])
    async def test_processes_go_the_same_way(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch, pumped: bool
    ) -> None:
        hub = subject.agent
        assert isinstance(hub, AgentHub)
        if pumped:
            monkeypatch.setattr(hub._handover, "name", "nobody listens here")
        process = await hub.open_process(subject.where, ProcessSpec(shell="cat; echo oops >&2; exit 3"))
        async with asyncio.timeout(20):
            await process.write(PAYLOAD[:100_000])
            await process.write_eof()
            said = bytearray()
            while isinstance(piece := await process.read(), Output):
                said += piece.data
        assert bytes(said) in (PAYLOAD[:100_000] + b"oops\n", b"oops\n" + PAYLOAD[:100_000])
        assert piece == ProcessEnd(reason="exited", exit_code=3)
        await process.close()

    async def test_many_at_once(self, subject: Subject) -> None:
        async def one() -> bytes:
            return await digest(*await subject.agent.open_tunnel(subject.where, 8123))

        assert set(await asyncio.gather(*(one() for _ in range(20)))) == {ANSWER}

    async def test_a_port_without_listener(self, subject: Subject) -> None:
        with pytest.raises(NothingListens):
            await subject.agent.open_tunnel(subject.where, 8124)


# -- the ways in which bytes travel ----------------------------------------------------------------------------------------
class Far:
    """Both ends of a tunnel in this process: `sock` is what a container's program holds, `near` what the manager gets."""

    def __init__(self, sock: socket.socket, near: socket.socket) -> None:
        self.sock = sock
        self.near = near


@contextlib.asynccontextmanager
async def landed(way: str, folder: Path) -> AsyncIterator[Far]:
    program, inside = socket.socketpair()
    for sock in (program, inside):
        sock.setblocking(False)
    tasks: set[asyncio.Task[None]] = set()

    def keep(work: Coroutine[Any, Any, None]) -> None:
        tasks.add(asyncio.create_task(work))

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(program.close)
        if way == "handover":
            got: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
            handover = Handover(taking(got))
            handover.start()
            stack.callback(handover.close)
            assert hand_over(handover.name, b"t" * 32, inside)
            inside.close()
            near = await got
        else:
            near = await _dialled(way, folder, inside, keep, stack)
        stack.callback(near.close)
        yield Far(program, near)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def taking(got: asyncio.Future[socket.socket]) -> Callable[[bytes, socket.socket], bool]:
    def take(ticket: bytes, sock: socket.socket) -> bool:
        got.set_result(sock)
        return ticket == b"t" * 32

    return take


async def _dialled(
    way: str,
    folder: Path,
    inside: socket.socket,
    keep: Callable[[Coroutine[Any, Any, None]], None],
    stack: contextlib.AsyncExitStack,
) -> socket.socket:
    pki.ensure_authority(folder)
    agent = folder / "agent"
    request = pki.make_request(agent, "a-1")
    certificate, _ = pki.sign_request(folder, request, "a-1")
    pki.keep_certificate(agent, certificate)
    authority = (folder / "ca.pem").read_bytes()
    pki.trust(agent, authority, pki.parse_join_token(pki.join_token("https://127.0.0.1:1", authority, "s")))
    landing = Landing("127.0.0.1", 0, pki.server_context(folder))
    landing.encrypted = way == "tls"
    await landing.start()
    stack.push_async_callback(landing.close)
    with landing.expecting() as (ticket, future):
        tls = pki.client_context(agent) if way == "tls" else None
        there = await dial("127.0.0.1", landing.port, ticket, tls)
        keep(carry(there, inside))
        here: Channel = await future
    assert isinstance(here, PlainChannel) == (way == "plain")
    return as_socket(here, keep)


@pytest.mark.parametrize("way", ["handover", "plain", "tls"])
async def test_the_end_of_one_direction_leaves_the_other(way: str, tmp_path: Path) -> None:
    async with landed(way, tmp_path) as far:
        reader, writer = await streams_of(far.near)
        loop = asyncio.get_running_loop()
        writer.write(b"question")
        writer.write_eof()
        async with asyncio.timeout(10):
            assert await loop.sock_recv(far.sock, 100) == b"question"
            assert await loop.sock_recv(far.sock, 100) == b""
            await loop.sock_sendall(far.sock, b"answer")
            far.sock.shutdown(socket.SHUT_WR)
            assert await reader.read() == b"answer"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("way", ["handover", "plain", "tls"])
async def test_who_does_not_read_holds_up_who_writes(way: str, tmp_path: Path) -> None:
    async with landed(way, tmp_path) as far:
        _, writer = await streams_of(far.near)
        sent, piece = 0, bytes(1 << 20)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                while True:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
        assert sent < 64 << 20, "what nobody reads is kept somewhere"
        writer.transport.abort()


@pytest.mark.parametrize("way", ["plain", "tls"])
async def test_a_program_that_breaks_off_is_seen(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "_HALF_OPEN_SECONDS", 0.1)
    async with landed(way, tmp_path) as far:
        reader, writer = await streams_of(far.near)
        far.sock.close()
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
