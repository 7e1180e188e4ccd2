"""File operations as the session's user: no path leaves the allowed folders, and none leads through a symbolic link.

Called in threads. Every refusal is a `Refused` with one of the codes of domain.errors.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import contextlib
import errno
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 256
_PIECE = 1 << 20
#: An upload looks at the quota again after so many bytes.
_QUOTA_STEP = 32 << 20
PART_PREFIX = ".moorage-part-"


class Refused(Exception):
    """What cannot be done, in one sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Quota:
    """How much the tree under a folder holds, counted again only when the answer may matter."""

    def __init__(self, folder: str, limit: int | None, apart: Collection[str] = ()) -> None:
        self.limit = limit
        self.files_limit: int | None = None
        self.files = 0
        self._apart = frozenset(apart)  #: folders below that are not counted: mounts
        self._folder = folder
        self._lock = threading.Lock()
        self._used = 0
        self._counted_at = -1e9
        self._cost = 0.0  #: seconds that the last count took
        self._epoch = 0

    def used(self, max_age_seconds: float = 10.0) -> int:
        with self._lock:
            age = time.monotonic() - self._counted_at
            if age > max(max_age_seconds, 20 * self._cost):
                self._count()
            return self._used

    def claim(self, size: int, files: int = 0) -> None:
        """Make sure that so many more bytes and files fit, and count them in; they are forgotten at the next count."""
        if self.limit is None and self.files_limit is None:
            return
        with self._lock:
            stale = time.monotonic() - self._counted_at > max(5.0, 20 * self._cost)
            if stale or self._over(size, files):
                fresh = time.monotonic() - self._counted_at < max(0.05, 2 * self._cost) and self._cost > 0.02
                if not fresh:
                    self._count()
            if self.files_limit is not None and files and self.files + files > self.files_limit:
                raise Refused(
                    "quota_exceeded",
                    f"At most {self.files_limit} files are allowed here, and {self.files} are there; remove some first.",
                )
            if self.limit is not None and self._over(size, 0):
                raise Refused(
                    "quota_exceeded",
                    f"The session's disk quota is {self.limit >> 20} MiB and {self._used >> 20} MiB are in use; "
                    "remove something first.",
                )
            self._used += size
            self.files += files

    def forget(self) -> None:
        """Much has come or gone: the next look counts anew."""
        with self._lock:
            self._counted_at = -1e9

    def _over(self, size: int, files: int) -> bool:
        over = self.limit is not None and self._used + size > self.limit
        return over or (self.files_limit is not None and files > 0 and self.files + files > self.files_limit)

    def release(self, size: int, files: int = 0) -> None:
        with self._lock:
            self._used = max(0, self._used - size)
            self.files = max(0, self.files - files)

    def _count(self) -> None:
        started = time.monotonic()
        total = files = 0
        seen: set[int] = set()
        try:
            device = os.stat(self._folder).st_dev
        except OSError:
            device = -1
        stack = [self._folder]
        while stack:
            try:
                with os.scandir(stack.pop()) as entries:
                    for entry in entries:
                        try:
                            facts = entry.stat(follow_symlinks=False)
                        except OSError:
                            continue
                        if facts.st_dev != device or entry.path in self._apart:
                            continue
                        files += 1
                        if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
                            if facts.st_ino in seen:
                                continue
                            seen.add(facts.st_ino)
                        total += facts.st_blocks * 512
                        if stat.S_ISDIR(facts.st_mode):
                            stack.append(entry.path)
            except OSError:
                continue  # unreadable, or gone meanwhile
        self._used, self.files = total, files
        self._counted_at = time.monotonic()
        self._cost = self._counted_at - started


