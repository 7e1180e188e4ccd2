"""Which session nobody needs any more: pure; figures and times in, a verdict out.

No checker ends a session without a warning, and a session that is used again after it is left in peace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from domain.durations import span
from domain.ids import SessionId
from domain.session import SessionTypes
from domain.watch import COVERAGE, Settings, Window


class Checker(StrEnum):
    NO_CALL = "no_call"  #: nobody has run or moved anything for longer than its idle_timeout
    LOW_USE = "low_use"  #: what it holds is hardly used
    LIFETIME = "lifetime"  #: it has lived, or will soon have lived, as long as it may


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """What its owner has been told."""

    checker: Checker
    warned_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleFacts:
    """A running session, as idle checkers see it."""

    session_id: SessionId
    session_type: SessionTypes
    started_at: datetime
    used_at: datetime  #: the last call, or its start
    busy: bool  #: something that somebody started runs in it
    idle_timeout_seconds: float | None  #: its own; of a worker session, a limit of its owner's that is shorter
    timeout_seconds: float | None  #: its own lifetime,
    expires_at: datetime | None  #: which ends it then, whatever is said here
    exempt: bool = False
    held_cpu: float = 0.0
    held_gpus: float = 0.0
    window: Window | None = None
    warned: Warned | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    checker: Checker
    reason: str  #: what its owner reads, before and after
    due_at: datetime
    lead: timedelta  #: the warning comes so long before
    ends: bool = True  #: False: something else ends it then


def judge_idle(facts: IdleFacts, settings: Settings, now: datetime) -> Verdict | None:
    """The checker that would end it first; None when nothing points that way."""
    verdicts = list(_verdicts(facts, settings, now))
    return min(verdicts, key=lambda verdict: verdict.due_at, default=None)


def _verdicts(facts: IdleFacts, settings: Settings, now: datetime) -> Iterator[Verdict]:
    lead = timedelta(seconds=settings["idle"]["warn_seconds"])
    if facts.expires_at is not None and facts.timeout_seconds:
        reason = f"its lifetime of {span(facts.timeout_seconds)} is over"
        soon = _lead(lead, facts.timeout_seconds)
        yield Verdict(checker=Checker.LIFETIME, reason=reason, due_at=facts.expires_at, lead=soon, ends=False)
    if facts.exempt:
        return
    watched = bool(settings["idle"]["enabled"]) and facts.session_type not in _LEFT_ALONE
    if (timeout := _timeout(facts, settings, watched)) and not facts.busy:
        reason = f"nobody has used it for {span(timeout)}"
        due_at = facts.used_at + timedelta(seconds=timeout)
        yield Verdict(checker=Checker.NO_CALL, reason=reason, due_at=due_at, lead=_lead(lead, timeout))
    if watched and settings["idle_lifetime"]["enabled"]:
        most = settings["idle_lifetime"]["max_seconds"]
        due_at = facts.started_at + timedelta(seconds=most)
        reason = f"it has run for the {span(most)} that a session may"
        yield Verdict(checker=Checker.LIFETIME, reason=reason, due_at=due_at, lead=_lead(lead, most))
    if watched and (unused := _low_use(facts, settings["idle_low_use"])):
        due_at = now + lead if facts.warned is None else facts.warned.due_at
        yield Verdict(checker=Checker.LOW_USE, reason=unused, due_at=due_at, lead=lead)


#: They end with their work, or are an administrator's.
_LEFT_ALONE: Final = frozenset({SessionTypes.BATCH, SessionTypes.SYSTEM, SessionTypes.INFERENCE})


def _timeout(facts: IdleFacts, settings: Settings, watched: bool) -> float | None:
    """Its own; else what holds for all. A worker session's own ends it exactly then (repositories.due), unwarned."""
    rule = settings["idle_no_call"]
    if facts.session_type is SessionTypes.WORKER:
        return facts.idle_timeout_seconds
    return facts.idle_timeout_seconds or (rule["timeout_seconds"] if watched and rule["enabled"] else None)


def _lead(lead: timedelta, whole_seconds: float) -> timedelta:
    """Of a short time, a warning takes no more than half."""
    return min(lead, timedelta(seconds=whole_seconds / 2))


def _low_use(facts: IdleFacts, rule: Mapping[str, float]) -> str | None:
    window = facts.window
    if not rule["enabled"] or window is None or window.covered < COVERAGE or not facts.held_cpu:
        return None
    cpu = window.cpu / facts.held_cpu
    if cpu > rule["max_cpu_share"]:
        return None
    length = span((window.until - window.since).total_seconds())
    text = f"it used {100 * cpu:.3g} % of its {facts.held_cpu:g} CPUs over {length}"
    if not facts.held_gpus:
        return text
    if not window.gpus_seen or (gpu := window.gpu / facts.held_gpus) > rule["max_gpu_share"]:
        return None
    return f"{text}, and {100 * gpu:.3g} % of its {facts.held_gpus:g} GPUs"
