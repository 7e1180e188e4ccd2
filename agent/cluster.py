"""Networks of cluster sessions on this host: made with the first kernel, taken away after the last one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from agent import vxlan
from agent.containers import Containers, EngineError, NetworkSpec
from agent.firewall import Firewall
from agent.wire import ClusterNetwork, KernelSpec
from domain.isolation import Egress

log = logging.getLogger("moorage.agent.cluster")
MASTER_PORT: Final = 29500
_BRIDGE, _VXLAN = "mo", "mx"
_RESTORE_SECONDS: Final = 30.0


def network_name(session_id: str) -> str:
    return f"moorage-{session_id}"


def view(spec: KernelSpec) -> ClusterNetwork | None:
    """The kernel's network, when it is one of a cluster."""
    return ClusterNetwork.unpack(spec.network) if spec.network else None


def environ(spec: KernelSpec) -> dict[str, str]:
    """What a kernel of a cluster finds in its environment; the names are those that torchrun and mpirun users know."""
    network = view(spec)
    if network is None:
        return {}
    names = [name for name, _ in network.hosts]
    me = kernel_name(spec)
    rank, size = str(names.index(me) if me in names else 0), str(len(names))
    return {
        "MOORAGE_CLUSTER_HOSTS": ",".join(names),
        "MOORAGE_CLUSTER_SIZE": size,
        "MOORAGE_CLUSTER_HOST": me,
        "MOORAGE_CLUSTER_ROLE": spec.role,
        "MOORAGE_CLUSTER_INDEX": str(spec.index),
        "MASTER_ADDR": names[0],
        "MASTER_PORT": str(MASTER_PORT),
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": "0",
        # what `torchrun` takes for options that are not given
        "PET_NNODES": size,
        "PET_NODE_RANK": rank,
        "PET_MASTER_ADDR": names[0],
        "PET_MASTER_PORT": str(MASTER_PORT),
    }


def kernel_name(spec: KernelSpec) -> str:
    return f"{spec.role}{spec.index}"


