"""Runners that break the rules: the agent goes on, whatever comes."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import runner_link
from agent.rings import RunnerError
from agent.runner_link import RunnerConfig, RunnerLink, prepare_link
from runner.frames import CHUNK, FrameBuffer, pack

from .conftest import Kernel

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, dict[str, object]], Awaitable[None]]
HELLO = {"protocol": 1, "worker": {"state": "ready"}, "runs": {}}


@asynccontextmanager
async def hostile(folder: Path, talk: Talk) -> AsyncIterator[RunnerLink]:
    """A link to a runner that says a proper hello and then does as it likes."""
    link_dir = folder / "link"
    link_dir.mkdir()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameBuffer()
        try:
            while data := await reader.read(1 << 16):
                frames.feed(data)
                while (frame := frames.next()) is not None:
                    if frame[0]["op"] == "hello":
                        writer.write(pack({"id": frame[0]["id"], "ok": True, "result": HELLO}))
                    else:
                        await talk(reader, writer, frame[0])
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, link_dir / "runner.sock")
    link = await RunnerLink.connect(link_dir, folder / "private", os.getpid())
    try:
        yield link
    finally:
        await link.close()
        server.close()


async def is_refused(awaitable: Awaitable[object], *codes: str) -> None:
    with pytest.raises(RunnerError) as error:
        await asyncio.wait_for(awaitable, 10)
    assert error.value.code in codes


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!II", 0xFFFFFFFF, 0),
        struct.pack("!II", 2, 9000) + b"{}x",
        struct.pack("!II", 3, 0) + b"xxx",
        struct.pack("!II", 4, 0) + b"[[[[",
        struct.pack("!II", 100_000, 0) + b"[" * 100_000,
        struct.pack("!II", 2, 0) + b"[]",
        os.urandom(5000),
        pack({"id": 99999, "ok": True}) * 5000,
    ],
)
async def test_broken_frames_are_the_end_of_the_link(folder: Path, data: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        writer.write(data)

    async with hostile(folder, talk) as link:
        await is_refused(link.status(), "runner_lost")
        assert link.lost.is_set()
        await is_refused(link.open_file("x"), "runner_lost")


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": True, "result": None},
        {"ok": True, "result": [1]},
        {"ok": True, "result": {"run": 1, "seq": "x", "done": 3, "status": None}},
        {"ok": True, "result": {}},
        {"ok": False},
        {"ok": False, "code": 3, "message": []},
        {},
    ],
)
async def test_wrong_answers_are_errors_of_one_request(folder: Path, answer: dict[str, object]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        writer.write(pack({"id": request["id"], **answer}))

    async with hostile(folder, talk) as link:
        await is_refused(link.wait_tail("run", 0, 1), "runner_lost")
        await is_refused(link.list_files(), "runner_lost")
        await is_refused(link.complete(code="", row=0, col=0, line="", post=""), "runner_lost")
        await is_refused(link.put_file("x", nothing()), "runner_lost")
        await is_refused(link.open_file("x"), "runner_lost")
        assert not link.lost.is_set()


async def nothing() -> AsyncIterator[bytes]:
    yield b"x"


async def test_silence_ends_by_the_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        pass

    monkeypatch.setattr(runner_link, "REQUEST_SECONDS", 0.1)
    async with hostile(folder, talk) as link:
        await is_refused(link.wait_tail("run", 0, 0.1), "runner_lost")
        await is_refused(link.open_file("x"), "transfer_failed")
        monkeypatch.setattr(runner_link, "STALLED_SECONDS", 0.1)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * (1 << 20)

        await is_refused(link.put_file("x", endless()), "transfer_failed")


async def test_descriptors_of_the_wrong_kind_are_refused(folder: Path) -> None:
    passed: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        stat = {"name": "x", "type": "file", "size": 1, "mtime": 1, "mode": 1, "owner": 1, "group": 1}
        raw = writer.transport.get_extra_info("socket")
        with socket.socket(fileno=os.dup(raw.fileno())) as sock:
            socket.send_fds(sock, [pack({"id": 1, "ok": True, "result": stat})], passed)

    async with hostile(folder, talk) as link:
        before = len(list(Path("/proc/self/fd").iterdir()))
        devices = [os.open("/dev/zero", os.O_RDONLY), os.open("/tmp", os.O_RDONLY), *os.pipe()]
        for fd in devices:
            passed[:] = [fd]
            await is_refused(link.open_file("x"), "not_a_regular_file")
        passed[:] = devices * 20
        await is_refused(link.open_file("x"), "not_a_regular_file")
        passed[:] = []
        await is_refused(link.open_file("x"), "not_a_regular_file")
        for fd in devices:
            os.close(fd)
        await asyncio.sleep(0.05)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("stream", [CHUNK.pack(0xFFFFFFFF) + b"x", CHUNK.pack(10) + b"short", b"", b"\0"])
async def test_archives_that_break_off_say_so(folder: Path, stream: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        writer.write(pack({"id": 1, "ok": True, "result": {}}) + stream)
        await writer.drain()
        writer.close()

    async def read(link: RunnerLink) -> None:
        archive = await link.archive(["."])
        try:
            async for _ in archive:
                pass
        finally:
            await archive.aclose()

    async with hostile(folder, talk) as link:
        await is_refused(read(link), "transfer_failed", "runner_lost")


async def test_another_process_on_the_socket_is_refused(folder: Path) -> None:
    (folder / "link").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "link/runner.sock"))
        listener.listen()
        await is_refused(RunnerLink.connect(folder / "link", folder / "private", 1), "runner_lost")


async def test_nobody_there(folder: Path) -> None:
    (folder / "link").mkdir()
    await is_refused(RunnerLink.connect(folder / "link", folder / "private", 1), "runner_lost")
    (folder / "link/runner.sock").write_text("")
    await is_refused(RunnerLink.connect(folder / "link", folder / "private", 1), "runner_lost")


async def test_a_link_folder_full_of_traps_is_prepared(folder: Path) -> None:
    link_dir = folder / "link"
    (link_dir / "config.json").mkdir(parents=True)
    (link_dir / "config.json/x").write_text("x")
    (link_dir / "ready").symlink_to("/etc/passwd")
    (link_dir / "runner.sock").symlink_to("/nowhere")
    (link_dir / "ring").symlink_to("/etc")
    signal = prepare_link(link_dir, RunnerConfig(), uid=os.getuid(), gid=os.getgid())
    assert (link_dir / "config.json").is_file()
    await is_refused(signal.wait(0.05), "runner_lost")
    assert not (link_dir / "ready").is_symlink()


async def test_long_folder_names(tmp_path: Path) -> None:
    from .conftest import started

    deep = tmp_path / ("x" * 120) / ("y" * 120)
    deep.mkdir(parents=True)
    config = RunnerConfig(environ={"PATH": os.environ["PATH"]})
    async with started(deep, config) as kernel:
        assert (await kernel.run("echo deep", mode="batch")).stdout == "deep\n"


async def test_many_at_once_over_one_link(kernel: Kernel) -> None:
    listing = asyncio.gather(*(kernel.link.list_files() for _ in range(50)))
    outs = await asyncio.gather(*(kernel.run(f"print({n})") for n in range(100)))
    assert [out.stdout for out in outs] == [f"{n}\n" for n in range(100)]
    await listing


async def test_nonsense_from_the_agents_side_harms_nothing(kernel: Kernel) -> None:
    loop = asyncio.get_running_loop()
    for data in (
        b"\xff" * 100,
        pack({"op": "execute"}),
        pack({"id": 1, "op": "nothing"}),
        pack({"id": 1, "op": "arm"}),
        b"x",
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, str(kernel.link_dir / "runner.sock"))
            await loop.sock_sendall(sock, data)
    assert (await kernel.run("print(1)")).stdout == "1\n"
