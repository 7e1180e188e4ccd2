"""Generated snapshots for whatever is said of plans: small fleets with everything that the scheduler knows.

`snapshots()` is drawn by hypothesis and shrinks; `seeded(number)` is made by a seed, ten times as fast, for long runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from hypothesis import strategies as st

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import (
    UNCONSTRAINED,
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
USERS: Final = tuple(UUID(int=number) for number in (1, 2, 3))
GROUPS: Final = ("default", "gpus")
A100, H100, MIG = "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"

#: Many alike ones: that is what queues are like, and where mistakes with what is remembered would show.
SLOTS: Final[Sequence[Mapping[str, int]]] = (
    {"cpu": 1},
    {"cpu": 2},
    {"cpu": 2, "mem": 2},
    {"cpu": 4, "mem": 1},
    {"cpu": 3, "mem": 6},
    {"cpu": 9},
    {"mem": 3, "tpu": 1},
    {"cpu": 1, "gpu": 1},
    {"cpu": 1, "gpu": 2},
    {"cpu": 1, "gpu": 3},
    {"cpu": 1, "gpu-mem": 2},
    {"cpu": 1, "gpu-mem": 3},
    {"gpu-mem": 9, "mem": 0},
)
#: CPUs, memory, TPUs, and devices with their memory
HOSTS: Final[Sequence[tuple[int, int, int, Sequence[tuple[str, int]]]]] = (
    (4, 8, 0, ()),
    (8, 4, 1, ()),
    (8, 8, 0, ((A100, 4), (A100, 4))),
    (8, 8, 0, ((H100, 8), (H100, 8), (H100, 8), (H100, 8))),
    (6, 6, 0, ((A100, 4), (H100, 8), (MIG, 2))),
)
CONSTRAINTS: Final = (
    *[UNCONSTRAINED] * 6,
    Constraints(labels={"zone": "a"}),
    Constraints(apart_from={"role": "db"}),
    Constraints(gpu_model="h100"),
    Constraints(gpu_model="A100"),
    Constraints(agent=AgentId("h1")),
    Constraints(apart_from={"role": "web", "tier": "1"}, labels={"disk": "fast"}),
)
LABELS: Final[Sequence[Mapping[str, str]]] = ({}, {}, {}, {"role": "db"}, {"role": "web"}, {"role": "db", "tier": "1"})
ARCHITECTURES: Final = (*["x86_64"] * 7, "aarch64")
IN_GROUPS: Final = (*["default"] * 5, "gpus")
HOST_LABELS: Final[Sequence[Mapping[str, str]]] = ({}, {"zone": "a"}, {"zone": "b", "disk": "fast"})
LIFETIMES: Final = (None, None, 60.0, 600.0, 7200.0)
SCOPES: Final[Sequence[tuple[Scope, ...]]] = (
    (),
    (("user", "u"),),
    (("user", "u"), ("project", "p")),
    (("domain", "d"),),
)


#: One of these.
Pick = Callable[[Sequence[Any]], Any]


@st.composite
def snapshots(draw: st.DrawFn, *, hosts: int = 4, pending: int = 8) -> Snapshot:
    return _snapshot(lambda choices: draw(st.sampled_from(choices)), hosts, pending)


def seeded(seed: int, *, hosts: int = 4, pending: int = 8) -> Snapshot:
    return _snapshot(random.Random(seed).choice, hosts, pending)


def _snapshot(pick: Pick, hosts: int, pending: int) -> Snapshot:
    machines = [_host(pick, number) for number in range(pick([0, *[*range(1, hosts + 1)] * 5]))]
    there = [host for host, _ in machines]
    limits = [_limit(pick) for _ in range(pick([0, 0, 1, 3]))]
    return Snapshot(
        pending=tuple(_session(pick, number, there) for number in range(1, 1 + pick(range(1, pending + 1)))),
        hosts=tuple(host for host, _ in machines),
        groups=tuple(_group(pick, name) for name in GROUPS if pick([True, True, False])),
        shares=tuple(_share(pick, user) for user in USERS if pick([True, False])),
        limits=tuple({(one.scope, one.name): one for one in limits}.values()),
        holdings=tuple(holding for _, held in machines for holding in held),
    )


def _host(pick: Pick, number: int) -> tuple[Host, list[Holding]]:
    """With what is held there, by sessions of which some have an end and some have none."""
    cpu, mem, tpu, gpus = pick(HOSTS)
    names = [f"gpu/{number}-{at}" for at in range(len(gpus))]
    capacity = {"cpu": cpu, "mem": mem, **({"tpu": tpu} if tpu else {})} | {
        name: memory for name, (_, memory) in zip(names, gpus, strict=True)
    }
    host_id, free, holdings = AgentId(f"h{number}"), dict(capacity), []
    for other in range(pick([0, 0, 1, 2, 3])):
        holding = _holding(pick, SessionId(UUID(int=1000 + 10 * number + other)), host_id, free)
        for name, amount in holding.amounts.items():
            free[name] -= amount
        holdings.append(holding)
    host = Host(
        id=host_id,
        architecture=pick(ARCHITECTURES),
        free=free,
        capacity=capacity,
        resource_group=pick(IN_GROUPS),
        labels=pick(HOST_LABELS),
        devices=tuple(_device(names, at, model) for at, (model, _) in enumerate(gpus)),
        store=pick([None, "s1"]),
        address=pick([f"10.0.0.{number}", f"10.0.0.{number}", None]),
    )
    return host, holdings


def _device(names: Sequence[str], at: int, model: str) -> Device:
    """Neighbours in pairs are linked; halves share a NUMA node."""
    links = {names[at ^ 1]: 2} if at ^ 1 < len(names) else {}
    return Device(name=names[at], model=model, numa=at // 2, whole_only=model == MIG, links=links)


def _holding(pick: Pick, session_id: SessionId, host: AgentId, free: Mapping[str, int]) -> Holding:
    held = {name: pick(range(free[name] + 1)) for name in ("cpu", "mem") if free[name]}
    devices = [name for name, amount in free.items() if name.startswith("gpu/") and amount]
    if devices and pick([True, False]):
        held[devices[0]] = pick([1, free[devices[0]]])
    ends_in = pick([None, 30, 300, 3000, 30000, -5])
    return Holding(
        session_id=session_id,
        agent_id=host,
        amounts=held,
        user_id=pick(USERS),
        labels=pick(LABELS),
        apart_from=pick([{}, {}, {}, {"role": "web"}]),
        ends_at=None if ends_in is None else NOW + timedelta(seconds=ends_in),
    )


def _session(pick: Pick, number: int, hosts: Sequence[Host]) -> PendingSession:
    kind = pick(["one"] * 8 + ["alike", "alike", "unlike", "joins" if hosts else "one"])
    slots = [pick(SLOTS)]
    if kind == "alike":  # as workers are
        slots *= pick([2, 3, 4])
    elif kind == "unlike":
        slots += [pick(SLOTS) for _ in range(pick([1, 2]))]
    home = pick(hosts) if kind == "joins" else None
    return PendingSession(
        id=SessionId(UUID(int=number)),
        architecture=home.architecture if home else pick(ARCHITECTURES),
        priority=pick([10, 10, 10, 20]),
        created_at=NOW - timedelta(seconds=pick([0, 1, 2, 3])),
        kernels=tuple(
            PendingKernel(id=KernelId(UUID(int=number * 10 + at)), slots=one) for at, one in enumerate(slots)
        ),
        user_id=pick(USERS),
        resource_group=home.resource_group if home else pick(IN_GROUPS),
        constraints=pick(CONSTRAINTS),
        labels=pick(LABELS),
        lifetime_seconds=pick(LIFETIMES),
        scopes=pick(SCOPES),
        cluster_mode=ClusterMode.SINGLE_NODE if kind == "one" else pick(list(ClusterMode)),
        clustered=kind == "joins" or (kind != "one" and pick([True, False])),
        joins=kind == "joins",
        hosts=frozenset([home.id]) if home else frozenset(),
        images_on=pick([frozenset()] * 14 + [frozenset([AgentId("h0")])]),
        stores=pick([frozenset()] * 9 + [frozenset(["s1"])]),
    )


def _group(pick: Pick, name: str) -> Group:
    return Group(
        name=name,
        fair_share=pick([True, False]),
        spread=pick([False, True]),
        backfill=pick([True, True, False]),
        gpu_sharing=pick([True, True, False]),
    )


def _share(pick: Pick, user: UUID) -> Share:
    amounts = [0.0, 0.5, 2.0, 7.0]
    return Share(
        resource_group=GROUPS[0],
        user_id=user,
        held={"cpu": pick(amounts), "gpu": pick(amounts)},
        past={"cpu": pick(amounts)},
        weight=pick([1.0, 1.0, 2.0]),
    )


def _limit(pick: Pick) -> Limit:
    return Limit(
        scope=pick([("user", "u"), ("project", "p"), ("domain", "d")]),
        name=pick(["cpu", "gpu", "gpu-mem", "sessions", "mem"]),
        max_amount=pick(range(9)),
        held=pick(range(5)),
    )
