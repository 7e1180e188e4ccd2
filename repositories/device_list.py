"""All devices of a fleet with who holds them, as administrators see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domain.ids import AgentId
from repositories.database import Connection


async def list_devices(connection: Connection, agent_id: AgentId | None) -> list[Mapping[str, Any]]:
    """Of one host, or of all; each with `holders`: who holds how much of it."""
    return list(
        await connection.fetch(
            """
            SELECT d.*, a.hostname, a.lost, r.reported, r.used,
                coalesce(h.holders, '[]') AS holders
            FROM devices d JOIN agents a ON a.id = d.agent_id
            LEFT JOIN resources r ON r.agent_id = d.agent_id AND r.name = d.name
            LEFT JOIN LATERAL (
                SELECT jsonb_agg(jsonb_build_object('session_id', s.id, 'session', s.name, 'owner', s.access_key,
                    'project', p.name, 'kernel_id', k.id, 'kernel', k.role || k.idx, 'held_mib', l.amount,
                    'whole', k.slots ? 'gpu',
                    'devices', (SELECT count(*) FROM allocations o WHERE o.kernel_id = k.id AND starts_with(o.name, 'gpu/')))
                    ORDER BY s.name, k.role, k.idx) AS holders
                FROM allocations l JOIN kernels k ON k.id = l.kernel_id JOIN sessions s ON s.id = k.session_id
                JOIN projects p ON p.id = s.project_id
                WHERE l.agent_id = d.agent_id AND l.name = d.name
            ) h ON true
            WHERE $1::text IS NULL OR d.agent_id = $1
            ORDER BY d.agent_id, (d.info ->> 'index')::bigint NULLS LAST, d.name
            """,
            agent_id,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What there is of a device when it is in and nobody has it."""

    agent_id: AgentId
    model: str
    offered_mib: int
    whole_only: bool


async def offers_of(connection: Connection, group: str) -> tuple[list[Offer], bool]:
    """Of all devices of a resource group, also those that are out and may come back; and whether the group shares them."""
    rows = await connection.fetch(
        """
        SELECT d.agent_id, d.model, d.offered_mib, coalesce(d.info -> 'whole_only' = 'true', false) AS whole_only
        FROM devices d JOIN agents a ON a.id = d.agent_id WHERE a.resource_group = $1 ORDER BY d.agent_id, d.name
        """,
        group,
    )
    shares = await connection.fetchval("SELECT gpu_sharing FROM resource_groups WHERE name = $1", group)
    return [Offer(**{**row, "agent_id": AgentId(row["agent_id"])}) for row in rows], bool(shares)
