"""A workload that is made up, by a seed: days and nights, users of unequal appetites, short and long, alone and in gangs."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random
from typing import Final

from domain.errors import InvalidSimulation
from domain.placement import DEFAULT_GROUP
from domain.simulation.fleet import Fleet
from domain.simulation.workload import ARCHITECTURE, Job, Workload, demand

PERIODS: Final = {"day": 1, "week": 7, "month": 28}
_MONDAY: Final = datetime(2026, 1, 5, tzinfo=UTC)
#: How busy an hour of the day is, and a day of the week.
_HOURS: Final = (2, 2, 1, 1, 1, 1, 2, 4, 8, 14, 17, 16, 13, 15, 18, 18, 17, 15, 11, 8, 7, 6, 5, 3)
_DAYS: Final = (1.0, 1.05, 1.1, 1.05, 0.9, 0.35, 0.3)
_NAMES: Final = (
    "amara bela chen dana emre fumi goro hana ines jonas kiran lena mika nadia omar petra quinn rosa sami tara ugo vera"
    " wen xenia yuki zoe"
).split()
#: Timeouts that people ask for.
_TIMEOUTS: Final = tuple(hours * 3600.0 for hours in (1, 2, 4, 8, 12, 24, 48, 96, 168))
_LONGEST: Final = _TIMEOUTS[-1]


def generate(
    fleet: Fleet,
    *,
    period: str = "week",
    sessions: int = 5000,
    users: int = 40,
    load: float = 0.85,
    seed: int = 1,
) -> Workload:
    """`load`: what all of it asks for, over what the fleet has in that time, of whatever is scarcest."""
    if period not in PERIODS:
        raise InvalidSimulation(f"A workload is generated for a {', '.join(PERIODS)}, not for '{period}'.")
    if not 1 <= sessions <= 1_000_000 or not 1 <= users <= 10_000 or not 0.01 <= load <= 100:
        raise InvalidSimulation(
            "1 to 1,000,000 sessions of 1 to 10,000 users, at a load from 0.01 to 100, are generated."
        )
    random = Random(seed)  # noqa: S311 - a seed is the point
    days = PERIODS[period]
    people = _People(users, random)
    shops = _Shops(fleet)
    jobs = []
    for at in _arrivals(days, sessions, random):
        user = people.pick(random)
        jobs.append(_job(at, user, people, shops, random))
    jobs = _scaled(jobs, fleet, days * 86400.0, load)
    jobs = [
        replace(job, timeout_seconds=_timeout(job.duration_seconds, random), line=n) for n, job in enumerate(jobs, 1)
    ]
    return Workload(
        jobs=tuple(jobs),
        source=f"a generated {period}: {sessions:,} sessions of {users} users at load {load:g}, seed {seed}",
    )


def _arrivals(days: int, count: int, random: Random) -> list[datetime]:
    """Times by the busyness of the hours, to the second."""
    hours = [_DAYS[hour // 24 % 7] * _HOURS[hour % 24] for hour in range(days * 24)]
    sums = list(accumulate(hours))
    seconds = sorted((bisect(sums, random.random() * sums[-1]) + random.random()) * 3600.0 for _ in range(count))
    return [_MONDAY + timedelta(seconds=round(min(at, days * 86400.0 - 1))) for at in seconds]


class _People:
    """The n-th asks about 1/n^0.9 as often as the first; each has habits."""

    def __init__(self, count: int, random: Random) -> None:
        self.names = [_NAMES[n] if n < len(_NAMES) else f"{_NAMES[n % 26]}{n // 26 + 1}" for n in range(count)]
        random.shuffle(self.names)
        self._sums = list(accumulate(1.0 / (n + 1) ** 0.9 for n in range(count)))
        #: of all that a user starts: interactive, batch, gangs, CPU only
        self.habits = {
            name: tuple(random.gammavariate(shape, 1.0) for shape in (2.5, 3.0, 0.3, 1.5)) for name in self.names
        }

    def pick(self, random: Random) -> str:
        return self.names[min(bisect(self._sums, random.random() * self._sums[-1]), len(self.names) - 1)]


class _Shops:
    """What of the fleet can be asked for."""

    def __init__(self, fleet: Fleet) -> None:
        self.groups = sorted(fleet.groups)
        with_devices = [host for host in fleet.hosts if host.devices]
        self.gpus = max((len(host.devices) for host in with_devices), default=0)
        self.gpu_hosts = len(with_devices)
        self.words = [_word(model, fleet.models) for model in sorted(fleet.models) if model]
        self.architectures = {host.resource_group: host.architecture for host in fleet.hosts}
        first = min(with_devices or list(fleet.hosts), key=lambda host: host.id)
        per_device = max(1, len(first.devices))
        self.cpu_each = max(1000, first.capacity["cpu"] // per_device // 1000 * 1000 * 3 // 4)
        self.mem_each = max(1024, first.capacity["mem"] // per_device // 1024 * 1024 * 3 // 4)
        self.device_mib = min((host.capacity[d.name] for host in with_devices for d in host.devices), default=0)
        self.most_cpu = max(host.capacity["cpu"] for host in fleet.hosts)
        self.most_mem = max(host.capacity["mem"] for host in fleet.hosts)


def _word(model: str, models: Mapping[str, int]) -> str:
    """A word of the model that tells it from the others: H100."""
    others = {word for other in models if other != model for word in other.lower().split()}
    words = [word for word in model.replace("-", " ").lower().split() if any(map(str.isdigit, word))]
    return next((word for word in words if word not in others), model.lower())


def _job(at: datetime, user: str, people: _People, shops: _Shops, random: Random) -> Job:
    kind = random.choices(("interactive", "batch", "gang", "cpu"), people.habits[user])[0]
    gpu = gpu_mem = 0
    kernels = 1
    if shops.gpus and kind == "interactive":
        median, spread = 5400.0, 0.9
        if random.random() < 0.35 and shops.device_mib:
            gpu_mem = shops.device_mib // random.choice((2, 4, 4, 8))
        else:
            gpu = random.choices((1, 2), (0.9, 0.1))[0]
    elif shops.gpus and kind == "batch":
        median, spread = 7200.0, 1.4
        gpu = min(shops.gpus, random.choices((1, 2, 4, 8), (0.55, 0.2, 0.15, 0.1))[0])
    elif shops.gpus and kind == "gang":
        median, spread = 14400.0, 1.2
        gpu = min(shops.gpus, random.choice((4, 8)))
        kernels = min(max(2, shops.gpu_hosts // 2), random.choice((2, 2, 2, 4)))
    else:
        median, spread = 3600.0, 1.3
    cpu, mem = _amounts(gpu, gpu_mem, shops, random)
    model = random.choice(shops.words) if gpu and shops.words and random.random() < 0.2 else None
    if model and kernels * gpu > 8:
        model = None
    group = shops.groups[0] if DEFAULT_GROUP not in shops.groups else DEFAULT_GROUP
    return Job(
        submitted_at=at,
        user=user,
        duration_seconds=min(_LONGEST, max(30.0, random.lognormvariate(math.log(median), spread))),
        cpu=cpu,
        mem=mem,
        gpu=gpu,
        gpu_mem=gpu_mem,
        gpu_model=model,
        kernels=kernels,
        project=f"team{sum(map(ord, user)) % 5 + 1}",
        resource_group=group,
        architecture=shops.architectures.get(group, ARCHITECTURE),
    )


def _amounts(gpu: int, gpu_mem: int, shops: _Shops, random: Random) -> tuple[int, int]:
    if gpu:
        return shops.cpu_each * gpu, shops.mem_each * gpu
    if gpu_mem:
        return max(1000, shops.cpu_each // 4), max(1024, shops.mem_each // 4)
    cpus = random.choice((1, 2, 4, 4, 8, 16, 32))
    return min(shops.most_cpu, cpus * 1000), min(shops.most_mem, cpus * random.choice((2, 4, 8)) * 1024)


def _scaled(jobs: Sequence[Job], fleet: Fleet, seconds: float, load: float) -> list[Job]:
    """Durations stretched until the load is what was asked for; none becomes longer than a week."""
    capacity = fleet.capacity()
    scaled = list(jobs)
    for _ in range(12):
        asked = demand(scaled)
        present = max(asked[kind] / (capacity[kind] * seconds) for kind in asked if capacity[kind])
        if abs(present / load - 1) < 0.005:
            break
        factor = load / present
        scaled = [
            replace(job, duration_seconds=float(round(min(_LONGEST, max(1.0, job.duration_seconds * factor)))))
            for job in scaled
        ]
    return scaled


def _timeout(duration_seconds: float, random: Random) -> float | None:
    """Nobody knows exactly: twice to six times as long, rounded up; some say nothing, few too little."""
    chance = random.random()
    if chance < 0.1:
        return None
    if chance < 0.13:
        return max(600.0, float(round(duration_seconds * 0.8)))
    asked = duration_seconds * random.uniform(1.2, 5.0)
    return next((timeout for timeout in _TIMEOUTS if timeout >= asked), max(_LONGEST, duration_seconds))
