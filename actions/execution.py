"""Run code in sessions, feed it, stop it, read its output, complete what is being typed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import Field

from actions.base import (
    Audit,
    Effect,
    Kernel,
    Reading,
    Remote,
    Result,
    Rules,
    SessionAction,
    action,
    kernel_of,
    may_look,
    owner_or_admin,
)
from actions.cursor import decode_cursor, encode_cursor
from agent.client import KernelAddress
from agent.wire import RECORD, RECORD_KINDS, Record, RunRead, decode_records
from domain.crash import reach
from domain.errors import AgentUnavailable, InvalidRequest, RunNotFound
from domain.ids import KernelId, RunId
from domain.names import as_uuid
from domain.principal import TokenScope
from domain.session import ANSWERING, Session
from repositories.execution import Execution
from repositories.session import wrong_status

#: One answer holds at most this much text; the rest is read on by sequence number.
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
#: One question to the agent is held open this long, so that a lost one is noticed.
POLL_SECONDS: Final = 20.0
_CHUNK_BYTES: Final = 1024 * 1024
#: Ends of runs that are errors of the code, not of the request.
_ERROR_CODES: Final = {
    "timeout": (
        "execution_timeout",
        "The code ran longer than its timeout and was stopped; its output so far is kept.",
    ),
    "out_of_memory": ("resource_exhausted", "The code needed more memory than the session has, and was stopped."),
    "worker_lost": ("runner_lost", "The session's runner went away while the code was running."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput(Result):
    """One run, as far as it has come."""

    run_id: RunId
    status: str  #: queued, running, waiting_input, done
    exit_code: int | None = None
    signal: int | None = None
    #: finished, interrupted, timeout, crashed, killed, out_of_memory, worker_lost
    reason: str | None = None
    stdout: str = ""
    stderr: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)  #: MIME bundles
    error: dict[str, Any] | None = None  #: {code?, ename, evalue, traceback}
    input_request: dict[str, Any] | None = None  #: {prompt, password} while it waits for input
    next_seq: int = 1
    gap: tuple[int, int] | None = None  #: sequence numbers that are no longer kept
    truncated: bool = False  #: there is more; read on from next_seq
    started_at: float | None = None  #: unix seconds, as the session's host saw it
    finished_at: float | None = None

    @property
    def result(self) -> dict[str, Any]:
        """The answer as a dictionary."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "run_id": str(self.run_id)}


class RunCollector:
    """Puts records together into one answer."""

    def __init__(self, run_id: RunId, from_seq: int) -> None:
        self._run_id = run_id
        self._text: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._size = 0
        self._fields: dict[str, Any] = {"results": [], "next_seq": from_seq}
        self.done = False
        self.full = False

    def add(self, read: RunRead) -> None:
        fields = self._fields
        fields["status"] = read.status
        if read.gap and "gap" not in fields:
            fields["gap"] = read.gap
        fields["next_seq"] = read.next_seq
        for record in decode_records(read.records):
            self._add_record(record)
        if read.done is not None:
            self.done = True
            fields["status"] = "done"
            for name in ("exit_code", "signal", "reason", "started_at", "finished_at"):
                fields[name] = read.done.get(name)
            if (named := _ERROR_CODES.get(fields["reason"] or "")) is not None:
                error = fields.get("error") or {"ename": fields["reason"], "evalue": named[1], "traceback": []}
                fields["error"] = {**error, "code": named[0]}
        self.full = self._size >= MAX_ANSWER_BYTES
        fields["truncated"] = self.full and not self.done

    def _add_record(self, record: Record) -> None:
        self._size += len(record.payload)
        if record.kind in self._text:
            self._text[record.kind].append(record.payload)
        elif record.kind == "result":
            self._fields["results"].append(record.data)
        elif record.kind == "error":
            self._fields["error"] = record.data
        elif record.kind == "input_request":
            self._fields["input_request"] = record.data

    def output(self) -> RunOutput:
        fields = dict(self._fields)
        if fields.get("status") != "waiting_input":
            fields.pop("input_request", None)
        texts = {kind: b"".join(parts).decode("utf-8", "replace") for kind, parts in self._text.items()}
        return RunOutput(**{"run_id": self._run_id, "status": "running", **texts, **fields})


