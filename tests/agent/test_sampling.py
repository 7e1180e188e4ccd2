"""What running kernels use, from files as the kernel writes them; and what a hundred of them cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from agent.gpu_terms import GpuUse
from agent.sampling import Sampler, network
from agent.statistics import Cgroup
from agent.wire import KernelSpec, Sample

NET = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   50000       1    0    0    0     0          0         0    50000       1    0    0    0     0       0          0
  eth0:{rx:>8}      10    0    0    0     0          0         0 {tx:>8}       2    0    0    0     0       0          0
  eth1:       7       1    0    0    0     0          0         0        9       1    0    0    0     0       0          0
"""


class Host:
    """Cgroups of version 2 and a /proc, in a folder; figures are set by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernels: list[Any] = []
        self.time = 1000.0
        self.gpu = GpuUse()

    def kernel(self, devices: Mapping[str, int] | None = None, *, started_at: float = 0.0) -> Any:
        number = len(self.kernels) + 100
        (self.folder / f"proc/{number}/net").mkdir(parents=True)
        (self.folder / f"proc/{number}/cgroup").write_text(f"0::/docker/{number}\n")
        (self.folder / f"sys/docker/{number}").mkdir(parents=True)
        self.uses(number)
        kernel = SimpleNamespace(
            state=SimpleNamespace(
                kernel_id=str(uuid4()),
                attempt=1,
                observed="RUNNING",
                started_at=started_at,
                spec=KernelSpec(session_id="s", session_name="n", image="i", devices=dict(devices or {})),
            ),
            link=None,
            cgroup=Cgroup.of_pid(number, proc=self.folder / "proc", root=self.folder / "sys"),
            pid=number,
        )
        self.kernels.append(kernel)
        return kernel

    def uses(
        self,
        number: int,
        *,
        cpu: float = 0,
        mem: int = 1 << 24,
        rx: int = 0,
        tx: int = 0,
        refused: int = 0,
        kills: int = 0,
    ) -> None:
        files = {
            "cpu.stat": f"usage_usec {int(cpu * 1e6)}\nuser_usec 1\nsystem_usec 1\nnr_periods 0\n",
            "memory.current": f"{mem + 5000}\n",
            "memory.stat": "anon 9000\nfile 77\nkernel 1\n" + "x 1\n" * 40 + "inactive_file 5000\n",
            "memory.max": "max\n",
            "memory.peak": "30000\n",
            "memory.events": f"low 0\noom {kills}\noom_kill {kills}\n",
            "pids.current": "7\n",
            "pids.max": "4096\n",
            "pids.events": f"max {refused}\n",
            "io.stat": "8:0 rbytes=4096 wbytes=10 rios=1\n",
        }
        for name, text in files.items():
            (self.folder / f"sys/docker/{number}/{name}").write_text(text)
        (self.folder / f"proc/{number}/net/dev").write_text(NET.format(rx=rx, tx=tx))

    def sampler(self, period_seconds: float = 5.0) -> Sampler:
        gpus: Any = SimpleNamespace(use=lambda state: self.gpu if state.spec.devices else GpuUse())
        return Sampler(
            lambda: self.kernels,
            now=lambda: self.time,
            monotonic=lambda: self.time,
            period_seconds=period_seconds,
            gpus=gpus,
            proc=self.folder / "proc",
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_sample_is_the_difference_of_two_looks(host: Host) -> None:
    kernel = host.kernel({"gpu/GPU-1": 80000})
    sampler = host.sampler()
    sampler.look()
    assert sampler.pending() == []
    host.uses(100, cpu=2.5, mem=200 << 20, rx=1000, tx=3000, refused=2, kills=1)
    host.gpu = GpuUse(devices=1, busy=0.75, mem_bytes=1 << 30, power_watts=310.5)
    host.time += 4.9
    sampler.look()
    assert sampler.pending() == []  # not its turn
    host.time += 0.1
    sampler.look()
    assert sampler.pending() == [
        Sample(
            kernel_id=kernel.state.kernel_id,
            attempt=1,
            at=1005.0,
            seconds=5.0,
            cpu_seconds=2.5,
            mem_bytes=200 << 20,
            net_rx_bytes=1000,
            net_tx_bytes=3000,
            pids=7,
            forks_refused=2,
            oom_kills=1,
            gpus=1,
            gpu_seconds=3.75,
            gpu_mem_bytes=1 << 30,
            gpu_power_watts=310.5,
        )
    ]


def test_a_new_container_begins_a_new_count(host: Host) -> None:
    kernel, other = host.kernel(), host.kernel()
    host.kernels.remove(other)
    host.uses(100, cpu=100)
    sampler = host.sampler()
    sampler.look()
    kernel.cgroup, kernel.pid, kernel.state.started_at = other.cgroup, other.pid, host.time + 4
    host.uses(101, cpu=0.3)
    host.time += 5
    sampler.look()
    assert sampler.pending() == []
    host.uses(101, cpu=2.0)
    host.time += 4
    sampler.look()
    assert [(sample.seconds, sample.cpu_seconds) for sample in sampler.pending()] == [(5.0, 2.0)]


def test_a_container_that_was_there_before_counts_from_the_first_look(host: Host) -> None:
    host.kernel(started_at=host.time - 100)
    host.uses(100, cpu=100)
    sampler = host.sampler()
    sampler.look()
    host.uses(100, cpu=101)
    host.time += 5
    sampler.look()
    assert [sample.cpu_seconds for sample in sampler.pending()] == [pytest.approx(1.0)]


def test_a_runner_that_is_lost_and_found_again_counts_on(host: Host) -> None:
    """Neither is anything counted twice."""
    kernel = host.kernel(started_at=host.time)
    sampler = host.sampler()
    sampler.look()
    host.uses(100, cpu=1)
    host.time += 5
    sampler.look()
    cgroup, kernel.cgroup = kernel.cgroup, None
    host.time += 5
    sampler.look()
    host.uses(100, cpu=3)
    kernel.cgroup = Cgroup.of_pid(100, proc=host.folder / "proc", root=host.folder / "sys")
    assert kernel.cgroup == cgroup
    host.time += 5
    sampler.look()
    assert [(sample.seconds, sample.cpu_seconds) for sample in sampler.pending()] == [(5.0, 1.0), (10.0, 2.0)]


def test_samples_wait_until_they_are_taken(host: Host) -> None:
    host.kernel()
    host.kernel()
    sampler = host.sampler()
    for _ in range(4):
        sampler.look()
        host.time += 5
    pending = sampler.pending()
    assert len(pending) == 6
    sampler.acknowledged(pending[:4])
    assert sampler.pending() == pending[4:]
    sampler.acknowledged(pending[:4])  # told twice, taken twice
    assert sampler.pending() == pending[4:]


def test_what_has_ended_is_looked_at_no_more(host: Host) -> None:
    kernel = host.kernel()
    sampler = host.sampler()
    sampler.look()
    kernel.state.observed = "EXITED"
    host.time += 5
    sampler.look()
    assert sampler.pending() == []


def test_a_network_that_has_gone_is_none(tmp_path: Path) -> None:
    assert network(tmp_path, 1) == (0, 0)
    assert network(tmp_path, None) == (0, 0)


def test_a_hundred_kernels_cost_less_than_two_percent_of_a_core(host: Host) -> None:
    """Process time, so that a busy machine does not count; files of a disk's cache, as cgroup files are the kernel's."""
    for _ in range(100):
        host.kernel()
    sampler = host.sampler()
    sampler.look()
    rounds = 5
    started = time.process_time()
    for _ in range(rounds):
        host.time += sampler.period_seconds
        sampler.look()
    share = (time.process_time() - started) / (rounds * sampler.period_seconds)
    assert len(sampler.pending()) == rounds * 100
    assert share < 0.02, f"{100 * share:.2f} % of a core"


async def test_it_runs_by_itself(host: Host) -> None:
    host.kernel()
    sampler = host.sampler(period_seconds=0.2)
    running = asyncio.create_task(sampler.run())
    try:
        async with asyncio.timeout(5):
            while not sampler.pending():
                host.time += 0.2
                await asyncio.sleep(0)
                sampler.look()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
