"""Sees to it that services run where they shall: in kernels that came later, and after a restart; and clears away starts
that nobody finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import ClassVar, Final
from uuid import UUID

from agent.client import KernelAddress
from agent.wire import ServiceSpec
from domain.errors import AgentUnavailable, MoorageError
from domain.ids import KernelId
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from manager.loop import Loop
from repositories.database import Database
from repositories.service import Abandoned, Missing, abandoned, discard, missing, record_services
from repositories.transit import Cause

KEEPER: Final = Cause(by="services")
_MOST_PAUSE_SECONDS: Final = 60.0
#: Kernels where a start failed so often are left alone until somebody starts the service again.
_MOST_TRIES: Final = 8
Place = tuple[UUID, str, int]


class ServiceKeeper(Loop):
    """What is missing is read from the rows. Any number of managers may: an agent starts one generation once."""

    name: ClassVar[str] = "services"

    def __init__(
        self, database: Database, herald: Herald, agents: ConnectedAgents, *, clock: Callable[[], datetime]
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._agents = agents
        self._clock = clock
        self._starting: dict[Place, asyncio.Task[None]] = {}
        self._failed: dict[Place, tuple[int, float]] = {}

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            places = await missing(connection)
            left = await abandoned(connection, now=self._clock())
        wanted = {place.key for place in places}
        self._failed = {key: known for key, known in self._failed.items() if key in wanted}
        for place in places:
            tries, due = self._failed.get(place.key, (0, 0.0))
            connected = place.agent_id in self._agents.connected()
            if place.key not in self._starting and connected and tries < _MOST_TRIES and time.monotonic() >= due:
                task = asyncio.create_task(self._start(place), name=f"start {place.name}")
                self._starting[place.key] = task
                task.add_done_callback(partial(self._landed, place.key))
        for row in left:
            await self._clear(row)
        return None

    async def close(self) -> None:
        for task in tuple(self._starting.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)

    def _landed(self, key: Place, _task: object) -> None:
        self._starting.pop(key, None)

    async def _start(self, place: Missing) -> None:
        where = KernelAddress(agent_id=place.agent_id, kernel_id=KernelId(place.kernel_id), attempt=place.attempt)
        try:
            spec = ServiceSpec.unpack({**place.spec, "generation": place.generation})
            fact = await self._agents.start_service(where, spec)
            async with self._database.transaction() as connection:
                changed = await record_services(connection, place.agent_id, [fact], now=self._clock(), cause=KEEPER)
        except MoorageError as error:
            tries = self._failed.get(place.key, (0, 0.0))[0] + 1
            self._failed[place.key] = tries, time.monotonic() + min(_MOST_PAUSE_SECONDS, 2.0**tries)
            self._log.warning("service %s in kernel %s: %s", place.name, place.kernel_id, error)
            return
        self._failed.pop(place.key, None)
        if changed:
            self._herald.announce("services", *changed)
            self._herald.announce("events")

    async def _clear(self, row: Abandoned) -> None:
        """Whoever started it has died meanwhile, or could not reach the host any more."""
        for agent_id, kernel_id in row.kernels:
            where = KernelAddress(agent_id=agent_id, kernel_id=KernelId(kernel_id), attempt=row.attempt)
            try:
                await self._agents.stop_service(where, row.name)
            except AgentUnavailable:
                return
            except MoorageError:
                continue  # the kernel has ended, and the service with it
        async with self._database.transaction() as connection:
            await discard(connection, row)
        self._log.info(
            "the start of service %s of session %s was never finished; cleared away", row.name, row.session_id
        )
