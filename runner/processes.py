"""What the runner does to processes: start them with clean descriptors, find and end them, read the cgroup's counters."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
from collections.abc import Callable
from typing import Any

_CLEAN_SIGNALS = (signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ)
_OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_PROCESS_COUNTERS = ("/sys/fs/cgroup/pids.current", "/sys/fs/cgroup/pids/pids.current")
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
#: Tells whose child a process is, also when it has left its group.
MARK = b"MOORAGE_RUN="
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def protect() -> None:
    """User code of the same uid may not trace this process or read its memory."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getpid() != 1:  # in tests: orphans come to us as they do to PID 1
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def high(fd: int) -> int:
    """Move a descriptor out of the way of 0-9, which children get by number."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(fd)
    return moved


def pipe() -> tuple[int, int]:
    """A pipe whose reading end does not block."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return high(reader), high(writer)


def spawn(argv: list[str], environ: dict[str, str], descriptors: dict[int, int], *, terminal: str | None = None) -> int:
    """Start a process in a group of its own, with the given descriptors (target: ours) and /dev/null as missing stdin.

    `terminal`: the device that is all three, and which the process, leader of a session of its own, controls.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    if terminal is not None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0))
        actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    elif 0 not in descriptors:
        actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
    actions += [(os.POSIX_SPAWN_DUP2, ours, target) for target, ours in descriptors.items()]
    group: dict[str, Any] = {"setpgroup": 0} if terminal is None else {"setsid": True}
    pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions, setsigmask=(), setsigdef=_CLEAN_SIGNALS, **group)
    # before it has children of its own: they inherit this, so that the kernel takes them and not the runner
    with contextlib.suppress(OSError):
        # Weighs within this container only: thousands of them leave the runner time enough to end them.
        os.setpriority(os.PRIO_PROCESS, pid, 19)
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    return pid


def signal_group(pid: int, number: int) -> None:
    if pid > 1:
        with contextlib.suppress(OSError):
            os.killpg(pid, number)


def kill_everything() -> None:
    """All processes of the container but this one. As PID 1 only: elsewhere it would be the machine's."""
    if os.getpid() == 1:
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)


def kill_marked(chosen: Callable[[str], bool], spared: set[int]) -> bool:
    """SIGKILL to the processes whose variable MOORAGE_RUN is `chosen`, with their groups unless these are `spared`.

    Whether there were any.
    """
    found = False
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (1, os.getpid()):
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environ:
                words = environ.read(1 << 20).split(b"\0")
            marks = [word[len(MARK) :].decode() for word in words if word.startswith(MARK)]
            if any(map(chosen, marks)):
                found = True
                group = os.getpgid(int(name))
                if group > 1 and group not in spared and group != os.getpgrp():
                    os.killpg(group, signal.SIGKILL)  # at once, so that a fork bomb cannot outrun it
                else:
                    os.kill(int(name), signal.SIGKILL)
        except (OSError, UnicodeDecodeError):
            continue  # another user's, or gone
    return found


def find_program(names: tuple[str, ...], path: str) -> str | None:
    for name in names:
        for folder in path.split(":"):
            candidate = os.path.join(folder or ".", name)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                return candidate
    return None


class OomCounter:
    """How often the kernel killed for want of memory in this container, where the cgroup can be seen."""

    def __init__(self) -> None:
        self._fd = -1
        for path in _OOM_COUNTERS:
            with contextlib.suppress(OSError):
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                break

    def read(self) -> int:
        if self._fd < 0:
            return 0
        try:
            for line in os.pread(self._fd, 4096, 0).split(b"\n"):
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError):
            pass
        return 0


class ProcessCounter:
    """How many processes and threads this container has, read without memory: a fork bomb leaves none. 0 if not to be seen."""

    def __init__(self) -> None:
        self._fd = -1
        for path in _PROCESS_COUNTERS if os.getpid() == 1 else ():
            with contextlib.suppress(OSError):
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                break

    def read(self) -> int:
        if self._fd < 0:
            return 0
        try:
            return int(os.pread(self._fd, 32, 0))
        except (OSError, ValueError):
            return 0


def exit_of(status: int) -> tuple[int, int | None]:
    """(exit code, signal) of a wait status; the code of a killed process is 128 + signal, as shells have it."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status), os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None
