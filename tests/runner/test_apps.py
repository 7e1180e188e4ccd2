"""A class as an app: loaded once, called many times, and what goes wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.rings import RunnerError

from .apps import Apps, apps
from .conftest import Kernel

__all__ = ["apps"]

COUNTER = """
class App:
    async def setup(self):
        print("warming up")
        self.count = 0

    async def run(self, given):
        self.count += 1
        print("called with", given)
        return {"count": self.count, "given": given}

    def double(self, given):
        return given * 2

    async def words(self, given):
        for word in given.split():
            print(word)
            yield {"word": word}

    def letters(self, given):
        yield from given

    def nothing(self):
        pass

    def _private(self, given):
        return given

    async def unload(self):
        open("unloaded", "w").close()
"""


async def test_an_app_is_set_up_once_and_called_often(apps: Apps) -> None:
    out = await apps.load(COUNTER)
    assert out.stdout == "warming up\n"
    assert out.results == [{"output": {"functions": ["run", "double", "letters", "nothing", "words"]}}]
    assert (out.done["exit_code"], out.done["reason"]) == (0, "finished")
    first = await apps.call(given={"x": 1})
    assert first.stdout == "called with {'x': 1}\n"
    assert first.results == [{"output": {"count": 1, "given": {"x": 1}}}]
    assert first.kinds == ["stdout", "result", "done"]
    assert (await apps.call(given=None)).results == [{"output": {"count": 2, "given": None}}]
    assert (await apps.call("double", 21)).results == [{"output": 42}]
    assert (await apps.call("nothing")).results == [{"output": None}]


async def test_generators_give_partial_outputs_and_the_last_one_is_the_output(apps: Apps) -> None:
    await apps.loaded(COUNTER)
    out = await apps.call("words", "two words")
    assert out.kinds == ["stdout", "result", "stdout", "result", "result", "done"]
    assert out.results == [{"partial": {"word": "two"}}, {"partial": {"word": "words"}}, {"output": {"word": "words"}}]
    assert (await apps.call("letters", "ab")).results == [{"partial": "a"}, {"partial": "b"}, {"output": "b"}]
    assert (await apps.call("words", "")).results == [{"output": None}]


async def test_what_is_no_function_of_the_app_is_said_to_be_none(apps: Apps) -> None:
    await apps.loaded(COUNTER)
    for function in ("missing", "_private", "setup", "unload", "__init__"):
        out = await apps.call(function, 1)
        assert (out.error["code"], out.done["exit_code"]) == ("function_not_found", 1)
        assert "double" in out.error["evalue"]


async def test_a_call_without_an_app_is_refused(apps: Apps, kernel: Kernel) -> None:
    with pytest.raises(RunnerError) as refused:
        await apps.call()
    assert refused.value.code == "app_not_loaded"
    with pytest.raises(RunnerError) as refused:
        await kernel.run("1 + 1")
    assert refused.value.code == "invalid_request"


async def test_a_failing_call_leaves_the_app_as_it_is(apps: Apps) -> None:
    await apps.loaded(
        "class App:\n    n = 0\n    def run(self, x):\n        self.n += 1\n        return 1 // x + self.n\n"
    )
    out = await apps.call(given=0)
    assert (out.error["ename"], out.done["exit_code"], out.done["reason"]) == ("ZeroDivisionError", 1, "finished")
    text = "".join(out.error["traceback"])
    assert "1 // x" in text
    assert "runner/" not in text
    assert await apps.output(given=1) == 3


CANNOT_BE_LOADED: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("import nothing_of_that_name", {}, "app_import_failed", "nothing_of_that_name"),
    ("def f(:", {}, "app_import_failed", "invalid syntax"),
    ("x = 1", {}, "app_import_failed", "has no App"),
    ("x = 1", {"entry": "app"}, "app_import_failed", "module:Class"),
    ("x = 1", {"path": "/no/folder"}, "app_import_failed", "no folder /no/folder"),
    ("x = 1", {"adapter": "nothing"}, "invalid_request", "no adapter"),
    ("class App:\n    def __init__(self): raise OSError('no model')", {}, "app_import_failed", "no model"),
    ("class App:\n    async def setup(self): raise OSError('no GPU')", {}, "app_setup_failed", "no GPU"),
    ("class App:\n    def setup(self): raise OSError('no GPU')", {}, "app_setup_failed", "no GPU"),
)


async def test_an_app_that_cannot_be_loaded_says_why(apps: Apps) -> None:
    for number, (source, more, code, said) in enumerate(CANNOT_BE_LOADED):
        name = f"app{number}"  # a module that was imported stays so
        apps.write(source, name)
        out = await apps.load(source, **{"entry": f"{name}:App", **more})
        assert (out.error["code"], out.done["exit_code"], out.done["reason"]) == (code, 1, "finished"), source
        assert said in out.error["evalue"]
        assert "runner/" not in "".join(out.error["traceback"])
        assert "importlib" not in "".join(out.error["traceback"])


async def test_a_load_that_failed_can_be_tried_again(apps: Apps) -> None:
    assert (await apps.load("raise ValueError('not yet')")).done["exit_code"] == 1
    with pytest.raises(RunnerError) as refused:
        await apps.call("double", 1)
    assert refused.value.code == "app_not_loaded"
    await apps.loaded(COUNTER)
    assert await apps.output("double", 2) == 4
    with pytest.raises(RunnerError) as refused:
        await apps.load(COUNTER)
    assert refused.value.code == "app_loaded"


async def test_a_setup_that_never_returns_ends_by_its_timeout(apps: Apps) -> None:
    source = "import asyncio\nclass App:\n    async def setup(self):\n        await asyncio.sleep(60)\n"
    out = await apps.load(source, timeout_seconds=0.1)
    assert (out.done["reason"], out.done["exit_code"]) == ("timeout", 130)
    with pytest.raises(RunnerError):
        await apps.call()


async def test_calls_that_waited_for_a_load_that_fails_never_begin(apps: Apps) -> None:
    apps.write("import time\ntime.sleep(0.2)\nraise ValueError\n")
    asked = {"adapter": "class", "entry": "app:App", "path": str(apps.kernel.work)}
    await apps.kernel.link.execute("load", mode="load", code=json.dumps(asked))
    out = await apps.call()
    assert (out.error["code"], out.done["started_at"]) == ("app_not_loaded", None)


async def test_a_load_that_is_none_is_refused(apps: Apps) -> None:
    path, concurrency = '{"adapter": "../x", "entry": "a:B"}', '{"adapter": "class", "entry": "a:B", "concurrency": 0}'
    for asked in ("no JSON", "[]", "{}", path, concurrency):
        with pytest.raises(RunnerError) as refused:
            await apps.kernel.link.execute("load", mode="load", code=asked)
        assert refused.value.code == "invalid_request"


async def test_only_a_worker_session_loads_apps(kernel: Kernel) -> None:
    with pytest.raises(RunnerError) as refused:
        await kernel.run('{"adapter": "class", "entry": "a:B"}', mode="load")
    assert refused.value.code == "app_not_loaded"
    assert (await kernel.run("1 + 1")).results == [{"text/plain": "2"}]


async def test_the_example_of_the_documentation_works(apps: Apps) -> None:
    text = (Path(__file__).parents[2] / "docs/apps.md").read_text()
    await apps.loaded(text.partition("```python\n")[2].partition("```")[0])
    assert await apps.output(given="x") == {"seen": 1, "given": "x"}
    assert await apps.output("double", 4) == 8
    counted = (await apps.call("count", 3)).results
    assert [result["partial"] for result in counted if "partial" in result] == [0, 1, 2]
    assert counted[-1] == {"output": 2}
    assert await apps.output("close") == "bye"
    assert (await apps.main())["reason"] == "ended"
