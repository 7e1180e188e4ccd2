"""An image with a Jupyter server, made on this machine from pinned packages, without a registry."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import docker

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "jupyter.txt"
#: How the image declares a service of its own, beside those that everybody knows.
DECLARED = '{"port": 9111, "command": ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"], "path": "/"}'


def ensure_image(client: docker.DockerClient, base: str) -> str:
    """Its name; built when the engine has none from these packages. Takes about ten seconds the first time."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + base.encode() + b"2" + DECLARED.encode()).hexdigest()[:12]
    name = f"moorage-test/jupyter:{digest}"
    if client.images.list(name):
        return name
    packages = ROOT / "var" / f"jupyter-{digest}"
    if not packages.exists():
        partial = packages.with_suffix(".part")
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:",
             "--python-version", "3.11", "--target", str(partial), "--requirement", str(REQUIREMENTS)],
            check=True,
        )  # fmt: skip
        partial.rename(packages)
    dockerfile = (
        f"FROM {base}\nCOPY packages /usr/local/lib/python3.11/dist-packages\n"
        f"LABEL moorage.service.pages='{DECLARED}'\n"
    )
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(dockerfile)
        archive.addfile(info, io.BytesIO(dockerfile.encode()))
        archive.add(packages, "packages", filter=lambda item: None if "__pycache__" in item.name else item)
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=name, rm=True, forcerm=True)
    return name
