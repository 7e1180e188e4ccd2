"""Which sessions wait for which others: edges within one owner's sessions, without cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.dependency import MOST_DEPENDENCIES, Condition, holds, skip_reason, waiting_reason
from domain.errors import DependencyCycle, DependencyFailed, DependencyNotFound, InvalidConfiguration
from domain.ids import SessionId
from domain.names import as_uuid
from domain.session import FINAL, SessionTypes, Status
from repositories import tables
from repositories.database import Connection

_FINALS: Final = ", ".join(f"'{status}'" for status in sorted(FINAL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A session that another depends on, as it is now."""

    id: SessionId
    name: str
    condition: Condition
    status: Status
    session_type: SessionTypes
    result: str
    exit_code: int | None
    reason: str | None

    @property
    def met(self) -> bool | None:
        return holds(self.condition, self.status, self.session_type, self.result)

    @property
    def skip_reason(self) -> str:
        return skip_reason(self.name, self.status, self.exit_code, self.reason)


class DependencyRepository:
    """One owner's; what is another's is not there."""

    def __init__(self, connection: Connection, user_id: UUID, *, now: datetime) -> None:
        self._connection = connection
        self._user_id = user_id
        self._now = now

    async def find(
        self, wanted: Sequence[tuple[str, Condition]], *, other_than: SessionId | None = None
    ) -> list[Dependency]:
        """Each by its id, or by its name: the live session, else the last that had it. Raises DependencyNotFound.

        A new session that takes the name of one that has ended can depend on that: `other_than` itself.
        """
        found: dict[SessionId, Dependency] = {}
        for name, condition in wanted:
            row = await self._connection.fetchrow(
                f"""
                SELECT id, name, status, session_type, result, exit_code, status_reason AS reason
                FROM sessions WHERE user_id = $1 AND id IS DISTINCT FROM $4 AND (id = $2 OR ($2::uuid IS NULL AND name = $3))
                ORDER BY {tables.NOT_FINAL} DESC, created_at DESC, id DESC LIMIT 1
                """,
                self._user_id,
                as_uuid(name),
                name,
                other_than,
            )
            if row is None:
                raise DependencyNotFound(f"There is no session '{name[:80]}' of yours to depend on.", session=name[:80])
            twice = row["id"] in found  # asked for in both ways: the stricter one holds
            found[row["id"]] = _dependency({**row, "condition": Condition.SUCCESS if twice else condition})
        return list(found.values())

    async def add(self, session_id: SessionId, dependencies: Sequence[Dependency]) -> None:
        """Let a PENDING session wait for these. Raises DependencyFailed when one has failed already.

        A new session has no dependants, so it makes no cycle; for one that is there, `check_no_cycle` comes first.
        """
        for one in dependencies:
            if one.met is False:
                why = one.skip_reason.removeprefix("dependency_failed: ")
                raise DependencyFailed(
                    f"It would never run: {why}. Restart '{one.name}' first, or leave the dependency out.",
                    session=one.name,
                )
        await self._connection.execute(
            """
            INSERT INTO session_dependencies AS d (session_id, depends_on_id, condition, met_at, created_at)
            SELECT $1, id, condition, CASE WHEN met THEN $5::timestamptz END, $5
            FROM unnest($2::uuid[], $3::text[], $4::boolean[]) AS n(id, condition, met)
            ON CONFLICT (session_id, depends_on_id) DO UPDATE SET condition = excluded.condition, met_at = excluded.met_at
            """,
            session_id,
            [one.id for one in dependencies],
            [str(one.condition) for one in dependencies],
            [bool(one.met) for one in dependencies],
            self._now,
        )

    async def remove(self, session_id: SessionId, names: Sequence[str]) -> None:
        """Raises DependencyNotFound when it does not depend on one of these."""
        for name in names:
            gone = await self._connection.fetchval(
                """
                DELETE FROM session_dependencies d USING sessions o
                WHERE d.session_id = $1 AND o.id = d.depends_on_id AND (o.id = $2 OR ($2::uuid IS NULL AND o.name = $3))
                RETURNING true
                """,
                session_id,
                as_uuid(name),
                name,
            )
            if not gone:
                raise DependencyNotFound(f"The session does not depend on '{name[:80]}'.", session=name[:80])

    async def check_number(self, session_id: SessionId) -> None:
        number = await self._connection.fetchval(
            "SELECT count(*) FROM session_dependencies WHERE session_id = $1", session_id
        )
        if number > MOST_DEPENDENCIES:
            raise InvalidConfiguration(f"A session waits for at most {MOST_DEPENDENCIES} others.", field="depends_on")

    async def lock_graph(self) -> None:
        """Until the transaction ends, nobody else changes who of this owner's sessions waits for whom: of two changes
        that make a cycle only together, one sees the other. A statement of its own, before the looks that rely on it."""
        await self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 4))", str(self._user_id))

    async def check_no_cycle(self, session_id: SessionId, dependencies: Sequence[Dependency]) -> None:
        """Raises DependencyCycle when one of these is the session itself, or waits for it, however far away."""
        below = await self.dependants(session_id)
        for one in dependencies:
            if one.id == session_id or one.id in below:
                raise DependencyCycle(
                    "A session cannot depend on itself."
                    if one.id == session_id
                    else f"The session '{one.name}' depends on this one, directly or through others; "
                    "a circle of sessions would wait for ever.",
                    session=one.name,
                )

    async def dependants(self, session_id: SessionId, *, live: bool = False) -> list[SessionId]:
        """All that depend on it, directly or through others, in the order of their ids."""
        rows = await self._connection.fetch(
            f"""
            WITH RECURSIVE below AS (
                SELECT session_id FROM session_dependencies WHERE depends_on_id = $1
                UNION SELECT d.session_id FROM session_dependencies d JOIN below b ON d.depends_on_id = b.session_id
            )
            SELECT s.id FROM sessions s JOIN below b ON b.session_id = s.id
            WHERE s.user_id = $2 AND NOT ($3 AND s.status IN ({_FINALS})) ORDER BY s.id
            """,
            session_id,
            self._user_id,
            live,
        )
        return [SessionId(row["id"]) for row in rows]

    async def rearm(self, session_id: SessionId) -> None:
        """After its dependencies or its starting time have changed: why it waits, and until when at most."""
        await rearm(self._connection, [session_id], now=self._now)


