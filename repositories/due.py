"""What is due: waits and lifetimes that are over, and statuses that should have passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from domain.ids import SessionId
from domain.session import ANSWERING, DEADLINES, Event, Status
from repositories import tables
from repositories.database import Connection


class Due(StrEnum):
    WAIT = "wait"  #: max_wait, in the queue
    LIFETIME = "lifetime"  #: timeout, from RUNNING on
    WORK = "work"  #: batch_timeout, from RUNNING on
    IDLE = "idle"  #: idle_timeout of a worker session, since it was ready or called
    STATUS = "status"  #: the status was meant to pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSession:
    session_id: SessionId
    status: Status
    due: Due
    seconds: float | None  #: the wait, lifetime, batch_timeout or idle_timeout that was asked for

    @property
    def event(self) -> Event:
        return DEADLINES[self.status].compensation if self.due is Due.STATUS else Event.EXPIRE


_EXPIRING: Final = ", ".join(f"'{status}'" for status in sorted({Status.PENDING, *ANSWERING}))
_WORKING: Final = ", ".join(f"'{status}'" for status in sorted(ANSWERING))
_PASSING: Final = ", ".join(f"'{status}'" for status in sorted(DEADLINES))


async def take_due(connection: Connection, *, now: datetime, limit: int = 200) -> list[DueSession]:
    """Sessions with something due, locked in order until the caller's transaction ends, as they are at this moment."""
    rows = await connection.fetch(
        f"""
        SELECT id, status, timeout_seconds, max_wait_seconds, batch_timeout_seconds, expires_at <= $1 AS lived FROM sessions
        WHERE {tables.NOT_FINAL} AND ((expires_at <= $1 AND status IN ({_EXPIRING}))
            OR (work_until_at <= $1 AND status IN ({_WORKING}))
            OR (deadline_at <= $1 AND status IN ({_PASSING})))
        ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
        """,
        now,
        limit,
    )
    return [_due(row) for row in rows] + await _take_idle(connection, now, limit, {row["id"] for row in rows})


#: Of a worker session that is called meanwhile, the row of `workers` has changed: it is looked at again under the lock.
_IDLE: Final = f"""
    FROM workers w JOIN sessions s ON s.id = w.session_id
    WHERE w.idle_until_at IS NOT NULL AND w.ready_attempt = s.attempt AND s.status IN ({_WORKING})
"""


async def _take_idle(connection: Connection, now: datetime, limit: int, others: set[object]) -> list[DueSession]:
    rows = await connection.fetch(
        f"""
        SELECT s.id, s.status, s.idle_timeout_seconds {_IDLE} AND w.idle_until_at <= $1
        ORDER BY s.id LIMIT $2 FOR NO KEY UPDATE OF s, w SKIP LOCKED
        """,
        now,
        limit,
    )
    return [
        DueSession(
            session_id=SessionId(row["id"]),
            status=Status(row["status"]),
            due=Due.IDLE,
            seconds=row["idle_timeout_seconds"],
        )
        for row in rows
        if row["id"] not in others
    ]


async def next_due(connection: Connection) -> datetime | None:
    """When the next is due; a session that is locked just now may be late already."""
    times = await connection.fetchrow(
        f"""
        SELECT (SELECT min(expires_at) FROM sessions WHERE {tables.NOT_FINAL} AND status IN ({_EXPIRING})),
            (SELECT min(work_until_at) FROM sessions WHERE {tables.NOT_FINAL} AND status IN ({_WORKING})),
            (SELECT min(deadline_at) FROM sessions WHERE {tables.NOT_FINAL} AND status IN ({_PASSING})),
            (SELECT min(w.idle_until_at) {_IDLE})
        """
    )
    return min((at for at in times or () if at is not None), default=None)


async def a_wait_is_over(connection: Connection, *, now: datetime) -> bool:
    """A session is still in the queue although its max_wait has passed."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM sessions WHERE status = 'PENDING' AND expires_at <= $1)", now
        )
    )


def _due(row: Mapping[str, Any]) -> DueSession:
    session_id, status = SessionId(row["id"]), Status(row["status"])
    if status is Status.PENDING:
        return DueSession(session_id=session_id, status=status, due=Due.WAIT, seconds=row["max_wait_seconds"])
    if status not in ANSWERING:
        return DueSession(session_id=session_id, status=status, due=Due.STATUS, seconds=None)
    if row["lived"]:
        return DueSession(session_id=session_id, status=status, due=Due.LIFETIME, seconds=row["timeout_seconds"])
    return DueSession(session_id=session_id, status=status, due=Due.WORK, seconds=row["batch_timeout_seconds"])
