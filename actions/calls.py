"""Calls of worker sessions: ask, look, follow, cancel, forget; and keep a session alive that nobody calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from actions.apps import AppRef, FunctionName
from actions.base import (
    Audit,
    Effect,
    Permission,
    Reading,
    Remote,
    Result,
    Rules,
    ScopeAction,
    SessionAction,
    Work,
    action,
    any_user,
    anyone,
    may_look,
    owner_or_admin,
)
from actions.calling import CallData, Placed, asked_of, place
from actions.cursor import decode_cursor, encode_cursor
from actions.execution import RunFollower
from actions.lifecycle import CreateFromParamsAction
from actions.views import Done, SessionResult
from agent.wire import RunRead
from domain.apps import SHORTEST_IDLE_SECONDS
from domain.errors import (
    AgentUnavailable,
    CallNotFound,
    Conflict,
    PermissionDenied,
    RunnerLost,
    RunNotFound,
    SessionEnded,
    SessionNotFound,
)
from domain.ids import RunId
from domain.principal import TokenScope
from domain.session import ANSWERING, ANY_STATUS, Session
from repositories.calls import CallRow
from repositories.record import AuditRecord, write_audit
from repositories.session import wrong_status

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Wait = Annotated[float, Field(ge=0, le=86400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult(Result):
    call: CallData


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPage(Result):
    items: list[CallData]
    next_cursor: str | None


@action(
    Rules(
        allow=owner_or_admin,
        when=ANY_STATUS,
        effect=Effect.AGENT,
        deadline_seconds=86400.0,
        audit=Audit.ITSELF,
        scope=TokenScope.SESSIONS,
    )
)
class StartCallAction(SessionAction[Remote, CallResult]):
    """Call a function of a worker session's app, once the app is ready and the calls before are done.

    Answers when it is over, or after `wait` seconds. The same Idempotency-Key never makes a second call.
    """

    function: FunctionName = "run"
    input: Any = None
    timeout: Seconds | None = None  #: of its run; the app's when left out
    wait: Wait | None = None

    async def run(self, call: Remote, session: Session, /) -> CallResult:
        placed = await place(
            call, session, self.function, self.input, self.timeout, action=self.action_name, wait=self.wait
        )
        return CallResult(call=await placed.result(self.wait))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CallAppAction(ScopeAction[Work, CallResult]):
    """Call an app without a session: one is made for this call, and ends with it."""

    app: AppRef
    function: FunctionName = "run"
    input: Any = None
    timeout: Seconds | None = None
    project: str | None = None
    max_wait: Seconds | None = None  #: how long its session may stay in the queue

    def target(self) -> str | None:
        return self.app

    async def run(self, call: Work, /) -> CallResult:
        creation = CreateFromParamsAction(
            app=self.app, project=self.project, max_wait=self.max_wait, idle_timeout=SHORTEST_IDLE_SECONDS
        )
        made = await creation.run(call)
        session = await call.db.sessions.get(made.session_data.id)
        asked = asked_of(session, RunId(call.new_id()), call.by.user_id, self.function, self.input, self.timeout)
        await call.db.calls.begin(session, asked, deliver=None, action=None, audited={})
        row = await call.db.calls.get(asked.id)
        call.announce("workers", session.id)
        return CallResult(call=CallData.of_row(row))


@action(Rules(allow=may_look, effect=Effect.READ))
class ListCallsAction(SessionAction[Reading, CallPage]):
    """A worker session's calls, newest first, without their inputs and outputs."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, session: Session, /) -> CallPage:
        after = decode_cursor(self.cursor)
        found = await call.db.calls.of_session(session.id, limit=self.limit, after=after)
        last = found[-1] if len(found) == self.limit else None
        return CallPage(
            items=[CallData.of_row(row) for row in found],
            next_cursor=encode_cursor(last.created_at, last.id) if last else None,
        )


