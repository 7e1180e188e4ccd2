"""The part of a long queue that decides what a plan places: the same placements, in less time.

It relies on how `domain.scheduler` plans where nobody is bound by limits, and tests/simulation holds it against plans of
whole queues:
- room only shrinks within a plan, so who does not fit at its beginning is not placed, and matters only as one for whom
  room may be kept; of one user and kind, the first few do. Where the order is known, of one kind;
- nobody matters who comes after the last that fits;
- without backfill, nobody of a fleet is placed after the first for whom room is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from domain.placement import PendingSession, Plan
from domain.simulation.room import Shape

#: At least for so many of a fleet the scheduler tries to keep room in one plan.
RESERVATIONS = 8
_FIRST = 16

ShapeOf: TypeAlias = Callable[[PendingSession], Shape]
Fits: TypeAlias = Callable[[PendingSession], bool]
Planned: TypeAlias = Callable[[tuple[PendingSession, ...]], Plan]


def passing(queue: Iterable[PendingSession], fits: Fits, shape_of: ShapeOf) -> list[PendingSession]:
    """Those that fit, and of the others the first of every user and kind."""
    kept, seen = [], Counter[object]()
    for session in sorted(queue, key=_order):
        if not fits(session):
            kind = (session.user_id, session.priority, _kind(shape_of(session)))
            seen[kind] += 1
            if seen[kind] > RESERVATIONS:
                continue
        kept.append(session)
    return kept


def in_order(
    queue: Iterable[PendingSession], fits: Fits, shape_of: ShapeOf, share: Callable[[PendingSession], float]
) -> list[PendingSession]:
    """Where placements do not change the order: the first of every kind, up to the last that fits."""
    kept, seen, end = [], Counter[object](), 0
    for session in sorted(queue, key=lambda one: (-one.priority, share(one), one.created_at, one.id)):
        if not fits(session):
            kind = _kind(shape_of(session))
            seen[kind] += 1
            if seen[kind] <= RESERVATIONS:
                kept.append(session)
        else:
            kept.append(session)
            end = len(kept)
    return kept[:end]


def _kind(one: Shape) -> object:
    """Sessions of one kind compete for the same reservation."""
    group, architecture, model, kernels, slots = one
    return group, architecture, model, kernels > 1, any(name.startswith("gpu") for name, _ in slots)


def in_line(queue: Sequence[PendingSession], planned: Planned, *, fair_share: bool) -> Plan:
    """Without backfill: plan with the heads of all users' lines (all in one line: of it), with more if that is not enough."""
    ordered = sorted(queue, key=_order)
    many = _FIRST if fair_share else 4 * _FIRST
    while True:
        heads, last, rest = _heads(ordered, many, fair_share)
        plan = planned(tuple(heads))
        if not rest or _settled(plan, heads, last, rest):
            return plan
        many *= 4


def _heads(
    ordered: Sequence[PendingSession], many: int, fair_share: bool
) -> tuple[list[PendingSession], dict[object, PendingSession], dict[object, PendingSession]]:
    """The first of every line, the last of these in every line, and lines that go on."""
    heads, counted = [], Counter[object]()
    last: dict[object, PendingSession] = {}
    rest: dict[object, PendingSession] = {}
    for session in ordered:
        line = (session.resource_group, session.user_id) if fair_share else session.resource_group
        counted[line] += 1
        if counted[line] <= many:
            heads.append(session)
            last[line] = session
        else:
            rest[line] = session
    return heads, last, rest


def _settled(
    plan: Plan, heads: Sequence[PendingSession], last: dict[object, PendingSession], rest: dict[object, PendingSession]
) -> bool:
    """Whether every line that goes on was looked at until after room was kept for somebody of its group."""
    by_id = {session.id: session for session in heads}
    if len({session.architecture for session in heads}) > 1:
        return False  # fleets of one group, each with a line of its own
    place = {session_id: at for order in plan.order.values() for at, session_id in enumerate(order)}
    kept: dict[str, int] = {}
    for reservation in plan.reservations:
        group = by_id[reservation.session_id].resource_group
        kept[group] = min(kept.get(group, len(place)), place[reservation.session_id])
    return all(
        (group := last[line].resource_group) in kept and place.get(last[line].id, -1) > kept[group] for line in rest
    )


def _order(session: PendingSession) -> tuple[object, ...]:
    return -session.priority, session.created_at, session.id
