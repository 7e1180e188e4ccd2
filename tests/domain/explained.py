"""Snapshots drawn by lot in which somebody waits, small and full of reasons; and what an explanation's ways come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

from domain.explain import Explanation, Surroundings, Way, explain
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
    Share,
    Snapshot,
)
from domain.scheduler import plan
from domain.session import ClusterMode
from tests.domain import snapshots

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
USERS = [UUID(int=number) for number in (1, 2, 3)]
GPU_MIB = 80_000


@dataclass(frozen=True, kw_only=True)
class Case:
    snapshot: Snapshot
    around: Surroundings
    now: datetime = NOW


def draw(seed: int) -> Case:
    lot = Random(seed)
    snapshot = Snapshot(pending=(), hosts=(), groups=_groups(lot))
    snapshot = replace(snapshot, hosts=tuple(_host(lot, number) for number in range(lot.randint(1, 5))))
    for number in range(lot.randint(1, 8)):
        snapshot = _hold(lot, snapshot, number)
    pending = tuple(_pending(lot, number) for number in range(lot.randint(1, 7)))
    snapshot = replace(snapshot, pending=pending, shares=_shares(lot, snapshot))
    limits, counted = _limits(lot, snapshot)
    if lot.random() < 0.5:  # nothing but room matters
        snapshot, limits, counted = _plain(snapshot), (), {}
    around = Surroundings(
        groups=("default", "other"), most_priority=lot.choice((None, 10, 100)), counted=counted, most_plans=10_000
    )
    return Case(snapshot=replace(snapshot, limits=limits), around=around)


def generated(seed: int) -> Case:
    """Of the snapshots with which plans are tested."""
    around = Surroundings(groups=snapshots.GROUPS, most_priority=100, most_plans=10_000)
    return Case(snapshot=snapshots.seeded(seed), around=around, now=snapshots.NOW)


def _plain(snapshot: Snapshot) -> Snapshot:
    return replace(
        snapshot,
        hosts=tuple(replace(one, resource_group="default", architecture="x86_64") for one in snapshot.hosts),
        pending=tuple(
            replace(one, resource_group="default", constraints=Constraints(), scopes=()) for one in snapshot.pending
        ),
    )


def _groups(lot: Random) -> tuple[Group, ...]:
    def group(name: str) -> Group:
        return Group(
            name=name,
            fair_share=lot.random() < 0.6,
            spread=lot.random() < 0.4,
            backfill=lot.random() < 0.8,
            gpu_sharing=lot.random() < 0.8,
        )

    return group("default"), group("other")


def _host(lot: Random, number: int) -> Host:
    capacity = {"cpu": lot.choice((8000, 16000)), "mem": lot.choice((16384, 32768))}
    model = lot.choice(("NVIDIA H100 80GB", "NVIDIA A100-SXM4-80GB"))
    devices = [f"gpu/{number}-{which}" for which in range(lot.choice((0, 2, 4, 4)))]
    capacity |= dict.fromkeys(devices, GPU_MIB)
    return Host(
        id=AgentId(f"host-{number}"),
        architecture=lot.choice(("x86_64",) * 9 + ("aarch64",)),
        free=capacity,
        capacity=capacity,
        resource_group=lot.choice(("default", "default", "default", "other")),
        labels=lot.choice(({}, {"zone": "a"}, {"zone": "a"})),
        devices=tuple(Device(name=name, model=model, whole_only=lot.random() < 0.2) for name in devices),
        address=lot.choice((None, "10.0.0.1")),
    )


def _hold(lot: Random, snapshot: Snapshot, number: int) -> Snapshot:
    """A session that runs on one of the hosts, of what is free there."""
    host = lot.choice(snapshot.hosts)
    amounts = {name: lot.randint(1, free) for name, free in host.free.items() if free > 0 and name in ("cpu", "mem")}
    idle = [name for name, free in host.free.items() if name.startswith("gpu/") and free == GPU_MIB]
    for name in lot.sample(idle, lot.randint(0, len(idle))):
        amounts[name] = GPU_MIB if lot.random() < 0.7 else lot.randint(1, GPU_MIB)
    holding = Holding(
        session_id=SessionId(UUID(int=0x1000 + number)),
        agent_id=host.id,
        amounts=amounts,
        name=f"holder-{number}",
        user_id=lot.choice(USERS),
        labels=lot.choice(({}, {"app": "db"})),
        ends_at=None if lot.random() < 0.3 else NOW + timedelta(seconds=lot.randint(-10, 20_000)),
    )
    free = {name: amount - amounts.get(name, 0) for name, amount in host.free.items()}
    hosts = tuple(replace(one, free=free) if one.id == host.id else one for one in snapshot.hosts)
    return replace(snapshot, hosts=hosts, holdings=(*snapshot.holdings, holding))


def _pending(lot: Random, number: int) -> PendingSession:
    slots = {"cpu": lot.choice((500, 2000, 4000, 8000, 9000)), "mem": lot.choice((256, 2048, 12000))}
    match lot.randint(0, 4):
        case 0 | 1:
            slots["gpu"] = lot.randint(1, 4)
        case 2:
            slots["gpu-mem"] = lot.choice((10_000, 40_000))
    several = lot.randint(2, 4) if lot.random() < 0.25 else 1
    user = lot.choice(USERS)
    return PendingSession(
        id=SessionId(UUID(int=0x2000 + number)),
        architecture="x86_64",
        priority=lot.choice((0, 10, 10, 20)),
        created_at=NOW - timedelta(seconds=lot.randint(1, 1000)),
        kernels=tuple(
            PendingKernel(id=KernelId(UUID(int=0x3000 + 100 * number + which)), slots=slots) for which in range(several)
        ),
        name=f"waits-{number}",
        user_id=user,
        resource_group=lot.choice(("default",) * 7 + ("other",)),
        constraints=_constraints(lot, gpus="gpu" in slots or "gpu-mem" in slots),
        lifetime_seconds=lot.choice((None, 600.0, 7200.0)),
        scopes=(("user", str(user)), ("project", "p")),
        cluster_mode=lot.choice((ClusterMode.SINGLE_NODE, ClusterMode.MULTI_NODE))
        if several > 1
        else ClusterMode.SINGLE_NODE,
        clustered=several > 1,
    )


def _constraints(lot: Random, *, gpus: bool) -> Constraints:
    return Constraints(
        agent=AgentId("host-0") if lot.random() < 0.04 else None,
        labels={"zone": "a"} if lot.random() < 0.1 else {},
        apart_from={"app": "db"} if lot.random() < 0.15 else {},
        gpu_model=lot.choice(("h100", "a100", "l40")) if gpus and lot.random() < 0.25 else None,
    )


def _shares(lot: Random, snapshot: Snapshot) -> tuple[Share, ...]:
    return tuple(
        Share(
            resource_group=group,
            user_id=user,
            held={"cpu": float(lot.randint(0, 4000))},
            past={"cpu": float(lot.randint(0, 4000))},
            weight=lot.choice((1.0, 2.0)),
        )
        for group in ("default", "other")
        for user in USERS
    )


def _limits(
    lot: Random, snapshot: Snapshot
) -> tuple[tuple[Limit, ...], Mapping[SessionId, Mapping[tuple[tuple[str, str], str], int]]]:
    """What they say is held is what the holders count."""
    limits, counted = [], dict[SessionId, dict[tuple[tuple[str, str], str], int]]()
    for scope in (("project", "p"), *(("user", str(user)) for user in USERS)):
        for name in ("cpu", "sessions", "gpu"):
            if lot.random() > 0.2:
                continue
            held = 0
            for holding in snapshot.holdings:
                if scope[0] == "user" and scope[1] != str(holding.user_id):
                    continue
                gpus = sum(other.startswith("gpu/") for other in holding.amounts)
                amount = {"cpu": holding.amounts.get("cpu", 0), "sessions": 1, "gpu": gpus}[name]
                if amount:
                    held += amount
                    counted.setdefault(holding.session_id, {})[scope, name] = amount
            more = {"cpu": lot.randint(0, 8000), "sessions": lot.randint(0, 3), "gpu": lot.randint(0, 4)}[name]
            limits.append(Limit(scope=scope, name=name, max_amount=held + more, held=held, of="somebody"))
    return tuple(limits), counted


#: Reasons that may pass by themselves: they have more ways.
_PASSING = ("reserved", "behind", "insufficient", "quota", "apart_from")


# -- what ways come to ---------------------------------------------------------------------------------------------------
def explained(case: Case, *, at_most: int = 2) -> list[tuple[SessionId, Explanation]]:
    """Of some that wait."""
    blocked = plan(case.snapshot, case.now).blocked
    queued = [one.id for one in case.snapshot.pending if one.id in blocked and not one.joins]
    waiting = sorted(queued, key=lambda one: (blocked[one].code not in _PASSING, one))[:at_most]
    return [(one, explain(case.snapshot, one, case.now, case.around)) for one in waiting]


def comes_true(case: Case, session_id: SessionId, way: Way) -> bool:
    """Done as it is written, by other means than the search has, and planned again."""
    snapshot = case.snapshot
    session = next(one for one in snapshot.pending if one.id == session_id)
    if not way.now:
        snapshot = _desert(snapshot, session)
    gone = {ending.session_id for ending in way.endings}
    snapshot = _gone(snapshot, gone, case.around)
    higher = {((change.scope, _key(change.scope, session)), change.name): change.max_amount for change in way.limits}
    limits = tuple(
        replace(one, max_amount=higher.get((one.scope, one.name), one.max_amount)) for one in snapshot.limits
    )
    pending = tuple(_changed(one, way) if one.id == session_id else one for one in snapshot.pending)
    snapshot = replace(snapshot, limits=limits, pending=pending)
    made = plan(snapshot, way.at or case.now)
    return session_id in [placement.session_id for placement in made.placements]


def _key(scope: str, session: PendingSession) -> str:
    return dict(session.scopes)[scope]


def _changed(session: PendingSession, way: Way) -> PendingSession:
    kernels = tuple(
        PendingKernel(id=one.id, slots={n: min(a, way.slots.get(n, a)) for n, a in one.slots.items()})
        for one in session.kernels[: way.kernels]
    )
    constraints = replace(session.constraints, **{name: getattr(Constraints(), name) for name in way.without})
    return replace(
        session,
        kernels=kernels,
        constraints=constraints,
        resource_group=way.resource_group or session.resource_group,
        priority=session.priority if way.priority is None else way.priority,
        lifetime_seconds=session.lifetime_seconds if way.lifetime_seconds is None else way.lifetime_seconds,
    )


def _desert(snapshot: Snapshot, session: PendingSession) -> Snapshot:
    return replace(
        snapshot,
        pending=(session,),
        hosts=tuple(replace(host, free=host.capacity) for host in snapshot.hosts),
        holdings=(),
        limits=tuple(replace(limit, held=0) for limit in snapshot.limits),
        shares=(),
    )


def _gone(snapshot: Snapshot, gone: set[SessionId | None], around: Surroundings) -> Snapshot:
    for holding in [one for one in snapshot.holdings if one.session_id in gone]:
        hosts = []
        for host in snapshot.hosts:
            if host.id == holding.agent_id:
                free = {name: amount + holding.amounts.get(name, 0) for name, amount in host.free.items()}
                host = replace(host, free=free)
            hosts.append(host)
        limits = [
            replace(one, held=one.held - around.counted.get(holding.session_id, {}).get((one.scope, one.name), 0))
            for one in snapshot.limits
        ]
        left = tuple(one for one in snapshot.holdings if one.session_id != holding.session_id)
        at = next(host for host in snapshot.hosts if host.id == holding.agent_id)
        of = at.resource_group, holding.user_id
        shares = [
            _less(one, holding, at) if (one.resource_group, one.user_id) == of else one for one in snapshot.shares
        ]
        snapshot = replace(snapshot, hosts=tuple(hosts), limits=tuple(limits), holdings=left, shares=tuple(shares))
    return snapshot


def _less(share: Share, holding: Holding, host: Host) -> Share:
    held = dict(share.held)
    for name, amount in holding.amounts.items():
        kind, part = ("gpu", amount / host.capacity[name]) if name.startswith("gpu/") else (name, float(amount))
        if kind in held:
            held[kind] = max(0.0, held[kind] - part)
    return replace(share, held=held)
