"""Whether anybody in the queue could fit at all, found without planning: a bound that is never too strict.

It spares the plan at most events of a busy fleet. What it lets through, the plan decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from domain.ids import AgentId
from domain.placement import DEVICE, GPU, GPU_SHARE, Host
from domain.scheduler.devices import is_of_model
from domain.simulation.workload import Job

#: What matters of a job for whether it fits: group, architecture, model, kernels, and the amounts of each kernel.
Shape: TypeAlias = tuple[str, str, str | None, int, tuple[tuple[str, int], ...]]


def shape(job: Job) -> Shape:
    """Equal for jobs that fit at the same times."""
    return job.resource_group, job.architecture, job.gpu_model, job.kernels, tuple(sorted(job.slots.items()))


class _Side:
    """A host's free amounts, as they are asked for."""

    __slots__ = ("cpu", "devices", "mem")

    def __init__(self, host: Host, models: Mapping[str, str], free: Mapping[str, int]) -> None:
        self.cpu, self.mem = free.get("cpu", 0), free.get("mem", 0)
        self.devices = [
            (models.get(name, ""), amount, amount == host.capacity[name])
            for name, amount in free.items()
            if amount > 0 and name.startswith(DEVICE)
        ]

    def kernels(self, wanted: Shape) -> int:
        """How many kernels of a shape fit here."""
        most = 1 << 30
        _, _, model, _, slots = wanted
        for name, amount in slots:
            if name == "cpu":
                most = min(most, self.cpu // amount)
            elif name == "mem":
                most = min(most, self.mem // amount)
            elif name == GPU:
                most = min(most, sum(idle and is_of_model(of, model) for of, _, idle in self.devices) // amount)
            elif name == GPU_SHARE:
                most = min(most, sum(free // amount for of, free, _ in self.devices if is_of_model(of, model)))
            if not most:
                return 0
        return most


class Room:
    """Free amounts of all hosts, and which shapes of the queue they have room for."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self._hosts = {host.id: host for host in hosts}
        self._models = {
            host.id: {device.name: device.model for device in host.devices} for host in self._hosts.values()
        }
        self._sides = {host.id: _Side(host, self._models[host.id], host.free) for host in self._hosts.values()}
        self._alike: dict[tuple[str, str], list[AgentId]] = {}
        for host in self._hosts.values():
            self._alike.setdefault((host.resource_group, host.architecture), []).append(host.id)
        self._full: set[Shape] = set()  #: for these there is no room, until a host has more

    def set(self, host: Host) -> None:
        """The host has other free amounts now."""
        self._hosts[host.id] = host
        self._sides[host.id] = _Side(host, self._models[host.id], host.free)

    def freed(self, host_ids: Iterable[AgentId], waiting: Iterable[Shape]) -> None:
        """These hosts have more than before."""
        sides = [(self._hosts[host], self._sides[host]) for host in host_ids]
        for wanted in waiting:
            if wanted in self._full and any(
                (host.resource_group, host.architecture) == wanted[:2] and side.kernels(wanted) for host, side in sides
            ):
                self._full.discard(wanted)

    def fits(self, wanted: Shape) -> bool:
        """Whether there may be room for one of this shape."""
        if wanted in self._full:
            return False
        needed = wanted[3]
        for host in self._alike.get(wanted[:2], ()):
            needed -= self._sides[host].kernels(wanted)
            if needed <= 0:
                return True
        self._full.add(wanted)
        return False
