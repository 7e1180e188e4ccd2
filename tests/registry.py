"""A real registry on this machine: Debian's docker-registry, with a password. Skipped where it cannot be had."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import pytest

CACHE = Path("/var/tmp/moorage-dev-registry")
USERNAME, PASSWORD = "robot", "s3cret"
#: bcrypt of the password, with the fewest rounds that there are
_HTPASSWD = f"{USERNAME}:$2b$04$SFCzuy8BQAFyHLhZFL3UEOj.FVMp5u6WvKWDIyWINwFPfRAHWMZ/a\n"


@dataclass(frozen=True)
class Registry:
    host: str  #: with the port
    folder: Path

    def ask(self, path: str, *, password: str = PASSWORD) -> bytes:
        """With the credentials; raises urllib's HTTPError."""
        request = urllib.request.Request(f"http://{self.host}/v2/{path}")
        request.add_header("Authorization", "Basic " + b64encode(f"{USERNAME}:{password}".encode()).decode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "htpasswd").write_text(_HTPASSWD)
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([_program(), "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        made = Registry(host, folder)
        _wait(made, server)
        yield made
    finally:
        server.terminate()
        server.wait(timeout=10)


def _program() -> str:
    if found := shutil.which("docker-registry"):
        return found
    program = CACHE / "usr/bin/docker-registry"
    if not program.exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            pytest.skip("no docker-registry is installed, and this is not Debian or Ubuntu")
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "docker-registry"]
        fetched = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, check=False)
        packages = sorted(CACHE.glob("docker-registry_*.deb"))
        if not packages:
            pytest.skip(f"the package docker-registry cannot be fetched: {fetched.stderr.strip()[-200:]}")
        subprocess.run(["dpkg-deb", "-x", packages[-1], CACHE], check=True)
    return str(program)


def _wait(registry: Registry, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if server.poll() is not None:
            break
        try:
            registry.ask("")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    pytest.fail(f"the registry does not come up: {(registry.folder / 'log').read_text()[-2000:]}")


@pytest.fixture(scope="session")
def tiny_image(engine: docker.DockerClient) -> Iterator[str]:
    """An image with nothing in it, which is pushed in no time: the runner brings what it needs."""
    name = "moorage/test-tiny:1"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        folder = tarfile.TarInfo("etc")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
    engine.api.import_image_from_data(content.getvalue(), repository="moorage/test-tiny", tag="1")
    yield name
    with contextlib.suppress(docker.errors.APIError):  # another run of these tests uses it
        engine.images.remove(name)
