"""The runner as PID 1: hostile code, memory, forks, empty images, rich output."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from agent.rings import RunnerError, close_unfinished
from agent.runner_link import RunnerConfig, RunnerLink
from agent.wire import decode_records

from .conftest import Kernel
from .containers import ENVIRON, container

pytestmark = [
    pytest.mark.containers,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container's peers are told apart by root only"),
]


@pytest.fixture
async def boxed(
    engine: docker.DockerClient, kernel_image: str, folder: Path
) -> AsyncIterator[tuple[Kernel, Container]]:
    async with container(engine, kernel_image, folder) as started:
        yield started


@pytest.fixture
def kernel(boxed: tuple[Kernel, Container]) -> Kernel:
    return boxed[0]


@pytest.fixture(scope="session")
def empty_image(engine: docker.DockerClient) -> Iterator[str]:
    """Nothing but a folder."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        entry = tarfile.TarInfo("etc")
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    name = "moorage-runner-test-empty"
    engine.api.import_image_from_data(raw.getvalue(), repository=name, tag="1")
    yield f"{name}:1"
    engine.images.remove(f"{name}:1", force=True)


async def still_works(kernel: Kernel) -> None:
    assert (await kernel.run("print('new')")).stdout == "new\n"
    assert (await kernel.run("echo shell", mode="batch")).stdout == "shell\n"


async def test_code_runs_as_the_sessions_user(kernel: Kernel) -> None:
    out = await kernel.run("import os; print(os.getuid(), os.getcwd(), os.getppid()); open('made', 'w').write('x')")
    assert out.stdout == "1000 /home/work 1\n"
    assert (kernel.work / "made").stat().st_uid == 1000
    fd, facts = await kernel.link.open_file("made")
    os.close(fd)
    assert facts.owner == 1000
    assert (await kernel.run("id -u; cat /proc/1/comm", mode="batch")).stdout.startswith("1000\n")


@pytest.mark.parametrize("path", ["/etc/shadow", "/proc/1/environ", "secret"])
async def test_what_the_user_may_not_read(
    engine: docker.DockerClient, kernel_image: str, folder: Path, path: str
) -> None:
    config = RunnerConfig(environ=ENVIRON, file_roots=("/etc", "/proc"))
    async with container(engine, kernel_image, folder, config) as (kernel, _):
        (kernel.work / "secret").write_text("root's")
        (kernel.work / "secret").chmod(0o600)
        with pytest.raises(RunnerError) as error:
            await kernel.link.open_file(path)
        assert error.value.code in ("file_permission_denied", "file_not_found")


@pytest.mark.parametrize("code", ["import os; os.kill(-1, 9)", "import os; os.system('kill -9 -1'); print('on')"])
async def test_kill_minus_one(kernel: Kernel, code: str) -> None:
    out = await kernel.run(code)
    assert out.done["reason"] in ("crashed", "finished")
    await still_works(kernel)


async def test_pid_1_is_out_of_reach(kernel: Kernel) -> None:
    code = """
import os, signal, ctypes, socket
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGCHLD, signal.SIGPIPE):
    os.kill(1, number)
for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/fd", "/proc/1/cwd"):
    try:
        os.listdir(path) if path in ("/proc/1/fd", "/proc/1/cwd") else open(path)
        print("reached", path)
    except PermissionError: pass
libc = ctypes.CDLL(None, use_errno=True)
print("ptrace", libc.ptrace(16, 1, 0, 0))
peer = socket.socket(socket.AF_UNIX)
peer.connect("/moorage/link/runner.sock")
peer.settimeout(5)
try: print("peer", peer.recv(1))
except ConnectionResetError: print("peer", b"")
"""
    out = await kernel.run(code)
    assert out.stdout == "ptrace -1\npeer b''\n"
    await still_works(kernel)


