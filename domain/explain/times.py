"""What a session would start after: the end of one session, or of all that have a lifetime by then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from domain.explain import words
from domain.explain.changes import ended
from domain.explain.trials import Trials, first_that
from domain.explain.values import Ending, Surroundings, Way
from domain.ids import AgentId, SessionId
from domain.placement import Holding, Host, PendingSession, Snapshot
from domain.scheduler.obstacles import obstacles
from domain.session import ClusterMode

#: So many sessions, whose end could help, are tried one by one, and so many of each kind are told of.
_TRIED: Final = 24
_TOLD: Final = 2
#: What goes away with a session's end.
_PASSING: Final = frozenset({"insufficient", "apart_from", "address", "reserved"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A session that has been placed."""

    id: SessionId
    name: str
    user_id: UUID
    agents: tuple[AgentId, ...]
    ends_at: datetime | None
    holdings: tuple[Holding, ...]


def holders(snapshot: Snapshot) -> dict[SessionId, Holder]:
    by_session: dict[SessionId, list[Holding]] = {}
    for holding in snapshot.holdings:
        by_session.setdefault(holding.session_id, []).append(holding)
    return {session_id: _holder(held) for session_id, held in by_session.items()}


def _holder(held: Sequence[Holding]) -> Holder:
    ends = [holding.ends_at for holding in held]
    return Holder(
        id=held[0].session_id,
        name=held[0].name,
        user_id=held[0].user_id,
        agents=tuple(sorted({holding.agent_id for holding in held})),
        ends_at=None if None in ends else max(end for end in ends if end is not None),
        holdings=tuple(held),
    )


def endings(trials: Trials, around: Surroundings) -> Iterator[Way]:
    """Single sessions whose end is enough: its owner's own ones first, then others', those that end soonest first."""
    useful = _useful(trials, holders(trials.snapshot), around, alone=True)
    told = {True: 0, False: 0}
    for holder in useful[:_TRIED]:
        own = holder.user_id == trials.session.user_id
        if told[own] >= _TOLD:
            continue
        changed = ended(trials.snapshot, [holder.id], around.counted)
        if trials.would(changed) and trials.would_indeed(changed):
            told[own] += 1
            ending = _ending(holder, trials, around)
            text = f"when {_named(ending)} ends" + _latest(holder.ends_at, trials.now)
            yield Way(kind="ends", text=text, endings=(ending,))
    if not any(told.values()):
        yield from _several(trials, around)


def _several(trials: Trials, around: Surroundings) -> Iterator[Way]:
    """If no single one is enough: of the owner's own ones together, else of those on one host, no more than it takes."""
    useful = _useful(trials, holders(trials.snapshot), around, alone=False)
    own = [holder for holder in useful if holder.user_id == trials.session.user_id]
    by_host: dict[AgentId, list[Holder]] = {}
    for holder in useful:
        for agent_id in holder.agents:
            by_host.setdefault(agent_id, []).append(holder)
    choices = [own, *sorted(by_host.values(), key=len)[:3]]
    for choice in choices:
        if not 1 < len(choice) <= _TRIED or not _do(trials, choice, around):
            continue
        for holder in reversed(choice):  # others' ones first
            fewer = [other for other in choice if other is not holder]
            if _do(trials, fewer, around):
                choice = fewer  # noqa: PLW2901  # what is left is looked at further
        ends = tuple(_ending(holder, trials, around) for holder in choice)
        if _do(trials, choice, around, indeed=True):
            yield Way(kind="ends", text=f"when {_all_named(ends)} have ended", endings=ends)
            return


def _do(trials: Trials, gone: Sequence[Holder], around: Surroundings, *, indeed: bool = False) -> bool:
    changed = ended(trials.snapshot, [holder.id for holder in gone], around.counted)
    return trials.would_indeed(changed) if indeed else trials.would(changed)


def _all_named(endings: Sequence[Ending]) -> str:
    """sessions a and b on host-1, and 2 sessions of other users on host-2"""
    shown = [ending for ending in endings if ending.session_id is not None]
    others = [ending for ending in endings if ending.session_id is None]
    parts = []
    if shown:
        names = [str(ending.name or ending.session_id) for ending in shown]
        parts.append(f"session{'s' if len(names) > 1 else ''} {words.listed(names)}{_somewhere(shown)}")
    if others:
        parts.append(f"{words.counted(len(others), 'session')} of other users{_somewhere(others)}")
    return words.listed(parts)


def _somewhere(endings: Sequence[Ending]) -> str:
    hosts = sorted({agent for ending in endings for agent in ending.agents})
    return f" on {words.listed(hosts[:3])}" + (" and others" if len(hosts) > 3 else "")


