"""An image with cuvis.ai's own server, by images/cuvis/Dockerfile, where neither a registry nor an index is in a build's reach."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

import docker
import docker.errors

from tests.compat.environments import REQUIREMENTS, ROOT

SOURCE: Final = ROOT / "images" / "cuvis"
_WANTED: Final = (
    REQUIREMENTS / "cuvis-server.txt",
    REQUIREMENTS / "alone" / "cuvis-server.txt",
    ROOT / "requirements" / "torch.txt",
)
_OPTIONS: Final = {"SYSTEM": "", "PACKAGES": "wheels/*.whl", "PIP_OPTIONS": "--no-index --no-deps"}


class CannotBuild(Exception):
    """The message says why."""


def ensure_image(engine_host: str, base: str) -> str:
    """Its name; built when the engine has none of these packages. Takes minutes and 2 GB the first time."""
    files = sorted(path for path in SOURCE.iterdir() if path.is_file())
    name = f"moorage-test/cuvis:{_digest([*_WANTED, *files], base)}"
    client = docker.DockerClient(base_url=engine_host, timeout=900)  # pip says nothing for minutes
    try:
        if client.images.list(name):
            return name
        wheels = _wheels()
        with tempfile.TemporaryFile(prefix="moorage-cuvis-") as context:
            with tarfile.open(fileobj=context, mode="w") as archive:
                for path in files:
                    archive.add(path, path.name)
                archive.add(wheels, "wheels")
            context.seek(0)
            options = {"BASE": base, **_OPTIONS}
            client.images.build(
                fileobj=context,
                custom_context=True,
                tag=name,
                buildargs=options,
                network_mode="none",
                rm=True,
                forcerm=True,
            )
        for tag in {tag for image in client.images.list("moorage-test/cuvis") for tag in image.tags} - {name}:
            with contextlib.suppress(docker.errors.APIError):  # a session may still use it
                client.images.remove(tag)
        return name
    finally:
        client.close()


def _wheels() -> Path:
    """Fetched once and kept; what comes as source alone is built."""
    folder = ROOT / "var" / f"cuvis-wheels-{_digest(_WANTED)}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(prefix="cuvis-wheels-", dir=folder.parent) as partial:
        for path in _WANTED:
            words = ["--quiet", "--no-deps", "--require-hashes", "--wheel-dir", partial, "--requirement", str(path)]
            command = [sys.executable, "-m", "pip", "wheel", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
                raise CannotBuild(f"the packages of {path.name} cannot be had here: {said[0]}")
        Path(partial).rename(folder)
        Path(partial).mkdir()  # to be taken away
    return folder


def _digest(files: tuple[Path, ...] | list[Path], *more: str) -> str:
    return hashlib.sha256(b"\0".join([*(path.read_bytes() for path in files), *map(str.encode, more)])).hexdigest()[:12]
