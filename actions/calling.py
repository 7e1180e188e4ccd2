"""The way of a call: on record, delivered to the session's host once its app is ready, and over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from actions.base import Remote, main_kernel
from actions.execution import POLL_SECONDS
from actions.outcome import CallCollector, ended_outcome, refused_outcome
from agent.client import KernelAddress
from agent.wire import RunRead
from domain.apps import MOST_INPUT_BYTES
from domain.crash import reach
from domain.errors import (
    AgentUnavailable,
    AppNotLoaded,
    FunctionUnknown,
    InputTooLarge,
    InvalidRequest,
    NotAWorker,
    ResourceExhausted,
    RunnerLost,
    RunNotFound,
    SessionEnded,
)
from domain.ids import RunId, SessionId
from domain.session import ANSWERING, FINAL, Session, SessionTypes, Status
from repositories.calls import CallRow, NewCall, Outcome
from repositories.session import wrong_status

_CHUNK_BYTES: Final = 1024 * 1024
_OVER: Final = FINAL | {Status.TERMINATING}
_NOBODY_KNOWS: Final = (AgentUnavailable, RunnerLost)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallData:
    """A call as far as it has come."""

    id: RunId  #: of its run as well
    session_id: SessionId
    function: str
    status: str  #: queued, running, completed, failed, cancelled
    input: Any = None  #: none in lists, and of a finished call when it is longer than 64 KiB
    output: Any = None  #: none in lists
    output_kept: bool = True  #: false: it is longer than 4 MiB, or was lost with its host
    error: dict[str, Any] | None = None  #: {ename, evalue, traceback, code?}
    progress: Any = None  #: what it said last
    partials: int = 0  #: outputs on its way
    reason: str | None = (
        None  #: finished, interrupted, timeout, crashed, killed, out_of_memory, worker_lost, session_ended
    )
    timeout: float | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancelling: bool = False  #: it was asked to end, and has not yet

    @classmethod
    def of_row(cls, c: CallRow) -> CallData:
        same = {name: getattr(c, name) for name in _SAME}
        texts: dict[str, Any] = {name: _value(getattr(c, name)) for name in _TEXTS}
        return cls(**same, **texts, timeout=c.timeout_seconds, cancelling=c.open and c.cancel_at is not None)

    @property
    def over(self) -> bool:
        return self.finished_at is not None


def _value(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except RecursionError:  # an app has gone around its worker, which nests nothing so deeply
        return None


_TEXTS: Final = ("input", "output", "error", "progress")
_SAME: Final = (
    "id", "session_id", "function", "status", "output_kept", "partials", "reason", "created_at", "started_at", "finished_at",
)  # fmt: skip


def asked_of(session: Session, call_id: RunId, by: UUID, function: str, given: Any, timeout: float | None) -> NewCall:
    """Raises NotAWorker, FunctionUnknown, InputTooLarge, InvalidRequest."""
    if session.session_type is not SessionTypes.WORKER or session.worker is None:
        raise NotAWorker(status=session.status)
    app = session.worker.app
    if app["functions"] and function not in app["functions"]:
        raise FunctionUnknown(
            f"The app {app['name']} has no function '{function}' to be called, but {', '.join(app['functions'])}.",
            field="function",
        )
    try:
        text = json.dumps(given, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
    except UnicodeEncodeError:
        text = json.dumps(given, separators=(",", ":"), allow_nan=False)
        size = len(text)
    except (ValueError, RecursionError):
        said = "The input is no JSON: numbers are finite, and it is not nested too deeply."
        raise InvalidRequest(said, field="input") from None
    if size > MOST_INPUT_BYTES:
        raise InputTooLarge(bytes=size)
    timeout = app.get("call_timeout") if timeout is None else timeout
    hashed = hashlib.sha256(f"{session.id} {function} {timeout} {text}".encode("utf-8", "replace")).digest()
    return NewCall(id=call_id, user_id=by, function=function, input=text, timeout_seconds=timeout, request_hash=hashed)


def call_code(function: str, text: str) -> str:
    """What the runner is told to call."""
    return f'{{"function":{json.dumps(function)},"input":{text}}}'


async def place(
    call: Remote,
    session: Session,
    function: str,
    given: Any,
    seconds: float | None,
    *,
    action: str,
    wait: float | None = 0.0,
) -> Placed:
    """Put a call on record, and deliver it to a session that is ready; its first output is waited for at most `wait`.

    Raises SessionEnded, SessionExpired, and what is wrong with it.
    """
    if session.status in _OVER and call.key is None:  # with a key, it may be asked for the answer of one that it took
        raise wrong_status(session)
    asked = asked_of(session, call.run_id, call.by.user_id, function, given, seconds)
    where = main_kernel(session) if is_ready(session) else None
    async with call.service.reading(call) as single:  # one statement, its own transaction
        written = await single.db.calls.begin(
            session,
            asked,
            deliver=None if where is None else (where.kernel_id, where.agent_id),
            action=action,
            audited={
                "access_key": call.by.access_key,
                "owner_access_key": session.access_key if session.user_id != call.by.user_id else None,
                "request_id": call.request_id,
            },
        )
    reach("action.start_call.indexed")
    if written is None:
        async with call.service.reading(call) as reading:
            session = await reading.db.sessions_of(session).get(session.id)
        raise wrong_status(session)
    made, delivered = written
    if made and where is not None and delivered:
        row = _new_row(asked, session, where, call.now)
    else:
        async with call.service.reading(call) as reading:
            row = await reading.db.calls.get(asked.id)
    placed = Placed(call=call, row=row, session=session)
    if not made and row.reason == "session_ended":
        raise SessionEnded(str((placed.error or {}).get("evalue")), status=session.status)
    if made and not delivered:
        call.service.announce("workers", session.id)
    call.service.announce("events")
    if delivered:
        try:
            placed.first = await placed.ask(0, POLL_SECONDS if wait is None else min(POLL_SECONDS, wait))
        except _NOBODY_KNOWS:  # whether it has it: it is asked again
            pass
        except (SessionEnded, AppNotLoaded, ResourceExhausted) as error:  # its host has refused it: it never runs
            await placed.settle(partial(refused_outcome, error))
            raise
    return placed


def is_ready(session: Session) -> bool:
    """Whether its app is loaded, and can be called."""
    return session.status in ANSWERING and session.worker is not None and session.worker.ready_at is not None


def _new_row(asked: NewCall, session: Session, where: KernelAddress, now: datetime) -> CallRow:
    return CallRow(
        id=asked.id,
        session_id=session.id,
        attempt=session.attempt,
        user_id=asked.user_id,
        function=asked.function,
        input=asked.input,
        input_bytes=len(asked.input),
        timeout_seconds=asked.timeout_seconds,
        status="running",
        output=None,
        output_kept=True,
        error=None,
        progress=None,
        partials=0,
        reason=None,
        created_at=now,
        started_at=None,
        finished_at=None,
        cancel_at=None,
        delivered=True,
        sent=True,
        kernel_id=where.kernel_id,
        agent_id=where.agent_id,
        run_attempt=where.attempt,
    )


@dataclass(slots=True, kw_only=True)
class Placed:
    """A call that is on record, and may have been delivered: what follows from it."""

    call: Remote
    row: CallRow
    session: Session
    first: RunRead | None = None  #: what came with its delivery

    async def result(self, wait: float | None) -> CallData:
        """How it stands when it is over, or after `wait` seconds."""
        service = self.call.service
        until = None if wait is None else service.monotonic() + wait
        collector = CallCollector()
        if not await self.delivered(until):
            return CallData.of_row(self.row)
        read, next_seq, misses = self.first, 0, 0
        while self.row.open:
            left = POLL_SECONDS if until is None else max(0.0, min(POLL_SECONDS, until - service.monotonic()))
            if read is None:
                try:
                    read = await self.ask(next_seq, left)
                    misses = 0
                except (*_NOBODY_KNOWS, RunNotFound, SessionEnded):
                    misses += 1
                    if await self._gave_up(misses, until):
                        break
                    continue
            collector.add(read)
            if collector.done:
                await self.settle(collector.outcome)
                break
            # an app may say more than is read at once, and may go on saying it
            all_said = not read.records or (read.status != "done" and len(read.records) < _CHUNK_BYTES // 2)
            if all_said and self._must_stop(until):
                break
            next_seq, read = read.next_seq, None
        said = CallData.of_row(self.row)
        if said.over:
            return said
        return replace(said, **collector.so_far(said.status))

    async def _gave_up(self, misses: int, until: float | None) -> bool:
        """Its host does not answer: another look at the row, which somebody else may have settled; and a pause."""
        service = self.call.service
        await self.refresh()
        if not self.row.open or (until is not None and service.monotonic() >= until) or service.patience.ended:
            return True
        if misses > 30:
            raise AgentUnavailable("The session's host cannot be reached at the moment; the call goes on there.")
        await service.sleep(1.0)
        return False

    async def delivered(self, until: float | None) -> bool:
        """Waits until the app is ready, and the control role has sent it, after those before. False when it is over, or
        the time is."""
        service = self.call.service
        while self.row.open and not self.row.sent:
            seconds = None if until is None else max(0.0, until - service.monotonic())
            if not self._can_go_on(self.session):
                if seconds == 0.0:
                    break
                seconds = POLL_SECONDS if seconds is None else min(POLL_SECONDS, seconds)
                self.session = await service.wait_for_session(self.session.id, _Fewer(self._can_go_on), seconds)
            async with service.reading(self.call) as reading:
                self.row = await reading.db.calls.get(self.row.id)
                if self._is_stale(self.session) and not self.row.delivered:
                    await reading.db.calls.settle(self.row.id, ended_outcome(self.session, reading.now))
                    self.row = await reading.db.calls.get(self.row.id)
            if self.row.delivered and self._is_stale(self.session):  # what came of it, its host knows
                return self.row.open
            if not self.row.sent and self._must_stop(until):
                break
        return self.row.open and self.row.sent

    def _can_go_on(self, session: Session) -> bool:
        """It is over, or was sent: nothing that was asked as early as it still waits."""
        if self._is_stale(session):
            return True
        since = session.worker.waiting_since if session.worker is not None else None
        return is_ready(session) and (since is None or since > self.row.created_at)

    def _is_stale(self, session: Session) -> bool:
        return session.status in _OVER or session.attempt != self.row.attempt

    def _must_stop(self, until: float | None) -> bool:
        service = self.call.service
        return service.patience.ended or (until is not None and service.monotonic() >= until)

    @property
    def error(self) -> dict[str, Any] | None:
        return CallData.of_row(self.row).error

    @property
    def where(self) -> KernelAddress:
        row = self.row
        assert row.agent_id is not None
        assert row.kernel_id is not None
        assert row.run_attempt is not None
        return KernelAddress(agent_id=row.agent_id, kernel_id=row.kernel_id, attempt=row.run_attempt)

    async def ask(self, from_seq: int, wait_seconds: float) -> RunRead:
        """Deliver it, or read on: a second delivery attaches to the run. Its input is kept for as long as it is open."""

        async def asking(seconds: float) -> RunRead:
            if from_seq or self.row.input is None:
                return await self.call.agents.read(
                    self.where, self.row.id, from_seq=from_seq, max_bytes=_CHUNK_BYTES, wait_seconds=seconds
                )
            return await self.call.agents.execute(
                self.where,
                self.row.id,
                mode="call",
                code=call_code(self.row.function, self.row.input),
                opts={},
                timeout_seconds=self.row.timeout_seconds,
                wait_seconds=seconds,
                max_bytes=_CHUNK_BYTES,
            )

        return await self.call.service.patience.ask(asking, wait_seconds)

    async def settle(self, ended: Callable[[datetime], Outcome]) -> None:
        """Write how it ended, unless somebody has."""
        reach("action.start_call.done")
        async with self.call.service.reading(self.call) as reading:
            outcome = ended(reading.now)
            first = await reading.db.calls.settle(self.row.id, outcome)
            self.row = _over(self.row, outcome) if first else await reading.db.calls.get(self.row.id)

    async def refresh(self) -> None:
        async with self.call.service.reading(self.call) as reading:
            self.row = await reading.db.calls.get(self.row.id)


class _Fewer:
    """`until`, or one of the session's open calls is over: it may be the one that somebody waits for, cancelled."""

    def __init__(self, until: Callable[[Session], bool]) -> None:
        self._until = until
        self._most = 0

    def __call__(self, session: Session) -> bool:
        number = session.worker.open_calls if session.worker is not None else 0
        self._most = max(self._most, number)
        return number < self._most or self._until(session)


def _over(row: CallRow, outcome: Outcome) -> CallRow:
    """The row as it is after `outcome` was written, without another look."""
    return replace(
        row,
        status=outcome.status,
        reason=outcome.reason,
        finished_at=max(outcome.finished_at, row.created_at),
        started_at=outcome.started_at,
        output=outcome.output,
        output_kept=outcome.output_kept,
        error=outcome.error,
        progress=outcome.progress or row.progress,
        partials=max(outcome.partials, row.partials),
    )
