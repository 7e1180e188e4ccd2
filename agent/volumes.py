"""Volumes on this host: a folder, of its own or mounted from NFS, in which every volume is one folder.

A store is known by the id in its marker, so that all hosts that mount one NFS folder have the same store, and nobody has
to say so. Files are read and written with the rights of the volume's own user, never root's, and no link is followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import encodings.cp437  # noqa: F401 - this, hashlib, tarfile and zipfile: a thread with a user's rights may not be able to read them
import errno
import hashlib  # noqa: F401
import os
import secrets
import shutil
import socket
import stat
import tarfile  # noqa: F401
import threading
import zipfile  # noqa: F401
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from agent import mounts
from agent.client import FileStat
from agent.jobs import Jobs, Progress
from agent.rings import RunnerError
from domain.crash import reach
from domain.volumes import HOME, is_at_home, may_be_mounted_at
from runner.files import Files, Quota, Refused
from runner.unpack import Limits, unpack

T = TypeVar("T")
MARKER: Final = ".moorage-volumes"
_TRASH: Final = ".trash"
_GONE: Final = ".gone"
_THREADS: Final = 8
_MOST_OPEN: Final = 256
_PIECE: Final = 1 << 20
_SYS_SETGROUPS: Final = 116
_IN_THE_WAY: Final = (*mounts.LEADS_AWAY, errno.ENOTDIR, errno.EEXIST)
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The volume that a request means, see `agent.client.VolumeAddress`."""

    id: UUID
    uid: int
    gid: int
    quota_bytes: int | None
    quota_files: int | None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Asked:
        uid, gid = int(said["uid"]), int(said["gid"])
        if uid < 1 or gid < 1:
            raise RunnerError("invalid_request", "A volume is never root's.")
        return cls(
            id=UUID(str(said["id"])),
            uid=uid,
            gid=gid,
            quota_bytes=said.get("quota_bytes"),
            quota_files=said.get("quota_files"),
        )


