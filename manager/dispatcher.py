"""Tells agents what is wanted of their kernels, until they have taken it on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol
from uuid import UUID

from agent.client import AgentClient, KernelAddress
from agent.wire import Fact, exit_record
from domain.crash import reach
from domain.errors import MoorageError
from domain.ids import AgentId, KernelId
from domain.session import KernelState
from manager.loop import Loop
from repositories.database import Database
from repositories.kernels import Intent, back_off_seconds, claim, overtake, try_again
from repositories.volumes import mounts_asked_again

#: Longer than an agent takes to answer, and shorter than anybody waits when the manager that claimed has died.
CLAIM_SECONDS: Final = 2.0


class ConnectedAgents(AgentClient, Protocol):
    """The manager's end of the agents' connections, see agent/hub.py."""

    def connected(self) -> Collection[AgentId]: ...

    async def wait_until_connected(self, agents: Collection[AgentId], seconds: float) -> None: ...


class Dispatcher(Loop):
    """Claims intents, commits, and sends them side by side. A reply is a fact like any other."""

    name = "dispatcher"

    def __init__(
        self,
        database: Database,
        agents: ConnectedAgents,
        report: Callable[[AgentId, Sequence[Fact]], Awaitable[None]],
        *,
        manager_id: UUID,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
        most_in_flight: int = 128,
    ) -> None:
        super().__init__()
        self._database = database
        self._agents = agents
        self._report = report
        self._manager_id = manager_id
        self._clock = clock
        self._jitter = jitter
        self._most_in_flight = most_in_flight
        self._in_flight: dict[tuple[KernelId, int, int], asyncio.Task[None]] = {}

    async def step(self) -> float | None:
        room = self._most_in_flight - len(self._in_flight)
        connected = self._agents.connected()
        if room <= 0 or not connected:
            return None
        async with self._database.reader() as connection:
            intents = await claim(
                connection,
                connected,
                by=self._manager_id,
                now=self._clock(),
                limit=room,
                claim_seconds=CLAIM_SECONDS,
            )
            intents = await mounts_asked_again(connection, intents)
        if intents:
            reach("control.intents.claimed")
        for intent in intents:
            key = (intent.kernel_id, intent.attempt, intent.generation)
            if key not in self._in_flight:
                task = asyncio.create_task(self._send(intent), name=f"ensure {intent.kernel_id}")
                self._in_flight[key] = task
                task.add_done_callback(partial(self._landed, key))
        return 0 if len(intents) == room else None

    async def close(self) -> None:
        for task in tuple(self._in_flight.values()):
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)

    def _landed(self, key: tuple[KernelId, int, int], _task: object) -> None:
        full = len(self._in_flight) >= self._most_in_flight
        del self._in_flight[key]
        if full:
            self.wake()

    async def _send(self, intent: Intent) -> None:
        where = KernelAddress(agent_id=intent.agent_id, kernel_id=intent.kernel_id, attempt=intent.attempt)
        try:
            fact = await self._agents.ensure(where, generation=intent.generation, want=intent.want, spec=intent.spec)
            reach("control.intents.taken_on")
            if fact.attempt == intent.attempt and fact.generation > intent.generation:
                await self._overtake(intent, fact)
                return
            if fact.attempt > intent.attempt:
                fact = _superseded(intent, fact)
            await self._report(intent.agent_id, [fact])
        except Exception as error:
            if not isinstance(error, MoorageError):
                self._log.exception("an intent for %s failed", intent.kernel_id)
            await self._put_off(intent, error)

    async def _put_off(self, intent: Intent, error: Exception) -> None:
        """Not answered, or refused: unknown in any case. The claim ends by itself if the database is away too."""
        seconds = back_off_seconds(intent.tries, self._jitter())
        if intent.tries in (3, 30, 300):
            self._log.warning("%s does not take on %s: %s", intent.agent_id, intent.kernel_id, error)
        try:
            async with self._database.reader() as connection:
                await try_again(connection, intent, at=self._clock() + timedelta(seconds=seconds))
        except MoorageError:
            return
        asyncio.get_running_loop().call_later(seconds, self.wake)

    async def _overtake(self, intent: Intent, fact: Fact) -> None:
        """The agent has seen a later intent than the database knows: it was restored from an older state."""
        self._log.warning("%s has seen a later intent for %s; numbering on from it", intent.agent_id, intent.kernel_id)
        async with self._database.reader() as connection:
            await overtake(connection, intent, fact.generation, now=self._clock())
        self.wake()


def _superseded(intent: Intent, fact: Fact) -> Fact:
    """A host that has begun a later attempt has nothing of this one. Only after a restore does nobody know of the later one."""
    said = f"attempt {fact.attempt} was begun after the backup; its container is left alone on its host"
    return replace(
        fact,
        attempt=intent.attempt,
        generation=intent.generation,
        observed=KernelState.GONE,
        exit=exit_record("superseded", said),
        container_id=None,
        notices=[],
        seq=fact.seq - 1,  # what is said of the later attempt stays news
    )
