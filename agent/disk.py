"""What sessions write to this host's disks, seen from outside, where no file system holds them to their quota.

A look costs next to nothing: as long as the disk has not lost more room than a session has left of its quota since it
was counted, that session need not be counted again. Who is over it has its running code ended, and is told; who
goes on writing is ended. And when the disk itself is nearly full, who wrote most of what came last is ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

log = logging.getLogger("moorage.agent.disk")
LOOK_SECONDS: Final = 1.0
#: Others may remove what one session writes, so that the disk loses nothing: everybody is counted so often.
_COUNT_SECONDS: Final = 60.0
_SELDOM_SECONDS: Final = 600.0  #: who has no quota
#: A count that takes long is not made more often than that this is the share of time spent on it.
_SHARE: Final = 20
_MOST_SECONDS: Final = 60.0
_DEEPEST: Final = 256
_MIB: Final = 1 << 20
#: The runner keeps output to half of that; more of it was written past the runner.
LINK_BYTES: Final = 1 << 30
_GROWTH_BYTES: Final = 64 * _MIB


@dataclass(frozen=True, slots=True)
class Use:
    bytes: int
    files: int
    seconds: float = 0.0  #: that it took to count


class Watched(Protocol):
    """What is needed of a kernel."""

    @property
    def id(self) -> str: ...
    @property
    def disk_limit_bytes(self) -> int | None: ...  #: of what it writes; None: none but the disk's own
    async def written_to(self) -> Sequence[Path]: ...  #: where its writing takes room of this host
    @property
    def link_folder(self) -> Path: ...
    async def disk_overused(self, said: str, *, reason: str, end: bool) -> None: ...


@dataclass(slots=True)
class _Known:
    at: float
    free: int  #: of the disk, then
    use: Use
    calm: int  #: bytes, when the disk was last not nearly full
    told: int | None = None  #: bytes, when its code was ended


class DiskWatch:
    """Looks once a second; `free` and `clock` are given by tests."""

    def __init__(
        self,
        kernels: Callable[[], Iterable[Watched]],
        folder: Path,
        *,
        reserve_bytes: int = 0,
        free: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[Sequence[Path]], Awaitable[Use]] | None = None,
    ) -> None:
        self._kernels = kernels
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._free = free or self._free_there
        self._clock = clock
        self._count = count or counted
        self._known: dict[str, _Known] = {}
        self._said_at = float("-inf")

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:  # it limits others: it goes on
                log.exception("the disk could not be looked at")

    async def look(self) -> None:
        kernels = list(self._kernels())
        free = self._free()
        low = free < self._reserve_bytes
        for kernel in kernels:
            if self._is_due(kernel, free, low):
                await self._look_at(kernel, free, low)
        for gone in self._known.keys() - {kernel.id for kernel in kernels}:
            del self._known[gone]
        if low:
            await self._make_room(kernels, free)

    def _is_due(self, kernel: Watched, free: int, low: bool) -> bool:
        known = self._known.get(kernel.id)
        if known is None:
            return True
        age = self._clock() - known.at
        if age < _SHARE * known.use.seconds:
            return False
        limit = kernel.disk_limit_bytes
        room = LINK_BYTES if limit is None else min(max(limit - known.use.bytes, 0), LINK_BYTES)
        often = _COUNT_SECONDS if limit is not None else _SELDOM_SECONDS
        return low or age >= often or known.free - free >= max(room, _MIB)

    async def _look_at(self, kernel: Watched, free: int, low: bool) -> None:
        before = self._known.get(kernel.id)
        use = await self._count(await kernel.written_to())
        link = await self._count([kernel.link_folder])
        calm = before.calm if before is not None and low else use.bytes
        known = _Known(self._clock(), free, use, calm, before.told if before is not None else None)
        self._known[kernel.id] = known
        limit = kernel.disk_limit_bytes
        if link.bytes > LINK_BYTES:
            said = f"The session wrote {_words(link.bytes)} past its output's limits."
            await kernel.disk_overused(said, reason="quota_exceeded", end=True)
        elif limit is None or not _over(use, limit):
            known.told = None
        else:
            files = f" in {use.files} files" if use.files > _most_files(limit) else ""
            said = f"The session's disk quota is {_words(limit)}, and {_words(use.bytes)}{files} are in use."
            grown = known.told is not None and use.bytes > known.told + max(limit // 10, _GROWTH_BYTES)
            if grown or use.bytes > 2 * limit:
                await kernel.disk_overused(said, reason="quota_exceeded", end=True)
            elif known.told is None:
                known.told = use.bytes
                await kernel.disk_overused(said, reason="quota_exceeded", end=False)

    async def _make_room(self, kernels: Iterable[Watched], free: int) -> None:
        def grown(kernel: Watched) -> int:
            known = self._known[kernel.id]
            return known.use.bytes - known.calm

        most = max(kernels, key=grown, default=None)
        if most is None or grown(most) < _GROWTH_BYTES:
            if self._clock() >= self._said_at + _COUNT_SECONDS:
                self._said_at = self._clock()
                log.error("%s are left on the disk of %s, and no session has written much", _words(free), self._folder)
            return
        said = f"The host's disk is nearly full, and the session wrote {_words(grown(most))} of what came last."
        await most.disk_overused(said, reason="disk_full", end=True)

    def _free_there(self) -> int:
        facts = os.statvfs(self._folder)
        return facts.f_bavail * facts.f_frsize


async def counted(places: Sequence[Path]) -> Use:
    return await asyncio.to_thread(count, places)


def count(places: Iterable[Path]) -> Use:
    """What lies below, by the blocks it takes. No link is followed, no other file system entered.

    Folders too deep to be looked at are an evasion: they count as very much. A count that takes too long tells what it has
    come to, which is too many files for any quota that it could be for.
    """
    began = time.monotonic()
    total = files = 0
    seen: set[tuple[int, int]] = set()
    for place in places:
        try:
            top = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        facts = os.fstat(top)
        device, total, files = facts.st_dev, total + facts.st_blocks * 512, files + 1
        if not stat.S_ISDIR(facts.st_mode):
            os.close(top)
            continue
        above: list[tuple[int, list[str]]] = []
        here, names = top, []
        try:
            names = _children(here)
            while True:
                if time.monotonic() - began > _MOST_SECONDS:
                    os.close(here)
                    return Use(total, files, time.monotonic() - began)
                if not names:
                    os.close(here)
                    if not above:
                        break
                    here, names = above.pop()
                    continue
                name = names.pop()
                try:
                    facts = os.stat(name, dir_fd=here, follow_symlinks=False)
                except OSError:
                    continue
                if facts.st_dev != device:
                    continue
                files += 1
                if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
                    if (facts.st_dev, facts.st_ino) in seen:
                        continue
                    seen.add((facts.st_dev, facts.st_ino))
                total += facts.st_blocks * 512
                if not stat.S_ISDIR(facts.st_mode):
                    continue
                if len(above) >= _DEEPEST:
                    os.close(here)
                    return Use(1 << 62, files, time.monotonic() - began)
                try:
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
                except OSError:
                    continue
                above.append((here, names))
                here, names = below, _children(below)
        finally:
            for fd, _ in above:
                os.close(fd)
    return Use(total, files, time.monotonic() - began)


def _children(folder: int) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _most_files(limit: int) -> int:
    """A file takes an inode of the host, however small it is."""
    return max(limit // 4096, 100_000)


def _over(use: Use, limit: int) -> bool:
    return use.bytes > limit or use.files > _most_files(limit)


def _words(size: int) -> str:
    if size >= 1 << 60:
        return "more than can be counted"
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"
