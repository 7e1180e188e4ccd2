"""Archives of sessions are unpacked inside their folder or not at all, also by Pythons without extraction filters."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from moorage.errors import TransferFailed
from moorage.sync.files import _arriving, _unpack


@pytest.fixture(params=["with filters", "without filters"])
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Python 3.11.2, which is Debian 12's, has no `tarfile.data_filter`."""
    if request.param == "without filters":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    return str(request.param)


def archive(*members: tuple[str, bytes | None, str]) -> io.BytesIO:
    """(name, content or None for what is no file, link target or type)"""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o6755
            if content is not None:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                continue
            info.type = {"/": tarfile.DIRTYPE, "|": tarfile.FIFOTYPE}.get(more, tarfile.SYMTYPE)
            info.linkname = more if info.type == tarfile.SYMTYPE else ""
            tar.addfile(info)
    return file


def test_files_folders_and_links_come_out(python: str, tmp_path: Path) -> None:
    packed = archive(("a/b", None, "/"), ("a/b/c.txt", b"hi", ""), ("a/link", None, "b/c.txt"))
    _unpack(packed, tmp_path / "out", ["x", "y"])
    assert (tmp_path / "out/a/b/c.txt").read_text() == "hi"
    assert (tmp_path / "out/a/link").read_text() == "hi"
    assert (tmp_path / "out/a/b/c.txt").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize(
    "members",
    [
        (("link", None, "/etc"), ("link/passwd", b"x", "")),
        (("link", None, "../.."), ("link/escaped", b"x", "")),
        (("up", None, "../outside"),),
    ],
    ids=["an absolute link", "a link upwards", "a link to outside"],
)
def test_nothing_leaves_the_folder(
    python: str, tmp_path: Path, members: tuple[tuple[str, bytes | None, str], ...]
) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises((TransferFailed, tarfile.TarError)):
        _unpack(archive(*members), target, ["x", "y"])
    outside = {
        path for path in tmp_path.rglob("*") if path not in (target, target.parent) and target not in path.parents
    }
    assert outside == set()


def test_a_folder_that_is_not_there_is_named_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as wrong, _arriving(tmp_path / "nosuch/file"):
        pass
    assert wrong.value.filename == str(tmp_path / "nosuch/file")
