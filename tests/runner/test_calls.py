"""Calls of an app that wait, run beside each other, are cancelled, time out, crash, or end the session."""

from __future__ import annotations

import asyncio
import sysconfig

import pytest

from agent.rings import RunnerError

from .apps import Apps, apps

__all__ = ["apps"]

SLOW = """
import asyncio, os, signal, sys, time
import moorage_session

class App:
    ran = []

    async def run(self, given):
        self.ran.append(given)
        print("began", given)
        await asyncio.sleep(given)
        return given

    def log(self):
        return self.ran

    def plain(self, given):
        print("began", flush=True)
        time.sleep(given)

    def napping(self, given):
        for _ in range(given * 100):
            time.sleep(0.01)

    async def blocking(self, given):
        print("began", flush=True)
        time.sleep(given)

    def deaf(self, given):
        print("began", flush=True)
        end = time.monotonic() + given
        while time.monotonic() < end:
            try:
                time.sleep(given)
            except KeyboardInterrupt:
                pass

    async def tidy(self, given):
        print("began")
        try:
            await asyncio.sleep(given)
        finally:
            print("tidied up")

    async def told(self):
        while not os.path.exists("go"):
            await asyncio.sleep(0.005)

    async def kill(self):
        await self.told()
        os.kill(os.getpid(), signal.SIGKILL)

    async def leave(self):
        await self.told()
        os._exit(3)

    def sys_exit(self): sys.exit(4)
    def give(self, code): return eval(code)

    def steps(self, count):
        for step in range(count):
            moorage_session.progress(step + 1, count, "working", unit="images")
        return count

    async def last(self):
        await self.told()
        moorage_session.end()
        return "answered"

    async def own_loop(self):
        return await asyncio.wait_for(asyncio.sleep(0, "same loop"), 1)

    def new_loop(self):
        return asyncio.run(asyncio.sleep(0, "own loop"))

    def unload(self):
        open("unloaded", "w").close()
"""


async def test_calls_wait_for_each_other_and_for_the_load(apps: Apps) -> None:
    loading = asyncio.create_task(apps.load("import time\ntime.sleep(0.3)\n" + SLOW))
    while "run-1" not in (await apps.kernel.link.status())["runs"]:
        await asyncio.sleep(0.01)
    runs = [await apps.start(given=n / 1000) for n in range(3)]
    statuses = (await apps.kernel.link.status())["runs"]
    assert [statuses[run]["status"] for run in runs] == ["queued"] * 3
    outs = [await apps.kernel.finish(run) for run in runs]
    assert (await loading).done["exit_code"] == 0
    assert [out.records[0].data["status"] for out in outs] == ["queued"] * 3
    assert [out.results[-1]["output"] for out in outs] == [0, 0.001, 0.002]
    assert await apps.output("log") == [0, 0.001, 0.002]


async def test_a_queued_call_that_is_cancelled_never_runs(apps: Apps) -> None:
    await apps.loaded(SLOW)
    first = await apps.start(given=60)
    await apps.kernel.until(first, "stdout")
    second = await apps.start(given=1)
    assert await apps.kernel.link.interrupt(second)
    out = await apps.kernel.finish(second)
    assert (out.done["reason"], out.done["started_at"]) == ("interrupted", None)
    assert await apps.kernel.link.interrupt(first)
    out = await apps.kernel.finish(first)
    assert (out.done["reason"], out.done["exit_code"], out.done["namespace_lost"]) == ("interrupted", 130, False)
    assert await apps.output("log") == [60]


async def test_a_call_can_be_interrupted_wherever_it_is(apps: Apps) -> None:
    await apps.loaded(SLOW)
    for function in ("plain", "blocking", "tidy"):
        run = await apps.start(function, 60)
        await apps.kernel.until(run, "stdout")
        await apps.kernel.link.interrupt(run)
        out = await apps.kernel.finish(run)
        assert (out.done["reason"], out.done["exit_code"]) == ("interrupted", 130)
        assert ("tidied up" in out.stdout) == (function == "tidy")
    assert await apps.output("log") == []


@pytest.mark.parametrize(("concurrency", "plain"), [(1, "plain"), (2, "napping")])
async def test_a_call_can_be_interrupted_in_the_midst_of_its_beginning(
    apps: Apps, concurrency: int, plain: str
) -> None:
    await apps.loaded(SLOW, concurrency=concurrency)
    for turn in range(60):
        run = await apps.start((plain, "tidy")[turn % 2], 60)
        await asyncio.sleep(turn % 10 * 0.0002)
        await apps.kernel.link.interrupt(run)
        out = await asyncio.wait_for(apps.kernel.finish(run), 15)
        assert (out.done["reason"], out.done["exit_code"]) == ("interrupted", 130)
    assert await apps.output("log") == []