class Files:
    """The folders that file operations may touch: `workdir`, /tmp and the given mounts."""

    def __init__(self, workdir: str, roots: list[str], quota_bytes: int | None) -> None:
        self.workdir = os.path.normpath(workdir)
        self._roots = sorted({self.workdir, "/tmp", *map(os.path.normpath, roots)}, key=len, reverse=True)
        self.quota = Quota(self.workdir, quota_bytes, self._roots)

    # -- what can be asked -------------------------------------------------------------------------------------------
    def page(self, path: str, cursor: str | None, limit: int) -> dict[str, Any]:
        with self._folder(path) as folder:
            try:
                reader = os.open(".", READ_FOLDER, dir_fd=folder)
            except OSError as error:
                raise refusal(error, path) from None
            try:
                names = sorted(os.fsencode(name) for name in os.listdir(reader))
                start = bisect.bisect_right(names, _cursor(cursor)) if cursor else 0
                page = names[start : start + max(1, min(limit, 1000))]
                files = []
                for raw in page:
                    with contextlib.suppress(FileNotFoundError):
                        files.append(_describe(os.fsdecode(raw), reader, os.fsdecode(raw)))
            finally:
                os.close(reader)
        more = start + len(page) < len(names)
        following = base64.urlsafe_b64encode(page[-1]).decode() if more and page else None
        return {"files": files, "next_cursor": following}

    def manage(self, op: str, args: dict[str, Any]) -> dict[str, Any] | None:
        operation = {
            "mkdir": self._mkdir,
            "move": self._move,
            "copy": self._copy,
            "remove": self._remove,
            "stat": self._stat,
            "chmod": self._chmod,
        }.get(op)
        if operation is None:
            raise Refused("invalid_request", f"{op!r} is none of mkdir, move, copy, remove, stat, chmod.")
        return operation(args)

    def open(self, path: str) -> tuple[int, dict[str, Any]]:
        """A regular file for reading. A device or pipe is opened without blocking and refused."""
        with self._place(path) as (folder, name):
            self._no_link(folder, name, path)
            try:
                fd = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder
                )
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket
                    raise _not_regular(path) from None
                raise refusal(error, path) from None
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            os.close(fd)
            raise _not_regular(path)
        return fd, _facts(path, facts, None)

    def put(
        self,
        path: str,
        pieces: Callable[[], Iterator[memoryview]],
        *,
        size: int | None,
        mode: int | None,
        overwrite: bool,
        sha256: str | None,
    ) -> dict[str, Any]:
        """Write a file under a temporary name beside it, then give it its name; on any failure nothing is left."""
        limited = self._is_under_workdir(path)
        with self._place(path, make=True) as (folder, name):
            before = look(folder, name, path)
            if before is not None:
                self._no_link(folder, name, path)
                if not stat.S_ISREG(before.st_mode):
                    raise _not_regular(path)
                if not overwrite:
                    raise exists(path)
            claimed = 0
            part = PART_PREFIX + secrets.token_hex(8)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                if limited:
                    self.quota.claim(size or 0, files=int(before is None))
                    claimed = size or 0
                fd = os.open(part, flags, 0o600, dir_fd=folder)
            except OSError as error:
                raise refusal(error, path) from None
            try:
                digest = _sha256() if sha256 else None
                written = 0
                for piece in pieces():
                    if limited and size is None and written + len(piece) > claimed:
                        step = max(_QUOTA_STEP, len(piece)) if self._has_room(_QUOTA_STEP) else len(piece)
                        self.quota.claim(step)
                        claimed += step
                    written += len(piece)
                    if size is not None and written > size:
                        raise Refused(
                            "transfer_failed", f"More than the announced {size} bytes came; nothing was kept."
                        )
                    if digest is not None:
                        digest.update(piece)
                    write_all(fd, piece)
                if size is not None and written != size:
                    raise Refused("transfer_failed", f"{written} of {size} bytes came; nothing was kept.")
                if digest is not None and sha256 is not None and digest.hexdigest() != sha256.lower():
                    raise Refused("transfer_failed", "The bytes do not match the given SHA-256; nothing was kept.")
                keep = stat.S_IMODE(before.st_mode) & 0o777 if before is not None else 0o644
                os.fchmod(fd, keep if mode is None else mode & 0o7777)
                if overwrite:
                    os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder)  # fails when the name was taken meanwhile
                    os.unlink(part, dir_fd=folder)
                part = ""
                if limited and size is None:
                    self.quota.release(claimed - written)
                if limited and before is not None:
                    self.quota.release(before.st_blocks * 512)
                return _facts(path, os.fstat(fd), None)
            except BaseException as error:
                self.quota.release(claimed)
                if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
                    raise refusal(error, path) from None
                raise
            finally:
                os.close(fd)
                if part:
                    with contextlib.suppress(OSError):
                        os.unlink(part, dir_fd=folder)

    def archive(self, paths: list[str]) -> Archive:
        """Check the paths; the result writes itself as a tar stream."""
        places = []
        try:
            for path in paths:
                root, parts = self.locate(path)
                folder, name = self._walk(root, parts, path, make=False)
                places.append((folder, name, "/".join(parts)))
                if look(folder, name, path) is None:
                    raise _missing(path)
        except BaseException:
            for folder, _, _ in places:
                os.close(folder)
            raise
        return Archive(places)

    # -- the operations of manage --------------------------------------------------------------------------------------
    def _mkdir(self, args: dict[str, Any]) -> dict[str, Any]:
        path = _text(args, "path")
        parents = bool(args.get("parents"))
        with self._place(path, make=parents) as (folder, name):
            try:
                if self.quota.files_limit is not None:
                    self.quota.claim(0, files=1)
                os.mkdir(name, 0o755, dir_fd=folder)
                if args.get("mode") is not None:
                    os.chmod(name, _mode(args), dir_fd=folder)
            except FileExistsError:
                facts = look(folder, name, path)
                if not (parents and facts is not None and stat.S_ISDIR(facts.st_mode)):
                    raise exists(path) from None
            except OSError as error:
                raise refusal(error, path) from None
            return _describe(path, folder, name)

    def _move(self, args: dict[str, Any]) -> dict[str, Any]:
        path, to = _text(args, "path"), _text(args, "to")
        with self._place(path) as (source, name), self._place(to) as (target, new_name):
            if look(source, name, path) is None:
                raise _missing(path)
            if name == "." or new_name == ".":
                raise Refused("invalid_path", "One of the session's own folders cannot be moved or replaced.")
            if not args.get("overwrite") and look(target, new_name, to) is not None:
                raise exists(to)
            try:
                os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise refusal(error, to) from None
                self._copy_tree(source, name, target, new_name, path)
                remove_tree(source, name, path)
            return _describe(to, target, new_name)

    def _copy(self, args: dict[str, Any]) -> dict[str, Any]:
        path, to = _text(args, "path"), _text(args, "to")
        with self._place(path) as (source, name), self._place(to) as (target, new_name):
            facts = look(source, name, path)
            if facts is None:
                raise _missing(path)
            if stat.S_ISDIR(facts.st_mode):
                if not args.get("recursive"):
                    raise Refused("not_a_regular_file", f"{path!r} is a folder; pass recursive to copy it.")
                root, parts = self.locate(path)
                to_root, to_parts = self.locate(to)
                if (root, parts) == (to_root, to_parts[: len(parts)]):
                    raise Refused("invalid_path", "A folder cannot be copied into itself.")
            there = look(target, new_name, to)
            if there is not None:
                if not args.get("overwrite"):
                    raise exists(to)
                remove_tree(target, new_name, to)
            try:
                self._copy_tree(source, name, target, new_name, path)
            except BaseException:
                with contextlib.suppress(Refused, OSError):
                    remove_tree(target, new_name, to)
                raise
            return _describe(to, target, new_name)

    def _remove(self, args: dict[str, Any]) -> None:
        path = _text(args, "path")
        with self._place(path) as (folder, name):
            if name == ".":
                raise Refused(
                    "invalid_path", "One of the session's own folders cannot be removed; remove what is in it."
                )
            facts = look(folder, name, path)
            if facts is None:
                raise _missing(path)
            try:
                if not stat.S_ISDIR(facts.st_mode):
                    os.unlink(name, dir_fd=folder)
                elif args.get("recursive"):
                    remove_tree(folder, name, path)
                else:
                    os.rmdir(name, dir_fd=folder)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise Refused("file_error", f"{path!r} is not empty; pass recursive to remove all of it.") from None
                raise refusal(error, path) from None
        self.quota.release(facts.st_blocks * 512)

    def _stat(self, args: dict[str, Any]) -> dict[str, Any]:
        path = _text(args, "path")
        with self._place(path) as (folder, name):
            if look(folder, name, path) is None:
                raise _missing(path)
            return _describe(path, folder, name)

    def _chmod(self, args: dict[str, Any]) -> dict[str, Any]:
        path, mode = _text(args, "path"), _mode(args)
        with self._place(path) as (folder, name):
            facts = look(folder, name, path)
            if facts is None:
                raise _missing(path)
            self._no_link(folder, name, path)
            try:
                _chmod_tree(folder, name, mode, recursive=bool(args.get("recursive")))
            except OSError as error:
                raise refusal(error, path) from None
            return _describe(path, folder, name)

    def _copy_tree(self, source: int, name: str, target: int, new_name: str, path: str, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise Refused("file_error", f"{path!r} is deeper than {_MAX_DEPTH} folders.")
        try:
            facts = os.lstat(name) if source < 0 else os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISLNK(facts.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), new_name, dir_fd=target)
            elif stat.S_ISDIR(facts.st_mode):
                os.mkdir(new_name, 0o700, dir_fd=target)
                reader = os.open(name, READ_FOLDER, dir_fd=source)
                try:
                    writer = os.open(new_name, FOLDER, dir_fd=target)
                    try:
                        for child in os.listdir(reader):
                            self._copy_tree(reader, child, writer, child, path, depth + 1)
                    finally:
                        os.close(writer)
                finally:
                    os.close(reader)
                os.chmod(new_name, stat.S_IMODE(facts.st_mode), dir_fd=target)
            elif stat.S_ISREG(facts.st_mode):
                self._copy_file(source, name, target, new_name)
            # pipes, sockets and devices are left out
        except OSError as error:
            raise refusal(error, path) from None

    def _copy_file(self, source: int, name: str, target: int, new_name: str) -> None:
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            facts = os.fstat(reader)
            self.quota.claim(facts.st_size, files=1)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            writer = os.open(new_name, flags, 0o600, dir_fd=target)
            try:
                while os.sendfile(writer, reader, None, 8 << 20):
                    pass
                os.fchmod(writer, stat.S_IMODE(facts.st_mode) & 0o777)
                os.utime(writer, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    # -- paths -----------------------------------------------------------------------------------------------------------
    def _has_room(self, size: int) -> bool:
        return self.quota.limit is None or self.quota.used() + size < self.quota.limit

    def _is_under_workdir(self, path: str) -> bool:
        return self.quota.limit is not None and self.locate(path)[0] == self.workdir

    def locate(self, path: Any) -> tuple[str, list[str]]:
        """The root that a path lies under, and its components below it."""
        if not isinstance(path, str) or not path or "\0" in path:
            raise Refused("invalid_path", "A path is a text without NUL, and not empty.")
        try:
            raw = os.fsencode(path)
        except UnicodeEncodeError:
            raise Refused("invalid_path", "The path is not valid Unicode.") from None
        if len(raw) > 4096 or any(len(part) > 255 for part in raw.split(b"/")):
            raise Refused("invalid_path", "The path, or one of its components, is too long.")
        parts: list[str] = []
        absolute = path.startswith("/")
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
            elif not absolute:
                raise Refused("invalid_path", f"'..' in {path!r} leads outside {self.workdir}.")
        if not absolute:
            parts = [*(part for part in self.workdir.split("/") if part), *parts]
        for root in self._roots:
            above = [part for part in root.split("/") if part]
            if parts[: len(above)] == above:
                return root, parts[len(above) :]
        raise Refused("invalid_path", f"{path!r} is outside the session's folders; name a file under {self.workdir}.")

    def _walk(self, root: str, parts: list[str], path: str, *, make: bool) -> tuple[int, str]:
        """The open folder that holds the last component, and that component."""
        try:
            folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise refusal(error, root) from None
        try:
            for index, part in enumerate(parts[:-1]):
                following = self._step(folder, part, "/".join(parts[: index + 1]), path, make=make)
                os.close(folder)
                folder = following
        except BaseException:
            os.close(folder)
            raise
        return folder, parts[-1] if parts else "."

    def _step(self, folder: int, part: str, shown: str, path: str, *, make: bool) -> int:
        try:
            return os.open(part, FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise Refused("file_not_found", f"There is no {path!r}: the folder {shown!r} is missing.") from None
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=folder)
                return os.open(part, FOLDER, dir_fd=folder)
            except OSError as error:
                raise refusal(error, shown) from None
        except NotADirectoryError:
            self._no_link(folder, part, shown)
            raise Refused("file_not_found", f"There is no {path!r}: {shown!r} is not a folder.") from None
        except OSError as error:
            raise refusal(error, shown) from None

    @contextlib.contextmanager
    def _place(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        root, parts = self.locate(path)
        folder, name = self._walk(root, parts, path, make=make)
        try:
            yield folder, name
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        with self._place(path) as (parent, name):
            facts = look(parent, name, path)
            if facts is None:
                raise _missing(path)
            self._no_link(parent, name, path)
            if not stat.S_ISDIR(facts.st_mode):
                raise Refused("file_error", f"{path!r} is not a folder.")
            try:
                folder = os.open(name, FOLDER, dir_fd=parent)
            except OSError as error:
                raise refusal(error, path) from None
        try:
            yield folder
        finally:
            os.close(folder)

    @staticmethod
    def _no_link(folder: int, name: str, shown: str) -> None:
        facts = look(folder, name, shown)
        if facts is not None and stat.S_ISLNK(facts.st_mode):
            raise Refused("invalid_path", f"{shown!r} is a symbolic link; paths through links are refused.")


class Archive:
    """Files and folders as a tar stream. Links are stored as links; pipes, sockets and devices are left out."""

    def __init__(self, places: list[tuple[int, str, str]]) -> None:
        self._places = places  #: open folder, name in it, name in the archive

    def close(self) -> None:
        for folder, _, _ in self._places:
            os.close(folder)
        self._places = []

    def write(self, send: Callable[[bytes], None], send_file: Callable[[int, int], None], left_out: list[str]) -> None:
        """`send_file(fd, n)` sends up to n bytes of a file and says nothing of how many; it pads what a shrunken file lacks."""
        for folder, name, arcname in self._places:
            self._entry(folder, name, "" if name == "." else arcname, send, send_file, left_out, 0)
        send(b"\0" * 1024)

    def _entry(
        self,
        folder: int,
        name: str,
        arcname: str,
        send: Callable[[bytes], None],
        send_file: Callable[[int, int], None],
        left_out: list[str],
        depth: int,
    ) -> None:
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            fd, target = -1, ""
            if stat.S_ISLNK(facts.st_mode):
                target = os.readlink(name, dir_fd=folder)
            elif stat.S_ISDIR(facts.st_mode):
                fd = os.open(name, READ_FOLDER, dir_fd=folder)
            elif stat.S_ISREG(facts.st_mode):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                facts = os.fstat(fd)
                if not stat.S_ISREG(facts.st_mode):
                    os.close(fd)
                    return
            else:
                return
        except OSError as error:
            left_out.append(f"{arcname}: {error.strerror}")
            return
        try:
            if arcname:
                send(_tar_header(arcname, facts, target))
            if stat.S_ISDIR(facts.st_mode):
                if depth >= _MAX_DEPTH:
                    left_out.append(f"{arcname}: deeper than {_MAX_DEPTH} folders")
                    return
                for child in sorted(os.listdir(fd)):
                    below = f"{arcname}/{child}" if arcname else child
                    self._entry(fd, child, below, send, send_file, left_out, depth + 1)
            elif fd >= 0 and facts.st_size:
                send_file(fd, facts.st_size)
                if facts.st_size % 512:
                    send(bytes(512 - facts.st_size % 512))
        finally:
            if fd >= 0:
                os.close(fd)


def _tar_header(arcname: str, facts: os.stat_result, target: str) -> bytes:
    """What tarfile would write, and twenty times as fast for the names that most files have."""
    folder = stat.S_ISDIR(facts.st_mode)
    name = (arcname + "/" if folder else arcname).encode("utf-8", "surrogateescape")
    size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    mtime = int(facts.st_mtime)
    plain = name.isascii() and target.isascii() and len(name) <= 100 and len(target) <= 100
    if plain and size < 8**11 and 0 <= mtime < 8**11 and max(facts.st_uid, facts.st_gid) < 8**7:
        kind = b"5" if folder else b"2" if target else b"0"
        fields = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (
            stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, size, mtime,
        )  # fmt: skip
        head = name.ljust(100, b"\0") + fields
        tail = kind + target.encode().ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"%07o\0" % 0 * 2
        total = sum(head) + sum(tail) + 8 * 32
        return (head + b"%06o\0 " % total + tail).ljust(512, b"\0")
    import tarfile

    entry = tarfile.TarInfo(arcname)
    entry.mode, entry.mtime, entry.size = stat.S_IMODE(facts.st_mode), mtime, size
    entry.uid, entry.gid = facts.st_uid, facts.st_gid
    entry.type = tarfile.DIRTYPE if folder else tarfile.SYMTYPE if target else tarfile.REGTYPE
    entry.linkname = target
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def look(folder: int, name: str, path: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(error, path) from None


def _describe(shown: str, folder: int, name: str) -> dict[str, Any]:
    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    target = None
    if stat.S_ISLNK(facts.st_mode):
        with contextlib.suppress(OSError):
            target = os.readlink(name, dir_fd=folder)
    return _facts(shown, facts, target)


def _facts(shown: str, facts: os.stat_result, target: str | None) -> dict[str, Any]:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
    kinds[stat.S_IFSOCK] = "socket"
    return {
        "name": _clean(shown),
        "type": kinds.get(stat.S_IFMT(facts.st_mode), "device"),
        "size": facts.st_size,
        "mtime": facts.st_mtime,
        "mode": stat.S_IMODE(facts.st_mode),
        "owner": facts.st_uid,
        "group": facts.st_gid,
        "link_target": None if target is None else _clean(target),
    }


def _clean(name: str) -> str:
    """A name that is not UTF-8 is shown with U+FFFD in it: such a file can be archived with its folder, but not named."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _cursor(cursor: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(cursor.encode("ascii"))
    except (binascii.Error, ValueError):
        raise Refused("invalid_request", "The cursor is not one that a listing gave.") from None


def _text(args: dict[str, Any], name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str):
        raise Refused("invalid_request", f"{name!r} must be a text.")
    return value


def _mode(args: dict[str, Any]) -> int:
    mode = args.get("mode")
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        raise Refused("invalid_request", "'mode' must be permission bits, from 0 to 0o7777.")
    return mode


def _chmod_tree(folder: int, name: str, mode: int, *, recursive: bool, depth: int = 0) -> None:
    # through a descriptor: fchmodat has no AT_SYMLINK_NOFOLLOW, and a name can become a link meanwhile
    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(facts.st_mode) or depth > _MAX_DEPTH:
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            return
        if recursive and stat.S_ISDIR(facts.st_mode):
            reader = os.open(".", READ_FOLDER, dir_fd=fd)
            try:
                for child in os.listdir(reader):
                    _chmod_tree(reader, child, mode, recursive=True, depth=depth + 1)
            finally:
                os.close(reader)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def remove_tree(folder: int, name: str, path: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise Refused("file_error", f"{path!r} is deeper than {_MAX_DEPTH} folders; remove it from inside the session.")
    try:
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(facts.st_mode):
            os.unlink(name, dir_fd=folder)
            return
        reader = os.open(name, READ_FOLDER, dir_fd=folder)
        try:
            for child in os.listdir(reader):
                remove_tree(reader, child, path, depth + 1)
        finally:
            os.close(reader)
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refusal(error, path) from None


def write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _sha256() -> Any:
    import hashlib

    return hashlib.sha256()


def _missing(path: str) -> Refused:
    return Refused("file_not_found", f"There is no {path!r} in the session.")


def exists(path: str) -> Refused:
    return Refused("file_exists", f"There is a {path!r} already; pass overwrite, or choose another name.")


def _not_regular(path: str) -> Refused:
    return Refused("not_a_regular_file", f"{path!r} is a directory, device, pipe or socket, not a regular file.")


def refusal(error: OSError, path: str) -> Refused:
    if error.errno == errno.ENOENT:
        return _missing(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused("file_permission_denied", f"The session's user may not do this to {path!r}: {error.strerror}.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Refused("quota_exceeded", f"No space is left for {path!r}: {error.strerror}.")
    if error.errno == errno.ELOOP:
        return Refused("invalid_path", f"{path!r} is a symbolic link; paths through links are refused.")
    if error.errno == errno.EEXIST:
        return exists(path)
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return Refused("resource_exhausted", f"The session ran out of memory or descriptors: {error.strerror}.")
    if error.errno == errno.ENOTDIR:
        return Refused("file_error", f"{path!r} is not a folder.")
    if error.errno == errno.EISDIR:
        return _not_regular(path)
    return Refused("file_error", f"{path!r}: {error.strerror}.")
