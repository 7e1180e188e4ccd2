"""Air for runners that a fork bomb holds under its own CPU quota.

A thousand processes that spend a container's quota inside the kernel keep all of it, PID 1 included, from running at
all: the runner that is to end them then waits for minutes. From outside, the quota is lifted for the moment that it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from agent.rings import RunnerError
from agent.runner_link import RunnerLink
from agent.statistics import Cgroup

log = logging.getLogger("moorage.agent.relief")
#: Fewer leave a runner its share, for they are all at the lowest priority.
CROWD: Final = 500
_LOOK_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 1.5
_RELIEF_SECONDS: Final = 20.0


class Relieved(Protocol):
    """What is needed of a kernel."""

    link: RunnerLink | None
    cgroup: Cgroup | None


class Relief:
    """Looks at each container's number of processes once a second, which is one short file, and acts on crowds alone."""

    def __init__(self, kernels: Callable[[], Iterable[Relieved]]) -> None:
        self._kernels = kernels
        self._acting: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                for kernel in list(self._kernels()):
                    self._look(kernel)
        finally:
            for task in self._acting.values():
                task.cancel()
            await asyncio.gather(*self._acting.values(), return_exceptions=True)

    def _look(self, kernel: Relieved) -> None:
        link, cgroup = kernel.link, kernel.cgroup
        if link is None or cgroup is None or link.lost.is_set() or id(kernel) in self._acting:
            return
        if (cgroup.processes() or 0) < CROWD:
            return
        task = asyncio.create_task(self._relieve(link, cgroup), name="relief")
        self._acting[id(kernel)] = task
        task.add_done_callback(lambda _: self._acting.pop(id(kernel), None))

    async def _relieve(self, link: RunnerLink, cgroup: Cgroup) -> None:
        if await answers(link, _ANSWER_SECONDS):
            return
        quota, unlimited = cgroup.quota()
        try:
            before = await asyncio.to_thread(quota.read_text)
            log.warning(
                "%d processes keep a runner from running; its CPU quota is lifted for a moment", cgroup.processes()
            )
            await asyncio.to_thread(quota.write_text, unlimited)
        except OSError as error:
            log.warning("a runner does not answer, and its CPU quota cannot be lifted: %s", error)
            return
        try:
            await answers(link, _RELIEF_SECONDS)
        finally:
            with contextlib.suppress(OSError):  # the container may have ended
                quota.write_text(before)


async def answers(link: RunnerLink, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await link.ping()
    except (TimeoutError, RunnerError):
        return False
    return True