async def test_a_timeout_cancels_and_the_app_goes_on(apps: Apps) -> None:
    await apps.loaded(SLOW)
    for function in ("tidy", "plain"):
        out = await apps.call(function, 60, timeout_seconds=0.5)  # enough to be in it on a busy machine
        assert (out.done["reason"], out.done["namespace_lost"]) == ("timeout", False)
        assert (out.error["code"], out.error["ename"]) == ("execution_timeout", "TimeoutError")
        assert "sleep" in "".join(out.error["traceback"])
    assert await apps.output("log") == []


async def test_a_call_that_heeds_nothing_is_killed_and_with_it_the_app(apps: Apps) -> None:
    await apps.loaded(SLOW)
    out = await apps.call("deaf", 60, timeout_seconds=0.1)
    assert (out.done["reason"], out.done["namespace_lost"], out.done["signal"]) == ("timeout", True, 9)
    assert (await apps.main())["reason"] == "timeout"


@pytest.mark.parametrize(("function", "reason", "exit_code"), [("kill", "crashed", 137), ("leave", "crashed", 3)])
async def test_a_crash_ends_the_main_work_and_nothing_is_started_anew(
    apps: Apps, function: str, reason: str, exit_code: int
) -> None:
    await apps.loaded(SLOW)
    first = await apps.start(function)
    second = await apps.start("log")
    (apps.kernel.work / "go").touch()
    out = await apps.kernel.finish(first)
    assert (out.done["reason"], out.done["exit_code"], out.done["namespace_lost"]) == (reason, exit_code, True)
    out = await apps.kernel.finish(second)
    assert (out.error["code"], out.done["exit_code"], out.done["started_at"]) == ("app_ended", 1, None)
    main = await apps.main()
    assert (main["reason"], main["exit_code"], main["namespace_lost"]) == (reason, exit_code, True)
    with pytest.raises(RunnerError) as refused:
        await apps.call("log")
    assert refused.value.code == "app_ended"
    assert (await apps.kernel.link.status())["worker"]["state"] == "failed"


async def test_an_app_ends_its_session_when_it_has_answered(apps: Apps) -> None:
    await apps.loaded(SLOW)
    first = await apps.start("last")
    second = await apps.start("log")
    (apps.kernel.work / "go").touch()
    out = await apps.kernel.finish(first)
    assert (out.results, out.done["exit_code"]) == ([{"output": "answered"}], 0)
    assert (await apps.kernel.finish(second)).error["code"] == "app_ended"
    main = await apps.main()
    assert (main["reason"], main["exit_code"]) == ("ended", 0)
    assert (apps.kernel.work / "unloaded").exists()
    with pytest.raises(RunnerError) as refused:
        await apps.call("log")
    assert refused.value.code == "app_ended"


async def test_an_app_is_unloaded_when_its_session_is_stopped(apps: Apps) -> None:
    await apps.loaded(SLOW)
    run = await apps.start("tidy", 60)
    await apps.kernel.until(run, "stdout")
    await apps.kernel.link.shutdown(10.0)
    assert (apps.kernel.work / "unloaded").exists()
    out = apps.kernel.reader.read(run, 1)
    assert out.done is not None
    assert out.done["reason"] == "killed"


#: The worker's Python is the system's, and these packages are for the same version.
MODELS = f"""
import sys
sys.path.append({sysconfig.get_path("purelib")!r})
from pydantic import BaseModel

class Size(BaseModel):
    width: int
    height: int = 1

class Area(BaseModel):
    area: int

class App:
    async def area(self, size: Size) -> Area:
        return Area(area=size.width * size.height)
"""


async def test_inputs_and_outputs_are_models_where_they_are_annotated(apps: Apps) -> None:
    await apps.loaded(MODELS)
    assert await apps.output("area", {"width": 6, "height": 7}) == {"area": 42}
    out = await apps.call("area", {"height": 7})
    assert out.error["code"] == "input_invalid"
    assert "width" in out.error["evalue"]


NOT_JSON = (
    "float('nan')",
    "{'x': [float('inf')]}",
    "{1, 2}",
    "object()",
    "{1: 2}",
    "2 ** 70",
    "'a\\0b'",
    "'\\ud800'",
    "(lambda x: (x.append(x), x)[1])([])",
)


async def test_what_is_not_json_is_an_error(apps: Apps) -> None:
    await apps.loaded(SLOW)
    for code in NOT_JSON:
        out = await apps.call("give", code)
        assert (out.error["code"], out.done["exit_code"], out.results) == ("output_not_json", 1, []), code
    out = await apps.call("give", "'x' * (5 << 20)")
    assert out.error["code"] == "output_too_large"
    assert "5.0 MiB" in out.error["evalue"]
    assert await apps.output("give", "'x' * (4_000_000)") == "x" * 4_000_000