async def test_the_kernel_kills_the_worker_and_says_why(kernel: Kernel) -> None:
    out = await kernel.run(
        "print('before', flush=True)\nx = bytearray(1 << 29)\nfor i in range(0, len(x), 4096): x[i] = 1"
    )
    assert out.stdout == "before\n"
    assert out.done["reason"] == "out_of_memory"
    assert out.done["signal"] == 9
    assert out.done["namespace_lost"]
    await still_works(kernel)
    out = await kernel.run("python3 -c 'x = b\"x\" * (1 << 29)'", mode="batch")
    assert (out.done["reason"], out.done["exit_code"]) == ("out_of_memory", 137)
    out = await kernel.run("import os; os.kill(os.getpid(), 9)")
    assert (out.done["reason"], out.done["signal"]) == ("crashed", 9)
    await still_works(kernel)


async def test_a_fork_bomb_in_a_command(kernel: Kernel) -> None:
    run = kernel.new_run()
    code = "echo up; bomb() { bomb | bomb & bomb; }; bomb"
    await kernel.link.execute(run, mode="batch", code=code, timeout_seconds=1.0)
    out = await kernel.finish(run)  # the first shell may end by itself, and leave the others to fork on
    assert out.done["reason"] in ("timeout", "finished", "killed", "crashed")
    async with asyncio.timeout(40):
        await still_works(kernel)


async def test_a_fork_bomb_in_a_cell(kernel: Kernel) -> None:
    run = kernel.new_run()
    code = """
import os, time
print("up", flush=True)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            while True: time.sleep(1000)
    except OSError: pass
"""
    await kernel.link.execute(run, mode="query", code=code)
    await kernel.until(run, "stdout")
    await asyncio.sleep(0.5)
    assert await kernel.link.kill(run)
    out = await kernel.finish(run)
    assert out.done["reason"] == "killed"
    async with asyncio.timeout(40):
        assert (await kernel.run("print('new')")).stdout == "new\n"


async def test_a_stopped_worker_can_be_killed(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="import os; print(1, flush=True); os.kill(os.getpid(), 19)")
    await kernel.until(run, "stdout")
    await kernel.link.kill(run)
    assert (await kernel.finish(run)).done["reason"] == "killed"
    await still_works(kernel)


async def test_an_impostor_on_the_socket_gets_nothing(kernel: Kernel, folder: Path) -> None:
    code = """
import os, socket, threading
os.unlink("/moorage/link/runner.sock")
false = socket.socket(socket.AF_UNIX); false.bind("/moorage/link/runner.sock"); false.listen(8)
print("bound")
"""
    assert (await kernel.run(code)).stdout == "bound\n"
    again = await RunnerLink.connect(kernel.link_dir, folder / "private", kernel.pid)
    assert await again.status()
    await again.close()
    with pytest.raises(RunnerError) as error:
        await RunnerLink.connect(kernel.link_dir, folder / "other", kernel.pid)
    assert error.value.code == "runner_lost"


async def test_a_link_for_a_socket_leads_nowhere(kernel: Kernel, folder: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "host.sock"))
    listener.listen(1)
    listener.setblocking(False)
    code = f"import os; os.unlink('/moorage/link/runner.sock'); os.symlink({str(folder / 'host.sock')!r}, '/moorage/link/runner.sock')"
    await kernel.run(code)
    with pytest.raises(RunnerError):
        await RunnerLink.connect(kernel.link_dir, folder / "other", kernel.pid)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


async def test_the_runners_death_is_noticed(boxed: tuple[Kernel, Container]) -> None:
    kernel, made = boxed
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="print('up', flush=True); import time; time.sleep(100)")
    await kernel.until(run, "stdout")
    waiting = asyncio.create_task(kernel.link.wait_tail(run, 99, 60))
    await asyncio.sleep(0)
    await asyncio.to_thread(made.kill)
    with pytest.raises(RunnerError) as error:
        await waiting
    assert error.value.code == "runner_lost"
    assert kernel.link.lost.is_set()
    with pytest.raises(RunnerError):
        await kernel.link.execute("x", mode="batch", code="true")
    assert close_unfinished(kernel.link_dir, now=1.0) == [run]
    chunk = kernel.reader.read(run)
    assert chunk.done is not None
    assert chunk.done["reason"] == "worker_lost"


