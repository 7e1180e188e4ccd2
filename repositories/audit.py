"""The audit: read by page, chained with a key that the database does not hold, and proved whole.

Each link is an HMAC over the link before and the row; `audit_anchors` vouches for the two points that the rows themselves
cannot prove: where keyed links begin, and up to where rows were forgotten by age.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from repositories.database import Connection

COLUMNS: Final = (
    "seq, id, at, user_id, access_key, owner_access_key, action, target, outcome, request_id, repeats, chain"
)
#: The end of the chain.
HEAD: Final = "SELECT last_seq, coalesce(head, '') AS head FROM sequencer WHERE name = 'audit_chain'"


# -- chaining ----------------------------------------------------------------------------------------------------------
async def chain_audit(connection: Connection, *, key: bytes | None = None, limit: int = 2000) -> int:
    """Number committed audit rows, and chain each to the one before. Inside a transaction; returns how many.

    Without a key anybody who can write to the database can make the links anew: for tests.
    """
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM audit WHERE seq IS NULL)"):
        return 0
    head = await connection.fetchrow(f"{HEAD} FOR UPDATE")
    assert head is not None
    rows = await connection.fetch(f"SELECT {COLUMNS} FROM audit WHERE seq IS NULL ORDER BY id LIMIT $1", limit)
    if not rows:
        return 0
    before: bytes = head["head"]
    links = []
    for seq, row in enumerate(rows, head["last_seq"] + 1):
        before = link(key, before, seq, row)
        links.append(before)
    last = head["last_seq"] + len(rows)
    await connection.execute(
        """
        UPDATE audit a SET seq = f.seq, chain = f.chain
        FROM unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::bytea[]) AS f(id, at, seq, chain)
        WHERE a.id = f.id AND a.at = f.at
        """,
        [row["id"] for row in rows],
        [row["at"] for row in rows],
        list(range(head["last_seq"] + 1, last + 1)),
        links,
    )
    await connection.execute("UPDATE sequencer SET last_seq = $1, head = $2 WHERE name = 'audit_chain'", last, before)
    return len(rows)


async def begin_keyed(connection: Connection, key: bytes, *, now: datetime) -> Anchor:
    """From here on links are made with the key; what comes before is vouched for as it is now. Inside a transaction.

    Once for an installation: who calls it keeps the anchor outside of the database, and calls it no more.
    """
    head = await connection.fetchrow(f"{HEAD} FOR UPDATE")
    assert head is not None
    anchor = Anchor.made(key, "keyed", head["last_seq"], head["head"])
    await _keep(connection, anchor, now)
    return anchor


async def anchor_forgotten(
    connection: Connection, key: bytes, *, before: datetime, day: datetime, now: datetime
) -> None:
    """Vouch for the last row that is forgotten by age, so that the chain can be walked from there.

    Inside the transaction that drops them: partitions of days before `day`, and the rest's rows before `before`.
    """
    row = await connection.fetchrow(
        "SELECT seq, chain FROM audit WHERE seq IS NOT NULL AND at < $1 ORDER BY seq DESC LIMIT 1", day
    )
    rest = await connection.fetchrow("SELECT max(seq) AS seq, max(at) AS at FROM audit_p_rest")
    if (
        rest is not None
        and rest["seq"] is not None
        and rest["at"] < before
        and (row is None or rest["seq"] > row["seq"])
    ):
        row = await connection.fetchrow("SELECT seq, chain FROM audit_p_rest WHERE seq = $1", rest["seq"])
    if row is not None:
        await _keep(connection, Anchor.made(key, "forgotten", row["seq"], row["chain"]), now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A point of the chain that somebody with the key vouches for."""

    kind: str
    seq: int
    chain: bytes
    mac: bytes

    @classmethod
    def made(cls, key: bytes, kind: str, seq: int, chain: bytes) -> Anchor:
        return cls(kind=kind, seq=seq, chain=chain, mac=_mac(key, kind, seq, chain))

    def is_real(self, key: bytes) -> bool:
        return hmac.compare_digest(self.mac, _mac(key, self.kind, self.seq, self.chain))


async def find_anchor(connection: Connection, kind: str) -> Anchor | None:
    row = await connection.fetchrow("SELECT kind, seq, chain, mac FROM audit_anchors WHERE kind = $1", kind)
    return None if row is None else Anchor(**row)


async def _keep(connection: Connection, anchor: Anchor, now: datetime) -> None:
    await connection.execute(
        """
        INSERT INTO audit_anchors AS a (kind, seq, chain, at, mac) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (kind) DO UPDATE SET seq = EXCLUDED.seq, chain = EXCLUDED.chain, at = EXCLUDED.at, mac = EXCLUDED.mac
        WHERE a.kind = 'forgotten' AND a.seq < EXCLUDED.seq
        """,
        anchor.kind,
        anchor.seq,
        anchor.chain,
        now,
        anchor.mac,
    )


def _mac(key: bytes, kind: str, seq: int, chain: bytes) -> bytes:
    return hmac.digest(key, f"moorage audit anchor {kind} {seq} ".encode() + chain, "sha256")


def link(key: bytes | None, before: bytes, seq: int, row: Mapping[str, Any]) -> bytes:
    """What vouches for a row and for everything before it; without a key only that the two belong together."""
    values = {name: row[name] for name in _LINKED}
    canonical = orjson.dumps({**values, "seq": seq}, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    return (
        hashlib.sha256(before + canonical).digest() if key is None else hmac.digest(key, before + canonical, "sha256")
    )


_LINKED: Final = tuple(name for name in COLUMNS.split(", ") if name not in ("seq", "chain"))
