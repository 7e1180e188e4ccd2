"""Copies and removals of volumes as tasks: what a failure, a cancellation and a missing host leave behind."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from actions import CloneVolumeAction, DeleteVolumeAction
from domain.errors import FileError, MoorageError
from domain.ids import AgentId
from manager.tasks import Tools
from manager.volume_tasks import jobs
from repositories.database import Database
from repositories.task import Task, TaskRepository
from repositories.transit import Cause
from tests.actions.test_volumes import VOLUME, a_store, a_volume
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, NOW, Outbox, stage


class Agents(FakeAgent):
    async def cancel_job(self, agent_id: AgentId, job: UUID) -> bool:
        self.calls.append(("cancel_job", agent_id))
        return False


class Bench:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.fake = Agents()
        tools = Tools(database=database, herald=Outbox(), agents=self.fake, clock=lambda: NOW)  # type: ignore[arg-type]
        self.jobs = jobs(tools)
        self.said: list[tuple[int, int, str]] = []

    async def asked(self, action: Any) -> Task:
        processor = await stage(self.database, a_store, a_volume(), fake=self.fake)
        answer = await processor.run(action, by=ALICE)
        async with self.database.reader() as connection:
            tasks = TaskRepository(connection, now=NOW, cause=Cause(by="test"))
            return await tasks.get(answer.task.id, user_id=None)

    async def report(self, current: int, total: int, message: str) -> None:
        self.said.append((current, total, message))

    async def volumes(self) -> dict[str, str]:
        async with self.database.reader() as connection:
            rows = await connection.fetch("SELECT name, status FROM volumes")
        return {row["name"]: row["status"] for row in rows}


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


async def test_a_copy_is_ready_when_it_is_whole(bench: Bench) -> None:
    task = await bench.asked(CloneVolumeAction(volume="set", name="copy"))
    assert await bench.volumes() == {"set": "ready", "copy": "making"}
    result = await bench.jobs[task.action].run(task, bench.report)
    assert (result["name"], result["bytes"]) == ("copy", 2)
    assert await bench.volumes() == {"set": "ready", "copy": "ready"}
    assert bench.said == [(1, 2, "1 of 2 MiB")]
    assert bench.fake.calls[-1][2] == VOLUME


async def test_a_copy_that_fails_leaves_nothing(bench: Bench) -> None:
    task = await bench.asked(CloneVolumeAction(volume="set", name="copy"))
    bench.fake.fails_with = FileError()
    with pytest.raises(MoorageError):
        await bench.jobs[task.action].run(task, bench.report)
    bench.fake.fails_with = None
    undo = bench.jobs[task.action].undo
    assert undo is not None
    await undo(task)
    assert await bench.volumes() == {"set": "ready"}
    assert [call[0] for call in bench.fake.calls][-2:] == ["cancel_job", "remove_volume"]


async def test_a_removed_volume_is_gone_with_its_files(bench: Bench) -> None:
    task = await bench.asked(DeleteVolumeAction(volume="set"))
    assert await bench.volumes() == {"set": "removing"}
    await bench.jobs[task.action].run(task, bench.report)
    assert await bench.volumes() == {}
    again = await bench.jobs[task.action].run(task, bench.report)  # its manager died before it could say so
    assert again["name"] == "set"


async def test_a_removal_waits_for_a_host_and_can_be_taken_back(bench: Bench) -> None:
    task = await bench.asked(DeleteVolumeAction(volume="set"))
    bench.fake.agents.clear()
    waiting = asyncio.ensure_future(bench.jobs[task.action].run(task, bench.report))
    while not bench.said:
        await asyncio.sleep(0)
    waiting.cancel()
    assert "waiting for a host" in bench.said[0][2]
    async with bench.database.transaction() as connection:  # another has taken its name meanwhile
        await a_volume(id=UUID(int=5)).put(connection)
    undo = bench.jobs[task.action].undo
    assert undo is not None
    await undo(task)
    assert sorted((await bench.volumes()).values()) == ["ready", "ready"]
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_copy_that_was_whole_before_its_manager_died_is_left_as_it_is(bench: Bench) -> None:
    task = await bench.asked(CloneVolumeAction(volume="set", name="copy"))
    await bench.jobs["clone_volume"].run(task, bench.report)
    bench.fake.calls.clear()
    again = await bench.jobs["clone_volume"].run(task, bench.report)
    await bench.jobs["clone_volume"].undo(task)  # type: ignore[misc]
    assert again["name"] == "copy"
    assert bench.fake.calls == []
    assert (await bench.volumes())["copy"] == "ready"