class Volumes:
    """All volumes of this host's store."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.store = _marked(root)
        self._threads = ThreadPoolExecutor(_THREADS, "volume", initializer=_without_groups)
        self._tops: OrderedDict[UUID, _Top] = OrderedDict()
        self.jobs = Jobs()

    async def close(self) -> None:
        await self.jobs.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def open(self, asked: Mapping[str, Any]) -> VolumeFiles:
        """For the files of one volume, as its user. Its folder is made when nobody has used it yet."""
        volume = Asked.of(asked)
        if asked.get("store") != self.store:
            raise RunnerError("no_volume_store", "This host has another store for volumes than the one that is meant.")
        folder = self._folder(volume)
        top = self._tops.pop(volume.id, None) or _Top(folder)
        self._tops[volume.id] = top
        if len(self._tops) > _MOST_OPEN:
            self._tops.popitem(last=False)
        top.quota.limit, top.quota.files_limit = volume.quota_bytes, volume.quota_files
        return VolumeFiles(folder, top, volume, self._threads)

    def descriptor(self, mount: Mapping[str, Any]) -> int:
        """Of the folder that is to be mounted. Raises MountFailed."""
        try:
            folder = self._folder(Asked.of({**mount, "id": mount["volume"]}))
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (RunnerError, OSError) as error:
            raise mounts.MountFailed(f"the volume '{mount['name']}' cannot be opened: {error}") from None
        subpath = str(mount.get("subpath") or "")
        if not subpath:
            return fd
        try:
            return mounts.open_beneath(fd, subpath)
        except OSError as error:
            why = "a symbolic link is on the way" if error.errno in mounts.LEADS_AWAY else error.strerror
            raise mounts.MountFailed(f"'{subpath}' in the volume '{mount['name']}': {why}") from None
        finally:
            os.close(fd)

    def _folder(self, volume: Asked) -> Path:
        """Only root can write beside it, so that this path is what it says."""
        folder = self._root / volume.id.hex
        if not folder.is_dir():
            if (self._root / _GONE / volume.id.hex).exists():
                raise RunnerError("volume_not_found", "The volume has been removed.")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o755)
                reach("agent.volume.made")
                folder.chmod(0o777)  # its users may have other uids; only root gets as far as this
        if (
            os.geteuid() == 0 and folder.stat().st_uid == 0
        ):  # new, or its making was cut short: a volume is never root's
            folder.chmod(0o777)
            os.chown(folder, volume.uid, volume.gid)
        return folder

    # -- whole volumes -----------------------------------------------------------------------------------------------
    async def clone(self, asked: Mapping[str, Any], source: UUID, progress: Progress) -> dict[str, int]:
        """Anew from the beginning, whatever an earlier try has left."""
        target, stop = self.open(asked), threading.Event()
        origin = self._root / source.hex
        if not origin.is_dir():
            if (self._root / _GONE / source.hex).exists():
                raise RunnerError("volume_not_found", "The volume that was to be copied has been removed.")
            return {"bytes": 0, "files": 0}
        loop = asyncio.get_running_loop()

        def report(current: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, current, total, f"{current >> 20} of {total >> 20} MiB")

        work = _Copy(origin, target.folder, target.asked, report, stop)
        done = loop.run_in_executor(self._threads, work.run)
        try:
            cloned = await asyncio.shield(done)
            reach("agent.volume.cloned")
            return cloned
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({done})
            raise

    async def remove(self, asked: Mapping[str, Any]) -> None:
        """Out of sight at once, then file by file. What is gone already is no error."""
        volume = Asked.of(asked)
        self._tops.pop(volume.id, None)
        await asyncio.get_running_loop().run_in_executor(self._threads, self._remove, volume)

    def _remove(self, volume: Asked) -> None:
        trash, gone = self._root / _TRASH, self._root / _GONE
        for folder in (trash, gone):
            folder.mkdir(mode=0o700, exist_ok=True)
        (gone / volume.id.hex).touch(mode=0o600)  # a request that comes late makes it no second time
        reach("agent.volume.gone")
        with contextlib.suppress(FileNotFoundError):
            (self._root / volume.id.hex).rename(trash / f"{volume.id.hex}-{secrets.token_hex(4)}")
        reach("agent.volume.in_trash")
        for left in trash.glob(f"{volume.id.hex}-*"):
            shutil.rmtree(left)


def mount_all(
    volumes: Volumes | None,
    wanted: Sequence[Mapping[str, Any]],
    scratch: Path,
    user: tuple[int, int],
    pid: int,
    container_id: str,
) -> None:
    """Put volumes into a container whose home is `scratch`. What is there already stays. Raises MountFailed."""
    if volumes is None:
        raise mounts.MountFailed("this host keeps no volumes")
    with mounts.inside(pid, container_id) as inside, contextlib.ExitStack() as opened:
        home = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        opened.callback(os.close, home)
        for mount in wanted:
            if mount.get("refused"):
                raise mounts.MountFailed(str(mount["refused"]))
            if mount["store"] != volumes.store:
                raise mounts.MountFailed(f"the volume '{mount['name']}' is in a store that this host does not have")
            path = str(mount["path"])
            at_home = is_at_home(path)
            if inside.count(path) > (0 if at_home else 1):
                continue
            folder = volumes.descriptor(mount)
            opened.callback(os.close, folder)
            if at_home:
                _make_place(home, path, user)
            elif not may_be_mounted_at(path) or not inside.count(path):  # the container was made with a place for it
                raise mounts.MountFailed(f"{path} is no place for a volume")
            tree = mounts.clone(folder, read_only=bool(mount["read_only"]))
            opened.callback(os.close, tree)
            inside.attach(tree, path)
            reach("agent.volume.mounted")


def _make_place(home: int, path: str, user: tuple[int, int]) -> None:
    below = path.removeprefix(f"{HOME}/")
    if below == path or not below:
        raise mounts.MountFailed(f"{path} is not below {HOME}")
    try:
        os.close(mounts.make_beneath(home, below, uid=user[0], gid=user[1]))
    except OSError as error:
        why = "a symbolic link or a file is in its place" if error.errno in _IN_THE_WAY else error.strerror
        raise mounts.MountFailed(f"{path}: {why}") from None


def _marked(root: Path) -> str:
    """The id of the store, which whoever is first gives to it."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    marker = root / MARKER
    if not marker.exists():
        whole = root / f"{MARKER}.{secrets.token_hex(8)}"
        whole.write_text(uuid4().hex)
        with contextlib.suppress(FileExistsError):  # another host was faster
            os.link(whole, marker)
        whole.unlink()
    store = marker.read_text().strip()
    if len(store) != 32:
        raise OSError(f"{marker} does not hold the id of a store")
    return store


