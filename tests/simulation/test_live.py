"""What is asked of an installation. Its answers here are made up; tests/actions and the SDK's tests hold the real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace as Fake
from typing import Any

import pytest
from moorage._models import Agent, Device, ResourceGroup

from domain.errors import InvalidSimulation
from domain.simulation.trace import read
from manager.simulation import live
from manager.simulation.command import simulate

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
AGENT: dict[str, Any] = {
    "id": "host-1", "hostname": "host-1", "architecture": "x86_64", "version": "1", "schedulable": True, "lost": False,
    "capacity": {"cpu": 8, "mem": 32768, "gpu/GPU-1": 40960, "gpu/GPU-2": 40960}, "used": {"cpu": 4}, "images": [],
    "info": {"address": "10.0.0.1"}, "kernels": 1, "resource_group": "lab", "labels": {"zone": "a"},
}  # fmt: skip
DEVICE: dict[str, Any] = {
    "agent": "host-1", "device": "GPU-1", "model": "NVIDIA A100", "kind": "gpu", "state": "idle", "memory_mib": 40960,
    "offered_mib": 40000, "links": {"GPU-2": 90}, "numa": 0,
}  # fmt: skip
GROUP: dict[str, Any] = {
    "name": "lab", "ordering": "fifo", "fit": "spread", "backfill": False, "gpu_sharing": True, "half_life_seconds": 3600.0,
}  # fmt: skip
RAN: dict[str, Any] = {
    "submitted_at": "2026-03-02T09:00:00.123456Z", "user": "ann@example.org", "project": "vision", "cpu": 2, "mem": 4096,
    "duration": 60.5, "gpu": None, "gpu_mem": 20480, "gpu_model": "a100", "kernels": 1, "timeout": 3600.0, "starts_at": None,
    "priority": 10, "resource_group": "lab", "architecture": "x86_64",
}  # fmt: skip


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Fake:
    taken = {**DEVICE, "device": "GPU-2", "out_since": NOW.isoformat()}
    client = Fake(
        agents=Fake(list=lambda: [Agent.from_json(AGENT), Agent.from_json({**AGENT, "id": "gone", "lost": True})]),
        devices=Fake(list=lambda: [Device.from_json(DEVICE), Device.from_json(taken)]),
        resource_groups=Fake(get=lambda name: ResourceGroup.from_json({**GROUP, "name": name})),
        trace=lambda **given: {"sessions": [RAN, {**RAN, "user": "bob@example.org"}], "running": 1, "never_ran": 0},
    )

    @contextmanager
    def connect() -> Iterator[Any]:
        yield client

    monkeypatch.setattr(live, "connect", connect)
    return client


def test_the_hosts_of_an_installation_are_taken_as_if_they_were_empty(installation: Fake) -> None:
    [host] = live.live_fleet().hosts
    assert host.capacity == host.free == {"cpu": 8000, "mem": 32768, "gpu/GPU-1": 40000}
    assert (host.id, host.resource_group, host.labels, host.address) == ("host-1", "lab", {"zone": "a"}, "10.0.0.1")
    assert [(one.name, one.model, one.links) for one in host.devices] == [
        ("gpu/GPU-1", "NVIDIA A100", {"gpu/GPU-2": 90})
    ]


def test_an_installation_without_hosts_is_no_fleet(installation: Fake) -> None:
    installation.agents = Fake(list=list)
    with pytest.raises(InvalidSimulation, match="no host"):
        live.live_fleet()


def test_a_policy_is_taken_from_a_group(installation: Fake) -> None:
    policy = live.live_policy("lab")
    assert (policy.name, policy.fair_share, policy.spread, policy.backfill) == ("live:lab", False, True, False)
    assert (policy.gpu_sharing, policy.half_life_seconds) == (True, 3600.0)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_what_has_run_is_written_down_and_can_be_replayed(
    installation: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / name
    simulate.main(["record", "--anonymous", "--out", str(out)], standalone_mode=False)
    told = capsys.readouterr().err
    assert f"2 sessions written to {out}" in told
    assert "1 left out: sessions that still run" in told
    simulate.main(["record", "--out", str(out), "--anonymous", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["jobs"] == 2
    simulate.main(["record", "--json"], standalone_mode=False)
    users = [json.loads(line)["user"] for line in capsys.readouterr().out.splitlines()]
    assert users == ["ann@example.org", "bob@example.org"]
    first, second = read(out.read_text().splitlines(keepends=True)).jobs
    assert (first.user, second.user, first.project) == ("user1", "user2", "project1")
    assert (first.cpu, first.gpu_mem, first.timeout_seconds, first.resource_group) == (2000, 20480, 3600, "lab")
    assert "ann" not in out.read_text()
    simulate.main([str(out), "--fleet", "live", "--policy", "live:lab"], standalone_mode=False)
    assert "on live: 1 host, 8 CPUs" in capsys.readouterr().out
