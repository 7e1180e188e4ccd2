"""Users, projects and domains: who may ask, and how far that reaches. What they ask with is in `credentials`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import AlreadyExists, DomainNotFound, NotFound, ProjectNotFound, StillInUse, UserNotFound
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
              ORDER BY p.created_at, p.name) AS projects,
        ARRAY(SELECT p.name FROM project_members m JOIN projects p ON p.id = m.project_id
              WHERE m.user_id = u.id AND m.administers ORDER BY p.name) AS administers
    FROM users u
"""
_PROJECT: Final = """
    SELECT p.id, p.domain, p.name, p.created_at,
        ARRAY(SELECT u.email FROM project_members m JOIN users u ON u.id = m.user_id WHERE m.project_id = p.id
              ORDER BY u.email) AS members,
        ARRAY(SELECT u.email FROM project_members m JOIN users u ON u.id = m.user_id
              WHERE m.project_id = p.id AND m.administers ORDER BY u.email) AS admins
    FROM projects p
"""
_DOMAIN: Final = """
    SELECT d.name, d.active, d.created_at, (SELECT count(*) FROM users u WHERE u.domain = d.name) AS users,
        (SELECT count(*) FROM projects p WHERE p.domain = d.name) AS projects FROM domains d
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


async def principal_of_keypair(
    connection: Connection, access_key: str, now: datetime | None = None
) -> tuple[Principal, Sequence[bytes]] | None:
    """The active user behind an access key, with hashes of the secrets that prove it: after a rotation there may be two."""
    row = await connection.fetchrow(f"{_PRINCIPAL} k.access_key = $1", access_key)
    if row is None:
        return None
    until = row["previous_until"]
    both = until is not None and now is not None and until > now
    return _principal(row), (row["secret_hash"], row["previous_hash"]) if both else (row["secret_hash"],)


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
    """`domain` in a question: what is of another one is not there."""

    def __init__(self, connection: Connection, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause

    # -- users ---------------------------------------------------------------------------------------------------------
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

    async def user(self, email_or_id: str, *, domain: str | None = None) -> dict[str, Any]:
        user_id = as_uuid(email_or_id)
        row = await self._connection.fetchrow(
            f"{_USER} WHERE (u.id = $1 OR u.email = $2) AND ($3::text IS NULL OR u.domain = $3)",
            user_id,
            None if user_id else email_or_id,
            domain,
        )
        if row is None:
            raise UserNotFound(user=email_or_id)
        return dict(row)

    async def lock_user(self, user_id: UUID) -> dict[str, Any]:
        """As it is, and stays until this transaction ends."""
        await self._connection.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        return await self.user(str(user_id))

    async def users(self, *, limit: int, after: str | None, domain: str | None = None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            f"""
            {_USER} WHERE ($1::text IS NULL OR u.email > $1) AND ($3::text IS NULL OR u.domain = $3)
            ORDER BY u.email LIMIT $2
            """,
            after,
            limit,
            domain,
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

    # -- projects ------------------------------------------------------------------------------------------------------
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

    async def project(self, name: str, *, domain: str, member: UUID | None = None) -> dict[str, Any]:
        project_id = await self.project_id(name, domain=domain, member=member)
        row = await self._connection.fetchrow(f"{_PROJECT} WHERE p.id = $1", project_id)
        assert row is not None
        return dict(row)

    async def projects(self, *, domain: str | None, member: UUID | None = None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            f"""
            {_PROJECT} WHERE ($1::text IS NULL OR p.domain = $1)
            AND ($2::uuid IS NULL OR EXISTS (SELECT FROM project_members m WHERE m.project_id = p.id AND m.user_id = $2))
            ORDER BY p.domain, p.name
            """,
            domain,
            member,
        )
        return [dict(row) for row in rows]

    async def add_project(self, project_id: UUID, *, name: str, domain: str) -> None:
        if not await self._connection.fetchval("SELECT EXISTS (SELECT FROM domains WHERE name = $1)", domain):
            raise NotFound(f"There is no domain '{domain}'.")
        await self._connection.execute(
            "INSERT INTO projects (id, domain, name, created_at) VALUES ($1, $2, $3, $4)",
            project_id,
            domain,
            name,
            self._now,
        )

    async def join(self, project_id: UUID, users: Sequence[UUID]) -> None:
        await self._connection.execute(
            "INSERT INTO project_members (project_id, user_id) SELECT $1, unnest($2::uuid[]) ON CONFLICT DO NOTHING",
            project_id,
            users,
        )

    async def leave(self, project_id: UUID, users: Sequence[UUID], *, also_admins: bool) -> list[UUID]:
        """Who has left; administrators of the project stay unless `also_admins`."""
        rows = await self._connection.fetch(
            """
            DELETE FROM project_members WHERE project_id = $1 AND user_id = ANY($2) AND ($3 OR NOT administers)
            RETURNING user_id
            """,
            project_id,
            users,
            also_admins,
        )
        return [row["user_id"] for row in rows]

    async def appoint(self, project_id: UUID, users: Sequence[UUID], *, administers: bool) -> None:
        """Of its members; who is none becomes one when appointed."""
        if administers:
            await self.join(project_id, users)
        await self._connection.execute(
            "UPDATE project_members SET administers = $3 WHERE project_id = $1 AND user_id = ANY($2)",
            project_id,
            users,
            administers,
        )

    async def remove_project(self, project_id: UUID, name: str) -> None:
        """Raises StillInUse while sessions of it are on record."""
        if await self._connection.fetchval("SELECT EXISTS (SELECT FROM sessions WHERE project_id = $1)", project_id):
            raise StillInUse(f"Sessions of project '{name}' are still on record; it goes when they are forgotten.")
        await self._connection.execute("DELETE FROM projects WHERE id = $1", project_id)

    # -- domains -------------------------------------------------------------------------------------------------------
    async def domains(self) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._connection.fetch(f"{_DOMAIN} ORDER BY d.name")]

    async def domain(self, name: str) -> dict[str, Any]:
        row = await self._connection.fetchrow(f"{_DOMAIN} WHERE d.name = $1", name)
        if row is None:
            raise DomainNotFound(domain=name)
        return dict(row)

    async def add_domain(self, name: str, project_id: UUID) -> dict[str, Any]:
        """With the project that its users join. Raises AlreadyExists."""
        made = await self._connection.fetchval(
            "INSERT INTO domains (name, created_at) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
            name,
            self._now,
        )
        if not made:
            raise AlreadyExists(f"There is a domain '{name}' already.")
        await self.add_project(project_id, name="default", domain=name)
        return await self.domain(name)

    async def set_domain_active(self, name: str, active: bool) -> dict[str, Any]:
        await self._connection.execute("UPDATE domains SET active = $2 WHERE name = $1", name, active)
        return await self.domain(name)

    async def remove_domain(self, name: str) -> None:
        """With its projects, when nobody and nothing else is of it. Raises StillInUse."""
        await self._connection.execute("SELECT FROM domains WHERE name = $1 FOR UPDATE", name)
        found = await self.domain(name)
        if found["users"]:
            raise StillInUse(f"The domain '{name}' still has {found['users']} users; remove or disable them first.")
        used = await self._connection.fetchval(
            """
            SELECT CASE WHEN EXISTS (SELECT FROM sessions WHERE domain = $1) THEN 'sessions on record'
                WHEN EXISTS (SELECT FROM policies WHERE domain = $1) THEN 'policies'
                WHEN EXISTS (SELECT FROM session_templates WHERE domain = $1) THEN 'templates' END
            """,
            name,
        )
        if used is not None:
            raise StillInUse(f"The domain '{name}' still has {used}; remove them first, or disable the domain.")
        await self._connection.execute("DELETE FROM projects WHERE domain = $1", name)
        await self._connection.execute("DELETE FROM domains WHERE name = $1", name)
