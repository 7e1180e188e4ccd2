"""A session that is begun anew elsewhere when its host falls silent ends here by itself, when nobody renews its lease."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from runner import processes
from runner.loop import Loop, Timer

LOOK_SECONDS = 0.5
#: Of PID 1: says that it ended because its lease was over.
EXIT_CODE = 75


def boottime() -> float:
    """Seconds since the machine was started, those in which it was asleep included: the same in every container."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Lease:
    """Without one, nothing ends. The agent may be stopped or dead: this looks by itself."""

    def __init__(self, loop: Loop, end: Callable[[], None]) -> None:
        self._loop = loop
        self._end = end
        self._until: float | None = None
        self._timer: Timer | None = None

    def renew(self, until: float, left: float) -> dict[str, Any]:
        """`until` on the host's clock; where that is another one, `left` counts from now on."""
        self._until = min(until, boottime() + left)
        self._loop.cancel(self._timer)
        self._look()
        return {"left": self._until - boottime()}

    def _look(self) -> None:
        self._timer = None
        if self._until is None:
            return
        left = self._until - boottime()
        if left <= 0:
            self._end()
            return
        self._timer = self._loop.later(min(left, LOOK_SECONDS), self._look)


def end_now() -> None:
    """With PID 1, everything in the container."""
    processes.kill_everything()
    os._exit(EXIT_CODE)
