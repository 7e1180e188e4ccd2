"""Keeps processors from halting while something is timed: `--awake`.

A halted processor of a virtual machine takes 30 to 90 us to come back, at each step from process to process; ours take ten
for one call, and a reference fewer. Whether that is paid depends on what else the machine does. Here it is paid by nobody: a
process of idle priority on each processor gives way to everything, and the references are measured beside it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_SPIN: Final = "while True: pass"


@contextmanager
def awake() -> Iterator[None]:
    """Linux only; elsewhere OSError."""
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", _SPIN], preexec_fn=_yield_to_all) for _ in _processors()]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _processors() -> set[int]:
    return os.sched_getaffinity(0)


def _yield_to_all() -> None:
    # in a session of its own, of the lowest weight: where sessions share processors, idle is idle within one only
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
