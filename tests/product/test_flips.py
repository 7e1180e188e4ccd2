"""Uploads, archives and downloads while the session itself flips what lies on their way between a folder and a link."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import moorage
import pytest

pytestmark = pytest.mark.containers
#: The whole campaign: MOORAGE_FLIPS=1000.
ROUNDS = int(os.environ.get("MOORAGE_FLIPS", "35"))
CANARY = b"untouched"
#: Flips as fast as it can, by one atomic exchange each; twelve names of the way lead out.
FLIPPER = """
import ctypes, os, sys, time
outside = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
def exchange(a, b):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), a)
os.makedirs("way/in", exist_ok=True)
os.makedirs("way/real/in", exist_ok=True)
targets = ["/etc", "/", "/proc/1/root/etc", outside, "../../../../../../etc", "/moorage/link", "/moorage/rt", "/home"]
print("flipping", flush=True)
count = 0
while not os.path.exists("stop"):
    target = targets[count % len(targets)]
    for name in ("way/in", "way/real"):
        try:
            os.symlink(target, name + ".l")
        except FileExistsError:
            pass
        try:
            exchange(name, name + ".l")
            exchange(name, name + ".l")
        except OSError:
            os.makedirs(name, exist_ok=True)
        try:
            os.unlink(name + ".l")
        except OSError:
            pass
    try:
        os.symlink(target + "/passwd", "way/in/file")
        os.unlink("way/in/file")
    except OSError:
        pass
    count += 1
print(count)
"""


@pytest.fixture
def outside() -> Iterator[Path]:
    """Canaries of this host where the session's links would lead to, if anything of the host followed them."""
    with tempfile.TemporaryDirectory(prefix="moorage-canary-", dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o777)
        for name in ("file", "passwd", "a", "b"):
            (place / name).write_bytes(CANARY)
        yield place


def test_nothing_leaves_the_session_however_it_flips(session: moorage.Session, outside: Path) -> None:
    watched = (Path("/etc"), outside)
    before = [_digest(place) for place in watched]
    secret = Path("/etc/passwd").read_bytes()
    session.files.write("flip.py", FLIPPER)
    flipper = session.commands.start(["python3", "flip.py", str(outside)])
    output = flipper.output()
    next(output)  # it is under way
    seen: Counter[str] = Counter()
    for number in range(ROUNDS):
        evil = f"evil {number}".encode()
        _tried(seen, "upload", lambda data=evil: session.files.write("way/in/file", data))  # type: ignore[misc]
        _tried(seen, "upload", lambda data=evil: session.files.write("way/real/in/passwd", data))  # type: ignore[misc]
        _tried(seen, "archive", lambda data=evil: session.files.unpack(_archive(data), "way/in"))  # type: ignore[misc]
        for path in ("way/in/file", "way/real/in/passwd", "way/in/passwd"):
            got = _tried(seen, "download", lambda path=path: session.files.read_bytes(path))  # type: ignore[misc]
            # what it may read there is the container's own, which its code can read anyway; never the host's
            assert got is None or (got != secret and CANARY not in got), f"{path} in round {number}"
    session.files.write("stop", "")
    for _ in output:
        pass
    assert [_digest(place) for place in watched] == before
    assert session.commands.run("cat /moorage/rt/evil /etc/evil").exit_code != 0
    print(f"{ROUNDS * 6} transfers: {dict(sorted(seen.items()))}")
    assert sum(seen.values()) == ROUNDS * 6
    assert any(name.startswith("upload done") for name in seen)


def _tried(seen: Counter[str], what: str, call: Callable[[], object]) -> bytes | None:
    """Done, or refused in an orderly way; never a mistake of ours."""
    try:
        answer = call()
    except moorage.MoorageError as error:
        if not 400 <= error.http_status < 500:
            raise
        seen[f"{what} refused"] += 1
        return None
    seen[f"{what} done"] += 1
    return answer if isinstance(answer, bytes) else None


def _archive(data: bytes) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("passwd", "file", "deep/passwd", "evil"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    made.seek(0)
    return made


def _digest(root: Path) -> str:
    """Names, kinds, modes, owners and contents."""
    digest = hashlib.sha256()
    for folder, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = Path(folder, name)
            facts = path.lstat()
            digest.update(f"{path} {facts.st_mode:o} {facts.st_uid} {facts.st_mtime_ns}".encode())
            if path.is_file() and not path.is_symlink():
                digest.update(path.read_bytes())
    return digest.hexdigest()
