"""Keypairs, tokens, passwords, and what wrong passwords cost: what people prove themselves with. Secrets are hashes here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from domain.errors import KeypairNotFound, NotFound
from domain.ids import AccessKey
from domain.principal import TokenScope
from repositories.database import Connection

_KEYPAIR: Final = """
    SELECT k.access_key, u.email AS user, k.active, k.created_at, k.requests_per_second, k.rotated_at,
        k.signing_since, CASE WHEN k.previous_until > $1 THEN k.previous_until END AS previous_until,
        u.id AS user_id, u.domain, u.role
    FROM keypairs k JOIN users u ON u.id = k.user_id
"""
_HELD: Final = """
    SELECT t.id, t.name, t.access_key, u.email AS user, t.kind, t.scopes, t.expires_at, t.created_at,
        u.id AS user_id, u.domain, u.role
    FROM tokens t JOIN keypairs k USING (access_key) JOIN users u ON u.id = k.user_id
"""


class CredentialRepository:
    """Rows carry user_id, domain and role of their owner: whoever asks is judged by these."""

    def __init__(self, connection: Connection, *, now: datetime) -> None:
        self._connection = connection
        self._now = now

    # -- keypairs ------------------------------------------------------------------------------------------------------
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
        row = await self._connection.fetchrow(f"{_KEYPAIR} WHERE k.access_key = $2", self._now, access_key)
        if row is None:
            raise KeypairNotFound(access_key=access_key)
        return dict(row)

    async def keypairs(self, *, user_id: UUID | None = None, domain: str | None = None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            f"""
            {_KEYPAIR} WHERE ($2::uuid IS NULL OR u.id = $2) AND ($3::text IS NULL OR u.domain = $3)
            ORDER BY k.created_at, k.access_key
            """,
            self._now,
            user_id,
            domain,
        )
        return [dict(row) for row in rows]

    async def edit_keypair(
        self, access_key: str, *, active: bool | None, requests_per_second: float | None
    ) -> dict[str, Any]:
        """None: as it is; no requests per second at all (0): as many as it likes."""
        await self._connection.execute(
            """
            UPDATE keypairs SET active = coalesce($2, active),
                requests_per_second = CASE WHEN $3::double precision IS NULL THEN requests_per_second ELSE nullif($3, 0) END
            WHERE access_key = $1
            """,
            access_key,
            active,
            requests_per_second,
        )
        return await self.keypair(access_key)

    async def rotate_keypair(self, access_key: str, secret_hash: bytes, *, grace_seconds: float) -> dict[str, Any]:
        """The secret that was good stays so for a while, and the one before it no longer."""
        await self._connection.execute(
            """
            UPDATE keypairs SET rotated_at = $3, secret_hash = $2,
                previous_hash = CASE WHEN $4::double precision > 0 THEN secret_hash END,
                previous_until = CASE WHEN $4 > 0 THEN $3::timestamptz + make_interval(secs => $4) END
            WHERE access_key = $1
            """,
            access_key,
            secret_hash,
            self._now,
            grace_seconds,
        )
        return await self.keypair(access_key)

    async def set_signing(self, access_key: str, sealed: bytes | None) -> dict[str, Any]:
        """None: it signs no requests."""
        await self._connection.execute(
            """
            UPDATE keypairs SET signing_sealed = $2, signing_since = CASE WHEN $2::bytea IS NOT NULL THEN $3::timestamptz END
            WHERE access_key = $1
            """,
            access_key,
            sealed,
            self._now,
        )
        return await self.keypair(access_key)

    async def remove_keypair(self, access_key: str) -> None:
        await self._connection.execute("DELETE FROM keypairs WHERE access_key = $1", access_key)

    # -- tokens --------------------------------------------------------------------------------------------------------
    async def add_token(
        self,
        token_id: UUID,
        *,
        token_hash: bytes,
        access_key: AccessKey,
        name: str,
        expires_at: datetime,
        scopes: Collection[TokenScope],
        kind: str = "token",
    ) -> dict[str, Any]:
        await self._connection.execute(
            """
            INSERT INTO tokens (id, token_hash, access_key, name, expires_at, created_at, scopes, kind)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            token_id,
            token_hash,
            access_key,
            name,
            expires_at,
            self._now,
            sorted(scopes),
            kind,
        )
        return await self.token(token_id)

    async def token(self, token_id: UUID) -> dict[str, Any]:
        row = await self._connection.fetchrow(f"{_HELD} WHERE t.id = $1", token_id)
        if row is None:
            raise NotFound("There is no such token, or it is not yours.")
        return dict(row)

    async def tokens(self, *, user_id: UUID | None, domain: str | None = None) -> list[dict[str, Any]]:
        rows = await self._connection.fetch(
            f"""
            {_HELD} WHERE ($1::uuid IS NULL OR u.id = $1) AND ($2::text IS NULL OR u.domain = $2)
            ORDER BY t.created_at, t.id
            """,
            user_id,
            domain,
        )
        return [dict(row) for row in rows]

    async def remove_token(self, token_id: UUID) -> None:
        await self._connection.execute("DELETE FROM tokens WHERE id = $1", token_id)

    async def remove_sign_ins(self, user_id: UUID) -> None:
        """Whoever has signed in as this user signs in again."""
        await self._connection.execute(
            "DELETE FROM tokens t USING keypairs k WHERE k.access_key = t.access_key AND k.user_id = $1 AND t.kind = 'sign_in'",
            user_id,
        )

    # -- passwords -----------------------------------------------------------------------------------------------------
    async def password(self, user_id: UUID) -> str | None:
        found: str | None = await self._connection.fetchval("SELECT hash FROM passwords WHERE user_id = $1", user_id)
        return found

    async def set_password(self, user_id: UUID, password_hash: str | None) -> None:
        if password_hash is None:
            await self._connection.execute("DELETE FROM passwords WHERE user_id = $1", user_id)
            return
        await self._connection.execute(
            """
            INSERT INTO passwords (user_id, hash, set_at) VALUES ($1, $2, $3)
            ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, set_at = excluded.set_at
            """,
            user_id,
            password_hash,
            self._now,
        )


