"""The packing program by itself: an image's archive may be hostile, and reaches nothing but the folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from agent import pack

UID = 1000


def run(what: str, folder: Path, content: bytes = b"") -> tuple[bytes, dict[str, object]]:
    command = [sys.executable, "-I", "-S", pack.__file__, what, str(folder), str(UID)]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def archive(*members: tuple[str, bytes, str]) -> bytes:
    """(name, type, link target or content)"""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o777 | 0o4000
            if kind == tarfile.REGTYPE:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value.encode()))
            else:
                info.linkname = value
                tar.addfile(info)
    return made.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "work"
    inside.mkdir()
    if os.geteuid() == 0:
        for path in (*tmp_path.parents, tmp_path):  # the session's user must be able to reach it, once locked in
            if str(path).startswith("/tmp/"):
                path.chmod(0o755)
        os.chown(inside, UID, UID)
    return inside


def test_a_hostile_archive_stays_in_the_folder(folder: Path) -> None:
    beside = folder.parent / "beside"
    beside.write_text("untouched")
    before = sorted(Path("/etc").iterdir())
    content = archive(
        ("work", tarfile.DIRTYPE, ""),
        ("work/good", tarfile.REGTYPE, "kept"),
        ("work/../beside", tarfile.REGTYPE, "pwned"),
        ("/work/../../../etc/pwned", tarfile.REGTYPE, "pwned"),
        ("work/up", tarfile.SYMTYPE, ".."),
        ("work/up/beside", tarfile.REGTYPE, "pwned"),
        ("work/root", tarfile.SYMTYPE, "/"),
        ("work/hard", tarfile.LNKTYPE, "work/good"),
        ("work/device", tarfile.CHRTYPE, ""),
        ("work/pipe", tarfile.FIFOTYPE, ""),
    )
    run("unpack", folder, content)
    assert beside.read_text() == "untouched"
    assert sorted(Path("/etc").iterdir()) == before
    assert (folder / "good").read_text() == "kept"
    assert not {"device", "pipe"} & {path.name for path in folder.iterdir()}
    assert {path.lstat().st_uid for path in folder.iterdir()} == {UID if os.geteuid() == 0 else os.geteuid()}


def test_what_is_packed_comes_out_again(folder: Path, tmp_path: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "b").write_text("x" * 5000)
    (folder / "a" / "link").symlink_to("/nowhere")
    layer, said = run("pack", folder)
    assert said["done"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        names = tar.getnames()
        assert names == ["home/work", "home/work/.wh..wh..opq", "home/work/a", "home/work/a/b", "home/work/a/link"]
        assert not tar.getmember("home/work/a/b").uname


def test_a_truncated_archive_is_an_error(folder: Path) -> None:
    content = archive(("work/a", tarfile.REGTYPE, "x" * 5000))
    _, said = run("unpack", folder, content[:2000])
    assert "error" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock itself in")
def test_links_do_not_lead_out_when_packing(folder: Path) -> None:
    (folder / "shadow").symlink_to("/etc/shadow")
    (folder / "etc").symlink_to("/etc")
    layer, _ = run("pack", folder)
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert {m.name: m.linkname for m in tar if m.issym()} == {
            "home/work/shadow": "/etc/shadow",
            "home/work/etc": "/etc",
        }
