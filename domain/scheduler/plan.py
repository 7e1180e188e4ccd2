"""Who of the queue gets which host. Pure: the same snapshot and time give the same plan.

First fit: sessions by priority, then age; hosts by id. A session gets hosts for all of its kernels or for none.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from domain.ids import AgentId, KernelId
from domain.placement import Blocked, Host, KernelPlacement, PendingSession, Placement, Plan, Snapshot
from domain.session import ClusterMode

#: A whole device is asked for as `gpu` and taken as `gpu/UUID`.
_DEVICE: Final = "gpu"
_UNITS: Final = {"cpu": "CPUs", "mem": "MiB of memory", "gpu": "GPUs"}

Amounts = Mapping[str, int]


def plan(snapshot: Snapshot, now: datetime) -> Plan:
    """Placements for whatever fits now, and for the rest what it lacks."""
    fleets: dict[str, _Fleet] = {}
    for architecture in {host.architecture for host in snapshot.hosts}:
        members = sorted((h for h in snapshot.hosts if h.architecture == architecture), key=lambda h: h.id)
        fleets[architecture] = _Fleet(members)
    placements: list[Placement] = []
    blocked = {}
    nobody = _Fleet([])
    for session in sorted(snapshot.pending, key=lambda s: (-s.priority, s.created_at, s.id)):
        fleet = fleets.get(session.architecture, nobody)
        kernels = _fit(session, fleet)
        if kernels is None:
            blocked[session.id] = _why(session, fleet)
        else:
            placements.append(
                Placement(session_id=session.id, kernels=kernels, clustered=session.clustered, joins=session.joins)
            )
    return Plan(placements=tuple(placements), blocked=blocked)


def _fit(session: PendingSession, fleet: _Fleet) -> tuple[KernelPlacement, ...] | None:
    having = fleet.having(session.stores) if session.stores else None
    if session.images_on:  # made of a snapshot: it goes where that lies
        having = _both(having, fleet.numbers(session.images_on) if len(session.images_on) == 1 else set())
    if session.cluster_mode is ClusterMode.SINGLE_NODE:
        return _fit_one_host(session, fleet, _both(fleet.numbers(session.hosts) if session.joins else None, having))
    if not session.clustered:
        return _fit_hosts(session, fleet, having)
    # Hosts that cannot reach each other share no network: either all of them can, or one host holds everything.
    reachable = fleet.reachable()
    here = fleet.numbers(session.hosts)
    if not session.joins or here <= reachable:
        found = _fit_hosts(session, fleet, _both(reachable | here, having))
        if found is not None:
            return found
    one = _both(here if session.joins else None, having)
    return _fit_one_host(session, fleet, one) if len(session.hosts) <= 1 else None


def _both(one: set[int] | None, other: set[int] | None) -> set[int] | None:
    """Hosts of both; None is all hosts."""
    return other if one is None else one if other is None else one & other


def _fit_one_host(
    session: PendingSession, fleet: _Fleet, among: Container[int] | None
) -> tuple[KernelPlacement, ...] | None:
    host = fleet.first_with(_sum(kernel.slots for kernel in session.kernels), among)
    if host is None:
        return None
    return tuple(fleet.take(host, kernel.id, kernel.slots) for kernel in session.kernels)


def _fit_hosts(
    session: PendingSession, fleet: _Fleet, among: Container[int] | None
) -> tuple[KernelPlacement, ...] | None:
    taken: list[tuple[int, KernelPlacement]] = []
    for kernel in session.kernels:
        host = fleet.first_with(kernel.slots, among)
        if host is None:
            for number, placement in taken:
                fleet.give_back(number, placement)
            return None
        taken.append((host, fleet.take(host, kernel.id, kernel.slots)))
    return tuple(placement for _, placement in taken)


class _Fleet:
    """The free amounts of hosts of one architecture, with the largest of each subtree: the first host that fits is
    found in about log(hosts) steps."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._free = [{name: max(0, amount) for name, amount in host.free.items()} for host in hosts]
        self._names = sorted({_kind(name) for free in self._free for name in free})
        self._index = {name: at for at, name in enumerate(self._names)}
        self._width = 1 << max(0, len(hosts) - 1).bit_length()
        nothing = (0,) * len(self._names)
        self._tree = [nothing] * (2 * self._width)
        for number in range(len(hosts)):
            self._tree[self._width + number] = self._summary(number)
        for node in range(self._width - 1, 0, -1):
            self._tree[node] = tuple(map(max, self._tree[2 * node], self._tree[2 * node + 1]))
        #: shapes that nothing fits any more; within one plan, room only shrinks (but for a gang that is given back)
        self._hopeless: set[frozenset[tuple[str, int]]] = set()
        self._reachable: set[int] | None = None

    def __len__(self) -> int:
        return len(self._hosts)

    def numbers(self, hosts: Collection[AgentId]) -> set[int]:
        return {number for number, host in enumerate(self._hosts) if host.id in hosts} if hosts else set()

    def reachable(self) -> set[int]:
        """Hosts that others reach under an address."""
        if self._reachable is None:
            self._reachable = {number for number, host in enumerate(self._hosts) if host.address is not None}
        return self._reachable

    def having(self, stores: Collection[str]) -> set[int]:
        """Hosts that have all of these stores."""
        return {number for number, host in enumerate(self._hosts) if set(stores) <= {host.store}}

    def first_with(self, slots: Amounts, among: Container[int] | None = None) -> int | None:
        """The number of the first host with this much free, of all or of these."""
        shape = frozenset(slots.items())
        if shape in self._hopeless:
            return None
        found = self._descend(slots, among)
        if found is None and among is None:
            self._hopeless.add(shape)
        return found

    def _descend(self, slots: Amounts, among: Container[int] | None) -> int | None:
        if not self._hosts:
            return None
        asked = [(self._index.get(name, -1), amount) for name, amount in slots.items() if amount > 0]
        if any(at < 0 for at, _ in asked):
            return None
        stack = [1]
        while stack:
            node = stack.pop()
            most = self._tree[node]
            if not all(most[at] >= amount for at, amount in asked):
                continue
            if node >= self._width:
                number = node - self._width
                if number < len(self._hosts) and (among is None or number in among):
                    return number
                continue
            stack.append(2 * node + 1)
            stack.append(2 * node)
        return None

    def take(self, number: int, kernel_id: KernelId, slots: Amounts) -> KernelPlacement:
        """Only after `first_with` has found the host."""
        free = self._free[number]
        amounts: dict[str, int] = {}
        devices: dict[str, int] = {}
        for name, amount in slots.items():
            if name == _DEVICE and _DEVICE not in free:
                idle = [d for d in sorted(free) if _idle_device(self._hosts[number], free, d)]
                devices |= {device: free[device] for device in idle[:amount]}
            elif amount > 0:
                amounts[name] = amount
        amounts |= devices
        for name, amount in amounts.items():
            free[name] -= amount
        self._changed(number)
        return KernelPlacement(kernel_id=kernel_id, agent_id=self._hosts[number].id, amounts=amounts, devices=devices)

    def give_back(self, number: int, placement: KernelPlacement) -> None:
        for name, amount in placement.amounts.items():
            self._free[number][name] += amount
        self._hopeless.clear()
        self._changed(number)

    def most(self) -> dict[str, int]:
        """Of each kind of slot, the most that is free on one host."""
        return dict(zip(self._names, self._tree[1], strict=True))

    def could_ever(self, slots: Amounts) -> bool:
        return any(all(_whole(host.capacity, n) >= amount for n, amount in slots.items()) for host in self._hosts)

    def _summary(self, number: int) -> tuple[int, ...]:
        host, free = self._hosts[number], self._free[number]
        return tuple(
            free[name] if name in free else sum(_idle_device(host, free, d) for d in free) if name == _DEVICE else 0
            for name in self._names
        )

    def _changed(self, number: int) -> None:
        node = self._width + number
        self._tree[node] = self._summary(number)
        while node > 1:
            node //= 2
            most = tuple(map(max, self._tree[2 * node], self._tree[2 * node + 1]))
            if most == self._tree[node]:
                return
            self._tree[node] = most


