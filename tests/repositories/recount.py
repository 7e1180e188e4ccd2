"""What limits say is in use, against what sessions hold."""

from __future__ import annotations

from domain.limits import is_ceiling
from repositories import tables
from repositories.database import Connection
from repositories.limits import CHARGES, SCOPES_OF

#: What every limit should count, from the sessions and kernels themselves.
_RECOUNT = f"""
    SELECT q.scope, q.scope_id, q.name, q.used, q.queued,
        coalesce(sum(c.amount) FILTER (WHERE c.status <> 'PENDING' AND q.name <> 'pending_sessions'), 0) AS placed,
        coalesce(sum(c.amount) FILTER (WHERE c.status = 'PENDING'), 0) AS waiting
    FROM quotas q LEFT JOIN (
        SELECT v.scope, v.scope_id, c.name, c.amount, s.status
        FROM sessions s CROSS JOIN LATERAL {SCOPES_OF} CROSS JOIN LATERAL {CHARGES} c
        WHERE {tables.NOT_FINAL.replace("status", "s.status")} AND s.session_type <> 'system'
    ) c USING (scope, scope_id, name) GROUP BY 1, 2, 3, 4, 5
"""


async def assert_limits_add_up(connection: Connection) -> None:
    """The counters are the sums of what is charged, and what is charged is what live sessions hold."""
    for row in await connection.fetch(_RECOUNT):
        if not is_ceiling(row["name"]):
            assert (row["used"], row["queued"]) == (row["placed"], row["waiting"]), dict(row)
    left = await connection.fetchval(
        f"""
        SELECT count(*) FROM quota_uses u JOIN sessions s ON s.id = u.session_id
        WHERE u.placed <> (s.status <> 'PENDING') OR NOT ({tables.NOT_FINAL.replace("status", "s.status")})
        """
    )
    assert left == 0
