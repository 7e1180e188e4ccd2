"""What the demo's wrapper must notice, planted; in a process of its own, because adopting orphans is for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import docker
import pytest

pytestmark = pytest.mark.alone

LOOK = """
import subprocess, sys, docker
from tests import leftovers
client = docker.DockerClient(base_url=sys.argv[1])
leftovers.adopt_orphans()
before = leftovers.take(client)
planted = {}
exec(sys.argv[2])
print(*leftovers.wait_for_none(before, lambda: leftovers.take(client), seconds=0.5), sep="\\n")
exec(sys.argv[3])
"""
PLANTED = {
    "process": (
        "subprocess.run(['sh', '-c', 'setsid sleep 60 & echo $! > /dev/null'], close_fds=True)",
        "subprocess.run(['pkill', '-P', str(__import__('os').getpid()), 'sleep'])",
    ),
    "network": ("planted['it'] = client.networks.create('leftover-test')", "planted['it'].remove()"),
    "volume": ("planted['it'] = client.volumes.create('leftover-test')", "planted['it'].remove()"),
    "temporary file": (
        "planted['it'] = __import__('tempfile').TemporaryDirectory(prefix='moorage-left-')",
        "planted['it'].cleanup()",
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_leftover_is_seen(engine_host: str, engine: docker.DockerClient, kind: str) -> None:
    assert kind in _look(engine_host, *PLANTED[kind])


def test_a_container_is_seen(engine_host: str, kernel_image: str) -> None:
    make = f"planted['it'] = client.containers.create('{kernel_image}', 'true')"
    assert "container /" in _look(engine_host, make, "planted['it'].remove()")


def _look(host: str, plant: str, remove: str) -> str:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", LOOK, host, plant, remove], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout
