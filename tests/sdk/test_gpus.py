"""GPUs as people ask for them, and as they are shown."""

from __future__ import annotations

from typing import Any

import moorage
import pytest
from moorage._wire import gpus

from tests.sdk.scripted import BASE, ScriptedServer, refuses, says, session
from tests.sdk.test_cli import Shell, sh

__all__ = ["sh"]  # the fixture
AT = "2026-03-01T12:00:00Z"
ONE, TWO = "GPU-1111aaaa-0000", "GPU-2222bbbb-0000"


@pytest.mark.parametrize(
    ("given", "number", "model"),
    [
        (None, None, None), (2, 2, None), ("2", 2, None), ("h100", 1, "h100"), ("h100:2", 2, "h100"), ("0.5", 0.5, None),
        ("NVIDIA A40:1", 1, "NVIDIA A40"), ("a100:0", 0, "a100"),
    ],
)  # fmt: skip
def test_a_number_a_model_or_both(given: Any, number: float | None, model: str | None) -> None:
    assert gpus(given) == (number, model)


@pytest.mark.parametrize(
    "given", ["", ":2", "h100:", "h100:x", "-1", "h100:-1", "a:b:1", "1:h100", "h100: 1", "9" * 10]
)
def test_what_is_neither(given: str) -> None:
    with pytest.raises(ValueError, match="neither a number of GPUs nor MODEL:NUMBER"):
        gpus(given)


def asked(server: ScriptedServer, path: str = "/v1/sessions") -> dict[str, Any]:
    fields: dict[str, Any] = server.asked("POST", path)[-1].json
    return {name: fields[name] for name in ("resource_slots", "gpu_model", "main", "worker") if name in fields}


PLAIN = {"cpu": 1, "mem": "1g"}


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"gpu": 2}, {"resource_slots": {**PLAIN, "gpu": 2}}),
        ({"gpu": "h100:2"}, {"resource_slots": {**PLAIN, "gpu": 2}, "gpu_model": "h100"}),
        ({"gpu_mem": "20g"}, {"resource_slots": {**PLAIN, "gpu-mem": "20g"}}),
        ({"gpu": "h100", "gpu_mem": 512}, {"resource_slots": {**PLAIN, "gpu": 1, "gpu-mem": 512}, "gpu_model": "h100"}),
        ({"gpu": 1, "gpu_model": "a40"}, {"resource_slots": {**PLAIN, "gpu": 1}, "gpu_model": "a40"}),
    ],
)
def test_what_the_server_is_asked(server: ScriptedServer, client: moorage.Client, settings: Any, fields: Any) -> None:
    server.on("POST", "/v1/sessions", says(session(), status=201))
    client.sessions.create("demo", wait=False, **settings)
    assert asked(server) == fields


def test_all_devices_of_a_cluster_are_of_one_model(server: ScriptedServer, client: moorage.Client) -> None:
    path = "/v1/sessions/cluster"
    server.on("POST", path, says(session(), status=201))
    client.sessions.create_cluster("demo", gpu_mem="4g", worker={"gpu": "h100:2"}, wait=False)
    assert asked(server, path) == {
        "resource_slots": {**PLAIN, "gpu-mem": "4g"},
        "gpu_model": "h100",
        "worker": {"resource_slots": {**PLAIN, "gpu": 2}},
    }
    with pytest.raises(ValueError, match="of one model, and not of a40 and h100"):
        client.sessions.create_cluster("demo", gpu="a40", worker={"gpu": "h100:2"}, wait=False)


def test_a_queued_session_asks_for_others(server: ScriptedServer, sh: Shell) -> None:
    server.on("PATCH", BASE, says(session()))
    assert sh("modify", "demo", "--gpu-mem", "20g")[0] == 0
    assert server.asked("PATCH", BASE)[-1].json == {"resource_slots": {"gpu-mem": "20g"}}
    assert sh("create", "demo", "--gpu", "x:y")[0] == 2


def a_device(uuid: str, index: int, **changes: Any) -> dict[str, Any]:
    fields = {
        "agent": "host-1", "device": uuid, "model": "NVIDIA H100", "kind": "gpu", "state": "free", "memory_mib": 81920,
        "offered_mib": 81920, "index": index, "healthy": True, "holders": [],
    }  # fmt: skip
    return fields | changes


HOLDER = {
    "session_id": "1", "session": "train", "owner": "AK", "project": "vision", "kernel": "main1", "held_mib": 20480,
    "whole": False, "busy": 0.5, "used_mib": 900.0, "power_watts": 300.0,
}  # fmt: skip
DEVICES = [
    a_device(ONE, 0, state="shared", holders=[HOLDER]),
    a_device(TWO, 1, state="out", out_by="health", out_reason="XID 79", healthy=False),
]


def test_administrators_see_who_holds_and_uses_what(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/devices", says({"items": DEVICES, "next_cursor": None}))
    _, out, _ = sh("admin", "gpu", "ls")
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["host-1", "0", "GPU-1111aaaa", "NVIDIA", "H100", "80g", "shared", "train", "20g"],
        ["host-1", "1", "GPU-2222bbbb", "NVIDIA", "H100", "80g", "out", "health:", "XID", "79"],
    ]
    _, out, _ = sh("top", "--gpu")
    assert "train    AK     20g of 80g  50 %  900 MiB  300 W" in out
    assert "(out)" in out


@pytest.mark.parametrize("name", [ONE, f"gpu/{ONE}", "gpu-1111", "host-1:0"])
def test_a_device_is_named_by_what_one_sees_of_it(server: ScriptedServer, sh: Shell, name: str) -> None:
    address = f"/v1/agents/host-1/devices/{ONE}/out"
    server.on("GET", "/v1/devices", says({"items": DEVICES, "next_cursor": None}))
    server.on("POST", address, says(DEVICES[0] | {"state": "out"}))
    exit_code, out, err = sh("admin", "gpu", "out", name, "--reason", "fan")
    assert (exit_code, out) == (0, "host-1:0 GPU-1111aaaa out\n")
    assert "train (AK) holds it as long as it lives" in err
    assert server.asked("POST", address)[-1].json == {"reason": "fan"}


def test_what_is_no_device_and_what_stays_out(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/devices", says({"items": DEVICES, "next_cursor": None}))
    server.on("POST", f"/v1/agents/host-1/devices/{TWO}/in", refuses(409, "device_unhealthy", "It stays out."))
    for name in ("GPU-", "GPU-3", "host-2:0", ""):
        exit_code, _, err = sh("admin", "gpu", "in", name)
        assert exit_code == 3, name
        assert "'moorage admin gpu ls' lists them" in err
    assert sh("admin", "gpu", "in", "host-1:1")[2] == "moorage: It stays out.\n"


def test_owners_see_what_their_devices_are(server: ScriptedServer, sh: Shell) -> None:
    check = {
        "phase": "handover",
        "passed": True,
        "message": "GPU 0 is fit.",
        "at": AT,
        "details": {"temperature_c": 35},
    }
    bad = check | {"passed": False, "message": "3 pages are to be retired.", "details": {}}
    plain = {"kernel": "main1", "agent": "host-1", "model": "NVIDIA H100", "memory_mib": 81920, "held": True, "numa": 0}
    devices = [
        plain | {"device": ONE, "index": 0, "kind": "share", "held_mib": 20480, "share": 0.25, "links": {TWO: 90},
                 "driver": "570", "cuda": "12.8", "simulated": True, "checks": [check]},
        plain | {"device": TWO, "index": 1, "kind": "whole", "held_mib": 81920, "out_reason": "XID 79", "checks": []},
    ]  # fmt: skip
    server.on("GET", f"{BASE}/gpus", says({
        "session_id": "1", "name": "demo", "devices": devices,
        "used": [{"kernel": "main1", "devices": 2, "busy": 0.5, "used_mib": 900.0, "power_watts": 300.0}],
        "earlier": [{"attempt": 1, "agent": "host-2", "device": TWO, "check": bad}],
        "guarantees": [{"kind": "share", "enforced": "A watcher.", "not_enforced": "Time."}],
    }))  # fmt: skip
    out = sh("info", "demo", "--gpu")[1]
    for said in (
        "main1 on host-1: GPU 0 NVIDIA H100, a share of 20g of 80g (25 %)",
        f"{ONE}, NUMA node 0, driver 570, CUDA up to 12.8, simulated: made up by a test",
        "one NVLink away from GPU 1",
        "GPU 0 is fit. (35 °C)",
        "main1 on host-1: GPU 1 NVIDIA H100, all of its 80g",
        "taken out meanwhile: XID 79; it is yours until you give it back",
        "main1 uses now: 0.50 of 2 GPUs, 900 MiB, 300 W",
        "try 1 on host-2: GPU-2222bbbb handed over",
        "BAD: 3 pages are to be retired.",
        "Seen to, of shares: A watcher.",
        "Not seen to: Time.",
    ):
        assert said in out, said
