"""Background tasks at work: claimed with a lease that the loop renews, cancelled at once, taken over when their manager dies.

To add one: an action with `Rules(background=True)` adds the row (`call.db.tasks.add(call.new_id(), action="clone_volume",
arguments={...}, user_id=..., session_id=...)`, `call.announce("tasks")`, answer `TaskResult`), and a module
`manager/SUBJECT_tasks.py` has `jobs(tools: Tools) -> dict[str, Job]`, listed in `manager/control.py`. Then

- `Job.run(task, report) -> result` may be called again for the same task, by another manager after this one has died:
  whatever it does must be found again by `task.id`. It tells `await report(current, total, message)` as often as it
  likes, may be silent for hours, and fails the task by raising a MoorageError.
- Cancelling a task cancels the coroutine wherever it waits (`asyncio.CancelledError`). So does a manager that stops;
  the task then goes on elsewhere, so `run` undoes nothing in `except` or `finally` but what is this process's own.
- `Job.undo(task)` is called when the task has failed or was cancelled, before anybody is told. It removes whatever is
  half-made, may be called twice, and is called too for a task that was cancelled before `run` began in this process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Protocol
from uuid import UUID

from agent.client import AgentClient
from domain.errors import DatabaseUnavailable, Internal, MoorageError
from domain.ids import AgentId
from manager.herald import Herald
from manager.loop import Loop
from manager.vault import Vault
from repositories.database import Database
from repositories.task import Task, TaskRepository
from repositories.transit import Cause

#: Short, so that what a killed manager has left is taken up soon; who is late by more finds its task taken over.
LEASE_SECONDS = 10.0
_UNDO_SECONDS = 120.0
_REPORT_SECONDS = 0.5
_CAUSE = Cause(by="manager")


class Agents(AgentClient, Protocol):
    def connected(self) -> Collection[AgentId]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What jobs work with."""

    database: Database
    herald: Herald
    agents: Agents
    clock: Callable[[], datetime]
    vault: Vault | None = None  #: opens what is kept sealed; None where this process has no key


