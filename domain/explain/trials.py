"""Runs `plan` on changed snapshots, as often as is allowed, and keeps count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar

from domain.explain.changes import instead
from domain.explain.values import Surroundings
from domain.ids import AgentId, SessionId
from domain.placement import PendingSession, Plan, Snapshot
from domain.scheduler import plan

T = TypeVar("T")
#: Of a longer queue, those behind the session are left out while looking; what is found is tried with all of them.
_SHORT_QUEUE: Final = 300


class EnoughTried(Exception):
    """No more plans are made."""


class Trials:
    """Whether a session would start if something were different."""

    def __init__(self, snapshot: Snapshot, session: PendingSession, now: datetime, around: Surroundings) -> None:
        self.session = session
        self.now = now
        self.made = 0
        self._most = around.most_plans
        self._is_over = around.is_over
        self.snapshot = snapshot
        self.plan = self._run(snapshot, now)
        self._behind = self._after(snapshot) if len(snapshot.pending) > _SHORT_QUEUE else frozenset()

    @property
    def starts(self) -> bool:
        """As everything is."""
        return places(self.plan, self.session.id)

    def would(self, changed: Snapshot, at: datetime | None = None) -> bool:
        """For looking around: without those that come after it anyway."""
        if self._behind:
            changed = replace(changed, pending=tuple(s for s in changed.pending if s.id not in self._behind))
        return places(self._run(changed, at or self.now), self.session.id)

    def would_indeed(self, changed: Snapshot, at: datetime | None = None) -> bool:
        """For what has been found, and `would` has said yes to: with all of them."""
        return not self._behind or places(self._run(changed, at or self.now), self.session.id)

    def places_on(self, changed: Snapshot, at: datetime) -> set[AgentId]:
        """The hosts that it would get."""
        made = self._run(changed, at)
        mine = (one for one in made.placements if one.session_id == self.session.id and not one.joins)
        return {kernel.agent_id for one in mine for kernel in one.kernels}

    def with_session(self, base: Snapshot, **changes: object) -> Snapshot:
        return instead(base, replace(self.session, **changes))  # type: ignore[arg-type]

    def _run(self, snapshot: Snapshot, now: datetime) -> Plan:
        if self.made and (self.made >= self._most or self._is_over()):
            raise EnoughTried
        self.made += 1
        return plan(snapshot, now)

    def _after(self, snapshot: Snapshot) -> frozenset[SessionId]:
        """Those that come after it in its group, for which the plan found nothing that it keeps from it."""
        order = self.plan.order.get(self.session.resource_group, ())
        if self.session.id not in order:
            return frozenset()
        return frozenset(order[order.index(self.session.id) + 1 :])


def places(made: Plan, session_id: SessionId) -> bool:
    return any(placement.session_id == session_id and not placement.joins for placement in made.placements)


def first_that(candidates: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The first for which it holds, found by halving: as if it held for all that come after such a one.

    Where it does not, the answer is still one for which it holds.
    """
    if not candidates or not holds(candidates[-1]):
        return None
    low, high = 0, len(candidates) - 1  # it holds at high
    while low < high:
        middle = (low + high) // 2
        if holds(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return candidates[high]
