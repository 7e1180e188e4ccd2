"""The hosts that a workload is replayed on: described in a TOML or JSON document, or those of an installation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from domain.errors import InvalidResources, InvalidSimulation
from domain.ids import AgentId
from domain.placement import DEFAULT_GROUP, DEVICE, Device, Host
from domain.resources import ResourceSlot, parse_memory_mib
from domain.simulation.workload import ARCHITECTURE

MOST_HOSTS: Final = 20_000
MOST_DEVICES: Final = 64
_HOST_WORDS: Final = frozenset({"name", "count", "cpu", "mem", "gpus", "labels", "group", "architecture"})
_GPU_WORDS: Final = frozenset({"model", "count", "mem"})

#: Taken when nothing else is said: 12 hosts with 80 GPUs of two models, and 4 without.
EXAMPLE: Final = """\
name = "example"

[[hosts]]
name = "a100"
count = 8
cpu = 96
mem = "768g"
gpus = { model = "NVIDIA A100-SXM4-40GB", count = 8, mem = "40g" }

[[hosts]]
name = "h100"
count = 2
cpu = 128
mem = "1t"
gpus = { model = "NVIDIA H100 80GB HBM3", count = 8, mem = "80g" }

[[hosts]]
name = "cpu"
count = 4
cpu = 128
mem = "512g"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Hosts, empty."""

    name: str
    hosts: tuple[Host, ...]

    def capacity(self, group: str | None = None) -> Mapping[str, int]:
        """Of all hosts, or those of a group: thousandths of CPUs, MiB, and devices."""
        total = {"cpu": 0, "mem": 0, "gpu": 0}
        for host in self.hosts:
            if group is None or host.resource_group == group:
                total["cpu"] += host.capacity.get("cpu", 0)
                total["mem"] += host.capacity.get("mem", 0)
                total["gpu"] += sum(name.startswith(DEVICE) for name in host.capacity)
        return total

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(host.resource_group for host in self.hosts)

    @property
    def models(self) -> Mapping[str, int]:
        """How many devices of each model there are."""
        counted: dict[str, int] = {}
        for host in self.hosts:
            for device in host.devices:
                counted[device.model] = counted.get(device.model, 0) + 1
        return counted


def described(document: Mapping[str, Any], name: str) -> Fleet:
    """The fleet of a document with a list `hosts`; raises InvalidSimulation naming what is wrong in it."""
    where = f"Fleet {name}"
    _only(document, {"name", "hosts"}, where)
    entries = document.get("hosts")
    if not isinstance(entries, list) or not entries:
        raise InvalidSimulation(f"{where} has no hosts: describe them in a list [[hosts]].")
    hosts: list[Host] = []
    for number, entry in enumerate(entries, 1):
        hosts += _hosts(entry, number, f"{where}, hosts entry {number}")
        if len(hosts) > MOST_HOSTS:
            raise InvalidSimulation(f"{where} has more than {MOST_HOSTS} hosts.")
    if len({host.id for host in hosts}) < len(hosts):
        raise InvalidSimulation(f"{where} has two hosts of one name: give each entry a name of its own.")
    return Fleet(name=str(document.get("name") or name), hosts=tuple(hosts))


def _hosts(entry: object, number: int, where: str) -> list[Host]:
    if not isinstance(entry, dict):
        raise InvalidSimulation(f"{where} is no table.")
    _only(entry, _HOST_WORDS, where)
    for needed in ("cpu", "mem"):
        if needed not in entry:
            raise InvalidSimulation(f"{where} does not say how much {needed} a host has.")
    try:
        amounts = dict(ResourceSlot(cpu=entry["cpu"], mem=entry["mem"]))
    except InvalidResources as error:
        raise InvalidSimulation(f"{where}: {error.message}") from None
    if set(amounts) != {"cpu", "mem"}:
        raise InvalidSimulation(f"{where}: a host has some CPU and some memory.")
    labels = entry.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise InvalidSimulation(f"{where}: labels are a table of words.")
    kinds = _gpus(entry.get("gpus", []), where)
    count = _count(entry.get("count", 1), f"{where}, count", MOST_HOSTS)
    stem = _word(entry.get("name", f"host{number}"), f"{where}, name")
    made = []
    for each in range(1, count + 1):
        host = f"{stem}-{each}" if count > 1 else stem
        devices = [(f"{DEVICE}{host}-{at}", *kind) for at, kind in enumerate(kinds)]
        capacity = amounts | {device: mib for device, _, mib in devices}
        made.append(
            Host(
                id=AgentId(host),
                architecture=_word(entry.get("architecture", ARCHITECTURE), f"{where}, architecture"),
                free=capacity,
                capacity=capacity,
                resource_group=_word(entry.get("group", DEFAULT_GROUP), f"{where}, group"),
                labels=labels,
                devices=tuple(Device(name=device, model=model) for device, model, _ in devices),
                address=host,
            )
        )
    return made


def _gpus(given: object, where: str) -> list[tuple[str, int]]:
    """Model and MiB of each device of a host."""
    kinds: list[tuple[str, int]] = []
    for kind in given if isinstance(given, list) else [given]:
        if not isinstance(kind, dict) or not isinstance(kind.get("model"), str):
            raise InvalidSimulation(
                f'{where}: gpus are a table, or a list of tables, such as {{ model = "A100", count = 8, mem = "40g" }}.'
            )
        _only(kind, _GPU_WORDS, f"{where}, gpus")
        try:
            mib = parse_memory_mib(kind.get("mem", "80g"))
        except InvalidResources as error:
            raise InvalidSimulation(f"{where}, gpus: {error.message}") from None
        if not mib:
            raise InvalidSimulation(f"{where}: a GPU has some memory.")
        kinds += [(kind["model"], mib)] * _count(kind.get("count", 1), f"{where}, count of gpus", MOST_DEVICES)
    if len(kinds) > MOST_DEVICES:
        raise InvalidSimulation(f"{where}: a host has at most {MOST_DEVICES} GPUs.")
    return kinds


def _only(given: Mapping[str, Any], known: Sequence[str] | frozenset[str] | set[str], where: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise InvalidSimulation(
            f"{where} has the word '{unknown[0]}', which is not known; known: {', '.join(sorted(known))}."
        )


def _count(value: object, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidSimulation(f"{where} is a whole number from 1 to {most}.")
    return value


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise InvalidSimulation(f"{where} is a word of at most 64 characters.")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a fleet has, for the report."""

    hosts: int
    cpus: float
    mem_gib: float
    gpus: Mapping[str, int] = field(default_factory=dict)


def totals(fleet: Fleet) -> Totals:
    capacity = fleet.capacity()
    return Totals(
        hosts=len(fleet.hosts), cpus=capacity["cpu"] / 1000, mem_gib=capacity["mem"] / 1024, gpus=dict(fleet.models)
    )
