"""The control role: plan, dispatch, take in, end in time, keep in order. Any number of managers may run it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network
from uuid import UUID

from domain.elapsed import boottime
from manager import image_tasks, volume_tasks
from manager.clock import DatabaseClock
from manager.dependencies import Dependencies
from manager.dispatcher import ConnectedAgents, Dispatcher
from manager.drains import Drains, FairShares
from manager.fencing import Replacements
from manager.herald import Herald
from manager.housekeeping import Purger, Sequencer
from manager.idle import IdleCheckers
from manager.inference import Inference
from manager.ingest import Ingest
from manager.loop import Loop
from manager.reconciler import Deadlines, LostAgents
from manager.scheduling import Scheduler
from manager.services import ServiceKeeper
from manager.tails import Tails
from manager.tasks import TaskLoop, Tools
from manager.vault import AuditSeal, Vault
from manager.webhooks import Callbacks, Webhooks, WebhookSettings
from manager.workers import Workers
from repositories.clusters import DEFAULT_POOL
from repositories.database import Database
from repositories.upkeep import Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    lease_seconds: float = 30.0  #: as agents are told in `Welcome`
    keep: Retention = field(default_factory=Retention)
    cluster_pool: IPv4Network = DEFAULT_POOL  #: of which every cluster session gets a /24
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)


class Control:
    """Everything of the role, built once. `ingest` is what the hub calls back; `run` goes on until it is cancelled."""

    def __init__(
        self,
        database: Database,
        herald: Herald,
        agents: ConnectedAgents,
        *,
        manager_id: UUID,
        clock: Callable[[], datetime] | None = None,
        elapsed: Callable[[], float] = boottime,
        jitter: Callable[[], float] = random.random,
        settings: ControlSettings | None = None,
        vault: Vault | None = None,
        seal: AuditSeal | None = None,
    ) -> None:
        settings = settings or ControlSettings()
        self._shared_clock = DatabaseClock(database)
        clock = clock or self._shared_clock
        lease_seconds = settings.lease_seconds
        self.ingest = Ingest(database, herald, agents, clock=clock, lease_seconds=lease_seconds, vault=vault)
        self.scheduler = Scheduler(database, herald, clock=clock, pool=settings.cluster_pool)
        self.dispatcher = Dispatcher(
            database, agents, self.ingest.on_facts, manager_id=manager_id, clock=clock, jitter=jitter
        )
        self.dependencies = Dependencies(database, herald, clock=clock)
        self.inference = Inference(database, herald, agents, clock=clock)
        self.workers = Workers(database, herald, agents, clock=clock)
        self.services = ServiceKeeper(database, herald, agents, clock=clock)
        self.deadlines = Deadlines(database, herald, clock=clock)
        self.lost_agents = LostAgents(database, herald, clock=clock, lease_seconds=lease_seconds)
        self.replacements = Replacements(database, herald, clock=clock, elapsed=elapsed)
        self.drains = Drains(database, herald, clock=clock)
        self.fair_shares = FairShares(database, clock=clock)
        self.sequencer = Sequencer(database, herald, seal=seal)
        self.purger = Purger(database, keep=settings.keep, clock=clock, seal=seal)
        self.tails = Tails(database, agents, clock=clock)
        self.idle_checkers = IdleCheckers(database, herald, clock=clock)
        tools = Tools(database=database, herald=herald, agents=agents, clock=clock, vault=vault)
        self.tasks = TaskLoop(tools, {**image_tasks.jobs(tools), **volume_tasks.jobs(tools)}, manager_id=manager_id)
        self.callbacks = Callbacks(database, herald, clock=clock)
        self.webhooks = Webhooks(
            database,
            manager_id=manager_id,
            clock=clock,
            jitter=jitter,
            vault=vault,
            settings=settings.webhooks,
        )
        self._wakes = (
            ("stamped", self.callbacks),
            ("webhooks", self.webhooks),
            ("queue", self.scheduler),
            ("queue", self.dependencies),
            ("queue", self.inference),
            ("services", self.inference),
            ("services", self.services),
            ("sessions", self.services),
            ("sessions", self.inference),
            ("sessions", self.workers),
            ("runs", self.workers),
            ("agents", self.scheduler),
            ("agents", self.drains),
            ("dispatch", self.dispatcher),
            ("events", self.sequencer),
            ("tasks", self.tasks),
        )
        self._herald = herald

    @property
    def loops(self) -> tuple[Loop, ...]:
        return (
            self._shared_clock,
            self.scheduler,
            self.dispatcher,
            self.dependencies,
            self.inference,
            self.workers,
            self.services,
            self.deadlines,
            self.lost_agents,
            self.replacements,
            self.drains,
            self.fair_shares,
            self.sequencer,
            self.purger,
            self.tasks,
            self.tails,
            self.idle_checkers,
            self.callbacks,
            self.webhooks,
        )

    async def run(self) -> None:
        forget = [self._herald.subscribe(topic, loop.wake) for topic, loop in self._wakes]
        forget.append(self._herald.subscribe("workers", self.workers.meet))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.ingest.run(), name="ingest")
                for loop in self.loops:
                    group.create_task(loop.run(), name=loop.name)
        finally:
            for end in forget:
                end()
            await self.dispatcher.close()
            await self.inference.close()
            await self.workers.close()
            await self.services.close()
            await self.tasks.close()
            await self.webhooks.close()
