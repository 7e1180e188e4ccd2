"""Fixtures: the Docker engine and the default kernel image; what asks for them is skipped without an engine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from images.build import CannotBuild, ensure_image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def engine_host() -> str:
    """Where the engine answers, as DOCKER_HOST has it; started when none does."""
    up = subprocess.run([ROOT / "scripts/engine", "up"], capture_output=True, text=True, check=False)
    if up.returncode != 0:
        pytest.skip(up.stderr.strip())
    told = subprocess.run([ROOT / "scripts/engine", "env"], capture_output=True, text=True, check=True)
    return told.stdout.strip().partition("=")[2]


@pytest.fixture(scope="session")
def engine(engine_host: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=engine_host, timeout=120)
    yield client
    client.close()


@pytest.fixture(scope="session")
def kernel_image(engine: docker.DockerClient) -> str:
    """The name of the default kernel image, present in the engine."""
    try:
        return ensure_image(engine)
    except CannotBuild as reason:
        pytest.skip(str(reason))