def _idle_device(host: Host, free: Amounts, name: str) -> bool:
    return name.startswith(_DEVICE + "/") and 0 < host.capacity[name] == free[name]


def _kind(name: str) -> str:
    return name.split("/", 1)[0]


def _whole(capacity: Amounts, name: str) -> int:
    """What an empty host has of `name`; of devices, their number."""
    if name == _DEVICE and name not in capacity:
        return sum(other.startswith(_DEVICE + "/") for other in capacity)
    return capacity.get(name, 0)


def _sum(many: Iterable[Amounts]) -> dict[str, int]:
    total: dict[str, int] = {}
    for slots in many:
        for name, amount in slots.items():
            total[name] = total.get(name, 0) + amount
    return total


def _why(session: PendingSession, fleet: _Fleet) -> Blocked:
    if not len(fleet):
        return Blocked(
            code="no_hosts", detail=f"no host of architecture {session.architecture} takes sessions at the moment"
        )
    if session.stores and not fleet.having(session.stores):
        return Blocked(code="no_hosts", detail="no host that takes sessions at the moment has the store of its volumes")
    if len(session.images_on) > 1:
        hosts = " and ".join(sorted(session.images_on))
        return Blocked(code="impossible", detail=f"its snapshots lie on different hosts, {hosts}")
    if session.images_on and not fleet.numbers(session.images_on):
        return Blocked(
            code="image_elsewhere",
            detail=f"its image is a snapshot that lies on {next(iter(session.images_on))}, which takes no sessions at the moment",
        )
    single = session.cluster_mode is ClusterMode.SINGLE_NODE
    parts = [_sum(k.slots for k in session.kernels)] if single else [dict(kernel.slots) for kernel in session.kernels]
    for slots in parts:
        if not fleet.could_ever(slots):
            return Blocked(
                code="impossible", detail=f"no host that takes sessions has {_words(slots)}, not even when it is empty"
            )
    most = fleet.most()
    for slots in parts:
        if short := {name: amount for name, amount in slots.items() if amount > most.get(name, 0)}:
            free = {name: most.get(name, 0) for name in short}
            return Blocked(
                code="insufficient",
                detail=f"needs {_words(short)}; the most that is free on one host is {_words(free)}",
            )
    if session.images_on:
        host = next(iter(session.images_on))
        return Blocked(
            code="insufficient", detail=f"its image is a snapshot that lies on {host}, which has not enough free"
        )
    return Blocked(code="insufficient", detail="no host has all of it free at the same time")


def _words(slots: Amounts) -> str:
    return ", ".join(f"{_amount(name, amount)} {_UNITS.get(name, name)}" for name, amount in slots.items())


def _amount(name: str, amount: int) -> str:
    return f"{amount / 1000:g}" if name == "cpu" else str(amount)
