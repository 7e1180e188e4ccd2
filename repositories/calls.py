"""Calls of worker sessions: asked, delivered as executions, and over; and what their sessions are ready for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.apps import KEPT_INPUT_BYTES, AppDefinition
from domain.errors import AppNotFound, CallNotFound, IdempotencyMismatch
from domain.ids import AgentId, KernelId, RunId, SessionId
from domain.session import Session
from repositories.database import Connection
from repositories.transit import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """A call, with the run that it has become, if it has."""

    id: RunId
    session_id: SessionId
    attempt: int
    user_id: UUID
    function: str
    input: str | None  #: JSON; None: not kept
    input_bytes: int
    timeout_seconds: float | None
    status: str  #: queued, running, completed, failed, cancelled
    output: str | None  #: JSON
    output_kept: bool
    error: str | None  #: JSON
    progress: str | None  #: JSON
    partials: int
    reason: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_at: datetime | None
    delivered: bool  #: it has become a run
    sent: bool  #: that its host has
    kernel_id: KernelId | None
    agent_id: AgentId | None
    run_attempt: int | None

    @property
    def open(self) -> bool:
        return self.finished_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    """What is asked."""

    id: RunId
    user_id: UUID
    function: str
    input: str  #: JSON
    timeout_seconds: float | None
    request_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended."""

    status: str  #: completed, failed, cancelled
    reason: str
    finished_at: datetime
    started_at: datetime | None = None
    output: str | None = None
    output_kept: bool = True
    error: str | None = None
    progress: str | None = None
    partials: int = 0


#: As many of a session's open calls as it answers at once run, in the order in which they were asked; the others wait.
_STATUS: Final = """
    CASE WHEN c.status <> 'open' THEN c.status
        WHEN e.run_id IS NOT NULL AND (SELECT count(*) FROM calls o WHERE o.session_id = c.session_id AND o.status = 'open'
            AND (o.created_at, o.id) < (c.created_at, c.id)) < coalesce((w.app ->> 'concurrency')::bigint, 1) THEN 'running'
        ELSE 'queued' END
"""
_COLUMNS: Final = f"""
    c.id, c.session_id, c.attempt, c.user_id, c.function, c.input, c.input_bytes, c.timeout_seconds, {_STATUS} AS status,
    c.output, c.output_kept, c.error, c.progress, c.partials, c.reason, c.created_at, c.started_at, c.finished_at,
    c.cancel_at, e.run_id IS NOT NULL AS delivered, c.sent_at IS NOT NULL AS sent, e.kernel_id, e.agent_id, e.attempt AS run_attempt
"""
_BRIEF: Final = _COLUMNS.replace("c.input,", "NULL AS input,").replace("c.output,", "NULL AS output,")
_FROM: Final = "calls c JOIN workers w ON w.session_id = c.session_id LEFT JOIN executions e ON e.run_id = c.id"
#: $1 id, $2 session, $3 attempt, $4 user, $5 hash, $6 function, $7 input, $8 its bytes, $9 timeout, $10 now
_MADE: Final = """
    INSERT INTO calls (id, session_id, attempt, user_id, request_hash, function, input, input_bytes, timeout_seconds,
        created_at, sent_at)
    SELECT $1, id, attempt, $4, $5, $6, $7, $8, $9, $10, CASE WHEN goes THEN $10::timestamptz END FROM live
    ON CONFLICT (id) DO NOTHING RETURNING id
"""
_RUN: Final = """
    INSERT INTO executions (run_id, session_id, kernel_id, agent_id, attempt, user_id, request_hash, mode, started_at)
"""


