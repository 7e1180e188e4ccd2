"""Look at sessions: one, many, their history, logs, events' tasks, and who one is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final
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
    ScopeAction,
    SessionAction,
    Work,
    action,
    any_user,
    anyone,
    kernel_of,
    may_look,
)
from actions.cursor import decode_cursor, encode_cursor
from actions.execution import POLL_SECONDS
from actions.views import SessionData
from agent.client import KernelAddress
from agent.wire import Record, decode_records
from domain.errors import AgentUnavailable, InvalidRequest, PermissionDenied, RunnerLost, RunNotFound, SessionNotReady
from domain.options import label_query
from domain.principal import Principal, TokenScope
from domain.session import FINAL, LIVE, Event, Session, Status
from repositories.session import Search, like
from repositories.tail import kept_log
from repositories.task import Task

_LOG_RUN = "log"
_LOG_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo(Result):
    session_info: SessionData


@action(Rules(allow=may_look, effect=Effect.READ))
class GetSessionInfoAction(SessionAction[Reading, SessionInfo]):
    """Everything there is to know of one session."""

    async def run(self, call: Reading, session: Session, /) -> SessionInfo:
        return SessionInfo(session_info=SessionData.of(session))


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusHistory(Result):
    #: {"history": [{status, source, event, reason, by, timestamp, attempt, version, duration_seconds}, ...]}, oldest first
    status_history: dict[str, list[dict[str, Any]]]


@action(Rules(allow=may_look, effect=Effect.READ))
class GetStatusHistoryAction(SessionAction[Reading, StatusHistory]):
    """Every status that a session has had, with reason, by whom, time and duration; the last one lasts."""

    async def run(self, call: Reading, session: Session, /) -> StatusHistory:
        history = await call.db.sessions.history(session.id)
        told = [{**row, "reason": row["reason"] or _WHY.get(row["event"] or "create")} for row in history]
        return StatusHistory(status_history={"history": told})


#: Where nothing particular was to be said.
_WHY: Final[Mapping[str, str]] = {
    "create": "asked for",
    Event.SCHEDULE: "a host with room was found",
    Event.PREPARE: "its host has taken it on",
    Event.PULL: "its host fetches the image",
    Event.START: "every container answers",
    Event.RECOVER: "every container answers again",
    Event.RESTART: "a new attempt was asked for",
    Event.GONE: "its hosts say that nothing is left of it",
    Event.BREAK: "its hosts say that nothing is left of it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage(Result):
    items: list[SessionData]
    next_cursor: str | None


@action(Rules(allow=anyone, effect=Effect.READ))
class SearchSessionsAction(ScopeAction[Reading, SessionPage]):
    """List sessions, newest first: the live ones, or those of the given statuses. Administrators may see `all` owners'."""

    status: tuple[str, ...] = ()  #: statuses, or `all`; the live ones when left out
    name: Annotated[str, Field(max_length=256)] | None = None  #: a glob, or a prefix
    tag: str | None = None
    project: str | None = None
    label: tuple[Annotated[str, Field(max_length=400)], ...] = ()  #: `name=value`, or `name` alone; all must hold
    all: bool = False
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, /) -> SessionPage:
        search = Search(
            statuses=_statuses(self.status),
            name_pattern=None if self.name is None else like(self.name),
            tag=self.tag,
            project=self.project,
            labels=[label_query(label) for label in self.label],
            after=decode_cursor(self.cursor),
            limit=self.limit,
        )
        return await _page(call, search, everybodys=self.all)

    def looks_at_others(self, by: Principal) -> bool:
        return self.all


@action(Rules(allow=anyone, effect=Effect.READ))
class MatchSessionsAction(ScopeAction[Reading, SessionPage]):
    """Find live sessions whose name or id matches a glob (`train-*`) or begins with the given text."""

    pattern: Annotated[str, Field(min_length=1, max_length=256)]
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, /) -> SessionPage:
        return await _page(
            call, Search(statuses=LIVE, name_pattern=like(self.pattern), limit=self.limit), everybodys=False
        )


async def _page(call: Reading, search: Search, *, everybodys: bool) -> SessionPage:
    if everybodys and not call.by.sees_others:
        raise PermissionDenied("Only administrators list everybody's sessions.")
    found = await (call.db.all_sessions if everybodys else call.db.sessions).search(search)
    last = found[-1] if len(found) == search.limit else None
    return SessionPage(
        items=[SessionData.of(session) for session in found],
        next_cursor=encode_cursor(last.created_at, last.id) if last else None,
    )


