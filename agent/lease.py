"""How long ago a control process last answered, on this host's own clock: what kernels with a lease live by.

The manager begins such a kernel anew elsewhere once its host has been silent for longer than the lease, so here it must
have ended by then: also when this process was stopped, when the machine was asleep, and when the agent is a new one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from domain.elapsed import boottime

#: So late at most an agent that runs looks at its leases.
LOOK_SECONDS: Final = 0.5
_NEVER: Final = -1e12


class Lease:
    """`renewed` is called with the time at which was *sent* what a control process has answered and written down."""

    def __init__(
        self, file: Path | None = None, *, clock: Callable[[], float] = boottime, boot_id: str | None = None
    ) -> None:
        self.now = clock
        self._file = file
        self._boot_id = boot_id or _boot_id()
        self._renewed_at = self._remembered()

    def renewed(self, sent_at: float) -> None:
        if sent_at <= self._renewed_at:
            return
        self._renewed_at = sent_at
        if self._file is not None:
            # for the next agent: kernels of a lease that is over must not live on because their agent was restarted
            with contextlib.suppress(OSError):
                fresh = self._file.with_suffix(".fresh")
                fresh.write_text(f"{self._boot_id} {sent_at:.3f}\n")
                fresh.replace(self._file)

    def until(self, seconds: float) -> float:
        """When a lease of so long ends, on this clock."""
        return self._renewed_at + seconds

    def left(self, seconds: float) -> float:
        """Of a lease of so long; not above 0 when it is over."""
        return self.until(seconds) - self.now()

    def _remembered(self) -> float:
        """Of this start of the machine; a machine that was started anew has no container of before."""
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                boot_id, at = self._file.read_text().split()
                if boot_id == self._boot_id:
                    return float(at)
        return _NEVER


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"pid-{os.getpid()}-{time.time_ns()}"
