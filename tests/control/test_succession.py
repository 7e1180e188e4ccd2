"""A manager's process that comes back takes up what its predecessor, dead without a word, had claimed."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

from domain.ids import AgentId
from repositories.agents import list_managers, register_manager, succeed
from repositories.database import Connection, Database
from repositories.kernels import claim
from repositories.task import TaskRepository
from tests.control.rows import NOW, TEST, USER, add_agent, add_sessions, plan_and_place

HERE, ELSEWHERE = "https://127.0.0.1:1", "https://127.0.0.1:2"
A = AgentId("a")


async def claimed(connection: Connection, by: UUID) -> tuple[int, int]:
    """Intents and tasks that this manager gets."""
    intents = await claim(connection, [A], by=by, now=NOW, limit=10, claim_seconds=60.0)
    tasks = TaskRepository(connection, now=NOW + timedelta(seconds=1), cause=TEST)
    return len(intents), len(await tasks.claim(by, lease_seconds=60.0))


async def test_it_goes_on_at_once(database: Database) -> None:
    dead, other, successor = uuid4(), uuid4(), uuid4()
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        await add_sessions(connection)
        await plan_and_place(connection)
        await TaskRepository(connection, now=NOW, cause=TEST).add(
            uuid4(), action="x", arguments={}, user_id=USER, session_id=None
        )
        await register_manager(connection, dead, role="control", agent_url=HERE, now=NOW)
        assert await claimed(connection, dead) == (1, 1)

        await register_manager(connection, other, role="control", agent_url=ELSEWHERE, now=NOW)
        assert not await succeed(connection, other, ELSEWHERE, now=NOW)
        assert await claimed(connection, other) == (0, 0)

        await register_manager(connection, successor, role="control", agent_url=HERE, now=NOW)
        assert await succeed(connection, successor, HERE, now=NOW)
        assert {one.id for one in await list_managers(connection, now=NOW)} == {other, successor}
        assert await claimed(connection, successor) == (1, 1)
