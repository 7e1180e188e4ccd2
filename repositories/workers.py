"""Worker sessions: which of them have their app still to load, and which calls have to be seen to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from domain.apps import AppDefinition
from domain.ids import AgentId, KernelId, RunId, SessionId
from domain.session import ANSWERING
from repositories import tables
from repositories.database import Connection

_ANSWERING: Final = ", ".join(f"'{status}'" for status in sorted(ANSWERING))
#: What was delivered so long ago and is not over is asked for again: whoever delivered it may be no more.
ASKED_AGAIN: Final = timedelta(seconds=5)
#: So long after the end of its session a run that nobody has reported is given up.
GIVEN_UP: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """A running worker session whose app is not loaded."""

    id: SessionId
    user_id: UUID
    name: str
    attempt: int
    kernel_id: KernelId
    agent_id: AgentId
    app_id: UUID
    app_version: int
    app: AppDefinition
    tries: int
    claimed: bool  #: by a manager that brings the app there
    run: str | None  #: of the run that loads it: running, done; None: none yet
    exit_code: int | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    """An open call to be seen to."""

    id: RunId
    session_id: SessionId
    delivered: bool
    sent: bool  #: its host has it
    done: bool  #: its run is
    stale: bool  #: it belongs to a session, or an attempt, that is no more
    given_up: bool  #: and nobody will report its run
    cancelling: bool
    kernel_id: KernelId | None
    agent_id: AgentId | None
    run_attempt: int | None


async def live_workers(connection: Connection) -> set[SessionId]:
    """Those that have not ended, or of which a call has not. Ended ones are not looked through: there may be very many."""
    rows = await connection.fetch(
        f"""
        SELECT id FROM sessions WHERE {tables.NOT_FINAL} AND session_type = 'worker'
        UNION SELECT session_id FROM calls WHERE status = 'open'
        """
    )
    return {SessionId(row["id"]) for row in rows}


async def loading(connection: Connection, *, now: datetime) -> list[Loading]:
    rows = await connection.fetch(
        f"""
        SELECT s.id, s.user_id, s.name, s.attempt, s.main_kernel_id AS kernel_id, k.agent_id, w.app_id, w.app_version, w.app,
            w.tries, coalesce(w.claimed_until > $1, false) AS claimed, e.status AS run, e.exit_code, e.reason
        FROM workers w JOIN sessions s ON s.id = w.session_id JOIN kernels k ON k.id = s.main_kernel_id
        LEFT JOIN executions e ON e.session_id = s.id AND e.attempt = s.attempt AND e.mode = 'load'
        WHERE s.status IN ({_ANSWERING}) AND w.ready_attempt IS DISTINCT FROM s.attempt AND k.agent_id IS NOT NULL
            AND k.attempt = s.attempt
        ORDER BY s.created_at
        """,
        now,
    )
    return [Loading(**{**dict(row), "app": AppDefinition.from_json(row["app"])}) for row in rows]


async def unsettled(connection: Connection, *, now: datetime, limit: int = 5000) -> list[Unsettled]:
    """In the order in which they were asked; first those for which there is something to be done, and of the others, which
    only run and may be very many, some."""
    rows = await connection.fetch(
        f"""
        SELECT * FROM (
            SELECT c.id, c.session_id, e.run_id IS NOT NULL AS delivered, c.sent_at IS NOT NULL AS sent,
                coalesce(e.status = 'done', false) AS done, x.stale,
                x.stale AND coalesce(s.ended_at <= $2, c.attempt < s.attempt) AS given_up,
                c.cancel_at IS NOT NULL AS cancelling, e.kernel_id, e.agent_id, e.attempt AS run_attempt,
                s.status IN ({_ANSWERING}) AND w.ready_attempt = s.attempt AS ready, c.created_at
            FROM calls c JOIN sessions s ON s.id = c.session_id JOIN workers w ON w.session_id = s.id
            LEFT JOIN executions e ON e.run_id = c.id
            CROSS JOIN LATERAL (SELECT s.ended_at IS NOT NULL OR c.attempt < s.attempt AS stale) x
            WHERE c.status = 'open'
        ) c
        WHERE done OR stale AND (given_up OR NOT delivered) OR ready AND NOT sent AND NOT cancelling OR delivered AND created_at < $1
        ORDER BY sent AND NOT (done OR stale OR cancelling),
            CASE WHEN sent AND NOT (done OR stale OR cancelling) THEN random() END, created_at, id LIMIT $3
        """,
        now - ASKED_AGAIN,
        now - GIVEN_UP,
        limit,
    )
    return [Unsettled(**{name: row[name] for name in Unsettled.__slots__}) for row in rows]


async def claim(connection: Connection, one: Loading, *, now: datetime, seconds: float) -> bool:
    """Whether this manager, and no other, brings the app there for so long. Not when somebody has tried since it was read."""
    return bool(
        await connection.fetchval(
            """
            UPDATE workers SET claimed_until = $2, tries = tries + 1
            WHERE session_id = $1 AND tries = $4 AND (claimed_until IS NULL OR claimed_until <= $3) RETURNING true
            """,
            one.id,
            now + timedelta(seconds=seconds),
            now,
            one.tries,
        )
    )


async def hold(connection: Connection, one: Loading, *, until: datetime | None) -> None:
    """Keep the claim until then, or give it back; not one that somebody else has taken since."""
    await connection.execute(
        "UPDATE workers SET claimed_until = $2 WHERE session_id = $1 AND tries = $3 + 1", one.id, until, one.tries
    )


async def locked(connection: Connection, one: Loading) -> bool:
    """Whether the session is still at this attempt; then it stays so until the transaction ends."""
    return bool(
        await connection.fetchval(
            "SELECT attempt = $2 FROM sessions WHERE id = $1 FOR NO KEY UPDATE", one.id, one.attempt
        )
    )


async def begin_load(connection: Connection, one: Loading, run_id: RunId, *, now: datetime) -> bool:
    """The run that loads the app: from now on it is asked for until it is done. False when the session has moved on."""
    return bool(
        await connection.fetchval(
            f"""
            WITH live AS (
                SELECT s.id, s.user_id FROM sessions s WHERE s.id = $2 AND s.attempt = $5 AND s.status IN ({_ANSWERING})
                FOR NO KEY UPDATE
            ), made AS (
                INSERT INTO executions (run_id, session_id, kernel_id, agent_id, attempt, user_id, request_hash, mode, started_at)
                SELECT $1, id, $3, $4, $5, user_id, '', 'load', $6 FROM live ON CONFLICT (run_id) DO NOTHING
            )
            SELECT EXISTS (SELECT FROM live)
            """,
            run_id,
            one.id,
            one.kernel_id,
            one.agent_id,
            one.attempt,
            now,
        )
    )


async def fail_open_calls(connection: Connection, session_id: SessionId, error: str, *, now: datetime) -> None:
    """Of a session whose app could not be loaded: the calls that wait for it fail with the app's own error."""
    await connection.execute(
        """
        UPDATE calls SET status = 'failed', reason = 'not_loaded', error = $2, finished_at = greatest($3, created_at)
        WHERE session_id = $1 AND status = 'open'
        """,
        session_id,
        error,
        now,
    )


async def forget_ended(connection: Connection) -> None:
    """What has ended is not to be ended any more."""
    await connection.execute(
        """
        UPDATE workers w SET idle_until_at = NULL FROM sessions s
        WHERE s.id = w.session_id AND w.idle_until_at IS NOT NULL AND s.ended_at IS NOT NULL
        """
    )
