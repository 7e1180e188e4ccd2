"""Inference sessions, as the control role keeps them served."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent.client import KernelAddress
from agent.wire import Fact, ServiceFact, ServiceSpec
from domain.errors import ServiceEnded
from domain.ids import SessionId
from manager.inference import Inference
from repositories.database import Database
from tests.control.fakes import Clock, ScriptedAgents, as_client
from tests.control.rows import NOW, add_agent, add_sessions, kernels_of, plan_and_place, row_of, status_of, tell
from tests.control.test_pipelines import report
from tests.scenario import Outbox

SPEC = ServiceSpec(name="api", generation=0, port=8000, argv=["serve"], ready_seconds=5.0)
SERVICE = {
    "name": "api", "kind": "http", "protocol": "http", "port": 8000, "kernels": "all", "keep_prefix": False,
    "spec": SPEC.pack(),
}  # fmt: skip


class ServingAgents(ScriptedAgents):
    """Start every service at once, but in kernels in which it cannot run."""

    def __init__(self) -> None:
        super().__init__("a")
        self.cannot: set[str] = set()
        self.started: list[str] = []

    async def start_service(self, where: KernelAddress, spec: ServiceSpec) -> ServiceFact:
        self.started.append(where.kernel_id.hex)
        if where.kernel_id.hex in self.cannot:
            raise ServiceEnded
        self._seq += 1
        return ServiceFact(
            kernel_id=where.kernel_id.hex, attempt=where.attempt, name=spec.name, generation=spec.generation,
            state="healthy", boot_no=1, seq=self._seq,
        )  # fmt: skip

    async def stop_service(self, where: KernelAddress, name: str) -> None: ...


class Stage:
    def __init__(self, database: Database, session: SessionId) -> None:
        self.database, self.session = database, session
        self.clock, self.agents = Clock(), ServingAgents()
        self.loop = Inference(database, Outbox(), as_client(self.agents), clock=self.clock)  # type: ignore[arg-type]

    async def settle(self) -> None:
        """Step, and let what was begun come to its end, until nothing follows."""
        pause: float | None = 0.0
        while pause == 0.0 or self.loop._starter._starting:
            pause = await self.loop.step()
            for task in list(self.loop._starter._starting.values()):
                await task

    async def kernels(self) -> list[dict[str, Any]]:
        async with self.database.reader() as connection:
            return [kernel for kernel in await kernels_of(connection, self.session) if kernel["left_at"] is None]


@pytest.fixture
async def stage(database: Database) -> Stage:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=64000, mem=65536)
        [session] = await add_sessions(connection, kernels=3)
        await connection.execute(
            "UPDATE sessions SET session_type = 'inference', inference = $1 WHERE id = $2", SERVICE, session
        )
        await connection.execute("""UPDATE kernels SET spec = spec || '{"cluster": "single-node"}'""")
        await plan_and_place(connection)
    made = Stage(database, session)
    for kernel in await made.kernels():
        await say(made, kernel, "RUNNING")
    assert await status_of(database, session) == "RUNNING"
    return made


async def say(stage: Stage, kernel: dict[str, Any], observed: str) -> None:
    stage.agents._seq += 1
    fact = Fact(
        kernel_id=kernel["id"].hex, attempt=1, generation=kernel["generation"], observed=observed, boot_no=1,
        seq=stage.agents._seq,
    )  # fmt: skip
    await tell(stage.database, "a", fact)


async def test_a_service_is_declared_once_and_started_everywhere(stage: Stage) -> None:
    await stage.settle()
    assert sorted(stage.agents.started) == sorted(kernel["id"].hex for kernel in await stage.kernels())
    async with stage.database.reader() as connection:
        states = [row["state"] for row in await connection.fetch("SELECT state FROM service_instances")]
        assert await connection.fetchval("SELECT settled FROM services") is True
    assert states == ["healthy"] * 3
    stage.agents.started.clear()
    await stage.settle()
    assert stage.agents.started == []


async def test_a_worker_that_ended_makes_room_for_a_new_one_ever_more_slowly(stage: Stage) -> None:
    await stage.settle()
    first = next(kernel for kernel in await stage.kernels() if kernel["role"] == "worker")
    await say(stage, first, "EXITED")
    assert await status_of(stage.database, stage.session) == "RUNNING_DEGRADED"
    await stage.settle()
    there = await stage.kernels()
    assert len(there) == 3
    assert first["id"] not in [kernel["id"] for kernel in there]
    assert [kernel["joining"] for kernel in there].count(True) == 1
    second = next(kernel for kernel in there if kernel["role"] == "worker" and not kernel["joining"])
    await say(stage, second, "EXITED")
    assert await stage.loop.step() == 1.0
    assert second["id"] in [kernel["id"] for kernel in await stage.kernels()]
    stage.clock.turn(seconds=1)
    await stage.settle()
    assert second["id"] not in [kernel["id"] for kernel in await stage.kernels()]


async def test_a_worker_in_which_it_never_runs_is_given_up(stage: Stage) -> None:
    worker = next(kernel for kernel in await stage.kernels() if kernel["role"] == "worker")
    stage.agents.cannot.add(worker["id"].hex)
    await stage.settle()
    for _ in range(2):
        stage.loop._starter._failed = {one: (times, 0.0) for one, (times, _) in stage.loop._starter._failed.items()}
        await stage.settle()
    await stage.settle()
    assert worker["id"] not in [kernel["id"] for kernel in await stage.kernels()]
    assert len(await stage.kernels()) == 3


async def test_with_its_main_kernel_it_fails_or_is_tried_again(stage: Stage) -> None:
    await stage.settle()
    async with stage.database.transaction() as connection:
        await connection.execute("UPDATE sessions SET max_retries = 1, retry_delay_seconds = 5")
    await report(stage.database, stage.session, "FAILED", stage.agents._seq + 1)
    stage.agents._seq += 1
    for kernel in await stage.kernels():
        await say(stage, kernel, "GONE")
    row = await row_of(stage.database, stage.session)
    assert (row["status"], row["retries"], row["starts_at"]) == ("PENDING", 1, NOW + timedelta(seconds=5))