class _Top:
    """A volume's folder, opened by root: its user has no way through the folders above it."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"
        self.quota = Quota(self.path, None)

    def __del__(self) -> None:
        os.close(self._fd)


class VolumeFiles:
    """What a `RunnerLink` does for the files of a session, for those of a volume."""

    def __init__(self, folder: Path, top: _Top, asked: Asked, threads: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.asked = asked
        self._top = top  #: stays open as long as this is in use
        self._files = _Beneath(top.path, top.quota)
        self._threads = threads

    async def list_files(self, path: str = ".", *, cursor: str | None = None, limit: int = 100) -> Any:
        page = await self._do(lambda: self._files.page(path, cursor, limit))
        return _Page([FileStat(**stat) for stat in page["files"]], page["next_cursor"])

    async def manage_file(self, op: str, arguments: dict[str, Any]) -> FileStat | None:
        found = await self._do(lambda: self._files.manage(op, arguments))
        return FileStat(**found) if found is not None else None

    async def open_file(self, path: str) -> tuple[int, FileStat]:
        fd, found = await self._do(lambda: self._files.open(path))
        return fd, FileStat(**found)

    async def put_file(
        self,
        path: str,
        source: AsyncIterator[bytes],
        *,
        size: int | None = None,
        mode: int | None = None,
        overwrite: bool = True,
        sha256: str | None = None,
    ) -> FileStat:
        found = await self._fed(
            source,
            lambda pieces: self._files.put(path, pieces, size=size, mode=mode, overwrite=overwrite, sha256=sha256),
        )
        return FileStat(**found)

    async def unpack(
        self, path: str, source: AsyncIterator[bytes], *, size: int | None = None, overwrite: bool = True
    ) -> dict[str, int]:
        return await self._fed(
            source, lambda pieces: unpack(self._files, path, pieces, limits=Limits(), overwrite=overwrite)
        )

    async def archive(self, paths: Sequence[str]) -> _Packing:
        packed = await self._do(lambda: self._files.archive(list(paths)))
        return _Packing(packed, self._submit)

    async def usage(self) -> dict[str, int]:
        def count() -> dict[str, int]:
            used = self._files.quota.used(max_age_seconds=0.0)
            return {"bytes": used, "files": self._files.quota.files}

        return await self._do(count)

    # -- in threads --------------------------------------------------------------------------------------------------
    def _submit(self, work: Callable[[], T]) -> Future[T]:
        def as_user() -> T:
            with _rights_of(self.asked.uid, self.asked.gid):
                return work()

        return self._threads.submit(as_user)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.wrap_future(self._submit(work))
        except Refused as refused:
            said = refused.message.replace("the session", "the volume").replace("The session", "The volume")
            raise RunnerError(refused.code, said.replace(self._top.path, "the volume")) from None

    async def _fed(self, source: AsyncIterator[bytes], work: Callable[[Callable[[], Iterator[memoryview]]], T]) -> T:
        """`work` gets the pieces as they come; when the source breaks off, it sees that as an error."""
        feed = _Feed(source)
        try:
            return await self._do(lambda: work(feed.pieces))
        finally:
            feed.stop()


class _Feed:
    """Pieces of an asynchronous source, for a thread."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._asked: Future[bytes | None] | None = None
        self._stopped = False

    def pieces(self) -> Iterator[memoryview]:
        while not self._stopped:
            self._asked = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            piece = self._asked.result()
            if piece is None:
                return
            yield memoryview(piece)
        raise Refused("transfer_failed", "The transfer was given up; nothing was kept.")

    async def _next(self) -> bytes | None:
        return await anext(self._source, None)

    def stop(self) -> None:
        self._stopped = True
        if self._asked is not None:
            self._asked.cancel()


@dataclass(frozen=True, slots=True)
class _Page:
    files: list[FileStat]
    next_cursor: str | None


class _Packing:
    """A tar stream that a thread writes as it is read: iterate, and always `aclose`."""

    stat: FileStat | None = None

    def __init__(self, packed: Any, submit: Callable[[Callable[[], None]], Future[None]]) -> None:
        self._packed = packed
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._pending = bytearray()
        self._done = submit(self._write)

    def _write(self) -> None:
        try:
            self._packed.write(self._send, self._send_file, [])
            self._flush()
        finally:
            self._packed.close()
            self._there.close()

    def _send(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= _PIECE // 2:
            self._flush()

    def _flush(self) -> None:
        self._there.sendall(self._pending)
        self._pending.clear()

    def _send_file(self, fd: int, size: int) -> None:
        if size < 1 << 16:
            data = os.pread(fd, size, 0)
            self._send(data.ljust(size, b"\0"))
            return
        self._flush()
        sent = 0
        while sent < size:
            done = os.sendfile(self._there.fileno(), fd, sent, min(size - sent, 8 * _PIECE))
            if not done:  # it has become shorter
                self._there.sendall(b"\0" * min(size - sent, _PIECE))
                done = min(size - sent, _PIECE)
            sent += done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self._here, _PIECE):
            yield piece
        try:
            await asyncio.wrap_future(self._done)
        except OSError as error:
            raise RunnerError("transfer_failed", f"The archive broke off: {error.strerror}.") from None

    async def aclose(self) -> None:
        self._here.close()
        with contextlib.suppress(OSError):
            await asyncio.wrap_future(self._done)


