"""Why a session waits in the queue, and what it would start with: pure, and everything that is offered was planned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from domain.explain import words
from domain.explain.changes import emptied
from domain.explain.hosts import look
from domain.explain.limits import exceeded, more_quota, wants, whose
from domain.explain.times import endings, latest
from domain.explain.trials import EnoughTried, Trials
from domain.explain.values import Before, Explanation, Held, HostCount, Surroundings, Way
from domain.explain.ways import elsewhere, fewer, kernels, sooner, without
from domain.ids import SessionId
from domain.placement import Group, PendingSession, Plan, Reservation, Snapshot
from domain.scheduler.order import Standing, capacity_of

#: A plan for so many sessions and hosts is one of several hundred that may be made; larger ones, fewer.
_PLANNED_AT_ALL: Final = 400_000
_LEAST_PLANS: Final = 24


def explain(
    snapshot: Snapshot, session_id: SessionId, now: datetime, around: Surroundings | None = None
) -> Explanation:
    """Of a session in the snapshot's queue. The same arguments give the same answer, but for what `is_over` cuts off."""
    around = around or Surroundings()
    session = next(one for one in snapshot.pending if one.id == session_id and not one.joins)
    trials = Trials(snapshot, session, now, around)
    made = trials.plan
    position, before = _queue(session, snapshot, made, around)
    told = {"resource_group": session.resource_group, **position}
    if trials.starts:
        placement = next(p for p in made.placements if p.session_id == session_id and not p.joins)
        on = tuple(sorted({kernel.agent_id for kernel in placement.kernels}))
        text = f"Everything that it asks for is free on {words.listed(on[:5])}: it is about to start."
        return Explanation(code="starting", text=text, on=on, plans=trials.made, **told)  # type: ignore[arg-type]
    reports, counts = look(session, snapshot, made, around.away)
    ways, never, cut_off = _ways(trials, around)
    blocked = made.blocked[session_id]
    return Explanation(
        code=blocked.code,
        text=_sentence(trials, around, counts, never=never),
        before=before,
        hosts=counts,
        per_host=reports,
        reservation=_reservation(trials, around),
        never=never and not _returning(trials, around),
        ways=_without_repetition(ways),
        plans=trials.made,
        cut_off=cut_off,
        **told,  # type: ignore[arg-type]
    )


