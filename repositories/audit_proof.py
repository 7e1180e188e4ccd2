"""Whether the audit is whole: a walk along its chain, from the last point that was forgotten by age to its head."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from repositories.audit import COLUMNS, HEAD, Anchor, find_anchor, link
from repositories.database import Connection

#: Rows that are looked at between two turns of others.
PAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of the chain at one moment: `moorage admin audit export` writes one, to be kept elsewhere."""

    seq: int
    chain: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a walk along the chain has found."""

    rows: int  #: that are proved
    broken_at: int | None  #: the first seq that is missing, moved or changed
    why: str | None  #: what is wrong there, in words
    head: bytes
    last_seq: int
    since: int  #: the walk begins after this row; 0: with the first there ever was
    keyed_since: int | None  #: links after this row need the key; None: none does


@dataclass(slots=True)
class _Walk:
    key: bytes | None
    keyed_since: int | None
    at: int
    link: bytes
    known: Mapping[int, bytes] = field(default_factory=dict)  #: what somebody vouches for, by seq
    trusts_first: bool = False  #: without a key the oldest row is taken as it is
    rows: int = 0

    def trouble(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the next row; None, and on to the one after."""
        first = self.trusts_first and self.rows == 0 and row["seq"] > 1
        if not first:
            if row["seq"] != self.at + 1:
                return "the row is missing"
            keyed = self.keyed_since is not None and row["seq"] > self.keyed_since
            if (self.key is not None or not keyed) and row["chain"] != link(
                self.key if keyed else None, self.link, row["seq"], row
            ):
                return "the row was changed, or was put in the place of another"
        if row["chain"] != self.known.get(row["seq"], row["chain"]):
            return "the row is not the one that was there when this point was vouched for"
        self.at, self.link, self.rows = row["seq"], row["chain"], self.rows + 1
        return None


async def verify_audit(
    connection: Connection,
    *,
    key: bytes | None = None,
    kept: Anchor | None = None,
    head: Head | None = None,
    page: int = PAGE,
) -> Verdict:
    """Walk the chain, on a connection that sees one moment.

    With the key every edit, removal and reordering by somebody without it is found; without it only what does not take the
    trouble of making links anew. `kept`: where keyed links begin, as it was written down outside of the database. `head`:
    one that was exported earlier, against which a tail that was cut off is found.
    """
    end = await connection.fetchrow(HEAD)
    assert end is not None
    keyed, forgotten = await find_anchor(connection, "keyed"), await find_anchor(connection, "forgotten")
    since = 0 if forgotten is None else forgotten.seq
    walk = _Walk(
        key,
        None if keyed is None else keyed.seq,
        since,
        b"" if forgotten is None else forgotten.chain,
        known={point.seq: point.chain for point in (keyed, head) if point is not None},
        trusts_first=key is None and forgotten is None,
    )

    def verdict(broken_at: int | None = None, why: str | None = None) -> Verdict:
        return Verdict(
            rows=walk.rows,
            broken_at=broken_at,
            why=why,
            head=end["head"],
            last_seq=end["last_seq"],
            since=since,
            keyed_since=walk.keyed_since,
        )

    if key is not None:
        for anchor in (keyed, forgotten):
            if anchor is not None and not anchor.is_real(key):
                return verdict(anchor.seq, f"the anchor '{anchor.kind}' was not made with this installation's key")
        if kept is not None and kept != keyed:
            return verdict(kept.seq, "the point from which links need the key is not the one that was written down")
    while rows := await connection.fetch(
        f"SELECT {COLUMNS} FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2", walk.at, page
    ):
        for row in rows:
            if (why := walk.trouble(row)) is not None:
                return verdict(walk.at + 1, why)
        await asyncio.sleep(0)
    if (walk.rows or key is not None) and (walk.at, walk.link) != (end["last_seq"], end["head"]):
        return verdict(walk.at + 1, "the end of the chain is missing")
    for what, point in (("the exported head", head), ("the point from which links need the key", keyed)):
        if point is not None and point.seq > walk.at:
            return verdict(walk.at + 1, f"{what} is row {point.seq}: what came after row {walk.at} was cut off")
    if head is not None and forgotten is not None and head.seq == since and head.chain != forgotten.chain:
        return verdict(since, "the row is not the one that was there when the head was exported")
    return verdict()
