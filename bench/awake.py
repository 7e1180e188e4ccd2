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
from contextlib import contextmanager
from typing import Final

#: In a session of its own, of the lowest weight: where sessions share processors, idle is idle within one only.
_SPIN: Final = """
import os
try:
    with open("/proc/self/autogroup", "w") as weight: weight.write("19")
except OSError: pass
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True: pass
"""


@contextmanager
def awake() -> Iterator[None]:
    """Linux only; elsewhere OSError."""
    command = [sys.executable, "-I", "-S", "-c", _SPIN]
    spinning = [subprocess.Popen(command, start_new_session=True) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()
