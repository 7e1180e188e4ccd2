"""A mesh of real containers: two replicas of a tensor stream, one of which is killed in mid-stream."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import moorage
import numpy as np
import pytest
from moorage.mesh import AuthorizationRefused, ClientConfig, RemoteManager, Session, SessionManager, SignatureAuthorizer

from tests.clusters.conftest import NoTorch, install_torch
from tests.compat.mesh.conftest import SECRET, Serve
from tests.product.conftest import Installation

pytestmark = pytest.mark.compat
SIGNED = ("--secret-file", "/home/work/mesh-app/secret")


def config_of(installation: Installation) -> ClientConfig:
    return ClientConfig(
        session="model",
        endpoint=installation.endpoint,
        access_key=installation.access_key,
        secret_key=installation.secret_key,
    )


async def test_a_replica_is_killed_in_mid_stream(installation: Installation, serve: Serve, engine_host: str) -> None:
    await asyncio.to_thread(serve, "model:Model", *SIGNED)
    tensor = np.arange(6, dtype=np.uint8).reshape(2, 3)
    authorizer = SignatureAuthorizer(SECRET)
    async with RemoteManager(config_of(installation)) as remote_manager:
        await remote_manager.wait_for_nodes(2)
        [worker] = [node for node in remote_manager.state.nodes.values() if node.name == "worker1"]
        worker.seconds = 0.0  # the session ends with its main kernel, and lives on without a worker
        outputs = []
        async with SessionManager(remote_manager, authorizer).session() as session:
            async for output in session.run_protocol_task("30 0.02", tensor):
                outputs.append(output)
                if len(outputs) == 5:
                    assert session.peer == worker.peer_id
                    container = f"moorage-{worker.peer_id.replace('-', '')}-1"
                    kill = ["docker", "-H", engine_host, "kill", container]
                    await asyncio.to_thread(subprocess.run, kill, check=True, capture_output=True)
            assert session.peer != worker.peer_id
        assert [int(output[0][0]) for output in outputs] == list(range(30))
        assert all((output == tensor + number).all() for number, output in enumerate(outputs))
        with pytest.raises(AuthorizationRefused):
            async for _ in Session(remote_manager).run_protocol_task("1 0", tensor):
                pass


@pytest.mark.full
@pytest.mark.parametrize("entry", ["model:Model", "network:Network"])
def test_the_example_as_it_was_written(
    installation: Installation, client: moorage.Client, serve: Serve, entry: str
) -> None:
    """With tensors of torch, bfloat16: on the client's side only, and on both."""
    try:
        torch = install_torch()
    except NoTorch as reason:
        pytest.skip(str(reason))
    mounts = []
    if entry.startswith("network"):
        mounts = [client.volumes.create("torch").name]
        client.volumes.get("torch").files.upload_folder(str(torch), "torch")
    serve(entry, *SIGNED, mounts=mounts, mem="1g" if mounts else "128m")
    keys = [installation.endpoint, installation.access_key, installation.secret_key, SECRET]
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "default::UserWarning:torch",
        "-m",
        "tests.compat.mesh.clients",
        *keys,
    ]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(["sdk", str(torch)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 6
    assert {(dtype, tuple(shape)) for dtype, shape, _ in told} == {("torch.bfloat16", (2, 4))}
    if mounts:
        assert told[2][2] == [2.0 * number + 2 for number in range(8)]
        assert told[4][2] == [4.0 * number + 1 for number in range(8)]
    else:
        assert told[0][2] == [float(number) for number in range(8)]


@pytest.mark.full
def test_the_example_runs(installation: Installation, client: moorage.Client) -> None:
    environ = {**os.environ, "MOORAGE_CONFIG": str(installation.config), "PYTHONPATH": "sdk"}
    command = [sys.executable, "-W", "error", "examples/tensor_streams.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Tensor('F32', [3]) [16.0, 32.0, 48.0]"
    assert client.sessions.list() == []