async def keypair_to_sign_in(connection: Connection, email: str) -> tuple[UUID, str | None, str | None] | None:
    """Of an account that is open: its user, the hash of its password, and the keypair that a token will stand for.

    Without a keypair, because all of them are disabled, nobody signs in. Somebody who never had one is given one.
    """
    row = await connection.fetchrow(
        """
        SELECT u.id, p.hash, (SELECT k.access_key FROM keypairs k WHERE k.user_id = u.id AND k.active
                              ORDER BY k.created_at, k.access_key LIMIT 1) AS access_key
        FROM users u JOIN domains d ON d.name = u.domain AND d.active LEFT JOIN passwords p ON p.user_id = u.id
        WHERE lower(u.email) = lower($1) AND u.active ORDER BY u.email = $1 DESC LIMIT 1
        """,
        email,
    )
    return None if row is None else (row["id"], row["hash"], row["access_key"])


async def charge(
    connection: Connection, debts: Sequence[tuple[bytes, timedelta, int]], *, now: datetime
) -> tuple[bytes, datetime] | None:
    """One more attempt of each of (key, what one costs, how many may be open): None when all could be charged, else the
    key that could not, and when it can be again. Charged before the attempt, so that any number at once cost what they would in turn."""
    for key, price, most in debts:
        charged = await connection.fetchval(
            """
            INSERT INTO sign_in_debts AS d (key, until_at) VALUES ($1, $2::timestamptz + $3::interval)
            ON CONFLICT (key) DO UPDATE SET until_at = greatest(d.until_at, $2) + $3::interval
            WHERE d.until_at <= $2::timestamptz + $3::interval * ($4::int - 1) RETURNING true
            """,
            key,
            now,
            price,
            most,
        )
        if not charged:
            until = await connection.fetchval("SELECT until_at FROM sign_in_debts WHERE key = $1", key)
            return key, (until or now) - price * (most - 1)
    return None


async def refund(connection: Connection, keys: Sequence[tuple[bytes, timedelta]]) -> None:
    """It was right: nothing is owed for it."""
    await connection.executemany("UPDATE sign_in_debts SET until_at = until_at - $2::interval WHERE key = $1", keys)


async def add_first_keypair(
    connection: Connection, access_key: AccessKey, secret_hash: bytes, user_id: UUID, *, now: datetime
) -> AccessKey | None:
    """None when there are, or were, others: those who disabled them meant it."""
    made: str | None = await connection.fetchval(
        """
        INSERT INTO keypairs (access_key, secret_hash, user_id, created_at)
        SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM keypairs WHERE user_id = $3) RETURNING access_key
        """,
        access_key,
        secret_hash,
        user_id,
        now,
    )
    return None if made is None else AccessKey(made)