class Report(Protocol):
    """How a job tells its progress. At most twice a second reaches the database."""

    async def __call__(self, current: int, total: int, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """What is done for one kind of task."""

    run: Callable[[Task, Report], Awaitable[Any]]
    undo: Callable[[Task], Awaitable[None]] | None = None


class _Running:
    """One task in this process."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.work: asyncio.Task[Any] | None = None
        self.cancelled = task.cancel  #: by somebody who asked for it
        self.lost = False  #: another manager has it
        self.reported_at = 0.0

    def stop(self, *, lost: bool) -> None:
        self.lost, self.cancelled = self.lost or lost, self.cancelled or not lost
        if self.work is not None:
            self.work.cancel()


class TaskLoop(Loop):
    """Claims and runs tasks; several managers share them."""

    name: ClassVar[str] = "tasks"
    most_at_once: ClassVar[int] = 8

    def __init__(self, tools: Tools, jobs: Mapping[str, Job], *, manager_id: UUID) -> None:
        super().__init__()
        self._tools = tools
        self._jobs = jobs
        self._manager_id = manager_id
        self._running: dict[UUID, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewed_at = time.monotonic()

    async def step(self) -> float | None:
        await self._look_after()
        room = self.most_at_once - len(self._running)
        if room <= 0:
            return None
        async with self._tools.database.transaction("control.task_claimed") as connection:
            claimed = await self._rows(connection).claim(self._manager_id, lease_seconds=LEASE_SECONDS, limit=room)
        for task in claimed:
            if task.id in self._running:  # our own lease ran out: nobody else has it, so go on
                continue
            self._running[task.id] = _Running(task)
            running = asyncio.create_task(self._run(self._running[task.id]), name=f"task {task.action}")
            self._tasks.add(running)
            running.add_done_callback(self._tasks.discard)
        return None

    async def close(self, *, release: bool = True) -> None:
        """Stop working; with `release` other managers may go on with the tasks at once."""
        for running in list(self._tasks):
            running.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if release:
            with suppress(DatabaseUnavailable):
                async with self._tools.database.transaction() as connection:
                    await self._rows(connection).release(self._manager_id)
            self._tools.herald.announce("tasks")

    async def _look_after(self) -> None:
        """Renew the leases of what runs here, and stop what was cancelled or is another's by now."""
        if not self._running:
            return
        renew = time.monotonic() - self._renewed_at >= LEASE_SECONDS / 4
        async with self._tools.database.transaction() as connection:
            rows = self._rows(connection)
            mine = await rows.mine(
                list(self._running), self._manager_id, lease_seconds=LEASE_SECONDS if renew else None
            )
        if renew:
            self._renewed_at = time.monotonic()
        for running in list(self._running.values()):
            cancelled = mine.get(running.task.id)
            if cancelled is None and not running.lost:
                running.stop(lost=True)
            elif cancelled and not running.cancelled:
                running.stop(lost=False)

    async def _run(self, running: _Running) -> None:
        try:
            outcome = await self._work(running)
            if running.lost:
                self._log.warning("task %s is another manager's by now", running.task.id)
                return
            if outcome["status"] != "done":
                await self._undo(running.task)
            await self._finish(running.task, **outcome)
        except MoorageError as error:  # the database, most likely: the lease runs out, and somebody does it again
            self._log.warning("task %s could not be ended: %s", running.task.id, error)
        finally:
            self._running.pop(running.task.id, None)
            self.wake()

    async def _work(self, running: _Running) -> dict[str, Any]:
        task = running.task
        if running.cancelled:
            return {"status": "cancelled"}
        running.work = asyncio.ensure_future(self._do(running))
        try:
            await asyncio.wait({running.work})
        except asyncio.CancelledError:  # this manager stops
            running.work.cancel()
            await asyncio.wait({running.work})
            raise
        if running.work.cancelled() or (running.cancelled and running.work.exception() is not None):
            return {"status": "cancelled"}
        error = running.work.exception()
        if error is None:
            return {"status": "done", "result": running.work.result()}
        if not isinstance(error, MoorageError):
            self._log.error("task %s failed", task.id, exc_info=error)
            error = Internal("Something went wrong in Moorage itself; the manager's log says what.")
        told = {"code": error.code, "message": error.message, "status": error.http_status}
        return {"status": "failed", "error": told}

    async def _do(self, running: _Running) -> Any:
        job = self._jobs.get(running.task.action)
        if job is None:
            raise Internal(f"This manager does not know how to do '{running.task.action}'; it may be an older one.")
        return await job.run(running.task, lambda *said: self._report(running, *said))

    async def _report(self, running: _Running, current: int, total: int, message: str) -> None:
        if time.monotonic() - running.reported_at < _REPORT_SECONDS:
            return
        running.reported_at = time.monotonic()
        progress = {"current": current, "total": total, "message": message[:500]}
        async with self._tools.database.transaction() as connection:
            await self._rows(connection).renew(
                running.task, self._manager_id, lease_seconds=LEASE_SECONDS, progress=progress
            )
        self._tools.herald.announce("tasks")

    async def _undo(self, task: Task) -> None:
        job = self._jobs.get(task.action)
        if job is None or job.undo is None:
            return
        try:
            async with asyncio.timeout(_UNDO_SECONDS):
                await job.undo(task)
        except Exception:
            self._log.exception("what task %s has left half-made could not be removed", task.id)

    async def _finish(self, task: Task, **outcome: Any) -> None:
        async with self._tools.database.transaction("control.task_ended") as connection:
            await self._rows(connection).finish(task, self._manager_id, **outcome)
        self._tools.herald.announce("tasks")
        self._tools.herald.announce("events")

    def _rows(self, connection: Any) -> TaskRepository:
        return TaskRepository(connection, now=self._tools.clock(), cause=_CAUSE)