class CallRepository:
    def __init__(self, connection: Connection, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause

    async def begin(
        self,
        session: Session,
        call: NewCall,
        *,
        deliver: tuple[KernelId, AgentId] | None,
        action: str | None,
        audited: Mapping[str, Any],
    ) -> tuple[bool, bool] | None:
        """Write the call, its audit row (with `action`) and event in one statement; with `deliver`, and when the session
        is ready at this attempt and nothing waits before it, the run that it becomes: (it is new, it is delivered to
        there). Only that does not wait for the disk: a crash of the database host may lose the last calls of a moment, but none that waits.

        None when the session, at the time of the write, is not alive at this attempt: whoever ends it for want of calls
        holds the same lock. Raises IdempotencyMismatch.
        """
        kernel_id, agent_id = deliver or (None, None)
        row = await self._connection.fetchrow(
            f"""
            WITH off AS MATERIALIZED (
                SELECT CASE WHEN $11::uuid IS NOT NULL THEN set_config('synchronous_commit', 'off', true) END AS value
            ), live AS MATERIALIZED (
                SELECT s.id, s.attempt, s.domain, s.user_id,
                    $11::uuid IS NOT NULL AND s.status IN ('RUNNING', 'RUNNING_DEGRADED') AND w.ready_attempt = s.attempt
                        AND NOT EXISTS (SELECT FROM calls o WHERE o.session_id = s.id AND o.status = 'open'
                            AND o.sent_at IS NULL AND o.cancel_at IS NULL) AS goes
                FROM off, sessions s JOIN workers w ON w.session_id = s.id
                WHERE s.id = $2 AND s.attempt = $3 AND s.status NOT IN ('TERMINATING', 'CANCELLED', 'ERROR', 'TERMINATED')
                FOR NO KEY UPDATE OF s
            ), made AS ({_MADE}), run AS (
                {_RUN}
                SELECT $1, live.id, $11::uuid, $12::text, live.attempt, $4, '', 'call', $10 FROM live, made
                WHERE live.goes ON CONFLICT (run_id) DO NOTHING RETURNING run_id
            ), audited AS (
                INSERT INTO audit (at, user_id, access_key, owner_access_key, action, target, outcome, request_id)
                SELECT $10, $4, $13, $14, $15::text, $2::text, 'ok', $16 FROM made WHERE $15 IS NOT NULL
            ), told AS (
                INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
                SELECT $10, 'execution.started', live.id, live.user_id, live.domain, $17::jsonb,
                    jsonb_build_object('run_id', $1::uuid, 'mode', 'call', 'function', $6::text)
                FROM live, run
            )
            SELECT EXISTS (SELECT FROM live) AS live, EXISTS (SELECT FROM made) AS made, EXISTS (SELECT FROM run) AS run,
                known.request_hash, known.session_id
            FROM off LEFT JOIN calls known ON known.id = $1
            """,
            call.id,
            session.id,
            session.attempt,
            call.user_id,
            call.request_hash,
            call.function,
            call.input,
            len(call.input.encode()),
            call.timeout_seconds,
            self._now,
            kernel_id,
            agent_id,
            audited.get("access_key"),
            audited.get("owner_access_key"),
            action,
            audited.get("request_id"),
            self._cause.to_json(),
        )
        assert row is not None
        if row["request_hash"] is not None:
            if row["request_hash"] != call.request_hash or row["session_id"] != session.id:
                raise IdempotencyMismatch(run_id=str(call.id))
            return False, False
        return (row["made"], row["run"]) if row["live"] else None

    async def deliver(self, call_id: RunId) -> CallRow | None:
        """Make a call that waits a run of its session's main kernel; None when it is over, cancelled, delivered already,
        or its session is not ready. Waits for the disk: who comes later asks again for what is written here."""
        made = await self._connection.fetchval(
            f"""
            WITH live AS (
                SELECT c.id AS call_id, s.id, s.attempt, s.user_id, s.domain, c.user_id AS by, c.function, k.id AS kernel_id, k.agent_id
                FROM calls c JOIN sessions s ON s.id = c.session_id JOIN workers w ON w.session_id = s.id
                JOIN kernels k ON k.id = s.main_kernel_id
                WHERE c.id = $1 AND c.status = 'open' AND c.cancel_at IS NULL AND c.attempt = s.attempt
                    AND s.status IN ('RUNNING', 'RUNNING_DEGRADED') AND w.ready_attempt = s.attempt AND k.agent_id IS NOT NULL
                FOR NO KEY UPDATE OF s, c
            ), run AS (
                {_RUN} SELECT call_id, id, kernel_id, agent_id, attempt, by, '', 'call', $2 FROM live
                ON CONFLICT (run_id) DO NOTHING RETURNING run_id
            ), told AS (
                INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
                SELECT $2, 'execution.started', live.id, live.user_id, live.domain, $3::jsonb,
                    jsonb_build_object('run_id', $1::uuid, 'mode', 'call', 'function', live.function)
                FROM live, run
            )
            SELECT run_id FROM run
            """,
            call_id,
            self._now,
            self._cause.to_json(),
        )
        return None if made is None else await self.get(call_id)

    async def sent(self, call_id: UUID) -> None:
        """Its host has it: what was asked later may follow."""
        await self._connection.execute(
            "UPDATE calls SET sent_at = $2 WHERE id = $1 AND sent_at IS NULL", call_id, self._now
        )

    async def get(self, call_id: UUID) -> CallRow:
        """Of whoever's session: the caller checks that. Raises CallNotFound."""
        row = await self._connection.fetchrow(f"SELECT {_COLUMNS} FROM {_FROM} WHERE c.id = $1", call_id)
        if row is None:
            raise CallNotFound(call=str(call_id))
        return _call(row)

    async def of_session(
        self, session_id: SessionId, *, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[CallRow]:
        """Newest first, without their inputs and outputs."""
        at, call_id = after or (None, None)
        rows = await self._connection.fetch(
            f"""
            SELECT {_BRIEF} FROM {_FROM} WHERE c.session_id = $1
            AND ($3::timestamptz IS NULL OR (c.created_at, c.id) < ($3, $4::uuid))
            ORDER BY c.created_at DESC, c.id DESC LIMIT $2
            """,
            session_id,
            limit,
            at,
            call_id,
        )
        return [_call(row) for row in rows]

    async def settle(self, call_id: UUID, outcome: Outcome) -> bool:
        """How it ended; once, whoever comes first. What is too long of its input is not kept any more."""
        return bool(
            await self._connection.fetchval(
                f"""
                UPDATE calls SET status = $2, reason = $3, finished_at = greatest($4, created_at), started_at = $5,
                    output = $6, output_kept = $7, error = $8, progress = coalesce($9, progress),
                    partials = greatest($10, partials),
                    input = CASE WHEN input_bytes <= {KEPT_INPUT_BYTES} THEN input END
                WHERE id = $1 AND status = 'open' AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
                RETURNING true
                """,
                call_id,
                outcome.status,
                outcome.reason,
                outcome.finished_at,
                outcome.started_at,
                outcome.output,
                outcome.output_kept,
                outcome.error,
                outcome.progress,
                outcome.partials,
            )
        )

    async def cancel(self, call_id: UUID) -> None:
        """It is to be cancelled; one that was not delivered is, and never will be."""
        await self._connection.execute("SELECT FROM calls WHERE id = $1 AND status = 'open' FOR NO KEY UPDATE", call_id)
        await self._connection.execute(
            """
            UPDATE calls c SET cancel_at = coalesce(cancel_at, $2),
                status = CASE WHEN d.delivered THEN c.status ELSE 'cancelled' END,
                finished_at = CASE WHEN d.delivered THEN NULL ELSE greatest($2, c.created_at) END,
                reason = CASE WHEN d.delivered THEN c.reason ELSE 'interrupted' END
            FROM (SELECT EXISTS (SELECT FROM executions WHERE run_id = $1) AS delivered) d
            WHERE c.id = $1 AND c.status = 'open'
            """,
            call_id,
            self._now,
        )

    async def forget(self, call_id: UUID) -> bool:
        """False while it is not over."""
        return bool(
            await self._connection.fetchval(
                "DELETE FROM calls WHERE id = $1 AND status <> 'open' RETURNING true", call_id
            )
        )

    async def employ(self, session: Session, app_id: UUID, version: int, definition: AppDefinition, name: str) -> None:
        """Make a session, which is being made, one of this app. Raises AppNotFound when that was removed meanwhile."""
        made = await self._connection.fetchval(
            """
            WITH there AS (SELECT app_id, version FROM app_versions WHERE app_id = $2 AND version = $3 FOR KEY SHARE)
            INSERT INTO workers (session_id, app_id, app_version, app) SELECT $1, app_id, version, $4 FROM there RETURNING true
            """,
            session.id,
            app_id,
            version,
            {"id": str(app_id), "name": name, "version": version, **definition.to_json()},
        )
        if made is None:
            raise AppNotFound(app=name)

    async def keep_alive(self, session_id: SessionId) -> bool:
        """Its idle time begins anew. False when it does not run any more."""
        return bool(
            await self._connection.fetchval(
                """
                WITH used AS (
                    UPDATE sessions SET last_activity_at = greatest(last_activity_at, $2), activity = activity + 1
                    WHERE id = $1 AND status IN ('RUNNING', 'RUNNING_DEGRADED') RETURNING id, idle_timeout_seconds
                ), later AS (
                    UPDATE workers w SET idle_until_at = $2 + make_interval(secs => used.idle_timeout_seconds)
                    FROM used WHERE w.session_id = used.id AND w.idle_until_at IS NOT NULL
                )
                SELECT EXISTS (SELECT FROM used)
                """,
                session_id,
                self._now,
            )
        )


def _call(row: Mapping[str, Any]) -> CallRow:
    return CallRow(**dict(row))
