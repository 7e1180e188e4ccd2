"""Background tasks: worked on, watched, cancelled, taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import CancelTaskAction, GetTaskAction, PullImageAction
from actions.information import TaskData
from agent.wire import PULL_IMAGE
from domain.errors import ImageNotFound
from domain.ids import AgentId
from manager.processor import Processor
from manager.tasks import TaskLoop
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import NOW, ROOT, Outbox, stage

WORKER = UUID(int=77)


class Puller(FakeAgent):
    """Pulls as it is told: `gate` holds it, `fails` breaks it."""

    def __init__(self) -> None:
        super().__init__(agents=("host-1", "host-2"))
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Exception | None = None

    async def pull_image(self, agent_id: AgentId, image: str) -> AsyncIterator[dict[str, Any]]:
        self.calls.append((PULL_IMAGE, agent_id, image))
        yield {"current": 1, "total": 2, "message": "half"}
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        yield {"current": 2, "total": 2, "message": "there"}


@pytest.fixture
def agents() -> Puller:
    return Puller()


async def pulling(database: Database, agents: Puller) -> tuple[Processor, UUID]:
    processor = await stage(database, fake=agents)
    queued = await processor.run(PullImageAction(image="alpine:3"), by=ROOT)
    assert queued.task.status == "queued"
    return processor, queued.task.id


def loop_of(database: Database, agents: Puller, *, later_seconds: float = 0.0) -> TaskLoop:
    clock = NOW + timedelta(seconds=later_seconds)
    return TaskLoop(database, Outbox(), agents, manager_id=WORKER, clock=lambda: clock)  # type: ignore[arg-type]


async def ended(processor: Processor, task_id: UUID) -> TaskData:
    async with asyncio.timeout(5.0):
        while True:
            task: TaskData = (await processor.run(GetTaskAction(task_id=task_id), by=ROOT)).task
            if task.status not in ("queued", "running"):
                return task
            await asyncio.sleep(0.01)


async def test_an_image_is_fetched_by_every_host(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    loop = loop_of(database, agents)
    await loop.step()
    task = await ended(processor, task_id)
    assert task.status == "done"
    assert sorted(task.result["agents"]) == ["host-1", "host-2"]
    assert len(agents.calls) == 2
    await loop.close()


async def test_a_failure_is_told_with_its_code(database: Database, agents: Puller) -> None:
    agents.fails = ImageNotFound("There is no image 'alpine:3' to pull.")
    processor, task_id = await pulling(database, agents)
    await loop_of(database, agents).step()
    task = await ended(processor, task_id)
    assert task.status == "failed"
    assert task.error == {"code": "image_not_found", "message": "There is no image 'alpine:3' to pull."}


async def test_a_queued_task_is_cancelled_at_once(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    cancelled = await processor.run(CancelTaskAction(task_id=task_id), by=ROOT)
    assert cancelled.task.status == "cancelled"
    await loop_of(database, agents).step()
    assert agents.calls == []


async def test_a_task_whose_worker_died_is_taken_over(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    agents.gate.clear()
    first = loop_of(database, agents)
    await first.step()
    await first.close()  # dies in the middle
    soon = loop_of(database, agents, later_seconds=10)
    await soon.step()
    assert (await processor.run(GetTaskAction(task_id=task_id), by=ROOT)).task.status == "running"
    agents.gate.set()
    late = loop_of(database, agents, later_seconds=60)
    await late.step()
    assert (await ended(processor, task_id)).status == "done"
    await soon.close()
    await late.close()