async def test_a_new_start_on_the_same_link_keeps_the_rings(
    engine: docker.DockerClient, kernel_image: str, folder: Path
) -> None:
    async with container(engine, kernel_image, folder) as (kernel, _):
        await kernel.run("print('first')", run="a")
        await kernel.link.execute("b", mode="query", code="print('up', flush=True); input()", wait_seconds=5)
        await kernel.until("b", "input_request")
    async with container(engine, kernel_image, folder, RunnerConfig(environ=ENVIRON, attempt=2)) as (kernel, _):
        assert kernel.link.runs == {}
        assert (await kernel.finish("a")).stdout == "first\n"
        assert (await kernel.finish("b")).done["reason"] == "worker_lost"
        assert (await kernel.link.execute("a", mode="query", code="print('not again')")).done
        assert (await kernel.run("print('second')")).stdout == "second\n"
        log = b"".join(record.payload for record in decode_records(kernel.reader.read("log").records))
        assert b"first\n" in log
        assert b"attempt 2" in log


async def test_an_image_without_anything(engine: docker.DockerClient, empty_image: str, folder: Path) -> None:
    async with container(engine, empty_image, folder) as (kernel, _):
        assert kernel.link.worker["state"] == "absent"
        with pytest.raises(RunnerError) as error:
            await kernel.run("print(1)")
        assert error.value.code == "no_python"
        out = await kernel.run("echo hi", mode="batch")
        assert (out.done["exit_code"], out.done["reason"]) == (127, "finished")
        assert "'/bin/sh' cannot be started" in out.stderr
        assert (await kernel.link.list_files()).files == []


async def test_figures_become_images(kernel: Kernel) -> None:
    pytest.importorskip("matplotlib")
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()\nprint('shown')"
    out = await kernel.run(code)
    assert out.stdout == "shown\n"
    assert out.stderr == ""
    assert base64.b64decode(out.results[0]["image/png"]).startswith(b"\x89PNG")
    assert (await kernel.run("plt.get_fignums()")).results == [{"text/plain": "[]"}]


async def test_ipython_is_used_when_a_cell_asks_for_it(kernel: Kernel) -> None:
    pytest.importorskip("IPython")
    out = await kernel.run("x = 5\n!echo from {x}\n%time y = x")
    assert "from 5\n" in out.stdout
    assert "Wall time" in out.stdout
    out = await kernel.run(
        "from IPython.display import HTML, display\ndisplay(HTML('<i>a</i>'))\nprint(y)\nHTML('<b>b</b>')"
    )
    assert [result.get("text/html") for result in out.results] == ["<i>a</i>", "<b>b</b>"]
    assert out.kinds == ["result", "stdout", "result", "done"]
    assert (await kernel.run("%%bash\necho from bash", timeout_seconds=10)).done["reason"] == "finished"
    assert (await kernel.run("1/0")).error["ename"] == "ZeroDivisionError"
    got = await kernel.link.complete(code="x.bit_len", row=0, col=9, line="x.bit_len", post="")
    assert any("bit_length" in suggestion for suggestion in got["suggestions"])


async def test_shutdown_ends_the_container(boxed: tuple[Kernel, Container]) -> None:
    kernel, made = boxed
    await kernel.link.execute(
        "a", mode="batch", code="trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    )
    await kernel.until("a", "stdout")
    await kernel.link.execute("b", mode="batch", code="trap '' TERM; echo up; while :; do sleep 0.05; done")
    await kernel.until("b", "stdout")
    await kernel.link.shutdown(1.0)
    assert (await asyncio.to_thread(made.wait, timeout=10))["StatusCode"] == 0
    await asyncio.wait_for(kernel.link.lost.wait(), 5)
    first, second = kernel.reader.done("a"), kernel.reader.done("b")
    assert first is not None
    assert second is not None
    assert (first["exit_code"], first["reason"]) == (5, "killed")
    assert (second["signal"], second["reason"]) == (9, "killed")
    assert b"bye" in kernel.reader.read("a").records
