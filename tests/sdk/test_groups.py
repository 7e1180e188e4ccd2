"""Resource groups, shares and hosts out of use, as people type and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import moorage
import pytest

from tests.sdk.scripted import ScriptedServer, says
from tests.sdk.test_cli import Shell

GROUP: dict[str, Any] = {
    "name": "gpu",
    "description": "Devices",
    "ordering": "fair_share",
    "fit": "spread",
    "backfill": True,
    "gpu_sharing": True,
    "half_life_seconds": 259200.0,
    "open": False,
    "active": True,
    "may_use": True,
    "agents": 3,
    "agents_ready": 2,
    "sessions": 4,
    "pending": 1,
    "created_at": "2026-03-01T12:00:00Z",
    "access": [{"scope": "user", "of": "ada@example.org"}],
    "weights": [{"user": "ada@example.org", "weight": 2.0}],
}
SHARE: dict[str, Any] = {
    "resource_group": "gpu",
    "user": "ada@example.org",
    "weight": 2.0,
    "held": {"cpu": 2.0, "mem": 4096.0, "gpu": 1.5},
    "past": {"cpu": 0.25, "mem": 0.2},
    "share": 0.125,
    "place": 1,
    "users": 3,
}
SHARES = {
    "items": [SHARE],
    "groups": [{"resource_group": "gpu", "capacity": {"cpu": 16, "mem": 65536, "gpu": 4}, "explanation": "In turn."}],
}
AGENT: dict[str, Any] = {
    "id": "host-7",
    "hostname": "host-7",
    "architecture": "x86_64",
    "version": "1",
    "schedulable": False,
    "lost": False,
    "capacity": {"cpu": 16, "mem": 65536},
    "used": {"cpu": 2, "mem": 4096},
    "kernels": 2,
    "images": [],
    "info": {},
    "last_seen_at": None,
    "created_at": "2026-03-01T12:00:00Z",
    "resource_group": "gpu",
    "labels": {"zone": "b"},
    "cordoned_at": "2026-03-01T12:00:00Z",
    "cordon_reason": "a fan is loud",
    "draining": True,
    "drain_moves": True,
    "drain_until": None,
    "drained_at": None,
}


@pytest.fixture
def sh(server: ScriptedServer, tmp_path: Path) -> Shell:
    return Shell(server.endpoint, tmp_path)


def told(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_groups_are_listed_and_shown(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/resource-groups", says({"items": [GROUP], "next_cursor": None}))
    server.on("GET", "/v1/resource-groups/gpu", says(GROUP))
    assert told(sh("resource-group", "ls")[1])[1] == (
        "gpu 2 of 3 ready 4 1 fair share, half-life 3d spread user ada@example.org Devices"
    )
    shown = told(sh("resource-group", "show", "gpu")[1])
    assert "sessions 4 with a host, 1 waiting" in shown
    assert "weights ada@example.org 2" in shown
    assert json.loads(sh("resource-group", "show", "gpu", "--json")[1])["half_life_seconds"] == 259200


def test_a_share_is_told_with_what_it_means(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/shares", says(SHARES))
    exit_code, out, err = sh("share", "gpu")
    assert (exit_code, err) == (0, "")
    assert told(out) == [
        "gpu: of 16 CPUs, 64g, 4 GPUs",
        "PLACE USER SHARE WEIGHT HOLDS HELD BEFORE (MEAN)",
        "1 of 3 ada@example.org 12.5 % 2 2 CPUs, 4g, 1.5 GPUs 0.25 CPUs",
        "In turn.",
    ]
    assert server.asked("GET", "/v1/shares")[0].query["resource_group"] == "gpu"
    assert json.loads(sh("admin", "resource-group", "usage", "--json")[1])["items"][0]["share"] == 0.125


def test_a_group_is_made_as_people_say_it(server: ScriptedServer, sh: Shell) -> None:
    server.on("POST", "/v1/resource-groups", says(GROUP, 201))
    server.on("POST", "/v1/resource-groups/gpu/access", says(GROUP))
    server.on("PUT", "/v1/resource-groups/gpu/weights/ada%40example.org", says(GROUP))
    assert sh("admin", "resource-group", "create", "gpu", "--half-life", "3d", "--closed", "--gpu-sharing")[0] == 0
    sent = server.asked("POST", "/v1/resource-groups")[0].json
    assert sent == {"name": "gpu", "half_life_seconds": 259200.0, "open": False, "gpu_sharing": True}
    assert sh("admin", "resource-group", "create", "gpu", "--half-life", "soon")[0] == 2
    assert sh("admin", "resource-group", "allow", "gpu", "--user", "ada@example.org", "--project", "vision")[0] == 0
    sent = server.asked("POST", "/v1/resource-groups/gpu/access")[0].json
    assert sent == {"allowed": True, "users": ["ada@example.org"], "projects": ["vision"], "domains": []}
    assert sh("admin", "resource-group", "share", "gpu", "ada@example.org")[0] == 2
    assert sh("admin", "resource-group", "share", "gpu", "ada@example.org", "--usual")[0] == 0
    assert server.asked("PUT", "/v1/resource-groups/gpu/weights/ada%40example.org")[0].json == {"weight": None}


def test_a_host_says_why_it_takes_nothing(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/agents", says({"items": [AGENT], "next_cursor": None}))
    assert "draining, 2 left (a fan is loud)" in sh("admin", "agent", "ls")[1]
    server.on("POST", "/v1/agents/host-7/drain", says(AGENT))
    server.on("GET", "/v1/agents/host-7", says({**AGENT, "kernels": 0, "drained_at": "2026-03-01T12:00:00Z"}))
    exit_code, out, _ = sh("admin", "agent", "drain", "host-7", "--move-batch", "--force", "2h", "--wait")
    assert exit_code == 0
    assert "drained" in out
    assert server.asked("POST", "/v1/agents/host-7/drain")[0].json == {"move_batch": True, "force_after": 7200.0}
    server.on("PATCH", "/v1/agents/host-7", says(AGENT))
    assert sh("admin", "agent", "modify", "host-7", "--label", "zone=b", "--label", "disk")[0] == 0
    assert server.asked("PATCH", "/v1/agents/host-7")[0].json == {"labels": {"zone": "b", "disk": None}}


def test_a_session_asks_for_its_place(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("POST", "/v1/sessions", says({"id": "0" * 32, "name": "train", "status": "RUNNING"}, 201))
    client.sessions.create(
        image="python", name="train", resource_group="gpu", host_labels={"zone": "b"}, apart_from={"job": "x"}
    )
    sent = server.asked("POST", "/v1/sessions")[0].json
    assert (sent["resource_group"], sent["host_labels"], sent["apart_from"]) == ("gpu", {"zone": "b"}, {"job": "x"})
    assert "agent" not in sent
