"""Users, keypairs, tokens, projects, domains, quotas: who may ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import KeypairNotFound, NotFound, ProjectNotFound, StillInUse, UserNotFound
from domain.ids import AccessKey
from domain.names import as_uuid
from domain.principal import Credential, Principal, Role, TokenScope
from repositories.database import Connection
from repositories.transit import Cause

_PRINCIPAL: Final = """
    SELECT k.access_key, k.secret_hash, k.previous_hash, k.previous_until, k.requests_per_second,
        u.id AS user_id, u.domain, u.role, u.uid, u.gid,
        ARRAY(SELECT p.name FROM project_members m JOIN projects p ON p.id = m.project_id
              WHERE m.user_id = u.id AND p.domain = u.domain ORDER BY p.created_at, p.name) AS projects,
        ARRAY(SELECT p.name FROM project_members m JOIN projects p ON p.id = m.project_id
              WHERE m.user_id = u.id AND p.domain = u.domain AND m.administers) AS administers
    FROM keypairs k JOIN users u ON u.id = k.user_id JOIN domains d ON d.name = u.domain
    WHERE k.active AND u.active AND d.active AND
"""
_USER: Final = """
    SELECT u.id, u.email, u.username, u.domain, u.role, u.active, u.created_at, u.uid, u.gid,
        ARRAY(SELECT p.name FROM project_members m JOIN projects p ON p.id = m.project_id WHERE m.user_id = u.id
              ORDER BY p.created_at, p.name) AS projects
    FROM users u
"""


def _principal(row: Mapping[str, Any]) -> Principal:
    return Principal(
        user_id=row["user_id"],
        access_key=AccessKey(row["access_key"]),
        domain=row["domain"],
        role=Role(row["role"]),
        projects=tuple(row["projects"]),
        administers=frozenset(row["administers"]),
        requests_per_second=row["requests_per_second"],
        uid=row["uid"],
        gid=row["gid"],
    )


async def principal_of_keypair(connection: Connection, access_key: str) -> tuple[Principal, bytes] | None:
    """The active user behind an access key, with the hash of the secret that proves it."""
    row = await connection.fetchrow(f"{_PRINCIPAL} k.access_key = $1", access_key)
    return (_principal(row), row["secret_hash"]) if row else None


async def principal_of_token(connection: Connection, token_hash: bytes, now: datetime) -> Principal | None:
    """The active user of a token's keypair, as far as the token reaches."""
    row = await connection.fetchrow(
        f"""
        SELECT p.*, t.id AS token_id, t.scopes, t.kind FROM tokens t
        CROSS JOIN LATERAL ({_PRINCIPAL} k.access_key = t.access_key) p WHERE t.token_hash = $1 AND t.expires_at > $2
        """,
        token_hash,
        now,
    )
    if row is None:
        return None
    return replace(
        _principal(row),
        credential=Credential(row["kind"]),
        scopes=frozenset(map(TokenScope, row["scopes"])),
        token_id=row["token_id"],
    )


