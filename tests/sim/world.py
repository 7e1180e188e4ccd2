"""A world: managers, hosts and users in virtual time; faults by lot, all of them from one seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from domain.errors import DatabaseUnavailable
from tests.sim.agents import Agent, install
from tests.sim.checks import Watcher
from tests.sim.engine import Engine
from tests.sim.managers import Manager
from tests.sim.network import Fate, Network
from tests.sim.store import Backend, SerialStore
from tests.sim.virtual import PROCESS, Process, VirtualLoop, for_ever

EPOCH = datetime(2030, 1, 1, 12, tzinfo=UTC)
#: How likely each mishap is, whenever it may happen, while there are faults.
RATES = {
    "container dies at start": 0.03,
    "engine refuses": 0.005,
    "engine does not hear": 0.01,
    "engine's answer is lost": 0.01,
    "hint is lost": 0.2,
    "work fails": 0.3,
    "the image is missing": 0.25,
    "frame is lost": 0.02,
    "frame comes twice": 0.03,
    "frame is late": 0.05,
    "killed here": 0.0015,
    "database is away": 0.003,
    "herald is not heard": 0.1,
}
#: Facts of a world that stay so when faults have stopped.
ALWAYS = frozenset({"work fails", "the image is missing"})


class World:
    """Implements `tests.sim.engine.Luck`."""

    def __init__(self, seed: int, backend: Backend, folder: Path, *, managers: int = 2, hosts: int = 3) -> None:
        self.seed = seed
        self.loop = VirtualLoop()
        self.faulty = True
        self.skew = 0.0  #: of the clock that managers share, in seconds
        self.trace: list[str] = []
        self._lots = random.Random(f"{seed} lots")
        self._delays = random.Random(f"{seed} delays")
        self.chaos = random.Random(f"{seed} chaos")
        self.wishes = random.Random(f"{seed} wishes")
        self.limits = random.Random(f"{seed} limits")
        self._outages = random.Random(f"{seed} database outages")
        self._database_is_away = False
        self.network = Network(self.loop, self._fate, self.point)
        self.loop.thread_seconds = lambda: (self._delays.uniform(0, 0.003), self._delays.uniform(0, 0.003))
        install(self.loop, self.network, str(seed), EPOCH.timestamp())
        self.store = SerialStore(backend, pause=self._pause, point=self.point, committed=self._committed)
        names = [f"m{number}" for number in range(managers)]
        self.managers = [
            Manager(
                number, self.loop, self.network, self.store, names,
                clock=self.clock, jitter=self._delays.random, overheard=self._overheard,
                ended=self.ended,
            )
            for number in range(managers)
        ]  # fmt: skip
        self.agents = [
            Agent(
                f"h{number}", Engine(f"h{number}", self, has_image=not self.chance("the image is missing")),
                folder / f"h{number}", names, cpu=4000, mem=8192, epoch=EPOCH.timestamp(),
            )
            for number in range(hosts)
        ]  # fmt: skip
        self.watcher = Watcher(backend, [agent.engine for agent in self.agents], self.note, self.clock)

    def clock(self) -> datetime:
        """What PostgreSQL would say: all managers go by it."""
        return EPOCH + timedelta(seconds=self.loop.now + self.skew)

    # -- lots --------------------------------------------------------------------------------------------------------
    def chance(self, what: str) -> bool:
        rate = RATES[what] if self.faulty or what in ALWAYS else 0.0
        return self._lots.random() < rate

    def between(self, least: float, most: float) -> float:
        """Mostly near the least."""
        return least + (most - least) * self._delays.random() ** 3

    def _fate(self) -> Fate:
        if self.chance("frame is lost"):
            return Fate(())
        seconds = self._delays.uniform(0.0002, 0.004)
        if self.chance("frame comes twice"):
            return Fate((seconds, seconds + self._delays.uniform(0, 8.0)), overtakes=True)
        if self.chance("frame is late"):
            return Fate((seconds + self._delays.uniform(0, 6.0),), overtakes=True)
        return Fate((seconds,))

    async def _pause(self) -> None:
        await asyncio.sleep(self._delays.uniform(0, 0.002))

    async def point(self, label: str) -> None:
        """Between two effects: the process may die here, or the database be away."""
        process = PROCESS.get()
        if process is None or not self.faulty:
            return
        if self.chance("killed here"):
            self.kill(process, label)
            await for_ever()
        if label.startswith("database") and (self._database_is_away or self.chance("database is away")):
            self.note(f"{process}: the database is away at {label}")
            raise DatabaseUnavailable

    def unheard(self) -> set[str]:
        """What a host knows of its kernels, and the managers do not."""
        known = [
            (agent.name, kernel.id, kernel.state.attempt, str(kernel.state.observed))
            for agent in self.agents
            if agent.kernels is not None
            for kernel in agent.kernels._kernels.values()
        ]
        return self.watcher.unheard(known)

    # -- what happens ------------------------------------------------------------------------------------------------
    def note(self, line: str) -> None:
        self.trace.append(f"{self.loop.now:.6f} {line}")

    def container_changed(self, host: str) -> None:
        self.watcher.look_at_host(host)

    def _committed(self, statements: Sequence[str]) -> None:
        self.watcher.look_at_database(statements)

    def kill(self, process: Process, where: str) -> None:
        if process.alive:
            self.note(f"{process} is killed: {where}")
            process.kill()
            self.loop.call_later(self.chaos.uniform(0.3, 6.0), self._boot, process, context=Context())

    @property
    def daemons(self) -> list[Manager | Agent]:
        return [*self.managers, *self.agents]

    def ended(self, task: asyncio.Task[Any]) -> None:
        """A daemon that gives up is started again, as its service manager would."""
        for one in self.daemons:
            if one.name == task.get_name():
                self.kill(one.process, f"it ends with {task.exception()!r}")

    def _boot(self, process: Process) -> None:
        for one in self.daemons:
            if one.process is process:
                self.note(f"{process} starts")
                one.boot()

    def _overheard(self, speaker: Manager, payload: str) -> None:
        for manager in self.managers:
            if manager is not speaker and manager.is_ready and not self.chance("herald is not heard"):
                seconds = self._delays.uniform(0.0005, 0.003)
                self.loop.call_later(seconds, manager.herald._receive, payload, context=manager.process.context)

    # -- faults that come by themselves ------------------------------------------------------------------------------
    async def mischief(self, seconds: float) -> None:
        """For so long something goes wrong every few seconds."""
        end = self.loop.now + seconds
        while True:
            await asyncio.sleep(self.chaos.expovariate(1 / 2.5))
            if self.loop.now >= end:
                return
            self.chaos.choice((
                self._kill_agent, self._kill_manager, self._partition, self._isolate, self._end_container,
                self._end_container, self._turn_agents_clock, self._turn_clock,
            ))()  # fmt: skip

    async def outages(self, seconds: float) -> None:
        """In one world of six the database goes away for whole seconds, not only for one statement."""
        lots, end = self._outages, self.loop.now + seconds
        if lots.random() >= 1 / 6:
            return
        while self.loop.now < end:
            await asyncio.sleep(lots.uniform(1.0, 8.0))
            away_seconds = lots.uniform(0.3, 4.0)
            self.note(f"the database is away for {away_seconds:.1f} s")
            self._database_is_away = True
            await asyncio.sleep(away_seconds)
            self._database_is_away = False

    def _kill_agent(self) -> None:
        self.kill(self.chaos.choice(self.agents).process, "at random")

    def _kill_manager(self) -> None:
        self.kill(self.chaos.choice(self.managers).process, "at random")

    def _partition(self) -> None:
        agent, manager = self.chaos.choice(self.agents).name, self.chaos.choice(self.managers).name
        ends = (agent, manager) if self.chaos.random() < 0.5 else (manager, agent)
        one_way, seconds = self.chaos.random() < 0.3, self.chaos.uniform(1, 45)
        self.note(f"{ends[0]} -{'>' if one_way else '-'} {ends[1]} is cut for {seconds:.1f} s")
        self.network.part(*ends, one_way=one_way)
        self.loop.call_later(seconds, self.network.join, *ends, context=Context())

    def _isolate(self) -> None:
        """No manager hears of a host, for as long as may cost it its lease."""
        agent, seconds = self.chaos.choice(self.agents), self.chaos.uniform(15, 60)
        self.note(f"{agent.name} is cut off for {seconds:.1f} s")
        for manager in self.managers:
            self.network.part(agent.name, manager.name, one_way=False)
            self.loop.call_later(seconds, self.network.join, agent.name, manager.name, context=Context())

    def _end_container(self) -> None:
        running = [
            (agent.engine, one)
            for agent in self.agents
            for one in agent.engine.containers.values()
            if one.status == "running"
        ]
        if running:
            engine, container = self.chaos.choice(running)
            engine.end(container, self.chaos.choice((0, 1, 137)), remove=self.chaos.random() < 0.3)

    def _turn_agents_clock(self) -> None:
        self.chaos.choice(self.agents).skew = self.chaos.choice((-7200.0, -300.0, 0.0, 300.0))

    def _turn_clock(self) -> None:
        by = self.chaos.choice((-20.0, -5.0, 5.0, 40.0))
        self.note(f"the database's clock jumps by {by:g} s")
        self.skew += by

    def calm(self) -> None:
        """Faults stop: wires are mended, clocks right, and whoever is dead comes back."""
        self.note("faults stop")
        self.faulty = False
        self.network.cut.clear()
        for agent in self.agents:
            agent.skew = 0.0

    def close(self) -> None:
        self.faulty = False
        for agent in self.agents:
            agent.close()
        for manager in self.managers:
            manager.process.kill()
        self.loop.bury()
