"""Slots are taken by one statement that believes nobody, and freed by nobody but the agent."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import KernelPlacement, Placement
from domain.scheduler import plan
from repositories.agents import remove, set_resources
from repositories.database import Database
from repositories.drains import cordon, uncordon
from repositories.placement import Placed, place, snapshot
from tests.control.rows import (
    NOW,
    add_agent,
    add_sessions,
    assert_slots_add_up,
    destroy,
    events_of,
    fact_of,
    history_of,
    kernels_of,
    plan_and_place,
    row_of,
    status_of,
    tell,
)


async def test_a_thousand_sessions_are_placed_at_once(database: Database) -> None:
    async with database.transaction() as connection:
        for number in range(50):
            await add_agent(connection, f"a{number:02}", cpu=32000, mem=65536)
        sessions = await add_sessions(connection, 1000)
        await connection.execute("ANALYZE")  # as the server does by itself within a minute
    async with database.reader() as connection:
        placed = await plan_and_place(connection)
    assert set(placed.sessions) == set(sessions)
    assert placed.conflicts == {}
    assert await history_of(database, sessions[0]) == ["PENDING", "SCHEDULED"]
    assert (
        len(await events_of(database, "session.scheduled"))
        == len(await events_of(database, "resources.allocated"))
        == 1000
    )
    await assert_slots_add_up(database)


async def test_a_placement_sets_the_intent_and_says_so(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=4000, mem=4096)
        [session_id] = await add_sessions(connection, kernels=2, cpu=1500, mem=1024)
        await plan_and_place(connection)
        kernels = await kernels_of(connection, session_id)
    assert [(k["want"], k["agent_id"], k["generation"], k["next_try_at"]) for k in kernels] == [
        ("RUN", "a", 1, NOW)
    ] * 2
    [told] = await events_of(database, "resources.allocated")
    assert (told["session_id"], told["data"]["slots"]) == (session_id, {"cpu": 3000, "mem": 2048})
    assert (await row_of(database, session_id))["deadline_at"] > NOW


async def test_whole_devices_are_taken_by_their_ids(database: Database) -> None:
    async with database.transaction() as connection:
        a = await add_agent(connection, "a")
        await set_resources(connection, a, {"cpu": 8000, "mem": 8192, "gpu/A": 24000, "gpu/B": 24000})
        await add_sessions(connection, 3, cpu=1000, gpu=1)
        placed = await plan_and_place(connection)
        assert len(placed.sessions) == 2
        rows = await connection.fetch("SELECT spec FROM kernels WHERE want = 'RUN'")
        devices = sorted((row["spec"]["devices"] for row in rows), key=str)
    assert devices == [{"gpu/A": 24000}, {"gpu/B": 24000}]


async def test_two_schedulers_at_once_never_overcommit(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b", "c"):
            await add_agent(connection, name, cpu=8000, mem=8192)
        await add_sessions(connection, 60)
    async with database.reader() as connection:
        seen = await snapshot(connection, now=NOW)
    # each has its own idea of the order, so that they contend for the same room with different sessions
    plans = [plan(seen, NOW).placements, tuple(reversed(plan(seen, NOW).placements))]

    async def scheduler(number: int) -> tuple[SessionId, ...]:
        async with database.reader() as connection:
            return (await place(connection, plans[number % 2], now=NOW)).sessions

    placed = [one for found in await asyncio.gather(*map(scheduler, range(8))) for one in found]
    assert len(placed) == len(set(placed)) == 24
    await assert_slots_add_up(database)


async def test_schedulers_with_different_plans_contend_until_all_is_full(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await add_agent(connection, name, cpu=8000, mem=8192)
        for cpu in (3000, 2000, 1000):
            await add_sessions(connection, 10, cpu=cpu)

    async def scheduler() -> int:
        taken = 0
        for _ in range(10):
            async with database.reader() as connection:
                taken += len((await plan_and_place(connection)).sessions)
        return taken

    await asyncio.gather(*(scheduler() for _ in range(4)))
    async with database.reader() as connection:
        # what is left is kept for the one that waits first
        assert await connection.fetchval("SELECT sum(used) FROM resources WHERE name = 'cpu'") >= 14000
    await assert_slots_add_up(database)


async def test_one_conflict_costs_only_its_own_session(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await add_agent(connection, name, cpu=8000, mem=8192)
        ended, big, small = [(await add_sessions(connection, cpu=cpu))[0] for cpu in (1000, 6000, 2000)]
        moved_away, restarted = await add_sessions(connection, 2, cpu=100)
        seen = await snapshot(connection, now=NOW)
    placements = list(plan(seen, NOW).placements)
    await destroy(database, ended)
    async with database.transaction() as connection:
        # another scheduler took half of host a, where `big` was to go
        [other] = await add_sessions(connection, cpu=4000)
        kernel = (await kernels_of(connection, other))[0]["id"]
        taken = KernelPlacement(kernel_id=KernelId(kernel), agent_id=AgentId("a"), amounts={"cpu": 4000})
        assert (await place(connection, [Placement(session_id=other, kernels=(taken,))], now=NOW)).sessions == (other,)
    swapped = {moved_away: "nowhere", big: "a", small: "a"}
    placements = [
        Placement(
            session_id=p.session_id,
            kernels=tuple(
                KernelPlacement(
                    kernel_id=k.kernel_id, agent_id=AgentId(swapped.get(p.session_id, "b")), amounts=k.amounts
                )
                if p.session_id != restarted
                else KernelPlacement(kernel_id=KernelId(uuid4()), agent_id=AgentId("b"), amounts=k.amounts)
                for k in p.kernels
            ),
        )
        for p in placements
    ]
    async with database.transaction() as connection:
        placed = await place(connection, placements, now=NOW)
    assert placed.sessions == (small,)
    assert placed.conflicts == {ended: "not_pending", big: "no_room", moved_away: "changed", restarted: "changed"}
    await assert_slots_add_up(database)


def on_a(kernel: dict[str, Any], **amounts: int) -> Placement:
    placed = KernelPlacement(kernel_id=KernelId(kernel["id"]), agent_id=AgentId("a"), amounts=amounts)
    return Placement(session_id=SessionId(kernel["session_id"]), kernels=(placed,))


async def test_what_fits_alone_but_not_together_goes_by_rank(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=4000)
        asked = [on_a((await kernels_of(connection, one))[0], cpu=3000) for one in await add_sessions(connection, 3)]
        placed = await place(connection, asked, now=NOW)
    first, second, third = (one.session_id for one in asked)
    assert placed.sessions == (first,)
    assert placed.conflicts == {second: "no_room", third: "no_room"}


async def test_who_waits_for_another_scheduler_sees_what_that_one_took(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=4000)
        first, second = [
            on_a((await kernels_of(connection, one))[0], cpu=3000) for one in await add_sessions(connection, 2)
        ]

    async def place_second() -> Placed:
        async with database.reader() as connection:
            return await place(connection, [second], now=NOW)

    async with database.transaction() as connection:
        await place(connection, [first], now=NOW)
        waiting = asyncio.create_task(place_second())
        async with database.reader() as watcher, asyncio.timeout(5):
            locked = "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while not await watcher.fetchval(locked):
                await asyncio.sleep(0)
    assert (await waiting).conflicts == {second.session_id: "no_room"}
    await assert_slots_add_up(database)


async def test_a_gang_is_placed_whole_or_not_at_all(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await add_agent(connection, name, cpu=4000, mem=8192)
        [gang] = await add_sessions(connection, kernels=2, cluster_mode="multi-node", cpu=3000)
        [whole] = plan(await snapshot(connection, now=NOW), NOW).placements
        assert {kernel.agent_id for kernel in whole.kernels} == {"a", "b"}
        half = Placement(session_id=gang, kernels=whole.kernels[:1])
        assert (await place(connection, [half], now=NOW)).conflicts == {gang: "changed"}
        await add_sessions(connection, priority=99, cpu=2000)
        blocker = plan(await snapshot(connection, now=NOW), NOW).placements[0]
        await place(connection, [blocker], now=NOW)
        placed = await place(connection, [whole], now=NOW)
        assert placed.conflicts == {gang: "no_room"}
        held = "SELECT count(*) FROM allocations a JOIN kernels k ON k.id = a.kernel_id WHERE k.session_id = $1"
        assert await connection.fetchval(held, gang) == 0


async def test_a_host_that_does_not_take_sessions_gets_none(database: Database) -> None:
    async with database.transaction() as connection:
        a = await add_agent(connection, "a")
        [session_id] = await add_sessions(connection)
        placements = plan(await snapshot(connection, now=NOW), NOW).placements
        await cordon(connection, a, reason=None, now=NOW)
        assert (await place(connection, placements, now=NOW)).conflicts == {session_id: "changed"}
        assert (await snapshot(connection, now=NOW)).hosts == ()
        await uncordon(connection, a, now=NOW)
        await connection.execute("UPDATE agents SET lost = true")
        assert (await place(connection, placements, now=NOW)).conflicts == {session_id: "changed"}
        await connection.execute("UPDATE agents SET lost = false, architecture = 'aarch64'")
        assert (await place(connection, placements, now=NOW)).conflicts == {session_id: "changed"}
        await remove(connection, a, now=NOW)
        assert (await place(connection, placements, now=NOW)).conflicts == {session_id: "changed"}


async def test_slots_are_free_again_only_when_the_agent_says_gone(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [session_id] = await add_sessions(connection)
        await plan_and_place(connection)
    await destroy(database, session_id)
    await assert_slots_add_up(database)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT sum(used) FROM resources") > 0
        gone = await fact_of(connection, session_id, "GONE", 2)
    assert (await tell(database, "a", gone)).released
    assert await status_of(database, session_id) == "TERMINATED"
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT sum(used) FROM resources") == 0
    [told] = await events_of(database, "resources.released")
    assert told["data"]["slots"] == {"cpu": 1000, "mem": 1024}


async def test_an_agent_that_shrinks_keeps_what_is_used_and_takes_nothing_new(database: Database) -> None:
    async with database.transaction() as connection:
        a = await add_agent(connection, "a", cpu=4000, mem=4096)
        first, _ = await add_sessions(connection, 2, cpu=2000, mem=1024)
        await plan_and_place(connection)
        await set_resources(connection, a, {"cpu": 1000})
        rows = await connection.fetch("SELECT name, capacity, reported, used FROM resources ORDER BY name")
        assert [tuple(row) for row in rows] == [("cpu", 4000, 1000, 4000), ("mem", 2048, 0, 2048)]
        await add_sessions(connection, cpu=1)
        assert (await plan_and_place(connection)).sessions == ()
    await destroy(database, first)
    async with database.reader() as connection:
        gone = await fact_of(connection, first, "GONE", 2)
    await tell(database, "a", gone)
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT name, capacity, reported, used FROM resources ORDER BY name")
        assert [tuple(row) for row in rows] == [("cpu", 2000, 1000, 2000), ("mem", 1024, 0, 1024)]


async def test_nobody_writes_allocations_past_the_capacity(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=1000)
        [session_id] = await add_sessions(connection)
        kernel = (await kernels_of(connection, session_id))[0]["id"]
    with pytest.raises(asyncpg.CheckViolationError):
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO allocations VALUES ($1, 'a', 'cpu', 1001)", kernel)
