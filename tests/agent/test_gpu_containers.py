"""Kernels with GPUs on a real engine; the devices, and NVIDIA's hook that would open them, are simulated."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest

from agent.client import KernelAddress
from agent.gpu_terms import GpuSettings
from agent.gpus import Gpus
from agent.wire import Fact, KernelSpec
from domain.ids import KernelId
from tests.agent.bed import RealBed
from tests.agent.conftest import Host
from tests.clusters.hosts import CannotMakeHosts
from tests.clusters.hosts import Host as Machine
from tests.mock_gpus import MockGpus

pytestmark = [pytest.mark.simulated, pytest.mark.containers]

#: In the place of NVIDIA's: the engine calls it before a container's first process, and it says what it was told.
HOOK = """#!/usr/bin/python3
import json, os, sys
state = json.load(sys.stdin)
with open(os.path.join(state["bundle"], "config.json")) as file:
    config = json.load(file)
environ = dict(line.partition("=")[::2] for line in config["process"]["env"])
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "log"), "a") as log:
    log.write(json.dumps({"hostname": config["hostname"], **environ}) + "\\n")
"""


class Hooked(Machine):
    """A network namespace with an engine that finds a hook of NVIDIA's name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"mg{os.getpid() % 100_000}", "127.0.0.1", folder)
        self.hooks = folder / "hooks"

    def open(self) -> None:
        missing = [tool for tool in ("ip", "nsenter", "unshare", "dockerd") if not shutil.which(tool)]
        if os.geteuid() != 0 or missing:
            raise CannotMakeHosts(f"an engine with a hook cannot be made here: {missing or 'it takes root'}")
        self.hooks.mkdir()
        hook = self.hooks / "nvidia-container-runtime-hook"
        hook.write_text(HOOK)
        hook.chmod(0o755)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)
        self.start_engine()

    def start(self, log: str, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        environ = {**(env or os.environ), "PATH": f"{self.hooks}:{os.environ['PATH']}"}
        return super().start(log, *words, env=environ)

    def wait_for_engine(self) -> docker.DockerClient:
        """A client that fails leaves its socket open: none is made before somebody listens."""
        for _ in range(600):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(self.engine.removeprefix("unix://"))
                break
            time.sleep(0.05)  # a daemon that starts has no event to wait for
        return super().wait_for_engine()

    def heard(self) -> list[dict[str, str]]:
        log = self.hooks / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def close(self) -> None:
        super().close()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        subprocess.run(["ip", "netns", "del", self.name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def machine(engine: docker.DockerClient, kernel_image: str) -> Iterator[Hooked]:
    folder = Path(tempfile.mkdtemp(prefix="moorage-gpu-", dir="/var/tmp"))
    made = Hooked(folder)
    try:
        made.open()
        client = made.wait_for_engine()
        client.images.load(b"".join(engine.images.get(kernel_image).save(named=True)))
        client.close()
        yield made
    except CannotMakeHosts as reason:
        pytest.skip(str(reason))
    finally:
        made.close()
        subprocess.run(["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', str(folder)], check=False)


class Bed(Host):
    """The agent of a host with simulated GPUs."""

    mock: MockGpus

    async def begin(self, mock: MockGpus, **settings: Any) -> None:
        self.mock = mock
        self.gpus = Gpus(GpuSettings(library=mock.library, look_seconds=0.1, **settings))
        await self.gpus.open()
        await self.start()

    async def bring_up(self, kernel_id: str, devices: Mapping[str, int], **slots: int) -> Fact:
        named = {f"gpu/{uuid}": mib for uuid, mib in devices.items()}
        held = {"cpu": 1000, "mem": 256, **slots}
        await self.run(
            kernel_id, slots=held, devices=named, environ={"NVIDIA_VISIBLE_DEVICES": "all", "LD_PRELOAD": "x"}
        )
        return await self.until(kernel_id, "RUNNING", "FAILED")

    async def environ(self, kernel_id: str) -> dict[str, str]:
        """Of what runs in it."""
        kernel, run_id = self.kernel(kernel_id), str(uuid4())
        assert kernel.link is not None
        await self.kernels.runs.begin(run_id, kernel_id, kernel.state.attempt)
        kernel.ran(await kernel.link.execute(run_id, mode="batch", code="env", opts={"stdin": False}, wait_seconds=0.0))
        await self.until_ended(run_id)
        text = kernel.rings.text(run_id, 65536)
        return dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)

    def checks(self, phase: str) -> list[tuple[str, bool]]:
        assert self.gpus is not None
        return [(one.device, one.passed) for one in self.gpus.pending_checks() if one.phase == phase]


@pytest.fixture
async def bed(tmp_path: Path, shared_runtime: Path, machine: Hooked, kernel_image: str) -> AsyncIterator[Bed]:
    made = Bed(tmp_path / "data", shared_runtime, machine.engine, kernel_image)
    yield made
    await made.stop()
    await made.clear()


async def test_a_container_is_given_exactly_its_devices(
    bed: Bed, machine: Hooked, mock_gpus: MockGpus, kernel_id: str
) -> None:
    mock_gpus.divide(7, "3g.20gb")
    await bed.begin(mock_gpus)
    uuids, mig = [mock_gpus.uuid(0), mock_gpus.uuid(3)], mock_gpus.mig_uuid(7, 0)
    assert (await bed.bring_up(kernel_id, dict.fromkeys(uuids, 81000), gpu=2)).observed == "RUNNING"
    asked = machine.heard()[-1]
    assert (asked["NVIDIA_VISIBLE_DEVICES"], asked["NVIDIA_DRIVER_CAPABILITIES"]) == (
        ",".join(uuids),
        "compute,utility",
    )
    inside = await bed.environ(kernel_id)
    assert inside["NVIDIA_VISIBLE_DEVICES"] == ",".join(uuids)
    assert "LD_PRELOAD" not in inside
    assert "MOORAGE_GPU_MEM_MIB" not in inside
    await bed.end(kernel_id)
    await bed.until(kernel_id, "GONE")
    both = [(f"gpu/{uuid}", True) for uuid in uuids]
    assert (bed.checks("handover"), bed.checks("release")) == (both, both)

    divided, plain, calls = str(uuid4()), str(uuid4()), len(machine.heard())
    await bed.bring_up(divided, {mig: 20480}, gpu=1)
    assert machine.heard()[-1]["NVIDIA_VISIBLE_DEVICES"] == mig
    assert (await bed.bring_up(plain, {})).observed == "RUNNING"
    assert (await bed.environ(plain))["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert len(machine.heard()) == calls + 1  # nobody was asked for the devices of a kernel that has none


async def test_who_uses_more_than_its_share_is_ended_where_that_is_the_rule(
    bed: Bed, mock_gpus: MockGpus, kernel_id: str
) -> None:
    await bed.begin(mock_gpus, end_overuse=True, overuse_seconds=0.0)
    assert bed.gpus is not None
    await bed.bring_up(kernel_id, {mock_gpus.uuid(0): 10_000}, **{"gpu-mem": 10_000})
    assert (await bed.environ(kernel_id))["MOORAGE_GPU_MEM_MIB"] == "10000"
    pid = bed.kernel(kernel_id).pid
    mock_gpus.set(0, procs=f"{pid}:9000:10", used_mib=9004, busy=10, power_mw=200_000)
    await bed.gpus.look()
    use = bed.gpus.use(bed.kernel(kernel_id).state)
    assert (use.mem_bytes >> 20, use.power_watts) == (9004, 200.0)
    assert bed.gpus.facts()[0].shared_only is None  # a process of a session, found by its cgroup
    mock_gpus.set(0, procs=f"{pid}:30000:10", used_mib=30_004)
    ended = await bed.until(kernel_id, "EXITED")
    assert ended.exit is not None
    assert ended.exit["reason"] == "gpu_overused"
    assert ended.exit["message"].startswith("The session uses 30000 MiB of a GPU of which it has 10000 MiB")
    mock_gpus.set(0, procs=None, used_mib=4)
    assert bed.checks("watch")[0] == (f"gpu/{mock_gpus.uuid(0)}", False)
    assert [notice["kind"] for notice in ended.notices] == ["gpu_overuse"]


async def test_a_kernel_does_not_start_on_a_bad_device(bed: Bed, mock_gpus: MockGpus, kernel_id: str) -> None:
    await bed.begin(mock_gpus)
    assert bed.gpus is not None
    mock_gpus.set(1, ecc=1)
    failed = await bed.bring_up(kernel_id, {mock_gpus.uuid(1): 81000}, gpu=1)
    assert (failed.observed, (failed.exit or {})["reason"]) == ("FAILED", "device_failed")
    assert "cannot be used: its memory failed once" in (failed.exit or {})["message"]
    assert await bed.containers() == []
    assert bed.checks("handover") == [(f"gpu/{mock_gpus.uuid(1)}", False)]
    assert [fact.index for fact in bed.gpus.facts() if not fact.healthy] == [1]
    await bed.end(kernel_id)
    await bed.until(kernel_id, "GONE")
    assert bed.checks("release") == []  # it never had it


async def test_an_engine_that_hands_out_no_gpus_is_said_to(
    tmp_path: Path,
    shared_runtime: Path,
    engine_host: str,
    engine: docker.DockerClient,
    kernel_image: str,
    mock_gpus: MockGpus,
    kernel_id: str,
) -> None:
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("the engine of this machine hands out GPUs")
    bed = Bed(tmp_path / "data", shared_runtime, engine_host, kernel_image)
    await bed.begin(mock_gpus)
    try:
        failed = await bed.bring_up(kernel_id, {mock_gpus.uuid(0): 81000}, gpu=1)
        assert (failed.observed, (failed.exit or {})["reason"]) == ("FAILED", "gpu_unsupported")
        assert "install nvidia-container-toolkit" in (failed.exit or {})["message"]
        assert await bed.containers() == []
    finally:
        await bed.stop()
        await bed.clear()


async def test_a_manager_hears_of_devices_and_checks_also_when_it_was_deaf_and_the_agent_was_killed(
    machine: Hooked, kernel_image: str, mock_gpus: MockGpus
) -> None:
    bed, kernel = RealBed(machine.engine, kernel_image), KernelId(uuid4())
    names = [f"gpu/{mock_gpus.uuid(index)}" for index in (0, 1)]
    spec = KernelSpec(
        session_id=str(uuid4()),
        session_name="train",
        image=kernel_image,
        slots={"cpu": 1000, "mem": 256, "gpu": 1},
        devices={names[0]: 81000},
    )

    async def ensure(generation: int, want: str) -> None:
        there = KernelAddress(agent_id=bed.agent_id, kernel_id=kernel, attempt=1)
        await bed.agent.ensure(there, generation=generation, want=want, spec=spec if want == "RUN" else None)

    def heard(name: str, healthy: bool) -> bool:
        """Of the newest list."""
        told = bed.heard.devices[-1].devices if bed.heard.devices else bed.heard.hellos[-1].devices
        return any(one["name"] == name and one["healthy"] == healthy for one in told)

    try:
        await bed.open(gpu_library=mock_gpus.library, gpus=("0", "1"), gpu_reserve=1000, sample_seconds=0.2)
        hello = bed.heard.hellos[-1]
        assert {name: mib for name, mib in hello.resources.items() if name.startswith("gpu/")} == dict.fromkeys(
            names, 80000
        )
        assert [device["name"] for device in hello.devices] == names
        assert hello.info["gpus"]["driver"] == "570.86.15-mock"
        bed.heard.deaf = True
        mock_gpus.set(1, ecc=1)
        await ensure(1, "RUN")
        bed.heard.deaf = False
        await bed.fact(kernel, "RUNNING")
        await bed.heard.until(lambda: bool(bed.heard.checks) and heard(names[1], healthy=False))
        [check] = bed.heard.checks
        assert (check.device, check.phase, check.passed, check.kernel_id) == (names[0], "handover", True, str(kernel))
        await bed.kill()
        mock_gpus.set(1, ecc=0)
        bed.heard.devices.clear()
        await bed.start()
        assert heard(names[1], healthy=True)
        await ensure(2, "GONE")
        await bed.fact(kernel, "GONE")
        await bed.heard.until(lambda: len(bed.heard.checks) == 2)
        assert (bed.heard.checks[1].phase, bed.heard.checks[1].passed) == ("release", True)
    finally:
        await bed.close()
