"""What a replay comes to: waiting times, utilisation, fairness, and who never started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from domain.simulation.fairness import Shares, shares
from domain.simulation.replay import Moment, Outcome, Replayed
from domain.simulation.workload import SIZES

KINDS: Final = ("cpu", "mem", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Of some sessions that started: seconds from when they could have started."""

    sessions: int
    mean_seconds: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    longest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFigures:
    user: str
    waiting: Waiting
    gpu_hours: float
    cpu_hours: float
    held: float  #: of the fleet while anybody waited, 0 to 1, of the kind that the user holds most of
    entitled: float  #: the same, had what was held been shared out fairly at every moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    """Sessions that never start on this fleet, whatever ends."""

    code: str
    sessions: int
    example: str  #: one of them, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Longest:
    """Who waited longest."""

    seconds: float
    user: str
    size: str
    submitted: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    fleet: str
    policy: str
    sessions: int
    started: int
    waiting: Waiting
    by_size: Mapping[str, Waiting]
    by_user: Sequence[UserFigures]  #: those who held most first
    utilisation: Mapping[str, float]  #: of cpu, mem, gpu while sessions came, 0 to 1
    makespan_seconds: float  #: from the first submission to the last end
    contended_seconds: float  #: while anybody who could start waited
    fairness: float  #: Jain's index of held over entitled: 1 is perfectly fair, 1/users the opposite
    backfilled: int
    cut_short: int  #: by the timeouts that they asked for
    longest: Longest | None
    never: Sequence[Never]
    most_queued: int
    plans: int


def figures(replayed: Replayed) -> Figures:
    outcomes = replayed.outcomes
    started = [outcome for outcome in outcomes if outcome.started_at is not None]
    fair = shares(started, replayed.fleet.capacity(), replayed.policy.weights)
    return Figures(
        fleet=replayed.fleet.name,
        policy=replayed.policy.name,
        sessions=len(outcomes),
        started=len(started),
        waiting=_waiting(started),
        by_size={size: _waiting(found) for size in SIZES if (found := [o for o in started if o.job.size == size])},
        by_user=_by_user(started, fair),
        utilisation=_utilisation(replayed),
        makespan_seconds=_makespan(started),
        contended_seconds=fair.contended_seconds,
        fairness=fair.jain,
        backfilled=sum(outcome.backfilled for outcome in started),
        cut_short=sum(outcome.cut_short for outcome in started),
        longest=_longest(started),
        never=_never(outcomes),
        most_queued=max((moment.queued for moment in replayed.moments), default=0),
        plans=replayed.plans,
    )


def waits(outcomes: Iterable[Outcome]) -> list[float]:
    """Seconds, the shortest first."""
    return sorted(wait for outcome in outcomes if (wait := outcome.waited_seconds) is not None)


def _waiting(outcomes: Sequence[Outcome]) -> Waiting:
    ordered = waits(outcomes)
    return Waiting(
        sessions=len(ordered),
        mean_seconds=math.fsum(ordered) / len(ordered) if ordered else 0.0,
        p50_seconds=_percentile(ordered, 0.50),
        p95_seconds=_percentile(ordered, 0.95),
        p99_seconds=_percentile(ordered, 0.99),
        longest_seconds=ordered[-1] if ordered else 0.0,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """By nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _by_user(started: Sequence[Outcome], fair: Shares) -> list[UserFigures]:
    theirs: dict[str, list[Outcome]] = {}
    for outcome in started:
        theirs.setdefault(outcome.job.user, []).append(outcome)
    found = [
        UserFigures(
            user=user,
            waiting=_waiting(outcomes),
            gpu_hours=math.fsum(_hours(o) * (o.job.gpu or _fraction(o)) * o.job.kernels for o in outcomes),
            cpu_hours=math.fsum(_hours(o) * o.job.cpu * o.job.kernels for o in outcomes) / 1000,
            held=fair.held.get(user, 0.0),
            entitled=fair.entitled.get(user, 0.0),
        )
        for user, outcomes in theirs.items()
    ]
    return sorted(found, key=lambda one: (-one.held, -one.gpu_hours, -one.cpu_hours, one.user))


def _hours(outcome: Outcome) -> float:
    assert outcome.started_at
    assert outcome.ended_at
    return (outcome.ended_at - outcome.started_at).total_seconds() / 3600


def _fraction(outcome: Outcome) -> float:
    """Of a device, for a session that shares one."""
    return outcome.gpus / outcome.job.kernels


def _utilisation(replayed: Replayed) -> dict[str, float]:
    """Means over time, from the first submission to the last."""
    moments = replayed.moments
    capacity = replayed.fleet.capacity()
    if not moments:
        return dict.fromkeys(KINDS, 0.0)
    first = min(outcome.job.submitted_at for outcome in replayed.outcomes)
    last = max(outcome.job.submitted_at for outcome in replayed.outcomes)
    span = (last - first).total_seconds()
    if span <= 0:  # all at once: until the last one ends
        last = moments[-1].at
        span = max((last - first).total_seconds(), 1.0)
    areas = dict.fromkeys(KINDS, 0.0)
    for moment, after in zip(moments, [*moments[1:], None], strict=True):
        until = min(last, after.at) if after else last
        seconds = (until - moment.at).total_seconds()
        if seconds > 0:
            for kind in KINDS:
                areas[kind] += held(moment, kind) * seconds
    return {kind: areas[kind] / capacity[kind] / span if capacity[kind] else 0.0 for kind in KINDS}


def held(moment: Moment, kind: str) -> float:
    return {"cpu": moment.cpu, "mem": moment.mem, "gpu": moment.gpu}[kind]


def _makespan(started: Sequence[Outcome]) -> float:
    ends = [outcome.ended_at for outcome in started if outcome.ended_at]
    return (max(ends) - min(outcome.job.submitted_at for outcome in started)).total_seconds() if ends else 0.0


def _longest(started: Sequence[Outcome]) -> Longest | None:
    if not started:
        return None
    worst = max(started, key=lambda outcome: outcome.waited_seconds or 0.0)
    job = worst.job
    return Longest(
        seconds=worst.waited_seconds or 0.0,
        user=job.user,
        size=job.size,
        submitted=job.submitted_at.isoformat(),
        line=job.line,
    )


def _never(outcomes: Sequence[Outcome]) -> list[Never]:
    left = [(outcome.never, outcome.job) for outcome in outcomes if outcome.never]
    counted = Counter(never.code for never, _ in left)
    found = []
    for code, sessions in counted.most_common():
        never, job = next((never, job) for never, job in left if never.code == code)
        found.append(Never(code=code, sessions=sessions, example=f"{job.user}'s (line {job.line}): {never.detail}"))
    return found
