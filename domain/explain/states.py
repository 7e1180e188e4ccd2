"""Why a session that does not wait for a host is where it is: pure sentences about facts that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from domain import isolation
from domain.explain import words
from domain.ids import AgentId
from domain.placement import Group, PendingSession, Snapshot
from domain.scheduler.obstacles import bars, group_of
from domain.session import DEADLINES, FINAL, Session, Status

_DOING: Final = {
    Status.SCHEDULED: "It has been given {hosts}, and waits until that takes it on",
    Status.PREPARING: "{hosts} prepares its {containers}",
    Status.PULLING: "{hosts} fetches the image {image}",
    Status.RESTARTING: "{hosts} gives it new {containers}",
    Status.TERMINATING: "It is being ended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A code, a sentence, and what else there is to say."""

    code: str
    text: str
    details: tuple[str, ...] = ()


def not_yet(session: Session, now: datetime, waits_for: Sequence[Mapping[str, Any]]) -> Told | None:
    """Of a PENDING session that is not in the queue: others have to end first, or its time has not come."""
    if waits_for:
        shown = [f"'{one['name']}' ({one['status']}{_needs(one)})" for one in waits_for[:5]]
        if len(waits_for) > 5:
            shown.append(f"{len(waits_for) - 5} more")
        return Told(code="dependencies", text=f"It waits for {words.listed(shown)} to end.")
    if session.starts_at is None or session.starts_at <= now:
        return None
    when = words.moment(session.starts_at, now)
    if session.retries:
        text = f"Its work has failed, and is tried again at {when}: retry {session.retries} of {session.max_retries}."
        return Told(code="retry_delay", text=text)
    return Told(code="starts_at", text=f"It was asked to start no sooner than {when}.")


def _needs(one: Mapping[str, Any]) -> str:
    return ", and has to succeed" if one.get("condition") == "success" else ""


def elsewhere(
    session: Session, now: datetime, history: Sequence[Mapping[str, Any]], asked: PendingSession, snapshot: Snapshot
) -> Told:
    """Of a session that is not PENDING."""
    if session.status in FINAL:
        return Told(code="ended", text=_end(session), details=tuple(_placed(session, now, history)))
    if session.status in _DOING:
        return Told(
            code=str(session.status).lower(), text=_doing(session, now), details=tuple(_placed(session, now, history))
        )
    since = "" if session.started_at is None else f" since {words.moment(session.started_at, now)}"
    text = f"It runs on {_hosts(session)}{since.removesuffix(' (now)')}."
    details = [*_placed(session, now, history), *_chosen(session, asked, snapshot), *_isolated(session)]
    if session.expires_at is not None:
        details.append(f"Its lifetime ends at {words.moment(session.expires_at, now)}.")
    return Told(code="running", text=text, details=tuple(details))


def _doing(session: Session, now: datetime) -> str:
    text = _DOING[session.status].format(
        hosts=_hosts(session), containers="containers" if session.cluster_size > 1 else "container", image=session.image
    )
    if session.status is Status.TERMINATING and session.status_reason:
        text += f": {session.status_reason.rstrip('.')}"
    deadline = DEADLINES[session.status]
    until = session.status_changed_at + timedelta(seconds=deadline.seconds)
    if until > now and session.status is not Status.TERMINATING:
        text += f"; it has {words.span((until - now).total_seconds())} for that"
    return f"{text}."


def _end(session: Session) -> str:
    verb = {Status.CANCELLED: "It was cancelled before it ran", Status.ERROR: "It has failed"}.get(
        session.status, "It has ended"
    )
    reason = (session.status_reason or "").rstrip(".")
    code = "" if session.exit_code is None else f"exit code {session.exit_code}"
    what = [part for part in (reason, "" if code in reason else code) if part]
    return f"{verb}: {'; '.join(what)}." if what else f"{verb}."


def _hosts(session: Session) -> str:
    hosts = sorted({kernel.agent_id for kernel in session.kernels if kernel.agent_id is not None})
    shown = words.listed(hosts[:4]) if hosts else "no host"
    return shown if len(hosts) <= 4 else f"{shown} and {len(hosts) - 4} more"


def hosts_of(session: Session) -> tuple[AgentId, ...]:
    return tuple(sorted({kernel.agent_id for kernel in session.kernels if kernel.agent_id is not None}))


def _placed(session: Session, now: datetime, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """When it got its hosts the last time, and how long it had waited."""
    for before, row in reversed(list(pairwise(history))):
        if row["status"] == Status.SCHEDULED:
            waited = words.span((row["timestamp"] - before["timestamp"]).total_seconds())
            at = words.moment(row["timestamp"], now).removesuffix(" (now)")
            again = f", for attempt {session.attempt}" if session.attempt > 1 else ""
            return [f"It was placed on {_hosts(session)} at {at}{again}, after {waited} in the queue."]
    return []


def _chosen(session: Session, asked: PendingSession, snapshot: Snapshot) -> list[str]:
    """By what rules; which hosts would suit it is as of now, for nobody writes down what was free then."""
    group = group_of(snapshot.groups, asked.resource_group)
    members = [host for host in snapshot.hosts if host.resource_group == asked.resource_group]
    suiting = [host for host in members if not any(True for _ in bars(asked, host, group))]
    said = [f"The resource group {asked.resource_group} {_policy(group)}."]
    if members and len(suiting) < len(members):
        demands = words.listed(_demands(asked)) or "its architecture"
        text = f"Of the {words.counted(len(members), 'host')} that take sessions there now, "
        text += f"{len(suiting)} suit{'s' if len(suiting) == 1 else ''} what it demands ({demands})."
        said.append(text)
    return said


def _isolated(session: Session) -> list[str]:
    if session.profile is None or session.egress is None:
        return []
    many = len(session.kernels) > 1
    return [
        f"Its container{'s have' if many else ' has'} {isolation.words(session.profile, session.egress, many=many)}."
    ]


def _policy(group: Group) -> str:
    fit = (
        "spreads sessions over its hosts: the emptiest one"
        if group.spread
        else "fills its hosts one by one: the fullest one"
    )
    order = "users who had less of it come first" if group.fair_share else "who came first is served first"
    return f"{fit} that had room was taken; in its queue, {order}"


def _demands(asked: PendingSession) -> list[str]:
    constraints = asked.constraints
    return [
        text
        for text, said in (
            (f"the host {constraints.agent}", constraints.agent),
            (f"the labels {', '.join(f'{n}={v}' for n, v in sorted(constraints.labels.items()))}", constraints.labels),
            (f"GPUs of the model {constraints.gpu_model}", constraints.gpu_model),
            ("distance from other sessions", constraints.apart_from),
            ("the store of its volumes", asked.stores),
            ("its image, a snapshot", asked.images_on),
        )
        if said
    ]
