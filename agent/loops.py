"""Files of sessions on a disk of their own: a file of this host with a file system in it, which can hold so much and no more.

Blocking; everything can be done again, and what is so already is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Final

_MIB: Final = 1 << 20
_LEAST_MIB: Final = 8
_SECONDS: Final = 120.0
_OPTIONS: Final = "loop,nosuid,nodev,noatime,discard"


class NoDisk(Exception):
    """It could not be made, mounted or taken away; the message says why."""


def trouble() -> str | None:
    """Why this host cannot do it; None when it can."""
    if os.geteuid() != 0:
        return "the agent does not run as root"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if not shutil.which(tool)]
    if missing:
        return f"{missing[0]} is not installed"
    return None if Path("/dev/loop-control").exists() else "this host's kernel has no loop devices"


def make(image: Path, folder: Path, *, size_mib: int, uid: int, gid: int) -> None:
    """`folder` is the disk, and the user's; the file takes as much of the host as is written to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_mounted(folder):
        return
    if not image.exists():
        partial = image.with_suffix(".new")
        with partial.open("wb") as file:
            os.truncate(file.fileno(), max(size_mib, _LEAST_MIB) * _MIB)
        # no blocks for root alone: what is promised is there
        options = f"root_owner={uid}:{gid},lazy_itable_init=1,nodiscard"
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, str(partial))
        partial.rename(image)
    _run("mount", "-t", "ext4", "-o", _OPTIONS, str(image), str(folder))
    with contextlib.suppress(OSError):
        (folder / "lost+found").rmdir()
    os.chown(folder, uid, gid)
    folder.chmod(0o700)


def remove(image: Path, folder: Path) -> None:
    """The disk with all that is on it. A container that still has it keeps it until it ends."""
    while is_mounted(folder):
        try:
            _run("umount", str(folder))
        except NoDisk:
            _run("umount", "--lazy", str(folder))
    for file in (image, image.with_suffix(".new")):
        file.unlink(missing_ok=True)


def is_mounted(folder: Path) -> bool:
    return str(folder) in mounted_below(folder.parent)


def mounted_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    # blanks and the like are written as \040
    targets = [re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[1]) for line in lines]
    return [target for target in targets if target.startswith(f"{folder}/")]


def sweep(kernels: Path, wanted: Collection[Path]) -> list[str]:
    """After a start: take away disks of whom nothing is to be here any more. Which folders they were at."""
    left_over = [Path(target) for target in mounted_below(kernels) if Path(target).parent not in wanted]
    for folder in left_over:
        remove(folder.with_suffix(".img"), folder)
    return sorted(map(str, left_over))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoDisk(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        raise NoDisk(f"{command[0]}: {done.stderr.strip()[:300]}")