def write_hosts(path: Path, network: ClusterNetwork) -> None:
    """The kernel's /etc/hosts. It is mounted, so it is written in place: never shorter, so that no reader sees two
    versions mixed."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{name}" for name, address in network.hosts]
    # Programs that listen on IPv6 ask for the name of ::ffff:10.0.0.2, and wait long for a name server that knows nothing
    # of it: torch.distributed does, 10 s for each connection. The name is another one, so that `main1` has one address.
    lines += [f"::ffff:{address}\t{name}.cluster" for name, address in network.hosts]
    text = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.pwrite(fd, text.ljust(os.fstat(fd).st_size, b"\n"), 0)
    finally:
        os.close(fd)


class Networks:
    """One at a time is changed; everything can be done again."""

    def __init__(
        self,
        engine: Containers,
        *,
        address: str | None = None,
        port: int = 4789,
        firewall: Firewall | None = None,
    ) -> None:
        self._engine = engine
        self._address = address
        self._port = port
        self._lock = asyncio.Lock()
        self.firewall = firewall  #: None: nobody closes anything to sessions, as in some tests
        self._closed: frozenset[str] = frozenset()
        self._closing: asyncio.Future[None] | None = None
        self.look = asyncio.Event()  #: the engine has come back, and may have changed rules

    def close_to(self, hosts: Collection[str]) -> None:
        """Those who run Moorage, by name or address: no session reaches them."""
        if self.firewall is not None and (wanted := frozenset(hosts)) != self._closed:
            self._closed = wanted
            self._closing = asyncio.ensure_future(self._close_to(wanted))

    async def _close_to(self, hosts: Collection[str]) -> None:
        found = set()
        for host in hosts:
            with contextlib.suppress(OSError, ValueError, UnicodeError):
                for entry in await asyncio.get_running_loop().getaddrinfo(host, None):
                    address = ip_address(str(entry[4][0]).partition("%")[0])
                    if not address.is_loopback:
                        found.add(str(address))
        try:
            assert self.firewall is not None
            await self.firewall.close_to(found)
        except EngineError as error:
            self._closed = frozenset()  # they are told again
            log.error("Moorage itself is not closed to sessions: %s", error)

    async def open(self) -> None:
        """Before any session starts: the network of all single ones is closed as it should be."""
        if self.firewall is None:
            return
        try:
            await self.firewall.sweep()
            await self.firewall.guard(self._engine.bridge, egress=Egress.OPEN, together=False)
        except EngineError as error:  # a kernel without it, a container without the right to it
            self.firewall.failed = str(error)
        self.firewall.isolate(self._engine.bridge)

    async def close(self) -> None:
        """Rules stay as long as sessions do: when none of ours is here, the network and the rules go."""
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.gather(self._closing, return_exceptions=True)
        with contextlib.suppress(EngineError):  # sessions are on it, ours or another agent's
            await self._engine.remove_network()
        if self.firewall is not None and not await self._engine.ours() and not await self._engine.made_networks():
            await self.firewall.remove()

    def started(self, spec: KernelSpec) -> None:
        """Its container has started, and nothing of its user runs yet."""
        if self.firewall is not None and spec.network is None and spec.egress == Egress.OPEN:
            self.firewall.isolate(self._engine.bridge)

    async def watch(self) -> None:
        """Rules that somebody took away come back. Runs until cancelled."""
        while self.firewall is not None:
            try:
                await self.firewall.restore()
                self.firewall.isolate(self._engine.bridge)
            except EngineError as error:
                log.error("the rules that keep sessions apart cannot be looked at: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.look.wait(), _RESTORE_SECONDS)
            self.look.clear()

    async def ensure(self, spec: KernelSpec) -> None:
        """The bridge, and towards other hosts the VXLAN, of this kernel's session, as the kernel's intent says."""
        network = view(spec)
        if network is None:
            return
        async with self._lock:
            await self._guard(spec, f"{_BRIDGE}{network.vni:x}")
            spans = spec.cluster == "multi-node"
            mtu = await self._mtu() if spans else 1500
            await self._engine.make_network(
                NetworkSpec(
                    name=network_name(spec.session_id),
                    bridge=f"{_BRIDGE}{network.vni:x}",
                    subnet=network.subnet,
                    gateway=network.gateway,
                    mtu=mtu,
                    labels={"moorage.session": spec.session_id, "moorage.vni": str(network.vni)},
                )
            )
            if network.peers:
                await self._join(network)

    async def _guard(self, spec: KernelSpec, bridge: str) -> None:
        """Before the bridge is there."""
        trouble = "nobody keeps its packet filter" if self.firewall is None else self.firewall.trouble
        if trouble is None and self.firewall is not None:
            await self.firewall.guard(bridge, egress=spec.egress, together=True)
        elif spec.egress == Egress.NONE:
            raise EngineError(f"This host cannot keep a cluster from networks outside: {trouble}.")

    async def _mtu(self) -> int:
        return (await vxlan.mtu_towards(self._address) if self._address else 1500) - vxlan.OVERHEAD_BYTES

    async def _join(self, network: ClusterNetwork) -> None:
        if self._address is None:
            raise EngineError("This host has no address under which others reach it; set 'address' in agent.toml.")
        await vxlan.ensure(
            f"{_VXLAN}{network.vni:x}",
            vni=network.vni,
            bridge=f"{_BRIDGE}{network.vni:x}",
            local=self._address,
            peers=network.peers,
            port=self._port,
        )

    async def release(self, session_id: str, still_needed: Callable[[], bool]) -> None:
        """Take the session's network away; not when a kernel of it has come meanwhile."""
        async with self._lock:
            if not still_needed():
                labels = (await self._engine.made_networks()).get(network_name(session_id))
                if labels is not None:
                    await self._remove(network_name(session_id), labels)

    async def sweep(self, sessions: Collection[str]) -> None:
        """After a start: take away what belongs to sessions of which nothing is here any more."""
        async with self._lock:
            networks = await self._engine.made_networks()
            for name, labels in networks.items():
                if labels.get("moorage.session") not in sessions:
                    log.warning("the network %s was left over; removing it", name)
                    with contextlib.suppress(EngineError):  # a container that we do not know is on it
                        await self._remove(name, labels)
            with contextlib.suppress(EngineError):
                for device in await vxlan.orphans(_VXLAN):  # the engine's network was removed by others
                    await vxlan.remove(device)

    async def _remove(self, name: str, labels: Mapping[str, str]) -> None:
        # the device first: without its bridge nobody would find it again
        if (vni := labels.get("moorage.vni", "")).isdigit():
            await vxlan.remove(f"{_VXLAN}{int(vni):x}")
        await self._engine.unmake_network(name)
        if self.firewall is not None and vni.isdigit():
            await self.firewall.release(f"{_BRIDGE}{int(vni):x}")

    async def facts(self) -> dict[str, Any]:
        """What managers should know of this host before they choose subnets and peers."""
        said: dict[str, Any] = {"address": self._address}
        with contextlib.suppress(EngineError):
            said["networks"] = await self._engine.foreign_subnets()
        return said
