"""Limits as people read them, and policies as administrators write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import moorage
import pytest

from tests.sdk.scripted import ScriptedServer, says
from tests.sdk.test_cli import Shell


def limit(name: str, most: int, used: int = 0, queued: int = 0, **more: Any) -> dict[str, Any]:
    each = name.startswith("session.") or name == "lifetime"
    free = None if each else max(0, most - used - queued)
    row = {"scope": "user", "scope_id": "1", "of": "ada@example.org", "name": name, "max": most, "used": used}
    return {**row, "queued": queued, "free": free, "waits": False, "policy": None, **more}


POLICY = {
    "name": "students",
    "description": "First year",
    "limits": [
        {"name": "cpu", "max": 8000, "waits": True},
        {"name": "session.mem", "max": 2048, "waits": False},
    ],
    "assigned": [{"scope": "project", "of": "vision"}],
    "created_at": "2026-03-01T12:00:00Z",
}


@pytest.fixture
def sh(server: ScriptedServer, tmp_path: Path) -> Shell:
    return Shell(server.endpoint, tmp_path)


def test_limits_are_shown_with_what_runs_and_what_waits(server: ScriptedServer, sh: Shell) -> None:
    rows = [
        limit("cpu", 8000, used=4000, queued=2500, waits=True, policy="students"),
        limit("mem", 32768, used=1536),
        limit("sessions", 4, used=5),
        limit("lifetime", 43200),
    ]
    server.on("GET", "/v1/quota", says({"items": rows, "next_cursor": None}))
    exit_code, out, err = sh("quota")
    assert (exit_code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1:] == [
        "cpu user ada@example.org 8 CPUs █████▒▒▒░░ 4 CPUs 2.5 CPUs 1.5 CPUs waits policy students",
        "mem user ada@example.org 32 GiB █░░░░░░░░░ 1.5 GiB 30.5 GiB refused own setting",
        "sessions user ada@example.org 4 ██████████ 5 0 refused own setting",
        "lifetime user ada@example.org 12h each session refused own setting",
    ]
    exit_code, out, _ = sh("quota", "--json")
    assert [row["queued"] for row in json.loads(out)] == [2500, 0, 0, 0]


def test_administrators_ask_for_others(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/quota", says({"items": [], "next_cursor": None}))
    assert sh("quota", "--of", "user:ada@example.org") == (0, "", "No limits bind you.\n")
    sh("quota", "--all")
    first, second = server.asked("GET", "/v1/quota")
    assert first.query["of"] == "user:ada@example.org"
    assert second.query["everybody"] == "true"


def test_a_policy_is_written_as_people_say_it(server: ScriptedServer, sh: Shell) -> None:
    server.on("POST", "/v1/policies", says(POLICY, status=201))
    exit_code, out, _ = sh("admin", "policy", "create", "students", "cpu=8:wait", "session.mem=2g", "sessions=4:refuse")
    assert exit_code == 0
    assert out.splitlines() == [
        "name         students",
        "description  First year",
        "limits       cpu          8 CPUs, beyond it sessions wait",
        "             session.mem  2 GiB",
        "assigned to  project vision",
    ]
    [asked] = server.asked("POST", "/v1/policies")
    assert asked.json["limits"] == {
        "cpu": {"max": 8, "waits": True},
        "session.mem": {"max": "2g", "waits": False},
        "sessions": {"max": 4, "waits": False},
    }


@pytest.mark.parametrize("text", ["cpu", "cpu=", "=8", "cpu=8:later"])
def test_what_is_no_limit_is_said_before_anything_is_sent(server: ScriptedServer, sh: Shell, text: str) -> None:
    exit_code, _, err = sh("admin", "policy", "create", "students", text)
    assert exit_code == 2
    assert "LIMIT=AMOUNT:wait" in err
    assert server.seen == []


def test_policies_of_the_sdk(server: ScriptedServer, client: moorage.Client) -> None:
    address = "/v1/policies/students"
    server.on("GET", "/v1/policies", says({"items": [POLICY], "next_cursor": None}))
    for method in ("GET", "PATCH"):
        server.on(method, address, says(POLICY))
    server.on("DELETE", address, says(None, status=204))
    for method in ("PUT", "DELETE"):
        server.on(method, f"{address}/assignments/user/ada%40example.org", says(POLICY))
    [found] = client.policies.list()
    assert [(one.name, one.max, one.waits) for one in found.limits] == [
        ("cpu", 8000, True),
        ("session.mem", 2048, False),
    ]
    assert client.policies.get("students") == found
    client.policies.modify("students", {"cpu": None, "mem": {"max": "4g", "waits": True}})
    [asked] = server.asked("PATCH", address)
    assert asked.json == {"limits": {"cpu": None, "mem": {"max": "4g", "waits": True}}}
    assert client.policies.assign("students", "user", "ada@example.org").assigned[0].of == "vision"
    client.policies.unassign("students", "user", "ada@example.org")
    client.policies.remove("students")