async def test_what_is_no_business_of_an_app_is_refused(apps: Apps) -> None:
    await apps.loaded(SLOW)
    run = await apps.start("tidy", 60)
    with pytest.raises(RunnerError) as refused:
        await apps.kernel.link.send_input(run, b"typed")
    assert refused.value.code == "not_waiting_for_input"
    found = await apps.kernel.link.complete(code="prin", row=0, col=4, line="prin", post="")
    assert (found["suggestions"], found["busy"]) == ([], True)
    assert (await apps.kernel.run("echo beside", mode="batch")).stdout == "beside\n"


async def test_plain_functions_have_a_loop_of_their_own(apps: Apps) -> None:
    await apps.loaded(SLOW)
    assert await apps.output("own_loop") == "same loop"
    assert await apps.output("new_loop") == "own loop"
    out = await apps.call("sys_exit")
    assert (out.error["ename"], out.done["exit_code"]) == ("SystemExit", 1)


async def test_progress_is_told_a_few_times_and_the_last_word_always(apps: Apps) -> None:
    await apps.loaded(SLOW)
    out = await apps.call("steps", 5000)
    told = [result["progress"] for result in out.results if "progress" in result]
    assert len(told) < 50
    assert told[0] == {"current": 1, "total": 5000, "message": "working", "unit": "images"}
    assert told[-1]["current"] == 5000
    assert out.results[-1] == {"output": 5000}


CHILDREN = """
import multiprocessing, os, signal, subprocess, time

def work():
    print("in the child", flush=True)
    time.sleep(60)

class App:
    def setup(self):
        self.child = subprocess.Popen(["sleep", "60"])

    def wait(self):
        print("began", flush=True)
        subprocess.run(["sleep", "60"])

    def fork(self):
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        process.join()
        return [process.exitcode, self.child.poll()]

    def garbage(self):
        os.write(3, b"x" * 100)
        time.sleep(60)

    def unload(self):
        self.child.kill()
"""


async def test_processes_of_the_app_are_its_own(apps: Apps) -> None:
    await apps.loaded(CHILDREN)
    run = await apps.start("wait")
    await apps.kernel.until(run, "stdout")
    await apps.kernel.link.interrupt(run)
    assert (await apps.kernel.finish(run)).done["reason"] == "interrupted"
    out = await apps.call("fork")
    assert out.stdout == "in the child\n"
    assert "KeyboardInterrupt" in out.stderr
    assert out.results == [{"output": [1, None]}]


async def test_a_worker_that_talks_nonsense_is_lost(apps: Apps) -> None:
    await apps.loaded(CHILDREN)
    out = await apps.call("garbage")
    assert (out.done["reason"], out.done["namespace_lost"]) == ("crashed", True)
    assert (await apps.main())["reason"] == "crashed"


BESIDE = """
import asyncio, contextvars, os, threading, time

class App:
    def __init__(self): self.here = 0
    async def run(self, name):
        self.here += 1
        print(name, "begins")
        while self.here < 3:
            await asyncio.sleep(0.01)
        print(name, "ends")
        return name

    def plain(self, seconds):
        print("in", threading.current_thread() is threading.main_thread())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)

    async def endless(self):
        print("began")
        await asyncio.sleep(60)

    async def quick(self):
        os.write(1, b"of whom?\\n")
"""


async def test_calls_beside_each_other_have_their_own_logs(apps: Apps) -> None:
    await apps.loaded(BESIDE, concurrency=4)
    runs = {name: await apps.start(given=name) for name in ("a", "b", "c")}
    for name, run in runs.items():
        out = await apps.kernel.finish(run)
        assert (out.stdout, out.results) == (f"{name} begins\n{name} ends\n", [{"output": name}])
    endless = await apps.start("endless")
    await apps.kernel.until(endless, "stdout")
    assert (await apps.call("plain", 0)).stdout == "in False\n"
    out = await apps.call("plain", 2, timeout_seconds=0.1)
    assert (out.done["reason"], out.done["exit_code"]) == ("timeout", 130)
    assert (await apps.call("quick")).stdout == ""  # nobody knows whose it is: it is in the log
    await apps.kernel.link.interrupt(endless)
    assert (await apps.kernel.finish(endless)).done["reason"] == "interrupted"
    assert (await apps.call("quick")).stdout == "of whom?\n"


async def test_more_calls_than_may_run_wait(apps: Apps) -> None:
    await apps.loaded(BESIDE, concurrency=2)
    first, second = await apps.start("endless"), await apps.start("endless")
    await apps.kernel.until(second, "stdout")
    third = await apps.start("quick")
    assert (await apps.kernel.link.status())["runs"][third]["status"] == "queued"
    await apps.kernel.link.interrupt(first)
    assert (await apps.kernel.finish(third)).done["exit_code"] == 0
