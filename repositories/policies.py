"""Policies: named sets of limits, and who has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from domain.errors import AlreadyExists, NotFound, PolicyInUse, PolicyNotFound
from domain.limits import Wanted
from repositories.database import Connection
from repositories.identity import IdentityRepository
from repositories.limits import LimitRepository, Scope, columns

_POLICIES: Final = """
    SELECT p.name, p.description, p.created_at,
        coalesce((SELECT jsonb_agg(jsonb_build_object('name', l.name, 'max', l.max_amount, 'waits', l.waits)
                    ORDER BY l.name) FROM policy_limits l WHERE l.policy = p.name), '[]') AS limits,
        coalesce((SELECT jsonb_agg(jsonb_build_object('scope', a.scope, 'of', quota_owner(a.scope, a.scope_id))
                    ORDER BY position(a.scope IN 'keypair user project domain'), quota_owner(a.scope, a.scope_id))
                  FROM policy_assignments a WHERE a.policy = p.name), '[]') AS assigned
    FROM policies p
"""


class PolicyRepository(LimitRepository):
    def __init__(self, connection: Connection, identity: IdentityRepository, *, now: datetime) -> None:
        super().__init__(connection)
        self._identity = identity
        self._now = now

    async def scope(self, scope: str, of: str, *, domain: str) -> Scope:
        """Whom an administrator means. Raises UserNotFound, ProjectNotFound, KeypairNotFound, NotFound."""
        match scope:
            case "user":
                return scope, str((await self._identity.user(of))["id"])
            case "project":
                name, _, home = of.partition("@")
                return scope, str(await self._identity.project_id(name, domain=home or domain, member=None))
            case "keypair":
                return scope, str((await self._identity.keypair(of))["access_key"])
            case _:
                if not await self._connection.fetchval("SELECT EXISTS (SELECT FROM domains WHERE name = $1)", of):
                    raise NotFound(f"There is no domain '{of}'.")
                return scope, of

    async def policies(self) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._connection.fetch(f"{_POLICIES} ORDER BY p.name")]

    async def policy(self, name: str) -> dict[str, Any]:
        row = await self._connection.fetchrow(f"{_POLICIES} WHERE p.name = $1", name)
        if row is None:
            raise PolicyNotFound(policy=name)
        return dict(row)

    async def add(self, name: str, description: str, limits: Sequence[Wanted]) -> None:
        made = await self._connection.fetchval(
            "INSERT INTO policies (name, description, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
            name,
            description,
            self._now,
        )
        if not made:
            raise AlreadyExists(f"There is a policy '{name}' already; change it with 'moorage admin policy modify'.")
        await self._add_limits(name, limits)

    async def _add_limits(self, name: str, limits: Sequence[Wanted]) -> None:
        await self._connection.execute(
            """
            INSERT INTO policy_limits (policy, name, max_amount, waits)
            SELECT $1, w.* FROM unnest($2::text[], $3::bigint[], $4::boolean[]) AS w(name, max_amount, waits)
            ON CONFLICT (policy, name) DO UPDATE SET max_amount = excluded.max_amount, waits = excluded.waits
            """,
            name,
            *columns(limits),
        )

    async def lock(self, name: str) -> dict[str, Any]:
        """Nobody else changes or assigns it before this transaction ends. Raises PolicyNotFound."""
        await self._connection.execute("SELECT FROM policies WHERE name = $1 FOR NO KEY UPDATE", name)
        return await self.policy(name)

    async def change(
        self, name: str, description: str | None, limits: Sequence[Wanted], lifted: Collection[str]
    ) -> None:
        """Everybody who has it is bound by what it says now. The caller holds its lock."""
        await self.alone()
        if description is not None:
            await self._connection.execute("UPDATE policies SET description = $2 WHERE name = $1", name, description)
        await self._connection.execute(
            "DELETE FROM policy_limits WHERE policy = $1 AND name = ANY($2::text[])", name, list(lifted)
        )
        await self._add_limits(name, limits)
        rows = await self._connection.fetch("SELECT scope, scope_id FROM policy_assignments WHERE policy = $1", name)
        await self.follow([(row["scope"], row["scope_id"]) for row in rows])

    async def remove(self, name: str) -> None:
        policy = await self.lock(name)
        if policy["assigned"]:
            raise PolicyInUse(
                f"The policy '{name}' is assigned to {_listed(policy['assigned'])}; unassign it first.", policy=name
            )
        await self._connection.execute("DELETE FROM policies WHERE name = $1", name)

    async def assign(self, name: str, scope: Scope) -> None:
        """Instead of the one that it had. The caller holds the policy's lock."""
        await self.alone()
        await self._connection.execute(
            """
            INSERT INTO policy_assignments (scope, scope_id, policy) VALUES ($1, $2, $3)
            ON CONFLICT (scope, scope_id) DO UPDATE SET policy = excluded.policy
            """,
            *scope,
            name,
        )
        await self.follow([scope])

    async def unassign(self, scope: Scope, name: str | None) -> bool:
        """Its own limits stay. False when it has no policy, or another one than `name`."""
        await self.alone()
        found = await self._connection.fetchval(
            """
            DELETE FROM policy_assignments WHERE scope = $1 AND scope_id = $2 AND ($3::text IS NULL OR policy = $3)
            RETURNING true
            """,
            *scope,
            name,
        )
        await self.follow([scope])
        return bool(found)


def _listed(assigned: Sequence[Mapping[str, str]]) -> str:
    some = ", ".join(f"{one['scope']} {one['of']}" for one in assigned[:3])
    return some if len(assigned) <= 3 else f"{some} and {len(assigned) - 3} more"
