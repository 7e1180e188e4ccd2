"""Background tasks: worked on, watched, cancelled, taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import CancelTaskAction, GetTaskAction, PullImageAction
from actions.information import TaskData
from agent.wire import PULL_IMAGE
from domain.errors import ImageNotFound
from domain.ids import AgentId
from manager import image_tasks
from manager.processor import Processor
from manager.tasks import Job, Report, TaskLoop, Tools
from repositories.database import Database
from repositories.task import MOST_TRIES, Task
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

    async def pull_image(
        self, agent_id: AgentId, image: str, auth: dict[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
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


def loop_of(
    database: Database,
    agents: Puller,
    *,
    later_seconds: float = 0.0,
    worker: UUID = WORKER,
    jobs: Mapping[str, Job] | None = None,
) -> TaskLoop:
    clock = NOW + timedelta(seconds=later_seconds)
    tools = Tools(database=database, herald=Outbox(), agents=agents, clock=lambda: clock)  # type: ignore[arg-type]
    return TaskLoop(tools, {**image_tasks.jobs(tools), **(jobs or {})}, manager_id=worker)


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
    assert task.error == {
        "code": "image_not_found",
        "message": "There is no image 'alpine:3' to pull.",
        "status": 404,
    }


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
    await first.close(release=False)  # dies in the middle
    soon = loop_of(database, agents, later_seconds=10)
    await soon.step()
    assert (await processor.run(GetTaskAction(task_id=task_id), by=ROOT)).task.status == "running"
    agents.gate.set()
    late = loop_of(database, agents, later_seconds=60)
    await late.step()
    assert (await ended(processor, task_id)).status == "done"
    await soon.close()
    await late.close()


OTHER = UUID(int=78)


class Worked:
    """A job that goes on until it is stopped, and counts what happens to it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.stopped = asyncio.Event()
        self.undone: list[UUID] = []
        self.fails: Exception | None = None

    async def run(self, task: Task, report: Report) -> None:
        try:
            if self.fails is not None:
                raise self.fails
            await report(1, 2, "half")
            self.begun.set()  # not before: whoever claims tasks passes over a row that is being written
            await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def undo(self, task: Task) -> None:
        self.undone.append(task.id)

    def job(self) -> dict[str, Job]:
        return {"pull_image": Job(self.run, self.undo)}


async def test_cancelling_stops_the_work_where_it_waits_and_undoes_it(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    worked = Worked()
    loop = loop_of(database, agents, jobs=worked.job())
    await loop.step()
    await worked.begun.wait()
    asked = await processor.run(CancelTaskAction(task_id=task_id), by=ROOT)
    assert asked.task.status == "running"
    await loop.step()  # as the announcement wakes it
    assert (await ended(processor, task_id)).status == "cancelled"
    assert worked.stopped.is_set()
    assert worked.undone == [task_id]


async def test_a_failure_is_undone_before_it_is_told(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    worked = Worked()
    worked.fails = ImageNotFound()
    await loop_of(database, agents, jobs=worked.job()).step()
    assert (await ended(processor, task_id)).status == "failed"
    assert worked.undone == [task_id]


async def test_a_manager_that_stops_hands_its_tasks_over_at_once_and_undoes_nothing(
    database: Database, agents: Puller
) -> None:
    processor, task_id = await pulling(database, agents)
    worked = Worked()
    first = loop_of(database, agents, jobs=worked.job())
    await first.step()
    await worked.begun.wait()
    await first.close()
    assert worked.undone == []
    other = loop_of(database, agents, worker=OTHER)
    await other.step()
    assert (await ended(processor, task_id)).status == "done"


async def test_who_was_taken_over_stops_and_ends_nothing(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    worked = Worked()
    slow = loop_of(database, agents, jobs=worked.job())
    await slow.step()
    await worked.begun.wait()
    other = loop_of(database, agents, later_seconds=60, worker=OTHER)  # the first one's lease is over by then
    await other.step()
    assert (await ended(processor, task_id)).status == "done"
    await slow.step()
    await worked.stopped.wait()
    assert worked.undone == []
    assert (await processor.run(GetTaskAction(task_id=task_id), by=ROOT)).task.status == "done"


async def test_a_task_that_every_manager_dies_of_is_given_up(database: Database, agents: Puller) -> None:
    processor, task_id = await pulling(database, agents)
    for died in range(MOST_TRIES):
        loop = loop_of(database, agents, later_seconds=60 * died, jobs=Worked().job())
        await loop.step()
        await loop.close(release=False)
    await loop_of(database, agents, later_seconds=60 * MOST_TRIES).step()
    task = (await processor.run(GetTaskAction(task_id=task_id), by=ROOT)).task
    assert task.status == "failed"
    assert agents.calls == []
