"""Which certificate is whose: what agents are known by, renewed while they run, and taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from domain.errors import AgentNotFound, AgentRevoked
from domain.ids import AgentId
from repositories.database import Connection
from repositories.transit import Cause, emit

#: After the renewed certificate was shown, the one before counts for so long: connections change over one by one.
FORMER_COUNTS: Final = timedelta(hours=1)


async def is_known(connection: Connection, agent_id: AgentId, fingerprint: str, *, now: datetime) -> bool:
    """Whether the certificate of this fingerprint belongs to this agent. A renewed one takes its place when it is shown."""
    row = await connection.fetchrow(
        """
        SELECT fingerprint = $2 OR (former_fingerprint = $2 AND former_until > $3) AS counts,
            coalesce(next_fingerprint = $2, false) AS is_next
        FROM agents WHERE id = $1 AND revoked_at IS NULL
        """,
        agent_id,
        fingerprint,
        now,
    )
    if row is None or not (row["is_next"] or row["counts"]):
        return False
    if not row["is_next"]:
        return True
    changed = await connection.fetchval(
        """
        UPDATE agents SET former_fingerprint = fingerprint, former_until = $3, fingerprint = $2, next_fingerprint = NULL,
            renewed_at = $4
        WHERE id = $1 AND next_fingerprint = $2 AND revoked_at IS NULL RETURNING true
        """,
        agent_id,
        fingerprint,
        now + FORMER_COUNTS,
        now,
    )
    # two managers at once: one of them has written it
    return bool(changed) or await is_known(connection, agent_id, fingerprint, now=now)


async def trusted(
    connection: Connection, shown: Sequence[tuple[AgentId, str]], *, now: datetime
) -> frozenset[tuple[AgentId, str]]:
    """Of certificates on open connections, those that still count."""
    rows = await connection.fetch(
        """
        SELECT f.id, f.fingerprint FROM unnest($1::text[], $2::text[]) AS f(id, fingerprint) JOIN agents a USING (id)
        WHERE a.revoked_at IS NULL AND (f.fingerprint IN (a.fingerprint, a.next_fingerprint)
            OR (f.fingerprint = a.former_fingerprint AND a.former_until > $3))
        """,
        [agent_id for agent_id, _ in shown],
        [fingerprint for _, fingerprint in shown],
        now,
    )
    return frozenset((AgentId(row["id"]), row["fingerprint"]) for row in rows)


async def renewing(connection: Connection, agent_id: AgentId, fingerprint: str) -> None:
    """A certificate was signed for an agent that is connected; it counts beside the present one until it is shown.

    Raises AgentRevoked for one that is not to come back.
    """
    written = await connection.fetchval(
        "UPDATE agents SET next_fingerprint = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING true",
        agent_id,
        fingerprint,
    )
    if not written:
        raise AgentRevoked(agent=agent_id)


async def revoke(connection: Connection, agent_id: AgentId, *, reason: str | None, now: datetime, cause: Cause) -> None:
    """No certificate of this agent counts from now on, whoever holds it. Said again, nothing changes. Raises AgentNotFound.

    Its lease ends too: it counts as lost at once, and nothing is placed there.
    """
    row: Mapping[str, object] | None = await connection.fetchrow(
        """
        UPDATE agents a SET revoked_at = coalesce(a.revoked_at, $2), next_fingerprint = NULL, former_fingerprint = NULL,
            former_until = NULL, lease_until = least(a.lease_until, $2)
        FROM (SELECT revoked_at FROM agents WHERE id = $1 FOR NO KEY UPDATE) before
        WHERE a.id = $1 RETURNING before.revoked_at IS NULL AS is_new
        """,
        agent_id,
        now,
    )
    if row is None:
        raise AgentNotFound(agent=agent_id)
    if row["is_new"]:
        data = {"agent": agent_id, "reason": reason}
        await emit(connection, "agent.revoked", now=now, cause=cause, data=data)
