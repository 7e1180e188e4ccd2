"""Terminals and piped processes on a real runner: echo, size, signals, scrollback, limits, and who gets the output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.client import Output, ProcessEnd
from agent.process import StreamedProcess
from agent.rings import RunnerError
from agent.wire import ProcessSpec
from runner.streamed import SCROLLBACK_BYTES
from runner.terminals import MAX_TERMINALS

from .conftest import Kernel


@asynccontextmanager
async def opened(kernel: Kernel, **spec: Any) -> AsyncIterator[StreamedProcess]:
    process = await StreamedProcess.over(*await kernel.link.open_process(ProcessSpec(**spec).pack()))
    try:
        async with asyncio.timeout(20):
            yield process
    finally:
        await process.close()


def terminal(kernel: Kernel, **spec: Any) -> Any:
    return opened(kernel, terminal=True, **{"argv": ["/bin/sh"], **spec})


async def until(process: StreamedProcess, text: bytes) -> bytes:
    """Everything up to and with `text`."""
    seen = b""
    while text not in seen:
        piece = await process.read()
        assert isinstance(piece, Output), (piece, seen)
        seen += piece.data
    return seen


async def rest(process: StreamedProcess) -> tuple[bytes, bytes, ProcessEnd]:
    out, err = bytearray(), bytearray()
    while True:
        piece = await process.read()
        if isinstance(piece, ProcessEnd):
            return bytes(out), bytes(err), piece
        (err if piece.error else out).extend(piece.data)


async def test_a_shell_on_a_terminal_echoes_and_has_job_control(kernel: Kernel) -> None:
    async with terminal(kernel, rows=50, cols=132, term="screen-256color") as shell:
        await shell.write(b"set -m; tty; stty size; echo $TERM; sh -c 'echo sl''eeps; exec sleep 100'\n")
        assert b"50 132" in (seen := await until(shell, b"\nsleeps"))
        assert b"/dev/pts/" in seen
        assert b"screen-256color\r\n" in seen
        await shell.write(b"\x03")
        await shell.write(b"echo st'ill he're\n")
        await until(shell, b"still here")
        await shell.resize(24, 80)
        await shell.write(b"stty size; exit 7\n")
        out, _, end = await rest(shell)
        assert b"24 80" in out
        assert end == ProcessEnd(reason="exited", exit_code=7)


async def test_pipes_keep_stdout_and_stderr_apart_to_the_byte(kernel: Kernel) -> None:
    async with opened(kernel, shell="echo oops >&2; cat; exit 3") as process:
        payload = bytes(range(256)) * 8000
        writing = asyncio.create_task(process.write(payload))
        await asyncio.sleep(0)
        collecting = asyncio.create_task(rest(process))
        await writing
        await process.write_eof()
        out, err, end = await collecting
        assert (out, err, end.exit_code) == (payload, b"oops\n", 3)


async def test_who_does_not_read_holds_up_who_writes(kernel: Kernel) -> None:
    async with opened(kernel, shell="head -c 30000000 /dev/zero; echo done >&2") as process:
        piece = await process.read()
        assert isinstance(piece, Output)
        out, err, end = await rest(process)
        assert len(piece.data) + len(out) == 30_000_000
        assert (err, end.exit_code) == (b"done\n", 0)


async def test_a_signal_ends_it_and_is_named(kernel: Kernel) -> None:
    async with opened(kernel, argv=["/bin/sh", "-c", "echo up; exec sleep 100"]) as process:
        await until(process, b"up")
        await process.signal("TERM")
        assert (await rest(process))[2] == ProcessEnd(reason="exited", exit_code=143, signal="TERM")


async def test_a_terminal_outlives_its_connection(kernel: Kernel) -> None:
    async with terminal(kernel, process="mine") as shell:
        await shell.write(b"x=41; echo be'fore'\n")
        await until(shell, b"before\r\n")
        seen = shell.position
    async with terminal(kernel, process="mine", resume=True, after=seen) as again:
        assert again.resumed
        await again.write(b"echo $((x + 1))\n")
        told = await until(again, b"42")
        assert b"before" not in told
    async with terminal(kernel, process="mine", resume=True) as anew:
        assert b"before" in await until(anew, b"42")
        await anew.write(b"exit\n")
        assert (await rest(anew))[2].reason == "exited"
    async with terminal(kernel, process="mine", resume=True) as late:
        assert (await rest(late))[2] == ProcessEnd(reason="exited", exit_code=0)


async def test_the_second_to_attach_takes_it_over(kernel: Kernel) -> None:
    async with terminal(kernel, process="shared") as first, terminal(kernel, process="shared") as second:
        assert (await rest(first))[2].reason == "taken"
        await second.write(b"echo mi'ne'\n")
        await until(second, b"mine")


async def test_scrollback_is_bounded_and_says_what_is_lost(kernel: Kernel) -> None:
    async with terminal(kernel, process="chatty") as shell:
        await shell.write(b"stty -echo; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo e'n'd\n")
        await until(shell, b"end\r\n")
    async with terminal(kernel, process="chatty", after=0) as again:
        assert again.lost > 2_000_000
        told = await until(again, b"end\r\n")
        assert SCROLLBACK_BYTES // 2 < len(told) <= 2 * SCROLLBACK_BYTES + 100


async def test_without_anybody_attached_it_works_on(kernel: Kernel) -> None:
    async with terminal(kernel, process="busy") as shell:
        await shell.write(b"head -c 2000000 /dev/zero | tr '\\0' x; touch done-it\n")
        await shell.read()
    async with asyncio.timeout(10):
        while not (kernel.work / "done-it").exists():
            await asyncio.sleep(0.01)


async def test_a_closed_connection_ends_what_has_no_terminal(kernel: Kernel) -> None:
    async with opened(kernel, shell="trap 'touch hung-up; exit' HUP; echo up; while :; do sleep 0.01; done") as process:
        await until(process, b"up")
    async with asyncio.timeout(10):
        while not (kernel.work / "hung-up").exists():
            await asyncio.sleep(0.01)


async def test_what_is_not_there_is_said(kernel: Kernel) -> None:
    async with opened(kernel, argv=["no-such-program"]) as process:
        _, err, end = await rest(process)
        assert end.exit_code == 127
        assert b"no-such-program" in err
    for spec, code in (
        ({"terminal": True, "process": "gone", "resume": True}, "pty_not_found"),
        ({"terminal": True, "process": "../x"}, "invalid_request"),
        ({"argv": []}, "invalid_request"),
        ({"argv": ["a\0b"]}, "invalid_request"),
    ):
        with pytest.raises(RunnerError) as error:
            await kernel.link.open_process(ProcessSpec(**spec).pack())
        assert error.value.code == code


async def test_there_is_a_limit_to_terminals(kernel: Kernel) -> None:
    spec = ProcessSpec(terminal=True, argv=["sleep", "100"]).pack()
    opened = [(await kernel.link.open_process(spec))[0] for _ in range(MAX_TERMINALS)]
    with pytest.raises(RunnerError) as error:
        await kernel.link.open_process(spec)
    assert error.value.code == "resource_exhausted"
    assert len(await kernel.link.terminals()) == MAX_TERMINALS
    for sock in opened:
        sock.close()
