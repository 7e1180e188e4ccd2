"""Policies: named sets of limits, and who has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from domain.errors import (
    AlreadyExists,
    DomainNotFound,
    KeypairNotFound,
    PolicyInUse,
    PolicyNotFound,
    ProjectNotFound,
)
from domain.limits import Wanted
from repositories.credentials import CredentialRepository
from repositories.database import Connection
from repositories.identity import IdentityRepository
from repositories.limits import LimitRepository, Scope, columns

#: Of what a limit binds.
_DOMAIN_OF: Final = """(CASE a.scope WHEN 'domain' THEN a.scope_id
    WHEN 'project' THEN (SELECT o.domain FROM projects o WHERE o.id::text = a.scope_id)
    WHEN 'user' THEN (SELECT u.domain FROM users u WHERE u.id::text = a.scope_id)
    ELSE (SELECT u.domain FROM keypairs k JOIN users u ON u.id = k.user_id WHERE k.access_key = a.scope_id) END)"""
_POLICIES: Final = f"""
    SELECT p.name, p.description, p.created_at, p.domain,
        coalesce((SELECT jsonb_agg(jsonb_build_object('name', l.name, 'max', l.max_amount, 'waits', l.waits)
                    ORDER BY l.name) FROM policy_limits l WHERE l.policy = p.name), '[]') AS limits,
        coalesce((SELECT jsonb_agg(jsonb_build_object('scope', a.scope, 'of', quota_owner(a.scope, a.scope_id))
                    ORDER BY position(a.scope IN 'keypair user project domain'), quota_owner(a.scope, a.scope_id))
                  FROM policy_assignments a
                  WHERE a.policy = p.name AND ($1::text IS NULL OR $1 = {_DOMAIN_OF})), '[]') AS assigned
    FROM policies p WHERE ($1::text IS NULL OR p.domain IS NULL OR p.domain = $1)
"""


class PolicyRepository(LimitRepository):
    def __init__(
        self,
        connection: Connection,
        identity: IdentityRepository,
        credentials: CredentialRepository,
        *,
        now: datetime,
    ) -> None:
        super().__init__(connection)
        self._identity = identity
        self._credentials = credentials
        self._now = now

    async def scope(self, scope: str, of: str, *, domain: str, within: str | None = None) -> Scope:
        """Whom an administrator means, `within` a domain. Raises UserNotFound, ProjectNotFound, KeypairNotFound, NotFound."""
        match scope:
            case "user":
                return scope, str((await self._identity.user(of, domain=within))["id"])
            case "project":
                name, _, home = of.partition("@")
                if within is not None and home not in ("", within):
                    raise ProjectNotFound(project=name)
                return scope, str(await self._identity.project_id(name, domain=home or domain, member=None))
            case "keypair":
                keypair = await self._credentials.keypair(of)
                if within not in (None, keypair["domain"]):
                    raise KeypairNotFound(access_key=of)
                return scope, str(keypair["access_key"])
            case _:
                if within not in (None, of):
                    raise DomainNotFound(domain=of)
                return scope, str((await self._identity.domain(of))["name"])

    async def policies(self, *, domain: str | None = None) -> list[dict[str, Any]]:
        """All; or the installation's and a domain's, with those of that domain who have them."""
        return [dict(row) for row in await self._connection.fetch(f"{_POLICIES} ORDER BY p.name", domain)]

    async def policy(self, name: str, *, domain: str | None = None) -> dict[str, Any]:
        row = await self._connection.fetchrow(f"{_POLICIES} AND p.name = $2", domain, name)
        if row is None:
            raise PolicyNotFound(policy=name)
        return dict(row)

    async def add(self, name: str, description: str, limits: Sequence[Wanted], *, domain: str | None) -> None:
        made = await self._connection.fetchval(
            """
            INSERT INTO policies (name, description, created_at, domain) VALUES ($1, $2, $3, $4)
            ON CONFLICT DO NOTHING RETURNING true
            """,
            name,
            description,
            self._now,
            domain,
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
