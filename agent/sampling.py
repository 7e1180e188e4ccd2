"""What every running kernel uses, every few seconds, as differences between two looks at its counters.

A look is a handful of short files of the kernel's own (0.3 ms), so that a hundred kernels cost a fraction of a percent of
one core. Each kernel is looked at in its own rhythm, so that the looks are spread. Samples wait here until a manager has
taken them; what waits too long is dropped, oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from agent.gpu_terms import GpuUse
from agent.rings import RunnerError
from agent.runner_link import RunnerLink
from agent.statistics import Cgroup
from agent.store import StoredKernel
from agent.wire import Sample
from domain.session import ENDED

log = logging.getLogger("moorage.agent.sampling")
PERIOD_SECONDS: Final = 5.0
#: 100 kernels for an hour without a manager.
MOST_WAITING: Final = 72_000
#: The runner counts the files of its session: asked for less often.
_DISK_SECONDS: Final = 60.0
_DISK_ANSWER_SECONDS: Final = 3.0
_COUNTERS: Final = ("cpu_seconds", "io_read_bytes", "io_write_bytes", "oom_kills", "forks_refused", "rx", "tx")


class Sampled(Protocol):
    """What is needed of a kernel."""

    state: StoredKernel
    link: RunnerLink | None
    cgroup: Cgroup | None
    pid: int | None


class Gpus(Protocol):
    """What is needed of the host's GPUs; answers at once, from their last look."""

    def use(self, state: StoredKernel) -> GpuUse: ...


class _NoGpus:
    def use(self, state: StoredKernel) -> GpuUse:
        return GpuUse()


@dataclass(slots=True)
class _Look:
    """What the counters said, when."""

    cgroup: Cgroup
    at: float
    counters: Mapping[str, float]
    disk_at: float = 0.0
    disk_bytes: int | None = None


class Sampler:
    """`run` it beside the kernels; `pending` is told to a manager, which `acknowledged`s."""

    def __init__(
        self,
        kernels: Callable[[], Iterable[Sampled]],
        *,
        now: Callable[[], float],
        period_seconds: float = PERIOD_SECONDS,
        gpus: Gpus | None = None,
        proc: Path = Path("/proc"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.period_seconds = period_seconds
        self._kernels = kernels
        self._now = now
        self._gpus = gpus or _NoGpus()
        self._proc = proc
        self._monotonic = monotonic
        self._begun_at = now()
        self._looks: dict[str, _Look] = {}
        self._waiting: deque[Sample] = deque(maxlen=MOST_WAITING)
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while True:
                self.look()
                await asyncio.sleep(min(1.0, self.period_seconds / 4))
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)

    def pending(self) -> Sequence[Sample]:
        return list(self._waiting)

    def acknowledged(self, samples: Sequence[Sample]) -> None:
        taken = {(sample.kernel_id, sample.at) for sample in samples}
        while self._waiting and (self._waiting[0].kernel_id, self._waiting[0].at) in taken:
            self._waiting.popleft()

    def look(self) -> None:
        """At every kernel whose turn has come. A first look, and the first at a new container, only begins the count."""
        there = {kernel.state.kernel_id: kernel for kernel in self._kernels() if kernel.state.observed not in ENDED}
        for gone in self._looks.keys() - there.keys():
            del self._looks[gone]
        for kernel_id, kernel in there.items():
            if kernel.cgroup is None:  # its runner is being looked for; the count goes on afterwards
                continue
            before, now = self._looks.get(kernel_id), self._monotonic()
            if before is None or before.cgroup != kernel.cgroup:
                self._look_at(kernel, None, now)
            elif now - before.at >= self.period_seconds:
                self._look_at(kernel, before, now)

    def _look_at(self, kernel: Sampled, before: _Look | None, now: float) -> None:
        cgroup = kernel.cgroup
        assert cgroup is not None
        figures = cgroup.read()
        if "cpu_seconds" not in figures:  # it ended just now
            return
        figures["forks_refused"] = cgroup.forks_refused()
        figures["rx"], figures["tx"] = network(self._proc, kernel.pid)
        counters = {name: figures.get(name, 0) for name in _COUNTERS}
        look = _Look(cgroup, now, counters)
        if before is None:
            look = self._first(kernel, look)
        else:
            look.disk_at, look.disk_bytes = before.disk_at, before.disk_bytes
            self._waiting.append(self._sample(kernel, before, look, figures))
        self._looks[kernel.state.kernel_id] = look
        if kernel.link is not None and (before is None or now - look.disk_at >= _DISK_SECONDS):
            look.disk_at = now
            task = asyncio.ensure_future(self._ask_disk(kernel.link, kernel.state.kernel_id))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    def _first(self, kernel: Sampled, look: _Look) -> _Look:
        """A container that came up under our eyes has counted from nothing; of one that was there before, we saw nothing."""
        started_at = kernel.state.started_at
        if started_at is None:
            return replace(look, counters=dict.fromkeys(_COUNTERS, 0))
        if started_at < self._begun_at:
            return look
        age = min(max(0.0, self._now() - started_at), self.period_seconds)
        return replace(look, at=look.at - age, counters=dict.fromkeys(_COUNTERS, 0))

    def _sample(self, kernel: Sampled, before: _Look, look: _Look, figures: Mapping[str, Any]) -> Sample:
        grown = {name: max(0, look.counters[name] - before.counters[name]) for name in _COUNTERS}
        seconds = look.at - before.at
        gpu = self._gpus.use(kernel.state)
        return Sample(
            kernel_id=kernel.state.kernel_id,
            attempt=kernel.state.attempt,
            at=self._now(),
            seconds=seconds,
            cpu_seconds=grown["cpu_seconds"],
            mem_bytes=int(figures.get("mem_bytes", 0)),
            disk_bytes=look.disk_bytes,
            io_read_bytes=int(grown["io_read_bytes"]),
            io_write_bytes=int(grown["io_write_bytes"]),
            net_rx_bytes=int(grown["rx"]),
            net_tx_bytes=int(grown["tx"]),
            pids=int(figures.get("pids", 0)),
            forks_refused=int(grown["forks_refused"]),
            oom_kills=int(grown["oom_kills"]),
            gpus=gpu.devices,
            gpu_seconds=gpu.busy * seconds,
            gpu_mem_bytes=gpu.mem_bytes,
            gpu_power_watts=gpu.power_watts,
        )

    async def _ask_disk(self, link: RunnerLink, kernel_id: str) -> None:
        with contextlib.suppress(RunnerError, TimeoutError):
            async with asyncio.timeout(_DISK_ANSWER_SECONDS):
                said = (await link.status()).get("disk_bytes")
            if (look := self._looks.get(kernel_id)) is not None and isinstance(said, int):
                look.disk_bytes = said


def network(proc: Path, pid: int | None) -> tuple[int, int]:
    """Bytes received and sent over every interface of that process's network but its own loopback."""
    if pid is None:
        return 0, 0
    try:
        lines = (proc / str(pid) / "net/dev").read_text().splitlines()[2:]
    except OSError:
        return 0, 0
    received = sent = 0
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if name.strip() != "lo" and len(words) >= 9:
            received += int(words[0])
            sent += int(words[8])
    return received, sent
