"""Hosts that are emptied: who is moved, who is told, who is ended, and what happens when it does not go as planned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from domain.ids import AgentId, SessionId
from repositories import drains
from repositories.database import Database
from repositories.drains import Drain
from tests.control.fakes import Clock, ScriptedAgents, until
from tests.control.rows import (
    NOW,
    add_agent,
    add_sessions,
    assert_slots_add_up,
    events_of,
    kernels_of,
    row_of,
    status_of,
)
from tests.control.test_control import Manager, end, manager

A, B = AgentId("a"), AgentId("b")


@pytest.fixture
async def one(database: Database) -> AsyncIterator[Manager]:
    """Two hosts with room for two sessions each. What is queued goes to `a` as long as that takes it."""
    async with database.transaction() as connection:
        await add_agent(connection, A, cpu=2000, mem=4096)
        await add_agent(connection, B, cpu=2000, mem=4096)
        await connection.execute("UPDATE agents SET schedulable = id = 'a'")
    async with manager(database, ScriptedAgents(A, B), Clock()) as made:
        yield made


async def queue(made: Manager, number: int = 1, **columns: Any) -> list[SessionId]:
    async with made.database.transaction() as connection:
        sessions = await add_sessions(connection, number)
        for column, value in columns.items():
            await connection.execute(f"UPDATE sessions SET {column} = $2 WHERE id = ANY($1)", sessions, value)
    made.herald.announce("queue")
    return sessions


async def drain(made: Manager, agent: AgentId = A, *, reason: str | None = None, **how: Any) -> None:
    async with made.database.transaction() as connection:
        await connection.execute("UPDATE agents SET schedulable = true WHERE id = 'b'")
        await drains.drain(connection, agent, Drain(**how), reason=reason, now=made.clock())
    made.herald.announce("agents")


async def uncordon(made: Manager, agent: AgentId = A) -> None:
    async with made.database.transaction() as connection:
        await drains.uncordon(connection, agent, now=made.clock())
    made.herald.announce("agents")


async def agent_row(made: Manager, agent: AgentId = A) -> dict[str, Any]:
    async with made.database.reader() as connection:
        row = await connection.fetchrow("SELECT * FROM agents WHERE id = $1", agent)
        assert row is not None
        return dict(row)


async def hosts_of(made: Manager, session_id: SessionId) -> list[str | None]:
    """Of each attempt's kernel."""
    async with made.database.reader() as connection:
        return [kernel["agent_id"] for kernel in await kernels_of(connection, session_id)]


async def notices_of(made: Manager, session_id: SessionId) -> list[str]:
    return [one["message"] for one in (await row_of(made.database, session_id))["notices"]]


async def test_batch_work_moves_and_the_rest_is_told(one: Manager) -> None:
    [batch] = await queue(one, session_type="batch", startup_command="train")
    [interactive] = await queue(one)
    await one.is_in("RUNNING", batch, interactive)
    await drain(one, moves=True, reason="a fan is loud")

    async def moved() -> bool:
        return await hosts_of(one, batch) == [A, B] and await status_of(one.database, batch) == "RUNNING"

    await until(one.herald, moved)
    row = await row_of(one.database, batch)
    assert (row["attempt"], row["retries"], row["moves_from"], row["retrying"]) == (2, 0, None, False)
    await until(one.herald, lambda: notices_of(one, interactive))
    [said] = await notices_of(one, interactive)
    assert said.startswith("The host a is taken out of use (a fan is loud): save what you need")
    assert await status_of(one.database, interactive) == "RUNNING"
    assert await notices_of(one, batch) == []
    [told] = await events_of(one.database, "session.draining")
    assert (told["session_id"], told["data"]["agent"]) == (interactive, A)
    assert (await agent_row(one))["drained_at"] is None
    await end(one, interactive)

    async def drained() -> bool:
        return (await agent_row(one))["drained_at"] is not None

    await until(one.herald, drained)
    assert len(await events_of(one.database, "agent.drained")) == 1
    await assert_slots_add_up(one.database)


