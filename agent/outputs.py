"""What is kept of a session's files after its end, and how it is read again. Both follow no link.

Kept is by renaming, once no container is there any more: at once, whatever the size, on the same disk.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Generator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 1 << 20
#: Beyond so many entries nobody looks for what may match; whole folders are kept without being looked into.
_MOST_LOOKS: Final = 200_000
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def keep(scratch: Path, results: Path, patterns: Sequence[str]) -> int:
    """Move what matches one of the patterns from `scratch` to `results`, at the same place; how many were moved.

    A pattern is a path or a glob: `*` stands within a name, `**` for any number of folders. A folder is kept whole.
    """
    wanted = [pattern.split("/") for pattern in patterns]
    if not wanted or not scratch.is_dir():
        return 0
    moved = looks = 0
    waiting: list[tuple[str, ...]] = [()]
    while waiting and looks < _MOST_LOOKS:
        folder = waiting.pop()
        for name, is_folder in _entries(scratch.joinpath(*folder)):
            looks += 1
            path = (*folder, name)
            if any(_matches(path, pattern) for pattern in wanted):
                target = results.joinpath(*path)
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                scratch.joinpath(*path).rename(target)
                moved += 1
            elif is_folder and any(_leads_to(path, pattern) for pattern in wanted):
                waiting.append(path)
    return moved


def _entries(folder: Path) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[at:], pattern[1:]) for at in range(len(path) + 1)) and bool(path)
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _leads_to(folder: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether something below may match."""
    for at, name in enumerate(folder):
        if at >= len(pattern):
            return False
        if pattern[at] == "**":
            return True
        if not fnmatchcase(name, pattern[at]):
            return False
    return len(pattern) > len(folder)


def archive(results: Path) -> Generator[bytes]:
    """A tar stream of what was kept. Links stay links; what is neither file, folder nor link is left out."""
    root = os.open(results, _FOLDER)
    try:
        yield from _folder(root, "")
    finally:
        os.close(root)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _folder(fd: int, above: str) -> Generator[bytes]:
    with os.scandir(fd) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = f"{above}{name}"
        said = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(said.st_mode):
            info = _info(path, said, tarfile.SYMTYPE)
            info.linkname = os.readlink(name, dir_fd=fd)
            yield _header(info)
        elif stat.S_ISDIR(said.st_mode):
            yield _header(_info(path, said, tarfile.DIRTYPE))
            below = os.open(name, _FOLDER, dir_fd=fd)
            try:
                yield from _folder(below, f"{path}/")
            finally:
                os.close(below)
        elif stat.S_ISREG(said.st_mode):
            yield from _file(fd, name, path)


def _file(folder_fd: int, name: str, path: str) -> Generator[bytes]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        said = os.fstat(fd)
        info = _info(path, said, tarfile.REGTYPE)
        info.size = left = said.st_size
        yield _header(info)
        while left:
            data = os.read(fd, min(_CHUNK_BYTES, left))
            if not data:
                raise OSError(f"{path} became shorter")  # nobody writes there: a disk that fails
            left -= len(data)
            yield data
    finally:
        os.close(fd)
    if padding := -info.size % tarfile.BLOCKSIZE:
        yield bytes(padding)


def _info(path: str, said: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.mtime = kind, stat.S_IMODE(said.st_mode) & 0o777, said.st_mtime
    info.uid = info.gid = 1000
    info.uname = info.gname = "work"
    return info


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
