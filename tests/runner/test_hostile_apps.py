"""Apps that do what no app should: each call is answered nevertheless, and the next one too."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.runner_link import RunnerConfig

from .apps import MAIN, Apps, apps
from .conftest import started

__all__ = ["apps"]

ODD = """
import asyncio, os, signal, sys, time
import moorage_session

class Leaves:
    def model_dump(self, mode): raise SystemExit(3)

class App:
    def bytes(self): sys.stdout.write(b"no text")
    async def closes(self): sys.__stdout__.close()
    def leaves(self): return Leaves()
    def configures(self):
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
        print("done")

    def changes(self):
        told = {}
        moorage_session.progress(1, detail=told)
        moorage_session.progress(2, detail=told)
        told["later"] = object()

    def run(self): return "well"

    def trap(self):
        # a callback that ends the loop in the very round in which the next plain function is to run
        server = moorage_session._server
        def check():
            if server._jobs:
                server.loop.set_task_factory(None)
                raise SystemExit(5)
        def factory(loop, coro, **more):
            task = asyncio.Task(coro, loop=loop, **more)
            loop.call_soon(check)
            return task
        server.loop.set_task_factory(factory)

    def last_words(self):
        runner, here = os.getppid(), os.getpid()
        os.kill(runner, signal.SIGSTOP)
        if os.fork() == 0:  # it keeps the worker's end of the link open
            while os.getppid() == here:
                time.sleep(0.005)
            os.kill(runner, signal.SIGCONT)
            time.sleep(2)
            os._exit(0)
        for number in range(110):
            print("x" * 1000)
        os._exit(3)
"""


@pytest.mark.parametrize(
    ("function", "ename"),
    [("bytes", "TypeError"), ("closes", None), ("leaves", "SystemExit"), ("configures", None), ("changes", None)],
)
async def test_every_call_is_answered(apps: Apps, function: str, ename: str | None) -> None:
    await apps.loaded(ODD)
    out = await apps.call(function)
    assert out.done["reason"] == "finished"
    if ename is None:
        assert out.results[-1] == {"output": None}
    else:
        assert out.error["ename"] == ename
    if function == "changes":
        assert [one["progress"]["current"] for one in out.results[:-1]] == [1, 2]
    assert await apps.output("run") == "well"


async def test_a_task_that_ends_the_loop_does_not_keep_a_call_from_beginning(apps: Apps) -> None:
    await apps.loaded(ODD)
    await apps.call("trap")
    assert await apps.output("run") == "well"


async def test_what_was_said_before_the_process_died_is_heard_although_a_child_lives_on(apps: Apps) -> None:
    await apps.loaded(ODD)
    out = await apps.call("last_words")
    assert (out.done["exit_code"], len(out.stdout.splitlines())) == (3, 110)
    assert (await apps.main())["reason"] == "crashed"


async def test_a_load_that_is_interrupted_before_it_began_can_be_tried_again(
    folder: Path, config: RunnerConfig
) -> None:
    gate = folder / "python"
    gate.write_text(f'#!/bin/sh\nread line < {folder}/gate\nexec {config.python} "$@"\n')
    gate.chmod(0o755)
    os.mkfifo(folder / "gate")
    async with started(folder, replace(config, python=str(gate))) as kernel:
        await kernel.link.execute(MAIN, mode="serve", code="")
        apps = Apps(kernel)
        apps.write(ODD)
        asked = json.dumps({"adapter": "class", "entry": "app:App", "path": str(kernel.work)})
        await kernel.link.execute("first", mode="load", code=asked)
        waiting = await apps.start("run")
        await kernel.link.interrupt("first")
        assert (await kernel.finish("first")).done["reason"] == "interrupted"
        assert (await kernel.finish(waiting)).error["code"] == "app_not_loaded"
        await kernel.link.execute("second", mode="load", code=asked)
        await asyncio.to_thread((folder / "gate").write_text, "open\n")
        assert (await kernel.finish("second")).done["exit_code"] == 0
        assert await apps.output("run") == "well"
