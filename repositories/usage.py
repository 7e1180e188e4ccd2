"""What was held, by whom and how long: exact sums over the times of allocations, which triggers write down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from repositories.database import Connection

#: What a report may be grouped by: the key of a group, and how it is shown where that is something else.
GROUPS: Final = {
    "user": ("u.user_id::text", "coalesce(max(p.email), u.key)"),
    "project": ("u.domain || '/' || coalesce(q.name, u.project_id::text)", "u.key"),
    "session": ("u.session_id::text", "max(u.session_name)"),
    "host": ("u.agent_id", "u.key"),
    "total": ("'total'", "u.key"),
    "day": ("to_char(day.begin AT TIME ZONE 'UTC', 'YYYY-MM-DD')", "u.key"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One group. Hours of what was held, whether or not it was used."""

    key: str
    name: str
    sessions: int
    cpu_hours: float
    mem_gib_hours: float
    gpu_hours: float  #: of whole devices: half of one for an hour is 0.5
    other_hours: dict[str, float]  #: of resources of other names, in units


async def usage(
    connection: Connection,
    *,
    since: datetime,
    until: datetime,
    now: datetime,
    by: str,
    user_id: UUID | None = None,
    domain: str | None = None,
    users: Sequence[UUID] | None = None,
    project: str | None = None,
) -> list[UsageRow]:
    """Every group that held something within [since, until), the largest holder of CPU first.

    What is held still counts up to `now`. `user_id` and `domain` are the asker's scope; the others are what was asked for.
    """
    key, shown = GROUPS[by]
    days = (
        """CROSS JOIN LATERAL generate_series(date_trunc('day', greatest(u.since_at, $1), 'UTC'),
            least(coalesce(u.until_at, $3), $2), interval '1 day') AS day(begin)"""
        if by == "day"
        else ""
    )
    lower = "greatest(u.since_at, $1, day.begin)" if days else "greatest(u.since_at, $1)"
    upper = "least(coalesce(u.until_at, $3), $2, $3" + (", day.begin + interval '1 day')" if days else ")")
    rows = await connection.fetch(
        f"""
        WITH held AS (
            SELECT {key} AS key, u.user_id, u.project_id, u.domain, u.session_id, u.session_name, u.agent_id, u.name, u.amount,
                u.share, greatest(extract(epoch FROM {upper} - {lower}), 0)::double precision / 3600 AS hours
            FROM usage u LEFT JOIN projects q ON q.id = u.project_id {days}
            WHERE u.since_at < $2 AND (u.until_at IS NULL OR u.until_at > $1)
                AND ($4::uuid IS NULL OR u.user_id = $4) AND ($5::text IS NULL OR u.domain = $5)
                AND ($6::uuid[] IS NULL OR u.user_id = ANY($6)) AND ($7::text IS NULL OR q.name = $7)
        ), others AS (
            SELECT key, jsonb_object_agg(name, hours) AS hours FROM (
                SELECT key, name, sum(amount * hours) AS hours FROM held
                WHERE name NOT IN ('cpu', 'mem') AND name NOT LIKE 'gpu%' GROUP BY 1, 2) each_one GROUP BY 1
        )
        SELECT u.key, {shown} AS name, count(DISTINCT u.session_id) AS sessions,
            coalesce(sum(u.amount * u.hours) FILTER (WHERE u.name = 'cpu'), 0) / 1000 AS cpu_hours,
            coalesce(sum(u.amount * u.hours) FILTER (WHERE u.name = 'mem'), 0) / 1024 AS mem_gib_hours,
            coalesce(sum(CASE WHEN u.name = 'gpu' THEN u.amount ELSE u.share END * u.hours)
                FILTER (WHERE u.name LIKE 'gpu%'), 0) AS gpu_hours,
            (SELECT o.hours FROM others o WHERE o.key = u.key) AS other_hours
        FROM held u LEFT JOIN users p ON p.id = u.user_id
        WHERE u.hours > 0 GROUP BY u.key ORDER BY {"u.key" if days else "cpu_hours DESC, u.key"}
        """,
        since,
        until,
        now,
        user_id,
        domain,
        None if users is None else list(users),
        project,
    )
    return [
        UsageRow(
            key=row["key"],
            name=row["name"],
            sessions=row["sessions"],
            cpu_hours=float(row["cpu_hours"]),
            mem_gib_hours=float(row["mem_gib_hours"]),
            gpu_hours=float(row["gpu_hours"]),
            other_hours=dict(row["other_hours"] or {}),
        )
        for row in rows
    ]
