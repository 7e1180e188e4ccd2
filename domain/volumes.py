"""Volumes: folders that outlive sessions, and where sessions see them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from domain.errors import InvalidMount, InvalidVolumeName, MountedTwice

HOME: Final = "/home/work"
MOST_MOUNTS: Final = 32
#: Of users who have no uid of their own, and of everything in their sessions.
EVERYBODY: Final = 1000
#: Of the image and the system: nothing is mounted in them, nor at the top of the others that images have.
_SYSTEM: Final = frozenset(
    "bin boot dev etc lib lib32 lib64 libx32 lost+found moorage proc root run sbin sys usr var".split()
)
_OF_USERS: Final = ("/var/home/", "/var/tmp/")  # noqa: S108
_TOPS: Final = frozenset({"/home", "/media", "/mnt", "/opt", "/srv", "/tmp", HOME})  # noqa: S108
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """With whom a volume is shared: one user, or everybody in a project."""

    user: str | None  #: the e-mail address
    project: str | None
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume's row, as the one who asks may use it."""

    id: UUID
    name: str
    user_id: UUID
    owner: str  #: the e-mail address
    store: str
    status: str  #: ready, making, removing
    quota_bytes: int | None
    quota_files: int | None
    uid: int
    gid: int
    owned: bool  #: by the one who asks
    read_only: bool  #: for the one who asks
    sessions: int  #: that have it mounted and have not ended
    created_at: datetime
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume, or a folder in it, where a session sees it."""

    volume: str  #: name or id
    #: below /home/work, or an absolute path outside of the system's folders; the volume's name when left out
    path: str | None = None
    subpath: str = ""
    read_only: bool = False


def check_volume_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name.strip(".") == "":
        raise InvalidVolumeName(name=name[:80])
    return name


def mount_path(mount: Mount, name: str) -> str:
    """Where the volume of this name is mounted. Raises InvalidMount."""
    path = posixpath.normpath(posixpath.join(HOME, mount.path if mount.path is not None else name))
    if not may_be_mounted_at(path) or ".." in (mount.path or "").split("/"):
        raise InvalidMount(
            f"A volume is mounted below {HOME} or at a path outside of the system's folders such as /home/me/project, not at "
            f"'{(mount.path or '')[:200]}'; write {HOME}/PATH.",
            field="mounts",
        )
    return path


def may_be_mounted_at(path: str) -> bool:
    """Whether this is a normal absolute path at which a volume may be."""
    top = path[1:].partition("/")[0]
    if not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path or not _clean(path):
        return False
    if top.startswith(".") or (top in _SYSTEM and not path.startswith(_OF_USERS)):
        return False
    return bool(top) and path not in _TOPS


def is_at_home(path: str) -> bool:
    return path.startswith(f"{HOME}/")


def mount_subpath(mount: Mount) -> str:
    """The folder within the volume, "" for all of it. Raises InvalidMount."""
    subpath = posixpath.normpath(mount.subpath) if mount.subpath.strip("/") else ""
    if mount.subpath.startswith("/") or ".." in mount.subpath.split("/") or not _clean(subpath):
        raise InvalidMount(
            f"'{mount.subpath[:200]}' is no folder within a volume; name it from the volume's top on.", field="mounts"
        )
    return "" if subpath == "." else subpath


def check_apart(places: Sequence[tuple[UUID, str, str]]) -> None:
    """(volume, subpath, path) of all mounts of one session. Raises MountedTwice."""
    seen: set[tuple[UUID, str]] = set()
    for at, (volume, subpath, path) in enumerate(places):
        if (volume, subpath) in seen:
            raise MountedTwice(f"The volume at {path} is mounted twice; leave one of the two out.", field="mounts")
        seen.add((volume, subpath))
        for _, _, other in places[:at]:
            if f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"):
                raise MountedTwice(
                    f"{path} and {other} are the same place, or one lies in the other; mount them apart.",
                    field="mounts",
                )


def _clean(path: str) -> bool:
    parts = path.split("/")
    return (
        path.isprintable()
        and len(path.encode("utf-8", "replace")) <= 1024
        and all(len(part.encode("utf-8", "replace")) <= 255 for part in parts)
    )