def parse_run_id(text: str | UUID) -> RunId:
    if (run_id := text if isinstance(text, UUID) else as_uuid(text)) is None:
        raise RunNotFound(run_id=str(text)[:64])
    return RunId(run_id)


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=86400.0,
        audit=Audit.ITSELF,
        scope=TokenScope.SESSIONS,
    )
)
class ExecuteSessionAction(SessionAction[Remote, RunOutput]):
    """Run code: `query` in the session's Python, `batch` as a shell command, `call` a function of a worker session's app;
    `input` feeds a run, `continue` reads on.

    `timeout` interrupts the run, then kills it (the session goes on); the answer is held until the run is done or
    waits for input, at most `wait` seconds. The same Idempotency-Key never starts a second run.
    """

    code: Annotated[str, Field(max_length=4 * 1024 * 1024)] = ""
    mode: Literal["query", "batch", "call", "input", "continue"] = "query"
    function: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "run"  #: with call
    input: Any = None  #: of the function, with call
    opts: dict[str, Any] = field(default_factory=dict)
    run_id: UUID | None = None  #: of the run to feed or to read on
    timeout: Annotated[float, Field(gt=0, le=30 * 86400)] | None = None
    wait: Annotated[float, Field(ge=0, le=86400)] | None = None
    from_seq: Annotated[int, Field(ge=0)] = 0
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> RunOutput:
        if "\0" in self.code:
            raise InvalidRequest("Code must not contain NUL bytes.", field="code")
        if self.mode in ("query", "batch"):
            return await self._start(call, session, kernel_of(session, self.kernel))
        if self.mode == "call":
            return await self._call(call, session)
        if self.run_id is None:
            raise InvalidRequest(f"Mode '{self.mode}' needs the run_id of a running execution.", field="run_id")
        run_id, where = await _known_run(call, session, self.run_id)
        if self.mode == "input":
            await call.agents.send_input(
                where, run_id, self.code.encode(), eof=bool(self.opts.get("eof")), key=call.run_id
            )
        return await self._collect(call, where, run_id, None)

    async def _start(self, call: Remote, session: Session, where: KernelAddress) -> RunOutput:
        async with call.service.reading(call) as single:  # one statement, its own transaction
            attempt = await single.db.executions.begin(
                session,
                call.run_id,
                kernel_id=where.kernel_id,
                agent_id=where.agent_id,
                user_id=call.by.user_id,
                mode=self.mode,
                request_hash=self.request_hash(session),
                audited={
                    "access_key": call.by.access_key,
                    "owner_access_key": call.owner.access_key if call.owner is not call.by else None,
                    "request_id": call.request_id,
                },
            )
        reach("action.execute_session.indexed")
        call.service.announce("events")
        if attempt is None:
            async with call.service.reading(call) as reading:
                raise wrong_status(await reading.db.sessions_of(session).get(session.id))
        if attempt != session.attempt:  # it was delivered to a container that is no more: never again
            execution, read = await read_run(
                call, session, call.run_id, from_seq=0, max_bytes=_CHUNK_BYTES, wait_seconds=0
            )
            return await self._collect(call, _where(execution), call.run_id, read)

        async def ask(seconds: float) -> RunRead:  # a second time it attaches to the run
            return await call.agents.execute(
                where,
                call.run_id,
                mode=self.mode,
                code=self.code,
                opts=self.opts,
                timeout_seconds=self.timeout,
                wait_seconds=seconds,
                max_bytes=_CHUNK_BYTES,
            )

        first = await call.service.patience.ask(
            ask, POLL_SECONDS if self.wait is None else min(POLL_SECONDS, self.wait)
        )
        return await self._collect(call, where, call.run_id, first)

    async def _call(self, call: Remote, session: Session) -> RunOutput:
        """As `start_call` does, with the answer of an execution: its results hold partials, progress and the output."""
        from actions.calling import place  # which reads runs as is done here

        if self.code or self.kernel is not None:
            raise InvalidRequest("Mode 'call' takes a function and its input, and no code or kernel.", field="code")
        until = None if self.wait is None else call.service.monotonic() + self.wait
        placed = await place(
            call, session, self.function, self.input, self.timeout, action=self.action_name, wait=self.wait
        )
        await placed.delivered(until)
        if not placed.row.delivered:
            status = "queued" if placed.row.open else "done"
            return RunOutput(run_id=placed.row.id, status=status, reason=placed.row.reason, error=placed.error)
        wait = None if until is None else max(0.0, until - call.service.monotonic())
        answer = await replace(self, wait=wait)._collect(call, placed.where, placed.row.id, placed.first)
        if answer.status == "done":
            await placed.result(1.0)
        return answer

    def request_hash(self, session: Session) -> bytes:
        """What makes two requests the same one."""
        body: list[Any] = [str(session.id), self.mode, self.code, self.opts, self.timeout]
        if self.kernel is not None:
            body.append(self.kernel)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()

    async def _collect(self, call: Remote, where: KernelAddress, run_id: RunId, first: RunRead | None) -> RunOutput:
        until = None if self.wait is None else call.service.monotonic() + self.wait
        collector = RunCollector(run_id, self.from_seq)
        read, next_seq = first, self.from_seq
        while True:
            if read is None:
                left = POLL_SECONDS if until is None else max(0.0, min(POLL_SECONDS, until - call.service.monotonic()))
                read = await _patiently(call, where, run_id, next_seq, _CHUNK_BYTES, left)
            collector.add(read)
            asks = read.status == "waiting_input" and self._asked_anew(read)
            over = (until is not None and call.service.monotonic() >= until) or call.service.patience.ended
            if collector.done or collector.full or asks or over:
                return collector.output()
            next_seq, read = read.next_seq, None

    def _asked_anew(self, read: RunRead) -> bool:
        """Whether the question that the run waits with is a new one: right after `input` the old one may still show."""
        return self.mode != "input" or any(r.kind == "input_request" for r in decode_records(read.records))


