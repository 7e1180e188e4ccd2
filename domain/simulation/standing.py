"""What is held in the simulation, and by whom: hosts' free amounts, fair-share accounts, what limits count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from domain.ids import AgentId, SessionId
from domain.placement import Holding, Host, Limit, PendingSession, Placement, Share
from domain.simulation.fleet import Fleet
from domain.simulation.ledger import Ledger, by_kind
from domain.simulation.policy import Policy
from domain.simulation.room import Room


class Overcommitted(RuntimeError):
    """The plan gave out what is not there: a defect of the scheduler, which a simulation must not hide."""


class Holdings:
    def __init__(self, fleet: Fleet, policy: Policy, groups: Iterable[str], weights: dict[UUID, float]) -> None:
        self._hosts = {host.id: host for host in fleet.hosts}
        self._policy = policy
        self._ledgers = {name: Ledger(name, policy.half_life_seconds, weights) for name in groups}
        self._holdings: dict[SessionId, tuple[Holding, ...]] = {}
        self._sessions: dict[SessionId, PendingSession] = {}
        self._limited: dict[UUID, dict[str, int]] = {}
        self.room = Room(fleet.hosts)
        self.totals = {"cpu": 0.0, "mem": 0.0, "gpu": 0.0}

    @property
    def hosts(self) -> tuple[Host, ...]:
        return tuple(self._hosts.values())

    @property
    def holdings(self) -> tuple[Holding, ...]:
        return tuple(holding for many in self._holdings.values() for holding in many)

    def take(
        self, session: PendingSession, placement: Placement, ends_at: datetime | None, now_ms: int
    ) -> Mapping[str, float]:
        """Give a session what was planned for it, and say how much that is; `ends_at` is what the scheduler knows."""
        by_host: dict[AgentId, dict[str, int]] = {}
        for kernel in placement.kernels:
            amounts = by_host.setdefault(kernel.agent_id, {})
            for name, amount in kernel.amounts.items():
                amounts[name] = amounts.get(name, 0) + amount
        holdings = tuple(
            Holding(session_id=session.id, agent_id=host, amounts=amounts, user_id=session.user_id, ends_at=ends_at)
            for host, amounts in by_host.items()
        )
        self._sessions[session.id] = session
        self._holdings[session.id] = holdings
        return self._change(session, holdings, 1, now_ms)

    def release(self, session_id: SessionId, now_ms: int) -> Sequence[AgentId]:
        """The hosts that have more now."""
        holdings = self._holdings.pop(session_id)
        self._change(self._sessions.pop(session_id), holdings, -1, now_ms)
        return [holding.agent_id for holding in holdings]

    def shares(self, users: Iterable[tuple[str, UUID]], now_ms: int) -> tuple[Share, ...]:
        """Of these users in these groups."""
        return tuple(share for group, user in users for share in self._ledgers[group].shares((user,), now_ms))

    def limits(self, users: Iterable[UUID]) -> tuple[Limit, ...]:
        return tuple(
            Limit(scope=("user", str(user)), name=name, max_amount=most, held=self._limited.get(user, {}).get(name, 0))
            for user in users
            for name, most in self._policy.per_user.items()
        )

    def _change(
        self, session: PendingSession, holdings: Sequence[Holding], sign: int, now_ms: int
    ) -> Mapping[str, float]:
        total = {"cpu": 0.0, "mem": 0.0, "gpu": 0.0}
        for holding in holdings:
            host = self._hosts[holding.agent_id]
            free = dict(host.free)
            for name, amount in holding.amounts.items():
                free[name] = free.get(name, 0) - sign * amount
                if not 0 <= free[name] <= host.capacity.get(name, 0):
                    raise Overcommitted(f"{name} of {host.id} for session {session.id}: {free[name]} would be free")
            self._hosts[host.id] = host = replace(host, free=free)
            self.room.set(host)
            kinds = by_kind(holding.amounts, host.capacity)
            for name, kind_amount in kinds.items():
                self.totals[name] += sign * kind_amount
                total[name] += kind_amount
            self._ledgers[session.resource_group].change(session.user_id, kinds, sign, now_ms)
        if self._policy.per_user:
            held = self._limited.setdefault(session.user_id, {})
            held["sessions"] = held.get("sessions", 0) + sign
            for kernel in session.kernels:
                for name, amount in kernel.slots.items():
                    held[name] = held.get(name, 0) + sign * amount
        return total
