"""Frames, heads, rings and archives of anybody: read or refused, never anything else. `MOORAGE_FUZZ_FACTOR=100` tries more."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgpack
import pytest
from aiohttp import WSMsgType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import rings
from agent.rpc import Peer
from agent.wire import MAX_FRAME_BYTES, AgentHello, Fact, RunDone, Sample, ServiceFact
from domain.errors import MoorageError
from manager.proxy.body import Body
from manager.proxy.heads import BadHead, request_head, request_line, response_head
from runner.archives import Limits
from runner.files import Files, Refused
from runner.frames import LENGTHS, BadFrame, FrameBuffer, pack
from runner.unpack import unpack
from tests.hostile import hostile

FACTOR: Final = int(os.environ.get("MOORAGE_FUZZ_FACTOR", "1"))


def examples(count: int) -> settings:
    """So many, the same ones each time unless more are asked for."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
anything = st.recursive(
    scalars,
    lambda below: st.lists(below) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), below),
    max_leaves=12,
)


# -- manager and agent -------------------------------------------------------------------------------------------------
class Said:
    """A WebSocket over which these frames come, and then its end."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = iter(frames)
        self.sent: list[bytes] = []

    async def receive(self) -> Any:
        data = next(self._frames, None)
        if data is None:
            return SimpleNamespace(type=WSMsgType.CLOSED, data=None)
        return SimpleNamespace(type=WSMsgType.BINARY, data=data)

    async def send_bytes(self, data: bytes) -> None:
        assert len(data) <= MAX_FRAME_BYTES
        self.sent.append(data)

    async def close(self) -> None: ...


def frame(kind: Any, number: Any, more: Any, content: Any, *, raw: bool = False) -> bytes:
    piece = content if raw else msgpack.packb(content)
    return bytes(msgpack.packb([kind, number, more, piece]))


NAMES: Final = ("hello", "facts", "heartbeat", "runs_done", "samples", "services", "nothing")
frames = (
    st.binary(max_size=300)
    | st.builds(frame, st.integers(-1, 6), st.integers(0, 3), st.booleans(), st.binary(max_size=60), raw=st.just(True))
    | st.builds(frame, st.integers(0, 4), st.integers(0, 3), st.booleans(), anything)
    | st.builds(
        frame, st.sampled_from([0, 3]), st.integers(0, 99), st.just(False), st.tuples(st.sampled_from(NAMES), anything)
    )
    | anything.map(msgpack.packb)
)


@given(st.lists(frames, max_size=8))
@examples(150)
async def test_frames_between_manager_and_agent(said: list[bytes]) -> None:
    """A connection answers, or ends; it never fails otherwise, and leaves nothing behind."""
    socket = Said(said)
    peer = Peer(socket, "somebody")

    async def handler(arguments: dict[str, Any]) -> Any:
        return len(arguments)

    for name in NAMES[:-1]:
        peer.handle(name, handler)
        peer.on_notice(name, lambda arguments: None)
    await peer.run()
    assert peer.closed.is_set()
    assert not peer._partial
    assert not peer._waiting
    for sent in socket.sent:
        kind, _, more, _ = msgpack.unpackb(sent)
        assert kind in (1, 2)
        assert more is False


@pytest.mark.parametrize("message", [AgentHello, Fact, RunDone, Sample, ServiceFact], ids=lambda kind: kind.__name__)
@given(said=st.dictionaries(st.text(max_size=6) | st.sampled_from(["kernel_id", "attempt", "run_id", "at"]), anything))
@examples(40)
def test_messages_of_an_agent_with_anything_in_them(message: Any, said: dict[str, Any]) -> None:
    """What is missing is an error that `Peer` answers; what is unknown is left out."""
    try:
        read = message.unpack(said)
    except TypeError:
        return
    assert not set(read.pack()) - set(message.__dataclass_fields__)


# -- runner and agent --------------------------------------------------------------------------------------------------
headers = st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=20), max_size=5)
pieces = (
    st.binary(max_size=200)
    | st.builds(pack, headers, st.binary(max_size=50))
    | st.builds(LENGTHS.pack, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    | st.builds(lambda body: LENGTHS.pack(len(body), 0) + body, st.binary(max_size=60))
    | st.just(LENGTHS.pack(60_000, 0) + b"[" * 60_000)
    | st.just(LENGTHS.pack(6_000, 0) + b"9" * 6_000)
)


@given(st.lists(pieces, max_size=6), st.lists(st.integers(1, 50), min_size=1, max_size=10))
@examples(300)
def test_frames_between_runner_and_agent(said: list[bytes], cuts: list[int]) -> None:
    """However the bytes are cut, the same frames come out, up to the same refusal."""

    def read(chunks: Iterator[bytes]) -> tuple[list[Any], bool]:
        buffer, found = FrameBuffer(), []
        try:
            for chunk in chunks:
                buffer.feed(chunk)
                while (one := buffer.next()) is not None:
                    found.append(one)
        except BadFrame:
            return found, True
        return found, False

    data = b"".join(said)

    def cut() -> Iterator[bytes]:
        at, turn = 0, 0
        while at < len(data):
            size = cuts[turn % len(cuts)] * (1 if len(data) < 2000 else 997)
            yield data[at : at + size]
            at, turn = at + size, turn + 1

    assert read(cut()) == read(iter([data]))


@given(header=headers, body=st.binary(max_size=100))
@examples(50)
def test_a_runners_frame_comes_through(header: dict[str, Any], body: bytes) -> None:
    buffer = FrameBuffer()
    buffer.feed(pack(header, body))
    assert buffer.next() == (header, body)
    assert buffer.rest() == b""


records = st.builds(
    lambda size, seq, kind, body: struct.pack("!IQBd", size if size is not None else len(body), seq, kind, 1.0) + body,
    st.none() | st.integers(0, 2**32 - 1),
    st.integers(0, 5) | st.integers(0, 2**64 - 1),
    st.integers(0, 12),
    st.binary(max_size=40) | st.sampled_from([b'{"status": 1}', b'{"exit_code": "x"}', b"[" * 3000, b"[]", b"{}"]),
)


@given(st.lists(records | st.binary(max_size=30), max_size=6).map(b"".join), st.integers(0, 6), st.integers(0, 200))
@examples(300)
def test_rings_with_anything_in_them(data: bytes, wanted: int, most: int) -> None:
    try:
        part = rings._take(data, 1, wanted, most)
    except rings.RunnerError:
        return
    assert len(part.data) <= len(data)
    assert part.status is None or len(part.status) <= 32


# -- a service and the proxy -------------------------------------------------------------------------------------------
lines = st.lists(
    st.sampled_from(
        [
            b"Host: x", b"Content-Length: 5", b"Content-Length: +5", b"Content-Length: 5, 5", b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: \x0bchunked", b"transfer-encoding : chunked", b"Connection: close, host", b"A: b\x00c",
            b"Cookie: moorage_pass=abc; a=b", b"Authorization: Bearer x", b"X-Forwarded-For: 1.1.1.1", b" folded: 1", b":", b"",
            b"Location: //evil.example", b"Set-Cookie: moorage_pass=x; Path=/", b"Upgrade: websocket", b"A: b\rC: d", b"A: b\nC: d",
        ]
    )
    | st.binary(max_size=30).filter(lambda line: b"\r\n" not in line),
    max_size=6,
)  # fmt: skip


@given(lines, st.booleans())
@examples(400)
def test_heads_of_requests(given_lines: list[bytes], http11: bool) -> None:
    """What goes on to a service can be read in one way only, and holds nothing of ours."""
    try:
        head = request_head(b"".join(line + b"\r\n" for line in given_lines), http11)
    except BadHead:
        return
    assert b"\0" not in head.forward
    for line in head.forward.split(b"\r\n"):
        assert b"\r" not in line
        assert b"\n" not in line
        name = line.partition(b":")[0].lower()
        assert name == name.strip()
        assert name not in (b"authorization", b"x-forwarded-for")
        assert name != b"cookie" or b"moorage_pass" not in line
    assert head.forward.lower().count(b"content-length:") + head.forward.lower().count(b"transfer-encoding:") <= 1


@given(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 302 x", b"HTTP/1.1 101 x"]) | st.binary(max_size=30), lines)
@examples(300)
def test_heads_of_answers(first: bytes, given_lines: list[bytes]) -> None:
    block = first + b"\r\n" + b"".join(line + b"\r\n" for line in given_lines)
    try:
        status, head = response_head(block, b"GET", True, b"/proxy/x/web/", strip=True)
    except BadHead:
        return
    assert 100 <= status < 600
    for line in head.forward.lower().split(b"\r\n"):  # a service may call a header of its own Cookie: no browser cares
        assert not line.startswith(b"set-cookie:") or b"moorage_pass" not in line
    assert b"\n" not in head.forward.replace(b"\r\n", b"")


@given(st.binary(max_size=120))
@examples(200)
def test_first_lines(line: bytes) -> None:
    try:
        method, target, _ = request_line(line)
    except BadHead:
        return
    assert target.startswith(b"/")
    assert b" " not in target
    assert method.isalpha()


@given(st.binary(max_size=200))
@examples(200)
def test_chunked_bodies(data: bytes) -> None:
    from manager.proxy.heads import Framing

    body = Body(Framing(chunked=True))
    try:
        assert 0 <= body.take(data) <= len(data)
    except BadHead:
        return


# -- archives ----------------------------------------------------------------------------------------------------------
def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, a piece cut out or put in twice, or the end missing."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        if not made:
            break
        at = chance.randrange(min(len(made), 4096))
        match chance.randrange(5):
            case 0:
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                del made[at : at + chance.randrange(1, 600)]
            case 2:
                made[at:at] = made[at : at + 512]
            case 3:
                made[at : at + 8] = chance.randbytes(8)
            case 4:
                del made[len(made) - chance.randrange(len(made)) :]
    return bytes(made)


def test_archives_with_anything_wrong(tmp_path: Path) -> None:
    """Unpacked or refused; nothing outside of the folder is touched, and no half is left."""
    home, beside = tmp_path / "home", tmp_path / "beside"
    home.mkdir()
    beside.write_text("untouched")
    files = Files(str(home), [], None)
    small = [data for data in hostile().values() if len(data) < 200_000]
    assert len(small) > 30
    chance = random.Random(5)
    limits = Limits(total_bytes=4 << 20)
    for turn in range(300 * FACTOR):
        data = mutated(small[turn % len(small)], chance)

        def source(data: bytes = data) -> Iterator[memoryview]:
            return iter([memoryview(data)])

        try:
            unpack(files, f"d{turn}", source, limits=limits)
        except Refused:
            assert not (home / f"d{turn}").exists()
        assert not list(home.glob(".moorage*")), turn
        assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "home"]
    assert beside.read_text() == "untouched"


@given(st.dictionaries(st.text(max_size=10), anything))
@examples(50)
def test_any_error_travels(facts: dict[str, Any]) -> None:
    """Codes and facts that another version has are errors all the same."""
    from domain.errors import from_code

    named = {str(name): value for name, value in facts.items() if str(name) not in ("code", "message")}
    assert isinstance(from_code("no_such_code", "what it says", **named), MoorageError)
