"""What agents say, on its way into the database; several reports at a time in one transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from agent.wire import AgentHello, DeviceCheck, DeviceList, Fact, RunDone, Sample, ServiceFact
from domain.crash import reach
from domain.ids import AgentId, KernelId, SessionId
from domain.images import registry_of
from domain.names import as_uuid
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from manager.loop import Batcher
from manager.refusals import Refusals
from manager.vault import Vault
from repositories import device_checks
from repositories.agents import change_devices, heartbeats, hello
from repositories.database import Database
from repositories.event import head
from repositories.kernels import agents_of, record_facts, renew_pull
from repositories.registry import RegistryRepository, owner_of_kernel
from repositories.runs_done import finish_runs
from repositories.samples import store_samples
from repositories.service import record_services

log = logging.getLogger("moorage.control.ingest")
_MOST_OWNERS: Final = 100_000


class Ingest:
    """The hub's callbacks. Each returns when what was said is committed; when it raises, the agent says it again."""

    def __init__(
        self,
        database: Database,
        herald: Herald,
        agents: ConnectedAgents,
        *,
        clock: Callable[[], datetime],
        lease_seconds: float,
        vault: Vault | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._database = database
        self._refusals = refusals or Refusals(database, herald, clock=clock)
        self._owns: dict[UUID, AgentId] = {}  #: kernels whose agents are known: for the audit only, writes look again
        self._vault = vault
        self._herald = herald
        self._agents = agents
        self._greeting: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._facts: Batcher[tuple[AgentId, Fact]] = Batcher("facts", self._write_facts)
        self._runs: Batcher[tuple[AgentId, RunDone]] = Batcher("runs", self._write_runs)
        self._beats: Batcher[AgentId] = Batcher("heartbeats", self._write_heartbeats)
        self._samples: Batcher[tuple[AgentId, Sample]] = Batcher("samples", self._write_samples, most=5000)
        self._renewed: dict[KernelId, datetime] = {}

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for batcher in (self._facts, self._runs, self._beats, self._samples):
                    group.create_task(batcher.run())
        finally:
            for task in self._greeting:
                task.cancel()

    async def on_hello(self, said: AgentHello) -> int:
        """An agent has connected: who it is was proved by its certificate. Its inventory is recorded with it.

        Returns the epoch of the database.
        """
        async with self._database.transaction("control.hello") as connection:
            epoch, _ = await head(connection)
            greeted = await hello(connection, said, now=self._clock(), lease_seconds=self._lease_seconds)
        if greeted.forgot:
            log.warning("agent %s comes with a new data dir; %d sessions end", said.agent_id, len(greeted.moved))
        await self.on_facts(AgentId(said.agent_id), [Fact.unpack(fact) for fact in said.facts])
        if greeted.changed:
            self._herald.announce("sessions", *greeted.changed)
        if greeted.changed or greeted.told:
            self._herald.announce("events")
        self._herald.announce("agents")
        task = asyncio.create_task(self._offer_work(AgentId(said.agent_id)), name=f"greet {said.agent_id}")
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)
        return epoch

    async def _offer_work(self, agent_id: AgentId) -> None:
        """Nothing can be sent to an agent before the hub has answered its hello."""
        await self._agents.wait_until_connected([agent_id], 5.0)
        self._herald.announce("dispatch")
        self._herald.announce("queue")

    async def on_heartbeat(self, agent_id: AgentId) -> None:
        await self._beats.put([agent_id])

    async def on_facts(self, agent_id: AgentId, facts: Sequence[Fact]) -> None:
        await self._facts.put([(agent_id, fact) for fact in facts])

    async def on_runs_done(self, agent_id: AgentId, runs: Sequence[RunDone]) -> None:
        await self._look_whose(agent_id, "report_runs", [run.kernel_id for run in runs])
        await self._runs.put([(agent_id, run) for run in runs])

    async def on_samples(self, agent_id: AgentId, samples: Sequence[Sample]) -> None:
        await self._look_whose(agent_id, "report_samples", [sample.kernel_id for sample in samples])
        await self._samples.put([(agent_id, sample) for sample in samples])

    async def on_services(self, agent_id: AgentId, facts: Sequence[ServiceFact]) -> None:
        await self._look_whose(agent_id, "report_services", [fact.kernel_id for fact in facts])
        async with self._database.transaction("control.service_facts") as connection:
            changed = await record_services(connection, agent_id, facts, now=self._clock())
        if changed:
            self._herald.announce("services", *changed)
            self._herald.announce("events")

    async def on_devices(self, agent_id: AgentId, said: DeviceList) -> None:
        """Something about a host's devices has changed since its hello."""
        async with self._database.transaction() as connection:
            changed = await change_devices(connection, agent_id, said, now=self._clock())
        for name in changed.out:
            log.warning("agent %s: the device %s is taken out", agent_id, name)
        if changed.sessions:
            self._herald.announce("sessions", *changed.sessions)
        if changed.out or changed.back:
            self._herald.announce("events")
        self._herald.announce("queue")

    async def on_device_checks(self, agent_id: AgentId, checks: Sequence[DeviceCheck]) -> None:
        """Devices were looked at, when they were handed over, given back, or in between."""
        named = [check.kernel_id for check in checks if check.kernel_id is not None]
        await self._look_whose(agent_id, "report_device_checks", named)
        async with self._database.transaction() as connection:
            sessions = await device_checks.store(connection, agent_id, checks, now=self._clock())
        if sessions:
            self._herald.announce("sessions", *sessions)

    async def on_progress(self, agent_id: AgentId, said: dict[str, Any]) -> None:
        """An image is on its way: nobody gives up on it. Written at most each 10 s for a kernel."""
        kernel_id, now = as_uuid(str(said.get("kernel_id"))), self._clock()
        if kernel_id is None:
            return
        last = self._renewed.get(KernelId(kernel_id))
        if last is not None and now - last < timedelta(seconds=10):
            return
        if len(self._renewed) > 10_000:
            self._renewed.clear()
        self._renewed[KernelId(kernel_id)] = now
        await self._look_whose(agent_id, "report_progress", [str(kernel_id)])
        async with self._database.reader() as connection:
            await renew_pull(connection, agent_id, KernelId(kernel_id), now=now)

    async def credentials(self, agent_id: AgentId, kernel_id: str, image: str) -> dict[str, str] | None:
        """With which an agent fetches the image of a kernel that it is to run; of no other image, and no other kernel."""
        kernel = as_uuid(kernel_id)
        if kernel is None or self._vault is None:
            return None
        async with self._database.reader() as connection:
            owner_id = await owner_of_kernel(connection, kernel, agent_id, image)
            if owner_id is None:
                await self._refusals.record(agent_id, "ask_for_credentials", f"{kernel} {image}")
                return None
            row = await RegistryRepository(connection, now=self._clock()).of(registry_of(image), owner_id)
        if row is None:
            return None
        return {"username": row.username, "password": self._vault.open(row.sealed, row.host)}

    async def _write_facts(self, reports: Sequence[tuple[AgentId, Fact]]) -> None:
        async with self._database.transaction("control.facts") as connection:
            recorded = await record_facts(connection, reports, now=self._clock())
        if recorded.changed:
            self._herald.announce("sessions", *recorded.changed)
        if recorded.intents:
            self._herald.announce("dispatch")
        if recorded.released:
            self._herald.announce("queue")
        if recorded.moved or recorded.released:
            self._herald.announce("events")
        for agent_id, kernel_id in recorded.refused:
            await self._refusals.record(agent_id, "report_facts", str(kernel_id))

    async def _write_runs(self, reports: Sequence[tuple[AgentId, RunDone]]) -> None:
        async with self._database.reader() as connection:
            reach("control.runs.before")
            finished = await finish_runs(connection, reports, now=self._clock())
        reach("control.runs.after")
        self._announce_runs(finished.sessions)
        if finished.loads:
            self._herald.announce("sessions", *finished.loads)
        for agent_id, run_id in finished.refused:
            await self._refusals.record(agent_id, "report_runs", f"run {run_id}")

    async def _write_samples(self, reports: Sequence[tuple[AgentId, Sample]]) -> None:
        async with self._database.transaction("control.samples") as connection:
            await store_samples(connection, reports, now=self._clock())

    def _announce_runs(self, sessions: frozenset[SessionId]) -> None:
        if sessions:
            self._herald.announce("runs", *sessions)
            self._herald.announce("events")

    async def _write_heartbeats(self, agents: Sequence[AgentId]) -> None:
        async with self._database.transaction("control.heartbeats") as connection:
            returned = await heartbeats(
                connection, sorted(set(agents)), now=self._clock(), lease_seconds=self._lease_seconds
            )
        if returned:
            self._herald.announce("sessions", *returned)
            self._herald.announce("agents")
            self._herald.announce("events")

    async def _look_whose(self, agent_id: AgentId, action: str, kernels: Sequence[str]) -> None:
        """An agent that speaks of another's kernel is on record: a mistake of ours, or an agent in wrong hands.

        Nothing depends on it: every statement that writes what was said asks whose kernel it is by itself.
        """
        named = {as_uuid(kernel) for kernel in kernels} - {None}
        unsure = [kernel for kernel in named if kernel is not None and self._owns.get(kernel) != agent_id]
        if not unsure:
            return
        async with self._database.reader() as connection:
            found = await agents_of(connection, unsure)
        if len(self._owns) > _MOST_OWNERS:
            self._owns.clear()
        self._owns.update(found)
        for kernel, owner in found.items():
            if owner != agent_id:
                await self._refusals.record(agent_id, action, str(kernel))
