"""Shell commands beside the worker."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent.rings import RunnerError
from agent.wire import decode_records

from .conftest import Kernel


async def test_a_command_runs_in_the_working_folder(kernel: Kernel) -> None:
    out = await kernel.run("pwd; echo err >&2; echo $HOME; exit 7", mode="batch")
    assert out.stdout == f"{kernel.work}\n{kernel.work}\n"
    assert out.stderr == "err\n"
    assert (out.done["exit_code"], out.done["signal"], out.done["reason"]) == (7, None, "finished")
    assert not out.done["namespace_lost"]


async def test_build_comes_before_exec_and_stops_it_when_it_fails(kernel: Kernel) -> None:
    out = await kernel.run("", mode="batch", opts={"clean": "false", "build": "echo built", "exec": "echo ran"})
    assert out.stdout == "built\nran\n"
    out = await kernel.run("", mode="batch", opts={"build": "echo no; exit 4", "exec": "echo ran"})
    assert (out.stdout, out.done["exit_code"]) == ("no\n", 4)


async def test_words_run_without_a_shell(kernel: Kernel) -> None:
    out = await kernel.run("", mode="batch", opts={"argv": ["echo", "$HOME", "; ls"]})
    assert out.stdout == "$HOME ; ls\n"
    out = await kernel.run("", mode="batch", opts={"argv": ["no-such-program"]})
    assert out.done["exit_code"] == 127
    assert "cannot be started" in out.stderr


@pytest.mark.parametrize("start", ["", "#!/bin/sh -e\n", "#!/usr/bin/env python3\n"])
async def test_scripts_of_any_size_and_interpreter(kernel: Kernel, start: str) -> None:
    comment = "# " + "x" * 100 + "\n"
    body = "print('from python')\n" if "python" in start else "echo from sh\n"
    out = await kernel.run(start + comment * 2000 + body, mode="batch")
    assert out.stdout == ("from python\n" if "python" in start else "from sh\n")


async def test_input_reaches_the_program(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="batch", code="cat; echo end")
    await kernel.link.send_input(run, b"one\n")
    assert (await kernel.until(run, "stdout")).payload == b"one\n"
    await kernel.link.send_input(run, b"x" * 1_000_000)
    await kernel.link.send_input(run, b"\n", eof=True)
    out = await kernel.finish(run)
    assert out.stdout == "one\n" + "x" * 1_000_000 + "\nend\n"


async def test_without_input_there_is_its_end(kernel: Kernel) -> None:
    assert (await kernel.run("cat; echo end", mode="batch", opts={"stdin": False})).stdout == "end\n"


async def test_a_program_that_reads_nothing_is_not_fed_for_ever(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="batch", code="sleep 30")
    with pytest.raises(RunnerError) as error:
        for _ in range(100):
            await kernel.link.send_input(run, b"x" * (1 << 20))
    assert error.value.code == "resource_exhausted"
    await kernel.link.kill(run)


@pytest.mark.parametrize(
    ("code", "number", "reason"),
    [("kill -9 $$", 9, "killed"), ("kill -15 $$", 15, "killed"), ("kill -11 $$", 11, "crashed")],
)
async def test_signals_are_told(kernel: Kernel, code: str, number: int, reason: str) -> None:
    out = await kernel.run(code, mode="batch")
    assert (out.done["exit_code"], out.done["signal"], out.done["reason"]) == (128 + number, number, reason)


async def test_interrupt_and_kill_reach_the_whole_group(kernel: Kernel) -> None:
    for action, reason in ((kernel.link.interrupt, "interrupted"), (kernel.link.kill, "killed")):
        run = kernel.new_run()
        await kernel.link.execute(run, mode="batch", code="echo up; sleep 60 | sleep 60; echo never")
        await kernel.until(run, "stdout")
        assert await action(run)
        async with asyncio.timeout(20):
            out = await kernel.finish(run)
        assert out.done["reason"] == reason
        assert out.stdout == "up\n"


async def test_a_timeout_kills_what_ignores_it(kernel: Kernel) -> None:
    began = time.monotonic()
    out = await kernel.run("trap '' INT; echo so far; while :; do sleep 0.1; done", mode="batch", timeout_seconds=0.2)
    assert (out.stdout, out.done["reason"], out.done["signal"]) == ("so far\n", "timeout", 9)
    assert 2 < time.monotonic() - began < 20


async def test_children_left_behind_hold_up_nothing_and_talk_to_the_log(kernel: Kernel) -> None:
    began = time.monotonic()
    out = await kernel.run("(sleep 3; echo afterwards) & echo main", mode="batch")
    assert time.monotonic() - began < 2.5
    assert out.stdout == "main\n"
    seq = 0
    async with asyncio.timeout(20):
        while b"afterwards" not in kernel.reader.read("log").records:
            seq = (await kernel.link.wait_tail("log", seq, 5)).seq


async def test_killing_a_run_finds_children_that_left_its_group(kernel: Kernel) -> None:
    run = kernel.new_run()
    code = "setsid sh -c 'sleep 1; touch survived' & echo up; sleep 60"
    await kernel.link.execute(run, mode="batch", code=code)
    await kernel.until(run, "stdout")
    await asyncio.sleep(0.1)  # setsid takes a moment, and says nothing
    await kernel.link.kill(run)
    await kernel.finish(run)
    await asyncio.sleep(1.5)
    assert not (kernel.work / "survived").exists()


async def test_batch_runs_run_beside_a_query(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="input()", wait_seconds=5)
    outs = await asyncio.gather(*(kernel.run(f"echo {n}; sleep 0.2", mode="batch") for n in range(5)))
    assert [out.stdout for out in outs] == [f"{n}\n" for n in range(5)]
    assert await kernel.link.interrupt()


async def test_bootstrap_waits_for_its_end(kernel: Kernel) -> None:
    tail = await kernel.link.bootstrap("echo set up > done.txt; echo hello; exit 3")
    assert tail.done
    assert (kernel.work / "done.txt").read_text() == "set up\n"
    done = kernel.reader.done("bootstrap")
    assert done is not None
    assert done["exit_code"] == 3
    log, seen = b"", 0
    async with asyncio.timeout(10):
        while b"hello\n" not in log:  # the log follows a moment after the run itself
            seen = (await kernel.link.wait_tail("log", seen, 5.0)).seq
            log = b"".join(record.payload for record in decode_records(kernel.reader.read("log").records))
    assert b"[runner] runner 1 started" in log


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"run": "../up", "mode": "batch"}, "invalid_request"),
        ({"run": "log", "mode": "batch"}, "invalid_request"),
        ({"run": "x" * 65, "mode": "batch"}, "invalid_request"),
        ({"run": "a", "mode": "other"}, "invalid_request"),
        ({"run": "a", "mode": "batch", "timeout_seconds": -1}, "invalid_request"),
        ({"run": "a", "mode": "batch", "timeout_seconds": float("nan")}, "invalid_request"),
        ({"run": "a", "mode": "batch", "code": "a\0b"}, "invalid_request"),
    ],
)
async def test_bad_requests_are_refused(kernel: Kernel, fields: dict[str, object], code: str) -> None:
    request = {"code": "true", **fields}
    with pytest.raises(RunnerError) as error:
        await kernel.link.execute(**request)  # type: ignore[arg-type]
    assert error.value.code == code
    with pytest.raises(RunnerError) as error:
        await kernel.link.wait_tail("unknown", 0, 1)
    assert error.value.code == "run_not_found"


async def test_waiting_ends_after_its_time(kernel: Kernel) -> None:
    tail = await kernel.link.execute("slow", mode="batch", code="sleep 30", wait_seconds=0.05)
    assert (tail.done, tail.seq, tail.status) == (False, 0, "running")
    tail = await kernel.link.wait_tail("slow", 0, 0.05)
    assert not tail.done
    status = await kernel.link.status()
    assert list(status["runs"]) == ["slow"]
    await kernel.link.kill("slow")
    assert (await kernel.link.wait_tail("slow", 0, 5)).done
