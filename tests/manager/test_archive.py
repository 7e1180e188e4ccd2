"""The file of a backup: written once and whole, and looked at before anything of it is believed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from manager.archive import DUMP, MANIFEST, ArchiveRefused, Manifest, unpack, write

SAYS: Mapping[str, Any] = {
    "version": "1.2.3",
    "schema": "0019",
    "made_at": "2026-11-21T17:00:00+00:00",
    "postgres": 18,
    "embedded": True,
    "epoch": 3,
    "live_sessions": 2,
    "running_executions": 1,
    "keys": True,
}
CONTENT = {DUMP: b"dump" * 100, "files/admin.json": b"{}", "files/pki/ca.key": b"secret"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    write(tmp_path / "backup.tar", SAYS, {name: tmp_path / "source" / name for name in CONTENT})
    return tmp_path / "backup.tar"


def made(path: Path, members: list[tuple[str, bytes]], **kinds: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.type = kinds.get(name.replace("/", "_").replace(".", "_"), tarfile.REGTYPE)
            tar.addfile(entry, io.BytesIO(content))
    return path


def manifest(files: Mapping[str, bytes], **other: Any) -> bytes:
    sums = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return json.dumps({"format": 1, **SAYS, "files": sums, **other}).encode()


def test_what_was_written_comes_out_again(archive: Path, tmp_path: Path) -> None:
    said = unpack(archive, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in CONTENT} == CONTENT
    assert (said.live_sessions, said.epoch, set(said.files)) == (2, 3, set(CONTENT))


def test_only_its_owner_can_read_it_and_what_comes_out(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path / "out")
    assert archive.stat().st_mode & 0o777 == 0o600
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out").rglob("*")} == {0}


def test_nothing_is_replaced_and_nothing_half_written_is_left(archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(FileExistsError):
        write(archive, SAYS, {DUMP: tmp_path / "source" / DUMP})
    assert archive.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*") if ".part" in path.name] == []


def test_one_changed_byte_is_noticed(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[data.index(b"dumpdump") + 5] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ArchiveRefused, match=r"database\.dump is damaged"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_a_file_that_is_cut_short_is_refused(archive: Path, tmp_path: Path, share: float) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ArchiveRefused):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("../evil", b"")], "does not belong"),
        ([("/etc/passwd", b"")], "does not belong"),
        ([(MANIFEST, manifest({DUMP: b"x"})), ("files/pki/../../x", b"")], "does not belong"),
        ([(MANIFEST, manifest({DUMP: b"x"})), (MANIFEST, b"{}")], "does not belong"),
        ([(DUMP, b"x"), (MANIFEST, manifest({DUMP: b"x"}))], "does not begin with its manifest"),
        ([(MANIFEST, manifest({DUMP: b"x"}))], "cut short"),
        ([(MANIFEST, manifest({})), (DUMP, b"x")], "not what the backup's manifest says"),
        ([(MANIFEST, b"nonsense")], "manifest cannot be read"),
        ([(MANIFEST, b'{"format": 1}')], "manifest cannot be read"),
        ([(MANIFEST, manifest({DUMP: b"x"}, format=9, version="7.0"))], "restore it with version 7.0"),
        ([], "empty"),
    ],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], says: str) -> None:
    with pytest.raises(ArchiveRefused, match=says):
        unpack(made(tmp_path / "made.tar", members), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_a_link_in_it_is_refused(tmp_path: Path) -> None:
    content = [(MANIFEST, manifest({DUMP: b""})), (DUMP, b"")]
    with pytest.raises(ArchiveRefused, match="does not belong"):
        unpack(made(tmp_path / "made.tar", content, database_dump=tarfile.SYMTYPE), tmp_path / "out")


def test_what_is_not_there_or_no_archive_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="There is no file"):
        unpack(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "text").write_text("hello\n" * 200)
    with pytest.raises(ArchiveRefused, match="is not a backup"):
        unpack(tmp_path / "text", tmp_path / "out")


def test_the_manifest_names_what_it_needs() -> None:
    said = Manifest.read(manifest({}))
    assert said.schema == "0019"