def _statuses(words: tuple[str, ...]) -> frozenset[Status] | None:
    if not words:
        return LIVE
    if "all" in words:
        return None
    try:
        return frozenset(Status(word.upper()) for word in words)
    except ValueError:
        raise InvalidRequest(f"A status is one of {', '.join(Status)}, or all.", field="status") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStream(Result):
    """A container's log; iterate over `lines()`, which ends with the log unless it is followed."""

    where: KernelAddress
    call: Remote
    tail: int | None
    since: float | None
    follow: bool
    kept: bytes | None = None  #: of an ended session: what is kept of the log should its host not have it

    async def chunks(self) -> AsyncIterator[bytes]:
        """Bytes of the log, whole records at a time."""
        if self.tail is not None:
            past, next_seq = await self._last_lines(self.tail)
            yield past
        else:
            next_seq = 0
        async for records, _ in self._reads(next_seq, follow=self.follow):
            chosen = [record.payload for record in records if self.since is None or record.time >= self.since]
            if chosen:
                yield b"".join(chosen)

    async def _last_lines(self, count: int) -> tuple[bytes, int]:
        kept, next_seq = b"", 0
        async for records, next_seq in self._reads(0, follow=False):  # noqa: B007  # the last one is answered
            kept += b"".join(r.payload for r in records if self.since is None or r.time >= self.since)
            lines = kept.splitlines(keepends=True)
            kept = b"".join(lines[-count:]) if count else b""
        return kept, next_seq

    async def _reads(self, from_seq: int, *, follow: bool) -> AsyncIterator[tuple[list[Record], int]]:
        next_seq = from_seq
        while True:
            try:
                read = await self.call.agents.read(
                    self.where,
                    _LOG_RUN,
                    from_seq=next_seq,
                    max_bytes=_LOG_CHUNK_BYTES,
                    wait_seconds=POLL_SECONDS if follow else 0.0,
                )
            except (AgentUnavailable, RunnerLost, RunNotFound):
                if self.kept is None:
                    raise
                rest = [r for r in _printed(self.kept) if r.seq >= next_seq]
                yield rest, (rest[-1].seq + 1 if rest else next_seq)
                return
            next_seq = read.next_seq
            yield _printed(read.records), next_seq
            if read.done is not None or (not follow and not read.records):
                return

    async def text(self) -> str:
        return b"".join([chunk async for chunk in self.chunks()]).decode("utf-8", "replace")


def _printed(records: bytes) -> list[Record]:
    return [record for record in decode_records(records) if record.kind in ("stdout", "stderr")]


@action(Rules(allow=may_look, effect=Effect.AGENT, deadline_seconds=60.0, audit=Audit.OTHERS, scope=TokenScope.READ))
class GetContainerLogsAction(SessionAction[Remote, LogStream]):
    """What a session's container has printed: bootstrap, startup command and the beginning of each execution's output.

    It stays readable for 7 days after the session's end: all that its host keeps, or, without the host, the last 256 KiB.
    """

    kernel: Kernel = None
    tail: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    since: datetime | None = None
    follow: bool = False

    async def run(self, call: Remote, session: Session, /) -> LogStream:
        if session.agent_id is None:
            raise SessionNotReady("The session has no host yet, so it has printed nothing.", status=session.status)
        where = kernel_of(session, self.kernel, answering=False)
        kept = None
        if session.status in FINAL:
            async with call.service.reading(call) as reading:
                kept = await kept_log(reading.db.connection, where.kernel_id, where.attempt)
        since = None if self.since is None else _aware(self.since).timestamp()
        return LogStream(where=where, call=call, tail=self.tail, since=since, follow=self.follow, kept=kept)


def _aware(moment: datetime) -> datetime:
    """A time without a zone is UTC, as all times here."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(Result):
    #: {cpu_seconds, mem_bytes, mem_peak_bytes, pids, oom_kills, disk_bytes, ...}
    statistics: Mapping[str, Any]


@action(
    Rules(
        allow=may_look,
        when=frozenset({Status.RUNNING, Status.RUNNING_DEGRADED}),
        effect=Effect.AGENT,
        audit=Audit.OTHERS,
        scope=TokenScope.READ,
    )
)
class GetStatisticsAction(SessionAction[Remote, Statistics]):
    """What a session uses right now, from its container's own accounting."""

    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> Statistics:
        return Statistics(statistics=await call.agents.statistics(kernel_of(session, self.kernel)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    id: UUID
    action: str
    status: str  #: queued, running, done, failed, cancelled
    session_id: UUID | None
    progress: Mapping[str, Any]  #: {current, total, message}
    result: Any
    error: Mapping[str, Any] | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, task: Task) -> TaskData:
        return cls(**{name: getattr(task, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult(Result):
    task: TaskData


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPage(Result):
    items: list[TaskData]
    next_cursor: str | None


def _only_own(call: Reading) -> UUID | None:
    return None if call.by.sees_all else call.by.user_id


@action(Rules(allow=anyone, effect=Effect.READ))
class ListTasksAction(ScopeAction[Reading, TaskPage]):
    """Background tasks, newest first: one's own, for administrators everybody's."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, /) -> TaskPage:
        found = await call.db.tasks.newest(user_id=_only_own(call), limit=self.limit, after=decode_cursor(self.cursor))
        last = found[-1] if len(found) == self.limit else None
        return TaskPage(
            items=[TaskData.of(task) for task in found],
            next_cursor=encode_cursor(last.created_at, last.id) if last else None,
        )


@action(Rules(allow=anyone, effect=Effect.READ))
class GetTaskAction(ScopeAction[Reading, TaskResult]):
    """A background task: how far it is, its result, or why it failed."""

    task_id: UUID

    async def run(self, call: Reading, /) -> TaskResult:
        return TaskResult(task=TaskData.of(await call.db.tasks.get(self.task_id, user_id=_only_own(call))))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CancelTaskAction(ScopeAction[Work, TaskResult]):
    """Cancel a background task: a queued one at once, a running one as soon as it looks up."""

    task_id: UUID

    async def run(self, call: Work, /) -> TaskResult:
        user_id = None if call.by.is_admin else call.by.user_id
        task = await call.db.tasks.cancel(self.task_id, user_id=user_id)
        call.announce("tasks")
        return TaskResult(task=TaskData.of(task))