class _Beneath(Files):
    """One folder of the host, beneath which all paths are: a leading slash changes nothing."""

    def __init__(self, folder: str, quota: Quota) -> None:
        super().__init__(folder, [], None)
        self._roots = [self.workdir]
        self.quota = quota

    def locate(self, path: Any) -> tuple[str, list[str]]:
        return super().locate((path.lstrip("/") or ".") if isinstance(path, str) else path)

    def _is_under_workdir(self, path: str) -> bool:
        return True


# -- whose rights ------------------------------------------------------------------------------------------------------
def _without_groups() -> None:
    """Of this thread alone: the wrapper of the C library would change all of them."""
    if os.geteuid() == 0:
        _libc.syscall(ctypes.c_long(_SYS_SETGROUPS), ctypes.c_long(0), None)


@contextlib.contextmanager
def _rights_of(uid: int, gid: int) -> Iterator[None]:
    """This thread's work on files has this user's rights, and none of root's."""
    if os.geteuid() != 0:
        yield
        return
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        if _libc.setfsuid(-1) != uid or _libc.setfsgid(-1) != gid:
            raise Refused("file_permission_denied", f"The host cannot act as user {uid}.")
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)


# -- copies ------------------------------------------------------------------------------------------------------------
class _Copy:
    """A tree of files, copied with root's rights by descriptors: links stay links, pipes and devices are left out."""

    def __init__(
        self, source: Path, target: Path, asked: Asked, report: Callable[[int, int], None], stop: threading.Event
    ) -> None:
        self._source, self._target = source, target
        self._asked = asked
        self._report = report
        self._stop = stop
        self._bytes = self._files = 0
        self._total = 0

    def run(self) -> dict[str, int]:
        quota = Quota(str(self._source), None)
        self._total = quota.used(0)
        if (self._asked.quota_bytes or self._total) < self._total or (
            self._asked.quota_files or quota.files
        ) < quota.files:
            raise RunnerError("quota_exceeded", "What is to be copied is larger than the quota of the copy.")
        for entry in os.scandir(self._target):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        source, target = os.open(self._source, flags), os.open(self._target, flags)
        try:
            self._folder(source, target)
        except OSError as error:
            raise RunnerError("file_error", f"The copy broke off: {error.strerror}.") from None
        finally:
            os.close(source)
            os.close(target)
        return {"bytes": self._bytes, "files": self._files}

    def _folder(self, source: int, target: int, depth: int = 0) -> None:
        for name in os.listdir(source):
            if self._stop.is_set():
                raise OSError(4, "it was stopped")
            facts = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISLNK(facts.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                os.chown(name, self._asked.uid, self._asked.gid, dir_fd=target, follow_symlinks=False)
            elif stat.S_ISDIR(facts.st_mode) and depth < 250:
                os.mkdir(name, 0o700, dir_fd=target)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner, made = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
                try:
                    self._folder(inner, made, depth + 1)
                    self._own(made, facts.st_mode)
                finally:
                    os.close(inner)
                    os.close(made)
            elif stat.S_ISREG(facts.st_mode):
                self._file(source, target, name)
            self._files += 1

    def _file(self, source: int, target: int, name: str) -> None:
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            facts = os.fstat(reader)
            if not stat.S_ISREG(facts.st_mode):
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            writer = os.open(name, flags, 0o600, dir_fd=target)
            try:
                while count := os.sendfile(writer, reader, None, 16 << 20):
                    self._bytes += count
                    self._report(min(self._bytes, self._total), self._total)
                    if self._stop.is_set():
                        raise OSError(4, "it was stopped")
                self._own(writer, facts.st_mode)
                os.utime(writer, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    def _own(self, fd: int, mode: int) -> None:
        if os.geteuid() == 0:
            os.fchown(fd, self._asked.uid, self._asked.gid)
        os.fchmod(fd, stat.S_IMODE(mode) & 0o777)
