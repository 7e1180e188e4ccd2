"""Archives into folders: whole or not at all, whatever somebody sends."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.archives import Limits
from runner.files import Files, Refused
from runner.unpack import unpack
from tests.hostile import PATHS, entry, harmless, hostile

HOSTILE = hostile()


class Place:
    """A folder with something in it, beside something that is not to be touched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        (self.home / "keep").mkdir(parents=True)
        (self.home / "keep/file").write_text("kept")
        (self.home / "out").symlink_to("/etc")
        (root / "beside").write_text("untouched")
        self.files = Files(str(self.home), [], None)

    def unpack(
        self, data: bytes, path: str = ".", *, overwrite: bool = True, limits: Limits | None = None
    ) -> dict[str, int]:
        def pieces() -> Iterator[memoryview]:
            for at in range(0, len(data), 10_007):
                yield memoryview(data[at : at + 10_007])

        return unpack(self.files, path, pieces, limits=limits or Limits(), overwrite=overwrite)

    def digest(self) -> str:
        return tree_digest(self.root)


def tree_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {facts.st_mode:o} {facts.st_nlink}".encode() + b"\0" + content)
    return digest.hexdigest()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_changes_nothing(name: str, place: Place) -> None:
    before = place.digest()
    for path in (".", "new/folder"):
        with pytest.raises(Refused) as refused:
            place.unpack(HOSTILE[name], path)
        assert refused.value.code in ("archive_refused", "quota_exceeded"), refused.value.message
    assert place.digest() == before


@pytest.mark.parametrize("path", [path for path in PATHS if not path.startswith("/home")])
def test_a_hostile_place_changes_nothing(path: str, place: Place) -> None:
    before = place.digest()
    with pytest.raises(Refused):
        place.unpack(harmless(), path)
    assert place.digest() == before


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(entries=5), "more than 5 files"),
        (Limits(names_bytes=10), "too long names"),
        (Limits(total_bytes=5000), "room for"),
        (Limits(depth=2), "folders deep"),
        (Limits(ratio=10, ratio_from_bytes=1000), "only a bomb"),
    ],
)
def test_each_limit_holds(limits: Limits, what: str, place: Place) -> None:
    made, before = io.BytesIO(), place.digest()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for number in range(10):
            info = tarfile.TarInfo(f"a/b/c{number}")
            info.size = 1000
            archive.addfile(info, io.BytesIO(bytes(1000)))
    with pytest.raises(Refused, match=what):
        place.unpack(made.getvalue(), limits=limits)
    assert place.digest() == before


def tree(root: Path) -> Path:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"content" * 1000)
    (root / "a/run").write_text("#!/bin/sh\n")
    (root / "a/run").chmod(0o755)
    (root / "a/ünïcode \u202eRTL -rf").write_text("x")
    (root / "a/link").symlink_to("b/file")
    os.link(root / "a/b/file", root / "a/twin")
    (root / ("n" * 200)).write_text("long")
    return root


@pytest.mark.parametrize("kind", ["tar", "w:gz", "w:bz2", "w:xz", "gnu", "ustar"])
def test_what_tar_packs_comes_out_the_same(kind: str, place: Place, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    if kind == "ustar":
        (source / ("n" * 200)).unlink()
        (source / "a/ünïcode \u202eRTL -rf").unlink()
    made = io.BytesIO()
    form = {"gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}.get(kind, tarfile.PAX_FORMAT)
    mode = kind if ":" in kind else "w"
    with tarfile.open(fileobj=made, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        archive.add(source, ".")
    counts = place.unpack(made.getvalue(), "new/place")
    assert tree_digest(place.home / "new/place") == tree_digest(source)
    assert counts["files"] >= 2
    assert counts["links"] == 2


def test_what_zip_packs_comes_out_the_same(place: Place, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    (source / "a/link").unlink()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    place.unpack(made.getvalue(), "z")
    for path in source.rglob("*"):
        there = place.home / "z" / path.relative_to(source)
        assert there.is_dir() if path.is_dir() else there.read_bytes() == path.read_bytes()
    assert (place.home / "z/a/run").stat().st_mode & 0o777 == 0o755


def test_what_is_there_is_replaced_or_stays(place: Place) -> None:
    archive = entry(b"keep/file", b"new") + entry(b"keep/more/x", b"1") + b"\0" * 1024
    before = place.digest()
    with pytest.raises(Refused, match="already"):
        place.unpack(archive, overwrite=False)
    assert place.digest() == before
    place.unpack(archive)
    assert (place.home / "keep/file").read_text() == "new"
    assert (place.home / "keep/more/x").read_text() == "1"


@pytest.mark.parametrize("data", [entry(b"out/evil", b"x"), entry(b"keep", b"x"), entry(b"keep/file/x", b"x")])
def test_what_is_of_another_kind_stays(data: bytes, place: Place) -> None:
    before = place.digest()
    with pytest.raises(Refused):
        place.unpack(entry(b"zz", b"1") + data + b"\0" * 1024)
    assert place.digest() == before


def test_a_sender_that_goes_away_leaves_nothing(place: Place) -> None:
    before = place.digest()

    def pieces() -> Iterator[memoryview]:
        yield memoryview(entry(b"a", b"x" * 1000))
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        unpack(place.files, "new", pieces, limits=Limits())
    assert place.digest() == before
    assert place.files.quota.used() >= 0


def test_the_quota_holds(place: Place) -> None:
    place.files.quota.limit = 1 << 20
    before = place.digest()
    with pytest.raises(Refused, match="quota") as refused:
        place.unpack(entry(b"a", bytes(2 << 20)) + b"\0" * 1024)
    assert refused.value.code == "quota_exceeded"
    place.files.quota.limit, place.files.quota.files_limit = None, 4
    with pytest.raises(Refused, match="At most 4 files"):
        place.unpack(b"".join(entry(b"f%d" % n) for n in range(9)) + b"\0" * 1024)
    assert place.digest() == before


def test_what_the_runner_packs_is_what_tar_and_the_runner_unpack(place: Place, tmp_path: Path) -> None:
    source = tree(place.home / "tree")
    (source / "big").write_bytes(os.urandom(200_000))
    packed = io.BytesIO()
    archive = place.files.archive(["tree"])

    def send(data: bytes) -> None:
        packed.write(data)

    def send_file(fd: int, size: int) -> None:
        packed.write(os.pread(fd, size, 0))

    archive.write(send, send_file, [])
    archive.close()
    (source / "a/twin").unlink()
    (source / "a/twin").write_bytes((source / "a/b/file").read_bytes())  # a second name becomes a second file
    (tmp_path / "by-tar").mkdir()
    subprocess.run(["tar", "x", "-C", str(tmp_path / "by-tar")], input=packed.getvalue(), check=True)
    place.unpack(packed.getvalue(), "again")
    assert tree_digest(tmp_path / "by-tar") == tree_digest(place.home / "again")
    assert tree_digest(place.home / "again/tree") == tree_digest(source)
