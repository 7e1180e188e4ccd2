"""Public keys that open the SSH gateway, and whether what they opened may stay open."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import SshKeyNotFound, TooManySshKeys
from domain.ids import AccessKey
from domain.principal import Principal
from domain.session import FINAL, Status
from domain.ssh import PublicKey
from repositories.database import Connection
from repositories.identity import principal_of_keypair

MOST_KEYS: Final = 100
_COLUMNS: Final = "s.id, s.name, s.access_key, s.public_key, s.fingerprint, s.created_at"


class SshKeyRepository:
    """One user's."""

    def __init__(self, connection: Connection, user_id: UUID, *, now: datetime) -> None:
        self._connection = connection
        self._user_id = user_id
        self._now = now

    async def add(self, key_id: UUID, *, access_key: AccessKey, name: str, key: PublicKey) -> dict[str, Any]:
        """Raises SshKeyTaken: a key says whose sessions it opens, so it is one user's."""
        await self._connection.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", self._user_id)
        if len(await self.all()) >= MOST_KEYS:
            raise TooManySshKeys
        await self._connection.execute(
            """
            INSERT INTO ssh_keys (id, access_key, name, public_key, fingerprint, created_at)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            key_id,
            access_key,
            name,
            key.line,
            key.fingerprint,
            self._now,
        )
        return await self.get(str(key_id))

    async def all(self) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM ssh_keys s JOIN keypairs k USING (access_key) WHERE k.user_id = $1 ORDER BY s.created_at, s.id",
            self._user_id,
        )
        return [dict(row) for row in rows]

    async def get(self, name: str) -> dict[str, Any]:
        """By id, fingerprint or name. Raises SshKeyNotFound."""
        keys = await self.all()
        for column in ("id", "fingerprint", "name"):
            found = [key for key in keys if str(key[column]) == name]
            if len(found) == 1:
                return found[0]
            if found:
                raise SshKeyNotFound(f"{len(found)} keys are called '{name[:80]}'; name the one by its id.")
        raise SshKeyNotFound

    async def remove(self, key_id: UUID) -> None:
        await self._connection.execute("DELETE FROM ssh_keys WHERE id = $1", key_id)


async def principal_of_ssh_key(connection: Connection, fingerprint: str) -> Principal | None:
    """The active user who has registered this key."""
    access_key = await connection.fetchval("SELECT access_key FROM ssh_keys WHERE fingerprint = $1", fingerprint)
    found = await principal_of_keypair(connection, access_key) if access_key else None
    return found[0] if found else None


async def token_is_good(connection: Connection, token_id: UUID, *, now: datetime) -> bool:
    return bool(
        await connection.fetchval("SELECT EXISTS (SELECT FROM tokens WHERE id = $1 AND expires_at > $2)", token_id, now)
    )


async def no_longer_good(
    connection: Connection, logins: Sequence[tuple[str, str | None, UUID | None, UUID]], *, now: datetime
) -> Sequence[tuple[int, str]]:
    """Of (access key, fingerprint, token, session): which may not stay open, and why. No fingerprint: it came by
    certificate, perhaps one that was asked for with a token."""
    rows = await connection.fetch(
        """
        SELECT l.place, k.access_key IS NOT NULL AS active, s.id IS NOT NULL AS lives
        FROM unnest($1::text[], $2::text[], $3::uuid[], $5::uuid[]) WITH ORDINALITY
            AS l (access_key, fingerprint, session_id, token_id, place)
        LEFT JOIN sessions s ON s.id = l.session_id AND s.status <> ALL($4)
        LEFT JOIN (keypairs k JOIN users u ON u.id = k.user_id AND u.active AND k.active
                   JOIN domains d ON d.name = u.domain AND d.active)
            ON k.access_key = l.access_key AND (l.fingerprint IS NULL OR EXISTS
               (SELECT FROM ssh_keys WHERE fingerprint = l.fingerprint AND access_key = l.access_key))
            AND (l.token_id IS NULL OR EXISTS (SELECT FROM tokens t WHERE t.id = l.token_id AND t.expires_at > $6))
            -- as actions.base.owner_or_admin has it
            AND u.role <> 'monitor' AND (s.id IS NULL OR u.role = 'superadmin' OR (s.user_id = u.id AND EXISTS (
                    SELECT FROM project_members m WHERE m.project_id = s.project_id AND m.user_id = u.id))
                OR (u.role = 'domain_admin' AND u.domain = s.domain))
        WHERE k.access_key IS NULL OR s.id IS NULL
        """,
        [access_key for access_key, _, _, _ in logins],
        [fingerprint for _, fingerprint, _, _ in logins],
        [session_id for _, _, _, session_id in logins],
        [str(status) for status in (*FINAL, Status.TERMINATING)],
        [token_id for _, _, token_id, _ in logins],
        now,
    )
    return [
        (row["place"] - 1, "the session has ended" if row["active"] else "your access has been revoked") for row in rows
    ]
