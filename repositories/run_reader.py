"""How far somebody has read a run whose output is fetched piece by piece; for clients that do not say so themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from repositories.database import Connection


async def recall(connection: Connection, reader: UUID) -> dict[str, Any] | None:
    state: dict[str, Any] | None = await connection.fetchval("SELECT state FROM run_readers WHERE id = $1", reader)
    return state


async def remember(connection: Connection, reader: UUID, state: dict[str, Any], *, now: datetime) -> None:
    await connection.execute(
        """
        INSERT INTO run_readers (id, state, read_at) VALUES ($1, $2, $3)
        ON CONFLICT (id) DO UPDATE SET state = excluded.state, read_at = excluded.read_at
        """,
        reader,
        state,
        now,
    )


async def forget(connection: Connection, reader: UUID) -> None:
    await connection.execute("DELETE FROM run_readers WHERE id = $1", reader)
