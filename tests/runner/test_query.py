"""Cells in one lasting namespace: output, results, errors, input, interrupts, crashes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.rings import RunnerError

from .conftest import Kernel


async def test_a_cell_prints_and_ends(kernel: Kernel) -> None:
    out = await kernel.run("print(1)")
    assert out.stdout == "1\n"
    assert out.kinds == ["stdout", "done"]
    assert out.done["reason"] == "finished"
    assert out.done["exit_code"] == 0
    assert out.done["signal"] is None
    assert out.done["bytes"] == 2
    assert out.done["finished_at"] >= out.done["started_at"]
    assert [record.seq for record in out.records] == list(range(1, len(out.records) + 1))


async def test_the_namespace_lasts(kernel: Kernel) -> None:
    await kernel.run("x = 20\ndef f(): return x + 1")
    out = await kernel.run("f() + x")
    assert out.results == [{"text/plain": "41"}]
    assert (await kernel.run("_ + 1")).results == [{"text/plain": "42"}]


async def test_the_same_run_starts_once(kernel: Kernel) -> None:
    await kernel.run("n = 0")
    for _ in range(3):
        tail = await kernel.link.execute("same", mode="query", code="n += 1", wait_seconds=10)
        assert tail.done
    assert (await kernel.run("n")).results == [{"text/plain": "1"}]


async def test_exceptions_become_errors(kernel: Kernel) -> None:
    out = await kernel.run("def f():\n    1/0\nprint('before')\nf()")
    assert out.kinds == ["stdout", "error", "done"]
    assert out.error["ename"] == "ZeroDivisionError"
    assert out.error["evalue"] == "division by zero"
    text = "".join(out.error["traceback"])
    assert "    1/0" in text
    assert "worker.py" not in text
    assert out.done["exit_code"] == 1
    assert out.done["reason"] == "finished"
    assert not out.done["namespace_lost"]


async def test_whatever_an_exception_or_a_bundle_is_called_the_worker_lives_on(kernel: Kernel) -> None:
    out = await kernel.run("raise type('X' * 5_000_000, (Exception,), {})('\\1' * 5_000_000)")
    assert (out.error["ename"], out.error["evalue"]) == ("X" * 1000, "\1" * 65536)
    chain = """
error = None
for n in range(300):
    try:
        raise ValueError(chr(1) * 10_000) from error
    except ValueError as caught:
        error = caught
raise error
"""
    assert (await kernel.run(chain)).error["ename"] == "ValueError"
    code = "class M:\n    def _repr_mimebundle_(self, **_): return {'x' * 5_000_000: 1, 3: 4, 'a/b': 5}\nM()"
    assert (await kernel.run(code)).results[0]["a/b"] == 5
    out = await kernel.run("len(str(error))")
    assert (out.results, out.done["namespace_lost"]) == ([{"text/plain": "10000"}], False)


async def test_a_run_may_take_a_month(kernel: Kernel) -> None:
    out = await kernel.run("import time; time.sleep(0.1)", timeout_seconds=30 * 86400)
    assert out.done["reason"] == "finished"
    await kernel.link.ping()


async def test_syntax_errors_become_errors(kernel: Kernel) -> None:
    out = await kernel.run("def f(:")
    assert out.error["ename"] == "SyntaxError"
    assert "worker.py" not in "".join(out.error["traceback"])


@pytest.mark.parametrize(
    ("code", "exit_code"), [("import sys; sys.exit(3)", 3), ("exit()", 0), ("raise SystemExit('bye')", 1)]
)
async def test_sys_exit_keeps_the_namespace(kernel: Kernel, code: str, exit_code: int) -> None:
    await kernel.run("kept = 5")
    out = await kernel.run(code)
    assert (out.done["exit_code"], out.done["reason"]) == (exit_code, "finished")
    assert (await kernel.run("kept")).results == [{"text/plain": "5"}]


async def test_output_of_c_code_and_subprocesses_is_in_order(kernel: Kernel) -> None:
    code = """
