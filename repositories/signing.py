"""What requests are signed with, sealed, and which signatures were used. Whose they are is in `identity`."""

from __future__ import annotations

from datetime import datetime

from repositories.database import Connection


def secret_about(access_key: str) -> str:
    """What a secret is bound to when it is sealed: it opens as no other keypair's."""
    return f"signing secret of {access_key}"


async def sealed_secret(connection: Connection, access_key: str) -> bytes | None:
    """None: this keypair signs nothing."""
    sealed: bytes | None = await connection.fetchval(
        "SELECT signing_sealed FROM keypairs WHERE access_key = $1", access_key
    )
    return sealed


async def use_signature(connection: Connection, signature: bytes, *, good_until: datetime) -> bool:
    """Whether this is its first use, at whichever manager. Commits without waiting for the disk: inside a transaction."""
    await connection.execute("SET LOCAL synchronous_commit = off")
    first: bool | None = await connection.fetchval(
        "INSERT INTO used_signatures (signature, good_until) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
        signature,
        good_until,
    )
    return bool(first)
