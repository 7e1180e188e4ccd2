"""The whole product as a user has it: `moorage up` in a folder of its own, once for all tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import moorage
import pytest

from bench.installation import MOORAGE, processes


@dataclass(frozen=True)
class Installation:
    data_dir: Path
    config: Path
    endpoint: str
    access_key: str
    secret_key: str

    def run(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """The `moorage` command, as this installation's administrator."""
        environ = {**os.environ, "MOORAGE_CONFIG": str(self.config)}
        return subprocess.run([MOORAGE, *words], capture_output=True, text=True, env=environ, check=False, **options)  # type: ignore[call-overload,no-any-return]

    def processes(self, daemon: str) -> list[int]:
        return processes(daemon, self.data_dir)


@pytest.fixture(scope="session")
def installation(engine_host: str, kernel_image: str) -> Iterator[Installation]:
    with tempfile.TemporaryDirectory(prefix="moorage-product-", ignore_cleanup_errors=True) as folder:
        data_dir, config = Path(folder) / "data", Path(folder) / "config.toml"
        environ = {**os.environ, "MOORAGE_CONFIG": str(config), "DOCKER_HOST": engine_host}
        up = [MOORAGE, "up", "--data-dir", str(data_dir), "--port", "0", "--detach", "--json", "--cpu", "64"]
        done = subprocess.run(up, capture_output=True, text=True, env=environ, check=False)
        if done.returncode != 0:
            log = data_dir / "log" / "moorage.log"
            pytest.fail(f"moorage up: {done.stderr}\n{log.read_text()[-4000:] if log.exists() else ''}")
        said = json.loads(done.stdout)
        try:
            yield Installation(data_dir, config, said["endpoint"], said["access_key"], said["secret_key"])
        finally:
            subprocess.run([MOORAGE, "down", "--data-dir", str(data_dir)], capture_output=True, env=environ, check=True)


@pytest.fixture
def client(installation: Installation) -> Iterator[moorage.Client]:
    """As the administrator. What a test leaves behind is destroyed."""
    with moorage.Client(
        endpoint=installation.endpoint, access_key=installation.access_key, secret_key=installation.secret_key
    ) as opened:
        yield opened
        for session in opened.sessions.list():
            session.destroy(wait=30)


@pytest.fixture
def session(client: moorage.Client) -> Iterator[moorage.Session]:
    """One running session."""
    with client.sessions.create(image="python", cpu=1, mem="512m") as running:
        yield running


@pytest.fixture
def user(installation: Installation, client: moorage.Client) -> Callable[[str], moorage.Client]:
    """`user("bob")` is a client of an ordinary user of that name."""

    def make(name: str) -> moorage.Client:
        installation.run("admin", "user", "add", f"{name}@example.org")
        made = json.loads(installation.run("admin", "keypair", "add", f"{name}@example.org", "--json").stdout)
        return moorage.Client(
            endpoint=installation.endpoint, access_key=made["access_key"], secret_key=made["secret_key"]
        )

    return make