class IdentityRepository:
    def __init__(self, connection: Connection, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause

    async def add_user(self, user_id: UUID, *, email: str, username: str, domain: str, role: Role) -> dict[str, Any]:
        """Raises AlreadyExists for a known e-mail address. The user joins the domain's default project."""
        if not await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM domains WHERE name = $1 AND active)", domain
        ):
            raise NotFound(f"There is no domain '{domain}'.")
        await self._connection.execute(
            "INSERT INTO users (id, email, username, domain, role, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
            user_id,
            email,
            username,
            domain,
            role,
            self._now,
        )
        await self._connection.execute(
            "INSERT INTO project_members (project_id, user_id) SELECT id, $1 FROM projects WHERE domain = $2 AND name = 'default'",
            user_id,
            domain,
        )
        return await self.user(str(user_id))

    async def user(self, email_or_id: str) -> dict[str, Any]:
        user_id = as_uuid(email_or_id)
        row = await self._connection.fetchrow(
            f"{_USER} WHERE u.id = $1 OR u.email = $2", user_id, None if user_id else email_or_id
        )
        if row is None:
            raise UserNotFound(user=email_or_id)
        return dict(row)

    async def users(self, *, limit: int, after: str | None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            f"{_USER} WHERE $1::text IS NULL OR u.email > $1 ORDER BY u.email LIMIT $2", after, limit
        )
        return [dict(row) for row in rows]

    async def edit_user(self, user_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` may hold username, role, active, uid, gid."""
        await self._connection.execute(
            """
            UPDATE users SET username = coalesce($2, username), role = coalesce($3, role), active = coalesce($4, active),
                uid = coalesce($5, uid), gid = coalesce($6, gid)
            WHERE id = $1
            """,
            user_id,
            changes.get("username"),
            changes.get("role"),
            changes.get("active"),
            changes.get("uid"),
            changes.get("gid"),
        )
        return await self.user(str(user_id))

    async def remove_user(self, user_id: UUID) -> None:
        """Raises StillInUse while there are sessions of this user, ended ones that are still kept included."""
        if await self._connection.fetchval("SELECT EXISTS (SELECT FROM sessions WHERE user_id = $1)", user_id):
            raise StillInUse("The user still has sessions on record; deactivate the user instead (--inactive).")
        if await self._connection.fetchval("SELECT EXISTS (SELECT FROM volumes WHERE user_id = $1)", user_id):
            raise StillInUse("The user still has volumes; remove or clone them first, or deactivate the user.")
        await self._connection.execute("DELETE FROM users WHERE id = $1", user_id)

    async def add_keypair(self, access_key: AccessKey, secret_hash: bytes, user_id: UUID) -> dict[str, Any]:
        await self._connection.execute(
            "INSERT INTO keypairs (access_key, secret_hash, user_id, created_at) VALUES ($1, $2, $3, $4)",
            access_key,
            secret_hash,
            user_id,
            self._now,
        )
        return await self.keypair(access_key)

    async def keypair(self, access_key: str) -> dict[str, Any]:
        rows = await self.keypairs(access_key=access_key)
        if not rows:
            raise KeypairNotFound(access_key=access_key)
        return rows[0]

    async def keypairs(self, *, user_id: UUID | None = None, access_key: str | None = None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            """
            SELECT k.access_key, u.email AS user, k.active, k.created_at FROM keypairs k JOIN users u ON u.id = k.user_id
            WHERE ($1::uuid IS NULL OR u.id = $1) AND ($2::text IS NULL OR k.access_key = $2) ORDER BY k.created_at, k.access_key
            """,
            user_id,
            access_key,
        )
        return [dict(row) for row in rows]

    async def set_keypair_active(self, access_key: str, active: bool) -> dict[str, Any]:
        await self._connection.execute("UPDATE keypairs SET active = $2 WHERE access_key = $1", access_key, active)
        return await self.keypair(access_key)

    async def remove_keypair(self, access_key: str) -> None:
        if not await self._connection.fetchval("DELETE FROM keypairs WHERE access_key = $1 RETURNING true", access_key):
            raise KeypairNotFound(access_key=access_key)

    async def project_id(self, name: str, *, domain: str, member: UUID | None) -> UUID:
        """Raises ProjectNotFound when there is none, or `member` is not one of it."""
        found: UUID | None = await self._connection.fetchval(
            """
            SELECT p.id FROM projects p WHERE p.name = $1 AND p.domain = $2
            AND ($3::uuid IS NULL OR EXISTS (SELECT FROM project_members m WHERE m.project_id = p.id AND m.user_id = $3))
            """,
            name,
            domain,
            member,
        )
        if found is None:
            raise ProjectNotFound(project=name)
        return found

    async def add_project(self, project_id: UUID, *, name: str, domain: str, members: Sequence[str]) -> dict[str, Any]:
        if not await self._connection.fetchval("SELECT EXISTS (SELECT FROM domains WHERE name = $1)", domain):
            raise NotFound(f"There is no domain '{domain}'.")
        await self._connection.execute(
            "INSERT INTO projects (id, domain, name, created_at) VALUES ($1, $2, $3, $4)",
            project_id,
            domain,
            name,
            self._now,
        )
        return await self.edit_project(name, domain=domain, add=members, remove=())

    async def edit_project(
        self, name: str, *, domain: str, add: Sequence[str], remove: Sequence[str]
    ) -> dict[str, Any]:
        project_id = await self.project_id(name, domain=domain, member=None)
        joining = [(await self.user(user))["id"] for user in add]
        leaving = [(await self.user(user))["id"] for user in remove]
        await self._connection.execute(
            "INSERT INTO project_members (project_id, user_id) SELECT $1, unnest($2::uuid[]) ON CONFLICT DO NOTHING",
            project_id,
            joining,
        )
        await self._connection.execute(
            "DELETE FROM project_members WHERE project_id = $1 AND user_id = ANY($2)", project_id, leaving
        )
        return next(p for p in await self.projects(domain=domain) if p["id"] == project_id)

    async def projects(self, *, domain: str | None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            """
            SELECT p.id, p.domain, p.name, p.created_at,
                ARRAY(SELECT u.email FROM project_members m JOIN users u ON u.id = m.user_id WHERE m.project_id = p.id
                      ORDER BY u.email) AS members
            FROM projects p WHERE $1::text IS NULL OR p.domain = $1 ORDER BY p.domain, p.name
            """,
            domain,
        )
        return [dict(row) for row in rows]

    async def remove_project(self, name: str, *, domain: str) -> None:
        """Raises StillInUse while sessions of it are on record."""
        project_id = await self.project_id(name, domain=domain, member=None)
        if await self._connection.fetchval("SELECT EXISTS (SELECT FROM sessions WHERE project_id = $1)", project_id):
            raise StillInUse(f"Sessions of project '{name}' are still on record; it goes when they are forgotten.")
        await self._connection.execute("DELETE FROM projects WHERE id = $1", project_id)

    async def add_token(
        self, token_id: UUID, *, token_hash: bytes, access_key: AccessKey, name: str, expires_at: datetime
    ) -> None:
        await self._connection.execute(
            "INSERT INTO tokens (id, token_hash, access_key, name, expires_at, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
            token_id,
            token_hash,
            access_key,
            name,
            expires_at,
            self._now,
        )

    async def tokens(self, user_id: UUID) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            """
            SELECT t.id, t.name, t.access_key, t.expires_at, t.created_at FROM tokens t JOIN keypairs k USING (access_key)
            WHERE k.user_id = $1 ORDER BY t.created_at
            """,
            user_id,
        )
        return [dict(row) for row in rows]

    async def remove_token(self, token_id: UUID, *, user_id: UUID | None) -> bool:
        return bool(
            await self._connection.fetchval(
                """
                DELETE FROM tokens t USING keypairs k WHERE t.id = $1 AND k.access_key = t.access_key
                AND ($2::uuid IS NULL OR k.user_id = $2) RETURNING true
                """,
                token_id,
                user_id,
            )
        )
