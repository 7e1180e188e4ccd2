"""What is kept of a session's files, and nothing that is not in its folder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from agent.outputs import archive, keep


def made(folder: Path, *paths: str) -> Path:
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("out", ["out/a.csv", "out/deep/b.csv", "out/log"]),
        ("out/*.csv", ["out/a.csv"]),
        ("**/*.csv", ["out/a.csv", "out/deep/b.csv", "top.csv"]),
        ("out/**/b.csv", ["out/deep/b.csv"]),
        ("*.csv", ["top.csv"]),
        ("nothing", []),
        ("[", []),
    ],
)
def test_what_matches_is_moved_and_the_rest_stays(tmp_path: Path, pattern: str, kept: list[str]) -> None:
    scratch = made(tmp_path / "work", "out/a.csv", "out/deep/b.csv", "out/log", "top.csv", "src/x.py")
    keep(scratch, tmp_path / "results", [pattern])
    assert names(tmp_path / "results") == kept
    assert set(names(scratch)).isdisjoint(kept)
    assert "src/x.py" in names(scratch)


def test_links_are_kept_as_links_and_never_followed(tmp_path: Path) -> None:
    secret = made(tmp_path / "host", "secret/key")
    scratch = made(tmp_path / "work", "out/a")
    (scratch / "out/link").symlink_to(secret / "secret/key")
    (scratch / "folder").symlink_to(secret)
    os.mkfifo(scratch / "out/pipe")
    assert keep(scratch, tmp_path / "results", ["out", "folder/secret/key", "**/key"]) == 1
    assert (secret / "secret/key").read_text() == "secret/key"
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive(tmp_path / "results")))) as found:
        kinds = {member.name: member.type for member in found}
    assert kinds == {"out": tarfile.DIRTYPE, "out/a": tarfile.REGTYPE, "out/link": tarfile.SYMTYPE}


def test_the_archive_holds_every_byte(tmp_path: Path) -> None:
    contents = {"empty": b"", "block": b"x" * 512, "odd": os.urandom(3_000_001), "n" * 200: b"long", "ümläut": b"u"}
    (tmp_path / "results").mkdir()
    for name, content in contents.items():
        (tmp_path / "results" / name).write_bytes(content)
    pieces = list(archive(tmp_path / "results"))
    assert all(pieces)  # an empty one would be taken for the end
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as found:
        read = {member.name: file.read() for member in found if (file := found.extractfile(member)) is not None}
    assert read == contents


def test_nothing_there_is_nothing_kept(tmp_path: Path) -> None:
    assert keep(tmp_path / "missing", tmp_path / "results", ["a"]) == 0
    assert keep(made(tmp_path / "work", "a"), tmp_path / "results", []) == 0
    assert not (tmp_path / "results").exists()
