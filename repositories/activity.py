"""When sessions were used last, by connections into them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from domain.ids import KernelId
from repositories.database import Connection


async def touch(connection: Connection, kernels: Collection[KernelId], *, now: datetime) -> None:
    """The sessions of these kernels are in use; the disk is not waited for, and a session that is locked is used anyway."""
    await connection.execute(
        """
        UPDATE sessions s SET last_activity_at = greatest(s.last_activity_at, $2), activity = s.activity + 1
        WHERE s.id IN (
            SELECT id FROM sessions WHERE id IN (SELECT session_id FROM kernels WHERE id = ANY($1::uuid[]))
            ORDER BY id FOR UPDATE SKIP LOCKED
        ) AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
        """,
        list(kernels),
        now,
    )
