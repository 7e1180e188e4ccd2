"""Archives into folders: whole or not at all.

Everything is written beside its place first, under a name of our own, and moved only when the archive has come to its end
and nothing speaks against it. A folder that is new gets there by one rename; into one that is there, names are moved one by
one, and moved back when one of them cannot be.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from runner.archives import Entry, Limits, Stream, opened, refuse, tar_entries, zip_entries
from runner.files import (
    FOLDER,
    PART_PREFIX,
    READ_FOLDER,
    Files,
    Refused,
    exists,
    look,
    refusal,
    remove_tree,
    write_all,
)

__all__ = ["Limits", "unpack"]

_MOST_OPEN = 64


def unpack(
    files: Files,
    path: str,
    pieces: Callable[[], Iterator[memoryview]],
    *,
    limits: Limits,
    overwrite: bool = True,
) -> dict[str, int]:
    """Into the folder `path`, which is made when it is missing. Says how many files, folders, links and bytes."""
    above, missing = _deepest(files, path)
    try:
        part = PART_PREFIX + secrets.token_hex(8)
        try:
            os.mkdir(part, 0o700, dir_fd=above)
            try:
                stage = os.open(part, FOLDER, dir_fd=above)
                try:
                    return _unpack(files, path, pieces, limits, overwrite, above, missing, stage)
                finally:
                    os.close(stage)
            finally:
                with contextlib.suppress(Refused, OSError):
                    remove_tree(above, part, path)
                files.quota.forget()
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise
            raise refusal(error, path) from None
    finally:
        os.close(above)


def _unpack(
    files: Files,
    path: str,
    pieces: Callable[[], Iterator[memoryview]],
    limits: Limits,
    overwrite: bool,
    above: int,
    missing: list[str],
    stage: int,
) -> dict[str, int]:
    os.mkdir("new", 0o755, dir_fd=stage)
    fresh = os.open("new", FOLDER, dir_fd=stage)
    try:
        for name in missing:
            os.mkdir(name, 0o755, dir_fd=fresh)
            below = os.open(name, FOLDER, dir_fd=fresh)
            os.close(fresh)
            fresh = below
        free = os.fstatvfs(stage)
        room = int(free.f_bavail * free.f_frsize * 0.95)
        tree = _Tree(files, fresh, limits, min(limits.total_bytes, room))
        try:
            for entry in _entries(tree, pieces, limits, stage):
                tree.add(entry)
            tree.finish()
            if missing:
                _place_new(stage, above, missing[0], path)
            else:
                _Merge(fresh, above, stage, path, overwrite).run()
        except BaseException:
            files.quota.release(tree.claimed, files=tree.entries)
            raise
        finally:
            tree.close()
        return tree.counts
    finally:
        os.close(fresh)


def _entries(tree: _Tree, pieces: Callable[[], Iterator[memoryview]], limits: Limits, stage: int) -> Iterator[Entry]:
    stream = Stream(pieces(), limits)
    if opened(stream) == "tar":
        yield from tar_entries(stream, limits)
        return
    fd = os.open("zip", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=stage)
    with os.fdopen(fd, "w+b") as file:
        os.unlink("zip", dir_fd=stage)
        size = 0
        for piece in stream.raw():
            size += len(piece)
            tree.check_room(size)
            write_all(fd, memoryview(piece))
        yield from zip_entries(_from_start(file), size, limits)


def _from_start(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file


def _deepest(files: Files, path: str) -> tuple[int, list[str]]:
    """The deepest folder on the way to `path` that is there, and what is missing below it."""
    root, parts = files.locate(path)
    try:
        here = os.open(root, FOLDER & ~os.O_NOFOLLOW)
    except OSError as error:
        raise refusal(error, root) from None
    try:
        for at, name in enumerate(parts):
            facts = look(here, name, path)
            if facts is None:
                return here, parts[at:]
            if stat.S_ISLNK(facts.st_mode):
                raise Refused("invalid_path", f"{name!r} is a symbolic link; paths through links are refused.")
            if not stat.S_ISDIR(facts.st_mode):
                raise exists(path)
            below = os.open(name, FOLDER, dir_fd=here)
            os.close(here)
            here = below
    except OSError as error:
        os.close(here)
        raise refusal(error, path) from None
    except BaseException:
        os.close(here)
        raise
    return here, []


class _Tree:
    """What has come of the archive so far, in a folder that nobody else knows. Links are made last, so none is walked."""

    def __init__(self, files: Files, top: int, limits: Limits, most_bytes: int) -> None:
        self._quota = files.quota
        self._top = top
        self._limits = limits
        self._most_bytes = most_bytes
        self._kinds: dict[str, str] = {"": "folder"}
        self._told: set[str] = set()  #: folders that have an entry of their own
        self._modes: list[tuple[list[str], int, float]] = []
        self._links: list[Entry] = []
        self._names_bytes = 0
        self._open: dict[str, int] = {}  #: folders that were used lately
        self.claimed = self.entries = 0
        self.counts = {"files": 0, "folders": 0, "links": 0, "bytes": 0}

    def add(self, entry: Entry) -> None:
        self._count(entry)
        name = "/".join(entry.parts)
        if entry.kind == "folder":
            self._add_folder(entry, name)
            return
        if not entry.parts:
            raise refuse("It holds a file without a name.")
        if name in self._kinds:
            raise refuse(f"It holds two things named {name!r}.")
        folder = self._folder(entry.parts[:-1])
        self._kinds[name] = entry.kind
        if entry.kind == "file":
            self._write(folder, entry, name)
        elif entry.kind == "hard":
            self._hard_link(folder, entry, name)
        else:
            self._links.append(entry)

    def _count(self, entry: Entry) -> None:
        self.entries += 1
        self._names_bytes += sum(len(part) for part in entry.parts) + len(entry.target)
        if self.entries > self._limits.entries or self._names_bytes > self._limits.names_bytes:
            raise refuse(f"It holds more than {self._limits.entries} files, or too long names.")

    def check_room(self, size: int) -> None:
        if size > self._most_bytes:
            raise Refused(
                "quota_exceeded",
                f"The archive unpacks to more than the {self._most_bytes >> 20} MiB that there is room for.",
            )

    def _add_folder(self, entry: Entry, name: str) -> None:
        if name in self._told:
            raise refuse(f"It holds two things named {name!r}.")
        os.close(os.dup(self._folder(entry.parts)))
        self._told.add(name)
        if entry.parts:
            self._modes.append((entry.parts, entry.mode & 0o777, entry.mtime))

    def _write(self, folder: int, entry: Entry, name: str) -> None:
        if entry.mode & (stat.S_ISUID | stat.S_ISGID):
            raise refuse(f"{name!r} would run with another's rights (set-user-id).")
        self.check_room(self.counts["bytes"] + entry.size)
        self._quota.claim(entry.size, files=1)
        self.claimed += entry.size
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(entry.parts[-1], flags, 0o600, dir_fd=folder)
        try:
            written = 0
            assert entry.body is not None
            for piece in entry.body():
                written += len(piece)
                if written > entry.size:
                    break
                write_all(fd, memoryview(piece))
            if written != entry.size:
                raise refuse(f"{name!r} has not the size that the archive says.")
            os.fchmod(fd, (entry.mode & 0o777) | 0o400)
            _set_time(fd, entry.mtime)
        finally:
            os.close(fd)
        self.counts["files"] += 1
        self.counts["bytes"] += entry.size

    def _hard_link(self, folder: int, entry: Entry, name: str) -> None:
        from runner.archives import name_parts

        parts = name_parts(entry.target.encode(), self._limits)
        if self._kinds.get("/".join(parts)) != "file":
            raise refuse(f"{name!r} is a hard link to {entry.target[:120]!r}, which is no file of the archive.")
        folder = os.dup(folder)
        try:
            source = self._folder(parts[:-1])
            os.link(parts[-1], entry.parts[-1], src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)
        self.counts["links"] += 1

    def _folder(self, parts: list[str]) -> int:
        """An open folder of the tree, made when it is missing; it stays open until some others are asked for."""
        wanted = "/".join(parts)
        if (known := self._open.get(wanted)) is not None:
            return known
        here, path = os.dup(self._top), ""
        try:
            for name in parts:
                path = f"{path}/{name}" if path else name
                kind = self._kinds.get(path)
                if kind is None:
                    self._quota.claim(0, files=1)
                    os.mkdir(name, 0o755, dir_fd=here)
                    self._kinds[path] = "folder"
                    self.counts["folders"] += 1
                elif kind != "folder":
                    raise refuse(f"{path!r} is a file and a folder at once.")
                below = os.open(name, FOLDER, dir_fd=here)
                os.close(here)
                here = below
        except BaseException:
            os.close(here)
            raise
        if len(self._open) >= _MOST_OPEN:
            self.close()
        self._open[wanted] = here
        return here

    def finish(self) -> None:
        for entry in self._links:
            self._check_link(entry)
        for entry in self._links:
            os.symlink(entry.target, entry.parts[-1], dir_fd=self._folder(entry.parts[:-1]))
            self.counts["links"] += 1
        for parts, mode, mtime in reversed(self._modes):
            fd = os.open(".", READ_FOLDER, dir_fd=self._folder(parts))
            try:
                os.fchmod(fd, mode | 0o700)
                _set_time(fd, mtime)
            finally:
                os.close(fd)

    def _check_link(self, entry: Entry) -> None:
        """It has to lead to somewhere within the archive's own tree, and not through another link."""
        name = "/".join(entry.parts)
        if entry.target.startswith("/"):
            raise refuse(f"The link {name!r} leads to {entry.target[:120]!r}, out of the archive.")
        here = list(entry.parts[:-1])
        for part in entry.target.split("/"):
            if part in ("", "."):
                continue
            if self._kinds.get("/".join(here)) == "link":
                raise refuse(f"The link {name!r} leads through another link.")
            if part != "..":
                here.append(part)
            elif here:
                here.pop()
            else:
                raise refuse(f"The link {name!r} leads to {entry.target[:120]!r}, out of the archive.")

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def _set_time(fd: int, mtime: float) -> None:
    if 0 <= mtime < 2**33:
        os.utime(fd, (mtime, mtime))


