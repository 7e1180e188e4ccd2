"""What is said of a host, from what its engine says."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent.doctor import examine, is_own, name_servers, of_engine
from domain.doctor import Level, release

WELL = {
    "ServerVersion": "26.1.3", "LiveRestoreEnabled": True, "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True,
    "CpuCfsQuota": True, "SecurityOptions": ["name=seccomp,profile=default", "name=userns"], "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"]], "IPv4Forwarding": True, "DefaultRuntime": "runc", "Runtimes": {"runc": {}},
}  # fmt: skip
PARTS = [{"Name": "runc", "Version": "1.3.4"}]


def not_ok(info: dict[str, Any], parts: list[dict[str, str]] = PARTS) -> dict[str, Level]:
    return {one.subject: one.level for one in of_engine(info, parts) if one.level is not Level.OK}


def test_a_host_that_is_well() -> None:
    assert not_ok(WELL) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ServerVersion": "19.03.1"}, {"engine": Level.BAD}),
        ({"ServerVersion": None}, {"engine": Level.BAD}),
        ({"LiveRestoreEnabled": False}, {"live-restore": Level.WARN}),
        ({"PidsLimit": False}, {"limits": Level.BAD}),
        ({"SecurityOptions": []}, {"seccomp": Level.BAD}),
        ({"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, {"image store": Level.WARN}),
        ({"IPv4Forwarding": False}, {"network": Level.WARN}),
    ],
)
def test_what_is_amiss_is_said(change: dict[str, Any], said: dict[str, Level]) -> None:
    assert not_ok({**WELL, **change}) == said


def test_what_is_said_of_the_runtime_and_of_user_namespaces() -> None:
    def told(runtime: str, **info: Any) -> dict[str, tuple[Level, str]]:
        return {one.subject: (one.level, one.found) for one in of_engine({**WELL, **info}, PARTS, runtime)}

    assert told("")["runtime"] == (
        Level.OK,
        "runc runs sessions; the engine has runc; sessions share this host's kernel",
    )
    assert told("kata")["runtime"] == (Level.BAD, "kata is to run sessions; the engine has runc")
    assert told("runsc", Runtimes={"runc": {}, "runsc": {}})["runtime"][0] is Level.WARN
    remapped = told("", DockerRootDir="/var/lib/docker/100000.100001")["user namespaces"][1]
    assert remapped.startswith("remapped: root inside is uid 100000")
    assert told("", SecurityOptions=["name=seccomp"])["user namespaces"][1].startswith("not remapped")


def test_name_servers_that_are_closed_to_sessions_are_found(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("# a\nnameserver 169.254.169.254\nnameserver 192.0.2.9\nnameserver x\n")
    found = name_servers(tmp_path / "resolv.conf")
    assert [(str(one), one.is_link_local) for one in found] == [("169.254.169.254", True), ("192.0.2.9", False)]
    assert (is_own(ip_address("127.0.0.1")), is_own(ip_address("192.0.2.199"))) == (True, False)


@pytest.mark.parametrize(
    ("name", "version", "holes"),
    [
        ("runc", "1.0.0-rc6", ["CVE-2024-21626", "CVE-2025-31133"]),
        ("runc", "1.1.5+ds1", ["CVE-2024-21626", "CVE-2025-31133"]),
        ("runc", "1.1.12", ["CVE-2025-31133"]),
        ("nvidia-container-toolkit", "1.16.1", ["CVE-2024-0132", "CVE-2025-23266"]),
        ("nvidia-container-toolkit", "1.17.8", []),
    ],
)
def test_known_ways_out_of_containers_are_named(name: str, version: str, holes: list[str]) -> None:
    said = [one.meaning for one in of_engine(WELL, [{"Name": name, "Version": version}]) if one.level is Level.WARN]
    assert [
        hole
        for hole in ("CVE-2024-21626", "CVE-2025-31133", "CVE-2024-0132", "CVE-2025-23266")
        if hole in "".join(said)
    ] == holes


def test_numbers_of_versions() -> None:
    assert (release("v1.1.5+ds1-1"), release("20.10.24+dfsg1"), release("dev")) == ((1, 1, 5), (20, 10, 24), ())


async def test_a_host_that_has_not_joined(tmp_path: Path) -> None:
    [said] = await examine(tmp_path)
    assert (said.level, "has not joined" in said.found) == (Level.BAD, True)
