"""Tasks on images, step by step: what agents are asked, what is on the list afterwards, what is left when it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import (
    Action,
    CollectImagesAction,
    CommitSessionAction,
    ConvertSessionToImageAction,
    ForgetImageAction,
    GetTaskAction,
    ListImagesAction,
    RescanImagesAction,
)
from actions.information import TaskData
from agent.client import KernelAddress
from domain.errors import AgentUnavailable, HostStorageFull, SecretUnreadable
from manager import image_tasks
from manager.processor import Processor
from manager.tasks import TaskLoop, Tools
from manager.vault import Vault
from repositories.database import Database
from tests.actions.test_snapshots import PUSHED, TRAINED, a_snapshot
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, HOST, NOW, ROOT, Outbox, a_row, a_session, new_id, stage

VAULT = Vault(bytes(32))


class Committer(FakeAgent):
    """Commits as it is told: `away` times it cannot be reached, then `fails`."""

    def __init__(self) -> None:
        super().__init__()
        self.away = 0
        self.fails: Exception | None = None

    async def commit(
        self, where: KernelAddress, job: UUID, image: str, labels: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        if self.away:
            self.away -= 1
            raise AgentUnavailable
        if self.fails is not None:
            raise self.fails
        async for said in super().commit(where, job, image, labels):
            yield said


@pytest.fixture
def agent() -> Committer:
    return Committer()


async def done(
    database: Database, agent: FakeAgent, processor: Processor, asked: Action[Any, Any], by: Any = ALICE
) -> TaskData:
    """Ask, let a manager work on it, and wait for its end."""
    task_id = (await processor.run(asked, by=by)).task.id
    tools = Tools(
        database=database,
        herald=Outbox(),  # type: ignore[arg-type]
        agents=agent,
        clock=lambda: NOW + timedelta(seconds=2),
        vault=VAULT,
    )
    loop = TaskLoop(tools, image_tasks.jobs(tools), manager_id=UUID(int=77))
    await loop.step()
    async with asyncio.timeout(10.0):
        while (task := (await processor.run(GetTaskAction(task_id=task_id), by=by)).task).status in (
            "queued",
            "running",
        ):
            await asyncio.sleep(0.01)
    await loop.close()
    return task


async def mine(processor: Processor, by: Any = ALICE) -> list[tuple[str, str]]:
    listed = (await processor.run(ListImagesAction(), by=by)).items
    return [(image.title or image.name, image.status) for image in listed if image.kind != "registered"]


COMMIT = CommitSessionAction(session_name="train", name="trained")


async def test_a_commit_is_on_the_list_when_it_is_there(database: Database, agent: Committer) -> None:
    agent.away = 2  # its host comes back, and is asked again
    processor = await stage(database, a_session(), fake=agent)
    task = await done(database, agent, processor, COMMIT)
    assert (task.status, task.error) == ("done", None)
    assert task.result == {"image": "trained", "name": TRAINED, "size_bytes": 10, "frozen_seconds": 0.1}
    assert await mine(processor) == [("trained", "ready")]


async def test_a_failed_commit_is_on_no_list(database: Database, agent: Committer) -> None:
    agent.fails = HostStorageFull()
    processor = await stage(database, a_session(), fake=agent)
    task = await done(database, agent, processor, COMMIT)
    assert task.error is not None
    assert (task.status, task.error["code"]) == ("failed", "host_storage_full")
    assert await mine(processor) == []
    assert [name for name, *_ in agent.calls] == ["cancel_job", "remove_image"]
    agent.fails = None
    assert (await done(database, agent, processor, COMMIT)).status == "done"  # its name is free again


async def test_an_image_is_pushed_with_its_owners_password(database: Database, agent: Committer) -> None:
    host = PUSHED.partition("/")[0]
    sealed = VAULT.seal("s3cret", host)
    kept = {"id": new_id(50), "host": host, "owner_id": ALICE.user_id, "username": "robot", "sealed": sealed}
    processor = await stage(database, a_session(), a_row("registries", **kept), fake=agent)
    task = await done(database, agent, processor, ConvertSessionToImageAction(session_name="train", image=PUSHED))
    assert task.result["digest"] == "sha256:2"
    assert agent.calls[-1] == ("push_image", PUSHED, {"username": "robot", "password": "s3cret"})
    assert "s3cret" not in str(task)
    assert await mine(processor) == [(PUSHED, "ready")]


async def test_what_is_sealed_for_one_registry_opens_for_no_other() -> None:
    sealed = VAULT.seal("s3cret", "one.example.org")
    assert b"s3cret" not in sealed
    assert VAULT.open(sealed, "one.example.org") == "s3cret"
    with pytest.raises(SecretUnreadable):
        VAULT.open(sealed, "other.example.org")
    with pytest.raises(SecretUnreadable):
        Vault(b"1" * 32).open(sealed, "one.example.org")


async def test_a_removed_snapshot_goes_from_its_host(database: Database, agent: Committer) -> None:
    agent.images[TRAINED] = {}
    processor = await stage(database, a_snapshot(), fake=agent)
    await processor.run(ForgetImageAction(image="trained"), by=ALICE)
    task = await done(database, agent, processor, RescanImagesAction(), by=ROOT)
    assert task.status == "done"
    assert agent.images == {}


async def test_a_rescan_tells_what_is_new_and_what_is_gone(database: Database, agent: Committer) -> None:
    agent.images["tool:1"] = {}
    processor = await stage(database, a_snapshot(), fake=agent)
    task = await done(database, agent, processor, RescanImagesAction(), by=ROOT)
    assert (task.result["new"], task.result["registered"], task.result["missing"]) == (["tool:1"], [], [TRAINED])
    assert await mine(processor, ROOT) == []
    task = await done(database, agent, processor, RescanImagesAction(register=True), by=ROOT)
    assert task.result["registered"] == ["tool:1"]
    assert "tool:1" in {image.name for image in (await processor.run(ListImagesAction(), by=ALICE)).items}


async def test_only_what_nobody_uses_is_collected(database: Database, agent: Committer) -> None:
    used, young = (f"moorage/snapshot-{ALICE.user_id.hex}:{name}" for name in ("used", "young"))
    ours, left = {"moorage.image.agent": "u1"}, f"moorage/snapshot-{ALICE.user_id.hex}:left"
    agent.images = {TRAINED: ours, used: ours, young: ours, left: ours, "theirs:1": {"moorage.image.agent": "u2"}}
    old = NOW - timedelta(days=40)
    processor = await stage(
        database,
        a_snapshot(created_at=old, size_bytes=5),
        a_snapshot("used", created_at=old),
        a_snapshot("young"),
        a_session(image=used),
        fake=agent,
    )
    async with database.transaction() as connection:
        await connection.execute("UPDATE agents SET uid = 'u1' WHERE id = $1", HOST)
    told = (await done(database, agent, processor, CollectImagesAction(dry_run=True), by=ROOT)).result
    assert [(one["name"], one["why"]) for one in told["removed"]] == [(TRAINED, "not used"), (left, "not on the list")]
    assert len(agent.images) == 5
    told = (await done(database, agent, processor, CollectImagesAction(), by=ROOT)).result
    assert told["freed_bytes"] == 15
    assert set(agent.images) == {used, young, "theirs:1"}
    assert sorted(await mine(processor)) == [("used", "ready"), ("young", "ready")]
