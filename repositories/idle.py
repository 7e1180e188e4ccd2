"""Idle checkers' view of running sessions, and the warnings that they give."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from domain.idle import Checker, IdleFacts, Verdict, Warned
from domain.ids import SessionId
from domain.session import SessionTypes
from domain.watch import Window
from repositories.database import Connection
from repositories.limits import SCOPES_OF
from repositories.metrics import KernelRow, MetricsRepository
from repositories.transit import Cause, emit
from repositories.watch import Stored, WatchRepository, settings_of, window

CAUSE = Cause(by="idle checker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A running session with its facts, and the thresholds of its project."""

    facts: IdleFacts
    settings: Mapping[str, Mapping[str, float]]
    name: str
    user_id: UUID
    domain: str


async def candidates(
    connection: Connection, *, now: datetime, only: Collection[SessionId] | None = None
) -> list[Candidate]:
    """Every running session that a checker may have something to say of; or those of `only`, as they are at this moment."""
    stored = await WatchRepository(connection, now=now).stored()
    rows = await connection.fetch(
        f"""
        SELECT s.id, s.name, s.user_id, s.domain, s.project_id, s.session_type, s.started_at, s.last_activity_at,
            s.timeout_seconds, s.expires_at, CASE WHEN s.session_type <> 'worker' OR l.most < s.idle_timeout_seconds
                THEN least(s.idle_timeout_seconds, l.most) END AS idle_timeout_seconds,
            x.session_id IS NOT NULL AS exempt,
            w.checker, w.warned_at, w.due_at,
            s.id IN (SELECT session_id FROM executions WHERE status = 'running') AS busy
        FROM sessions s
        LEFT JOIN idle_exemptions x ON x.session_id = s.id LEFT JOIN idle_warnings w ON w.session_id = s.id
        CROSS JOIN LATERAL ({_LIMIT}) l
        WHERE s.status IN ('RUNNING', 'RUNNING_DEGRADED') AND s.started_at IS NOT NULL
            AND ($1::uuid[] IS NULL OR s.id = ANY($1))
            AND ($2 OR coalesce(s.idle_timeout_seconds, l.most) IS NOT NULL OR s.expires_at IS NOT NULL OR w.session_id IS NOT NULL)
        ORDER BY s.id
        """,
        None if only is None else list(only),
        _watches_all(stored),
    )
    settings = {row["project_id"]: settings_of(stored, row["project_id"]) for row in rows}
    lengths = {
        row["id"]: settings[row["project_id"]]["idle_low_use"]["window_seconds"]
        for row in rows
        if settings[row["project_id"]]["idle_low_use"]["enabled"]
    }
    figures = await _figures(connection, lengths, now)
    return [
        Candidate(
            facts=_facts(row, *figures.get(row["id"], ((), None))),
            settings=settings[row["project_id"]],
            name=row["name"],
            user_id=row["user_id"],
            domain=row["domain"],
        )
        for row in rows
    ]


#: The tightest limit named `idle` of a session's scopes; sessions that end with their work are bound by their own only.
_LIMIT: Final = f"""
    SELECT min(q.max_amount)::double precision AS most FROM {SCOPES_OF} JOIN quotas q USING (scope, scope_id)
    WHERE q.name = 'idle' AND s.session_type IN ('interactive', 'worker')
"""


def _watches_all(stored: Stored) -> bool:
    """Whether a checker has been switched on, for all or for somebody: without, most sessions need not be looked at."""
    return any(rules.get(name, {}).get("enabled") for rules in stored.values() for name in _CHECKERS)


_CHECKERS: Final = ("idle_no_call", "idle_low_use", "idle_lifetime")


async def _figures(
    connection: Connection, lengths: Mapping[UUID, float], now: datetime
) -> dict[UUID, tuple[Sequence[KernelRow], Window]]:
    metrics = MetricsRepository(connection)
    kernels = await metrics.kernels(list(lengths), present_only=True) if lengths else []
    found: dict[UUID, tuple[Sequence[KernelRow], Window]] = {}
    for length in set(lengths.values()):
        ids = {session_id for session_id, own in lengths.items() if own == length}
        of_these = [kernel for kernel in kernels if kernel.session_id in ids]
        sums = await metrics.sums([k.id for k in of_these], since=now - timedelta(seconds=length), until=now)
        for session_id in ids:
            own_kernels = [kernel for kernel in of_these if kernel.session_id == session_id]
            found[session_id] = own_kernels, window(own_kernels, sums, length, now)
    return found


def _facts(row: Mapping[str, Any], kernels: Sequence[KernelRow], used: Window | None) -> IdleFacts:
    warned = None
    if row["checker"] is not None:
        warned = Warned(checker=Checker(row["checker"]), warned_at=row["warned_at"], due_at=row["due_at"])
    return IdleFacts(
        session_id=SessionId(row["id"]),
        session_type=SessionTypes(row["session_type"]),
        started_at=row["started_at"],
        used_at=max(row["started_at"], row["last_activity_at"] or row["started_at"]),
        busy=row["busy"],
        idle_timeout_seconds=row["idle_timeout_seconds"],
        timeout_seconds=row["timeout_seconds"],
        expires_at=row["expires_at"],
        exempt=row["exempt"],
        held_cpu=sum(kernel.slots.get("cpu", 0) for kernel in kernels) / 1000,
        held_gpus=sum(kernel.gpus for kernel in kernels),
        window=used,
        warned=warned,
    )


async def lock(connection: Connection, sessions: Collection[SessionId]) -> list[SessionId]:
    """In the order of their ids; one that somebody else holds is looked at again soon."""
    rows = await connection.fetch(
        "SELECT id FROM sessions WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED", list(sessions)
    )
    return [SessionId(row["id"]) for row in rows]


async def warn(
    connection: Connection, candidate: Candidate, verdict: Verdict, *, due_at: datetime, now: datetime
) -> None:
    """On the session, and as the event session.idle_warning; once for each cause."""
    await connection.execute(
        """
        INSERT INTO idle_warnings (session_id, checker, reason, warned_at, due_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (session_id) DO UPDATE SET checker = excluded.checker, reason = excluded.reason,
            warned_at = excluded.warned_at, due_at = excluded.due_at
        """,
        candidate.facts.session_id,
        str(verdict.checker),
        verdict.reason,
        now,
        due_at,
    )
    data = {
        "checker": str(verdict.checker),
        "reason": verdict.reason,
        "due_at": due_at.isoformat(),
        "seconds_left": round((due_at - now).total_seconds(), 1),
    }
    await _tell(connection, "session.idle_warning", candidate, data, now)


async def clear(connection: Connection, candidate: Candidate, *, now: datetime) -> None:
    """It is used again, or left in peace."""
    await connection.execute("DELETE FROM idle_warnings WHERE session_id = $1", candidate.facts.session_id)
    await _tell(connection, "session.idle_cleared", candidate, {}, now)


async def forget_ended(connection: Connection) -> None:
    """What has ended, or begins anew, has no warning any more."""
    await connection.execute(
        """
        DELETE FROM idle_warnings w USING sessions s
        WHERE s.id = w.session_id AND s.status NOT IN ('RUNNING', 'RUNNING_DEGRADED')
        """
    )


async def _tell(connection: Connection, type: str, candidate: Candidate, data: dict[str, Any], now: datetime) -> None:
    await emit(
        connection,
        type,
        now=now,
        cause=CAUSE,
        session_id=candidate.facts.session_id,
        user_id=candidate.user_id,
        domain=candidate.domain,
        data={"name": candidate.name, **data},
    )