async def rearm(connection: Connection, sessions: Sequence[SessionId], *, now: datetime) -> list[SessionId]:
    """Set why these PENDING sessions wait, and when their max_wait is over: it counts from when nothing but room is
    missing. Which of them wait for no other any more."""
    rows = await connection.fetch(
        """
        SELECT s.id, s.starts_at, array_agg(o.name ORDER BY o.created_at, o.id) FILTER (WHERE o.id IS NOT NULL) AS names
        FROM sessions s LEFT JOIN session_dependencies d ON d.session_id = s.id AND d.met_at IS NULL
        LEFT JOIN sessions o ON o.id = d.depends_on_id
        WHERE s.id = ANY($1::uuid[]) AND s.status = 'PENDING' GROUP BY s.id
        """,
        list(sessions),
    )
    reasons = [_waits_because(row["names"], row["starts_at"], now) for row in rows]
    await connection.execute(
        """
        UPDATE sessions s SET status_reason = r.reason, activity = activity + 1, expires_at = CASE WHEN s.unmet = 0
            THEN greatest($3::timestamptz, s.starts_at) + make_interval(secs => s.max_wait_seconds) END
        FROM unnest($1::uuid[], $2::text[]) AS r(id, reason) WHERE s.id = r.id AND s.status = 'PENDING'
        """,
        [row["id"] for row in rows],
        reasons,
        now,
    )
    return [SessionId(row["id"]) for row in rows if not row["names"]]


def _waits_because(names: list[str] | None, starts_at: datetime | None, now: datetime) -> str | None:
    if names:
        return waiting_reason(names)
    return f"starts at {starts_at:%Y-%m-%d %H:%M:%S} UTC" if starts_at is not None and starts_at > now else None


def _dependency(row: Any) -> Dependency:
    return Dependency(
        id=SessionId(row["id"]),
        name=row["name"],
        condition=Condition(row["condition"]),
        status=Status(row["status"]),
        session_type=SessionTypes(row["session_type"]),
        result=row["result"],
        exit_code=row["exit_code"],
        reason=row["reason"],
    )