import os, subprocess, sys, ctypes
print("a1")
subprocess.run(["echo", "b"])
print("a2", end="")
os.system("echo c")
os.write(1, b"d\\n")
libc = ctypes.CDLL(None); libc.puts(b"e"); libc.fflush(None)
sys.stdout.buffer.write(b"f\\n")
pid = os.fork()
if pid == 0:
    os.write(1, b"g\\n"); os._exit(0)
os.waitpid(pid, 0)
print("h", flush=True)
"""
    out = await kernel.run(code)
    assert out.stdout.replace("a2c", "a2\nc").split() == ["a1", "b", "a2", "c", "d", "e", "f", "g", "h"]


async def test_display_keeps_its_place_among_prints(kernel: Kernel) -> None:
    code = """
class H:
    def _repr_html_(self): return "<b>h</b>"
    def __repr__(self): return "H"
class P:
    def _repr_png_(self): return b"PNG"
    def __repr__(self): return "P"
class M:
    def _repr_mimebundle_(self, include=None, exclude=None): return {"a/b": 1}, {}
    def __repr__(self): return "M"
print(1); display(H()); print(2); display(P(), M()); print(3)
H()
"""
    out = await kernel.run(code)
    assert out.kinds == ["stdout", "result", "stdout", "result", "result", "stdout", "result", "done"]
    assert out.results == [
        {"text/html": "<b>h</b>", "text/plain": "H"},
        {"image/png": "UE5H", "text/plain": "P"},
        {"a/b": 1, "text/plain": "M"},
        {"text/html": "<b>h</b>", "text/plain": "H"},
    ]


async def test_a_semicolon_hides_the_result(kernel: Kernel) -> None:
    assert (await kernel.run("5;")).results == []
    assert (await kernel.run("None")).results == []


async def test_results_too_large_are_cut_and_say_so(kernel: Kernel) -> None:
    out = await kernel.run("class B:\n  def _repr_html_(s): return 'x' * (20 << 20)\nB()")
    assert set(out.results[0]) == {"text/plain", "text/html"}
    out = await kernel.run("class B:\n  def _repr_png_(s): return b'x' * (20 << 20)\nB()")
    assert "image/png is left out" in out.results[0]["text/plain"]


async def test_await_at_the_top(kernel: Kernel) -> None:
    out = await kernel.run("import asyncio\nawait asyncio.sleep(0.01)\nprint('slept')\nawait asyncio.sleep(0, 7)")
    assert out.stdout == "slept\n"
    assert out.results == [{"text/plain": "7"}]


async def test_input_is_asked_for_and_given(kernel: Kernel) -> None:
    run = kernel.new_run()
    tail = await kernel.link.execute(
        run, mode="query", code="name = input('Who? ')\nprint('hi', name)", wait_seconds=10
    )
    assert tail.status == "waiting_input"
    asked = await kernel.until(run, "input_request")
    assert asked.data == {"prompt": "Who? ", "password": False}
    assert kernel.reader.read(run).status == "waiting_input"
    await kernel.link.send_input(run, b"Ann\n")
    out = await kernel.finish(run)
    assert out.stdout == "hi Ann\n"
    assert out.kinds == ["input_request", "status", "stdout", "done"]


async def test_passwords_are_asked_for_as_such_and_typing_ahead_is_kept(kernel: Kernel) -> None:
    run = kernel.new_run()
    code = "import getpass, sys\nprint('go', flush=True)\na = getpass.getpass('Key: ')\nb = input()\nprint(a, b, sys.stdin.readline())"
    await kernel.link.execute(run, mode="query", code=code)
    await kernel.link.send_input(run, b"one\ntwo\nthree")
    assert (await kernel.finish(run)).stdout == "go\none two three\n\n"
    with pytest.raises(RunnerError) as error:
        await kernel.link.send_input(run, b"late")
    assert error.value.code == "not_waiting_for_input"


async def test_the_end_of_input_is_an_eof_error(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="input()", wait_seconds=10)
    await kernel.link.send_input(run, b"", eof=True)
    assert (await kernel.finish(run)).error["ename"] == "EOFError"


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "input('?')",
        "import subprocess; subprocess.run(['sleep', '60'])",
    ],
)
async def test_interrupts(kernel: Kernel, code: str) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="kept = 1\nprint('go', flush=True)\n" + code)
    await kernel.until(run, "stdout")
    assert await kernel.link.interrupt(run)
    out = await kernel.finish(run)
    assert out.done["reason"] == "interrupted"
    assert out.done["exit_code"] == 130
    assert out.error["ename"] == "KeyboardInterrupt"
    assert "worker.py" not in "".join(out.error["traceback"])
    assert (await kernel.run("kept")).results == [{"text/plain": "1"}]
    assert not await kernel.link.interrupt()


async def test_a_hundred_interrupts_at_random_moments_break_nothing(kernel: Kernel) -> None:
    await kernel.run("total = 0")
    for number in range(100):
        run = kernel.new_run()
        await kernel.link.execute(run, mode="query", code="print('x')\ndisplay(1)\ntotal += 1")
        if number % 2:
            await asyncio.sleep(0)
        await kernel.link.interrupt()
        out = await kernel.finish(run)
        assert out.done["reason"] in ("finished", "interrupted")
    assert (await kernel.run("total >= 0")).results == [{"text/plain": "True"}]


async def test_a_timeout_interrupts_and_keeps_the_output(kernel: Kernel) -> None:
    out = await kernel.run("import time\nkept = 2\nprint('so far')\ntime.sleep(60)", timeout_seconds=0.2)
    assert out.stdout == "so far\n"
    assert out.done["reason"] == "timeout"
    assert not out.done["namespace_lost"]
    assert (await kernel.run("kept")).results == [{"text/plain": "2"}]


async def test_what_ignores_the_timeout_loses_its_worker(kernel: Kernel) -> None:
    code = "print('so far', flush=True)\nwhile True:\n  try:\n    for _ in iter(int, 1): x = 1\n  except BaseException: x = 2"
    out = await kernel.run(code, timeout_seconds=0.2)
    assert out.stdout == "so far\n"
    assert out.done["reason"] == "timeout"
    assert out.done["signal"] == 9
    assert out.done["namespace_lost"]
    assert (await kernel.run("print('new')")).stdout == "new\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "number"),
    [
        ("import os\nfor i in range(5000): print(i)\nos._exit(3)", 3, None),
        ("import os\nfor i in range(5000): print(i)\nos.system('')\nos.kill(os.getpid(), 11)", 139, 11),
        ("for i in range(5000): print(i)\nimport sys; sys.stdout.flush()\nimport ctypes; ctypes.string_at(0)", 139, 11),
        ("for i in range(5000): print(i)\nimport os, sys; sys.stdout.flush()\nos.closerange(3, 100)", None, None),
    ],
)
async def test_a_crash_keeps_the_output_and_the_session(
    kernel: Kernel, code: str, exit_code: int | None, number: int | None
) -> None:
    out = await kernel.run(code)
    assert out.stdout.split() == [str(i) for i in range(5000)]
    assert out.done["reason"] == "crashed"
    assert out.done["namespace_lost"]
    if exit_code is not None:
        assert (out.done["exit_code"], out.done["signal"]) == (exit_code, number)
    assert (await kernel.run("print('new')")).stdout == "new\n"


async def test_children_that_hold_the_pipes_hold_up_nothing(kernel: Kernel) -> None:
    code = "import subprocess\nsubprocess.Popen(['sleep', '30'], start_new_session=True)\nprint('left')\nimport os; os._exit(0)"
    async with asyncio.timeout(20):
        out = await kernel.run(code)
    assert out.stdout == "left\n"
    assert out.done["reason"] == "crashed"


async def test_killing_a_run_kills_its_worker_only(kernel: Kernel) -> None:
    batch, run = kernel.new_run(), kernel.new_run()
    await kernel.link.execute(batch, mode="batch", code="echo up; read line; echo $line")
    await kernel.link.execute(run, mode="query", code="print('go', flush=True)\nsum(range(10**12))")
    await kernel.until(run, "stdout")
    assert await kernel.link.kill(run)
    out = await kernel.finish(run)
    assert (out.done["reason"], out.done["signal"]) == ("killed", 9)
    await kernel.link.send_input(batch, b"still here\n")
    assert (await kernel.finish(batch)).stdout == "up\nstill here\n"
    assert not await kernel.link.kill(run)


async def test_queries_wait_for_each_other_and_count_their_timeout_from_their_start(kernel: Kernel) -> None:
    first, second, third = kernel.new_run(), kernel.new_run(), kernel.new_run()
    await kernel.link.execute(first, mode="query", code="import time; print('go', flush=True); time.sleep(0.4)")
    await kernel.until(first, "stdout")
    tail = await kernel.link.execute(second, mode="query", code="print('second')", timeout_seconds=0.2)
    assert tail.status == "queued"
    await kernel.link.execute(third, mode="query", code="print('third')")
    assert await kernel.link.kill(third)
    assert (await kernel.finish(third)).done["reason"] == "killed"
    out = await kernel.finish(second)
    assert out.kinds == ["status", "status", "stdout", "done"]
    assert out.done["reason"] == "finished"


async def test_completion(kernel: Kernel) -> None:
    await kernel.run("import os\nalphabet = 'x'\nclass Thing: name_of_it = 1")
    ask: dict[str, Any] = {"row": 0, "post": ""}
    assert await kernel.link.complete(code="alph", col=4, line="alph", **ask) == {
        "suggestions": ["alphabet"], "start": 0, "end": 4, "busy": False,
    }  # fmt: skip
    got = await kernel.link.complete(code="y = alphabet.upp", col=16, line="y = alphabet.upp", **ask)
    assert got == {"suggestions": ["upper"], "start": 13, "end": 16, "busy": False}
    assert (await kernel.link.complete(code="Thing.na", col=8, line="", **ask))["suggestions"] == ["name_of_it"]
    assert (await kernel.link.complete(code="import json", col=11, line="import jso", **ask))["suggestions"][
        0
    ] == "json"
    assert (await kernel.link.complete(code="'.", col=2, line="'.", **ask))["suggestions"] == []
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="input()", wait_seconds=5)
    assert (await kernel.link.complete(code="alph", col=4, line="alph", **ask))["busy"]
    await kernel.link.interrupt(run)


async def test_prints_are_seen_before_a_loop_that_holds_the_interpreter(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code="print('before')\nx = 3 ** 10 ** 6 % 7\ninput()")
    assert (await kernel.until(run, "stdout")).payload.startswith(b"before")  # its end may come 5 ms later
    await kernel.link.interrupt(run)


async def test_the_workers_environment_is_the_sessions(kernel: Kernel) -> None:
    out = await kernel.run(
        "import os, sys\nprint(sorted(os.environ))\nprint(os.getcwd())\nprint(sys.path[0] == '', __name__)"
    )
    names = out.stdout.splitlines()[0]
    assert "'PATH'" in names
    assert "'HOME'" in names
    assert "PYTHONUNBUFFERED" not in names
    assert out.stdout.splitlines()[1:] == [str(kernel.work), "True __main__"]


async def test_a_thread_that_prints_later_prints_to_the_log(kernel: Kernel) -> None:
    await kernel.run("import threading\nt = threading.Timer(0.05, lambda: print('late'))\nt.start()")
    seq = 0
    async with asyncio.timeout(20):
        while b"late" not in kernel.reader.read("log").records:
            seq = (await kernel.link.wait_tail("log", seq, 5)).seq
