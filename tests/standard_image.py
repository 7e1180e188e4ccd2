"""A kernel image with apt, dpkg, sudo and a setuid program: this machine's own, put on top of the default image."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import docker

ROOT: Final = Path(__file__).resolve().parents[1]
NAME: Final = "moorage-test/standard:1"
SETUID: Final = "/usr/local/bin/whoami-by-setuid"
PACKAGE: Final = "/opt/moored.deb"
_PROGRAMS: Final = (
    *("/usr/bin/apt-get", "/usr/bin/dpkg", "/usr/bin/dpkg-deb", "/usr/bin/dpkg-query", "/usr/bin/dpkg-split"),
    *("/usr/sbin/ldconfig", "/usr/sbin/start-stop-daemon", "/usr/bin/id"),
)
_FOLDERS: Final = (
    "etc/apt/apt.conf.d",
    "etc/apt/sources.list.d",
    "etc/apt/preferences.d",
    "etc/dpkg/dpkg.cfg.d",
    "var/lib/dpkg/info",
    "var/lib/dpkg/updates",
    "var/lib/dpkg/triggers",
)
_METHODS: Final = ("copy", "file", "store")
_PARTIAL: Final = ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt")
_APT: Final = "_apt:x:42:65534::/nonexistent:/usr/sbin/nologin"  #: as whom it fetches
_PAM: Final = "".join(f"{kind} sufficient pam_permit.so\n" for kind in ("auth", "account", "session", "password"))


class CannotBuild(Exception):
    """The message says why."""


def ensure_image(client: docker.DockerClient, base: str) -> str:
    """Its name. Raises CannotBuild where this machine is not a Debian, or sudo's package cannot be had."""
    if client.images.list(NAME):
        return NAME
    if not all(map(shutil.which, ("apt-get", "dpkg-deb", "ldd"))):
        raise CannotBuild("apt and dpkg of this machine are needed for an image with them")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        _copy(root, _PROGRAMS)
        for place in ("usr/lib/apt", "usr/share/dpkg"):
            shutil.copytree(f"/{place}", root / place, symlinks=True)
        _copy(root, [], linked=[path for path in Path("/usr/lib/apt/methods").iterdir() if path.name in _METHODS])
        _sudo(root, Path(folder))
        _package(root, Path(folder))
        setuid = root / SETUID.lstrip("/")
        setuid.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/usr/bin/id", setuid)
        setuid.chmod(0o4755)
        for place in (*_FOLDERS, *_PARTIAL):
            (root / place).mkdir(parents=True, exist_ok=True)
        (root / "var/lib/dpkg/status").touch()
        client.images.build(fileobj=_context(root, base), custom_context=True, tag=NAME, rm=True, forcerm=True)
    return NAME


def _copy(root: Path, programs: Iterable[str], linked: Iterable[Path] = ()) -> None:
    """With the libraries that they are linked to; of what is `linked`, only those."""
    needed = set(programs)
    for program in (*programs, *linked):
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        needed |= set(re.findall(r"=> (/\S+)", listed))
    for path in needed:
        # below /usr, where /lib and /bin lead to
        target = root / re.sub(r"^/(lib|bin|sbin)/", r"usr/\1/", path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _sudo(root: Path, folder: Path) -> None:
    kept = ROOT / "var/sudo"
    if not list(kept.glob("sudo_*.deb")):
        kept.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["apt-get", "download", "sudo"], cwd=kept, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CannotBuild(f"sudo's package cannot be fetched: {done.stderr.strip()[-200:]}")
    unpacked = folder / "sudo"
    subprocess.run(["dpkg-deb", "-x", str(next(kept.glob("sudo_*.deb"))), str(unpacked)], check=True)
    for place in ("usr/bin", "usr/libexec"):
        shutil.copytree(unpacked / place, root / place, symlinks=True, dirs_exist_ok=True)
    _copy(root, [], linked=[unpacked / "usr/bin/sudo", unpacked / "usr/libexec/sudo/sudoers.so"])
    _copy(root, [str(path) for path in Path("/lib").glob("*-linux-gnu/security/pam_permit.so")])
    for path, text, mode in (
        ("etc/pam.d/sudo", _PAM, 0o644),
        ("etc/pam.d/other", _PAM, 0o644),
        ("etc/sudoers", "work ALL=(ALL) NOPASSWD: ALL\nroot ALL=(ALL) ALL\n", 0o440),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(mode)
    (root / "usr/bin/sudo").chmod(0o4755)


def _package(root: Path, folder: Path) -> None:
    """One to install: a file and its name."""
    made = folder / "moored"
    (made / "DEBIAN").mkdir(parents=True)
    (made / "DEBIAN/control").write_text(
        "Package: moored\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a file\n"
    )
    (made / "usr/bin").mkdir(parents=True)
    (made / "usr/bin/moored").write_text("#!/bin/sh\necho installed\n")
    (made / "usr/bin/moored").chmod(0o755)
    (root / "opt").mkdir()
    command = ["dpkg-deb", "--root-owner-group", "-b", str(made), str(root / PACKAGE.lstrip("/"))]
    subprocess.run(command, check=True, capture_output=True)


def _context(root: Path, base: str) -> io.BytesIO:
    inner, context = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.add(root, ".", filter=_owned_by_root)
    dockerfile = f"FROM {base}\nADD root.tar /\nUSER 0\nRUN echo '{_APT}' >> /etc/passwd\nUSER 1000:1000\n".encode()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, data in (("Dockerfile", dockerfile), ("root.tar", inner.getvalue())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    context.seek(0)
    return context


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
