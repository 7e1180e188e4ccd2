"""What a session would start with, if it asked for something else: fewer slots, fewer constraints, another group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from domain.explain import words
from domain.explain.changes import at_most
from domain.explain.trials import Trials, first_that
from domain.explain.values import Surroundings, Way
from domain.placement import GPU, GPU_SHARE, Constraints, Snapshot
from domain.scheduler.fleet import PASSING_SECONDS
from domain.session import ClusterMode

#: In this order: what is scarce first. The least that is proposed, and by which steps.
_STEPS: Final = {GPU: (1, 1), GPU_SHARE: (256, 256), "cpu": (100, 100), "mem": (64, 64)}
_CONSTRAINTS: Final = ("labels", "gpu_model", "apart_from", "agent")


def fewer(trials: Trials, base: Snapshot, *, now: bool = True) -> Iterator[Way]:
    """With less of one kind of slot; if no single one helps, with less of several."""
    asked = _asked(trials)
    each = " for each of its kernels" if len(trials.session.kernels) > 1 else ""
    found = False
    for name in [*_STEPS, *sorted(asked.keys() - _STEPS.keys())]:
        if (most := _largest(trials, base, name, asked.get(name, 0))) is not None:
            found = True
            yield Way(kind="fewer", text=f"with {words.amount(name, most)}{each}", slots={name: most}, now=now)
    if not found and (slots := _smaller(trials, base, asked)):
        yield Way(kind="fewer", text=f"with {words.amounts(slots)}{each}", slots=slots, now=now)


def _asked(trials: Trials) -> dict[str, int]:
    """Of each kind, the most that a kernel asks for."""
    asked: dict[str, int] = {}
    for kernel in trials.session.kernels:
        for name, amount in kernel.slots.items():
            asked[name] = max(amount, asked.get(name, 0))
    return asked


def _largest(trials: Trials, base: Snapshot, name: str, asked: int) -> int | None:
    least, step = _STEPS.get(name, (1, 1))
    if asked <= least:
        return None
    step *= asked // (400 * step) + 1  # of a large amount, a part of a hundredth is near enough
    amounts: list[int] = sorted({least, *range(asked - asked % step, least, -step)} - {asked}, reverse=True)

    def helps(amount: int) -> bool:
        return trials.would(_with_most(trials, base, {name: amount}))

    most = first_that(amounts, helps)
    if most is None or not trials.would_indeed(_with_most(trials, base, {name: most})):
        return None
    return most


def _with_most(trials: Trials, base: Snapshot, slots: Mapping[str, int]) -> Snapshot:
    return trials.with_session(base, kernels=at_most(trials.session, slots).kernels)


def _smaller(trials: Trials, base: Snapshot, asked: Mapping[str, int]) -> dict[str, int]:
    """Less of several kinds: what is free on the hosts that come nearest to what it asks."""
    kernels = len(trials.session.kernels) if trials.session.cluster_mode is ClusterMode.SINGLE_NODE else 1
    offers = []
    for host in base.hosts:
        idle = sum(host.free[name] == host.capacity.get(name) for name in host.free if name.startswith("gpu/"))
        free = {GPU: idle, **host.free}
        part = {name: min(amount, _rounded(name, free.get(name, 0) // kernels)) for name, amount in asked.items()}
        if all(part[name] >= _STEPS.get(name, (1, 1))[0] for name in part if asked[name]):
            nearness = min(part[name] / asked[name] for name in part if asked[name])
            offers.append((-nearness, host.id, {n: a for n, a in part.items() if a < asked[n]}))
    for _, _, slots in sorted(offers, key=lambda offer: offer[:2])[:3]:
        changed = _with_most(trials, base, slots)
        if slots and trials.would(changed) and trials.would_indeed(changed):
            return slots
    return {}


def _rounded(name: str, amount: int) -> int:
    step = _STEPS.get(name, (1, 1))[1]
    return amount - amount % step


def kernels(trials: Trials, base: Snapshot, *, now: bool = True) -> Iterator[Way]:
    """With fewer workers."""
    all_of_them = trials.session.kernels
    if len(all_of_them) < 2:
        return

    def only(number: int) -> Snapshot:
        return trials.with_session(base, kernels=all_of_them[:number])

    number = first_that(range(len(all_of_them) - 1, 0, -1), lambda number: trials.would(only(number)))
    if number is not None and trials.would_indeed(only(number)):
        what = "as a single kernel" if number == 1 else f"with {words.counted(number - 1, 'worker')}"
        yield Way(kind="kernels", text=what, kernels=number, now=now)


def without(trials: Trials, base: Snapshot, *, now: bool = True) -> Iterator[Way]:
    """With one of its constraints less, or else with none of them."""
    constraints = trials.session.constraints
    demanded = [name for name in _CONSTRAINTS if getattr(constraints, name)]
    choices = [[name] for name in demanded] + ([demanded] if len(demanded) > 1 else [])
    found = False
    for names in choices:
        if found and len(names) > 1:
            return
        fewer = replace(constraints, **{name: getattr(Constraints(), name) for name in names})
        changed = trials.with_session(base, constraints=fewer)
        if trials.would(changed) and trials.would_indeed(changed):
            found = True
            text = f"without the demand for {words.listed([_said(constraints, name) for name in names])}"
            yield Way(kind="without", text=text, without=tuple(names), now=now)


def _said(constraints: Constraints, name: str) -> str:
    match name:
        case "agent":
            return f"the host {constraints.agent}"
        case "gpu_model":
            return f"GPUs of the model {constraints.gpu_model}"
        case "labels":
            return f"a host with {_pairs(constraints.labels)}"
        case _:
            return f"distance from sessions with {_pairs(constraints.apart_from)}"


def _pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def elsewhere(trials: Trials, base: Snapshot, around: Surroundings, *, now: bool = True) -> Iterator[Way]:
    """In another resource group that its owner may use."""
    for group in sorted(set(around.groups) - {trials.session.resource_group}):
        changed = trials.with_session(base, resource_group=group)
        if trials.would(changed) and trials.would_indeed(changed):
            yield Way(kind="group", text=f"in the resource group {group}", resource_group=group, now=now)


def sooner(trials: Trials, base: Snapshot, around: Surroundings) -> Iterator[Way]:
    """With a higher priority, or with a lifetime that ends before others are to start: what reservations allow."""
    yield from _shorter(trials, base)
    most, mine = around.most_priority, trials.session.priority
    if most is None or most <= mine:
        return
    levels = sorted({min(most, one.priority + 1) for one in base.pending if one.priority >= mine} | {most})
    levels = [level for level in levels if mine < level <= most]

    def at(level: int) -> Snapshot:
        return trials.with_session(base, priority=level)

    level = first_that(levels, lambda level: trials.would(at(level)))
    if level is not None and trials.would_indeed(at(level)):
        yield Way(kind="priority", text=f"with priority {level} instead of {mine}", priority=level)


def _shorter(trials: Trials, base: Snapshot) -> Iterator[Way]:
    mine = trials.session.lifetime_seconds
    times = {
        PASSING_SECONDS if reservation.at is None else (reservation.at - trials.now).total_seconds()
        for reservation in trials.plan.reservations
        if reservation.session_id != trials.session.id
    }
    for seconds in sorted((_even(time) for time in times if time > 60), reverse=True)[:5]:
        if mine is not None and seconds >= mine:
            continue
        changed = trials.with_session(base, lifetime_seconds=float(seconds))
        if trials.would(changed) and trials.would_indeed(changed):
            text = f"with a lifetime of at most {words.span(seconds)} (it would be over before the room is needed)"
            yield Way(kind="lifetime", text=text, lifetime_seconds=float(seconds))
            return


def _even(seconds: float) -> int:
    """A little less, as people would say it."""
    step = 60 if seconds >= 120 else 10
    return int(seconds) // step * step
