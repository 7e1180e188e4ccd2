"""What sessions may write to a host's disk: counted, told, ended; and disks of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import docker
import pytest

from agent import loops
from agent.containers import ContainerSpec
from agent.disk import LINK_BYTES, DiskWatch, Use, count
from tests.agent.conftest import Host

MIB = 1 << 20


@dataclass
class Writer:
    """A kernel as the watch sees it."""

    id: str
    limit_mib: int | None = 100
    wrote: int = 0  #: MiB
    files: int = 1
    past_the_runner: int = 0
    said: list[tuple[str, bool]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    counted: int = 0

    @property
    def disk_limit_bytes(self) -> int | None:
        return None if self.limit_mib is None else self.limit_mib * MIB

    @property
    def link_folder(self) -> Path:
        return Path(self.id) / "link"

    async def written_to(self) -> Sequence[Path]:
        return [Path(self.id)]

    async def disk_overused(self, said: str, *, reason: str, end: bool) -> None:
        self.said.append((reason, end))
        self.sentences.append(said)


class Disk:
    """A disk of 10 GiB, its sessions, and the watch over them."""

    def __init__(self, *writers: Writer, reserve_mib: int = 0) -> None:
        self.writers = {writer.id: writer for writer in writers}
        self.now = 0.0
        self.others = 0
        self.watch = DiskWatch(
            lambda: list(self.writers.values()),
            Path("/"),
            reserve_bytes=reserve_mib * MIB,
            free=lambda: (10 * 1024 - self.others - sum(w.wrote for w in self.writers.values())) * MIB,
            clock=lambda: self.now,
            count=self._count,
        )

    async def _count(self, places: Sequence[Path]) -> Use:
        (place,) = places
        if place.name == "link":
            return Use(self.writers[str(place.parent)].past_the_runner, 1)
        writer = self.writers[str(place)]
        writer.counted += 1
        return Use(writer.wrote * MIB, writer.files, seconds=0.01)

    async def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        await self.watch.look()


async def test_who_is_over_it_is_told_and_who_goes_on_is_ended() -> None:
    one = Writer("one")
    disk = Disk(one)
    await disk.look()
    one.wrote = 120
    await disk.look()
    assert (one.said, one.sentences) == (
        [("quota_exceeded", False)],
        ["The session's disk quota is 100 MiB, and 120 MiB are in use."],
    )
    await disk.look(70)  # it stands still, and may: its owner has to be able to remove something
    one.wrote = 190
    await disk.look(70)
    assert one.said == [("quota_exceeded", False), ("quota_exceeded", True)]


async def test_who_has_made_room_is_told_again_the_next_time() -> None:
    one = Writer("one", wrote=101)
    disk = Disk(one)
    for wrote in (101, 50, 101):
        one.wrote = wrote
        await disk.look(70)
    assert one.said == [("quota_exceeded", False)] * 2


async def test_a_flood_ends_at_once_and_so_do_too_many_files() -> None:
    flood, crumbs = Writer("flood", wrote=201), Writer("crumbs", wrote=1, files=100_001)
    disk = Disk(flood, crumbs)
    await disk.look()
    assert flood.said == [("quota_exceeded", True)]
    assert (crumbs.said, "100001 files" in crumbs.sentences[0]) == ([("quota_exceeded", False)], True)


async def test_output_past_the_runner_is_counted_without_a_quota() -> None:
    one = Writer("one", limit_mib=None, past_the_runner=LINK_BYTES + 1)
    await Disk(one).look()
    assert one.said == [("quota_exceeded", True)]


async def test_nobody_is_counted_while_the_disk_stands_still() -> None:
    quiet, busy = Writer("quiet", wrote=10), Writer("busy", limit_mib=1000)
    disk = Disk(quiet, busy)
    for _ in range(50):
        await disk.look()
    assert (quiet.counted, busy.counted) == (1, 1)
    busy.wrote = 95  # as much as quiet has left: it could have been either
    await disk.look()
    assert (quiet.counted, busy.counted) == (2, 1)
    await disk.look(60)  # somebody may write what another one removes
    assert (quiet.counted, busy.counted) == (3, 2)


async def test_a_disk_that_is_nearly_full_ends_who_wrote_most_of_what_came_last() -> None:
    old, new = Writer("old", limit_mib=None, wrote=5000), Writer("new", limit_mib=None)
    disk = Disk(old, new, reserve_mib=1024)
    await disk.look()
    new.wrote = 4500
    await disk.look()
    assert (old.said, new.said) == ([], [("disk_full", True)])
    assert new.sentences == ["The host's disk is nearly full, and the session wrote 4.4 GiB of what came last."]
    del disk.writers["new"]
    disk.others = 4500  # of the host's own: no session has to go for it
    await disk.look()
    assert old.said == []


def test_counting_follows_nothing_and_counts_everything_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(3 * MIB))
    inside = tmp_path / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_bytes(bytes(MIB))
    os.link(inside / "a" / "b" / "file", inside / "again")
    (inside / "link").symlink_to(outside)
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "fifo")
    with (inside / "sparse").open("wb") as sparse:
        sparse.truncate(100 * MIB)
    found = count([inside, tmp_path / "missing"])
    assert found.files == 9
    assert MIB <= found.bytes < 2 * MIB
    before = len(list(Path("/proc/self/fd").iterdir()))
    place = inside
    for _ in range(300):
        place = place / "d"
        place.mkdir()
    assert count([inside]).bytes > 1 << 60  # nobody hides in the depth
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[None]:
    if (why := loops.trouble()) is not None:
        pytest.skip(f"no disks of their own here: {why}")
    yield
    for folder in loops.mounted_below(tmp_path):
        loops.remove(Path(folder).with_suffix(".img"), Path(folder))


def test_disks_are_made_once_found_again_and_swept(disks: None, tmp_path: Path) -> None:
    kernels = tmp_path / "with a blank"
    folder, image = kernels / "one" / "work", kernels / "one" / "work.img"
    for _ in range(2):
        loops.make(image, folder, size_mib=16, uid=1000, gid=1000)
    try:
        facts = folder.stat()
        assert (facts.st_uid, facts.st_mode & 0o777, list(folder.iterdir())) == (1000, 0o700, [])
        assert shutil.disk_usage(folder).total < 16 * MIB
        (folder / "kept").write_text("kept")
        assert image.stat().st_blocks * 512 < 8 * MIB  # it takes what is written
        with (folder / "much").open("wb") as much, pytest.raises(OSError, match="No space left"):
            for _ in range(64):
                much.write(bytes(MIB))
        loops._run("umount", str(folder))  # the host was started anew
        loops.make(image, folder, size_mib=16, uid=1000, gid=1000)
        assert (folder / "kept").read_text() == "kept"
        assert loops.sweep(kernels, {kernels / "one"}) == []
    finally:
        assert loops.sweep(kernels, set()) == [str(folder)]
    assert (image.exists(), loops.is_mounted(folder), list(folder.iterdir())) == (False, False, [])


WRITE = "import time\nwith open('big', 'wb') as f:\n  for _ in range(100): f.write(bytes(1 << 20)); f.flush()\ntime.sleep(60)"


async def test_code_that_writes_too_much_is_ended_and_the_session_told(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id, disk_quota_mib=64)
    await host.until(kernel_id, "RUNNING", "FAILED")
    kernel = host.kernel(kernel_id)
    link = kernel.link
    assert link is not None
    # it stops by itself a little beyond: that is not a flood
    await host.kernels.runs.begin("r1", kernel_id, 1)
    kernel.ran(await link.execute("r1", mode="query", code=WRITE, wait_seconds=0.0))
    (ended,) = await host.until_ended("r1")
    assert (ended.reason, kernel.state.observed) == ("killed", "RUNNING")
    (notice,) = kernel.state.notices
    assert notice["message"].startswith("The session's disk quota is 64 MiB, and ")
    # what it has to be able to do now
    await link.execute("r2", mode="query", code="import os; os.remove('big'); print('less')", wait_seconds=20.0)
    assert "less" in kernel.rings.text("r2", 100)

    flood = "import os\nwith open('big', 'wb') as f: os.posix_fallocate(f.fileno(), 0, 300 << 20)"
    await link.execute("r3", mode="query", code=flood, wait_seconds=0.1)
    fact = await host.until(kernel_id, "EXITED", "FAILED")
    assert fact.exit is not None
    assert fact.exit["reason"] == "quota_exceeded"
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")


async def test_a_disk_of_its_own_holds_so_much_and_goes_with_the_session(
    disks: None, host: Host, kernel_id: str
) -> None:
    host.kernels.defaults = replace(host.kernels.defaults, own_disks=True)
    await host.run(kernel_id, disk_quota_mib=32)
    await host.until(kernel_id, "RUNNING", "FAILED")
    folders = host.kernel(kernel_id).folders
    assert loops.is_mounted(folders.scratch)
    await host.stop()
    await host.start()  # the agent comes back, and finds it
    host.kernels.defaults = replace(host.kernels.defaults, own_disks=True)
    kernel = host.kernel(kernel_id)
    async with asyncio.timeout(30):
        while kernel.link is None:
            await asyncio.sleep(0.01)  # that it is found again is no news to anybody
    await kernel.link.execute("r1", mode="batch", code="head -c 99000000 /dev/zero > big", wait_seconds=20.0)
    assert "No space left on device" in kernel.rings.text("r1", 4000)
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")
    assert not loops.is_mounted(folders.scratch)
    assert not folders.image.exists()
    assert not folders.scratch.exists()


async def test_what_is_written_into_the_image_is_found_where_no_driver_bounds_it(
    host: Host, engine: docker.DockerClient, kernel_image: str
) -> None:
    """As root inside, which the profile `standard` lets people be."""
    spec = ContainerSpec(
        name=f"moorage-layer-{os.getpid()}",
        image=kernel_image,
        entrypoint=["sh", "-c", "head -c 20000000 /dev/zero > /big; echo 1.2.3.4 x >> /etc/hosts"],
        hostname="layer",
        labels={},
        cpu_milli=1000,
        memory_mib=128,
        shm_mib=8,
        pids=64,
        mounts=[],
        user=(0, 0),
        profile="standard",
        layer_mib=500,
    )
    container = await host.engine.create(spec)
    try:
        await host.engine.start(container)
        assert (await asyncio.to_thread(engine.containers.get(container).wait))["StatusCode"] == 0
        places = await host.engine.layer(container)
        if not all(place.exists() for place in places):
            pytest.skip("the engine's files are not on this machine")
        assert {"hosts", "resolv.conf", "hostname"} < {place.name for place in places}
        assert count(places).bytes >= 20_000_000
        limits = await host.engine.limits(container)
        assert limits is not None
        assert limits["confined"]
    finally:
        await host.engine.remove(container)
