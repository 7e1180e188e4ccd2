"""A program of its own, by which the agent packs a session's files into an image layer, and unpacks them again.

The files are the session's user's, and so may be anything. As root it locks itself into the folder (chroot) before it
looks at any of them, so no link leads out, and it unpacks as the session's user. Standard library only; started by
`agent.snapshots` as `python -I -S pack.py pack|unpack FOLDER UID`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

#: Where the folder lies in an image.
HOME = "home/work"
#: What is larger than this, and mostly holes, would fill the host's disk when it is written out.
_SPARSE_BYTES = 1 << 30
_BUFFER_BYTES = 1 << 20
_REPORT_BYTES = 32 << 20


class Counted:
    """A file that is written to, with the digest and the number of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self._told = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        if self.size - self._told >= _REPORT_BYTES:
            self._told = self.size
            say(bytes=self.size)
        return len(data)


class Refused(Exception):
    """The folder holds something that cannot be packed."""


def say(**what: object) -> None:
    os.write(2, json.dumps(what).encode() + b"\n")


def pack(folder: str, uid: int, out: BinaryIO) -> None:
    """A layer that puts the folder at /home/work, in place of what lies there in the layers below."""
    enter(folder)
    counted = Counted(out)
    files = 0
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT, copybufsize=_BUFFER_BYTES) as tar:  # type: ignore[call-overload]
        top = tarfile.TarInfo(HOME)
        top.type, top.mode, top.uid, top.gid = tarfile.DIRTYPE, 0o755, uid, uid
        tar.addfile(top)
        opaque = tarfile.TarInfo(f"{HOME}/.wh..wh..opq")
        tar.addfile(opaque)
        for path, name in walk(".", HOME):
            info = tar.gettarinfo(path, name)
            info.uname = info.gname = ""
            if info.isreg():
                with Path(path).open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
            files += 1
    out.flush()
    say(done=True, digest=f"sha256:{counted.digest.hexdigest()}", size=counted.size, files=files)


def walk(folder: str, name: str) -> Iterator[tuple[str, str]]:
    """Everything below that an image can hold, folders before what is in them. Names that would mean something else
    in a layer (`.wh.`) are left out, as are sockets, pipes and devices."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path, inside = f"{folder}/{entry.name}", f"{name}/{entry.name}"
        seen = entry.stat(follow_symlinks=False)
        if entry.name.startswith(".wh."):
            continue
        if stat.S_ISREG(seen.st_mode):
            if seen.st_size > _SPARSE_BYTES and seen.st_blocks * 512 < seen.st_size // 2:
                raise Refused(
                    f"{inside} says that it has {seen.st_size} bytes and holds {seen.st_blocks * 512}: "
                    "a file with such holes cannot be kept in an image; remove or fill it"
                )
            yield path, inside
        elif stat.S_ISLNK(seen.st_mode):
            yield path, inside
        elif stat.S_ISDIR(seen.st_mode):
            yield path, inside
            yield from walk(path, inside)


def unpack(folder: str, uid: int, source: BinaryIO) -> None:
    """What the engine gives as its archive of /home/work: the first part of each name goes."""
    locked = enter(folder)
    if locked:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.umask(0o022)
    with tarfile.open(fileobj=source, mode="r|*") as tar:
        tar.extractall(".", members=renamed(tar), **_filter(locked))  # noqa: S202
    while source.read(_BUFFER_BYTES):  # the end of the stream, so that who writes it is not cut off
        pass
    say(done=True)


def _filter(locked: bool) -> dict[str, Any]:
    """Locked in, nothing is in reach but the folder. Debian's Python 3.11 knows no filters, and trusts without being told."""
    if not hasattr(tarfile, "data_filter"):
        if not locked:
            raise Refused("without root, archives are unpacked by Python 3.11.4 or newer only")
        return {}
    return {"filter": "fully_trusted" if locked else cautious}


def renamed(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        name = member.name.strip("/").partition("/")[2]
        if (
            not name
            or ".." in name.split("/")
            or not (member.isreg() or member.isdir() or member.issym() or member.islnk())
        ):
            continue
        member.name = name
        if member.islnk():
            member.linkname = member.linkname.strip("/").partition("/")[2]
        yield member


def cautious(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Without root there is no lock: what leads out of the folder is left out."""
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


def enter(folder: str) -> bool:
    """Lock this process into the folder; False when it may not."""
    if os.geteuid() != 0:
        os.chdir(folder)
        return False
    os.chroot(folder)
    os.chdir("/")
    return True


def main(words: list[str]) -> int:
    what, folder, uid = words[0], words[1], int(words[2])
    stream: Any
    try:
        if what == "pack":
            with os.fdopen(1, "wb", buffering=_BUFFER_BYTES, closefd=False) as stream:
                pack(folder, uid, stream)
        else:
            with os.fdopen(0, "rb", buffering=_BUFFER_BYTES, closefd=False) as stream:
                unpack(folder, uid, stream)
    except OSError as error:
        say(errno=error.errno, error=error.strerror)
        return 1
    except (Refused, tarfile.TarError) as error:
        say(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
