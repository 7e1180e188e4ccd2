"""A runner in wrong hands, which is whatever a session's user makes of it: its agent goes on, and so does everybody else's.

What it can do to frames and rings is in tests/runner (test_link.py, test_rings.py); here is what its words can do further on.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from agent import wire
from agent.hearing import shaped
from agent.rings import RingReader, RunnerError
from agent.rpc import Peer
from agent.runner_link import RunnerLink
from agent.runs import Runs, sane
from agent.store import Store
from runner.frames import FrameBuffer, pack
from tests.runner.test_link import HELLO, hostile, is_refused

#: What a container can write as the end of a run: any JSON.
ENDS: dict[str, str] = {
    "half a character": '{"reason": "\\ud800", "exit_code": 0}',
    "infinity": '{"finished_at": 1e999, "started_at": -1e999, "exit_code": Infinity}',
    "no number": '{"finished_at": NaN, "bytes": NaN}',
    "a huge number": f'{{"finished_at": 1{"0" * 400}, "exit_code": 1{"0" * 400}, "bytes": -5}}',
    "other types": '{"reason": {"a": [1]}, "exit_code": "0", "signal": true, "started_at": [], "namespace_lost": "x"}',
    "nothing": "{}",
    "a long reason": '{"reason": "' + "x" * 50_000 + '"}',
    "deep": '{"reason": ' + "[" * 500 + "]" * 500 + "}",
}


@pytest.mark.parametrize("what", sorted(ENDS))
async def test_how_a_run_ended_is_told_whatever_its_container_says(tmp_path: Path, what: str) -> None:
    store = await Store.open(tmp_path / "agent.db")
    runs = Runs(store, asyncio.Event())
    try:
        said = json.loads(ENDS[what])
        await runs.finished("hostile", "kernel", 1, said, 3)
        await runs.finished("honest", "kernel", 1, {"exit_code": 7, "finished_at": 2.0}, 1)
        assert runs._writing is not None
        await runs._writing
        told = {run.run_id: run for run in runs.pending()}
        assert told.keys() == {"hostile", "honest"}
        assert told["honest"].exit_code == 7
        for run in told.values():
            assert shaped(wire.RunDone, msgpack.unpackb(msgpack.packb(run.pack())))
        read = wire.RunRead(run_id="r", records=b"", status="done", done=sane(said))
        assert shaped(wire.RunRead, msgpack.unpackb(msgpack.packb(read.pack())))
        await runs.load()  # as after a restart of the agent
        assert len(runs.pending()) == 2
    finally:
        await runs.close()
        await store.close()


class Wire:
    """One end of a connection in memory, for `Peer`."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.other: Wire | None = None

    async def send_bytes(self, data: bytes) -> None:
        assert self.other is not None
        await self.other.frames.put(_Binary(data))

    async def receive(self) -> Any:
        return await self.frames.get()

    async def close(self) -> None:
        if self.other is not None:
            await self.other.frames.put(_Closed())


class _Binary:
    from aiohttp import WSMsgType

    type = WSMsgType.BINARY

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Closed:
    from aiohttp import WSMsgType

    type = WSMsgType.CLOSED


async def test_words_that_are_no_text_reach_the_manager_as_text() -> None:
    near, far = Wire(), Wire()
    near.other, far.other = far, near
    manager, agent = Peer(near, "agent"), Peer(far, "manager")

    async def answer(_arguments: dict[str, Any]) -> dict[str, Any]:
        return {"name": "a\ud800b"}

    async def refuse(_arguments: dict[str, Any]) -> None:
        from domain.errors import InvalidRequest

        raise InvalidRequest("what the container said: \udfff")

    agent.handle("answer", answer)
    agent.handle("refuse", refuse)
    reading = [asyncio.create_task(peer.run()) for peer in (manager, agent)]
    assert await manager.request("answer", {}, timeout_seconds=5) == {"name": "a?b"}
    with pytest.raises(Exception, match=r"the container said: \?"):
        await manager.request("refuse", {}, timeout_seconds=5)
    await manager.close()
    await asyncio.gather(*reading)


@asynccontextmanager
async def flooding(folder: Path, data: bytes, times: int) -> AsyncIterator[RunnerLink]:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        for _ in range(times):
            writer.write(data)
            await writer.drain()
        writer.write(pack({"id": request["id"], "ok": True, "result": {"worker": {}}}))

    async with hostile(folder, talk) as link:
        yield link


async def test_answers_to_nothing_in_any_order_end_that_link_and_take_no_memory(tmp_path: Path) -> None:
    late = b"".join(pack({"id": number, "ok": True, "result": {}}, b"x" * 100) for number in (900, 3, 800, -1))
    async with flooding(tmp_path, late, 500) as link:
        await is_refused(link.status(), "runner_lost")
        assert link.lost.is_set()
        assert len(link._frames.rest()) < 1 << 20


async def test_a_frame_that_never_ends_is_bounded_by_its_own_word(tmp_path: Path) -> None:
    async with flooding(tmp_path, struct.pack("!II", 10, 1 << 31), 1) as link:
        await is_refused(link.status(), "runner_lost")
    buffer = FrameBuffer(max_body=1 << 20)
    buffer.feed(pack(HELLO)[:9])
    assert buffer.next() is None


def test_a_ring_out_of_order_is_damaged_and_is_told_as_that(tmp_path: Path) -> None:
    folder = tmp_path / "ring" / "run"
    folder.mkdir(parents=True)
    record = wire.RECORD
    for records in ([(2, 1)], [(1, 1), (1, 1)], [(1, 1), (5, 1)], [(1, 200)], [(2**63, 1)]):
        (folder / f"{1:020}").unlink(missing_ok=True)
        data = b"".join(record.pack(1, seq, kind, 0.0) + b"x" for seq, kind in records)
        for name in list(folder.iterdir()):
            name.unlink()
        from runner.ring import segment_name

        (folder / segment_name(1)).write_bytes(data)
        reader = RingReader(tmp_path)
        with pytest.raises(RunnerError) as damaged:
            reader.read("run")
        assert damaged.value.code == "output_damaged"
        reader.close()
