"""Credentials for registries: sealed passwords, which are never told again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from domain.errors import RegistryNotFound
from repositories.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Who logs in to a registry; `owner_id` None: for everybody's images."""

    id: UUID
    host: str
    owner_id: UUID | None
    username: str
    sealed: bytes
    created_at: datetime
    changed_at: datetime


_COLUMNS: Final = "id, host, owner_id, username, sealed, created_at, changed_at"


class RegistryRepository:
    def __init__(self, connection: Connection, *, now: datetime) -> None:
        self._connection = connection
        self._now = now

    async def set(
        self, registry_id: UUID, *, host: str, owner_id: UUID | None, username: str, sealed: bytes
    ) -> Registry:
        """New credentials, in place of those that are there."""
        arbiter = "(host) WHERE owner_id IS NULL" if owner_id is None else "(host, owner_id) WHERE owner_id IS NOT NULL"
        row = await self._connection.fetchrow(
            f"""
            INSERT INTO registries (id, host, owner_id, username, sealed, created_at, changed_at)
            VALUES ($1, $2, $3, $4, $5, $6, $6)
            ON CONFLICT {arbiter} DO UPDATE SET username = excluded.username, sealed = excluded.sealed,
                changed_at = excluded.changed_at
            RETURNING {_COLUMNS}
            """,
            registry_id,
            host,
            owner_id,
            username,
            sealed,
            self._now,
        )
        assert row is not None
        return Registry(**dict(row))

    async def all(self, owner_id: UUID | None) -> list[Registry]:
        """A user's own, and those for everybody."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM registries WHERE owner_id IS NULL OR owner_id = $1 ORDER BY host, owner_id",
            owner_id,
        )
        return [Registry(**dict(row)) for row in rows]

    async def remove(self, host: str, owner_id: UUID | None) -> None:
        """Raises RegistryNotFound."""
        gone = await self._connection.fetchval(
            "DELETE FROM registries WHERE host = $1 AND owner_id IS NOT DISTINCT FROM $2 RETURNING true", host, owner_id
        )
        if not gone:
            raise RegistryNotFound(
                f"No credentials for the registry '{host}' are kept here; 'moorage registry ls' lists what there is."
            )

    async def of(self, host: str, owner_id: UUID | None) -> Registry | None:
        """With which credentials a user's images are fetched and pushed: their own first."""
        row = await self._connection.fetchrow(
            f"""
            SELECT {_COLUMNS} FROM registries WHERE host = $1 AND (owner_id IS NULL OR owner_id = $2)
            ORDER BY owner_id IS NULL LIMIT 1
            """,
            host,
            owner_id,
        )
        return None if row is None else Registry(**dict(row))


async def owner_of_kernel(connection: Connection, kernel_id: UUID, agent_id: str, image: str) -> UUID | None:
    """Whose kernel it is, when it is meant to run there with that image; else nobody's."""
    owner: UUID | None = await connection.fetchval(
        """
        SELECT s.user_id FROM kernels k JOIN sessions s ON s.id = k.session_id
        WHERE k.id = $1 AND k.agent_id = $2 AND k.want = 'RUN' AND k.spec ->> 'image' = $3
        """,
        kernel_id,
        agent_id,
        image,
    )
    return owner
