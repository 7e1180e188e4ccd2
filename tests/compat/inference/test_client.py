"""The real client of inference.sh does what it does elsewhere: sessions, tasks, streams, files, errors."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.compat.inference.conftest import HERE, Installation, packed

pytestmark = pytest.mark.compat
#: What the package needs that an app on its base class imports.
PACKAGES = (
    "inferencesh",
    "inferencesh-0.36.0.dist-info",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions.py",
    "typing_inspection",
    "tqdm",
    "requests",
    "urllib3",
    "certifi",
    "idna",
    "charset_normalizer",
)


def test_a_session_from_its_first_call_to_its_end(installation: Installation) -> None:
    told = installation.client("clients/short.py")
    assert told["first"]["count"] == 1
    assert told["second"] == {"count": 2, "pid": told["first"]["pid"], "input": {"n": 2}}
    assert told["third"] == {"count": 3, "pid": told["first"]["pid"], "input": {"n": 3}}
    assert told["steps"] == [{"number": 0}, {"number": 1}, {"number": 2, "done": True}, {"number": 2, "done": True}]
    assert told["last"] == 10
    assert told["logs"] == "step 0\nstep 1\n"
    assert told["info"] == {"id": told["session"], "status": "active", "call_count": 3, "idle_timeout": 60}
    assert told["over"][:2] == [410, "SESSION_ENDED"]


@pytest.mark.full
def test_the_examples_of_the_reference_run_as_they_are_written(installation: Installation) -> None:
    told = installation.client("clients/seed.py")
    assert told == {
        "process": {"action": "process", "items": ["..."]},
        "timeout": 300,
        "predictions": [{"model": "large-model-v2", "loads": 1, "prediction": 2 * n} for n in (1, 2, 3)],
        "browser": {"page": "https://example.com", "done": ["start", "click", "type", "screenshot"]},
        "chat": [f"{n}: What is quantum computing?" for n in (1, 2, 3)],
        "analyses": [
            {"type": kind, "of": "large_dataset.parquet", "loads": 1}
            for kind in ("summary", "correlations", "outliers", "trends")
        ],
        "expired": True,
        "closed": told["closed"],
        "recovered": [["again"], True],
        "workflow": list(range(10)),
    }
    assert "HTTP 410" in told["closed"]


@pytest.mark.full
def test_tasks_run_once_are_cancelled_run_one_after_another_and_expire(installation: Installation) -> None:
    told = installation.client("clients/calls.py")
    assert told["once"] == [1, 1, True]
    assert told["running"] == 7
    assert told["cancelled"] == ["task cancelled", 12]
    assert told["after"] == 2  # the call that made the session, and this one: the app lived on
    assert told["handle"] == ["active", "active"]
    assert told["failed"] == "ValueError: as asked for"
    assert told["ended_here"] == "Session has been ended"
    assert told["listed"] == "ended"
    assert told["async"]["serial"] == list(range(10))
    assert told["async"]["most"] == 1
    assert told["async"]["counts"] == list(range(2, 12))
    assert told["async"]["large"] == 300_000
    assert told["async"]["steps"][:3] == [{"number": n} for n in range(3)]
    assert told["async"]["steps"][-1] == {"number": 3, "done": True}
    assert told["default_timeout"] == 60
    assert told["expired"] == "expired"
    assert told["expired_calls"] == [[410, "SESSION_EXPIRED", True]] * 2


@pytest.mark.full
def test_a_silent_call_is_told_of_every_fifteen_seconds(installation: Installation) -> None:
    told = installation.client("clients/slow.py", SECONDS="35")
    assert told["output"] == {"slept": 35.0}
    assert told["longest"] < 15.0  # of heartbeats alone the client has enough after 30


@pytest.mark.full
def test_what_goes_wrong_is_told_as_the_client_expects_it(installation: Installation) -> None:
    foreign = _foreign(installation)
    told = installation.client(
        "clients/failures.py", key=installation.user("bob"), FOREIGN=foreign["session_id"], FOREIGN_TASK=foreign["id"]
    )
    not_found = [404, "SESSION_NOT_FOUND"]
    for name in ("unknown", "nobodys", "foreign", "foreign_info", "foreign_end"):
        assert told[name][:2] == not_found, name
        assert "session not found" in told[name][2].lower()
    assert {name: told[name][:2] for name in told if isinstance(told[name], list) and name != "lost"} == {
        **dict.fromkeys(("unknown", "nobodys", "foreign", "foreign_info", "foreign_end"), not_found),
        "foreign_task": [404, "not_found"],
        "other_app": [409, "APP_MISMATCH"],
        "other_version": [409, "VERSION_MISMATCH"],
        "no_app": [404, "not_found"],
        "bad_app": [400, "invalid_request"],
        "timeout_of_reuse": [400, "invalid_request"],
        "timeout_too_long": [400, "invalid_request"],
        "timeout_zero": [400, "invalid_request"],
        "too_large": [413, "limit_exceeded"],
        "unknown_field": [400, "invalid_request"],
        "setup": [400, "invalid_request"],
        "no_key": [401, "unauthorized"],
        "no_task": [404, "not_found"],
        "after_death": [410, "SESSION_ENDED"],
        "after_finish": [410, "SESSION_ENDED"],
    }
    assert told["raised"] == "ValueError: as asked for"
    assert told["lives"] == 2
    assert told["lost"] == ["ended", "lost"]
    assert told["finish"] == {"count": 1}


def _foreign(installation: Installation) -> dict[str, Any]:
    with installation.http() as http:
        asked = {"app": "probe", "input": {}, "session": "new", "wait": True}
        made: dict[str, Any] = http.post("/compat/inference/apps/run", json=asked).json()["data"]
    return made


@pytest.mark.full
def test_files_go_in_and_out(installation: Installation) -> None:
    told = installation.client("clients/transfers.py")
    assert told["path"] == told["by_address"] == "from a file"
    assert told["input"] == [True, True]
    assert told["data"] == "from a data URI"
    assert told["base64"] == "looks like base64"
    assert told["uploaded"] == ["b.bin", 5, "application/x-b"]
    assert told["brought"] == told["once"] == "bytes"
    assert told["report"] == "a report"
    assert told["report_of_once"] == "of a run of its own"
    assert told["once_ended"] == "ended"
    assert told["files"] == [["output", "0-report.txt"]]
    assert told["input_files"] == ["input"]
    assert told["deleted"] == 1
    assert told["twice"] == 409
    assert told["outside"] == "x"
    assert told["longer"] == 400
    assert told["sealed"] == told["as_download"] == 403
    assert told["too_large"] == [413, "limit_exceeded"]


@pytest.mark.full
def test_an_app_on_the_base_class_of_the_package_runs_as_it_is(installation: Installation) -> None:
    installation.deploy("typed", packed(HERE / "apps" / "typed", PACKAGES))
    assert installation.client("clients/typed.py") == {
        "first": 1,
        "output": {"text": "AGAIN", "calls": 2},
        "report": "again pixels",
        "count": 2,
        "invalid": True,
    }


@pytest.mark.full
def test_a_client_that_vanishes_in_mid_stream_takes_nothing_with_it(installation: Installation) -> None:
    with installation.http() as http:
        asked = {"app": "probe:slow", "input": {"seconds": 1.0}, "session": "new", "session_timeout": 60}
        task = http.post("/compat/inference/apps/run", json=asked).json()["data"]
        _begin_to_read(installation, task["id"])
        with http.stream("GET", f"/compat/inference/tasks/{task['id']}/stream") as response:
            last = [json.loads(line) for line in response.iter_lines()][-1]
        assert (last["status"], last["output"]) == (10, {"slept": 1.0})
        again = {"app": "probe", "input": {}, "session": task["session_id"], "wait": True}
        assert http.post("/compat/inference/apps/run", json=again).json()["data"]["output"]["count"] == 1
        http.delete(f"/compat/inference/sessions/{task['session_id']}")


def _begin_to_read(installation: Installation, task_id: str) -> None:
    """One line of the stream, and then the connection is gone."""
    url = urlsplit(installation.endpoint)
    assert url.hostname is not None
    with socket.create_connection((url.hostname, url.port or 80), timeout=30) as gone:
        head = f"GET /compat/inference/tasks/{task_id}/stream HTTP/1.1\r\nHost: {url.netloc}\r\n"
        gone.sendall(f"{head}Authorization: Bearer {installation.key}\r\n\r\n".encode())
        assert gone.recv(64).startswith(b"HTTP/1.1 200")


@pytest.mark.full
def test_a_token_is_as_good_as_a_keypair_and_reaches_as_far_as_it_says(installation: Installation) -> None:
    made = json.loads(installation.run("admin", "token", "add", "reader", "--scope", "read", "--json").stdout)
    with httpx.Client(base_url=installation.base_url, headers={"Authorization": f"Bearer {made['token']}"}) as http:
        assert http.get("/sessions").status_code == 200
        refused = http.post("/apps/run", json={"app": "probe", "input": {}}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
