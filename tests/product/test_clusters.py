"""A cluster on one host: who reaches whom, what happens when a kernel dies, and that nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import moorage
import pytest
from moorage import errors

from tests.product.conftest import Installation

REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7000), timeout=0.5)
    print("reached")
except OSError:
    print("not reached")
"""
SERVE = (
    "import socket; s = socket.create_server(('', 7000)); print('ready', flush=True); [s.accept() for _ in range(9)]"
)


@pytest.fixture
def cluster(client: moorage.Client) -> Iterator[moorage.Session]:
    with client.sessions.create_cluster("gang", workers=2, cpu=0.3, mem="128m") as session:
        yield session


def container_of(engine: docker.DockerClient, cluster: moorage.Session, name: str) -> str:
    [kernel] = [kernel for kernel in cluster.refresh().info.kernels if kernel.name == name]
    [container] = engine.containers.list(filters={"label": f"moorage.kernel={kernel.id}"})
    return str(container.id)


def test_kernels_reach_each_other_and_nobody_elses(client: moorage.Client, cluster: moorage.Session) -> None:
    server = cluster.commands.start(["python3", "-c", SERVE])
    next(server.output())  # it listens
    address = cluster.run_code("import socket; print(socket.gethostbyname('main1'))").stdout.strip()
    others = cluster.kernel("worker1").commands.run(["python3", "-c", REACH, "main1"])
    assert others.stdout == "reached\n"
    with (
        client.sessions.create(cpu=0.3, mem="128m") as single,
        client.sessions.create_cluster(workers=1, cpu=0.3, mem="128m") as stranger,
    ):
        assert single.commands.run(["python3", "-c", REACH, address]).stdout == "not reached\n"
        assert {r.stdout for r in stranger.run_on_all(["python3", "-c", REACH, address]).values()} == {"not reached\n"}
    server.kill()


def test_every_kernel_has_its_own_files_and_the_command_line_names_them(
    installation: Installation, cluster: moorage.Session
) -> None:
    cluster.kernel("worker2").files.write("mine.txt", "of worker2")
    assert not cluster.files.exists("mine.txt")
    assert installation.run("ls", "gang", "--kernel", "worker2").stdout == "mine.txt\n"
    done = installation.run("exec", "gang", "--all", "--", 'echo "$RANK of $WORLD_SIZE"; test "$RANK" != 1')
    assert sorted(done.stdout.splitlines()) == ["main1   | 0 of 3", "worker1 | 1 of 3", "worker2 | 2 of 3"]
    assert (done.returncode, "worker1 ended with exit code 1" in done.stderr) == (1, True)
    assert "worker2  RUNNING" in installation.run("info", "gang").stdout


def test_a_dead_worker_degrades_and_a_dead_main_kernel_ends_it(
    engine: docker.DockerClient, client: moorage.Client, cluster: moorage.Session
) -> None:
    engine.containers.get(container_of(engine, cluster, "worker2")).kill()
    cluster.wait_until("RUNNING_DEGRADED", timeout=20)
    with pytest.raises(errors.WrongStatus, match="worker2 of 'gang' has ended"):
        cluster.kernel("worker2").run_code("1")
    assert set(cluster.run_on_all("true")) == {"main1", "worker1"}
    cluster.modify(cluster_size=3).wait_for_kernels(timeout=20)
    cluster.wait_until("RUNNING", timeout=5)
    assert cluster.kernel("worker2").commands.run("echo $RANK").stdout == "2\n"
    engine.containers.get(container_of(engine, cluster, "main1")).kill()
    cluster.wait_until("ERROR", timeout=20)
    assert [one.name for one in engine.networks.list() if cluster.id in str(one.name)] == []
    with pytest.raises(errors.ResourcesImpossible):
        client.sessions.create_cluster(workers=150, cpu=1, mem="64m")
