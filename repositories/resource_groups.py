"""Resource groups: hosts that are shared by one policy, who may use them, and what they weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from repositories.database import Connection

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


async def groups_for(
    connection: Connection, *, user_id: UUID, projects: Sequence[str], domain: str
) -> list[Mapping[str, Any]]:
    """All groups, the default one first, then by name; `allowed` says whether this user may use them in these projects."""
    return list(
        await connection.fetch(
            f"{_GROUP} ORDER BY g.name <> 'default', g.name COLLATE \"C\"", user_id, list(projects), domain
        )
    )
