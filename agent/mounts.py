"""Folders of the host put into a container that runs: nothing is followed, and nothing of it stays when the container goes.

A folder is found beneath its volume with `openat2` (no link, no way out), cloned from its descriptor with the flags that
it shall have, and moved into the container's own mount namespace before any code of the user runs there. No path is
looked up twice, the host's mount table has no trace of it, and the engine knows nothing of it. Linux 5.12.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

T = TypeVar("T")

_OPENAT2: Final = 437
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_RESOLVE_SAFELY: Final = 0x02 | 0x04 | 0x08  #: no magic links, no symbolic links, nothing above the beginning
_OPEN_TREE_CLONE: Final = 0x1
_MOVE_BOTH_ARE_OPEN: Final = 0x04 | 0x40
_EMPTY_PATH: Final = 0x1000
_RDONLY, _NOSUID, _NODEV, _NOSYMFOLLOW = 0x1, 0x2, 0x4, 0x200000
_CLONE_NEWNS, _CLONE_FS = 0x00020000, 0x00000200
#: Of a path with a link or `..` in it.
LEADS_AWAY: Final = (errno.ELOOP, errno.EXDEV)
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class MountFailed(Exception):
    """A folder cannot be mounted; the message says why."""


def open_beneath(folder: int, path: str, flags: int = os.O_PATH | os.O_DIRECTORY) -> int:
    """A descriptor of `path` below the open `folder`; OSError when a link or `..` lies on the way."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_SAFELY)
    return _call(_OPENAT2, folder, os.fsencode(path), how, len(how))


def make_beneath(folder: int, path: str, *, uid: int, gid: int, mode: int = 0o755) -> int:
    """The same, folders that are missing made on the way, for this user."""
    here = os.dup(folder)
    try:
        for part in PurePosixPath(path).parts:
            try:
                below = open_beneath(here, part)
            except FileNotFoundError:
                os.mkdir(part, mode, dir_fd=here)
                below = open_beneath(here, part)
                os.chown(part, uid, gid, dir_fd=here, follow_symlinks=False)
            os.close(here)
            here = below
    except BaseException:
        os.close(here)
        raise
    return here


def clone(folder: int, *, read_only: bool) -> int:
    """The open folder as a mount of its own that is nowhere yet: nosuid, nodev, and read-only if asked."""
    mount = _call(_OPEN_TREE, folder, b"", _EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        flags = _NOSUID | _NODEV | (_RDONLY if read_only else 0)
        attributes = struct.pack("QQQQ", flags, 0, 0, 0)
        _call(_MOUNT_SETATTR, mount, b"", _EMPTY_PATH, attributes, len(attributes))
    except BaseException:
        os.close(mount)
        raise
    return mount


class Inside:
    """The mount namespace and root of a running container, held open."""

    def __init__(self, pid: int, container_id: str) -> None:
        """Raises MountFailed when the process is not, or no longer, of this container."""
        self._fds: list[int] = []
        try:
            self._namespace = self._keep(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
            self._root = self._keep(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            # looked at after the opening: a number that is another's by now shows here
            if container_id not in Path(f"/proc/{pid}/cgroup").read_text():
                raise MountFailed("the container has ended")
            self._mountinfo = Path(f"/proc/{pid}/mountinfo").read_text()
            own = Path("/proc/self/ns/mnt").stat()
            if os.path.samestat(own, os.fstat(self._namespace)):
                raise MountFailed("the container shares the host's mounts")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise MountFailed(f"the container cannot be entered: {error.strerror}") from None
            raise

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def count(self, target: str) -> int:
        """How many things are mounted there already, each over the one before."""
        shown = target.replace(" ", "\\040")
        return sum(line.split(" ")[4] == shown for line in self._mountinfo.splitlines())

    def attach(self, mount: int, target: str) -> None:
        """The folder `target` must be there; a link on the way to it is refused."""

        def move() -> None:
            place = open_beneath(self._root, target.lstrip("/"))
            try:
                _call(_MOVE_MOUNT, mount, b"", place, b"", _MOVE_BOTH_ARE_OPEN)
            finally:
                os.close(place)

        try:
            self._there(move)
        except OSError as error:
            why = "a symbolic link is on the way" if error.errno in LEADS_AWAY else error.strerror
            raise MountFailed(f"{target} cannot be mounted: {why}") from None

    def _there(self, work: Callable[[], T]) -> T:
        """In the namespace: on a thread of its own, which ends there."""
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                _checked(_libc.unshare(_CLONE_FS))  # a thread alone may change its namespace
                _checked(_libc.setns(self._namespace, _CLONE_NEWNS))
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="mount", daemon=True)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


@contextlib.contextmanager
def inside(pid: int, container_id: str) -> Iterator[Inside]:
    opened = Inside(pid, container_id)
    try:
        yield opened
    finally:
        opened.close()


def _call(number: int, *arguments: int | bytes) -> int:
    wide = [argument if isinstance(argument, bytes) else ctypes.c_long(argument) for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
