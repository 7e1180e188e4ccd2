"""Users who create, restart and destroy sessions, and ask again with the same key until they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

from actions import CreateFromParamsAction, DestroySessionAction, RestartSessionAction
from domain.errors import AgentUnavailable, DatabaseUnavailable, Internal, MoorageError, RequestInProgress
from domain.principal import Principal
from domain.resources import ResourceSlot
from domain.session import SessionTypes
from manager.world import validated
from tests.sim.engine import IMAGE
from tests.sim.virtual import start
from tests.sim.world import World

#: Nobody knows then what happened: one asks again.
_UNKNOWN = (DatabaseUnavailable, AgentUnavailable, RequestInProgress, Internal)
#: So many of the keys are used once more when everything is over.
_ASKED_AGAIN = 5


class Users:
    def __init__(self, world: World, by: Principal) -> None:
        self._world = world
        self._by = by
        self.created: list[str] = []  #: names of what was acknowledged
        self.asked: list[str] = []
        self._answers: dict[str, tuple[Any, Any]] = {}  #: what was asked with each key, and how it was answered

    async def ask(self, action: Any, key: str) -> Any:
        """The answer, however often it takes; a refusal is None."""
        world = self._world
        for number in range(1000):
            ready = [manager for manager in world.managers if manager.is_ready]
            if not ready:
                await asyncio.sleep(0.5)
                continue
            manager = world.wishes.choice(ready)
            task = start(manager.process, manager.world.processor.run(validated(action), by=self._by, key=key), "ask")
            done, _ = await asyncio.wait({task}, timeout=world.wishes.uniform(0.5, 5.0))
            if not done:
                continue
            error = task.exception()
            if error is None:
                world.note(f"{key}: done after {number + 1} tries")
                self._answers.setdefault(key, (action, task.result()))
                return task.result()
            if isinstance(error, _UNKNOWN):
                await asyncio.sleep(0.1)
                continue
            if isinstance(error, MoorageError):
                world.note(f"{key}: {error.code}")
                return None
            raise error
        raise AssertionError(f"{key} is never answered")

    async def live(self, number: int, until: float) -> None:
        """One session: created, left alone, and then whatever comes to its owner's mind."""
        world, wishes = self._world, self._world.wishes
        await asyncio.sleep(wishes.uniform(0, until * 0.7))
        name = f"session-{number}"
        self.asked.append(name)
        batch = wishes.random() < 0.35
        options: dict[str, Any] = {}
        if batch:
            options = {
                "session_type": SessionTypes.BATCH,
                "startup_command": "work",
                "max_retries": wishes.choice((0, 2)),
                "retry_delay": 1.0,
            }
            if world.limits.random() < 0.4:
                options["batch_timeout"] = world.limits.choice((2.0, 6.0))
        elif wishes.random() < 0.2:
            options = {"timeout": 15.0}
        if wishes.random() < 0.15:
            options["max_wait"] = 20.0
        cpu = wishes.choice((1, 1, 2, 3))
        action = CreateFromParamsAction(
            image=IMAGE, name=name, resource_slots=ResourceSlot(cpu=cpu, mem=1024), **options
        )
        if await self.ask(action, f"create {name}") is None:
            return
        self.created.append(name)
        session_id = str(self._id_of(name))
        for turn in range(4):
            await asyncio.sleep(wishes.expovariate(1 / 8.0))
            if world.loop.now > until:
                return
            lot = wishes.random()
            key = f"{name} {turn}"
            if lot < 0.35:
                await self.ask(RestartSessionAction(session_name=session_id), f"restart {key}")
            elif lot < 0.6:
                await self.ask(DestroySessionAction(session_name=session_id), f"destroy {key}")
            elif lot < 0.64:
                await self.ask(DestroySessionAction(session_name=session_id, forced=True), f"force {key}")

    async def ask_again(self) -> None:
        """I6: the same key, and the same answer, however much later and of whichever manager."""
        for key in self._world.wishes.sample(sorted(self._answers), min(_ASKED_AGAIN, len(self._answers))):
            action, before = self._answers[key]
            if (now := await self.ask(action, key)) != before:
                self._world.watcher.fail(f"I6 '{key}' is answered otherwise than before: {now}, not {before}")

    async def destroy_all(self) -> None:
        for name in self.created:
            await self.ask(DestroySessionAction(session_name=str(self._id_of(name))), f"end {name}")

    def _id_of(self, name: str) -> Any:
        return self._world.store.backend.call("fetchval", "SELECT id FROM sessions WHERE name = $1", name)

    def missing(self) -> list[str]:
        """I6 and I7: each create that was acknowledged is there, and none is there twice."""
        rows = self._world.store.backend.call(
            "fetch", "SELECT name, count(*) AS number FROM sessions GROUP BY 1 ORDER BY 1"
        )
        numbers = {row["name"]: row["number"] for row in rows}
        lost = [f"I7 {name} was acknowledged, and is not there" for name in self.created if name not in numbers]
        return lost + [f"I6 {name} is there {number} times" for name, number in numbers.items() if number > 1]
