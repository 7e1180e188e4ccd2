"""What a kernel of a cluster is told of the others."""

from __future__ import annotations

from pathlib import Path

from agent import cluster
from agent.vxlan import own_address
from agent.wire import ClusterNetwork, KernelSpec

HOSTS = [["main1", "10.0.0.2"], ["worker1", "10.0.0.3"], ["worker4", "10.0.0.9"]]


def network(hosts: list[list[str]] = HOSTS) -> ClusterNetwork:
    return ClusterNetwork(subnet="10.0.0.0/24", gateway="10.0.0.254", address="10.0.0.3", vni=7, hosts=hosts)


def spec(role: str, index: int) -> KernelSpec:
    return KernelSpec(
        session_id="s",
        session_name="n",
        image="i",
        role=role,
        index=index,
        network=network().pack(),
        cluster="multi-node",
    )


def test_ranks_count_from_the_main_kernel_without_holes() -> None:
    told = [cluster.environ(spec(role, index)) for role, index in (("main", 1), ("worker", 1), ("worker", 4))]
    assert [one["RANK"] for one in told] == [one["PET_NODE_RANK"] for one in told] == ["0", "1", "2"]
    assert {one["WORLD_SIZE"] for one in told} == {one["PET_NNODES"] for one in told} == {"3"}
    assert {one["MASTER_ADDR"] for one in told} == {one["PET_MASTER_ADDR"] for one in told} == {"main1"}
    assert told[2]["MOORAGE_CLUSTER_HOST"] == "worker4"
    assert told[0]["MOORAGE_CLUSTER_HOSTS"] == "main1,worker1,worker4"


def test_a_single_kernel_is_told_nothing() -> None:
    assert cluster.environ(KernelSpec(session_id="s", session_name="n", image="i")) == {}


def test_the_hosts_file_is_written_in_place_and_never_shorter(tmp_path: Path) -> None:
    path = tmp_path / "kernel" / "hosts"
    cluster.write_hosts(path, network())
    inode, size = path.stat().st_ino, path.stat().st_size
    assert "10.0.0.9\tworker4\n" in path.read_text()
    assert "::ffff:10.0.0.3\tworker1.cluster\n" in path.read_text()
    cluster.write_hosts(path, network(HOSTS[:1]))
    assert (path.stat().st_ino, path.stat().st_size, oct(path.stat().st_mode)[-3:]) == (inode, size, "644")
    assert "worker" not in path.read_text()
    assert path.read_text().rstrip("\n").endswith("main1.cluster")


def test_a_host_is_not_reached_under_its_loopback() -> None:
    found = own_address(["https://127.0.0.1:1", "https://no-such-host.invalid:1"])
    assert found is None or not found.startswith("127.")
