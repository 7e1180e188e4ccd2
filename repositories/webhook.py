"""Webhooks: users' sealed secrets, and the deliveries that are still to be made or have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from domain.ids import SessionId
from repositories.database import Connection

#: Of one session, so many wait at most; what happens beyond that is told to nobody.
MOST_QUEUED: Final = 1000
#: Events that are looked at in one step.
BATCH: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one receiver."""

    id: UUID
    session_id: SessionId
    user_id: UUID
    event_seq: int
    type: str
    url: str
    body: str
    status: str  #: queued, delivered, failed
    tries: int
    next_try_at: datetime
    http_status: int | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


_COLUMNS: Final = (
    "id, session_id, user_id, event_seq, type, url, body, status, tries, next_try_at, http_status, error, created_at, "
    "finished_at"
)


def secret_about(user_id: UUID) -> str:
    """What a user's secret is sealed with, so that it does not open as another's."""
    return f"webhook {user_id}"


class WebhookRepository:
    """Of one unit of work."""

    def __init__(self, connection: Connection, *, now: datetime) -> None:
        self._connection = connection
        self._now = now

    async def has_secret(self, user_id: UUID) -> bool:
        return bool(
            await self._connection.fetchval("SELECT EXISTS (SELECT FROM webhook_secrets WHERE user_id = $1)", user_id)
        )

    async def secret_made_at(self, user_id: UUID) -> datetime | None:
        at: datetime | None = await self._connection.fetchval(
            "SELECT created_at FROM webhook_secrets WHERE user_id = $1", user_id
        )
        return at

    async def set_secret(self, user_id: UUID, sealed: bytes) -> None:
        await self._connection.execute(
            """
            INSERT INTO webhook_secrets (user_id, sealed, created_at) VALUES ($1, $2, $3)
            ON CONFLICT (user_id) DO UPDATE SET sealed = excluded.sealed, created_at = excluded.created_at
            """,
            user_id,
            sealed,
            self._now,
        )

    async def deliveries(self, session_id: SessionId, *, before: int | None, limit: int) -> list[Delivery]:
        """Of one session, the newest first; those of earlier events than `before`."""
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM webhook_deliveries
            WHERE session_id = $1 AND ($2::bigint IS NULL OR event_seq < $2) ORDER BY event_seq DESC LIMIT $3
            """,
            session_id,
            before,
            limit,
        )
        return [_delivery(row) for row in rows]


async def queue_events(connection: Connection, *, now: datetime) -> tuple[int, bool]:
    """Make deliveries of what happened to sessions with a callback_url since the last time, inside a transaction.

    Returns how many, and whether there is more. A `seq` that is taken was committed before, so nothing is passed over.
    """
    at = await connection.fetchval("SELECT last_seq FROM sequencer WHERE name = 'webhooks' FOR UPDATE")
    head = await connection.fetchrow("SELECT last_seq, epoch FROM sequencer WHERE name = 'events'")
    assert head is not None
    if at is None or head["last_seq"] <= at:
        return 0, False
    upto = min(head["last_seq"], at + BATCH)
    rows = await connection.fetch(
        """
        SELECT e.seq, e.at, e.type, e.data, s.id AS session_id, s.name, s.user_id, s.callback_url,
            (SELECT count(*) FROM webhook_deliveries d WHERE d.session_id = s.id AND d.status = 'queued') AS queued
        FROM events e JOIN sessions s ON s.id = e.session_id AND s.callback_url IS NOT NULL
        WHERE e.seq > $1 AND e.seq <= $2 AND e.type LIKE 'session.%' ORDER BY e.seq
        """,
        at,
        upto,
    )
    made = [row for row in rows if row["queued"] < MOST_QUEUED]
    await connection.executemany(
        """
        INSERT INTO webhook_deliveries (id, session_id, user_id, event_seq, type, url, body, next_try_at, created_at)
        VALUES (gen_random_uuid(), $1, $2, $3, $4, $5, $6, $7, $7) ON CONFLICT (session_id, event_seq) DO NOTHING
        """,
        [
            (r["session_id"], r["user_id"], r["seq"], r["type"], r["callback_url"], body_of(r, head["epoch"]), now)
            for r in made
        ],
    )
    await connection.execute("UPDATE sequencer SET last_seq = $1 WHERE name = 'webhooks'", upto)
    return len(made), upto < head["last_seq"]


def body_of(event: Mapping[str, Any], epoch: int) -> str:
    """What a receiver gets, byte for byte as it is signed."""
    return orjson.dumps(
        {
            "id": f"{epoch}.{event['seq']}",
            "type": event["type"],
            "session_id": str(event["session_id"]),
            "name": event["name"],
            "at": event["at"],
            "data": event["data"],
        },
        option=orjson.OPT_UTC_Z,
    ).decode()


async def claim(
    connection: Connection, manager_id: UUID, *, now: datetime, lease_seconds: float, limit: int
) -> list[Delivery]:
    """Deliveries that are due: of each session the oldest only, so that a receiver hears things in their order."""
    rows = await connection.fetch(
        f"""
        UPDATE webhook_deliveries SET claimed_by = $1, lease_until = $3, tries = tries + 1 WHERE id IN (
            SELECT d.id FROM webhook_deliveries d
            WHERE d.status = 'queued' AND d.next_try_at <= $2 AND (d.lease_until IS NULL OR d.lease_until <= $2)
                AND NOT EXISTS (SELECT FROM webhook_deliveries o WHERE o.session_id = d.session_id
                    AND o.status = 'queued' AND o.event_seq < d.event_seq)
            ORDER BY d.next_try_at LIMIT $4 FOR UPDATE SKIP LOCKED)
        RETURNING {_COLUMNS}
        """,
        manager_id,
        now,
        now + timedelta(seconds=lease_seconds),
        limit,
    )
    return [_delivery(row) for row in rows]


async def next_try(connection: Connection) -> datetime | None:
    """When something will be due; what is being tried just now is due when its lease ends, what waits behind it later."""
    at: datetime | None = await connection.fetchval(
        """
        SELECT min(greatest(next_try_at, lease_until)) FROM (
            SELECT DISTINCT ON (session_id) next_try_at, lease_until FROM webhook_deliveries WHERE status = 'queued'
            ORDER BY session_id, event_seq) heads
        """
    )
    return at


async def hosts_of_ours(connection: Connection) -> frozenset[str]:
    """Addresses at which managers and hosts of this installation have told they are."""
    rows = await connection.fetch(
        """
        SELECT agent_url AS place FROM managers WHERE agent_url IS NOT NULL
        UNION SELECT info ->> 'address' FROM agents WHERE info ->> 'address' IS NOT NULL
        """
    )
    return frozenset(urlsplit(row["place"]).hostname or row["place"] for row in rows)


async def sealed_secrets(connection: Connection, users: Sequence[UUID]) -> dict[UUID, bytes]:
    rows = await connection.fetch("SELECT user_id, sealed FROM webhook_secrets WHERE user_id = ANY($1::uuid[])", users)
    return {row["user_id"]: row["sealed"] for row in rows}


async def record(
    connection: Connection,
    delivery: Delivery,
    manager_id: UUID,
    *,
    status: str,
    http_status: int | None,
    error: str | None,
    next_try_at: datetime,
    now: datetime,
) -> bool:
    """How a try went; False when it is another manager's by now."""
    done = await connection.execute(
        """
        UPDATE webhook_deliveries SET status = $3, http_status = $4, error = $5, next_try_at = $6, claimed_by = NULL,
            lease_until = NULL, finished_at = CASE WHEN $3 <> 'queued' THEN $7::timestamptz END
        WHERE id = $1 AND claimed_by = $2 AND status = 'queued' AND tries = $8
        """,
        delivery.id,
        manager_id,
        status,
        http_status,
        error,
        next_try_at,
        now,
        delivery.tries,
    )
    return done.endswith(" 1")


def _delivery(row: Mapping[str, Any]) -> Delivery:
    return Delivery(**dict(row))
