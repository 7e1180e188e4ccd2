"""The one way a session's status moves: a guarded UPDATE with everything that follows from it, in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    retrying: bool = False  #: it ends, and another attempt follows


#: Statuses whose entry means that the containers have to go.
_ENDING = frozenset({Status.TERMINATING, Status.TERMINATED, Status.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One session that an event is meant for, with what is particular to it."""

    session_id: SessionId
    reason: str | None = None
    exit_code: int | None = None


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
    # Locked by a statement of its own: the next one then sees the kernels as whoever held the row has left them. In one
    # statement a destroy that had waited for a restart, or for a placement, overlooked the kernels it had to tell.
    assert connection.is_in_transaction()
    await connection.execute("SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE", session_id)
    asked = [Asked(session_id=session_id, reason=reason, exit_code=exit_code)]
    moved = await transit_many(connection, event, asked, cause=cause, now=now, user_id=user_id)
    return moved[0] if moved else None


async def transit_many(
    connection: Connection,
    event: Event,
    asked: Sequence[Asked],
    *,
    cause: Cause,
    now: datetime,
    user_id: UUID | None = None,
) -> list[Moved]:
    """Apply `event` to every session that is in a status which allows it; the others are left as they are.

    The caller has locked their rows, in the order of their ids, by an earlier statement of the same transaction.
    """
    rows = await connection.fetch(
        _sql(event),
        *parameters(cause=cause, now=now, user_id=user_id),
        [one.session_id for one in asked],
        [one.reason for one in asked],
        [one.exit_code for one in asked],
    )
    return [moved_of(row) for row in rows]


def moved_of(row: Mapping[str, Any]) -> Moved:
    """From a row of the CTE `moved`."""
    return Moved(
        session_id=SessionId(row["id"]),
        source=Status(row["prev_status"]),
        target=Status(row["status"]),
        version=row["version"],
        retrying=row["retrying"],
    )


def parameters(*, cause: Cause, now: datetime, user_id: UUID | None = None) -> tuple[object, ...]:
    """$1 to $4 of every statement that holds `moving(event)`."""
    return now, cause.to_json(), _deadlines(), user_id


@cache
def _deadlines() -> dict[str, float]:
    return {str(status): deadline.seconds for status, deadline in DEADLINES.items()}


@cache
def _sql(event: Event) -> str:
    return f"""
    WITH asked AS (SELECT * FROM unnest($5::uuid[], $6::text[], $7::integer[]) AS a(id, reason, exit_code)), {moving(event)}
    SELECT id, prev_status, status, version, retrying FROM moved
    """


@cache
def moving(event: Event) -> str:
    """The CTEs that apply `event` to every session of the CTE `asked(id, reason, exit_code)`; `moved` holds what moved.

    For statements that do more than move: $1 now, $2 cause, $3 deadlines by status, $4 owner or NULL.
    """
    targets = TARGETS[event]
    case = "CASE s.status " + " ".join(f"WHEN '{src}' THEN '{dst}'" for src, dst in targets.items()) + " END"
    sources = ", ".join(f"'{status}'" for status in targets)
    extra = _extra(event)
    # why it ends was said when the ending began
    said = "coalesce(s.status_reason, a.reason)" if event in (Event.GONE, Event.BREAK) else "a.reason"
    ending = bool(set(targets.values()) & _ENDING)
    kernels = ""
    if ending:
        kernels = """
        , told AS (
            UPDATE kernels k SET want = 'GONE', generation = k.generation + 1, next_try_at = $1, tries = 0, claimed_until = NULL
            FROM moved m WHERE k.session_id = m.id AND k.attempt = m.attempt AND k.want = 'RUN'
        )"""
    elif event is Event.RESTART:
        kernels = """
        , told AS (
            UPDATE kernels k SET attempt = m.attempt, generation = k.generation + 1, next_try_at = $1, tries = 0,
                claimed_until = NULL, observed = NULL, exit = NULL, container_id = NULL, started_at = NULL,
                spec = k.spec || (SELECT jsonb_build_object('profile', g.profile, 'egress', g.egress)
                    FROM sessions o JOIN resource_groups g ON g.name = o.resource_group WHERE o.id = m.id)
            FROM moved m WHERE m.status = 'RESTARTING' AND k.session_id = m.id AND k.attempt = m.attempt - 1
                AND k.left_at IS NULL
        )"""
    quota = ""
    if set(targets.values()) & FINAL:
        finals = ", ".join(f"'{status}'" for status in sorted(FINAL))
        quota = f", given_back AS (DELETE FROM quota_uses q USING moved m WHERE q.session_id = m.id AND m.status IN ({finals}))"
    elif Status.PENDING in targets.values():
        quota = """
        , waits_again AS (
            UPDATE quota_uses q SET placed = false FROM moved m
            WHERE q.session_id = m.id AND m.status = 'PENDING' AND q.placed
        )"""
    return f"""moved AS (
        UPDATE sessions s SET prev_status = s.status, status = {case}, version = s.version + 1,
            status_changed_at = $1::timestamptz, status_reason = {said},
            deadline_at = $1::timestamptz + make_interval(secs => ($3::jsonb ->> ({case}))::double precision){extra}
        FROM asked a
        WHERE s.id = a.id AND s.status IN ({sources}) AND ($4::uuid IS NULL OR s.user_id = $4)
        RETURNING s.id, s.prev_status, s.status, s.version, s.attempt, s.user_id, s.domain, s.name, s.exit_code, s.retrying, a.reason
    ), history AS (
        INSERT INTO status_history (session_id, version, attempt, source, event, target, reason, at, cause)
        SELECT id, version, attempt, prev_status, '{event}', status, reason, $1, $2::jsonb FROM moved
    ), told_everybody AS (
        INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
        SELECT $1, 'session.' || lower(status), id, user_id, domain, $2::jsonb,
            jsonb_strip_nulls(jsonb_build_object('name', name, 'from', prev_status, 'status', status, 'event', '{event}',
                'reason', reason, 'version', version, 'attempt', attempt, 'exit_code', exit_code))
        FROM moved
    ){kernels}{quota}"""


