"""The one way a session's status moves: a guarded UPDATE with everything that follows from it, in one statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from domain.ids import SessionId
from domain.session import DEADLINES, FINAL, TARGETS, Event, Status
from repositories.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why something happened, kept with its event: an action of somebody, an agent's report, or a deadline."""

    by: str  #: an access key, `agent:ID`, or `deadline`
    action: str | None = None
    request_id: str | None = None

    def to_json(self) -> dict[str, str]:
        return {k: v for k, v in (("by", self.by), ("action", self.action), ("request_id", self.request_id)) if v}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A transition that took place."""

    session_id: SessionId
    source: Status
    target: Status
    version: int


#: Statuses whose entry means that the containers have to go.
_ENDING = frozenset({Status.TERMINATING, Status.TERMINATED, Status.CANCELLED})


async def transit(
    connection: Connection,
    session_id: SessionId,
    event: Event,
    *,
    cause: Cause,
    now: datetime,
    reason: str | None = None,
    user_id: UUID | None = None,
    exit_code: int | None = None,
) -> Moved | None:
    """Apply `event`, or return None when the session is not there (within `user_id`'s, if given) or not in a status that allows it.

    In the same statement: history row, event row, the kernels' intents, quota given back at the end, deadline and
    lifetime set. A RESTART of a final session needs new kernels and quota as well: `SessionRepository.restart`.
    """
    row = await connection.fetchrow(
        _sql(event), session_id, now, reason, cause.to_json(), user_id, exit_code, _deadlines()
    )
    if row is None:
        return None
    return Moved(
        session_id=session_id, source=Status(row["prev_status"]), target=Status(row["status"]), version=row["version"]
    )


@cache
def _deadlines() -> dict[str, float]:
    return {str(status): deadline.seconds for status, deadline in DEADLINES.items()}


@cache
def _sql(event: Event) -> str:
    """$1 session, $2 now, $3 reason, $4 cause, $5 owner or NULL, $6 exit code, $7 deadlines by status."""
    targets = TARGETS[event]
    case = "CASE s.status " + " ".join(f"WHEN '{src}' THEN '{dst}'" for src, dst in targets.items()) + " END"
    sources = ", ".join(f"'{status}'" for status in targets)
    extra = _extra(event)
    # why it ends was said when the ending began
    said = "coalesce(s.status_reason, $3)" if event in (Event.GONE, Event.BREAK) else "$3"
    ending = bool(set(targets.values()) & _ENDING)
    kernels = ""
    if ending:
        kernels = """
        , told AS (
            UPDATE kernels k SET want = 'GONE', generation = k.generation + 1, next_try_at = $2, tries = 0, claimed_until = NULL
            FROM moved m WHERE k.session_id = m.id AND k.attempt = m.attempt AND k.want = 'RUN'
        )"""
    elif event is Event.RESTART:
        kernels = """
        , told AS (
            UPDATE kernels k SET attempt = m.attempt, want = 'RUN', generation = k.generation + 1, next_try_at = $2, tries = 0,
                claimed_until = NULL, observed = NULL, exit = NULL, container_id = NULL, started_at = NULL
            FROM moved m WHERE m.status = 'RESTARTING' AND k.session_id = m.id AND k.attempt = m.attempt - 1
        )"""
    quota = ""
    if set(targets.values()) & FINAL:
        finals = ", ".join(f"'{status}'" for status in sorted(FINAL))
        quota = f", given_back AS (DELETE FROM quota_uses q USING moved m WHERE q.session_id = m.id AND m.status IN ({finals}))"
    return f"""
    WITH moved AS (
        UPDATE sessions s SET prev_status = s.status, status = {case}, version = s.version + 1, status_changed_at = $2,
            status_reason = {said},
            deadline_at = $2 + make_interval(secs => ($7::jsonb ->> ({case}))::double precision){extra}
        WHERE s.id = $1 AND s.status IN ({sources}) AND ($5::uuid IS NULL OR s.user_id = $5)
        RETURNING s.id, s.prev_status, s.status, s.version, s.attempt, s.user_id, s.domain, s.name, s.exit_code
    ), history AS (
        INSERT INTO status_history (session_id, version, attempt, source, event, target, reason, at)
        SELECT id, version, attempt, prev_status, '{event}', status, $3, $2 FROM moved
    ), told_everybody AS (
        INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
        SELECT $2, 'session.' || lower(status), id, user_id, domain, $4::jsonb,
            jsonb_strip_nulls(jsonb_build_object('name', name, 'from', prev_status, 'status', status, 'event', '{event}',
                'reason', $3::text, 'version', version, 'attempt', attempt, 'exit_code', exit_code))
        FROM moved
    ){kernels}{quota}
    SELECT prev_status, status, version, $6::integer FROM moved
    """


def _extra(event: Event) -> str:
    """What else an event sets on the row."""
    match event:
        case Event.SCHEDULE:
            return ", expires_at = NULL"
        case Event.START:
            return ", started_at = $2, expires_at = $2 + make_interval(secs => s.timeout_seconds), result = 'UNDEFINED'"
        case Event.FINISH:
            return ", result = CASE WHEN $6 = 0 THEN 'SUCCESS' ELSE 'FAILURE' END, exit_code = $6, expires_at = NULL"
        case Event.FAIL:
            return ", result = 'FAILURE', failed = true, exit_code = $6, expires_at = NULL"
        case Event.DESTROY:
            return ", expires_at = NULL, ended_at = CASE WHEN s.status = 'PENDING' THEN $2 END"
        case Event.EXPIRE:
            return (
                ", expires_at = NULL, ended_at = CASE WHEN s.status = 'PENDING' THEN $2 END"
                ", result = CASE WHEN s.status = 'PENDING' THEN 'FAILURE' ELSE s.result END"
            )
        case Event.GONE | Event.BREAK | Event.FORCE:
            return ", expires_at = NULL, ended_at = $2"
        case Event.RESTART:
            return (
                ", attempt = s.attempt + 1, result = 'UNDEFINED', failed = false, exit_code = NULL, started_at = NULL, ended_at = NULL"
                ", expires_at = CASE WHEN s.status IN ('RUNNING', 'RUNNING_DEGRADED') THEN NULL"
                " ELSE $2 + make_interval(secs => s.max_wait_seconds) END"
            )
        case _:
            return ""


async def emit(
    connection: Connection,
    type: str,
    *,
    now: datetime,
    cause: Cause,
    session_id: SessionId | None = None,
    user_id: UUID | None = None,
    domain: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """An event that is no transition: session.renamed, execution.finished, resources.allocated, task.done, ..."""
    await connection.execute(
        "INSERT INTO events (at, type, session_id, user_id, domain, cause, data) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        now,
        type,
        session_id,
        user_id,
        domain,
        cause.to_json(),
        dict(data or {}),
    )