def plans_for(snapshot: Snapshot, most: int = 200) -> int:
    """How many plans an explanation may make, so that it takes about a second whatever the size."""
    return max(_LEAST_PLANS, min(most, _PLANNED_AT_ALL // (len(snapshot.pending) + len(snapshot.hosts) + 1)))


# -- ways ------------------------------------------------------------------------------------------------------------
def _ways(trials: Trials, around: Surroundings) -> tuple[tuple[Way, ...], bool, bool]:
    """What was found, whether time alone never helps, and whether the search was cut off."""
    found: list[Way] = []
    never = False
    try:
        empty = emptied(trials.snapshot, trials.session)
        never = not trials.would(empty)
        if not around.search:
            return (), never, False
        for way in _now(trials, around, never=never):
            found.append(way)  # noqa: PERF402  # what was found stays, when the search is cut off
        if never and not found:
            for way in _ever(trials, empty, around):
                found.append(way)  # noqa: PERF402
    except EnoughTried:
        return tuple(found), never, True
    return tuple(found), never, False


def _now(trials: Trials, around: Surroundings, *, never: bool) -> Iterator[Way]:
    base = trials.snapshot
    yield from fewer(trials, base)
    yield from kernels(trials, base)
    yield from without(trials, base)
    yield from elsewhere(trials, base, around)
    yield from more_quota(trials, base)
    if not never:
        yield from latest(trials, around)
        yield from endings(trials, around)
        yield from sooner(trials, base, around)


def _without_repetition(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """The end of one session is told of as that, with its time; that of several with the time, if that is known."""
    ends = {frozenset(way.endings) for way in ways if way.kind == "ends" and len(way.endings) == 1}
    times = {frozenset(way.endings) for way in ways if way.kind == "time"} - ends
    twice = {"time": ends, "ends": times}
    return tuple(way for way in ways if frozenset(way.endings) not in twice.get(way.kind, ()))


def _ever(trials: Trials, empty: Snapshot, around: Surroundings) -> Iterator[Way]:
    yield from fewer(trials, empty, now=False)
    yield from kernels(trials, empty, now=False)
    yield from without(trials, empty, now=False)
    yield from elsewhere(trials, empty, around, now=False)
    yield from more_quota(trials, empty, now=False)


# -- the queue ---------------------------------------------------------------------------------------------------------
def _queue(
    session: PendingSession, snapshot: Snapshot, made: Plan, around: Surroundings
) -> tuple[dict[str, object], tuple[Before, ...]]:
    order = made.order.get(session.resource_group, ())
    if session.id not in order:
        return {}, ()
    at = order.index(session.id)
    queue = {one.id: one for one in snapshot.pending if not one.joins}
    group = next((g for g in snapshot.groups if g.name == session.resource_group), Group(name=session.resource_group))
    rules: dict[str, list[PendingSession]] = {"priority": [], "share": [], "age": []}
    standing = _standing(session.resource_group, snapshot)
    for session_id in order[:at]:
        if (one := queue.get(session_id)) is not None:
            rules[_rule(one, session, standing if group.fair_share else None)].append(one)
    before = tuple(_before(rule, ones, session, around) for rule, ones in rules.items() if ones)
    return {"position": at + 1, "queued": len(order)}, before


def _standing(group: str, snapshot: Snapshot) -> Standing:
    capacity = capacity_of(host for host in snapshot.hosts if host.resource_group == group)
    return Standing((share for share in snapshot.shares if share.resource_group == group), capacity)


def _rule(one: PendingSession, session: PendingSession, standing: Standing | None) -> str:
    """By which of them it comes first: it is in front of the session."""
    if one.priority > session.priority:
        return "priority"
    if standing is None or one.user_id == session.user_id:
        return "age"
    later = (one.created_at, one.id) > (session.created_at, session.id)
    return "share" if later or standing.share(one.user_id) < standing.share(session.user_id) else "age"


_RULES: Final = {
    "priority": "with a higher priority",
    "share": "of users who have had less of this group",
    "age": "that came earlier",
}


def _before(rule: str, ones: list[PendingSession], session: PendingSession, around: Surroundings) -> Before:
    own = sum(one.user_id == session.user_id for one in ones)
    whose = "yours" if around.viewer == session.user_id else "of the same user"
    yours = "" if not own else f", {whose}" if own == len(ones) else f", {own} of them {whose}"
    text = f"{words.counted(len(ones), 'session')} {_RULES[rule]}{yours}"
    return Before(rule=rule, sessions=len(ones), own=own, text=text)


# -- the reason --------------------------------------------------------------------------------------------------------
def _sentence(trials: Trials, around: Surroundings, counts: tuple[HostCount, ...], *, never: bool) -> str:
    session, blocked = trials.session, trials.plan.blocked[trials.session.id]
    if never:
        why = _why_never(trials, counts, blocked.detail)
        returning = _returning(trials, around)
        if returning:
            others = f"{words.counted(returning, 'other host')} of the group {'takes' if returning == 1 else 'take'}"
            return f"It cannot start now, nor when others end: {why}. But {others} no sessions at the moment."
        return f"It can never start as it is: {why}."
    if blocked.code == "quota" and (over := exceeded(session, trials.snapshot)):
        limit, _ = over[0]
        asked = words.amount(limit.name, wants(session)[limit.name])
        holds = words.amount(limit.name, limit.held)
        most = words.amount(limit.name, limit.max_amount)
        return f"It waits for quota: {whose(limit)} may hold {most} at once and holds {holds} already; it asks for {asked}."
    if blocked.behind is not None:
        first = _called(blocked.behind, trials.snapshot, around, session)
        return f"It waits because {first} comes first, and what is free is kept for that."
    if blocked.code == "insufficient":
        asked = words.amounts(_together(session))
        return f"It waits for room: no host has what it asks for free at the same time ({asked})."
    return f"It waits: {blocked.detail.rstrip('.')}."


def _together(session: PendingSession) -> dict[str, int]:
    total = wants(session)
    del total["sessions"]
    return {name: amount for name, amount in total.items() if amount}


def _why_never(trials: Trials, counts: tuple[HostCount, ...], detail: str) -> str:
    if not counts:
        return f"the resource group {trials.session.resource_group} has no host that takes sessions"
    return detail.rstrip(".")


def _returning(trials: Trials, around: Surroundings) -> int:
    """Hosts that take no sessions now, but might again, and what they have is not looked at."""
    return sum(away.architecture == trials.session.architecture for away in around.away)


def _reservation(trials: Trials, around: Surroundings) -> Held | None:
    """Room that is kept for it; or that is kept from it, by the session that it waits behind."""
    made, session = trials.plan, trials.session
    behind = made.blocked[session.id].behind
    for kept in made.reservations:
        if kept.session_id == session.id:
            return Held.of(kept, own=True, text=f"Room is kept for it on {_where(kept)}: {_own(kept, trials.now)}.")
        if kept.session_id == behind:
            whom = _called(kept.session_id, trials.snapshot, around, session)
            text = f"Room on {_where(kept)} is kept for {whom}{_when(kept, trials.now)}."
            return Held.of(kept, own=False, text=text)
    return None


def _where(kept: Reservation) -> str:
    shown = words.listed(kept.hosts[:3])
    return shown if len(kept.hosts) <= 3 else f"{shown} and {len(kept.hosts) - 3} more hosts"


def _own(kept: Reservation, now: datetime) -> str:
    if kept.at is None:
        return "nobody knows when it starts, because a session there has no lifetime limit"
    return f"it starts at the latest at {words.moment(kept.at, now)}"


def _when(kept: Reservation, now: datetime) -> str:
    if kept.at is None:
        return ", though nobody knows when that starts: a session there has no lifetime limit"
    return f", which starts at the latest at {words.moment(kept.at, now)}"


def _called(session_id: SessionId, snapshot: Snapshot, around: Surroundings, session: PendingSession) -> str:
    one = next((one for one in snapshot.pending if one.id == session_id), None)
    if one is None or (around.viewer not in (None, one.user_id) and one.user_id != session.user_id):
        return "a session of another user"
    return f"session {one.name or one.id}"
