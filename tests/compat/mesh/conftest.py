"""A model on two replicas, in real containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import moorage
import pytest

from tests.installed import Installed
from tests.product.conftest import Installation, client

__all__ = ["client"]

APP = Path(__file__).parent / "app"
SECRET = "what this test signs its requests with"
Serve = Callable[..., moorage.Session]


@pytest.fixture(scope="session")
def installation(everything: Installed) -> Installation:
    return Installation(everything.folder, everything.told)


@pytest.fixture
def serve(client: moorage.Client) -> Iterator[Serve]:
    """`serve("model:Model", replicas=2)`: a session whose replicas all answer."""
    volume = client.volumes.create("mesh-app")
    for module in APP.glob("*.py"):
        volume.files.write(module.name, module.read_bytes())
    volume.files.write("secret", SECRET)

    def make(
        entry: str, *options: str, replicas: int = 2, mem: str = "128m", mounts: Sequence[str] = ()
    ) -> moorage.Session:
        arguments = [entry, "--path", "/home/work/mesh-app", *options]
        return client.sessions.create(
            "model",
            session_type="inference",
            serves={"name": "tensor-stream", "kind": "tensor-stream", "arguments": arguments},
            cluster_size=replicas,
            cpu=0.5,
            mem=mem,
            mounts=["mesh-app", *mounts],
        )

    yield make
    for session in client.sessions.list():
        session.destroy(wait=30)
    volume.delete()
