"""Fleets and queues for the benchmark of the plan: the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import (
    Constraints,
    Device,
    Group,
    Holding,
    Host,
    Limit,
    PendingKernel,
    PendingSession,
    Scope,
    Share,
    Snapshot,
)
from domain.session import ClusterMode

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
HOSTS: Final = 1000
PENDING: Final = 10_000
GIB: Final = 1024
#: CPUs, GiB of memory, GPUs, their model, GiB of each
SHAPES: Final = (
    (64, 256, 0, "", 0),
    (128, 1024, 0, "", 0),
    (64, 512, 4, "NVIDIA A100-SXM4-40GB", 40),
    (96, 1024, 8, "NVIDIA A100-SXM4-80GB", 80),
    (128, 2048, 8, "NVIDIA H100 80GB HBM3", 80),
)


def alike() -> Snapshot:
    """Sessions that are all the same on hosts that are all the same, of 100 users."""
    hosts = [_host(number, 64, 256) for number in range(HOSTS)]
    pending = [_session(number, [{"cpu": 4000, "mem": 16 * GIB}], user=number % 100) for number in range(PENDING)]
    return _snapshot(hosts, pending)


def mixed(*, unlike: bool = False, spread: bool = False) -> Snapshot:
    """Hosts of several shapes, most of it in use; one session in five wants GPUs, one in twenty a share, some are gangs.

    Unlike: each asks for an amount of CPUs and memory that nobody else asks for.
    """
    chance = random.Random(1)
    hosts = [_host(number, *SHAPES[number % len(SHAPES)], used=chance.random()) for number in range(HOSTS)]
    pending = []
    for number in range(PENDING):
        kind, gpu_model, kernels = chance.random(), None, 1
        slots = {"cpu": chance.choice([500, 1000, 2000, 4000]), "mem": chance.choice([1, 2, 4, 8, 16]) * GIB}
        if unlike:
            slots = {"cpu": chance.randrange(100, 4000), "mem": chance.randrange(256, 16 * GIB)}
        if kind < 0.20:
            slots |= {"gpu": chance.choice([1, 1, 1, 2])}
            gpu_model = chance.choice([None, None, "a100", "h100"])
        elif kind < 0.25:
            slots |= {"gpu-mem": chance.choice([5, 10, 20]) * GIB}
        elif kind < 0.30:
            kernels = chance.choice([2, 4, 8])
        pending.append(
            _session(
                number,
                [slots] * kernels,
                user=int(chance.paretovariate(1.2)) % 200,
                gpu_model=gpu_model,
                lifetime_seconds=chance.choice([None, 3600.0, 86400.0]),
            )
        )
    return _snapshot(hosts, pending, spread=spread)


def full(*, unlike: bool = False) -> Snapshot:
    """Every host is held, and comes free in the course of a day; what waits is alike, or each asks for something else."""
    chance = random.Random(2)
    hosts = [_host(number, *SHAPES[number % len(SHAPES)], used=0.975) for number in range(HOSTS)]
    pending = [
        _session(
            number,
            [{"cpu": chance.randrange(2000, 32000), "mem": chance.randrange(4096, 65536)} if unlike else {"cpu": 4000}],
            user=number % 100,
            lifetime_seconds=chance.choice([None, 3600.0]),
        )
        for number in range(PENDING)
    ]
    return _snapshot(hosts, pending)


def _snapshot(hosts: Sequence[Host], pending: Sequence[PendingSession], *, spread: bool = False) -> Snapshot:
    """Every user held something once, and may hold a tenth of it all at once; so may the project."""
    users = sorted({session.user_id for session in pending})
    scopes: list[Scope] = sorted({scope for session in pending for scope in session.scopes})
    return Snapshot(
        pending=tuple(pending),
        hosts=tuple(hosts),
        groups=(Group(gpu_sharing=True, spread=spread),),
        shares=tuple(
            Share(
                resource_group="default",
                user_id=user,
                held={"cpu": user.int % 7 * 1000.0, "mem": user.int % 5 * 1024.0},
                past={"cpu": user.int % 11 * 1000.0, "gpu": user.int % 3 * 1.0},
            )
            for user in users
        ),
        limits=tuple(
            Limit(scope=scope, name=name, max_amount=1 << 40, held=0)
            for scope in scopes
            for name in ("cpu", "mem", "gpu", "sessions")
        ),
        holdings=tuple(_holding(number, host) for number, host in enumerate(hosts) if host.free != host.capacity),
    )


def _holding(number: int, host: Host) -> Holding:
    """All of it ends in the course of a day."""
    return Holding(
        session_id=SessionId(UUID(int=1 << 64 | number)),
        agent_id=host.id,
        amounts={name: whole - host.free[name] for name, whole in host.capacity.items()},
        ends_at=NOW + timedelta(seconds=60 + number * 7919 % 86400),
    )


def _host(
    number: int, cpus: int, memory_gib: int, gpus: int = 0, model: str = "", gpu_gib: int = 0, *, used: float = 0.0
) -> Host:
    names = [f"gpu/GPU-{number:04}-{device}" for device in range(gpus)]
    capacity = {"cpu": cpus * 1000, "mem": memory_gib * GIB, **dict.fromkeys(names, gpu_gib * GIB)}
    free = {name: int(capacity[name] * (1 - used)) for name in ("cpu", "mem")}
    free |= {name: 0 if at < gpus * used else capacity[name] for at, name in enumerate(names)}
    devices = tuple(
        Device(
            name=name,
            model=model,
            numa=at * 2 // gpus,
            links={other: 2 for there, other in enumerate(names) if there // 2 == at // 2 and there != at},
        )
        for at, name in enumerate(names)
    )
    return Host(id=AgentId(f"agent{number:04}"), architecture="x86_64", free=free, capacity=capacity, devices=devices)


def _session(
    number: int,
    kernels: Sequence[dict[str, int]],
    *,
    user: int,
    gpu_model: str | None = None,
    lifetime_seconds: float | None = None,
) -> PendingSession:
    return PendingSession(
        id=SessionId(UUID(int=number + 1)),
        architecture="x86_64",
        priority=10 + number % 3,
        created_at=NOW - timedelta(seconds=PENDING - number),
        kernels=tuple(
            PendingKernel(id=KernelId(UUID(int=(number + 1) * 64 + at)), slots=dict(slots))
            for at, slots in enumerate(kernels)
        ),
        user_id=UUID(int=user + 1),
        constraints=Constraints(gpu_model=gpu_model),
        scopes=(("user", str(user)), ("project", "physics")),
        lifetime_seconds=lifetime_seconds,
        cluster_mode=ClusterMode.MULTI_NODE if len(kernels) > 1 else ClusterMode.SINGLE_NODE,
    )