def _useful(trials: Trials, found: Mapping[SessionId, Holder], around: Surroundings, *, alone: bool) -> list[Holder]:
    """`alone`: whose end, and nothing else, could be enough."""
    session, snapshot = trials.session, trials.snapshot
    own = replace(snapshot, holdings=tuple(h for h in snapshot.holdings if h.user_id == session.user_id))
    hosts = {
        host.id
        for host in snapshot.hosts
        if host.resource_group == session.resource_group
        and all(obstacle.code in _PASSING and not obstacle.ever for obstacle in obstacles(session, host, own))
    }
    by_id = {host.id: host for host in snapshot.hosts if host.id in hosts}
    bound = {(limit.scope, limit.name) for limit in snapshot.limits if limit.scope in session.scopes}
    free_now = any(not obstacles(session, host, own) for host in snapshot.hosts if host.id in hosts)
    one_host = session.cluster_mode is ClusterMode.SINGLE_NODE or len(session.kernels) == 1
    useful = [
        holder
        for holder in found.values()
        if holder.id != session.id
        and (hosts.intersection(holder.agents) or bound.intersection(around.counted.get(holder.id, ())))
        and (free_now or not (alone and one_host) or _makes_room(session, holder, by_id, own))
    ]

    def order(holder: Holder) -> tuple[bool, bool, datetime, SessionId]:
        return holder.user_id != session.user_id, holder.ends_at is None, holder.ends_at or trials.now, holder.id

    return sorted(useful, key=order)


def _makes_room(session: PendingSession, holder: Holder, hosts: Mapping[AgentId, Host], own: Snapshot) -> bool:
    """On one host alone: without this, no plan is worth making. `own`: with the holdings of its owner alone."""
    for holding in holder.holdings:
        if (host := hosts.get(holding.agent_id)) is not None:
            left = own
            if holder.user_id == session.user_id:
                left = replace(own, holdings=tuple(h for h in own.holdings if h.session_id != holder.id))
            free = {name: amount + holding.amounts.get(name, 0) for name, amount in host.free.items()}
            if not obstacles(session, host, left, free=free):
                return True
    return False


def latest(trials: Trials, around: Surroundings) -> Iterator[Way]:
    """When enough of those with a lifetime have ended, each as late as it may."""
    found = [h for h in holders(trials.snapshot).values() if h.ends_at is not None and h.id != trials.session.id]
    times = sorted({max(trials.now, h.ends_at) for h in found if h.ends_at is not None})

    def gone(at: datetime) -> list[Holder]:
        return [h for h in found if h.ends_at is not None and h.ends_at <= at]

    def without(at: datetime) -> Snapshot:
        return ended(trials.snapshot, [h.id for h in gone(at)], around.counted)

    at = first_that(times, lambda at: trials.would(without(at), at))
    if at is None or not trials.would_indeed(without(at), at):
        return
    over = _enough(trials, gone(at), at, around)
    if len(over) == 1:
        which, limit = _named(_ending(over[0], trials, around)), "its lifetime limit"
    else:
        own = sum(h.user_id == trials.session.user_id for h in over)
        which = words.counted(len(over), "session")
        which += f" ({own} of yours)" if own and around.viewer == trials.session.user_id else ""
        limit = "their lifetime limits"
    text = f"at the latest at {words.moment(at, trials.now)}, when {which} will have reached {limit}"
    yield Way(kind="time", text=text, at=at, endings=tuple(_ending(h, trials, around) for h in over[:20]))


def _enough(trials: Trials, over: list[Holder], at: datetime, around: Surroundings) -> list[Holder]:
    """Of these, the ones that held something where it would start then, if they are enough."""
    hosts = trials.places_on(ended(trials.snapshot, [h.id for h in over], around.counted), at)
    bound = {(limit.scope, limit.name) for limit in trials.snapshot.limits if limit.scope in trials.session.scopes}
    fewer = [h for h in over if hosts.intersection(h.agents) or bound.intersection(around.counted.get(h.id, ()))]
    changed = ended(trials.snapshot, [h.id for h in fewer], around.counted)
    return fewer if trials.would(changed, at) and trials.would_indeed(changed, at) else over


def _ending(holder: Holder, trials: Trials, around: Surroundings) -> Ending:
    own = holder.user_id == trials.session.user_id
    shown = own or around.viewer is None or around.viewer == holder.user_id
    return Ending(
        session_id=holder.id if shown else None,
        name=holder.name if shown else None,
        own=own,
        agents=holder.agents,
        ends_at=holder.ends_at,
    )


def _named(ending: Ending) -> str:
    where = _somewhere([ending])
    if ending.session_id is None:
        return f"a session of another user{where}"
    return f"session {ending.name or ending.session_id}{where}"


def _latest(at: datetime | None, now: datetime) -> str:
    if at is None:
        return " (it has no lifetime limit)"
    return f", at the latest at {words.moment(at, now)}, its lifetime limit" if at > now else ", whose time is over"
