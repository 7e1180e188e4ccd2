"""Who of the queue gets which host. Pure: the same snapshot and time give the same plan, whatever order its tuples have.

One session after the other, in the order of its resource group (order.py), gets hosts for all of its kernels or for none
(fleet.py). The first of a fleet that waits for room gets a reservation (reserve.py): hosts, and the time at which they
hold it at the latest. Others pass it only where they do not delay it, so

    it starts no later than at the time of its first reservation, as long as it stays the first: that time is at most
    the longest lifetime of what runs there. Where something without a lifetime runs, it starts at most PASSING_SECONDS
    after enough of that has ended, and nothing without a lifetime is started on those hosts before.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Protocol, TypeVar

from domain.ids import SessionId
from domain.placement import GPU, Blocked, Group, Host, KernelPlacement, PendingSession, Placement, Plan, Snapshot
from domain.scheduler import why
from domain.scheduler.desk import Desk
from domain.scheduler.fleet import Fleet, Taken
from domain.scheduler.neighbours import Neighbours
from domain.scheduler.obstacles import group_of
from domain.scheduler.order import Queue, capacity_of
from domain.scheduler.quotas import Quotas, charge, exceeded
from domain.scheduler.room import devices_taken
from domain.scheduler.shapes import Shape, Shapes


def plan(snapshot: Snapshot, now: datetime) -> Plan:
    """Placements for whatever may start now, and for each of the others the one reason why not."""
    return _Planner(snapshot, now).plan()


class _Planner:
    def __init__(self, snapshot: Snapshot, now: datetime) -> None:
        self._snapshot = snapshot
        self._now = now
        self._shapes = Shapes()
        self._quotas = Quotas(snapshot.limits)
        self._neighbours = Neighbours(snapshot.pending, snapshot.holdings)
        self._placements: list[Placement] = []
        self._blocked: dict[SessionId, Blocked] = {}
        self._order: dict[str, list[SessionId]] = {}
        self._queues: dict[str, Queue] = {}
        self._desks: dict[tuple[str, str], Desk] = {}
        pending = _by_group(snapshot.pending)
        hosts = _by_group(snapshot.hosts)
        shares = _by_group(snapshot.shares)
        for name in sorted(pending):
            group = group_of(snapshot.groups, name)
            there = hosts.get(name, []) if group.active else []
            self._queues[name] = Queue(pending[name], group, shares.get(name, ()), capacity_of(there))
            self._order[name] = []
            self._open_desks(group, there)

    def _open_desks(self, group: Group, hosts: Iterable[Host]) -> None:
        fleets: dict[str, list[Host]] = {}
        for host in hosts:
            fleets.setdefault(host.architecture, []).append(host)
        for architecture, members in fleets.items():
            desk = Desk(Fleet(group, members), self._snapshot.holdings, self._neighbours, self._now)
            self._desks[group.name, architecture] = desk

    def plan(self) -> Plan:
        for session in self._turns():
            self._order[session.resource_group].append(session.id)
            decided = self._decide(session)
            if isinstance(decided, Blocked):
                self._blocked[session.id] = decided
        desks = sorted(self._desks.items())
        return Plan(
            placements=tuple(self._placements),
            blocked=self._blocked,
            reservations=tuple(kept for _, desk in desks for kept in desk.reservations),
            order={name: tuple(order) for name, order in self._order.items()},
        )

    def _turns(self) -> Iterator[PendingSession]:
        """The heads of all groups by priority and age: groups share no hosts, but limits."""
        heads: list[tuple[int, datetime, SessionId, str, PendingSession]] = []
        for name in self._queues:
            self._enter(heads, name)
        while heads:
            session = heads[0][-1]
            yield session
            heapq.heappop(heads)
            self._enter(heads, session.resource_group)

    def _enter(self, heads: list[tuple[int, datetime, SessionId, str, PendingSession]], name: str) -> None:
        if (session := self._queues[name].next()) is not None:
            heapq.heappush(heads, (-session.priority, session.created_at, session.id, name, session))

    def _decide(self, session: PendingSession) -> Blocked | None:
        """None: it is placed."""
        desk = self._desks.get((session.resource_group, session.architecture))
        if desk is None:
            return why.no_hosts(session, group_of(self._snapshot.groups, session.resource_group))
        shape = self._shapes.of(session)
        if shape.model is not None:
            desk.fleet.know(shape.model)
        accounts = self._quotas.accounts(session.scopes) if session.scopes else ()
        if accounts and (over := exceeded(accounts, shape.totals)) is not None:
            return desk.never(session, shape) or over
        if shape.shares and not desk.fleet.group.gpu_sharing:
            return desk.never(session, shape)
        decided = desk.place(session, shape)
        if isinstance(decided, Blocked):
            return decided
        charge(accounts, shape.totals)
        self._queues[session.resource_group].placed(session, _load(shape, decided))
        passed = desk.reservations[0].session_id if desk.reservations else None
        self._placements.append(_placement(session, shape, decided, passed))
        return None


def _load(shape: Shape, taken: Iterable[Taken]) -> Iterable[tuple[str, float]]:
    """What a session holds by kinds of capacity; a share of a device is a fraction of it."""
    if not shape.shares:
        return shape.kinds
    fractions = sum(
        amount / seat.host.capacity[name] for seat, amounts in taken for name, amount in devices_taken(amounts).items()
    )
    return [*((kind, amount) for kind, amount in shape.kinds if kind != GPU), (GPU, fractions)]


def _placement(session: PendingSession, shape: Shape, taken: list[Taken], passed: SessionId | None) -> Placement:
    kernels = tuple(
        KernelPlacement(
            kernel_id=kernel.id,
            agent_id=seat.host.id,
            amounts=amounts,
            devices=devices_taken(amounts) if shape.devices else {},
        )
        for kernel, (seat, amounts) in zip(session.kernels, taken, strict=True)
    )
    return Placement(
        session_id=session.id, kernels=kernels, clustered=session.clustered, joins=session.joins, passed=passed
    )


class _Grouped(Protocol):
    @property
    def resource_group(self) -> str: ...


G = TypeVar("G", bound=_Grouped)


def _by_group(many: Iterable[G]) -> dict[str, list[G]]:
    groups: dict[str, list[G]] = {}
    for one in many:
        groups.setdefault(one.resource_group, []).append(one)
    return groups
