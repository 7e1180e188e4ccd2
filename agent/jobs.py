"""Long work that a manager has asked for: it goes on when the manager goes away, and is found again by its id."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

Progress = Callable[[int, int, str], None]
#: So many outcomes are remembered, for a manager that did not hear them.
_REMEMBERED: Final = 256
#: The engine and the disk gain nothing from more.
_AT_ONCE: Final = 2


class Stopped(Exception):
    """The work was stopped by somebody else than the one who waits for it."""


class Job:
    """One piece of work. Who listens last hears its progress."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Any]
        self.listener: Progress = lambda *_: None

    def progress(self, current: int, total: int, message: str) -> None:
        self.listener(current, total, message)


class Jobs:
    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self, job_id: str, work: Callable[[Progress], Awaitable[Any]], listener: Progress) -> Any:
        """Its outcome; begun when nobody has asked for it before, or when it has failed or was cancelled."""
        job = self._jobs.get(job_id)
        if job is None or (job.task.done() and (job.task.cancelled() or job.task.exception() is not None)):
            job = self._jobs[job_id] = Job()
            job.task = asyncio.create_task(self._in_turn(work, job.progress), name=f"job {job_id}")
            job.task.add_done_callback(_heard)
            self._forget()
        job.listener = listener
        try:
            return await asyncio.shield(job.task)
        except asyncio.CancelledError:
            asker = asyncio.current_task()
            if job.task.cancelled() and asker is not None and not asker.cancelling():
                raise Stopped from None
            raise

    async def cancel(self, job_id: str) -> bool:
        """Returns when it has stopped and tidied up. False when it does not run."""
        job = self._jobs.pop(job_id, None)
        if job is None or job.task.done():
            return False
        job.task.cancel()
        await asyncio.wait({job.task})
        return True

    async def close(self) -> None:
        running = [job.task for job in self._jobs.values() if not job.task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _in_turn(self, work: Callable[[Progress], Awaitable[Any]], progress: Progress) -> Any:
        async with self._slots:
            return await work(progress)

    def _forget(self) -> None:
        for job_id in [job_id for job_id, job in self._jobs.items() if job.task.done()][:-_REMEMBERED]:
            del self._jobs[job_id]


def _heard(task: asyncio.Task[Any]) -> None:
    """Nobody may be there to hear how it ended."""
    if not task.cancelled():
        task.exception()
