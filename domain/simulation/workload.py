"""What is replayed: sessions with their times and amounts, as they were recorded, or made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from domain.placement import DEFAULT_GROUP

ARCHITECTURE: Final = "x86_64"
USUAL_PRIORITY: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One session of the workload. Amounts are of each of its kernels, in the scheduler's units."""

    submitted_at: datetime
    user: str
    duration_seconds: float  #: how long it works when nothing cuts it short
    cpu: int  #: thousandths
    mem: int  #: MiB
    gpu: int = 0  #: whole devices
    gpu_mem: int = 0  #: MiB: a share of one device
    gpu_model: str | None = None
    kernels: int = 1  #: more than one: a gang, on one host or several
    timeout_seconds: float | None = None  #: that its user asked for: it is ended then, and the scheduler counts on that
    starts_at: datetime | None = None  #: not before
    priority: int = USUAL_PRIORITY
    project: str = ""
    resource_group: str = DEFAULT_GROUP
    architecture: str = ARCHITECTURE
    line: int = 0  #: of the file that it comes from

    @property
    def slots(self) -> dict[str, int]:
        """Of one kernel."""
        said = {"cpu": self.cpu, "mem": self.mem, "gpu": self.gpu, "gpu-mem": self.gpu_mem}
        if self.gpu_mem:
            del said["gpu"]
        return {name: amount for name, amount in said.items() if amount}

    @property
    def ready_at(self) -> datetime:
        """When it may start at the earliest: what its waiting time is counted from."""
        return self.submitted_at if self.starts_at is None else max(self.submitted_at, self.starts_at)

    @property
    def size(self) -> str:
        """The class that the report counts it in."""
        if self.gpu_mem:
            return "GPU share"
        devices = self.gpu * self.kernels
        if self.kernels > 1 and devices:
            return "gang with GPUs"
        if self.kernels > 1:
            return "gang of CPUs"
        if not devices:
            return "CPU only"
        return "1 GPU" if devices == 1 else "2-7 GPUs" if devices < 8 else "8 GPUs and more"


SIZES: Final = ("CPU only", "GPU share", "1 GPU", "2-7 GPUs", "8 GPUs and more", "gang of CPUs", "gang with GPUs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A line that was left out, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sessions in the order of their submission."""

    jobs: tuple[Job, ...]
    source: str = ""  #: what it is, for people
    skipped: tuple[Skipped, ...] = ()  #: bad lines, where that was asked for
    notes: tuple[str, ...] = ()  #: what was assumed or left out by the rules of the format

    @property
    def users(self) -> frozenset[str]:
        return frozenset(job.user for job in self.jobs)


def demand(jobs: Iterable[Job]) -> Mapping[str, float]:
    """Slot-seconds that the workload asks for, by kind; devices that are shared by memory count as whole."""
    total = {"cpu": 0.0, "mem": 0.0, "gpu": 0.0}
    for job in jobs:
        seconds = working_seconds(job) * job.kernels
        total["cpu"] += job.cpu * seconds
        total["mem"] += job.mem * seconds
        total["gpu"] += (job.gpu or (1 if job.gpu_mem else 0)) * seconds
    return total


def working_seconds(job: Job) -> float:
    """How long it holds what it has: until it is done, or its time is over."""
    return job.duration_seconds if job.timeout_seconds is None else min(job.duration_seconds, job.timeout_seconds)
