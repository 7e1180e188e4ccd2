"""A class as an app: loaded once, called many times, and what goes wrong with it."""

from __future__ import annotations

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


@pytest.mark.parametrize("function", ["missing", "_private", "setup", "unload", "__init__"])
async def test_what_is_no_function_of_the_app_is_said_to_be_none(apps: Apps, function: str) -> None:
    await apps.loaded(COUNTER)
    out = await apps.call(function, 1)
    assert out.error["code"] == "function_not_found"
    assert "double" in out.error["evalue"]
    assert out.done["exit_code"] == 1


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
