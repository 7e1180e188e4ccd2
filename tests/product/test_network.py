"""Who reaches whom: nobody a session that is not of its own cluster, and no session the host or Moorage.

The attacks come from inside containers' network namespaces with root's rights there, raw sockets and IPv6 included.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import docker
import moorage
import pytest

from tests.product.conftest import Installation
from tests.product.network import PORT, World, attack, victim

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nsenter") or not shutil.which("ip"),
    reason="packet filters and namespaces need root",
)
HOST_PORT = 7124


class Inside:
    """A session's container, as its host sees it."""

    def __init__(self, engine: docker.DockerClient, session: moorage.Session, kernel: str = "main1") -> None:
        [kernel_id] = [one.id for one in session.refresh().info.kernels if one.name == kernel]
        [container] = engine.containers.list(filters={"label": f"moorage.kernel={kernel_id}"})
        self.pid = int(container.attrs["State"]["Pid"])
        [network] = container.attrs["NetworkSettings"]["Networks"].values()
        self.address, self.gateway = str(network["IPAddress"]), str(network["Gateway"])


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture
def gang(client: moorage.Client) -> Iterator[moorage.Session]:
    with client.sessions.create_cluster(workers=1, cpu=0.3, mem="128m") as session:
        yield session


def test_nobody_reaches_another_session_or_the_host(
    installation: Installation,
    engine: docker.DockerClient,
    client: moorage.Client,
    gang: moorage.Session,
    world: World,
) -> None:
    with (
        client.sessions.create(cpu=0.3, mem="128m") as attacker,
        client.sessions.create(cpu=0.3, mem="128m") as other,
        client.sessions.create_cluster(workers=1, cpu=0.3, mem="128m") as strangers,
    ):
        mine, single = Inside(engine, attacker), Inside(engine, other)
        mate, fellow, stranger = Inside(engine, gang), Inside(engine, gang, "worker1"), Inside(engine, strangers)
        api = urlsplit(installation.endpoint).port or 0
        own = world_facing_address()
        with (
            victim(single.pid) as alone,
            victim(fellow.pid) as friend,
            victim(port=HOST_PORT) as host,
            victim(where=world.where) as outside,
        ):
            everybody = {
                "a session": (single.address, PORT),
                "a session by IPv6": (alone.link_local, PORT),
                "a cluster": (fellow.address, PORT),
                "a cluster by IPv6": (friend.link_local, PORT),
                "the gateway": (mine.gateway, HOST_PORT),
                "the cluster's gateway": (mate.gateway, HOST_PORT),
                "the engine's gateway": (_bridge_address("docker0"), HOST_PORT),
                "the host": (own, HOST_PORT),
                "the host by IPv6": (_link_local("moorage"), HOST_PORT),
                "the manager": (own, api),
                "metadata": (world.metadata, PORT),
                "the world": (world.ordinary, PORT),
            }
            neighbours = {"a neighbour": single.address, "its gateway": mine.gateway}
            found = attack(mine.pid, tcp=everybody, arp=neighbours)
            assert {name for name, reached in found.items() if reached} == {"the world", "its gateway"}
            # the attack itself is able to: members of a cluster reach each other in all these ways
            found = attack(mate.pid, tcp=everybody, arp={"a neighbour": fellow.address})
            reached = {name for name, yes in found.items() if yes}
            assert reached == {"a cluster", "a cluster by IPv6", "the world", "a neighbour"}
            found = attack(stranger.pid, tcp=everybody, arp={"a neighbour": fellow.address})
            assert {name for name, yes in found.items() if yes} == {"the world"}

            assert alone.visitors() == host.visitors() == []
            assert sorted(friend.visitors()) == ["tcp", "tcp", "udp a cluster", "udp a cluster by IPv6"]
            assert sorted(outside.visitors()) == ["tcp"] * 3 + ["udp the world"] * 3


def test_without_egress_there_is_no_way_out(
    installation: Installation, engine: docker.DockerClient, client: moorage.Client, world: World
) -> None:
    client.resource_groups.modify("default", egress="none")
    try:
        with (
            client.sessions.create(cpu=0.3, mem="128m") as single,
            client.sessions.create_cluster(workers=1, cpu=0.3, mem="128m") as gang,
        ):
            assert "egress none" in installation.run("info", single.name).stdout
            assert "reaches no network outside" in installation.run("explain", single.name).stdout
            assert single.commands.run("ls /sys/class/net").stdout == "lo\n"
            assert single.run_code("print(6 * 7)").stdout == "42\n"
            mate, fellow = Inside(engine, gang), Inside(engine, gang, "worker1")
            for container in engine.containers.list(filters={"label": f"moorage.session={gang.id}"}):
                assert container.attrs["HostConfig"]["Dns"] == ["127.0.0.1"]  # names are a way out, too
            with victim(fellow.pid) as friend, victim(where=world.where) as outside, victim(port=HOST_PORT) as host:
                found = attack(
                    mate.pid,
                    tcp={
                        "a mate": (fellow.address, PORT),
                        "the world": (world.ordinary, PORT),
                        "metadata": (world.metadata, PORT),
                        "the gateway": (mate.gateway, HOST_PORT),
                    },
                )
                assert {name for name, reached in found.items() if reached} == {"a mate"}
                assert outside.visitors() == host.visitors() == []
                assert friend.visitors() == ["tcp", "udp a mate"]
    finally:
        client.resource_groups.modify("default", egress="open")


def world_facing_address() -> str:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        return str(sock.getsockname()[0])


def _bridge_address(device: str) -> str:
    import json
    import subprocess

    done = subprocess.run(["ip", "-j", "address", "show", "dev", device], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout or "[]")
    addresses = [one["local"] for link in found for one in link.get("addr_info", ()) if one["family"] == "inet"]
    return str(addresses[0]) if addresses else "172.17.0.1"


def _link_local(device: str) -> str:
    import json
    import subprocess

    done = subprocess.run(
        ["ip", "-j", "-6", "address", "show", "dev", device], capture_output=True, text=True, check=True
    )
    return str(json.loads(done.stdout)[0]["addr_info"][0]["local"])
