"""Clusters over two hosts: one network for their kernels, real work on it, more and fewer workers, and no trace of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import moorage
import pytest

from tests.clusters.conftest import TORCH_IN_CONTAINER, Fleet
from tests.clusters.hosts import Host, quiet

pytestmark = [pytest.mark.containers, pytest.mark.long]
ALL_REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
numbers = torch.full((1000,), float(dist.get_rank() + 1))
dist.all_reduce(numbers)
print(dist.get_rank(), dist.get_world_size(), os.uname().nodename, numbers.sum().item(), flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def cluster(fleet: Fleet) -> Iterator[moorage.Session]:
    """Three kernels that do not fit on one host."""
    with fleet.client.sessions.create_cluster(
        "train",
        workers=2,
        multi_node=True,
        cpu=1.5,
        mem="800m",
        environ={"PYTHONPATH": TORCH_IN_CONTAINER, "OMP_NUM_THREADS": "1"},
    ) as session:
        yield session


def test_the_kernels_are_on_two_hosts_and_find_each_other(cluster: moorage.Session) -> None:
    assert [(kernel.name, kernel.agent) for kernel in cluster.info.kernels] == [
        ("main1", "host-1"),
        ("worker1", "host-1"),
        ("worker2", "host-2"),
    ]
    serve = (
        "import socket; s = socket.create_server(('', 7000)); c, a = s.accept(); print(c.recv(100)); c.sendall(b'hi')"
    )
    waiting = cluster.kernel("main1").commands.start(["python3", "-c", serve])
    call = (
        "import socket, time\n"
        "for _ in range(200):\n"
        "    try: s = socket.create_connection(('main1', 7000)); break\n"
        "    except ConnectionRefusedError: time.sleep(0.02)\n"
        "s.sendall(b'x' * 40); print(s.recv(9), socket.gethostname())"
    )
    assert cluster.kernel("worker2").commands.run(["python3", "-c", call]).stdout == "b'hi' worker2\n"
    assert waiting.wait(timeout=10).stdout.startswith("b'xxx")


def test_an_all_reduce_over_three_containers_on_two_engines(
    torch: None, fleet: Fleet, cluster: moorage.Session
) -> None:
    for kernel in cluster.info.kernels:
        cluster.kernel(kernel.name).files.write("reduce.py", ALL_REDUCE)
    command = "python3 -m torch.distributed.run reduce.py"  # torchrun, which finds its peers in the environment
    done = fleet.moorage("exec", "train", "--all", "--timeout", "60", "--", command)
    assert done.returncode == 0, done.stdout + done.stderr
    told = sorted(line.split("| ")[1] for line in done.stdout.splitlines() if "| " in line)
    assert told == ["0 3 main1 6000.0", "1 3 worker1 6000.0", "2 3 worker2 6000.0"]


def test_workers_come_and_go_without_touching_the_others(fleet: Fleet, cluster: moorage.Session) -> None:
    cluster.run_code("x = 41")
    pids = {name: cluster.kernel(name).run_code("import os; os.getpid()").text for name in ("main1", "worker2")}
    cluster.modify(cluster_size=5).wait_for_kernels(timeout=30)
    assert [kernel.name for kernel in cluster.info.kernels] == ["main1", *(f"worker{n}" for n in range(1, 5))]
    ask = """
import os, socket
names = os.environ["MOORAGE_CLUSTER_HOSTS"].split(",")
print(os.environ["RANK"], os.environ["WORLD_SIZE"], len({socket.gethostbyname(name) for name in names}))
"""
    told = cluster.run_on_all(["python3", "-c", ask])
    assert {name: result.stdout for name, result in told.items()} == {
        "main1": "0 5 5\n",
        "worker1": "1 5 5\n",
        "worker2": "2 5 5\n",
        "worker3": "3 5 5\n",
        "worker4": "4 5 5\n",
    }
    assert cluster.run_code("print(x + 1, __import__('os').environ['WORLD_SIZE'])").stdout == "42 5\n"
    cluster.modify(cluster_size=3).wait_for_kernels(timeout=30)
    assert {name: r.stdout for name, r in cluster.run_on_all(["python3", "-c", ask]).items()} == {
        "main1": "0 3 3\n",
        "worker1": "1 3 3\n",
        "worker2": "2 3 3\n",
    }
    for name, before in pids.items():  # the same interpreters as ever
        assert cluster.kernel(name).run_code("import os; os.getpid()").text == before


def test_an_agent_that_was_killed_finds_the_network_again(fleet: Fleet, cluster: moorage.Session) -> None:
    second = fleet.hosts.hosts[1]
    before = devices(second)
    assert len(before) == 2  # the bridge, and the way to the other host
    fleet.kill_agent(second)
    fleet.start_agent(second)
    cluster.modify(cluster_size=4).wait_for_kernels(timeout=30)
    assert devices(second) == before
    reach = "import socket; print(socket.gethostbyname('worker3'))"
    assert cluster.kernel("worker2").commands.run(["python3", "-c", reach]).ok


def test_nothing_is_left_of_a_cluster(fleet: Fleet) -> None:
    with fleet.client.sessions.create_cluster(workers=2, multi_node=True, cpu=0.5, mem="128m", wait=30) as session:
        assert {kernel.agent for kernel in session.info.kernels} >= {"host-1"}
    for host in fleet.hosts.hosts:
        left = quiet(["docker", "-H", host.engine, "network", "ls", "--format", "{{.Name}}"]).stdout.split()
        assert [name for name in left if session.id in name] == []


def devices(host: Host) -> list[str]:
    """Of clusters: bridges and VXLANs."""
    shown = json.loads(quiet(host.inside("ip", "-j", "link", "show")).stdout)
    return sorted(
        one["ifname"] for one in shown if one["ifname"].startswith(("mo", "mx")) and one["ifname"] != "moorage"
    )
