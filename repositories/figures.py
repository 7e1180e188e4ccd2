"""The state of the installation in a few numbers, for Prometheus: what waits, what is late, who is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from domain.session import DEADLINES
from repositories import tables
from repositories.database import Connection

_PASSING: Final = ", ".join(f"'{status}'" for status in sorted(DEADLINES))
#: All by indexes on what is live or late: cheap however much is on record.
_READ: Final = f"""
    SELECT
        (SELECT coalesce(jsonb_object_agg(status, number), '{{}}') FROM (
            SELECT status, count(*) AS number FROM sessions WHERE {tables.NOT_FINAL} GROUP BY 1) s) AS sessions,
        (SELECT count(*) FROM sessions WHERE status IN ({_PASSING}) AND deadline_at < $1::timestamptz - interval '30 seconds')
            AS overdue,
        (SELECT extract(epoch FROM $1 - min(greatest(created_at, starts_at))) FROM sessions
            WHERE status = 'PENDING' AND unmet = 0 AND (starts_at IS NULL OR starts_at <= $1)) AS oldest_seconds,
        (SELECT count(*) FROM kernels k JOIN agents a ON a.id = k.agent_id
            WHERE k.want <> 'NONE' AND k.seen_generation < k.generation AND NOT a.lost
            AND k.next_try_at < $1::timestamptz - interval '2 minutes') AS intents,
        (SELECT count(*) FROM tasks WHERE status IN ('queued', 'running')
            AND coalesce(lease_until, created_at) < $1::timestamptz - interval '2 minutes') AS tasks,
        (SELECT extract(epoch FROM $1 - at) FROM audit WHERE seq IS NULL ORDER BY id LIMIT 1) AS audit_seconds,
        (SELECT extract(epoch FROM $1 - at) FROM events WHERE seq IS NULL ORDER BY id LIMIT 1) AS events_seconds,
        (SELECT coalesce(jsonb_object_agg(role, number), '{{}}') FROM (
            SELECT role, count(*) AS number FROM managers WHERE seen_at > $1::timestamptz - interval '30 seconds' GROUP BY 1) m)
            AS managers,
        (SELECT coalesce(jsonb_object_agg(id, lost AND revoked_at IS NULL), '{{}}') FROM agents) AS lost
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    sessions: Mapping[str, int] = field(default_factory=dict)  #: live ones, by status
    overdue: int = 0  #: sessions in a status that should have passed
    oldest_seconds: float = 0.0  #: how long the first of those has waited that could be placed
    intents: int = 0  #: containers whose host has not been told for minutes what is wanted
    tasks: int = 0  #: background tasks that no manager works on
    audit_seconds: float = 0.0  #: how long the oldest row has waited for its place in the chain
    events_seconds: float = 0.0
    managers: Mapping[str, int] = field(default_factory=dict)  #: processes with a sign of life, by role
    lost: Mapping[str, bool] = field(default_factory=dict)  #: hosts, and whether they are not heard of


async def read(connection: Connection, *, now: datetime) -> Figures:
    row = await connection.fetchrow(_READ, now)
    assert row is not None
    found: dict[str, Any] = {
        name: max(0.0, float(row[name] or 0)) for name in ("oldest_seconds", "audit_seconds", "events_seconds")
    }
    found |= {name: row[name] for name in ("sessions", "overdue", "intents", "tasks", "managers", "lost")}
    return Figures(**found)
