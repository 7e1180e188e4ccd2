"""Limits of what may be held at once: which of them a session would exceed, and how much higher they had to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from domain.explain import words
from domain.explain.changes import raised
from domain.explain.trials import Trials, first_that
from domain.explain.values import LimitChange, Way
from domain.placement import Limit, PendingSession, Snapshot

_Name = tuple[tuple[str, str], str]
_SCOPES: Final = {
    "user": "of the user {}",
    "project": "in project {}",
    "domain": "in domain {}",
    "keypair": "of the keypair {}",
}


def wants(session: PendingSession) -> dict[str, int]:
    """What it counts for limits, by their names."""
    total: dict[str, int] = {"sessions": 1}
    for kernel in session.kernels:
        for name, amount in kernel.slots.items():
            total[name] = total.get(name, 0) + amount
    return total


def exceeded(session: PendingSession, snapshot: Snapshot) -> list[tuple[Limit, int]]:
    """Limits that it would exceed as things are, and by how much."""
    asked = wants(session)
    over = [
        (limit, limit.held + asked.get(limit.name, 0) - limit.max_amount)
        for limit in snapshot.limits
        if limit.scope in session.scopes and asked.get(limit.name, 0) > 0
    ]
    return [(limit, short) for limit, short in over if short > 0]


def more_quota(trials: Trials, base: Snapshot, *, now: bool = True) -> Iterator[Way]:
    """With limits that are higher, each by the least that is enough while the others are as high as it takes."""
    session = trials.session
    asked = wants(session)
    bound = [limit for limit in base.limits if limit.scope in session.scopes and asked.get(limit.name, 0) > 0]
    others: dict[str, int] = {}
    for one in base.pending:
        for name, amount in wants(one).items():
            others[name] = others.get(name, 0) + amount
    highest: dict[_Name, int] = {(b.scope, b.name): max(b.max_amount, b.held + others[b.name]) for b in bound}
    if all(highest[b.scope, b.name] == b.max_amount for b in bound) or not trials.would(raised(base, highest)):
        return
    chosen = dict(highest)
    for limit in bound:
        chosen[limit.scope, limit.name] = _least(trials, base, chosen, limit, asked[limit.name])
    changes = tuple(
        LimitChange(
            scope=limit.scope[0],
            of=limit.of or limit.scope[1],
            name=limit.name,
            more=chosen[limit.scope, limit.name] - limit.max_amount,
            max_amount=chosen[limit.scope, limit.name],
        )
        for limit in bound
        if chosen[limit.scope, limit.name] > limit.max_amount
    )
    if changes and trials.would_indeed(raised(base, chosen)):
        yield Way(
            kind="quota", text=f"with {words.listed([said(change) for change in changes])}", limits=changes, now=now
        )


def _least(trials: Trials, base: Snapshot, chosen: Mapping[_Name, int], limit: Limit, asked: int) -> int:
    name, most = (limit.scope, limit.name), chosen[limit.scope, limit.name]

    def enough(amount: int) -> bool:
        return amount == most or trials.would(raised(base, {**chosen, name: amount}))

    for amount in (limit.max_amount, max(limit.max_amount, limit.held + asked)):
        if enough(amount):
            return amount
    floor = max(limit.max_amount, limit.held + asked)
    found = first_that(range(floor + 1, most + 1), enough)
    return most if found is None else found


def said(change: LimitChange) -> str:
    """4 more CPUs of quota in project P"""
    number, _, what = words.amount(change.name, change.more).partition(" ")
    if change.name in ("mem", "gpu-mem"):
        return f"{words.amount(change.name, change.more)} more of quota {_SCOPES[change.scope].format(change.of)}"
    return f"{number} more {what} of quota {_SCOPES[change.scope].format(change.of)}"


def whose(limit: Limit) -> str:
    """the project P"""
    return f"the {limit.scope[0]} {limit.of or limit.scope[1]}"
