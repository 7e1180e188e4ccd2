"""Resource groups: hosts that are shared by one policy, who may use them, and what they weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import AlreadyExists, ResourceGroupNotFound, StillInUse
from repositories.database import Connection
from repositories.tables import NOT_FINAL

#: $1 user, $2 names of projects, $3 domain: whether they may use the group `g`.
_ALLOWED: Final = """
    (g.open OR EXISTS (
        SELECT FROM resource_group_access x WHERE x.resource_group = g.name AND (
            (x.scope = 'user' AND x.scope_id = $1::uuid::text)
            OR (x.scope = 'domain' AND x.scope_id = $3)
            OR (x.scope = 'project' AND x.scope_id IN (
                SELECT p.id::text FROM projects p WHERE p.name = ANY($2::text[]) AND p.domain = $3)))))
"""
_GROUP: Final = f"""
    SELECT g.*, {_ALLOWED} AS allowed,
        (SELECT count(*) FROM agents a WHERE a.resource_group = g.name) AS agents,
        (SELECT count(*) FROM agents a WHERE a.resource_group = g.name AND a.schedulable AND NOT a.lost
            AND a.uid IS NOT NULL) AS agents_ready
    FROM resource_groups g
"""


_BY_NAME: Final = "ORDER BY g.name <> 'default', g.name COLLATE \"C\""


async def groups_for(
    connection: Connection, *, user_id: UUID, projects: Sequence[str], domain: str
) -> list[Mapping[str, Any]]:
    """All groups, the default one first, then by name; `allowed` says whether this user may use them in these projects."""
    return list(await connection.fetch(f"{_GROUP} {_BY_NAME}", user_id, list(projects), domain))


async def groups_with_room(
    connection: Connection, *, user_id: UUID, project: str, domain: str, architecture: str, cpu: int, mem: int
) -> list[Mapping[str, Any]]:
    """As `groups_for`; `roomy` says whether one host could hold so many millicpu and MiB, if it were empty.

    It looks no further than to the first such host: an EXISTS might be answered by reading all of them beforehand.
    """
    return list(
        await connection.fetch(
            f"""
            SELECT g.*, coalesce((
                SELECT true FROM agents a WHERE a.resource_group = g.name AND a.architecture = $4
                    AND (SELECT c.reported FROM resources c WHERE c.agent_id = a.id AND c.name = 'cpu') >= $5::bigint
                    AND (SELECT m.reported FROM resources m WHERE m.agent_id = a.id AND m.name = 'mem') >= $6::bigint
                LIMIT 1), false) AS roomy
            FROM ({_GROUP}) g {_BY_NAME}
            """,
            user_id,
            [project],
            domain,
            architecture,
            cpu,
            mem,
        )
    )


async def find_groups(
    connection: Connection, name: str | None = None, *, user_id: UUID, projects: Sequence[str], domain: str
) -> list[dict[str, Any]]:
    """All groups, or the one of this name, with who is in them, may use them and weighs how much."""
    rows = await connection.fetch(
        f"""
        SELECT o.*, coalesce(a.access, '[]') AS access, coalesce(w.weights, '[]') AS weights,
            coalesce(q.pending, 0) AS pending, coalesce(q.sessions, 0) AS sessions
        FROM ({_GROUP}) o
        LEFT JOIN LATERAL (
            SELECT jsonb_agg(jsonb_build_object('scope', x.scope, 'of', coalesce(u.email, p.name, x.scope_id))
                ORDER BY x.scope, coalesce(u.email, p.name, x.scope_id)) AS access
            FROM resource_group_access x LEFT JOIN users u ON x.scope = 'user' AND u.id::text = x.scope_id
            LEFT JOIN projects p ON x.scope = 'project' AND p.id::text = x.scope_id WHERE x.resource_group = o.name
        ) a ON true
        LEFT JOIN LATERAL (
            SELECT jsonb_agg(jsonb_build_object('user', u.email, 'weight', f.weight) ORDER BY u.email) AS weights
            FROM fair_shares f JOIN users u ON u.id = f.user_id WHERE f.resource_group = o.name
        ) w ON true
        LEFT JOIN LATERAL (
            SELECT count(*) FILTER (WHERE s.status = 'PENDING') AS pending,
                count(*) FILTER (WHERE s.status <> 'PENDING') AS sessions
            FROM sessions s WHERE s.resource_group = o.name AND s.{NOT_FINAL}
        ) q ON true
        WHERE $4::text IS NULL OR o.name = $4 ORDER BY o.name <> 'default', o.name COLLATE "C"
        """,
        user_id,
        list(projects),
        domain,
        name,
    )
    return [dict(row) for row in rows]


async def lock_group(connection: Connection, name: str) -> dict[str, Any]:
    """The row as it is, and stays until the transaction ends. Raises ResourceGroupNotFound."""
    row = await connection.fetchrow("SELECT * FROM resource_groups WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise ResourceGroupNotFound(f"There is no resource group '{name}'.", resource_group=name)
    return dict(row)


async def add_group(connection: Connection, name: str, fields: Mapping[str, Any], *, now: datetime) -> None:
    """Raises AlreadyExists."""
    columns = {"name": name, **fields, "created_at": now}
    numbered = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    made = await connection.fetchval(
        f"INSERT INTO resource_groups ({', '.join(columns)}) VALUES ({numbered}) ON CONFLICT DO NOTHING RETURNING name",
        *columns.values(),
    )
    if made is None:
        raise AlreadyExists(f"There is a resource group '{name}' already.", resource_group=name)


async def change_group(connection: Connection, name: str, fields: Mapping[str, Any]) -> None:
    """The caller has locked it."""
    for column, value in fields.items():
        await connection.execute(f"UPDATE resource_groups SET {column} = $2 WHERE name = $1", name, value)


async def remove_group(connection: Connection, name: str) -> None:
    """Sessions that have ended are of the default group from now on. Raises StillInUse. The caller has locked it."""
    agents = await connection.fetchval("SELECT count(*) FROM agents WHERE resource_group = $1", name)
    if agents:
        raise StillInUse(f"{agents} agents are in the resource group '{name}'; give them to another group first.")
    live = await connection.fetchval(f"SELECT count(*) FROM sessions WHERE resource_group = $1 AND {NOT_FINAL}", name)
    if live:
        raise StillInUse(f"{live} sessions of the resource group '{name}' have not ended; end them first.")
    await connection.execute("UPDATE sessions SET resource_group = 'default' WHERE resource_group = $1", name)
    await connection.execute("DELETE FROM resource_groups WHERE name = $1", name)


async def allow(connection: Connection, name: str, scope: str, scope_id: str) -> None:
    await connection.execute(
        "INSERT INTO resource_group_access (resource_group, scope, scope_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        name,
        scope,
        scope_id,
    )


async def deny(connection: Connection, name: str, scope: str, scope_id: str) -> bool:
    """False when it was not allowed."""
    return bool(
        await connection.fetchval(
            """
            DELETE FROM resource_group_access WHERE resource_group = $1 AND scope = $2 AND scope_id = $3 RETURNING true
            """,
            name,
            scope,
            scope_id,
        )
    )


async def set_weight(connection: Connection, name: str, user_id: UUID, weight: float | None) -> None:
    """None: the usual 1 again."""
    if weight is None:
        await connection.execute("DELETE FROM fair_shares WHERE resource_group = $1 AND user_id = $2", name, user_id)
        return
    await connection.execute(
        """
        INSERT INTO fair_shares (resource_group, user_id, weight) VALUES ($1, $2, $3)
        ON CONFLICT (resource_group, user_id) DO UPDATE SET weight = EXCLUDED.weight
        """,
        name,
        user_id,
        weight,
    )


async def is_weighted(connection: Connection, name: str) -> bool:
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM fair_shares WHERE resource_group = $1)", name))


async def emails(connection: Connection, users: Sequence[UUID]) -> dict[UUID, str]:
    rows = await connection.fetch("SELECT id, email FROM users WHERE id = ANY($1::uuid[])", list(users))
    return {row["id"]: row["email"] for row in rows}


async def is_domain(connection: Connection, name: str) -> bool:
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM domains WHERE name = $1)", name))
