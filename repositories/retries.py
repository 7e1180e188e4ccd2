"""Further attempts of batch sessions whose work has failed, and the index rows of the work itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from domain.dependency import retry_delay_seconds
from domain.ids import SessionId, uuid7
from domain.session import Event
from repositories.database import Connection
from repositories.transit import Asked, Cause, Moved, transit_many


async def retry(
    connection: Connection,
    sessions: Sequence[SessionId],
    *,
    cause: Cause,
    now: datetime,
    new_id: Callable[[], UUID] = uuid7,
) -> list[Moved]:
    """Queue another attempt of each, not to be placed before its delay is over. The caller has locked their rows, and
    nothing is left of the attempt before; their quota stays charged."""
    rows = await connection.fetch(
        """
        SELECT id, status_reason, exit_code, max_retries, retries, retry_delay_seconds, moves_from FROM sessions
        WHERE id = ANY($1::uuid[]) ORDER BY id
        """,
        sessions,
    )
    delays = {row["id"]: _delay_seconds(row) for row in rows}
    asked = [Asked(session_id=SessionId(row["id"]), reason=_reason(row, delays[row["id"]])) for row in rows]
    moved = await transit_many(connection, Event.RETRY, asked, cause=cause, now=now)
    for one in moved:
        await _new_kernels(connection, one.session_id, now, new_id)
    await connection.execute(
        """
        UPDATE sessions s SET starts_at = r.starts_at, agent_lost = false,
            expires_at = r.starts_at + make_interval(secs => s.max_wait_seconds)
        FROM unnest($1::uuid[], $2::timestamptz[]) AS r(id, starts_at) WHERE s.id = r.id
        """,
        [one.session_id for one in moved],
        [now + timedelta(seconds=delays[one.session_id]) for one in moved],
    )
    return moved


def _delay_seconds(row: Mapping[str, Any]) -> float:
    return 0.0 if row["moves_from"] else retry_delay_seconds(row["retry_delay_seconds"], row["retries"])


def _reason(row: Mapping[str, Any], delay_seconds: float) -> str:
    if row["moves_from"]:
        why = row["status_reason"] or f"its host {row['moves_from']} is drained"
        return f"{str(why)[:1500]}; its work begins again on another"
    number, most = row["retries"] + 1, row["max_retries"] + 1
    why = f"exit code {row['exit_code']}" if row["exit_code"] else row["status_reason"] or "nobody says why"
    when = f" in {delay_seconds:g} s" if delay_seconds else ""
    return f"try {number} of {most} failed ({str(why)[:1500]}); try {number + 1} follows{when}"


async def _new_kernels(
    connection: Connection, session_id: SessionId, now: datetime, new_id: Callable[[], UUID]
) -> None:
    """The same ones again, without a host: what a host was told of devices and networks is of the attempt before."""
    members = await connection.fetch(
        """
        SELECT k.id FROM kernels k JOIN sessions s ON s.id = k.session_id AND k.attempt = s.attempt - 1
        WHERE s.id = $1 AND k.left_at IS NULL
        """,
        session_id,
    )
    await connection.execute(
        """
        WITH pairs AS (SELECT * FROM unnest($2::uuid[], $3::uuid[]) AS p(old_id, id)), made AS (
            INSERT INTO kernels (id, session_id, attempt, role, idx, spec, slots, created_at)
            SELECT p.id, k.session_id, k.attempt + 1, k.role, k.idx, k.spec - 'devices' - 'network', k.slots, $4
            FROM pairs p JOIN kernels k ON k.id = p.old_id
        )
        UPDATE sessions s SET main_kernel_id = p.id FROM pairs p WHERE s.id = $1 AND p.old_id = s.main_kernel_id
        """,
        session_id,
        [row["id"] for row in members],
        [new_id() for _ in members],
        now,
    )


async def begin_work(connection: Connection, sessions: Sequence[SessionId], *, now: datetime) -> None:
    """The startup commands of these sessions run: they are executions like others, under the ids of their kernels."""
    await connection.execute(
        """
        INSERT INTO executions AS e (run_id, session_id, kernel_id, agent_id, attempt, user_id, request_hash, mode, started_at)
        SELECT k.id, s.id, k.id, k.agent_id, k.attempt, s.user_id, '', 'batch', $2
        FROM sessions s JOIN kernels k ON k.id = s.main_kernel_id
        WHERE s.id = ANY($1::uuid[]) AND s.startup_command IS NOT NULL AND k.agent_id IS NOT NULL ORDER BY k.id
        ON CONFLICT (run_id) DO UPDATE SET attempt = excluded.attempt, status = 'running', started_at = excluded.started_at,
            finished_at = NULL, exit_code = NULL, signal = NULL, reason = NULL, tail = NULL
            WHERE e.attempt < excluded.attempt
        """,
        list(sessions),
        now,
    )
