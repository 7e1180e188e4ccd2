"""Places where a process may be made to die, between two things that last. In use only while faults are being injected.

`reach("agent.docker.create.after")` does nothing, in some 40 ns, unless `begin` found MOORAGE_CRASH_DIR in the environment,
which nothing but a fault campaign sets. In that folder

- `armed` holds "NAME:N": whoever reaches this name for the Nth time since it was written dies by SIGKILL. It may be
  written (by a rename into place) again and again while the processes live; who dies has renamed it to `firing` before,
  so that one process dies, once. MOORAGE_CRASH_AT=NAME:N arms the first one.
- `fired` gets a line "NAME PROCESS PID SECONDS" (of the monotonic clock) for each death,
- `reached.PROCESS` a line for each point that is passed: the hit counts.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

DIR: Final = "MOORAGE_CRASH_DIR"
AT: Final = "MOORAGE_CRASH_AT"

#: Set once, at the start of a process that faults are injected into; called with each name that is reached.
on_reach: Callable[[str], None] | None = None


def reach(*name: str) -> None:
    """The process is at the point of this name, given in parts: everything before it is durable, nothing after it has begun."""
    if on_reach is not None:
        on_reach(".".join(name))


def begin(process: str) -> None:
    """Called by every process once it knows what it is. Does nothing outside of a fault campaign."""
    global on_reach  # noqa: PLW0603 - the one switch of the process
    if folder := os.environ.get(DIR):
        on_reach = _Listener(Path(folder), process)


class _Listener:
    """Counts what is reached, and dies where it is armed to."""

    def __init__(self, folder: Path, process: str) -> None:
        self._armed, self._firing = folder / "armed", folder / "firing"
        self._process = process
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._reached = os.open(folder / f"reached.{process}", append, 0o600)
        self._fired = os.open(folder / "fired", append, 0o600)
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._name, self._left = "", 0
        if at := os.environ.get(AT):
            self._take(at)

    def __call__(self, name: str) -> None:
        os.write(self._reached, f"{name}\n".encode())
        with self._lock:
            self._look()
            if name != self._name:
                return
            self._left -= 1
            if self._left == 0:
                self._die(name)

    def _look(self) -> None:
        try:
            stat = self._armed.stat()
            seen = (stat.st_ino, stat.st_mtime_ns)
            if seen != self._seen:
                self._take(self._armed.read_text())
                self._seen = seen
        except FileNotFoundError:
            if self._seen is not None:
                self._seen, self._name = None, ""

    def _take(self, armed: str) -> None:
        self._name, _, number = armed.strip().rpartition(":")
        self._left = int(number)

    def _die(self, name: str) -> None:
        if self._seen is not None:
            try:
                self._armed.rename(self._firing)
            except FileNotFoundError:  # another process was faster
                self._name = ""
                return
        os.write(self._fired, f"{name} {self._process} {os.getpid()} {time.monotonic():.6f}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
