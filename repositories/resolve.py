"""What follows for dependants when the sessions they wait for have ended: they may run, or never will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.dependency import holds, skip_reason
from domain.ids import SessionId
from domain.session import FINAL, Event, SessionTypes, Status
from repositories.database import Connection
from repositories.dependencies import rearm
from repositories.transit import Asked, Cause, Moved, emit, transit_many

DEPENDENCIES: Final = Cause(by="dependencies")
_FINALS: Final = ", ".join(f"'{status}'" for status in sorted(FINAL))
#: Edges that wait, and whose other end has come. $1: only of these sessions, or NULL.
_ENDED: Final = f"""
    SELECT s.id AS session_id, s.user_id, s.domain, s.name AS session_name, o.id AS depends_on_id, d.condition, o.name,
        o.status, o.session_type, o.result, o.exit_code, o.status_reason
    FROM sessions s JOIN session_dependencies d ON d.session_id = s.id AND d.met_at IS NULL
    JOIN sessions o ON o.id = d.depends_on_id AND o.status IN ({_FINALS})
    WHERE s.status = 'PENDING' AND s.unmet > 0 AND ($1::uuid[] IS NULL OR s.id = ANY($1::uuid[]))
    ORDER BY s.id, o.ended_at, o.id LIMIT $2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    skipped: tuple[Moved, ...] = ()  #: will never run
    unblocked: tuple[SessionId, ...] = ()  #: wait for no other session any more

    @property
    def anything(self) -> bool:
        return bool(self.skipped or self.unblocked)


async def anything_ended(connection: Connection) -> bool:
    """Whether `resolve` has something to do; one statement, which seldom finds anything."""
    return bool(await connection.fetch(_ENDED, None, 1))


async def resolve(connection: Connection, *, now: datetime, limit: int = 1000) -> Resolved:
    """One step along the graphs, inside the caller's transaction; a skipped session's own dependants are the next step.

    Any number of managers may do this at once: all rows concerned are locked, in the order of their ids, and looked at
    again before anything is written.
    """
    seen = await connection.fetch(_ENDED, None, limit)
    if not seen:
        return Resolved()
    concerned = {row["session_id"] for row in seen} | {row["depends_on_id"] for row in seen}
    await connection.execute(
        "SELECT FROM sessions WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE", sorted(concerned)
    )
    rows = [
        row
        for row in await connection.fetch(_ENDED, sorted({row["session_id"] for row in seen}), limit)
        if row["depends_on_id"] in concerned
    ]
    verdicts = [(row, _holds(row)) for row in rows]
    broken: dict[UUID, Mapping[str, Any]] = {}
    for row, verdict in verdicts:
        if verdict is False:
            broken.setdefault(row["session_id"], row)
    await _mark(connection, [row for row, verdict in verdicts if verdict], now)
    asked = [Asked(session_id=SessionId(one), reason=_why(row)) for one, row in broken.items()]
    skipped = await transit_many(connection, Event.SKIP, asked, cause=DEPENDENCIES, now=now) if asked else []
    touched = {row["session_id"]: row for row, verdict in verdicts if verdict and row["session_id"] not in broken}
    unblocked = await rearm(connection, list(touched), now=now)
    for one in unblocked:
        row = touched[one]
        await emit(
            connection,
            "session.unblocked",
            now=now,
            cause=DEPENDENCIES,
            session_id=one,
            user_id=row["user_id"],
            domain=row["domain"],
            data={"name": row["session_name"]},
        )
    return Resolved(skipped=tuple(skipped), unblocked=tuple(unblocked))


def _holds(row: Mapping[str, Any]) -> bool | None:
    return holds(row["condition"], Status(row["status"]), SessionTypes(row["session_type"]), row["result"])


def _why(row: Mapping[str, Any]) -> str:
    return skip_reason(row["name"], Status(row["status"]), row["exit_code"], row["status_reason"])


async def _mark(connection: Connection, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    await connection.execute(
        """
        UPDATE session_dependencies d SET met_at = $3 FROM unnest($1::uuid[], $2::uuid[]) AS m(session_id, depends_on_id)
        WHERE d.session_id = m.session_id AND d.depends_on_id = m.depends_on_id
        """,
        [row["session_id"] for row in rows],
        [row["depends_on_id"] for row in rows],
        now,
    )
