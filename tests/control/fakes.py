"""Agents that follow a script, at the manager's end of their connections; and a clock that is turned by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any, cast

from agent.client import KernelAddress
from agent.wire import Fact, KernelSpec
from domain.errors import AgentUnavailable
from domain.ids import AgentId, KernelId
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from tests.control.rows import NOW


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> None:
        self.now += timedelta(**by)


class ScriptedAgents:
    """Takes on every intent, as an agent does: answers with what is true at the moment, and numbers its reports."""

    def __init__(self, *names: str) -> None:
        self.names = {AgentId(name) for name in names}
        self.asked: list[tuple[AgentId, str, int, int]] = []
        self.unreachable = False
        self.most_at_once = 0
        self.hold: asyncio.Event | None = None
        self.answer: Callable[[KernelAddress, int, str], dict[str, Any]] = lambda _where, _generation, want: {
            "observed": "RUNNING" if want == "RUN" else "GONE"
        }
        self._seq = 0
        self._taken_on: dict[KernelId, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._at_once = 0

    def connected(self) -> Collection[AgentId]:
        return self.names

    def is_connected(self, agent_id: AgentId) -> bool:
        return agent_id in self.names

    async def wait_until_connected(self, agents: Collection[AgentId], seconds: float) -> None:
        """They are, or never will be."""

    async def ensure(
        self, where: KernelAddress, *, generation: int, want: str, spec: KernelSpec | None, grace_seconds: float = 10.0
    ) -> Fact:
        assert (spec is not None) == (want == "RUN")
        self.asked.append((where.agent_id, want, where.attempt, generation))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
            if self.unreachable:
                raise AgentUnavailable
        finally:
            self._at_once -= 1
        self._seq += 1
        taken_on, said = self._taken_on.get(where.kernel_id, ((0, 0), {}))
        if taken_on < (where.attempt, generation):
            taken_on = where.attempt, generation
            said = {"attempt": where.attempt, "generation": generation, **self.answer(where, generation, want)}
            self._taken_on[where.kernel_id] = taken_on, said
        return Fact(kernel_id=where.kernel_id.hex, boot_no=1, seq=self._seq, **said)


def as_client(agents: ScriptedAgents) -> ConnectedAgents:
    """Of the whole client, the control role uses no more than this."""
    return cast(ConnectedAgents, agents)


async def until(herald: Herald, condition: Callable[[], Any], topic: str = "sessions", seconds: float = 10.0) -> Any:
    """Ask again after every announcement, and now and then for what nobody announces, until the answer is true; give it."""
    news = asyncio.Event()
    forget = herald.subscribe(topic, lambda _ids: news.set())
    try:
        async with asyncio.timeout(seconds):
            while not (found := await condition()):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), 0.05)
                news.clear()
            return found
    finally:
        forget()
