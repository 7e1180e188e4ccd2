"""One manager's control process, and the door to its actions: production's loops on the serial store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from agent.hub import _HELLO_SECONDS, LEASE_SECONDS, AgentHub
from agent.rpc import Peer
from domain.ids import AgentId
from manager.control import Control, ControlSettings
from manager.herald import Herald
from manager.world import World
from repositories.listen import Listener
from tests.sim.network import End, Network
from tests.sim.store import SerialDatabase, SerialStore
from tests.sim.virtual import Process, VirtualLoop, start

#: Of every loop: a lost wake-up costs so long. Longer than in production, where it is a second: it saves idle steps.
FLOOR_SECONDS = 4.0


class Hub(AgentHub):
    """Production's, without its listener: connections come from the simulated network."""

    def __init__(self, manager_id: UUID, callbacks: Callbacks) -> None:
        super().__init__(
            manager_id, "control", tls=cast(Any, None), ca_dir=Path(), host="127.0.0.1", port=1, callbacks=callbacks
        )

    def accept(self, end: End) -> None:
        self._spawn(self._serve(end, AgentId(end.there)))

    async def _serve(self, end: End, agent_id: AgentId) -> None:
        """As `_link` does with a connection whose certificate it has seen."""
        peer = Peer(end, str(agent_id))
        try:
            async with asyncio.timeout(_HELLO_SECONDS) as silence:
                self._listen_to(peer, agent_id, greeted=lambda: silence.reschedule(None))
                await peer.run()
        except TimeoutError:
            pass
        finally:
            if self._peers.get(agent_id) is peer:
                del self._peers[agent_id]


class Callbacks:
    """What agents say goes to the ingest. All managers and agents are known to each other."""

    def __init__(self, managers: list[str]) -> None:
        self._managers = managers
        self.control: Control

    def __getattr__(self, name: str) -> Any:
        return getattr(self.control.ingest, name)

    async def is_known(self, agent_id: AgentId, fingerprint: str) -> bool:
        return True

    async def refused(self, agent_id: AgentId, action: str, target: str) -> None:
        """It is in the audit of the real ones."""

    async def managers(self) -> list[dict[str, Any]]:
        return [{"id": name, "role": "control", "url": f"https://{name}"} for name in self._managers]


class Whisper(Herald):
    """Production's herald; what it notifies travels over the simulated network."""

    def __init__(self, manager: Manager) -> None:
        super().__init__("")
        self._manager = manager

    async def _open(self) -> Listener:
        return cast(Listener, self._manager)


class Manager:
    """A name and the starts of its process. To its herald it is the connection to the others' heralds."""

    def __init__(
        self,
        number: int,
        loop: VirtualLoop,
        network: Network,
        store: SerialStore,
        names: list[str],
        *,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
        overheard: Callable[[Manager, str], None],
        ended: Callable[[asyncio.Task[Any]], None],
    ) -> None:
        self.name = names[number]
        self.id = UUID(int=0xA000 + number)
        self.process = Process(self.name)
        self.control: Control
        self.world: World
        self.herald: Herald
        self._loop, self._network, self._store = loop, network, store
        self._names, self._clock, self._jitter = names, clock, jitter
        self._overheard, self._ended = overheard, ended

    def boot(self) -> None:
        self.process = Process(self.name)
        start(self.process, self._serve(), self.name).add_done_callback(self._ended)

    async def _serve(self) -> None:
        database = SerialDatabase(self._store)
        self.ended = False  #: as a listener; nothing ends it but its process
        self.herald = Whisper(self)
        await self.herald.start()
        callbacks = Callbacks(self._names)
        hub = Hub(self.id, cast(Any, callbacks))
        self.control = control = callbacks.control = Control(
            database, self.herald, hub, manager_id=self.id, clock=self._clock, jitter=self._jitter,
            settings=ControlSettings(lease_seconds=LEASE_SECONDS),
        )  # fmt: skip
        self.world = World.build(database, self.herald, hub, observe=lambda *_: None, clock=self._clock)
        self._network.servers[self.name] = self.process, hub.accept
        loops = (control.scheduler, control.dispatcher, control.deadlines, control.lost_agents)
        for topic, loop in control._wakes:
            if loop in loops:
                self.herald.subscribe(topic, loop.wake)
        async with asyncio.TaskGroup() as group:
            group.create_task(control.ingest.run())
            for one in loops:
                cast(Any, one).floor_seconds = FLOOR_SECONDS
                group.create_task(one.run(), name=f"{self.name} {one.name}")

    @property
    def is_ready(self) -> bool:
        return self.process.alive and self._network.servers.get(self.name, (None,))[0] is self.process

    # -- repositories.listen.Listener --------------------------------------------------------------------------------
    async def notify(self, payload: str) -> None:
        if payload.partition(" ")[2]:
            self._overheard(self, payload)

    async def close(self) -> None: ...
