"""Background tasks: rows with a lease, taken over when the process that works on them dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from domain.errors import TaskNotFound
from domain.ids import SessionId
from repositories.database import Connection
from repositories.transit import Cause, emit


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    id: UUID
    action: str
    arguments: Mapping[str, Any]
    user_id: UUID
    session_id: UUID | None
    status: str  #: queued, running, done, failed, cancelled
    progress: Mapping[str, Any]
    result: Any
    error: Mapping[str, Any] | None
    cancel: bool
    tries: int  #: how often a manager has begun it
    created_at: datetime
    finished_at: datetime | None


_COLUMNS = "id, action, arguments, user_id, session_id, status, progress, result, error, cancel, tries, created_at, finished_at"
#: A task that so many managers have died of is not tried again.
MOST_TRIES: Final = 5


class TaskRepository:
    def __init__(self, connection: Connection, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause

    async def add(
        self, task_id: UUID, *, action: str, arguments: Mapping[str, Any], user_id: UUID, session_id: SessionId | None
    ) -> Task:
        await self._connection.execute(
            "INSERT INTO tasks (id, action, arguments, user_id, session_id, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
            task_id,
            action,
            dict(arguments),
            user_id,
            session_id,
            self._now,
        )
        return await self.get(task_id, user_id=None)

    async def get(self, task_id: UUID, *, user_id: UUID | None) -> Task:
        """Raises TaskNotFound, also for another user's when `user_id` is given."""
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM tasks WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2)", task_id, user_id
        )
        if row is None:
            raise TaskNotFound(task=str(task_id))
        return Task(**dict(row))

    async def newest(self, *, user_id: UUID | None, limit: int, after: tuple[datetime, UUID] | None) -> list[Task]:
        at, task_id = after or (None, None)
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM tasks WHERE ($1::uuid IS NULL OR user_id = $1)
            AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid)) ORDER BY created_at DESC, id DESC LIMIT $2
            """,
            user_id,
            limit,
            at,
            task_id,
        )
        return [Task(**dict(row)) for row in rows]

    async def cancel(self, task_id: UUID, *, user_id: UUID | None) -> Task:
        """A queued task ends at once, a running one is told; a finished one stays as it is."""
        await self.get(task_id, user_id=user_id)
        row = await self._connection.fetchrow(
            f"""
            UPDATE tasks SET cancel = true, status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
                finished_at = CASE status WHEN 'queued' THEN $2 ELSE finished_at END
            WHERE id = $1 AND status IN ('queued', 'running') RETURNING {_COLUMNS}
            """,
            task_id,
            self._now,
        )
        if row is not None and row["status"] == "cancelled":
            await self._tell(Task(**dict(row)), "cancelled")
        return await self.get(task_id, user_id=None)

    async def latest(self, session_id: SessionId, actions: Sequence[str]) -> Task | None:
        """The newest of these kinds that was asked for of a session."""
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM tasks WHERE session_id = $1 AND action = ANY($2) ORDER BY created_at DESC, id DESC LIMIT 1",
            session_id,
            list(actions),
        )
        return None if row is None else Task(**dict(row))

    async def claim(self, worker: UUID, *, lease_seconds: float, limit: int = 4) -> list[Task]:
        """Tasks to work on: new ones, and those whose worker has not renewed its lease."""
        await self._give_up()
        rows = await self._connection.fetch(
            f"""
            UPDATE tasks SET status = 'running', claimed_by = $1, lease_until = $2, tries = tries + 1
            WHERE id IN (SELECT id FROM tasks WHERE status = 'queued' OR (status = 'running' AND lease_until < $3)
                         ORDER BY created_at LIMIT $4 FOR UPDATE SKIP LOCKED)
            RETURNING {_COLUMNS}
            """,
            worker,
            self._now + timedelta(seconds=lease_seconds),
            self._now,
            limit,
        )
        return [Task(**dict(row)) for row in rows]

    async def _give_up(self) -> None:
        """On what ends every manager that begins it."""
        rows = await self._connection.fetch(
            f"""
            UPDATE tasks SET status = 'failed', finished_at = $1, error = $3 WHERE id IN (
                SELECT id FROM tasks WHERE status = 'running' AND lease_until < $1 AND tries >= $2 FOR UPDATE SKIP LOCKED)
            RETURNING {_COLUMNS}
            """,
            self._now,
            MOST_TRIES,
            {
                "code": "internal",
                "message": f"Begun {MOST_TRIES} times, and no manager came to its end.",
                "status": 500,
            },
        )
        for row in rows:
            await self._tell(Task(**dict(row)), "failed")

    async def release(self, worker: UUID) -> None:
        """This worker stops: others may go on with its tasks at once, and it counts as no try."""
        await self._connection.execute(
            """
            UPDATE tasks SET lease_until = $2, tries = greatest(tries - 1, 0)
            WHERE claimed_by = $1 AND status = 'running' AND lease_until >= $2
            """,
            worker,
            self._now - timedelta(microseconds=1),
        )

    async def mine(self, task_ids: Sequence[UUID], worker: UUID, *, lease_seconds: float | None) -> dict[UUID, bool]:
        """Of these, those that are still this worker's, and whether each was cancelled. With `lease_seconds` it keeps them."""
        rows = await self._connection.fetch(
            "SELECT id, cancel FROM tasks WHERE id = ANY($1) AND claimed_by = $2 AND status = 'running'"
            if lease_seconds is None
            else "UPDATE tasks SET lease_until = $3 WHERE id = ANY($1) AND claimed_by = $2 AND status = 'running' RETURNING id, cancel",
            list(task_ids),
            worker,
            *([] if lease_seconds is None else [self._now + timedelta(seconds=lease_seconds)]),
        )
        return {row["id"]: row["cancel"] for row in rows}

    async def renew(self, task: Task, worker: UUID, *, lease_seconds: float, progress: Mapping[str, Any]) -> bool:
        """Report progress and keep the lease. False when the task was cancelled, or taken over: stop working on it."""
        return bool(
            await self._connection.fetchval(
                """
                UPDATE tasks SET progress = $3, lease_until = $4
                WHERE id = $1 AND claimed_by = $2 AND status = 'running' AND NOT cancel RETURNING true
                """,
                task.id,
                worker,
                dict(progress),
                self._now + timedelta(seconds=lease_seconds),
            )
        )

    async def finish(
        self, task: Task, worker: UUID, *, status: str, result: Any = None, error: Mapping[str, Any] | None = None
    ) -> bool:
        done = await self._connection.fetchval(
            """
            UPDATE tasks SET status = $3, result = $4, error = $5, finished_at = $6
            WHERE id = $1 AND claimed_by = $2 AND status = 'running' RETURNING true
            """,
            task.id,
            worker,
            status,
            result,
            error,
            self._now,
        )
        if done:
            await self._tell(task, status)
        return bool(done)

    async def _tell(self, task: Task, status: str) -> None:
        await emit(
            self._connection,
            f"task.{status}",
            now=self._now,
            cause=self._cause,
            session_id=SessionId(task.session_id) if task.session_id else None,
            user_id=task.user_id,
            data={"task": str(task.id), "action": task.action},
        )