async def test_what_has_not_begun_begins_elsewhere(one: Manager) -> None:
    """Also when nobody moves batch work, an interactive session has nothing to lose before it runs."""
    one.agents.answer = lambda where, _generation, want: {
        "observed": "GONE" if want == "GONE" else "RUNNING" if where.agent_id == B else "PREPARING"
    }
    [interactive] = await queue(one)
    await one.is_in("PREPARING", interactive)
    await drain(one, moves=True)
    await one.is_in("RUNNING", interactive)
    assert await hosts_of(one, interactive) == [A, B]


async def test_the_time_that_was_given_is_over(one: Manager) -> None:
    [interactive] = await queue(one)
    await one.is_in("RUNNING", interactive)
    await drain(one, until=NOW + timedelta(minutes=10))
    await until(one.herald, lambda: notices_of(one, interactive))
    assert "it is ended at 2030-01-01 12:10 UTC" in (await notices_of(one, interactive))[0]
    assert await status_of(one.database, interactive) == "RUNNING"
    one.clock.turn(minutes=11)
    one.control.drains.wake()
    await one.is_in("TERMINATED", interactive)
    assert "was drained" in (await row_of(one.database, interactive))["status_reason"]


async def test_a_drain_that_is_called_off(one: Manager) -> None:
    """Who was told stays and is told so; the host takes sessions again at once; nothing comes back from elsewhere."""
    [batch] = await queue(one, session_type="batch", startup_command="train")
    [interactive] = await queue(one)
    await one.is_in("RUNNING", batch, interactive)
    await drain(one, moves=True, until=NOW + timedelta(minutes=10))

    async def moved() -> bool:
        return await hosts_of(one, batch) == [A, B] and bool(await notices_of(one, interactive))

    await until(one.herald, moved)
    await uncordon(one)
    assert await notices_of(one, interactive) == []
    assert [told["session_id"] for told in await events_of(one.database, "session.stays")] == [interactive]
    one.clock.turn(minutes=11)
    one.control.drains.wake()
    filling = await queue(one, 2)  # more than `b` has left
    await one.is_in("RUNNING", interactive, batch, *filling)
    assert sorted([(await hosts_of(one, each))[0] or "" for each in filling]) == [A, B]
    row = await agent_row(one)
    assert (row["schedulable"], row["draining"], row["drain_until"], row["cordoned_at"]) == (True, False, None, None)


async def test_a_host_that_dies_while_its_work_moves(one: Manager) -> None:
    """Nobody knows whether the work goes on there, so it is not begun twice; the session ends, its slots stay taken."""
    [batch] = await queue(one, session_type="batch", startup_command="train")
    await one.is_in("RUNNING", batch)
    one.agents.unreachable = True
    await drain(one, moves=True)
    await one.is_in("TERMINATING", batch)
    one.clock.turn(seconds=200)
    one.control.deadlines.wake()
    await one.is_in("TERMINATED", batch)
    assert await hosts_of(one, batch) == [A]
    row = await row_of(one.database, batch)
    assert (row["retrying"], row["moves_from"], row["result"]) == (False, None, "UNDEFINED")
    assert "did not confirm the end" in row["status_reason"]
    await assert_slots_add_up(one.database)
    assert (await agent_row(one))["drained_at"] is None
    one.agents.unreachable = False
    one.clock.turn(seconds=200)
    one.herald.announce("dispatch")

    async def drained() -> bool:
        return (await agent_row(one))["drained_at"] is not None

    await until(one.herald, drained)


async def test_a_lost_host_is_left_alone_until_it_is_back(one: Manager) -> None:
    [batch] = await queue(one, session_type="batch", startup_command="train")
    await one.is_in("RUNNING", batch)
    async with one.database.transaction() as connection:
        await connection.execute("UPDATE agents SET lost = true WHERE id = 'a'")
    await drain(one, moves=True)
    async with one.database.transaction() as connection:
        assert await drains.draining_agents(connection) == []
        assert await drains.carry_out(connection, A, now=one.clock()) == []
    assert await status_of(one.database, batch) == "RUNNING"
    async with one.database.transaction() as connection:
        await connection.execute("UPDATE agents SET lost = false WHERE id = 'a'")
    one.herald.announce("agents")

    async def moved() -> bool:
        return await hosts_of(one, batch) == [A, B]

    await until(one.herald, moved)
