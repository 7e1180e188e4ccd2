"""What keeps a session off a host, constraint by constraint: the one place for each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from domain.placement import GPU, GPU_SHARE, Group, Host, PendingSession, Reservation, Snapshot
from domain.scheduler.devices import Site
from domain.scheduler.room import Amounts, missing
from domain.scheduler.words import names, pairs, words
from domain.session import ClusterMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """One reason why a host does not take a session now."""

    #: resource_group, architecture, agent, labels, apart_from, image_elsewhere, store, address, gpu_model, gpu_sharing,
    #: insufficient, reserved
    code: str
    detail: str  #: a sentence without its subject, the host: "has no label zone=a"
    missing: Mapping[str, int] = field(default_factory=dict)  #: how much more would have to be free, by kinds of slots
    ever: bool = False  #: it would be so on the empty host too


def obstacles(
    session: PendingSession,
    host: Host,
    snapshot: Snapshot,
    *,
    free: Amounts | None = None,
    reservations: Collection[Reservation] = (),
) -> tuple[Obstacle, ...]:
    """Everything that keeps it off this host; nothing when the host could take it, or its smallest kernel for a session
    on many hosts. `free`: what is free there, if not what the snapshot says. `reservations`: of a plan.
    """
    left = host.free if free is None else free
    group = group_of(snapshot.groups, session.resource_group)
    found = list(bars(session, host, group))
    neighbours = (
        holding.session_id
        for holding in snapshot.holdings
        if holding.agent_id == host.id
        and holding.session_id != session.id
        and holding.user_id == session.user_id
        and repel(session, holding.labels, holding.apart_from)
    )
    if (neighbour := min(neighbours, default=None)) is not None:
        found.append(
            Obstacle(code="apart_from", detail=f"holds session {neighbour}, from which this one is kept apart")
        )
    if not any(bar.code in ("gpu_model", "gpu_sharing") for bar in found):
        found += lacks(session, host, left)
    if (unreachable := no_address(session, host, snapshot, left)) is not None:
        found.append(unreachable)
    for kept in reservations:
        if host.id in kept.hosts and kept.session_id != session.id:
            found.append(Obstacle(code="reserved", detail=f"is kept for session {kept.session_id}, which comes first"))
    return tuple(found)


def group_of(groups: Sequence[Group], name: str) -> Group:
    """One that is not named has the defaults."""
    return next((group for group in groups if group.name == name), None) or _default_group(name)


@lru_cache(maxsize=1024)
def _default_group(name: str) -> Group:
    return Group(name=name)


def bars(session: PendingSession, host: Host, group: Group) -> Iterator[Obstacle]:
    """What is so however much is free: the planner looks for no room on such a host."""
    yield from misplaced(session, host)
    if wants_devices(session):
        yield from _device_bars(session, host, group)


def misplaced(session: PendingSession, host: Host) -> Iterator[Obstacle]:
    """The bars that have nothing to do with devices."""
    constraints = session.constraints
    if host.resource_group != session.resource_group:
        yield _never("resource_group", f"is in resource group {host.resource_group}, not in {session.resource_group}")
    if host.architecture != session.architecture:
        yield _never("architecture", f"is {host.architecture}, not {session.architecture}")
    if constraints.agent is not None and constraints.agent != host.id:
        yield _never("agent", f"is not {constraints.agent}, the host that was asked for")
    lacking = {key: value for key, value in constraints.labels.items() if host.labels.get(key) != value}
    if lacking:
        yield _never("labels", f"has no label {pairs(lacking)}")
    if session.images_on - {host.id}:
        yield _never("image_elsewhere", f"has not its image, a snapshot on {names(session.images_on - {host.id})}")
    if session.stores - {host.store}:
        yield _never("store", f"has not the volume store {names(s for s in session.stores if s != host.store)}")
    home = session.hosts if session.joins and session.cluster_mode is ClusterMode.SINGLE_NODE else None
    if home and host.id not in home:
        yield _never("agent", f"is not {names(home)}, where the other kernels of the session run")


def _device_bars(session: PendingSession, host: Host, group: Group) -> Iterator[Obstacle]:
    model, shares = session.constraints.gpu_model, any(GPU_SHARE in kernel.slots for kernel in session.kernels)
    able = Site(host, model).able
    if model is not None and not able:
        yield _never("gpu_model", f"has no GPU that is {model}")
    if shares and not group.gpu_sharing:
        yield _never("gpu_sharing", f"is in resource group {group.name}, which shares no GPUs")
    elif shares and able and all(device.whole_only for device in able):
        yield _never("gpu_sharing", "has only GPUs that are given whole")


def wants_devices(session: PendingSession) -> bool:
    return any(kernel.slots.get(GPU, 0) > 0 or kernel.slots.get(GPU_SHARE, 0) > 0 for kernel in session.kernels)


def repel(session: PendingSession, labels: Mapping[str, str], apart_from: Mapping[str, str]) -> bool:
    """Whether it may not be on one host with another session of its owner: it says so, or the other one does."""
    return any(labels.get(key) == value for key, value in session.constraints.apart_from.items()) or any(
        session.labels.get(key) == value for key, value in apart_from.items()
    )


def lacks(session: PendingSession, host: Host, free: Amounts) -> list[Obstacle]:
    """Room that is missing: for all of its kernels if they share a host, else for the one that comes nearest to fitting."""
    where = Site(host, session.constraints.gpu_model)
    asked = [kernel.slots for kernel in session.kernels]
    choices = [asked] if session.cluster_mode is ClusterMode.SINGLE_NODE else [[slots] for slots in asked]
    gaps = [missing(where, free, choice) for choice in choices]
    short = min(gaps, key=lambda gap: (len(gap), sorted(gap.items())))
    if not short:
        return []
    ever = all(missing(where, host.capacity, choice) for choice in choices)
    return [
        Obstacle(
            code="insufficient",
            detail=f"lacks {words(short)}" + (", and has too little when it is empty too" if ever else ""),
            missing=short,
            ever=ever,
        )
    ]


def no_address(session: PendingSession, host: Host, snapshot: Snapshot, free: Amounts) -> Obstacle | None:
    """Hosts without an address share no cluster with others: all of it fits on one, or it goes elsewhere."""
    spans = session.clustered and session.cluster_mode is not ClusterMode.SINGLE_NODE
    if not spans or session.hosts == {host.id}:
        return None
    others = [other.id for other in snapshot.hosts if other.id in session.hosts and other.address is None]
    if others:
        return _never("address", f"cannot reach {names(others)}, which holds kernels of it and has no address")
    if host.address is not None:
        return None
    if session.hosts - {host.id}:
        return _never("address", "has no address under which the session's other hosts reach it")
    whole, where = [kernel.slots for kernel in session.kernels], Site(host, session.constraints.gpu_model)
    if not missing(where, free, whole):
        return None
    return Obstacle(
        code="address",
        detail="has no address under which other hosts reach it, and not room for the whole cluster",
        ever=bool(missing(where, host.capacity, whole)),
    )


def _never(code: str, detail: str) -> Obstacle:
    return Obstacle(code=code, detail=detail, ever=True)
