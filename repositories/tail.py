"""The end of each run's output, taken over from the host when the session has ended: readable without the host from then on."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from domain.ids import AgentId, KernelId, RunId
from repositories.database import Connection

#: Later than this after a run's end nobody asks the host any more.
_WITHIN = timedelta(hours=6)


async def wanting(
    connection: Connection, agents: Collection[AgentId], *, now: datetime, limit: int
) -> list[dict[str, Any]]:
    """{run_id, kernel_id, agent_id, attempt, last_seq, output_bytes} of finished runs of ended sessions on these agents."""
    rows = await connection.fetch(
        """
        SELECT e.run_id, e.kernel_id, e.agent_id, e.attempt, e.last_seq, e.output_bytes
        FROM executions e JOIN sessions s ON s.id = e.session_id
        WHERE e.status = 'done' AND e.tail IS NULL AND e.finished_at > $2
            AND (s.ended_at IS NOT NULL OR e.attempt < s.attempt AND s.retries > 0) AND e.agent_id = ANY($1::text[])
        ORDER BY e.finished_at LIMIT $3
        """,
        [str(agent) for agent in agents],
        now - _WITHIN,
        limit,
    )
    return [dict(row) for row in rows]


async def keep(connection: Connection, run_id: RunId, tail: bytes) -> None:
    """Store what was read; nothing at all is stored as such, so that it is not asked for again."""
    await connection.execute(
        "UPDATE executions SET tail = $2 WHERE run_id = $1 AND tail IS NULL AND status = 'done'", run_id, tail
    )


async def wanting_logs(
    connection: Connection, agents: Collection[AgentId], *, now: datetime, limit: int
) -> list[dict[str, Any]]:
    """{kernel_id, agent_id, attempt} of ended sessions' containers on these agents whose log is not kept yet."""
    rows = await connection.fetch(
        """
        SELECT k.id AS kernel_id, k.agent_id, k.attempt FROM sessions s JOIN kernels k ON k.session_id = s.id
        WHERE s.ended_at > $2 AND k.attempt = s.attempt AND k.observed = 'GONE' AND k.agent_id = ANY($1::text[])
            AND NOT EXISTS (SELECT FROM kernel_logs l WHERE l.kernel_id = k.id AND l.attempt = k.attempt)
        ORDER BY s.ended_at LIMIT $3
        """,
        [str(agent) for agent in agents],
        now - _WITHIN,
        limit,
    )
    return [dict(row) for row in rows]


async def keep_log(connection: Connection, kernel_id: KernelId, attempt: int, records: bytes, *, now: datetime) -> None:
    """Nothing at all is stored as such. A session that is being purged has no kernel to keep it for."""
    await connection.execute(
        """
        INSERT INTO kernel_logs (kernel_id, attempt, records, kept_at)
        SELECT id, $2, $3, $4 FROM kernels WHERE id = $1 ON CONFLICT DO NOTHING
        """,
        kernel_id,
        attempt,
        records,
        now,
    )


async def kept_log(connection: Connection, kernel_id: KernelId, attempt: int) -> bytes | None:
    """Ring records; None when they have not been taken over."""
    found: bytes | None = await connection.fetchval(
        "SELECT records FROM kernel_logs WHERE kernel_id = $1 AND attempt = $2", kernel_id, attempt
    )
    return found
