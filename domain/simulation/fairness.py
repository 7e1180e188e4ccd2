"""How what was held compares with what everybody was entitled to, while anybody waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter

from domain.simulation.replay import Outcome

_KINDS = ("cpu", "mem", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """By user: means over the time in which anybody waited."""

    held: Mapping[str, float]
    entitled: Mapping[str, float]
    jain: float
    contended_seconds: float


class _User:
    """What a user holds, and wants (which includes what is held), as shares of the fleet by kind."""

    __slots__ = ("held", "waiting", "wanted", "weight")

    def __init__(self, weight: float) -> None:
        self.held, self.wanted = [0.0] * len(_KINDS), [0.0] * len(_KINDS)
        self.waiting, self.weight = 0, weight


def shares(started: Sequence[Outcome], capacity: Mapping[str, int], weights: Mapping[str, float]) -> Shares:
    """At every moment at which somebody waits, what all hold together is shared out anew: to each by weight, but to
    nobody more than wanted (max-min fairness of the dominant shares). Means of that are what each is entitled to.
    """
    users = {outcome.job.user: _User(weights.get(outcome.job.user, 1.0)) for outcome in started}
    held, entitled = dict.fromkeys(users, 0.0), dict.fromkeys(users, 0.0)
    contended, before, waiting = 0.0, None, 0
    for at, changes in groupby(_changes(started, capacity), key=itemgetter(0)):
        if before is not None and waiting:
            seconds = (at - before).total_seconds()
            contended += seconds
            _add(users, held, entitled, seconds)
        before = at
        for _, name, step, amounts in changes:
            user = users[name]
            waiting += step
            for index, amount in enumerate(amounts):
                # comes: wants it; starts: holds it; ends: neither
                user.wanted[index] += amount if step > 0 else 0.0 if step < 0 else -amount
                user.held[index] += 0.0 if step > 0 else amount if step < 0 else -amount
    if contended:
        held = {name: amount / contended for name, amount in held.items()}
        entitled = {name: amount / contended for name, amount in entitled.items()}
    return Shares(held=held, entitled=entitled, jain=_jain(held, entitled), contended_seconds=contended)


def _changes(
    started: Sequence[Outcome], capacity: Mapping[str, int]
) -> list[tuple[datetime, str, int, tuple[float, ...]]]:
    """In time: +1 comes, -1 starts, 0 ends."""
    found = []
    for outcome in started:
        job = outcome.job
        assert outcome.started_at
        assert outcome.ended_at
        amounts = (float(job.cpu * job.kernels), float(job.mem * job.kernels), outcome.gpus)
        parts = tuple(
            amount / capacity[kind] if capacity[kind] else 0.0 for kind, amount in zip(_KINDS, amounts, strict=True)
        )
        found.append((job.ready_at, job.user, 1, parts))
        found.append((outcome.started_at, job.user, -1, parts))
        found.append((outcome.ended_at, job.user, 0, parts))
    return sorted(found, key=lambda change: (change[0], -change[2]))


def _add(users: Mapping[str, _User], held: dict[str, float], entitled: dict[str, float], seconds: float) -> None:
    wanting = [(name, max(user.wanted), max(user.held), user.weight) for name, user in users.items()]
    total = sum(has for _, _, has, _ in wanting)
    for name, _, has, _ in wanting:
        held[name] += has * seconds
    for name, fair in shared_out(total, {name: (wants, weight) for name, wants, _, weight in wanting if wants > 1e-12}):
        entitled[name] += fair * seconds


def shared_out(total: float, wanting: Mapping[str, tuple[float, float]]) -> list[tuple[str, float]]:
    """Max-min: by weight, but to nobody more than wanted."""
    left, weight_left = total, sum(weight for _, weight in wanting.values())
    given = []
    for name, (wants, weight) in sorted(wanting.items(), key=lambda one: (one[1][0] / one[1][1], one[0])):
        fair = min(wants, left * weight / weight_left)
        given.append((name, fair))
        left -= fair
        weight_left -= weight
    return given


def _jain(held: Mapping[str, float], entitled: Mapping[str, float]) -> float:
    ratios = [held[name] / fair for name, fair in entitled.items() if fair > 1e-9]
    squares = sum(ratio * ratio for ratio in ratios)
    return sum(ratios) ** 2 / (len(ratios) * squares) if squares else 1.0
