"""Every session function of the SDK, synchronously; what each answered, as JSON."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import Session

told: dict[str, Any] = {}
RICH = "class P:\n  def _repr_html_(self): return '<b>x</b>'\nP()"
LOOP = "import time\nfor i in range(5):\n  print(i, flush=True); time.sleep(0.7)"


def refused(call: Callable[..., Any], *words: Any, **named: Any) -> list[Any]:
    try:
        call(*words, **named)
    except BackendAPIError as error:
        return [error.status, error.data["type"].rpartition("/")[2], error.data.get("data")]
    return ["taken"]


def to_its_end(made: Any, result: Any) -> list[Any]:
    found = [result]
    while found[-1]["status"] == "continued" or found[-1]["status"] in ("clean-finished", "build-finished"):
        found.append(made.execute(result["runId"], "", mode="continue"))
    return found


Path("sub").mkdir()
Path("sub/b.bin").write_bytes(bytes(range(256)) * 5000)  # larger than the original takes
Path("main.py").write_text("import sys; print('batch ok'); sys.exit(3)")
with Session() as session:
    create = session.ComputeSession.get_or_create
    told["versions"] = dict(session.System.get_versions())
    made = create(
        "python",
        name="whole-one",
        resources={"cpu": "1", "mem": "256m"},
        envs={"PROBE": "v1"},
        tag="blue",
        resource_opts={"shmem": "32m"},
        bootstrap_script="echo booted > booted.txt",
    )
    told["made"] = [made.status, made.created, str(made.id)]
    again = create("python", name="whole-one")
    told["again"] = [again.status, again.created, again.id == made.id]
    told["taken"] = refused(create, "python", name="whole-one", no_reuse=True)
    told["nonsense"] = refused(create, "python", name="whole-bad", type_="nonsense")
    told["no image"] = refused(create, "nope/nope:1", name="whole-bad")
    told["late"] = [create("python", name="whole-late", starts_at="+1h", enqueue_only=True).status]
    told["late"].append(create("python", name="whole-later", starts_at="+1h", max_wait=1).status)
    waits = create("python", name="whole-waits", dependencies=["whole-late"], enqueue_only=True)
    graph = waits.get_dependency_graph()
    told["graph"] = [graph["status"], [one["session_name"] for one in graph["depends_on"]]]
    told["late end"] = session.ComputeSession("whole-late").destroy(recursive=True)["stats"]["status"]
    session.ComputeSession("whole-later").destroy(forced=True)
    told["info"] = dict(made.get_info())
    told["raised"] = made.execute(code="1/0")
    told["rich"] = made.execute(code=RICH)
    began = time.monotonic()
    told["loop"] = to_its_end(made, made.execute(code=LOOP))
    asked = made.execute(code='print("hi", input("who? "))')
    told["asked"] = [asked, made.execute(asked["runId"], "bob", mode="input")]
    secret = made.execute(code="import getpass\nlen(getpass.getpass())")
    told["password"] = [secret["options"], made.execute(secret["runId"], "geheim", mode="input")["console"]]
    endless = made.execute(code="while True: pass")
    made.interrupt()
    told["interrupted"] = to_its_end(made, made.execute(endless["runId"], "", mode="continue"))[-1]
    told["after"] = made.execute(code="print(2)")["console"]
    told["upload"] = made.upload(["main.py", "sub/b.bin"]).status
    told["listed"] = {one["filename"]: one["mode"] for one in json.loads(made.list_files()["files"])}
    told["nowhere"] = made.list_files("nope")["errors"]
    batch = made.execute(mode="batch", code="", opts={"build": "echo built", "exec": "*"})
    told["batch"] = [[one["status"], one["exitCode"], one["console"]] for one in to_its_end(made, batch)]
    told["download"] = made.download(["sub", "main.py"], dest="back")["file_names"]
    told["same"] = Path("back/sub/b.bin").read_bytes() == Path("sub/b.bin").read_bytes()
    told["missing"] = refused(made.download, ["nope.txt"])
    told["complete"] = made.complete("impor", {"row": 0, "col": 5, "line": "impor", "post": ""})["result"][
        "completions"
    ]
    told["history"] = sorted(made.get_status_history()["result"])
    told["report"] = dict(made.get_abusing_report())
    told["apps"] = [one["name"] for one in made.stream_app_info()] if hasattr(made, "stream_app_info") else None
    made.rename("whole-two")
    made = session.ComputeSession("whole-two")
    made.restart()
    told["restarted"] = made.execute(code="import os; print(os.path.exists('main.py'), os.environ['PROBE'])")["console"]
    told["commit"] = sorted(made.commit())
    told["logs"] = made.get_logs()["result"]["logs"]
    told["stats"] = made.destroy()["stats"]
    told["gone"] = refused(made.execute, code="1")
    told["never"] = refused(session.ComputeSession("never-was").get_info)
    pair = create("python", name="whole-pair", cluster_size=2, resources={"cpu": 1, "mem": "128m"})
    told["pair"] = pair.execute(code="import os; print(os.environ['MOORAGE_CLUSTER_SIZE'])")["console"]
    pair.destroy()
print(json.dumps(told))