@action(Rules(allow=anyone, effect=Effect.AGENT, deadline_seconds=86400.0, audit=Audit.ITSELF, scope=TokenScope.READ))
class GetCallAction(ScopeAction[Remote, CallResult]):
    """A call as it stands, also after its session has gone; with `wait` once it is over, or after so many seconds."""

    call_id: UUID
    wait: Wait = 0.0

    def target(self) -> str | None:
        return str(self.call_id)

    async def run(self, call: Remote, /) -> CallResult:
        placed = await _found(call, self.call_id, may_look, self.action_name)
        return CallResult(call=await placed.result(self.wait))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFollower(Result):
    """A call to be followed: iterate over `reads()`, then take `result()`."""

    placed: Placed
    from_seq: int = 0

    @property
    def call_id(self) -> RunId:
        return self.placed.row.id

    async def reads(self) -> AsyncIterator[RunRead]:
        """Its output as it comes, once it is delivered, until it is over. Nothing, when its session ended before."""
        placed = self.placed
        await placed.delivered(None)
        if not placed.row.delivered:
            return
        if placed.row.open:  # it may have become a run just now, of which its host has not heard
            with suppress(AgentUnavailable):
                await placed.ask(0, 0.0)
        run = RunFollower(run_id=self.call_id, call=placed.call, session=placed.session, from_seq=self.from_seq)
        async for read in run.reads():
            yield read

    async def result(self) -> CallData:
        await self.placed.refresh()
        return await self.placed.result(None)


@action(Rules(allow=anyone, effect=Effect.AGENT, deadline_seconds=60.0, audit=Audit.ITSELF, scope=TokenScope.READ))
class FollowCallAction(ScopeAction[Remote, CallFollower]):
    """Follow what a call says, from a sequence number on, as it comes, to its end; then how it ended."""

    call_id: UUID
    from_seq: Annotated[int, Field(ge=0)] = 0

    def target(self) -> str | None:
        return str(self.call_id)

    async def run(self, call: Remote, /) -> CallFollower:
        placed = await _found(call, self.call_id, may_look, self.action_name)
        return CallFollower(placed=placed, from_seq=self.from_seq)


@action(Rules(allow=any_user, effect=Effect.AGENT, scope=TokenScope.SESSIONS))
class CancelCallAction(ScopeAction[Remote, CallResult]):
    """Cancel a call: one that waits never runs, one that runs is interrupted. The session and its state go on."""

    call_id: UUID

    def target(self) -> str | None:
        return str(self.call_id)

    async def run(self, call: Remote, /) -> CallResult:
        placed = await _found(call, self.call_id, owner_or_admin, self.action_name)
        if placed.row.open:
            async with call.service.work(call) as work:
                await work.db.calls.cancel(placed.row.id)
                for topic in ("workers", "sessions"):
                    work.announce(topic, placed.row.session_id)
            await placed.refresh()
            if placed.row.open:
                # it is on record: what its host cannot be told now, the control role tells it
                with suppress(AgentUnavailable, RunnerLost, RunNotFound, SessionEnded):
                    await call.agents.interrupt(placed.where, placed.row.id)
        return CallResult(call=await placed.result(0.0))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class DeleteCallAction(ScopeAction[Work, Done]):
    """Forget a call that is over, with its input, output and error. What it printed goes with its session."""

    call_id: UUID

    def target(self) -> str | None:
        return str(self.call_id)

    async def run(self, call: Work, /) -> Done:
        row, _ = await _seen(call, self.call_id, owner_or_admin)
        if not await call.db.calls.forget(row.id):
            raise Conflict("The call is not over; cancel it first.", call=str(row.id))
        return Done()


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class KeepaliveSessionAction(SessionAction[Work, SessionResult]):
    """Let a session's idle time begin anew, as a call or a run would."""

    async def run(self, call: Work, session: Session, /) -> SessionResult:
        kept = await call.db.calls.keep_alive(session.id)
        now = await call.db.sessions_of(session).get(session.id)
        if not kept:
            raise wrong_status(now)
        call.announce("sessions", session.id)
        return SessionResult.of(now)


async def _seen(reading: Reading, call_id: UUID, allow: Permission) -> tuple[CallRow, Session]:
    """What is not yours is not there."""
    row = await reading.db.calls.get(call_id)
    try:
        sessions = reading.db.all_sessions if reading.by.sees_others else reading.db.sessions
        session = await sessions.get(row.session_id)
    except SessionNotFound:
        raise CallNotFound(call=str(call_id)) from None
    if not allow(reading.by, session):
        raise PermissionDenied
    return row, session


async def _found(call: Remote, call_id: UUID, allow: Permission, action: str) -> Placed:
    """To look at another's is on record."""
    async with call.service.reading(call) as reading:
        row, session = await _seen(reading, call_id, allow)
    if session.user_id != call.by.user_id:
        record = AuditRecord(
            at=call.now,
            user_id=call.by.user_id,
            access_key=call.by.access_key,
            owner_access_key=session.access_key,
            action=action,
            target=str(session.id),
            outcome="ok",
            request_id=call.request_id,
        )
        async with call.service.work(call) as work:
            await write_audit(work.db.connection, record)
    return Placed(call=call, row=row, session=session)
