"""The whole product as a user has it: `moorage up` in a folder of its own, once for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import moorage
import pytest

from bench.installation import processes
from tests.installed import Installed, installed


class Installation(Installed):
    def processes(self, daemon: str) -> list[int]:
        return processes(daemon, self.data_dir)


@pytest.fixture(scope="session")
def installation(engine_host: str, kernel_image: str) -> Iterator[Installation]:
    with installed(engine_host) as made:
        yield Installation(made.folder, made.told)


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
