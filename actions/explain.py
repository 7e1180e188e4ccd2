"""Why a session waits or runs where it is, and what it would start with; also of one that is not there yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from pydantic import Field, InstanceOf

from actions.base import (
    Audit,
    Effect,
    Reading,
    Remote,
    Result,
    Rules,
    ScopeAction,
    SessionAction,
    action,
    any_user,
    may_look,
)
from actions.lifecycle import CreatedSession, CreateFromParamsAction
from actions.templates import CreateFromTemplateAction
from domain.errors import SessionNotFound
from domain.explain import (
    Before,
    Explanation,
    Held,
    HostCount,
    HostReport,
    Surroundings,
    Told,
    Way,
    elsewhere,
    explain,
    hosts_of,
    not_yet,
    plans_for,
)
from domain.ids import AgentId, SessionId
from domain.placement import PendingSession, Snapshot
from domain.principal import TokenScope
from domain.session import Session, Status
from repositories import explain as facts
from repositories.snapshot import as_pending, snapshot

T = TypeVar("T")
#: The search for ways out ends after so long, and says so.
SEARCH_SECONDS: Final = 3.0
#: Plans are made beside the event loop, and so many at once: the process has other things to do.
_PLANNERS: Final = ThreadPoolExecutor(2, "explain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """A session that has to end first."""

    id: SessionId
    name: str
    status: Status
    condition: str  #: success, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained(Result):
    """Why a session is where it is. `text`, `details` and every `text` within are for people, the rest for programs."""

    session_id: SessionId | None  #: None: nobody has asked for it yet
    name: str
    status: Status | None
    #: what it waits for: starting, insufficient, quota, reserved, behind, impossible, no_hosts, dependencies, starts_at,
    #: retry_delay, the code of a constraint, ... ; or how it is: running, ended, scheduled, ...
    code: str
    text: str
    details: tuple[str, ...] = ()
    on: tuple[AgentId, ...] = ()  #: its hosts, or those on which it is about to start
    resource_group: str | None = None
    position: int | None = None  #: in the queue of its group; 1: it is the first
    queued: int | None = None
    before: tuple[Before, ...] = ()
    waits_for: tuple[Awaited, ...] = ()
    starts_at: datetime | None = None
    hosts: tuple[HostCount, ...] = ()  #: those that lack the same, counted together
    per_host: tuple[HostReport, ...] = ()  #: from `host_offset` on, at most `host_limit`
    hosts_total: int = 0
    reservation: Held | None = None
    never: bool = False  #: no change in time helps
    ways: tuple[Way, ...] = ()  #: with each of them it would start: `plan` was run to see that
    cut_off: bool = False  #: there may be further ways: the search was ended
    plans: int = 0  #: that were made to find this out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """Everything that an explanation is made of, read in one go."""

    session: Session
    asked: PendingSession
    snapshot: Snapshot
    around: Surroundings
    history: Sequence[Mapping[str, Any]]
    waits_for: Sequence[Mapping[str, Any]]
    now: datetime
    viewer: UUID | None


async def _look(call: Reading, session: Session, *, now: datetime) -> _Seen:
    connection = call.db.connection
    asked = await as_pending(connection, session.id)
    if asked is None:
        raise SessionNotFound(session=str(session.id))
    waits_for = await facts.unmet(connection, session.id) if session.status is Status.PENDING else []
    queued = session.status is Status.PENDING and not_yet(session, now, waits_for) is None
    seen = await snapshot(connection, now=now, holdings=True, also=() if queued else (asked,))
    viewer = None if call.by.sees_all else call.by.user_id
    return _Seen(
        session=session,
        asked=asked,
        snapshot=seen,
        around=Surroundings(
            viewer=viewer,
            groups=await facts.groups_of_owner(connection, session),
            most_priority=await facts.most_priority(connection, session.id),
            away=await facts.away_hosts(connection, session.resource_group, now=now),
            counted=await facts.counted(connection, session.id),
            most_plans=plans_for(seen),
        ),
        history=await call.db.sessions_of(session).history(session.id),
        waits_for=waits_for,
        now=now,
        viewer=viewer,
    )


def _explained(seen: _Seen) -> Explained:
    """Pure but for the clock that ends the search; takes long when the fleet is large."""
    session = seen.session
    told = Explained(
        session_id=session.id,
        name=session.name,
        status=session.status,
        code="",
        text="",
        resource_group=session.resource_group,
        waits_for=tuple(Awaited(**one) for one in seen.waits_for),
        starts_at=session.starts_at if session.status is Status.PENDING else None,
    )
    if session.status is not Status.PENDING:
        state = elsewhere(session, seen.now, seen.history, seen.asked, seen.snapshot)
        return replace(told, code=state.code, text=state.text, details=state.details, on=hosts_of(session))
    until = time.monotonic() + SEARCH_SECONDS
    around = replace(seen.around, is_over=lambda: time.monotonic() > until)
    found = explain(seen.snapshot, session.id, seen.now, around)
    return _with(told, found, not_yet(session, seen.now, seen.waits_for))


#: What is told as it was found.
_ALIKE: Final = tuple({f.name for f in fields(Explained)} & {f.name for f in fields(Explanation)} - {"resource_group"})


def _with(told: Explained, found: Explanation, state: Told | None) -> Explained:
    told = replace(told, hosts_total=len(found.per_host), **{name: getattr(found, name) for name in _ALIKE})
    if state is None:
        return told
    if found.code == "starting":
        then = f"Nothing else is in its way: it would start now on {', '.join(found.on)}."
    else:
        then = f"And if it were not for that: {found.text[:1].lower()}{found.text[1:]}"
    place: dict[str, Any] = {"position": None, "queued": None, "before": ()}  # it is not in the queue yet
    return replace(told, code=state.code, text=state.text, details=(*state.details, then), **place)


async def _explain(seen: _Seen, offset: int, limit: int) -> Explained:
    told = await asyncio.get_running_loop().run_in_executor(_PLANNERS, _explained, seen)
    return replace(told, per_host=told.per_host[offset : offset + limit])


#: AGENT, though no host is asked: so no connection is held while plans are made.
@action(Rules(allow=may_look, effect=Effect.AGENT, audit=Audit.OTHERS))
class ExplainSessionAction(SessionAction[Remote, Explained]):
    """Say why a session waits, and what it would start with; why it runs where it does; or why it has ended.

    Every way that is offered was tried with the scheduler's own `plan`. Of others' sessions, users see amounts and ends,
    but no names.
    """

    search: bool = True  #: for what it would start with, which may take seconds; otherwise only why it waits
    host_limit: Annotated[int, Field(ge=0, le=1000)] = 100  #: of `per_host`
    host_offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    async def run(self, call: Remote, session: Session, /) -> Explained:
        async with call.service.reading(call) as reading:
            now = await reading.db.sessions_of(session).get(session.id)  # what was checked may be a second old
            seen = await _look(reading, now, now=call.now)
        seen = replace(seen, around=replace(seen.around, search=self.search))
        return await _explain(seen, self.host_offset, self.host_limit)


class _TakeBack(Exception):
    """Ends a transaction in which something was only tried."""


@action(Rules(allow=any_user, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.SESSIONS))
class DryRunAction(ScopeAction[Remote, Explained]):
    """Say what a creation would come to: all of its checks, and when it would start; nothing of it stays.

    It is made in a transaction that is taken back, as the last in the queue.
    """

    creation: InstanceOf[CreateFromParamsAction] | InstanceOf[CreateFromTemplateAction]
    host_limit: Annotated[int, Field(ge=0, le=1000)] = 100  #: of `per_host`
    host_offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    def target(self) -> str | None:
        return self.creation.target()

    async def run(self, call: Remote, /) -> Explained:
        made: CreatedSession | None = None
        seen: _Seen | None = None
        try:
            async with call.service.work(call) as work:
                made = await self.creation.run(work)
                seen = await _look(work, await work.db.sessions.get(made.session_data.id), now=call.now)
                raise _TakeBack
        except _TakeBack:
            pass
        assert made is not None
        assert seen is not None
        told = await _explain(seen, self.host_offset, self.host_limit)
        if made.created:
            return replace(told, session_id=None, status=None)
        return replace(told, details=(*told.details, "There is such a session already, which would be taken again."))
