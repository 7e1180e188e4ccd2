"""Files as the session's user: streaming, whole or not at all, and no path out."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.client import FileStat
from agent.rings import RunnerError
from agent.runner_link import RunnerConfig

from .conftest import Kernel, started


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def fails(awaitable: object, code: str, words: str = "") -> None:
    with pytest.raises(RunnerError) as error:
        await awaitable  # type: ignore[misc]
    assert error.value.code == code
    assert words in error.value.message
    assert error.value.message.endswith((".", "?"))


async def read(kernel: Kernel, path: str) -> bytes:
    fd, facts = await kernel.link.open_file(path)
    with os.fdopen(fd, "rb") as file:
        data = file.read()
    assert facts.size == len(data)
    return data


async def test_a_file_goes_up_and_comes_down(kernel: Kernel) -> None:
    facts = await kernel.link.put_file("new/folder/a.txt", pieces(b"hello ", b"", b"there"), size=11, mode=0o640)
    assert (facts.name, facts.type, facts.size, facts.mode) == ("new/folder/a.txt", "file", 11, 0o640)
    assert await read(kernel, "new/folder/a.txt") == b"hello there"
    assert await read(kernel, f"{kernel.work}/new/./folder/../folder/a.txt") == b"hello there"
    await kernel.link.put_file("new/folder/a.txt", pieces(b"again"))
    assert await read(kernel, "new/folder/a.txt") == b"again"
    assert (kernel.work / "new/folder/a.txt").stat().st_mode & 0o777 == 0o640  # kept
    assert [p.name for p in (kernel.work / "new/folder").iterdir()] == ["a.txt"]
    await kernel.link.put_file("empty", pieces())
    assert await read(kernel, "empty") == b""


async def test_large_pieces_and_odd_names(kernel: Kernel) -> None:
    data = os.urandom(20 << 20)
    digest = hashlib.sha256(data).hexdigest()
    await kernel.link.put_file("-rf ünï\n", pieces(data, data[:1]), sha256=hashlib.sha256(data + data[:1]).hexdigest())
    assert await read(kernel, "-rf ünï\n") == data + data[:1]
    await fails(kernel.link.put_file("x", pieces(data[1:]), sha256=digest), "transfer_failed", "SHA-256")
    assert sorted([path.name for path in kernel.work.iterdir()]) == ["-rf ünï\n"]


async def test_uploads_are_whole_or_not_at_all(kernel: Kernel) -> None:
    await fails(kernel.link.put_file("a", pieces(b"12345"), size=4), "transfer_failed")
    await fails(kernel.link.put_file("a", pieces(b"123"), size=4), "transfer_failed", "3 of 4")
    (kernel.work / "there").write_text("old")
    await fails(kernel.link.put_file("there", pieces(b"new"), overwrite=False), "file_exists")
    assert (kernel.work / "there").read_text() == "old"

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ConnectionResetError

    with pytest.raises((RunnerError, ConnectionResetError)):
        await kernel.link.put_file("a", broken())
    async with asyncio.timeout(20):
        while sorted([path.name for path in kernel.work.iterdir()]) != ["there"]:
            await kernel.link.list_files()


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("", "invalid_path", "empty"),
        ("a\0b", "invalid_path", "NUL"),
        ("../x", "invalid_path", "leads outside"),
        ("a/../../x", "invalid_path", "leads outside"),
        ("/etc/passwd", "invalid_path", "outside"),
        ("/proc/1/environ", "invalid_path", "outside"),
        ("\ud800", "invalid_path", "Unicode"),
        ("x" * 300, "invalid_path", "too long"),
        ("x/" * 3000, "invalid_path", "too long"),
        ("link", "invalid_path", "'link' is a symbolic link"),
        ("dirlink/file", "invalid_path", "'dirlink' is a symbolic link"),
        ("dir/up/passwd", "invalid_path", "'dir/up' is a symbolic link"),
        ("dir", "not_a_regular_file", ""),
        ("fifo", "not_a_regular_file", ""),
        ("nothing", "file_not_found", ""),
        ("dir/no/thing", "file_not_found", "'dir/no'"),
        ("file/below", "file_not_found", "not a folder"),
    ],
)
async def test_paths_that_are_refused(kernel: Kernel, path: str, code: str, words: str) -> None:
    (kernel.work / "dir").mkdir()
    (kernel.work / "file").write_text("x")
    (kernel.work / "link").symlink_to("file")
    (kernel.work / "dirlink").symlink_to("dir")
    (kernel.work / "dir/up").symlink_to("/etc")
    os.mkfifo(kernel.work / "fifo")
    await fails(kernel.link.open_file(path), code, words)
    if code == "invalid_path":
        await fails(kernel.link.put_file(path, pieces(b"x")), code, words)
        await fails(kernel.link.manage_file("mkdir", {"path": path}), "file_exists" if path == "link" else code)
        if path != "link":
            await fails(kernel.link.manage_file("stat", {"path": path}), code)
            await fails(kernel.link.manage_file("remove", {"path": path}), code)
            await fails(kernel.link.archive([path]), code)
        if path:
            await fails(kernel.link.list_files(path), "invalid_path")
    assert not Path("/etc/x").exists()


async def test_tmp_and_given_roots_are_allowed(folder: Path, config: RunnerConfig) -> None:
    mount = folder / "mount"
    mount.mkdir()
    async with started(folder, replace(config, file_roots=(str(mount),))) as kernel:
        await kernel.link.put_file(f"{mount}/a", pieces(b"a"))
        assert (mount / "a").read_bytes() == b"a"
        await fails(kernel.link.put_file(f"{folder}/a", pieces(b"a")), "invalid_path")
        name = f"/tmp/moorage-test-{os.getpid()}"
        await kernel.link.put_file(name, pieces(b"a"))
        await kernel.link.manage_file("move", {"path": name, "to": "moved"})
        assert (kernel.work / "moved").read_bytes() == b"a"


async def test_listing_is_paged_and_tells_everything(kernel: Kernel) -> None:
    for number in range(25):
        (kernel.work / f"f{number:02}").write_bytes(b"x" * number)
    (kernel.work / "d").mkdir(mode=0o750)
    (kernel.work / "l").symlink_to("f01")
    os.mkfifo(kernel.work / "p")
    (kernel.work / os.fsdecode(b"bad\xff")).write_text("")
    names: list[FileStat] = []
    cursor: str | None = None
    while True:
        page = await kernel.link.list_files(".", cursor=cursor, limit=10)
        names += page.files
        if (cursor := page.next_cursor) is None:
            break
    assert [file.name for file in names] == sorted(["bad\ufffd", "d", *(f"f{n:02}" for n in range(25)), "l", "p"])
    by_name = {file.name: file for file in names}
    assert (by_name["d"].type, by_name["d"].mode) == ("directory", 0o750)
    assert (by_name["l"].type, by_name["l"].link_target) == ("link", "f01")
    assert by_name["p"].type == "fifo"
    assert (by_name["f07"].size, by_name["f07"].owner) == (7, os.getuid())
    assert (await kernel.link.list_files("d")).files == []
    await fails(kernel.link.list_files("f01"), "file_error")
    await fails(kernel.link.list_files("none"), "file_not_found")
    await fails(kernel.link.list_files(".", cursor="\xff"), "invalid_request")


async def test_managing_files(kernel: Kernel) -> None:
    manage = kernel.link.manage_file
    assert (await manage("mkdir", {"path": "a"})).type == "directory"  # type: ignore[union-attr]
    await fails(manage("mkdir", {"path": "a"}), "file_exists")
    await fails(manage("mkdir", {"path": "b/c"}), "file_not_found")
    await manage("mkdir", {"path": "b/c/d", "parents": True})
    await manage("mkdir", {"path": "b/c/d", "parents": True})
    (kernel.work / "b/c/file").write_text("text")
    (kernel.work / "b/link").symlink_to("/etc/passwd")
    assert (await manage("stat", {"path": "b/link"})).link_target == "/etc/passwd"  # type: ignore[union-attr]
    await fails(manage("copy", {"path": "b", "to": "copy"}), "not_a_regular_file")
    await fails(manage("copy", {"path": "b", "to": "b/c/x", "recursive": True}), "invalid_path")
    await manage("copy", {"path": "b", "to": "copy", "recursive": True})
    assert (kernel.work / "copy/c/file").read_text() == "text"
    assert (kernel.work / "copy/link").is_symlink()
    await fails(manage("move", {"path": "copy", "to": "a"}), "file_exists")
    await manage("move", {"path": "copy", "to": "a/moved"})
    assert (kernel.work / "a/moved/c/file").exists()
    await fails(manage("move", {"path": "no", "to": "x"}), "file_not_found")
    assert (await manage("chmod", {"path": "b/c/file", "mode": 0o600})).mode == 0o600  # type: ignore[union-attr]
    await manage("chmod", {"path": "b", "mode": 0o700, "recursive": True})
    assert (kernel.work / "b/c/file").stat().st_mode & 0o777 == 0o700
    await fails(manage("chmod", {"path": "b/link", "mode": 0o777}), "invalid_path")
    await fails(manage("chmod", {"path": "b", "mode": "777"}), "invalid_request")
    await fails(manage("remove", {"path": "b"}), "file_error", "not empty")
    assert await manage("remove", {"path": "b", "recursive": True}) is None
    assert await manage("remove", {"path": "a", "recursive": True}) is None
    assert [path.name for path in kernel.work.iterdir()] == []
    assert Path("/etc/passwd").exists()
    await fails(manage("remove", {"path": ".", "recursive": True}), "invalid_path")
    await fails(manage("remove", {"path": "gone"}), "file_not_found")
    await fails(manage("explode", {"path": "."}), "invalid_request")
    await fails(manage("stat", {}), "invalid_request")


async def test_archives_are_tar_streams(kernel: Kernel) -> None:
    (kernel.work / "tree/deep").mkdir(parents=True)
    big = os.urandom(3_000_001)
    (kernel.work / "tree/big").write_bytes(big)
    (kernel.work / "tree/deep" / ("long" * 40)).write_text("x")
    (kernel.work / "tree/ünï").write_text("u")
    (kernel.work / "tree/link").symlink_to("/etc/passwd")
    os.mkfifo(kernel.work / "tree/fifo")
    (kernel.work / "other").write_text("o")
    archive = await kernel.link.archive(["tree", "other"])
    data = b"".join([piece async for piece in archive])
    await archive.aclose()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member for member in tar}
        assert sorted(members) == sorted(
            ["tree", "tree/big", "tree/deep", "tree/deep/" + "long" * 40, "tree/ünï", "tree/link", "other"]
        )
        assert tar.extractfile("tree/big").read() == big  # type: ignore[union-attr]
        assert members["tree/link"].issym()
        assert members["tree/link"].linkname == "/etc/passwd"
    archive = await kernel.link.archive(["."])
    data = b"".join([piece async for piece in archive])
    await archive.aclose()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert "tree/big" in tar.getnames()
    await fails(kernel.link.archive(["tree", "none"]), "file_not_found")
    await fails(kernel.link.archive([]), "invalid_request")


async def test_an_archive_that_nobody_reads_ends(kernel: Kernel) -> None:
    (kernel.work / "big").write_bytes(b"x" * (64 << 20))
    for _ in range(40):  # more than there may be at once
        archive = await kernel.link.archive(["big"])
        async for _ in archive:
            break
        await archive.aclose()
    assert await read(kernel, "big")


async def test_the_quota_holds_and_leaves_nothing_behind(folder: Path, config: RunnerConfig) -> None:
    async with started(folder, replace(config, quota_bytes=10 << 20)) as kernel:
        mib = b"x" * (1 << 20)
        await kernel.link.put_file("six", pieces(*[mib] * 6), size=6 << 20)
        await fails(kernel.link.put_file("announced", pieces(*[mib] * 6), size=6 << 20), "quota_exceeded", "10 MiB")
        await fails(kernel.link.put_file("unannounced", pieces(*[mib] * 6)), "quota_exceeded")
        await fails(kernel.link.manage_file("copy", {"path": "six", "to": "copy"}), "quota_exceeded")
        assert [path.name for path in kernel.work.iterdir()] == ["six"]
        await kernel.link.put_file("six", pieces(*[mib] * 3))  # replaced
        await kernel.link.put_file("six more", pieces(*[mib] * 6))
        await kernel.run("import os; os.remove('six more')")
        await asyncio.sleep(0.1)
        await kernel.link.put_file("six more", pieces(*[mib] * 6), size=6 << 20)
        assert (await kernel.link.status())["disk_bytes"] >= 6 << 20


async def test_file_work_does_not_hold_up_execution(kernel: Kernel) -> None:
    (kernel.work / "many").mkdir()
    for number in range(20_000):
        (kernel.work / f"many/{number}").touch()
    listing = asyncio.gather(*(kernel.link.list_files("many", limit=1000) for _ in range(8)))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await kernel.run("print(1)")
    assert loop.time() - began < 3
    await listing
