"""Sees to it that services run where they shall: in kernels that came later, and after a restart; and clears away starts
that nobody finished."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import ClassVar, Final
from uuid import UUID

from agent.client import KernelAddress
from domain.errors import AgentUnavailable, MoorageError
from domain.ids import KernelId
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from manager.loop import Loop
from manager.starts import ServiceStarter
from repositories.database import Database
from repositories.service import Abandoned, abandoned, discard, missing
from repositories.transit import Cause

KEEPER: Final = Cause(by="services")
#: Kernels where a start failed so often are left alone until somebody starts the service again.
_MOST_TRIES: Final = 8
Place = tuple[UUID, str, int]


class ServiceKeeper(Loop):
    """What is missing is read from the rows. Any number of managers may: an agent starts one generation once."""

    name: ClassVar[str] = "services"
    gather_seconds: ClassVar[float] = 0.02

    def __init__(
        self, database: Database, herald: Herald, agents: ConnectedAgents, *, clock: Callable[[], datetime]
    ) -> None:
        super().__init__()
        self._database = database
        self._agents = agents
        self._clock = clock
        self._starter: ServiceStarter[Place] = ServiceStarter(
            database, herald, agents, clock=clock, cause=KEEPER, log=self._log
        )

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            places = await missing(connection)
            left = await abandoned(connection, now=self._clock())
        self._starter.forget_others({place.key for place in places})
        for place in places:
            if self._starter.failures(place.key) < _MOST_TRIES:
                where = KernelAddress(
                    agent_id=place.agent_id, kernel_id=KernelId(place.kernel_id), attempt=place.attempt
                )
                self._starter.start(place.key, where, {**place.spec, "generation": place.generation})
        for row in left:
            await self._clear(row)
        return None

    async def close(self) -> None:
        await self._starter.close()

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
