"""A hundred hostile archives and places, against a session and a volume: the host and other sessions stay as they were."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import moorage
import pytest
from moorage.sync import Files, Volume

from tests.hostile import PATHS, harmless, hostile
from tests.product.conftest import Installation

pytestmark = pytest.mark.containers


class Watched:
    """Everything that an escape could reach: hashed before and after."""

    def __init__(self, installation: Installation, outside: Path) -> None:
        self._folders = [
            Path("/etc"),
            Path("/root/.ssh"),
            outside,
            installation.data_dir / "volumes",
            installation.data_dir / "agent/pki",
            installation.data_dir / "pki",
            *sorted((installation.data_dir / "agent/kernels").glob("*/work")),
            *sorted((installation.data_dir / "agent/kernels").glob("*/private")),
        ]

    def digest(self) -> dict[str, str]:
        return {str(folder): _digest(folder) for folder in self._folders if folder.exists()}


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for folder, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = Path(folder, name)
            try:
                facts = path.lstat()
            except FileNotFoundError:
                continue
            what = f"{path} {facts.st_mode:o} {facts.st_uid} {facts.st_ino} "
            digest.update(what.encode("utf-8", "surrogateescape"))
            if path.is_symlink():
                digest.update(os.fsencode(path.readlink()))
            elif path.is_file():
                digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def volume(client: moorage.Client) -> Iterator[Volume]:
    made = client.volumes.create(f"h{uuid4().hex[:8]}")
    yield made
    for session in client.sessions.list():
        session.destroy(wait=30)
    made.delete().wait(30)


def test_the_host_and_other_sessions_are_untouched(
    installation: Installation, client: moorage.Client, volume: Volume, tmp_path: Path
) -> None:
    (tmp_path / "canary").write_text("untouched")
    other = client.volumes.create(f"o{uuid4().hex[:8]}")
    other.files.write("theirs", "untouched")
    neighbour = client.sessions.create(image="python", cpu=0.5, mem="256m", mounts=[other.name])
    target = client.sessions.create(image="python", cpu=1, mem="512m", mounts=[volume.name])
    neighbour.files.write("mine", "untouched")
    for place in (".", volume.name):
        target.commands.run(f"cd {place}; mkdir keep; echo kept > keep/file; ln -s /etc out; ln -s {tmp_path} out2")
    passwd = target.commands.run("ls -la /etc | sha256sum; id").stdout
    watched = Watched(installation, tmp_path)
    before = watched.digest()
    assert len(before) >= 7, list(before)

    tried = 0
    for files in (target.files, volume.files):
        for name, archive in hostile().items():
            _refused(files, name, archive, ".")
            tried += 1
        for path in PATHS:
            if files is volume.files and path.startswith(("/etc", "/home")):
                continue  # of a volume, that is a folder in it
            _refused(files, f"to {path[:40]!r}", harmless(), path)
            with pytest.raises(moorage.MoorageError) as refused:
                files.write(path, b"evil")
            assert 400 <= refused.value.http_status < 500, path
            tried += 2
    assert tried >= 180

    after = watched.digest()
    assert after == before
    assert target.commands.run("ls -la /etc | sha256sum; id").stdout == passwd
    assert neighbour.files.read("mine") == other.files.read("theirs") == "untouched"
    assert target.commands.run("cat keep/file").stdout == "kept\n"
    neighbour.destroy(wait=30)
    other.delete().wait(30)


def _refused(files: Files, name: str, archive: bytes, path: str) -> None:
    with pytest.raises(moorage.MoorageError) as refused:
        files.unpack(io.BytesIO(archive), path)
    assert 400 <= refused.value.http_status < 500, f"{name}: {refused.value!r}"
