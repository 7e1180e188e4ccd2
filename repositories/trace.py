"""What sessions asked for and how long they held it, as a workload that can be replayed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from domain.resources import ResourceSlot
from repositories.database import Connection

MOST: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSession:
    """One session that has ended; nothing where nothing was asked for. Amounts are of each kernel."""

    submitted_at: datetime
    user: str
    project: str
    cpu: float
    mem: int  #: MiB
    duration: float  #: seconds from when it first held slots until it held none
    gpu: int | None
    gpu_mem: int | None  #: MiB
    gpu_model: str | None
    kernels: int
    timeout: float | None  #: seconds
    starts_at: datetime | None  #: asked for, or when what it waited for had ended
    priority: int
    resource_group: str
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    sessions: list[TraceSession]  #: in the order of their submission
    running: int  #: that have not ended, and are not among them
    never_ran: int  #: that have ended without holding anything


async def recorded(connection: Connection, *, since: datetime, until: datetime) -> Recorded:
    """Sessions that were submitted within [since, until); the first `MOST` + 1 of those that ran."""
    counts = await connection.fetchrow(
        """
        SELECT count(*) FILTER (WHERE ended_at IS NULL) AS running, count(*) FILTER (WHERE ended_at IS NOT NULL) AS ended
        FROM sessions WHERE created_at >= $1 AND created_at < $2
        """,
        since,
        until,
    )
    assert counts is not None
    rows = await connection.fetch(
        """
        WITH held AS MATERIALIZED (
            SELECT session_id, min(since_at) AS began, max(until_at) AS ended FROM usage
            WHERE until_at >= $1 AND since_at >= $1 GROUP BY session_id
        )
        SELECT s.created_at, u.email, p.name AS project, s.priority, s.resource_group, s.architecture, s.timeout_seconds,
            s.constraints ->> 'gpu_model' AS gpu_model, extract(epoch FROM h.ended - h.began)::double precision AS seconds,
            nullif(greatest(s.starts_at, (SELECT max(d.met_at) FROM session_dependencies d WHERE d.session_id = s.id)),
                s.created_at) AS starts_at,
            k.number, coalesce(k.cpu, 0) AS cpu, coalesce(k.mem, 0) AS mem, k.gpu, k.gpu_mem
        FROM sessions s JOIN held h ON h.session_id = s.id JOIN users u ON u.id = s.user_id JOIN projects p ON p.id = s.project_id
        CROSS JOIN LATERAL (
            SELECT count(*) AS number, max((k.slots ->> 'cpu')::bigint) AS cpu, max((k.slots ->> 'mem')::bigint) AS mem,
                max((k.slots ->> 'gpu')::bigint) AS gpu, max((k.slots ->> 'gpu-mem')::bigint) AS gpu_mem
            FROM kernels k WHERE k.session_id = s.id AND k.attempt = s.attempt) k
        WHERE s.created_at >= $1 AND s.created_at < $2 AND s.ended_at IS NOT NULL AND k.number > 0
        ORDER BY s.created_at, s.id LIMIT $3
        """,
        since,
        until,
        MOST + 1,
    )
    return Recorded(
        sessions=[
            TraceSession(
                submitted_at=row["created_at"],
                user=row["email"],
                project=row["project"],
                cpu=ResourceSlot.from_units({"cpu": max(1, row["cpu"])}).to_json()["cpu"],
                mem=row["mem"],
                duration=round(row["seconds"], 3),
                gpu=None if row["gpu_mem"] else row["gpu"] or None,
                gpu_mem=row["gpu_mem"] or None,
                gpu_model=row["gpu_model"],
                kernels=row["number"],
                timeout=row["timeout_seconds"],
                starts_at=row["starts_at"],
                priority=row["priority"],
                resource_group=row["resource_group"],
                architecture=row["architecture"],
            )
            for row in rows
        ],
        running=counts["running"],
        never_ran=max(0, counts["ended"] - len(rows)),
    )
