"""What has to hold of a plan, worked out again from the snapshot without anything that the planner uses."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from domain.ids import AgentId
from domain.placement import Group, Host, KernelPlacement, PendingSession, Placement, Plan, Reservation, Snapshot
from domain.session import ClusterMode

CODES = {
    *("no_hosts", "impossible", "insufficient", "quota", "reserved", "behind", "image_elsewhere", "agent", "labels"),
    *("apart_from", "gpu_model", "gpu_sharing"),
}
PASSING = 3600.0

Free = dict[AgentId, dict[str, int]]


def check(snapshot: Snapshot, now: datetime, made: Plan) -> None:
    world = _World(snapshot, now, made)
    world.everybody_has_one_answer()
    for placement in made.placements:
        world.place(placement)
    world.nobody_is_too_near()
    world.limits_hold()
    world.queues_are_in_order()
    for reservation in made.reservations:
        world.nobody_delays(reservation)
    for session in snapshot.pending:
        if session.id in made.blocked:
            world.is_blocked_rightly(session)


class _World:
    def __init__(self, snapshot: Snapshot, now: datetime, made: Plan) -> None:
        self.snapshot = snapshot
        self.now = now
        self.made = made
        self.sessions = {session.id: session for session in snapshot.pending}
        self.hosts = {host.id: host for host in snapshot.hosts}
        self.groups = {group.name: group for group in snapshot.groups}
        self.free: Free = {host.id: dict(host.free) for host in snapshot.hosts}

    def group(self, session: PendingSession) -> Group:
        return self.groups.get(session.resource_group, Group())

    def everybody_has_one_answer(self) -> None:
        placed = [placement.session_id for placement in self.made.placements]
        assert len(set(placed)) == len(placed)
        assert set(placed) | set(self.made.blocked) == set(self.sessions)
        assert not set(placed) & set(self.made.blocked)
        assert {blocked.code for blocked in self.made.blocked.values()} <= CODES
        ordered = [session for order in self.made.order.values() for session in order]
        assert sorted(ordered) == sorted(self.sessions)

    # -- what is placed --------------------------------------------------------------------------------------------------
    def place(self, placement: Placement) -> None:
        session = self.sessions[placement.session_id]
        assert [kernel.kernel_id for kernel in placement.kernels] == [kernel.id for kernel in session.kernels]
        on = {kernel.agent_id for kernel in placement.kernels} | session.hosts
        if session.cluster_mode is ClusterMode.SINGLE_NODE:
            assert len(on) == 1
        elif session.clustered:
            assert len(on) == 1 or all(self.hosts[host].address for host in on)
        for kernel, asked in zip(placement.kernels, session.kernels, strict=True):
            assert may_be_on(session, self.hosts[kernel.agent_id])
            self._take(session, kernel, asked.slots)

    def _take(self, session: PendingSession, kernel: KernelPlacement, asked: Mapping[str, int]) -> None:
        host, free = self.hosts[kernel.agent_id], self.free[kernel.agent_id]
        plain = {name: amount for name, amount in asked.items() if amount and name not in ("gpu", "gpu-mem")}
        assert {name: n for name, n in kernel.amounts.items() if name not in kernel.devices} == plain
        whole, share = asked.get("gpu", 0), asked.get("gpu-mem", 0)
        assert len(kernel.devices) == whole + (share > 0)
        able = {name for name in host.capacity if is_able(host, name, session.constraints.gpu_model)}
        assert set(kernel.devices) <= able
        if share:
            [device] = kernel.devices
            assert self.group(session).gpu_sharing
            assert not whole_only(host, device)
            assert kernel.devices[device] == share
        else:
            assert all(free[name] == host.capacity[name] == amount for name, amount in kernel.devices.items())
        for name, amount in kernel.amounts.items():
            free[name] -= amount
            assert free[name] >= 0, (host.id, name)

    def nobody_is_too_near(self) -> None:
        there = defaultdict(list)
        for held in self.snapshot.holdings:
            there[held.agent_id, held.user_id].append((held.session_id, held.labels, held.apart_from, False))
        for placement in self.made.placements:
            session = self.sessions[placement.session_id]
            for host in {kernel.agent_id for kernel in placement.kernels}:
                what = (session.id, session.labels, session.constraints.apart_from, True)
                there[host, session.user_id].append(what)
        for many in there.values():
            for one, _, apart, new in many:
                for other, labels, _, other_is_new in many:
                    if one != other and (new or other_is_new):
                        assert not any(labels.get(key) == value for key, value in apart.items())

    def limits_hold(self) -> None:
        for limit in self.snapshot.limits:
            asked = 0
            for placement in self.made.placements:
                session = self.sessions[placement.session_id]
                if limit.scope in session.scopes:
                    asked += asks(session).get(limit.name, 0)
            assert asked == 0 or limit.held + asked <= limit.max_amount

    # -- the order -------------------------------------------------------------------------------------------------------
    def queues_are_in_order(self) -> None:
        placed = {placement.session_id: placement for placement in self.made.placements}
        for name, order in self.made.order.items():
            standing = _Standing(self.snapshot, name)
            left = [self.sessions[session] for session in order]
            while left:
                session = left[0]
                level = [other for other in left if other.priority == session.priority]
                assert all(other.priority <= session.priority for other in left)
                mine = (
                    level if not self.group(session).fair_share else [s for s in level if s.user_id == session.user_id]
                )
                assert session == min(mine, key=lambda s: (s.created_at, s.id))
                if self.group(session).fair_share:
                    least = min(standing.share(other) for other in level)
                    assert standing.share(session) <= least + 1e-9
                if session.id in placed:
                    standing.add(session, placed[session.id], self.hosts)
                left.pop(0)

    # -- what is kept ----------------------------------------------------------------------------------------------------
    def nobody_delays(self, reservation: Reservation) -> None:
        """When the time has come, all that is kept is free; or as much of it as if nobody had passed."""
        session = self.sessions[reservation.session_id]
        assert session.id in self.made.blocked
        order = self.made.order[session.resource_group]
        later = set(order[order.index(session.id) :])
        passing = [p for p in self.made.placements if p.session_id in later]
        assert all(p.passed for p in passing if self.sessions[p.session_id].architecture == session.architecture)
        if reservation.at is not None:
            overdue = any(held.ends_at is not None and held.ends_at <= self.now for held in self.snapshot.holdings)
            assert reservation.at > self.now or overdue  # or it would have been placed
            room = self._then(reservation.hosts, reservation.at, self.made.placements)
            assert self._holds(session, room)
            return
        before = [p for p in self.made.placements if p.session_id not in later]
        lasting = [p for p in passing if not self._ends_by(p, self.now + timedelta(seconds=PASSING))]
        without = self._then(reservation.hosts, datetime.max.replace(tzinfo=self.now.tzinfo), before)
        with_them = self._then(reservation.hosts, datetime.max.replace(tzinfo=self.now.tzinfo), [*before, *lasting])
        if session.cluster_mode is ClusterMode.SINGLE_NODE or len(session.kernels) == 1:
            for host in reservation.hosts:
                needs = plain_sum(session)
                for name, amount in needs.items():
                    now_missing = max(0, amount - with_them[host].get(name, 0))
                    assert now_missing == max(0, amount - without[host].get(name, 0))

    def _then(self, hosts: Iterable[AgentId], at: datetime, placements: Iterable[Placement]) -> Free:
        room = {host: dict(self.hosts[host].free) for host in hosts}
        for held in self.snapshot.holdings:
            if held.agent_id in room and held.ends_at is not None and held.ends_at <= max(at, self.now):
                for name, amount in held.amounts.items():
                    room[held.agent_id][name] += amount
        for placement in placements:
            if not self._ends_by(placement, at):
                for kernel in placement.kernels:
                    for name, amount in kernel.amounts.items() if kernel.agent_id in room else ():
                        room[kernel.agent_id][name] -= amount
        return room

    def _ends_by(self, placement: Placement, at: datetime) -> bool:
        seconds = self.sessions[placement.session_id].lifetime_seconds
        return seconds is not None and self.now + timedelta(seconds=seconds) <= at

    def _holds(self, session: PendingSession, room: Free) -> bool:
        slots = [kernel.slots for kernel in session.kernels]
        model = session.constraints.gpu_model
        if session.cluster_mode is ClusterMode.SINGLE_NODE:
            return any(number_on(self.hosts[host], room[host], slots, model) for host in room)
        if all(one == slots[0] for one in slots):
            fitting = (number_on(self.hosts[host], room[host], [slots[0]], model, most=len(slots)) for host in room)
            return sum(fitting) >= len(slots)
        whole = {name: sum(host.get(name, 0) for host in room.values()) for name in ("cpu", "mem")}
        return all(amount <= whole[name] for name, amount in plain_sum(session).items() if name in whole)

    # -- what is blocked -------------------------------------------------------------------------------------------------
    def is_blocked_rightly(self, session: PendingSession) -> None:
        why = self.made.blocked[session.id]
        assert why.detail
        kept = {reservation.session_id for reservation in self.made.reservations}
        match why.code:
            case "reserved" | "behind":
                assert why.behind in kept - {session.id}
                assert (why.code == "behind") == (not self.group(session).backfill)
            case "insufficient":
                assert not self.fits(session, self.free, self.near(session))
            case "apart_from":
                assert not self.fits(session, self.free, self.near(session))
            case "impossible" | "no_hosts" | "labels" | "gpu_model" | "gpu_sharing" | "agent" | "image_elsewhere":
                assert not self.fits(session, {host.id: dict(host.capacity) for host in self.snapshot.hosts}, set())
            case "quota":
                assert any(
                    limit.scope in session.scopes
                    and asks(session).get(limit.name, 0) + self.held(limit) > limit.max_amount
                    for limit in self.snapshot.limits
                )

    def held(self, limit: object) -> int:
        total = 0
        for placement in self.made.placements:
            session = self.sessions[placement.session_id]
            if limit.scope in session.scopes:  # type: ignore[attr-defined]
                total += asks(session).get(limit.name, 0)  # type: ignore[attr-defined]
        return total + limit.held  # type: ignore[attr-defined, no-any-return]

    def near(self, session: PendingSession) -> set[AgentId]:
        """Hosts with somebody from whom it is kept apart."""
        found = set()
        placed = [(k.agent_id, self.sessions[p.session_id]) for p in self.made.placements for k in p.kernels]
        there = [(h.agent_id, h.session_id, h.user_id, h.labels, h.apart_from) for h in self.snapshot.holdings]
        there += [(host, s.id, s.user_id, s.labels, s.constraints.apart_from) for host, s in placed]
        for host, other, user, labels, apart in there:
            mine = any(labels.get(key) == value for key, value in session.constraints.apart_from.items())
            theirs = any(session.labels.get(key) == value for key, value in apart.items())
            if user == session.user_id and other != session.id and (mine or theirs):
                found.add(host)
        return found

    def fits(self, session: PendingSession, free: Free, near: set[AgentId]) -> bool:
        """Whether it certainly does: of gangs of unlike kernels nothing is said."""
        slots = [kernel.slots for kernel in session.kernels]
        model = session.constraints.gpu_model
        if any(one.get("gpu-mem", 0) for one in slots) and not self.group(session).gpu_sharing:
            return False
        hosts = [host for host in self.snapshot.hosts if may_be_on(session, host) and host.id not in near]
        on_one = any(number_on(host, free[host.id], slots, model) for host in hosts)
        if session.cluster_mode is ClusterMode.SINGLE_NODE or (session.joins and not session.clustered):
            return on_one
        if session.clustered:
            others = [self.hosts.get(host) for host in session.hosts]
            reach = all(host is not None and host.address for host in others)
            here = [host for host in hosts if host.id in session.hosts]
            if any(number_on(host, free[host.id], slots, model) for host in here or ([] if session.joins else hosts)):
                return True
            hosts = [host for host in hosts if host.address] if reach else []
        if any(one != slots[0] for one in slots):
            return False
        fitting = (number_on(host, free[host.id], [slots[0]], model, most=len(slots)) for host in hosts)
        return sum(fitting) >= len(slots)


class _Standing:
    """Shares by the formula."""

    def __init__(self, snapshot: Snapshot, group: str) -> None:
        hosts = [host for host in snapshot.hosts if host.resource_group == group]
        self.capacity: Counter[str] = Counter()
        for host in hosts:
            for name, amount in host.capacity.items():
                kind = "gpu" if name.startswith("gpu/") else name
                self.capacity[kind] += 1 if kind == "gpu" else amount
        self.shares = {share.user_id: share for share in snapshot.shares if share.resource_group == group}
        self.held: defaultdict[object, Counter[str]] = defaultdict(Counter)

    def share(self, session: PendingSession) -> float:
        user = session.user_id
        known = self.shares.get(user)
        weight = known.weight if known else 1.0
        most = 0.0
        for kind, whole in self.capacity.items():
            amount: float = self.held[user][kind]
            if known:
                amount += known.held.get(kind, 0.0) + known.past.get(kind, 0.0)
            most = max(most, amount / whole / weight) if whole else most
        return most

    def add(self, session: PendingSession, placement: Placement, hosts: Mapping[AgentId, Host]) -> None:
        for kernel in placement.kernels:
            for name, amount in kernel.amounts.items():
                if name in kernel.devices:
                    self.held[session.user_id]["gpu"] += amount / hosts[kernel.agent_id].capacity[name]  # type: ignore[assignment]
                else:
                    self.held[session.user_id][name] += amount


def asks(session: PendingSession) -> Counter[str]:
    asked: Counter[str] = Counter({} if session.joins else {"sessions": 1})
    for kernel in session.kernels:
        asked.update(kernel.slots)
    return asked


def plain_sum(session: PendingSession) -> dict[str, int]:
    return {name: n for name, n in asks(session).items() if n and name not in ("gpu", "gpu-mem", "sessions")}


def may_be_on(session: PendingSession, host: Host) -> bool:
    constraints = session.constraints
    return (
        host.resource_group == session.resource_group
        and host.architecture == session.architecture
        and constraints.agent in (None, host.id)
        and constraints.labels.items() <= host.labels.items()
        and session.images_on <= {host.id}
        and session.stores <= {host.store}
        and not (session.joins and session.cluster_mode is ClusterMode.SINGLE_NODE and host.id not in session.hosts)
    )


def is_able(host: Host, name: str, model: str | None) -> bool:
    """A device of the model; a part of one only if it is named."""
    if not name.startswith("gpu/"):
        return False
    if model is None:
        return True
    words = {word for device in host.devices if device.name == name for word in re.split(r"[ -]", device.model.lower())}
    return model.lower() in words and "mig" not in words


def whole_only(host: Host, name: str) -> bool:
    return any(device.whole_only for device in host.devices if device.name == name)


def number_on(
    host: Host, free: Mapping[str, int], slots: Sequence[Mapping[str, int]], model: str | None, *, most: int = 1
) -> int:
    """How many times all of these kernels fit there; shares are tried out on every device."""
    number = 0
    left = dict(free)
    while number < most and _try(host, left, list(slots), model):
        number += 1
    return number


def _try(host: Host, left: dict[str, int], slots: list[Mapping[str, int]], model: str | None) -> bool:
    for one in slots:
        for name, amount in one.items():
            if name not in ("gpu", "gpu-mem"):
                left[name] = left.get(name, 0) - amount
                if left[name] < 0 < amount:
                    return False
    able = [name for name in left if is_able(host, name, model)]
    idle = [name for name in able if left[name] == host.capacity[name] > 0]
    whole = sum(one.get("gpu", 0) for one in slots)
    if whole > len(idle):
        return False
    shares = sorted((one["gpu-mem"] for one in slots if one.get("gpu-mem")), reverse=True)
    for name in sorted(idle, key=lambda name: (not whole_only(host, name), host.capacity[name]))[:whole]:
        left[name] = 0
    for share in shares:
        fitting = [name for name in able if not whole_only(host, name) and left[name] >= share]
        if not fitting:
            return False
        left[min(fitting, key=lambda name: left[name])] -= share
    return True
