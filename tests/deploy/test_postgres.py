"""Migrations run from the deployed image against a PostgreSQL over TCP with a password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import docker

from tests.deploy.conftest import Images

if TYPE_CHECKING:
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.network import Network


async def test_the_deployed_image_migrates_a_database(
    engine: docker.DockerClient, deployment_images: Images, network: Network, postgres_container: PostgresContainer
) -> None:
    for _ in range(2):  # the second finds nothing to do
        engine.containers.run(
            deployment_images.server,
            ["-m", "repositories.migrate"],
            entrypoint="python3",
            environment={"DATABASE_URL": "postgresql://moorage:secret@postgres:5432/moorage"},
            network=network.name,
            remove=True,
        )
    connection = await asyncpg.connect(postgres_container.get_connection_url(driver=None))
    try:
        assert await connection.fetchval("SELECT count(*) FROM session_transition") > 10
    finally:
        await connection.close()