async def _known_run(call: Remote, session: Session, run_id: UUID) -> tuple[RunId, KernelAddress]:
    async with call.service.reading(call) as reading:
        execution = await reading.db.executions.get(session.id, RunId(run_id))
    return execution.run_id, _where(execution)


def _where(execution: Execution) -> KernelAddress:
    return KernelAddress(agent_id=execution.agent_id, kernel_id=execution.kernel_id, attempt=execution.attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPiece(Result):
    """Records of one run from a sequence number on."""

    run_id: RunId
    status: str
    exit_code: int | None
    signal: int | None
    reason: str | None
    started_at: datetime
    finished_at: datetime | None
    records: list[dict[str, Any]]
    next_seq: int
    gap: tuple[int, int] | None


def record_json(record: Record, *, binary: bool = False) -> dict[str, Any]:
    """A record as JSON: `text` for output (or `base64`, to the byte), `data` for everything else."""
    head: dict[str, Any] = {"seq": record.seq, "kind": record.kind, "time": record.time}
    if record.kind in ("stdout", "stderr"):
        if binary:
            return {**head, "base64": base64.b64encode(record.payload).decode()}
        return {**head, "text": record.payload.decode("utf-8", "replace")}
    return {**head, "data": record.data}


@action(Rules(allow=may_look, effect=Effect.AGENT, deadline_seconds=86400.0, audit=Audit.OTHERS, scope=TokenScope.READ))
class ReadExecutionAction(SessionAction[Remote, RunPiece]):
    """Read an execution's output from any sequence number, also after it, the client or the manager has gone."""

    run_id: UUID
    from_seq: Annotated[int, Field(ge=0)] = 0
    max_bytes: Annotated[int, Field(ge=1, le=MAX_ANSWER_BYTES)] = _CHUNK_BYTES
    wait: Annotated[float, Field(ge=0, le=3600)] = 0.0
    binary: bool = False

    async def run(self, call: Remote, session: Session, /) -> RunPiece:
        execution, read = await read_run(
            call, session, self.run_id, from_seq=self.from_seq, max_bytes=self.max_bytes, wait_seconds=self.wait
        )
        done = read.done or {}
        return RunPiece(
            run_id=execution.run_id,
            status=read.status,
            exit_code=done.get("exit_code", execution.exit_code),
            signal=done.get("signal", execution.signal),
            reason=done.get("reason", execution.reason),
            started_at=execution.started_at,
            finished_at=execution.finished_at,
            records=[record_json(record, binary=self.binary) for record in decode_records(read.records)],
            next_seq=read.next_seq,
            gap=read.gap,
        )


async def read_run(
    call: Remote, session: Session, run_id: UUID, *, from_seq: int, max_bytes: int, wait_seconds: float
) -> tuple[Execution, RunRead]:
    """From the agent's ring while that can be reached, else from the tail that was taken over at the session's end."""
    async with call.service.reading(call) as reading:
        execution = await reading.db.executions.get(session.id, RunId(run_id))
    try:
        read = await _patiently(call, _where(execution), execution.run_id, from_seq, max_bytes, wait_seconds)
    except (AgentUnavailable, RunNotFound):
        if execution.tail is None:
            raise
        read = _from_tail(execution, from_seq, max_bytes)
    return execution, read


async def _patiently(
    call: Remote, where: KernelAddress, run_id: RunId, from_seq: int, max_bytes: int, wait_seconds: float
) -> RunRead:
    """What there is from `from_seq` on; waited for, unless this manager is to go."""

    async def ask(seconds: float) -> RunRead:
        return await call.agents.read(where, run_id, from_seq=from_seq, max_bytes=max_bytes, wait_seconds=seconds)

    return await call.service.patience.ask(ask, wait_seconds)


def _from_tail(execution: Execution, from_seq: int, max_bytes: int) -> RunRead:
    assert execution.tail is not None
    kept, first, next_seq, size = [], None, from_seq, 0
    for record in decode_records(execution.tail):
        if record.seq < from_seq:
            continue
        if size and size + len(record.payload) > max_bytes:
            break
        first = record.seq if first is None else first
        kept.append(
            RECORD.pack(len(record.payload), record.seq, RECORD_KINDS.index(record.kind), record.time) + record.payload
        )
        next_seq, size = record.seq + 1, size + len(record.payload)
    gap = (max(from_seq, 1), first - 1) if first is not None and first > max(from_seq, 1) else None
    ended = next_seq > execution.last_seq
    done = {"exit_code": execution.exit_code, "signal": execution.signal, "reason": execution.reason} if ended else None
    return RunRead(
        run_id=str(execution.run_id), records=b"".join(kept), next_seq=next_seq, gap=gap, status="done", done=done
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFollower(Result):
    """A run to be followed: iterate over `reads()`."""

    run_id: RunId
    call: Remote
    session: Session
    from_seq: int = 0

    async def reads(self) -> AsyncIterator[RunRead]:
        """Output as it comes, until the run is done. An agent that goes away for a while is waited for."""
        next_seq, patience = self.from_seq, 30
        while True:
            try:
                _, read = await read_run(
                    self.call,
                    self.session,
                    self.run_id,
                    from_seq=next_seq,
                    max_bytes=_CHUNK_BYTES,
                    wait_seconds=POLL_SECONDS,
                )
                patience = 30
            except AgentUnavailable:
                patience -= 1
                if not patience:
                    raise
                await self.call.service.sleep(1.0)
                continue
            yield read
            next_seq = read.next_seq
            if read.done is not None:
                return


@action(Rules(allow=may_look, effect=Effect.AGENT, deadline_seconds=60.0, audit=Audit.OTHERS, scope=TokenScope.READ))
class FollowExecutionAction(SessionAction[Remote, RunFollower]):
    """Follow an execution's output from a sequence number on, as it comes, to its end."""

    run_id: UUID
    from_seq: Annotated[int, Field(ge=0)] = 0

    async def run(self, call: Remote, session: Session, /) -> RunFollower:
        run_id, _ = await _known_run(call, session, self.run_id)
        return RunFollower(run_id=run_id, call=call, session=session, from_seq=self.from_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionData:
    run_id: RunId
    kernel_id: KernelId
    mode: str
    status: str
    exit_code: int | None
    signal: int | None
    reason: str | None
    started_at: datetime
    finished_at: datetime | None
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPage(Result):
    items: list[ExecutionData]
    next_cursor: str | None


@action(Rules(allow=may_look, effect=Effect.READ))
class ListExecutionsAction(SessionAction[Reading, ExecutionPage]):
    """A session's executions, newest first."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, session: Session, /) -> ExecutionPage:
        after = decode_cursor(self.cursor)
        found = await call.db.executions.of_session(session.id, limit=self.limit, after=after)
        items = [
            ExecutionData(**{name: getattr(run, name) for name in ExecutionData.__slots__})  # a subset of its columns
            for run in found
        ]
        last = found[-1] if len(found) == self.limit else None
        return ExecutionPage(items=items, next_cursor=encode_cursor(last.started_at, last.run_id) if last else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted(Result):
    interrupted: bool  #: false: nothing was running


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.SESSIONS))
class InterruptAction(SessionAction[Remote, Interrupted]):
    """Interrupt what is running (SIGINT), or one run of it. The session and its state go on."""

    run_id: UUID | None = None
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> Interrupted:
        if self.run_id is None:
            return Interrupted(interrupted=await call.agents.interrupt(kernel_of(session, self.kernel), None))
        run_id, where = await _known_run(call, session, self.run_id)
        return Interrupted(interrupted=await call.agents.interrupt(where, run_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed(Result):
    killed: bool  #: false: it was not running


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.SESSIONS))
class KillExecutionAction(SessionAction[Remote, Killed]):
    """Kill one run; its output so far is kept. A killed query takes the Python namespace with it.

    With `grace_seconds` it is asked to end first (SIGTERM), and killed when it has not after so long.
    """

    run_id: UUID
    grace_seconds: Annotated[float, Field(ge=0, le=600)] | None = None

    async def run(self, call: Remote, session: Session, /) -> Killed:
        run_id, where = await _known_run(call, session, self.run_id)
        return Killed(killed=await call.agents.kill(where, run_id, self.grace_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion(Result):
    suggestions: list[str]
    start: int = 0  #: offset in `code` at which a suggestion goes
    end: int = 0


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.SESSIONS))
class CompleteAction(SessionAction[Remote, Completion]):
    """Complete what is being typed, from the session's live namespace. `row` and `col` count from 0."""

    code: Annotated[str, Field(max_length=1024 * 1024)]
    row: Annotated[int, Field(ge=0)] = 0
    col: Annotated[int, Field(ge=0)] = 0
    line: str = ""
    post: str = ""
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> Completion:
        found: Mapping[str, Any] = await call.agents.complete(
            kernel_of(session, self.kernel), code=self.code, row=self.row, col=self.col, line=self.line, post=self.post
        )
        suggestions = [str(text)[:1000] for text in list(found.get("suggestions", ()))[:1000]]
        return Completion(suggestions=suggestions, start=int(found.get("start", 0)), end=int(found.get("end", 0)))
