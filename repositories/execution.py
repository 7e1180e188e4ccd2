"""The index of executions. The record of truth is the agent's; these rows find it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from domain.errors import IdempotencyMismatch, RunNotFound
from domain.ids import AgentId, KernelId, RunId, SessionId
from domain.session import Session
from repositories.database import Connection
from repositories.transit import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    run_id: RunId
    session_id: SessionId
    kernel_id: KernelId
    agent_id: AgentId
    attempt: int
    mode: str
    status: str  #: running, done
    exit_code: int | None
    signal: int | None
    reason: str | None
    started_at: datetime
    finished_at: datetime | None
    last_seq: int
    output_bytes: int
    tail: bytes | None = None


_COLUMNS = """
    run_id, session_id, kernel_id, agent_id, attempt, mode, status, exit_code, signal, reason, started_at, finished_at,
    last_seq, output_bytes
"""


class ExecutionRepository:
    def __init__(self, connection: Connection, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause

    async def begin(
        self,
        session: Session,
        run_id: RunId,
        *,
        kernel_id: KernelId,
        agent_id: AgentId,
        user_id: UUID,
        mode: str,
        request_hash: bytes,
        audited: Mapping[str, Any],
    ) -> int | None:
        """Write the index row, the audit row and the event, in one statement that does not wait for the disk.

        The attempt that the run belongs to: the session's own, or an earlier one when it is known already. None when the
        session, at the time of the write, does not answer at this attempt. Raises IdempotencyMismatch when the run id was
        another request's. A crash of the database host may lose this row; the agent's own record brings it back.
        """
        row = await self._connection.fetchrow(
            """
            WITH off AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS value),
            live AS (
                SELECT s.id, s.attempt, s.domain, s.user_id FROM sessions s, off
                WHERE s.id = $2 AND s.attempt = $3 AND s.status IN ('RUNNING', 'RUNNING_DEGRADED')
            ), made AS (
                INSERT INTO executions (run_id, session_id, kernel_id, agent_id, attempt, user_id, request_hash, mode, started_at)
                SELECT $1, id, $13, $4, attempt, $5, $6, $7, $8 FROM live
                ON CONFLICT (run_id) DO NOTHING RETURNING run_id
            ), audited AS (
                INSERT INTO audit (at, user_id, access_key, owner_access_key, action, target, outcome, request_id)
                SELECT $8, $5, $9, $10, 'execute_session', $2::text, 'ok', $11 FROM made
            ), told AS (
                INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
                SELECT $8, 'execution.started', live.id, live.user_id, live.domain, $12::jsonb,
                    jsonb_build_object('run_id', $1::uuid, 'mode', $7::text)
                FROM live, made
            )
            SELECT EXISTS (SELECT FROM live) AS live, EXISTS (SELECT FROM made) AS made,
                known.request_hash, known.attempt
            FROM off LEFT JOIN executions known ON known.run_id = $1
            """,
            run_id,
            session.id,
            session.attempt,
            agent_id,
            user_id,
            request_hash,
            mode,
            self._now,
            audited.get("access_key"),
            audited.get("owner_access_key"),
            audited.get("request_id"),
            self._cause.to_json(),
            kernel_id,
        )
        assert row is not None
        if row["request_hash"] not in (None, request_hash):
            raise IdempotencyMismatch(run_id=str(run_id))
        return row["attempt"] or (session.attempt if row["live"] else None)

    async def get(self, session_id: SessionId, run_id: RunId) -> Execution:
        """Raises RunNotFound."""
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS}, tail FROM executions WHERE run_id = $1 AND session_id = $2", run_id, session_id
        )
        if row is None:
            raise RunNotFound(run_id=str(run_id))
        return Execution(**dict(row))

    async def of_session(
        self, session_id: SessionId, *, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Execution]:
        """Newest first."""
        at, run_id = after or (None, None)
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM executions WHERE session_id = $1
            AND ($3::timestamptz IS NULL OR (started_at, run_id) < ($3, $4::uuid)) ORDER BY started_at DESC, run_id DESC LIMIT $2
            """,
            session_id,
            limit,
            at,
            run_id,
        )
        return [Execution(**dict(row)) for row in rows]