def _place_new(stage: int, above: int, name: str, path: str) -> None:
    new = os.open("new", FOLDER, dir_fd=stage)
    try:
        if look(above, name, path) is not None:
            raise exists(path)
        os.rename(name, name, src_dir_fd=new, dst_dir_fd=above)
    finally:
        os.close(new)


class _Merge:
    """Names of a new folder into one that is there. What is in the way is looked for first."""

    def __init__(self, new: int, old: int, stage: int, path: str, overwrite: bool) -> None:
        self._new, self._old, self._stage = new, old, stage
        self._path = path
        self._overwrite = overwrite
        self._moved: list[tuple[list[str], str | None]] = []  #: where to, and under which name the one before is kept
        self._kept = 0

    def run(self) -> None:
        self._walk(self._new, self._old, [], self._check)
        os.mkdir("old", 0o700, dir_fd=self._stage)
        try:
            self._walk(self._new, self._old, [], self._move)
        except BaseException:
            self._back()
            raise

    def _walk(self, new: int, old: int, at: list[str], do: Callable[..., None]) -> None:
        reader = os.open(".", READ_FOLDER, dir_fd=new)
        try:
            names = os.listdir(reader)
        finally:
            os.close(reader)
        for name in names:
            facts = os.stat(name, dir_fd=new, follow_symlinks=False)
            there = look(old, name, self._path)
            if there is None or not (stat.S_ISDIR(facts.st_mode) and stat.S_ISDIR(there.st_mode)):
                do(new, old, [*at, name], facts, there)
                continue
            inner, below = os.open(name, FOLDER, dir_fd=new), os.open(name, FOLDER, dir_fd=old)
            try:
                self._walk(inner, below, [*at, name], do)
            finally:
                os.close(inner)
                os.close(below)

    def _check(self, new: int, old: int, at: list[str], facts: Any, there: Any) -> None:
        name = "/".join(at)
        if there is None:
            return
        if stat.S_ISDIR(facts.st_mode) or not (stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode)):
            raise Refused("file_exists", f"There is a {name!r} already, which is not of the same kind; move it away.")
        if not self._overwrite:
            raise exists(name)

    def _move(self, new: int, old: int, at: list[str], facts: Any, there: Any) -> None:
        kept = None
        if there is not None:
            self._check(new, old, at, facts, there)
            kept, self._kept = f"old/{self._kept}", self._kept + 1
            os.rename(at[-1], kept, src_dir_fd=old, dst_dir_fd=self._stage)
        self._moved.append((at, kept))
        os.rename(at[-1], at[-1], src_dir_fd=new, dst_dir_fd=old)

    def _back(self) -> None:
        for at, kept in reversed(self._moved):
            with contextlib.suppress(OSError, Refused):
                folder = os.dup(self._old)
                try:
                    for name in at[:-1]:
                        below = os.open(name, FOLDER, dir_fd=folder)
                        os.close(folder)
                        folder = below
                    if kept is not None:
                        os.rename(kept, at[-1], src_dir_fd=self._stage, dst_dir_fd=folder)
                    else:
                        remove_tree(folder, at[-1], self._path)
                finally:
                    os.close(folder)
