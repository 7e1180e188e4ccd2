"""Finished executions, as agents report them until they are acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from agent.wire import RunDone
from domain.ids import AgentId, SessionId
from domain.names import as_uuid
from repositories.database import Connection

#: One statement, so that a run is counted exactly once: only the write that ends it counts it. A run whose index row a
#: crash of the database took is written anew. Nothing waits for the disk: agents tell it again, their record is the truth.
_FINISH: Final = """
    WITH told AS MATERIALIZED (
        SELECT f.*, k.session_id FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[],
            $6::timestamptz[], $7::integer[], $8::integer[], $9::text[], $10::bigint[], $11::bigint[])
            AS f(run_id, kernel_id, agent_id, attempt, started_at, finished_at, exit_code, signal, reason, last_seq, bytes)
        JOIN kernels k ON k.id = f.kernel_id AND k.agent_id = f.agent_id
        WHERE (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
    ), theirs AS MATERIALIZED (
        SELECT s.id, s.user_id, s.domain FROM sessions s WHERE s.id IN (SELECT session_id FROM told) ORDER BY s.id FOR NO KEY UPDATE
    ), done AS (
        INSERT INTO executions AS e (run_id, session_id, kernel_id, agent_id, attempt, user_id, request_hash, mode, status,
            exit_code, signal, reason, started_at, finished_at, last_seq, output_bytes)
        SELECT t.run_id, t.session_id, t.kernel_id, t.agent_id, t.attempt, s.user_id, '', 'batch', 'done',
            t.exit_code, t.signal, t.reason, t.started_at, t.finished_at, t.last_seq, t.bytes
        FROM told t JOIN theirs s ON s.id = t.session_id ORDER BY t.run_id
        ON CONFLICT (run_id) DO UPDATE SET status = 'done', exit_code = EXCLUDED.exit_code, signal = EXCLUDED.signal,
            reason = EXCLUDED.reason, finished_at = EXCLUDED.finished_at, last_seq = EXCLUDED.last_seq,
            output_bytes = EXCLUDED.output_bytes
            WHERE e.status = 'running' AND e.kernel_id = EXCLUDED.kernel_id AND e.agent_id = EXCLUDED.agent_id
        RETURNING run_id, session_id, attempt, mode, exit_code, signal, reason, output_bytes, finished_at
    ), loaded AS (
        UPDATE workers w SET ready_attempt = d.attempt, ready_at = $12::timestamptz,
            idle_until_at = CASE WHEN w.open_calls = 0
                THEN $12::timestamptz + make_interval(secs => s.idle_timeout_seconds) END
        FROM done d JOIN sessions s ON s.id = d.session_id AND s.attempt = d.attempt
        WHERE d.mode = 'load' AND d.exit_code = 0 AND d.reason = 'finished' AND w.session_id = d.session_id
    ), counted AS (
        UPDATE sessions s SET execution_count = s.execution_count + d.runs, bytes_out = s.bytes_out + d.bytes,
            activity = s.activity + 1, last_activity_at = greatest(s.last_activity_at, d.finished_at)
        FROM (SELECT session_id, count(*) AS runs, sum(output_bytes)::bigint AS bytes, max(finished_at) AS finished_at
              FROM done GROUP BY 1) d
        WHERE s.id = d.session_id
    ), told_everybody AS (
        INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
        SELECT $12::timestamptz, 'execution.finished', d.session_id, s.user_id, s.domain, jsonb_build_object('by', 'agent'),
            jsonb_strip_nulls(jsonb_build_object('run_id', d.run_id, 'mode', d.mode, 'exit_code', d.exit_code,
                'signal', d.signal, 'reason', d.reason, 'output_bytes', d.output_bytes))
        FROM done d JOIN theirs s ON s.id = d.session_id
    )
    SELECT session_id, bool_or(mode = 'load') AS load, NULL::text AS agent_id, NULL::uuid AS run_id FROM done GROUP BY 1
    UNION ALL SELECT NULL, false, t.agent_id, t.run_id FROM told t JOIN executions e USING (run_id)
    WHERE (e.kernel_id, e.agent_id) IS DISTINCT FROM (t.kernel_id, t.agent_id)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What reports of ended runs did."""

    sessions: frozenset[SessionId] = frozenset()  #: whose rows are different now
    loads: frozenset[SessionId] = frozenset()  #: those of them that have loaded their app, or have failed to
    refused: tuple[tuple[AgentId, UUID], ...] = ()  #: agents speaking of runs not their own


async def finish_runs(connection: Connection, reports: Sequence[tuple[AgentId, RunDone]], *, now: datetime) -> Finished:
    """End the executions that agents say are over, and count them for their sessions.

    A run that ended before, and one of another agent's kernel, changes nothing.
    """
    runs: dict[UUID, tuple[AgentId, RunDone]] = {}
    for agent_id, run in reports:
        run_id, kernel_id = as_uuid(str(run.run_id)), as_uuid(str(run.kernel_id))
        if run_id is not None and kernel_id is not None:
            runs.setdefault(run_id, (agent_id, run))
    if not runs:
        return Finished()
    rows = [
        (
            run_id,
            as_uuid(str(run.kernel_id)),
            agent_id,
            _count(run.attempt),
            _time(run.started_at) or _time(run.finished_at) or now,
            _time(run.finished_at) or now,
            _small(run.exit_code),
            _small(run.signal),
            str(run.reason).replace("\x00", "")[:200],
            _count(run.last_seq),
            _count(run.output_bytes),
        )
        for run_id, (agent_id, run) in sorted(runs.items())
    ]
    found = await connection.fetch(_FINISH, *([row[at] for row in rows] for at in range(11)), now)
    return Finished(
        sessions=frozenset(SessionId(row["session_id"]) for row in found if row["session_id"] is not None),
        loads=frozenset(SessionId(row["session_id"]) for row in found if row["load"]),
        refused=tuple((AgentId(row["agent_id"]), row["run_id"]) for row in found if row["run_id"] is not None),
    )


async def end_lost_runs(connection: Connection, *, ended_before: datetime, now: datetime) -> int:
    """End what still counts as running in sessions that ended long ago: nobody will report it any more."""
    rows = await connection.fetch(
        """
        UPDATE executions e SET status = 'done', reason = 'lost', finished_at = $2 FROM sessions s
        WHERE e.status = 'running' AND s.id = e.session_id AND s.ended_at < $1 RETURNING e.run_id
        """,
        ended_before,
        now,
    )
    return len(rows)


def _count(value: object) -> int:
    return min(max(value, 0), 2**62) if isinstance(value, int) else 0


def _small(value: object) -> int | None:
    return value if isinstance(value, int) and abs(value) < 2**31 else None


def _time(seconds: object) -> datetime | None:
    sane = isinstance(seconds, int | float) and 0 < seconds < 4e9
    return datetime.fromtimestamp(seconds, UTC) if sane and isinstance(seconds, int | float) else None
