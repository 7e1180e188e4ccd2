"""Background tasks at work: claimed with a lease, renewed with every progress, taken over when their worker dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import Any, ClassVar, Protocol
from uuid import UUID

from agent.client import AgentClient
from domain.errors import AgentUnavailable, MoorageError
from domain.ids import AgentId
from manager.herald import Herald
from manager.loop import Loop
from repositories.database import Database
from repositories.task import Task, TaskRepository
from repositories.transit import Cause

_LEASE_SECONDS = 30.0
_CAUSE = Cause(by="manager")


class Agents(AgentClient, Protocol):
    def connected(self) -> Collection[AgentId]: ...


class Cancelled(Exception):
    """Somebody cancelled the task, or another manager has taken it over."""


class Report:
    """What a handler tells its progress with."""

    def __init__(self, renew: Callable[[Mapping[str, Any]], Awaitable[bool]]) -> None:
        self._renew = renew
        self._last = 0.0

    async def __call__(self, current: int, total: int, message: str) -> None:
        """At most twice a second reaches the database. Raises Cancelled."""
        if time.monotonic() - self._last < 0.5:
            return
        self._last = time.monotonic()
        if not await self._renew({"current": current, "total": total, "message": message[:500]}):
            raise Cancelled


class TaskLoop(Loop):
    """Claims and runs tasks; several managers share them."""

    name: ClassVar[str] = "tasks"
    most_at_once: ClassVar[int] = 4

    def __init__(
        self, database: Database, herald: Herald, agents: Agents, *, manager_id: UUID, clock: Callable[[], datetime]
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._agents = agents
        self._manager_id = manager_id
        self._clock = clock
        self._running: set[asyncio.Task[None]] = set()
        self._handlers: Mapping[str, Callable[[Task, Report], Awaitable[Any]]] = {"pull_image": self._pull_image}

    async def step(self) -> float | None:
        room = self.most_at_once - len(self._running)
        if room <= 0:
            return None
        async with self._database.transaction() as connection:
            claimed = await self._rows(connection).claim(self._manager_id, lease_seconds=_LEASE_SECONDS, limit=room)
        for task in claimed:
            running = asyncio.create_task(self._run(task), name=f"task {task.action}")
            self._running.add(running)
            running.add_done_callback(self._ended)
        return None

    async def close(self) -> None:
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self.wake()

    async def _run(self, task: Task) -> None:
        try:
            result = await self._handlers[task.action](task, Report(lambda progress: self._renew(task, progress)))
            await self._finish(task, status="done", result=result)
        except Cancelled:
            await self._finish(task, status="cancelled")
        except MoorageError as error:
            await self._finish(task, status="failed", error={"code": error.code, "message": error.message})
        except Exception:
            self._log.exception("task %s failed", task.id)
            await self._finish(task, status="failed", error={"code": "internal", "message": "see the manager's log"})

    async def _renew(self, task: Task, progress: Mapping[str, Any]) -> bool:
        async with self._database.transaction() as connection:
            mine = await self._rows(connection).renew(
                task, self._manager_id, lease_seconds=_LEASE_SECONDS, progress=progress
            )
        self._herald.announce("tasks")
        return mine

    async def _finish(self, task: Task, **outcome: Any) -> None:
        async with self._database.transaction() as connection:
            await self._rows(connection).finish(task, self._manager_id, **outcome)
        self._herald.announce("tasks")
        self._herald.announce("events")

    def _rows(self, connection: Any) -> TaskRepository:
        return TaskRepository(connection, now=self._clock(), cause=_CAUSE)

    async def _pull_image(self, task: Task, report: Report) -> dict[str, Any]:
        image, named = str(task.arguments["image"]), task.arguments.get("agent")
        hosts = [AgentId(named)] if named else list(self._agents.connected())
        if not hosts:
            raise AgentUnavailable("No host is connected that could fetch the image.")
        for done, host in enumerate(hosts):
            async for progress in _alive(self._agents.pull_image(host, image)):
                share = int(progress.get("current") or 0) / max(1, int(progress.get("total") or 0))
                await report(
                    int((done + min(1.0, share)) * 100), len(hosts) * 100, f"{host}: {progress.get('message', '')}"
                )
        return {"image": image, "agents": [str(host) for host in hosts]}


async def _alive(progress: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """The same, with a sign of life while nothing moves, so that the lease is renewed."""
    last: dict[str, Any] = {}
    following = aiter(progress)
    upcoming: asyncio.Future[dict[str, Any]] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(following))
            done, _ = await asyncio.wait({upcoming}, timeout=_LEASE_SECONDS / 4)
            if done:
                try:
                    last = upcoming.result()
                except StopAsyncIteration:
                    return
                upcoming = None
            yield last
    finally:
        if upcoming is not None:
            upcoming.cancel()
