"""Whose turn it is in one resource group: by priority, then by who held less, then by who came first.

share(user) = max over kinds k of (held_k + past_k) / capacity_k, divided by the user's weight: the dominant resource,
of what is held now and, with decay, was held. Every placement raises what its user holds, so that one plan fills
everybody up evenly.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from domain.placement import DEVICE, GPU, Group, Host, PendingSession, Share

#: A weight of nothing would be a share without end.
_LEAST_WEIGHT: Final = 1e-9


class Queue:
    """Asked for one session after the other; what became of it may change who is next."""

    def __init__(
        self, sessions: Sequence[PendingSession], group: Group, shares: Iterable[Share], capacity: Mapping[str, int]
    ) -> None:
        self._sessions = sorted(sessions, key=_age)
        self._levels = _levels(self._sessions, fair=group.fair_share)
        self._standing = Standing(shares, capacity)
        self._heap: list[tuple[float, int]] = []
        self._users: dict[UUID, deque[int]] = {}
        self._last: UUID | None = None

    def next(self) -> PendingSession | None:
        if (last := self._last) is not None:
            self._last = None
            self._enter(last)  # with the share that it has by now
        while not self._heap:
            if not self._levels:
                return None
            self._users = self._levels.pop()
            for user in self._users:
                self._enter(user)
        rank = heapq.heappop(self._heap)[1]
        session = self._sessions[rank]
        self._last = session.user_id if session.user_id in self._users else next(iter(self._users))
        return session

    def _enter(self, user: UUID) -> None:
        if waiting := self._users[user]:
            heapq.heappush(self._heap, (self._standing.share(user), waiting.popleft()))

    def placed(self, session: PendingSession, amounts: Iterable[tuple[str, float]]) -> None:
        """It takes this much, by kinds."""
        self._standing.add(session.user_id, amounts)


class Standing:
    """What each user has of a group."""

    def __init__(self, shares: Iterable[Share], capacity: Mapping[str, int]) -> None:
        self._capacity = capacity
        self._loads: dict[UUID, dict[str, float]] = defaultdict(dict)
        self._weights: dict[UUID, float] = {}
        self._shares: dict[UUID, float] = {}
        for share in shares:
            self._weights[share.user_id] = max(share.weight, _LEAST_WEIGHT)
            for kind in sorted({*share.held, *share.past}):
                self.add(share.user_id, ((kind, share.held.get(kind, 0.0) + share.past.get(kind, 0.0)),))

    def share(self, user: UUID) -> float:
        return self._shares.get(user, 0.0)

    def add(self, user: UUID, amounts: Iterable[tuple[str, float]]) -> None:
        load, weight = self._loads[user], self._weights.get(user, 1.0)
        most = self._shares.get(user, 0.0)
        for kind, amount in amounts:
            if whole := self._capacity.get(kind, 0):
                load[kind] = of_kind = load.get(kind, 0.0) + amount / whole
                most = max(most, of_kind / weight)
        self._shares[user] = most


def capacity_of(hosts: Iterable[Host]) -> dict[str, int]:
    """By kinds; of devices their number."""
    total: dict[str, int] = {}
    for host in hosts:
        for name, amount in host.capacity.items():
            if name.startswith(DEVICE):
                name, amount = GPU, int(amount > 0)  # noqa: PLW2901
            total[name] = total.get(name, 0) + amount
    return total


def _age(session: PendingSession) -> tuple[object, ...]:
    return session.created_at, session.id, session.kernels[0].id if session.joins and session.kernels else session.id


def _levels(sessions: Sequence[PendingSession], *, fair: bool) -> list[dict[UUID, deque[int]]]:
    """Of each priority, the lowest first, the waiting of every user; without fair share all wait in one line."""
    levels: dict[int, dict[UUID, deque[int]]] = {}
    one_line = UUID(int=0)
    for rank, session in enumerate(sessions):
        users = levels.setdefault(session.priority, {})
        users.setdefault(session.user_id if fair else one_line, deque()).append(rank)
    return [levels[priority] for priority in sorted(levels)]