#: Of a batch session whose attempt has failed. Others have no retries.
_TRIES_LEFT = "s.retries < s.max_retries"


def _extra(event: Event) -> str:
    """What else an event sets on the row."""
    match event:
        case Event.SCHEDULE:
            return ", expires_at = NULL"
        case Event.START:
            return (
                ", started_at = $1, expires_at = $1 + make_interval(secs => s.timeout_seconds), result = 'UNDEFINED'"
                ", work_until_at = $1 + make_interval(secs => s.batch_timeout_seconds)"
            )
        case Event.FINISH:
            return (
                ", result = CASE WHEN a.exit_code = 0 THEN 'SUCCESS' ELSE 'FAILURE' END, exit_code = a.exit_code"
                f", expires_at = NULL, retrying = {_TRIES_LEFT} AND a.exit_code IS DISTINCT FROM 0"
            )
        case Event.FAIL:
            return (
                ", result = 'FAILURE', failed = true, exit_code = a.exit_code, expires_at = NULL"
                f", retrying = {_TRIES_LEFT}"
            )
        case Event.MOVE:
            return ", expires_at = NULL, retrying = true"
        case Event.DESTROY:
            return ", expires_at = NULL, ended_at = CASE WHEN s.status = 'PENDING' THEN $1 END"
        case Event.EXPIRE:
            return (
                ", expires_at = NULL, ended_at = CASE WHEN s.status = 'PENDING' THEN $1 END"
                ", result = CASE WHEN s.status = 'PENDING' OR s.session_type = 'batch' THEN 'FAILURE' ELSE s.result END"
                # its work took too long; not so when its whole life is over
                f", retrying = s.status <> 'PENDING' AND {_TRIES_LEFT} AND coalesce(s.expires_at > $1, true)"
            )
        case Event.SKIP:
            return ", expires_at = NULL, ended_at = $1, result = 'FAILURE'"
        case Event.RETRY:
            return (
                # being moved takes none of its retries
                ", attempt = s.attempt + 1, retries = s.retries + (s.moves_from IS NULL)::integer, moves_from = NULL"
                ", retrying = false, result = 'UNDEFINED', failed = false"
                ", exit_code = NULL, started_at = NULL, expires_at = NULL"
            )
        case Event.GONE | Event.BREAK | Event.FORCE:
            return ", expires_at = NULL, ended_at = $1, retrying = false, moves_from = NULL"
        case Event.RESTART:
            return (
                ", attempt = s.attempt + 1, result = 'UNDEFINED', failed = false, exit_code = NULL, started_at = NULL, ended_at = NULL"
                ", retries = 0, replaced = 0"
                ", expires_at = CASE WHEN s.status IN ('RUNNING', 'RUNNING_DEGRADED') THEN NULL"
                " ELSE $1 + make_interval(secs => s.max_wait_seconds) END"
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
