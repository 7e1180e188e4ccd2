"""A procvision algorithm without its SDK: hooks in their order, one Session for one execution."""

from __future__ import annotations

from typing import Any

from .apps import Apps, apps
from .conftest import Output

__all__ = ["apps"]

ALGORITHM = """
import math

class Diagnostics:
    def __init__(self): self.items = {}
    def publish(self, key, value): self.items[key] = value
    def get(self): return dict(self.items)

class Algorithm:
    def __init__(self):
        self.diagnostics = Diagnostics()
        self.hooks = []
    def setup(self): self.hooks.append("setup")
    def teardown(self):
        self.hooks.append("teardown")
        open("hooks", "w").write(" ".join(self.hooks))
    def on_step_start(self, step_index, session, context):
        self.hooks.append(f"start{step_index}")
        session.set("began", [context["pid"], context["trace_id"]])
    def on_step_finish(self, step_index, session, result):
        self.hooks.append(f"finish{step_index}")
        self.diagnostics.publish("began", session.get("began"))
    def reset(self, session):
        self.hooks.append(f"reset-{session.id}")
    def get_info(self): return {"name": "example"}
    def pre_execute(self, step_index, pid, session, user_params, shared_mem_id, image_meta):
        print("a print in between")
        self.kept = session
        session.set("seen", user_params)
        session.context["product"] = "changed"
        return {"status": "OK", "message": "", "data": {"session": session.id}}
    def execute(self, step_index, pid, session, user_params, shared_mem_id, image_meta):
        if user_params.get("fail"):
            raise RuntimeError("no image")
        if "set" in user_params:
            session.set("value", eval(user_params["set"]))
        seen = session.get("seen")
        return {"status": "OK", "data": {"seen": seen, "same": session is getattr(self, "kept", None), "meta": image_meta}}
"""


async def load(apps: Apps, **options: Any) -> None:
    await apps.loaded(ALGORITHM, entry="app:Algorithm", adapter="algorithm", options=options)


async def test_an_execution_has_one_session_and_all_of_its_hooks(apps: Apps) -> None:
    await load(apps)
    given = {"execution": "e1", "pid": "p", "context": {"trace_id": "t"}, "user_params": {"size": 3}}
    first = await apps.call("pre_execute", given)
    assert first.stdout == "a print in between\n"
    assert first.results[-1]["output"]["data"] == {"session": "e1"}
    second = await apps.output("execute", {"execution": "e1", "image_meta": {"width": 4}})
    assert second["data"] == {"seen": {"size": 3}, "same": True, "meta": {"width": 4}}
    assert second["diagnostics"] == {"began": ["p", "t"]}
    again = await apps.output("execute", {"execution": "e1"})
    assert again["data"] == {"seen": None, "same": False, "meta": {}}
    assert await apps.output("get_info") == {"name": "example"}
    await apps.output("teardown")
    hooks = (apps.kernel.work / "hooks").read_text()
    assert hooks == "setup start1 finish1 reset-e1 start1 finish1 reset-e1 teardown"


async def test_an_execution_of_several_steps_ends_with_its_last_one(apps: Apps) -> None:
    await load(apps)
    await apps.output("pre_execute", {"execution": "e", "step_index": 1, "user_params": {"n": 1}})
    one = await apps.output("execute", {"execution": "e", "step_index": 1, "more_steps": True})
    two = await apps.output("execute", {"execution": "e", "step_index": 2})
    assert one["data"]["seen"] == two["data"]["seen"] == {"n": 1}
    out = await apps.call("reset", {"execution": "e"})
    assert out.error["code"] == "execution_not_found"
    await apps.output("teardown")
    assert (apps.kernel.work / "hooks").read_text() == "setup start1 finish1 start2 finish2 reset-e teardown"


async def test_an_execution_that_fails_is_reset_and_forgotten(apps: Apps) -> None:
    await load(apps)
    await apps.output("pre_execute", {"execution": "e", "user_params": {"n": 1}})
    out = await apps.call("execute", {"execution": "e", "user_params": {"fail": True}})
    assert (out.error["ename"], out.error["evalue"]) == ("RuntimeError", "no image")
    assert (await apps.output("execute", {"execution": "e"}))["data"]["seen"] is None


async def test_a_session_keeps_only_json_that_everybody_reads(apps: Apps) -> None:
    await load(apps)
    for value in ("math.nan", "math.inf", "'a\\0b'", "'\\ud800'", "{1, 2}"):
        out = await apps.call("execute", {"user_params": {"set": value}})
        assert out.error["ename"] == "TypeError", value
    out = await apps.call("execute", {"user_params": {"set": "'x' * 70000"}})
    assert out.error["ename"] == "StateFull"


async def test_hooks_can_be_called_by_hand(apps: Apps) -> None:
    await load(apps, hooks="manual")
    e = {"execution": "e"}
    for function in ("on_step_start", "pre_execute", "execute", "on_step_finish", "reset"):
        await apps.output(function, e)
    await apps.output("teardown")
    assert (apps.kernel.work / "hooks").read_text() == "setup start1 finish1 reset-e teardown"
    assert error(await apps.call("execute", {})) == "input_invalid"


async def test_an_input_that_is_none_is_refused(apps: Apps) -> None:
    await load(apps)
    for given in ([1], {"user_params": 3}, {"step_index": "one"}):
        assert error(await apps.call("execute", given)) == "input_invalid"
    assert error(await apps.call("on_step_start", {})) == "input_invalid"


async def test_what_is_no_algorithm_is_not_loaded(apps: Apps) -> None:
    out = await apps.load("class App:\n    def run(self): pass\n", adapter="algorithm")
    assert (error(out), out.done["exit_code"]) == ("app_import_failed", 1)
    assert "pre_execute" in out.error["evalue"]


def error(out: Output) -> Any:
    return out.error["code"]
