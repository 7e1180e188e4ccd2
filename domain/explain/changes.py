"""Snapshots as they would be if something were different; nothing here decides anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from domain.explain.values import Counted
from domain.ids import SessionId
from domain.placement import DEVICE, GPU, Holding, Host, Limit, PendingSession, Share, Snapshot


def instead(snapshot: Snapshot, session: PendingSession) -> Snapshot:
    """With another form of one of the sessions in the queue."""
    pending = tuple(session if one.id == session.id and not one.joins else one for one in snapshot.pending)
    return replace(snapshot, pending=pending)


def at_most(session: PendingSession, slots: Mapping[str, int]) -> PendingSession:
    """With no more than so much for each kernel."""
    kernels = tuple(
        replace(kernel, slots={name: min(amount, slots.get(name, amount)) for name, amount in kernel.slots.items()})
        for kernel in session.kernels
    )
    return replace(session, kernels=kernels)


def raised(snapshot: Snapshot, limits: Mapping[tuple[tuple[str, str], str], int]) -> Snapshot:
    """With limits that are this high, by (scope, name)."""
    changed = tuple(
        replace(limit, max_amount=limits.get((limit.scope, limit.name), limit.max_amount)) for limit in snapshot.limits
    )
    return replace(snapshot, limits=changed)


def ended(snapshot: Snapshot, gone: Collection[SessionId], counted: Mapping[SessionId, Counted]) -> Snapshot:
    """Without these sessions: what they held is free again, for their hosts, their owners' limits and shares."""
    gone = set(gone)
    left: dict[str, list[Holding]] = {}
    for holding in snapshot.holdings:
        if holding.session_id in gone:
            left.setdefault(holding.agent_id, []).append(holding)
    hosts = tuple(_freed(host, left[host.id]) if host.id in left else host for host in snapshot.hosts)
    given_back: dict[tuple[tuple[str, str], str], int] = {}
    for session_id in gone:
        for limit, amount in counted.get(session_id, {}).items():
            given_back[limit] = given_back.get(limit, 0) + amount
    return replace(
        snapshot,
        hosts=hosts,
        holdings=tuple(holding for holding in snapshot.holdings if holding.session_id not in gone),
        limits=tuple(_lighter(limit, given_back.get((limit.scope, limit.name), 0)) for limit in snapshot.limits),
        shares=_shares(snapshot, left),
    )


def emptied(snapshot: Snapshot, session: PendingSession) -> Snapshot:
    """Nothing but this session: empty hosts, nobody else in the queue, nothing counted for a limit."""
    return replace(
        snapshot,
        pending=(session,),
        hosts=tuple(replace(host, free=dict(host.capacity)) for host in snapshot.hosts),
        holdings=(),
        limits=tuple(replace(limit, held=0) for limit in snapshot.limits),
        shares=tuple(replace(share, held={}) for share in snapshot.shares),
    )


def _freed(host: Host, holdings: Collection[Holding]) -> Host:
    free = dict(host.free)
    for holding in holdings:
        for name, amount in holding.amounts.items():
            if name in free:  # a device that was taken out does not come back
                free[name] = min(free[name] + amount, host.capacity.get(name, 0))
    return replace(host, free=free)


def _lighter(limit: Limit, by: int) -> Limit:
    return replace(limit, held=max(0, limit.held - by)) if by else limit


def _shares(snapshot: Snapshot, left: Mapping[str, Collection[Holding]]) -> tuple[Share, ...]:
    freed: dict[tuple[str, object], dict[str, float]] = {}
    for host in snapshot.hosts:
        for holding in left.get(host.id, ()):
            held = freed.setdefault((host.resource_group, holding.user_id), {})
            for kind, amount in _kinds(host, holding).items():
                held[kind] = held.get(kind, 0.0) + amount
    return tuple(
        replace(share, held={k: max(0.0, v - by.get(k, 0.0)) for k, v in share.held.items()})
        if (by := freed.get((share.resource_group, share.user_id)))
        else share
        for share in snapshot.shares
    )


def _kinds(host: Host, holding: Holding) -> dict[str, float]:
    """As a `Share` counts it: a share of a device is a fraction of it."""
    held: dict[str, float] = {}
    for name, amount in holding.amounts.items():
        if not name.startswith(DEVICE):
            held[name] = held.get(name, 0.0) + amount
        elif whole := host.capacity.get(name):
            held[GPU] = held.get(GPU, 0.0) + amount / whole
    return held
