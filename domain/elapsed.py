"""Time that nobody can set."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the machine was started, those in which it was asleep included."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
