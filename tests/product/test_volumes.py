"""Volumes as users have them: mounted, shared, copied, filled without a session; on real containers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import moorage
import pytest
from moorage.errors import (
    FileNotFound,
    QuotaExceeded,
    RangeNotSatisfiable,
    SessionEnded,
    VolumeMounted,
    VolumeNotFound,
    VolumeReadOnly,
)
from moorage.sync import Volume

from tests.product.conftest import Installation

pytestmark = pytest.mark.containers
User = Callable[[str], moorage.Client]


@pytest.fixture
def volume(client: moorage.Client) -> Iterator[Volume]:
    made = client.volumes.create(f"v{uuid4().hex[:8]}", quota="64m", quota_files=100)
    yield made
    for session in client.sessions.list():
        session.destroy(wait=30)
    made.delete().wait(30)


def sh(session: moorage.Session, line: str) -> str:
    done = session.commands.run(line)
    return f"{done.stdout}{done.stderr}".strip()


def create(client: moorage.Client, *mounts: dict[str, Any] | str) -> moorage.Session:
    return client.sessions.create(image="python", cpu=0.5, mem="256m", mounts=mounts)


def test_a_volume_lies_where_a_program_has_it_on_another_machine(client: moorage.Client, volume: Volume) -> None:
    volume.files.write("sub/first.yaml", "a: 1")
    places = ("/home/alice/project/configs", "/tmp/alice/configs")
    session = create(
        client, *({"volume": volume.name, "subpath": s, "path": p} for s, p in zip(("", "sub"), places, strict=True))
    )
    for attempt in ("one", "two"):
        assert sh(session, f"cat {places[0]}/sub/first.yaml {places[1]}/first.yaml") == "a: 1a: 1"
        assert sh(session, f"echo {attempt} > {places[1]}/said; cat {places[0]}/sub/said") == attempt
        assert "cannot touch" in sh(session, "touch /home/alice/project/beside")
        assert sh(session, f"grep -c ' {places[0]} ' /proc/self/mountinfo") == "2"  # the place, and the volume over it
        session.restart()
    assert session.files.read(f"{places[0]}/sub/first.yaml") == "a: 1"
    with pytest.raises(moorage.errors.InvalidMount):
        create(client, {"volume": volume.name, "path": "/usr/local/lib/x"})


def test_sessions_share_a_volume_and_a_reader_cannot_write(client: moorage.Client, volume: Volume) -> None:
    one = create(client, {"volume": volume.name, "path": "data"})
    two = create(client, {"volume": volume.id, "path": "/home/work/deep/data"})
    reader = create(client, {"volume": volume.name, "path": "data", "read_only": True})
    assert sh(one, "echo from one > data/f; cat data/f") == "from one"
    assert sh(two, "cat deep/data/f; echo and two >> deep/data/f") == "from one"
    assert sh(reader, "cat data/f") == "from one\nand two"
    assert "Read-only file system" in sh(reader, "touch data/g")
    assert "Read-only file system" in sh(reader, "rm data/f")
    flags = sh(one, "grep ' /home/work/data ' /proc/self/mountinfo")
    assert "rw,nosuid,nodev" in flags
    assert "ro,nosuid,nodev" in sh(reader, "grep ' /home/work/data ' /proc/self/mountinfo")
    assert volume.files.read("f") == "from one\nand two\n"
    assert one.info.mounts[0].path == "/home/work/data"
    with pytest.raises(VolumeMounted, match="end these sessions first"):
        volume.delete()
    restarted = one.restart()
    assert sh(restarted, "cat data/f") == "from one\nand two"


def test_a_set_user_id_program_in_a_volume_has_no_effect(
    installation: Installation, client: moorage.Client, volume: Volume
) -> None:
    volume.files.write("id", Path("/usr/bin/id").read_bytes(), mode=0o755)
    program = installation.data_dir / "volumes" / volume.id.replace("-", "") / "id"
    os.chown(program, 0, 0)
    program.chmod(0o6755)
    session = create(client, volume.name)
    assert "euid" not in sh(session, f"{volume.name}/id")


def test_a_part_of_a_volume_and_no_way_out_of_it(client: moorage.Client, volume: Volume) -> None:
    volume.files.mkdir("a/b", parents=True)
    volume.files.write("a/b/f", "inside")
    session = create(client, {"volume": volume.name, "subpath": "a", "path": "part"}, volume.name)
    assert sh(session, "ls part") == "b"
    assert sh(session, "cat part/b/f") == "inside"
    sh(session, f"ln -s /etc {volume.name}/evil; ln -s ../.. {volume.name}/a/up")
    for subpath, why in (("evil", "symbolic link"), ("a/up", "symbolic link"), ("missing", "No such file")):
        with pytest.raises(SessionEnded, match=f"a volume could not be mounted: .*{why}"):
            create(client, {"volume": volume.name, "subpath": subpath})


def test_a_link_in_the_place_of_a_mount_is_not_followed(client: moorage.Client, volume: Volume) -> None:
    """The home is kept over a restart, and what the user has put there with it."""
    session = create(client, {"volume": volume.name, "path": "a/data"})
    assert sh(session, "mv a b; ln -s /tmp a; ls -d a") == "a"
    with pytest.raises(moorage.MoorageError) as failure:
        session.restart()
    assert "symbolic link" in str(failure.value) or "symbolic link" in str(session.refresh().info.status_reason)


def test_files_come_and_go_without_a_session(client: moorage.Client, volume: Volume, tmp_path: Path) -> None:
    files = volume.files
    files.write("a/b/c.bin", bytes(range(256)) * 1000)
    assert files.read_bytes("a/b/c.bin", offset=256, length=4) == bytes(range(4))
    with pytest.raises(RangeNotSatisfiable):
        files.read_bytes("a/b/c.bin", offset=10**9)
    files.copy("a", "copy", recursive=True)
    files.move("a/b/c.bin", "moved.bin")
    files.remove("a", recursive=True)
    assert sorted(stat.name for stat in files.list()) == ["copy", "moved.bin"]
    files.download(["copy", "moved.bin"], tmp_path / "all.tar")
    assert subprocess.run(["tar", "tf", str(tmp_path / "all.tar")], capture_output=True, check=True).stdout
    with pytest.raises(FileNotFound):
        files.read("a/b/c.bin")
    with pytest.raises(QuotaExceeded):
        files.write("big", bytes(65 << 20))
    with pytest.raises(QuotaExceeded, match="At most 100 files"):
        files.upload_folder(_many(tmp_path / "many", 120), "many")
    assert not files.exists("big")
    assert not files.exists("many")
    volume.refresh()
    assert volume.info.used_files == 4
    assert volume.info.used_bytes is not None
    assert volume.info.used_bytes >= 512_000


def _many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"f{number}").write_text(str(number))
    return folder


def test_others_may_what_they_were_given(client: moorage.Client, volume: Volume, user: User) -> None:
    volume.files.write("f", "shared")
    name = f"bob{uuid4().hex[:6]}"
    with user(name) as bob:
        email = bob.whoami().user.email  # type: ignore[union-attr]
        with pytest.raises(VolumeNotFound):
            bob.volumes.get(volume.id)
        volume.share(users=[email])
        his = bob.volumes.get(volume.name)
        assert his.files.read("f") == "shared"
        with pytest.raises(VolumeReadOnly):
            his.files.write("g", "x")
        with pytest.raises(VolumeReadOnly, match="mount it as"):
            create(bob, volume.name)
        session = create(bob, {"volume": volume.name, "read_only": True})
        assert sh(session, f"cat {volume.name}/f") == "shared"
        volume.unshare(users=[email])
        assert sh(session, f"cat {volume.name}/f") == "shared"  # until it ends, or starts again
        with pytest.raises(moorage.MoorageError) as failure:
            session.restart()
        assert "shared" in str(failure.value) or "shared" in str(session.refresh().info.status_reason)
        session.destroy(wait=30)


def test_a_user_has_a_uid_of_its_own(installation: Installation, client: moorage.Client, user: User) -> None:
    name = f"nfs{uuid4().hex[:6]}"
    with user(name) as nora:
        client.users.edit(f"{name}@example.org", uid=5123, gid=5124)
        home = nora.volumes.create("home")
        home.files.write("f", "x")
        session = create(nora, "home")
        assert "uid=5123 gid=5124" in sh(session, "id")
        assert session.run_code("import os; open('home/g', 'w').write('y'); print(os.getuid())").stdout == "5123\n"
        assert {(stat.owner, stat.group) for stat in home.files.list()} == {(5123, 5124)}
        session.files.write("home/h", "z")
        assert home.files.stat("h").owner == 5123
        session.destroy(wait=30)
        home.delete().wait(30)


def test_a_copy_is_ones_own(client: moorage.Client, volume: Volume) -> None:
    volume.files.write("a/f", "first", mode=0o640)
    copy = f"{volume.name}-copy"
    task = volume.clone(copy).wait(30)
    assert (task.info.result or {})["files"] == 2
    made = client.volumes.get(copy)
    volume.files.write("a/f", "changed")
    assert made.files.read("a/f") == "first"
    assert made.files.stat("a/f").mode == "0640"
    made.delete().wait(30)
    with pytest.raises(VolumeNotFound):
        client.volumes.get(copy)


@pytest.mark.long
def test_the_command_line_tells_the_same_story(
    installation: Installation, client: moorage.Client, tmp_path: Path
) -> None:
    run, name = installation.run, f"w{uuid4().hex[:8]}"
    assert run("volume", "create", name, "--quota", "1g").stdout.strip() == name
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").write_text("1")
    assert run("volume", "put", str(tmp_path / "in"), f"{name}:dir").returncode == 0
    assert run("volume", "files", f"{name}:dir").stdout.strip() == "x"
    assert "1.0 GiB" in run("volume", "show", name).stdout
    session = run("create", "cli-mount", "--image", "python", "--mem", "256m", "-v", f"{name}:dir:/home/work/d:ro")
    assert session.returncode == 0, session.stderr
    assert run("exec", "cli-mount", "--", "cat", "d/x").stdout == "1"
    refused = run("volume", "rm", name)
    assert "mounted in cli-mount" in refused.stderr
    assert run("rm", "cli-mount").returncode == 0
    assert run("volume", "get", f"{name}:dir", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back/x").read_text() == "1"
    assert run("volume", "share", name).returncode != 0
    listed = json.loads(run("volume", "ls", "--json").stdout)
    assert name in [item["name"] for item in listed]
    twice = run("create", "--image", "python", "-v", name, "-v", f"{name}:/home/work/again")
    assert "mounted twice" in twice.stderr
    for live in client.sessions.list():
        live.destroy(wait=30)
    assert run("volume", "rm", name).stdout.strip() == name
