"""One host: production's agent, from its SQLite file to its links, on a simulated engine and network."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import agent.kernel
import agent.kernels
import agent.link
import domain.ids
import manager.clock
import manager.reconciler
import manager.scheduling
from agent.cluster import Networks
from agent.containers import Containers
from agent.gpus import Gpus
from agent.host import Host
from agent.kernels import Kernels
from agent.lease import Lease
from agent.link import Links
from agent.store import Store
from tests.sim.engine import Engine, EngineClient, Ready, Rings, Runner
from tests.sim.network import Http, Network
from tests.sim.virtual import PROCESS, Process, VirtualLoop, VirtualTime, start


class NoNetworks(Networks):
    """No session of the simulation has a network of its own."""

    def __init__(self) -> None:
        super().__init__(cast(Containers, None))

    async def ensure(self, spec: Any) -> None: ...
    async def release(self, session_id: str, still_needed: Any) -> None: ...
    async def sweep(self, sessions: Any) -> None: ...
    async def facts(self) -> dict[str, Any]:
        return {}


class Agent:
    """A host and the starts of its agent. `boot` and kill as often as you like; engine and disk stay."""

    def __init__(
        self, name: str, engine: Engine, folder: Path, managers: list[str], *, cpu: int, mem: int, epoch: float
    ) -> None:
        self.name = name
        self.engine = engine
        self.skew = 0.0  #: seconds that its clock is off
        self.process = Process(name)
        self.kernels: Kernels | None = None  #: of the present start
        self._folder = folder
        self._managers = managers
        self._resources = {"cpu": cpu, "mem": mem}
        self._epoch = epoch
        self._connections: list[sqlite3.Connection] = []
        self._runtime = folder / "runtime"
        self._runtime.mkdir(parents=True)
        (self._runtime / "loader").write_text("loader")

    def boot(self) -> None:
        self.process = Process(self.name)
        _HOSTS[self.process] = self
        start(self.process, self._serve(), self.name).add_done_callback(self.engine.luck.ended)

    async def _serve(self) -> None:
        """As `agent.daemon.serving` puts it together."""
        store = await Store.open(self._folder / "agent.db")
        self._connections.append(store._connection)
        engine = cast(Containers, EngineClient(self.engine, "agent"))
        loop = self.engine.luck.loop
        kernels = Kernels(
            store,
            engine,
            self._folder,
            self._runtime,
            clock=lambda: self._epoch + loop.now + self.skew,
            most_starts=4,
            lease=Lease(self._folder / "lease", clock=loop.time, boot_id="sim"),
            networks=NoNetworks(),
            gpus=Gpus(boot_no=store.boot_no, monotonic=loop.time),
        )
        kernels.snapshots.sweep = _nothing  # type: ignore[method-assign]  # nothing is committed here
        host = Host(self.name, kernels, cast(Any, None), resources=self._resources, info={}, version="1")
        links = Links([f"https://{name}" for name in self._managers], cast(Any, None), host, host.handlers)
        kernels.progress = links.progress
        kernels.credentials = links.credentials
        links.on_answer = kernels.renewed
        await kernels.recover()
        self.kernels = kernels
        async with asyncio.TaskGroup() as group:
            group.create_task(kernels._watch_engine())
            group.create_task(kernels._watch_leases())
            group.create_task(links.run())

    def close(self) -> None:
        self.process.kill()
        for connection in self._connections:
            connection.close()


_HOSTS: dict[Process, Agent] = {}


async def _nothing() -> None: ...


def _engine() -> Engine:
    process = PROCESS.get()
    assert process is not None
    return _HOSTS[process].engine


class _RunnerLink:
    @staticmethod
    async def connect(folder: Path, _private: Path, _pid: int | None) -> Runner:
        return await Runner.to(_engine(), folder)


def _prepare_link(folder: Path, _config: Any, **_owner: Any) -> Ready:
    return Ready(_engine(), folder)


def _set_aside(folder: Path, run_id: str, new_name: str) -> None:
    rings = _engine().rings
    if (done := rings.pop((str(folder), run_id), None)) is not None:
        rings[str(folder), new_name] = done


class _Discard:
    """Files are not what this is about."""

    @staticmethod
    def make_scratch(*_arguments: Any) -> None: ...
    @staticmethod
    def close_unfinished(*_arguments: Any, **_options: Any) -> None: ...


def install(loop: VirtualLoop, network: Network, seed: str, epoch: float) -> None:
    """Put the simulation's world in the place of this one. For a process that does nothing else."""
    _HOSTS.clear()
    kernel: Any = agent.kernel
    kernel.RunnerLink, kernel.prepare_link, kernel.set_aside = _RunnerLink, _prepare_link, _set_aside
    kernel.make_scratch, kernel.close_unfinished = _Discard.make_scratch, _Discard.close_unfinished
    kernel.Rings = lambda folder: Rings(_engine(), folder)
    link: Any = agent.link
    link.aiohttp = Http(lambda: network, _here)
    link.boottime = loop.time
    link.random = random.Random(f"{seed} pauses")
    time: Any = VirtualTime(loop, epoch)
    for module in (agent.kernels, manager.reconciler, manager.scheduling, manager.clock):
        cast(Any, module).time = time
    ids: Any = domain.ids
    ids.time, ids.os = time, SimpleNamespace(urandom=random.Random(f"{seed} ids").randbytes)


def _here() -> str:
    process = PROCESS.get()
    assert process is not None
    return process.name
