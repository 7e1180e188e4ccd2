"""Each field of each body that the client sends, with values that are none: refused or taken, and never a failure of the manager."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compat.backendai.fakes import Fronted, alice, fronted, root  # noqa: F401  # fixtures
from tests.compat.backendai.signer import Signer
from tests.compat.backendai.test_front import wanted

VALUES: Any = [None, True, 10**18, "9" * 5000, [None], {"a": []}]
WHOLE: Any = wanted(
    config={
        "environ": {"A": "1"}, "mounts": ["a"], "mount_map": {"a": "b"}, "resource_opts": {"shmem": "64m"},
        "preopen_ports": ["8000"], "agentList": ["x"], "scalingGroup": "default",
    },
    dependencies=["a"], starts_at="+1h", clusterSize=2, bootstrap_script="x", startupCommand="y", tag="t",
    callback_url="https://example.org/", owner_access_key="KEY-alice",
)  # fmt: skip
LIST: Any = {
    "query": "query($limit:Int!,$offset:Int!,$status:String,$filter:String,$order:String,$access_key:String){"
    "compute_session_list(limit:$limit,offset:$offset,status:$status,filter:$filter,order:$order,access_key:$access_key)"
    "{items{id} total_count}}",
    "variables": {
        "limit": 1, "offset": 0, "status": "RUNNING", "filter": 'name == "x"', "order": "name", "access_key": "KEY-alice",
    },
    "operation_name": None,
}  # fmt: skip
BODIES: Any = [
    ("POST", "/session", WHOLE),
    ("POST", "/session/_/create-from-template", {**WHOLE, "template_id": "x"}),
    ("POST", "/session/train", {"mode": "batch", "code": "", "runId": "b", "options": {"build": "x", "exec": "*"}}),
    ("POST", "/session/train", {"mode": "continue", "code": "", "runId": "b"}),
    ("POST", "/session/train/complete", {"code": "pri", "options": {"row": 0, "col": 3, "line": "pri", "post": ""}}),
    ("GET", "/session/train/files", {"path": "."}),
    ("GET", "/session/train/download", {"files": ["a"]}),
    ("POST", "/session/train/start-service", {"app": "http", "port": 80, "envs": "{}", "arguments": "{}"}),
    ("POST", "/session/train/shutdown-service", {"service_name": "http"}),
    ("POST", "/folders", {"name": "data", "quota": "1g", "group": None}),
    ("DELETE", "/folders", {"id": "x"}),
    ("POST", "/folders/x/rename", {"new_name": "y"}),
    ("POST", "/folders/x/clone", {"target_name": "y"}),
    ("POST", "/folders/x/share", {"emails": ["a@b"], "permission": "ro"}),
    ("DELETE", "/folders/x/unshare", {"emails": ["a@b"]}),
    ("POST", "/folders/x/mkdir", {"path": "a", "parents": True, "exist_ok": True}),
    ("POST", "/folders/x/rename-file", {"target_path": "a", "new_name": "b"}),
    ("POST", "/folders/x/move-file", {"src": "a", "dst": "b"}),
    ("DELETE", "/folders/x/delete-files", {"files": ["a"], "recursive": True}),
    ("GET", "/folders/x/files", {"path": "a"}),
    ("POST", "/resource/check-presets", {"group": "default", "scaling_group": "x"}),
    ("GET", "/resource/usage/month", {"month": "202601", "group_ids": ["a"]}),
    ("GET", "/resource/usage/period", {"group_id": "default", "start_date": "20260101", "end_date": "20260105"}),
    ("PUT", "/manager/status", {"status": "x"}),
    ("POST", "/admin/gql", LIST),
    ("POST", "/admin/gql", {"query": "query($id:UUID!){compute_session(id:$id){id}}", "variables": {"id": "x"}}),
]


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*above, name)
        yield from places(inner, (*above, name))


def put(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    made = at = copy.deepcopy(body)
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    return made


@pytest.mark.usefixtures("fronted")
async def test_no_value_of_a_field_is_a_failure_of_the_manager(root: Signer, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    for method, path, body in BODIES:
        for place in places(body):
            for value in VALUES:
                answer = await root.ask(method, path, put(body, place, value))
                told = answer.json if answer.body else {}
                assert answer.status < 500 or told["code"] == "no_volume_store", (path, place, value, told)
                assert not [one for one in caplog.records if one.levelname == "ERROR"], (path, place, value)


TEMPLATE = "kind: taskTemplate\nmetadata: {name: odd, tag: %s}\nspec: {kernel: {image: %s, environ: {A: %s}}}"
ODD = ("!!binary aGk=", "!!set {a}", "2021-01-01", "{1: 2}", '"\\0"', ".nan", "1e999")


@pytest.mark.usefixtures("fronted")
async def test_nor_is_what_only_yaml_can_say(alice: Signer, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    for odd in ODD:
        for place in range(3):
            payload = TEMPLATE % tuple(odd if place == at else "x" for at in range(3))
            answer = await alice.ask("POST", "/template/session", {"payload": payload})
            assert answer.status < 500, (payload, answer.body)
            if answer.status == 200:
                await alice.ask("DELETE", "/template/session/odd")
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
