"""Stamped events, in their order: what those may see who ask."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from repositories.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class StampedEvent:
    """An event with its place in the order, which has no holes."""

    epoch: int
    seq: int
    type: str
    session_id: UUID | None
    name: str | None  #: of the session, as it is now
    at: datetime
    cause: dict[str, Any]
    data: dict[str, Any]


async def head(connection: Connection) -> tuple[int, int]:
    """The epoch, and the last `seq` that was given."""
    row = await connection.fetchrow("SELECT epoch, last_seq FROM sequencer WHERE name = 'events'")
    assert row is not None
    return row["epoch"], row["last_seq"]


async def after(
    connection: Connection,
    seq: int,
    *,
    user_id: UUID | None,
    domain: str | None,
    session_id: UUID | None,
    limit: int,
) -> tuple[list[StampedEvent], int]:
    """The next events after `seq` and how far that was: everybody's, a domain's or one user's, or of one session."""
    epoch, last = await head(connection)
    rows = await connection.fetch(
        """
        SELECT e.seq, e.type, e.session_id, s.name, e.at, e.cause, e.data
        FROM events e LEFT JOIN sessions s ON s.id = e.session_id
        WHERE e.seq > $1 AND e.seq <= $2 AND ($3::uuid IS NULL OR e.user_id = $3)
            AND ($4::text IS NULL OR e.domain = $4) AND ($5::uuid IS NULL OR e.session_id = $5)
        ORDER BY e.seq LIMIT $6
        """,
        seq,
        last,
        user_id,
        domain,
        session_id,
        limit,
    )
    found = [StampedEvent(epoch=epoch, **dict(row)) for row in rows]
    # A page that is not full has seen everything up to the head.
    return found, found[-1].seq if len(found) == limit else max(last, seq)
