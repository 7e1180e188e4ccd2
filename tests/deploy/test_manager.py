"""The manager in a container of its own, on a PostgreSQL in another, over TLS."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import asyncpg
import httpx
import pytest

from tests.deploy.certificates import self_signed
from tests.deploy.conftest import Images

if TYPE_CHECKING:
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network


@pytest.fixture(scope="module")
def manager(
    deployment_images: Images,
    network: Network,
    postgres_container: PostgresContainer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    from testcontainers.core.container import DockerContainer

    tls = tmp_path_factory.mktemp("tls")
    self_signed(tls, "localhost")
    command = (
        "manager --host 0.0.0.0 --port 8470 --tls-cert /etc/moorage/tls/cert.pem --tls-key /etc/moorage/tls/key.pem"
    )
    container = (
        DockerContainer(deployment_images.server)
        .with_network(network)
        .with_network_aliases("manager")
        .with_env("DATABASE_URL", "postgresql://moorage:secret@postgres:5432/moorage")
        .with_volume_mapping(str(tls), "/etc/moorage/tls", "ro")
        .with_command(command)
        .with_exposed_ports(8470)
    )
    with container as running:
        address = f"https://localhost:{running.get_exposed_port(8470)}"
        with httpx.Client(base_url=address, verify=ssl.create_default_context(cafile=str(tls / "cert.pem"))) as client:
            _wait_until_ready(client, running)
            yield client


def _wait_until_ready(client: httpx.Client, container: DockerContainer, *, seconds: float = 60) -> None:
    """A container outside this process has no event to wait for; one that has ended is told at once, with its words."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        wrapped = container.get_wrapped_container()
        wrapped.reload()
        if wrapped.status != "running" or time.monotonic() > deadline:
            pytest.fail(f"the manager is {wrapped.status} and not ready: {wrapped.logs(tail=20).decode()}")
        time.sleep(0.1)


def test_it_is_ready_on_its_database(manager: httpx.Client) -> None:
    assert manager.get("/healthz").status_code == 200
    assert manager.get("/readyz").status_code == 200


def test_nobody_enters_without_a_key(manager: httpx.Client) -> None:
    assert manager.get("/v1/sessions").status_code == 401


async def test_it_has_migrated_the_database(manager: httpx.Client, postgres_container: PostgresContainer) -> None:
    connection = await asyncpg.connect(postgres_container.get_connection_url(driver=None))
    try:
        assert await connection.fetchval("SELECT count(*) FROM session_transition") > 10
    finally:
        await connection.close()
