"""Background tasks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Self

from moorage import _wire
from moorage._errors import MoorageError, WaitTimeout
from moorage._models import TaskInfo
from moorage.aio import _io
from moorage.aio._transport import Transport, decoded

OnTask = Callable[[TaskInfo], object]
OVER = frozenset({"done", "failed", "cancelled"})


class Task:
    """A background task; `info` is what the server said last."""

    def __init__(self, transport: Transport, info: TaskInfo) -> None:
        self._transport = transport
        self._path = _wire.path("tasks", info.id)
        self.info = info

    def __repr__(self) -> str:
        return f"<Task {self.info.action} {self.status} {self.id}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def status(self) -> str:
        return self.info.status

    async def refresh(self) -> Self:
        """Ask the server how it stands now."""
        self.info = TaskInfo.from_json(await self._transport.get(self._path))
        return self

    async def wait(self, timeout: float | None = None, *, on_progress: OnTask | None = None) -> Self:
        """Wait for its end; a failed or cancelled one raises its error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, seen = 0.05, None
        while True:
            await self.refresh()
            if on_progress is not None and self.info != seen:
                await _io.result_of(on_progress(self.info))
                seen, pause = self.info, 0.05
            if self.status in OVER:
                return self._outcome()
            if deadline is not None and time.monotonic() + pause > deadline:
                raise WaitTimeout(f"The task {self.id} is still {self.status}; it goes on.")
            await _io.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def cancel(self) -> Self:
        """Stop it."""
        answer = await self._transport.request("DELETE", self._path)
        if answer.content:
            self.info = TaskInfo.from_json(decoded(answer))
            return self
        return await self.refresh()

    def _outcome(self) -> Self:
        if self.status == "done":
            return self
        error = self.info.error
        if isinstance(error, dict):
            told = {"code": "error", "detail": error.get("message"), **error}
            raise _wire.error_from(int(error.get("status") or 0), json.dumps(told).encode(), {})
        what = str(error) if error else f"The task {self.id} was {self.status}."
        raise MoorageError(what, facts={"status": self.status})


class Tasks:
    """`client.tasks`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, task_id: str) -> Task:
        """A task by its id."""
        return Task(self._transport, TaskInfo.from_json(await self._transport.get(_wire.path("tasks", task_id))))

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[Task]:
        """The caller's tasks. Fetched as they are looked at."""
        make = partial(_task, self._transport)
        return self._transport.items(make, _wire.path("tasks"), limit=limit)

    async def list(self, *, limit: int | None = None) -> TaskList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]


TaskList = list[Task]


def _task(transport: Transport, said: object) -> Task:
    return Task(transport, TaskInfo.from_json(said))
