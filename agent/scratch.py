"""The folders of a kernel on its host. What lies in them is the session's user's: nothing here follows a link."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from agent import loops
from domain.crash import reach


@dataclass(frozen=True, slots=True)
class Folders:
    """`data_dir`/kernels/ID/..."""

    root: Path
    link: Path  #: at /moorage/link: the runner's socket and the rings; kept for days after the end
    scratch: Path  #: at /home/work; kept over restarts, gone at the end
    results: Path  #: what is kept of the scratch folder, as long as the output
    private: Path  #: no container sees it: the hard link to the runner's socket
    hosts: Path  #: at /etc/hosts, of a kernel in a cluster
    places: Path  #: empty; where volumes are to be mounted outside of the home folder
    image: Path  #: where the scratch folder is a disk of its own: what it is made of

    @classmethod
    def of(cls, data_dir: Path, kernel_id: str) -> Folders:
        root = data_dir / "kernels" / kernel_id.replace("-", "")
        names = ("link", "work", "results", "private", "hosts", "places", "work.img")
        return cls(root, *(root / name for name in names))

    def discard(self, trash: Path) -> None:
        """Out of the way at once; the trash is emptied at leisure. Output stays."""
        shutil.rmtree(self.private, ignore_errors=True)
        if self.image.exists():
            loops.remove(self.image, self.scratch)
        if self.scratch.exists():
            trash.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            reach("agent.files.discard.before")
            self.scratch.rename(trash)
            reach("agent.files.discard.after")


def make_scratch(folder: Path, uid: int, gid: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    reach("agent.files.scratch.made")
    if os.geteuid() == 0 and folder.stat().st_uid != uid:
        os.chown(folder, uid, gid)


def set_aside(link: Path, run_id: str, new_name: str) -> None:
    """Rename a run's ring, so that the run id can be used again. Both are names that we have chosen."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        above = os.open(link, flags)
        try:
            rings = os.open("ring", flags, dir_fd=above)
            try:
                os.rename(run_id, new_name, src_dir_fd=rings, dst_dir_fd=rings)
                reach("agent.files.ring.set_aside")
            finally:
                os.close(rings)
        finally:
            os.close(above)


def empty(trash: Path) -> None:
    """Remove what was thrown away."""
    with contextlib.suppress(FileNotFoundError):
        for folder in trash.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
