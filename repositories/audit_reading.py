"""The audit as administrators read it: by page, newest first, or all of it from the beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, Final

from repositories.audit import HEAD
from repositories.audit_proof import Head
from repositories.database import Connection

_ROW: Final = """
    SELECT a.seq, a.at, a.user_id, u.email AS user, a.access_key, a.owner_access_key, o.email AS owner, a.action, a.target,
        a.outcome, a.request_id, a.repeats, a.id, a.chain
    FROM audit a LEFT JOIN users u ON u.id = a.user_id
    LEFT JOIN keypairs k ON k.access_key = a.owner_access_key LEFT JOIN users o ON o.id = k.user_id
"""
_WANTED: Final = """
    ($2::text IS NULL OR a.access_key = $2 OR a.user_id IN (SELECT id FROM users WHERE email = $2 OR id::text = $2))
    AND ($3::text IS NULL OR a.owner_access_key IN (
        SELECT $3 UNION ALL SELECT access_key FROM keypairs JOIN users w ON w.id = user_id WHERE w.email = $3 OR w.id::text = $3))
    AND ($4::text IS NULL OR a.action = $4) AND ($5::text IS NULL OR a.target = $5) AND ($6::text IS NULL OR a.outcome = $6)
    AND ($7::timestamptz IS NULL OR a.at >= $7) AND ($8::timestamptz IS NULL OR a.at < $8)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows; what is left out matters not. In the order of the statements' parameters from $2 on."""

    who: str | None = None  #: an e-mail address, an access key, or agent:NAME
    owner: str | None = None  #: on whose behalf, or whose session: an e-mail address or an access key
    action: str | None = None
    target: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def newest(connection: Connection, wanted: Wanted, *, before: int | None, limit: int) -> list[Mapping[str, Any]]:
    """At most so many, newest first, of those before row `before`."""
    return list(
        await connection.fetch(
            f"{_ROW} WHERE a.seq < $1 AND {_WANTED} ORDER BY a.seq DESC LIMIT $9",
            before or 2**62,
            *astuple(wanted),
            limit,
        )
    )


async def following(
    connection: Connection, wanted: Wanted, *, after: int, upto: int, limit: int
) -> list[Mapping[str, Any]]:
    """At most so many, oldest first, of those after row `after`."""
    return list(
        await connection.fetch(
            f"{_ROW} WHERE a.seq > $1 AND a.seq <= $9 AND {_WANTED} ORDER BY a.seq LIMIT $10",
            after,
            *astuple(wanted),
            upto,
            limit,
        )
    )


async def head_of(connection: Connection) -> Head:
    row = await connection.fetchrow(HEAD)
    assert row is not None
    return Head(seq=row["last_seq"], chain=row["head"])
