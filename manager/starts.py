"""Starts services in kernels: one attempt at a time in each place, with a pause after each that failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

from agent.client import KernelAddress
from agent.wire import ServiceSpec
from domain.errors import AgentUnavailable, MoorageError
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from repositories.database import Database
from repositories.service import record_services
from repositories.transit import Cause

_MOST_PAUSE_SECONDS: Final = 60.0
_AWAY_SECONDS: Final = 0.5  #: after a start whose host went away meanwhile

Place = TypeVar("Place")


class ServiceStarter(Generic[Place]):
    """Any number of managers may have one: an agent starts a service of one generation once."""

    def __init__(
        self,
        database: Database,
        herald: Herald,
        agents: ConnectedAgents,
        *,
        clock: Callable[[], datetime],
        cause: Cause,
        log: logging.Logger,
        landed: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._herald = herald
        self._agents = agents
        self._clock = clock
        self._cause = cause
        self._log = log
        self._landed = landed  #: called after each attempt
        self._starting: dict[Place, asyncio.Task[None]] = {}
        self._failed: dict[Place, tuple[int, float]] = {}

    def failures(self, place: Place) -> int:
        """Starts there that failed in a row."""
        return self._failed.get(place, (0, 0.0))[0]

    def forget_others(self, places: Collection[Place]) -> None:
        """Of these the failures are remembered."""
        self._failed = {place: known for place, known in self._failed.items() if place in places}

    def start(self, place: Place, where: KernelAddress, spec: dict[str, Any], *, afresh: bool = False) -> None:
        """Unless it is being started, has just failed, or its host is away. `afresh`: what is there is stopped first."""
        _, due = self._failed.get(place, (0, 0.0))
        if place in self._starting or time.monotonic() < due or where.agent_id not in self._agents.connected():
            return
        task = asyncio.create_task(self._try(place, where, ServiceSpec.unpack(spec), afresh))
        self._starting[place] = task
        task.add_done_callback(partial(self._done, place))

    async def close(self) -> None:
        for task in tuple(self._starting.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)

    def _done(self, place: Place, _task: object) -> None:
        self._starting.pop(place, None)
        self._landed()

    async def _try(self, place: Place, where: KernelAddress, spec: ServiceSpec, afresh: bool) -> None:
        try:
            if afresh:
                await self._agents.stop_service(where, spec.name)
            fact = await self._agents.start_service(where, spec)
            async with self._database.transaction("control.service") as connection:
                changed = await record_services(
                    connection, where.agent_id, [fact], now=self._clock(), cause=self._cause
                )
        except AgentUnavailable:  # nobody knows what came of it: it is asked again, and has not failed
            self._failed[place] = self.failures(place), time.monotonic() + _AWAY_SECONDS
            return
        except MoorageError as error:
            times = self.failures(place) + 1
            self._failed[place] = times, time.monotonic() + min(_MOST_PAUSE_SECONDS, 2.0**times)
            self._log.warning("service %s in kernel %s: %s", spec.name, where.kernel_id, error)
            return
        self._failed.pop(place, None)
        if changed:
            self._herald.announce("services", *changed)
            self._herald.announce("events")
