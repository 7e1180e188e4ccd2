"""What a plan was made of may be true no more when it is written: each check of the placing write, and its word for it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import KernelPlacement, Placement
from repositories.agents import set_resources
from repositories.database import Connection, Database
from repositories.gangs import place_apart
from repositories.placement import Placed, place
from tests.control.rows import NOW, USER, add_agent, add_sessions, assert_slots_add_up, destroy, kernels_of, running

GPU = "gpu/A"


@pytest.fixture
async def a(database: Database) -> AgentId:
    """A host with a device of 24,000 MiB."""
    async with database.transaction() as connection:
        a = await add_agent(connection, "a", cpu=8000, mem=8192)
        await set_resources(connection, a, {"cpu": 8000, "mem": 8192, GPU: 24000})
        await connection.execute(
            "INSERT INTO devices (agent_id, name, model, memory_mib, seen_at) VALUES ('a', $1, 'NVIDIA H100', 24000, $2)",
            GPU,
            NOW,
        )
    return a


async def put(connection: Connection, session_id: SessionId, agent: str = "a", **amounts: int) -> Placement:
    """Its first kernel, there."""
    kernel = (await kernels_of(connection, session_id))[0]
    wanted = {GPU if name == "gpu" else name: amount for name, amount in (amounts or {"cpu": 1000}).items()}
    devices = {name: amount for name, amount in wanted.items() if name == GPU}
    placed = KernelPlacement(kernel_id=KernelId(kernel["id"]), agent_id=AgentId(agent), amounts=wanted, devices=devices)
    return Placement(session_id=session_id, kernels=(placed,))


async def outcome(database: Database, session_id: SessionId, **amounts: Any) -> str | None:
    async with database.transaction() as connection:
        placed = await place(connection, [await put(connection, session_id, **amounts)], now=NOW)
    assert (placed.sessions == (session_id,)) == (placed.conflicts == {})
    return placed.conflicts.get(session_id)


async def limit(connection: Connection, most: int, *sessions: SessionId, name: str = "sessions", each: int = 1) -> None:
    """A limit of the user of these sessions, who wait and ask for so much of it each."""
    await connection.execute(
        "INSERT INTO quotas (scope, scope_id, name, max_amount, waits) VALUES ('user', $1, $2, $3, true)",
        str(USER),
        name,
        most,
    )
    await connection.execute(
        "INSERT INTO quota_uses (session_id, scope, scope_id, name, amount) SELECT *, 'user', $2, $3, $4 FROM unnest($1::uuid[])",
        list(sessions),
        str(USER),
        name,
        each,
    )


async def used(connection: Connection) -> tuple[int, int]:
    row = await connection.fetchrow("SELECT used, queued FROM quotas")
    assert row is not None
    return row["used"], row["queued"]


# -- the host ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE agents SET schedulable = false",
        "UPDATE agents SET lost = true",
        "INSERT INTO resource_groups (name) VALUES ('other'); UPDATE agents SET resource_group = 'other'",
        "INSERT INTO resource_groups (name) VALUES ('other'); UPDATE sessions SET resource_group = 'other'",
        "UPDATE resource_groups SET active = false",
        """UPDATE sessions SET constraints = '{"agent": "b"}'""",
        """UPDATE sessions SET constraints = '{"labels": {"rack": "1"}}'; UPDATE agents SET labels = '{"rack": "2"}'""",
        "UPDATE agents SET architecture = 'aarch64'",
    ],
)
async def test_a_host_that_is_not_what_it_was_is_no_host(database: Database, a: AgentId, change: str) -> None:
    async with database.transaction() as connection:
        [session_id] = await add_sessions(connection)
        await connection.execute(change)
    assert await outcome(database, session_id) == "changed"


async def test_a_host_that_is_all_that_was_demanded_is_taken(database: Database, a: AgentId) -> None:
    async with database.transaction() as connection:
        [session_id] = await add_sessions(connection)
        await connection.execute('UPDATE agents SET labels = \'{"rack": "1", "disk": "fast"}\'')
        await connection.execute(
            "UPDATE sessions SET constraints = $1", {"agent": "a", "labels": {"rack": "1"}, "apart_from": {"app": "x"}}
        )
    assert await outcome(database, session_id) is None


@pytest.mark.parametrize(
    "change", ["UPDATE sessions SET unmet = 1", "UPDATE sessions SET starts_at = created_at + interval '1 hour'"]
)
async def test_a_session_that_waits_for_something_else_now_is_not_pending(
    database: Database, a: AgentId, change: str
) -> None:
    async with database.transaction() as connection:
        [session_id] = await add_sessions(connection)
        await connection.execute(change)
    assert await outcome(database, session_id) == "not_pending"


# -- devices -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "change", "amount", "expected"),
    [
        ({"gpu": 1}, "", 24000, None),
        ({"gpu": 1}, "", 20000, "changed"),  # it has grown: this would not be all of it
        ({"gpu": 1}, "UPDATE devices SET out_since = now(), out_reason = 'hot', out_by = 'health'", 24000, "changed"),
        ({"gpu": 1}, """UPDATE devices SET info = '{"shared_only": "people"}'""", 24000, "changed"),
        ({"gpu": 1}, "UPDATE resources SET reported = 0 WHERE name = 'gpu/A'", 24000, "changed"),
        ({"gpu-mem": 8000}, "", 8000, "changed"),  # nothing is shared there
        ({"gpu-mem": 8000}, "UPDATE resource_groups SET gpu_sharing = true", 8000, None),
        (
            {"gpu-mem": 8000},
            """UPDATE resource_groups SET gpu_sharing = true; UPDATE devices SET info = '{"whole_only": true}'""",
            8000,
            "changed",
        ),
        (
            {"gpu-mem": 8000},
            """UPDATE resource_groups SET gpu_sharing = true;
               UPDATE devices SET out_since = now(), out_reason = 'hot', out_by = 'health'""",
            8000,
            "changed",
        ),
        ({"gpu-mem": 30000}, "UPDATE resource_groups SET gpu_sharing = true", 30000, "no_room"),
    ],
)
async def test_a_device_is_handed_out_whole_or_shared_as_its_group_says(
    database: Database, a: AgentId, asked: dict[str, Any], change: str, amount: int, expected: str | None
) -> None:
    async with database.transaction() as connection:
        [session_id] = await add_sessions(connection, **asked)
        if change:
            await connection.execute(change)
    assert await outcome(database, session_id, gpu=amount) == expected
    await assert_slots_add_up(database)


async def test_a_whole_device_has_one_holder_and_a_share_leaves_none_whole(database: Database, a: AgentId) -> None:
    async with database.transaction() as connection:
        await connection.execute("UPDATE resource_groups SET gpu_sharing = true")
        whole, late = await add_sessions(connection, 2, gpu=1)
        asked: dict[str, Any] = {"gpu-mem": 4000}
        [share] = await add_sessions(connection, **asked)
    assert await outcome(database, share, gpu=4000) is None
    assert await outcome(database, whole, gpu=24000) == "no_room"
    assert await outcome(database, late, gpu=24000) == "no_room"


# -- quotas ------------------------------------------------------------------------------------------------------------
async def test_a_quota_is_served_by_rank_and_who_is_over_it_alone_stands_in_nobodys_way(
    database: Database, a: AgentId
) -> None:
    async with database.transaction() as connection:
        sessions = await add_sessions(connection, 4)
        await limit(connection, 10, *sessions, name="cpu", each=2)
        await connection.execute("UPDATE quota_uses SET amount = 9 WHERE session_id = $1", sessions[0])
        await connection.execute("UPDATE quotas SET max_amount = 5")
        placed = await place(connection, [await put(connection, one) for one in sessions], now=NOW)
        assert await used(connection) == (4, 11)
    assert placed.sessions == tuple(sessions[1:3])
    assert placed.conflicts == {sessions[0]: "quota", sessions[3]: "quota"}


async def test_whoever_places_a_quota_is_never_passed(database: Database, a: AgentId) -> None:
    async with database.transaction() as connection:
        sessions = await add_sessions(connection, 40, cpu=10, mem=1)
        await limit(connection, 13, *sessions)
        bulks = [[await put(connection, one, cpu=10) for one in sessions[n::4]] for n in range(4)]

    async def scheduler(placements: list[Placement]) -> tuple[SessionId, ...]:
        async with database.reader() as connection:
            return (await place(connection, placements, now=NOW)).sessions

    placed = [one for found in await asyncio.gather(*map(scheduler, bulks * 2)) for one in found]
    assert len(placed) == len(set(placed)) == 13
    async with database.reader() as connection:
        assert await used(connection) == (13, 27)
    await assert_slots_add_up(database)


async def test_what_has_ended_gives_its_quota_back(database: Database, a: AgentId) -> None:
    async with database.transaction() as connection:
        first, second = await add_sessions(connection, 2)
        await limit(connection, 1, first, second)
    assert await outcome(database, first) is None
    assert await outcome(database, second) == "quota"
    await destroy(database, second)
    async with database.reader() as connection:
        assert await used(connection) == (1, 0)


# -- in bulk -----------------------------------------------------------------------------------------------------------
async def test_in_bulk_each_conflict_costs_its_own_session_alone(database: Database) -> None:
    async with database.transaction() as connection:
        for number in range(10):
            await add_agent(connection, f"a{number}", cpu=50000, mem=10**6)
        sessions = await add_sessions(connection, 500)
        placements = [await put(connection, one, f"a{at % 10}") for at, one in enumerate(sessions)]
    await destroy(database, sessions[3])
    async with database.transaction() as connection:
        await limit(connection, 1, sessions[40])
        await connection.execute("UPDATE quotas SET max_amount = 0")
        await connection.execute("""UPDATE sessions SET constraints = '{"agent": "a9"}' WHERE id = $1""", sessions[77])
        await connection.execute("UPDATE resources SET reported = 49000 WHERE agent_id = 'a5' AND name = 'cpu'")
    async with database.reader() as connection:
        placed = await place(connection, placements, now=NOW)
    assert placed.conflicts == {
        sessions[3]: "not_pending", sessions[40]: "quota", sessions[77]: "changed", sessions[495]: "no_room",
    }  # fmt: skip
    assert len(placed.sessions) == 496
    await assert_slots_add_up(database)


async def test_who_stood_only_behind_one_that_found_no_room_is_placed_all_the_same(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=3000, mem=10**6)
        sizes = (2000, 3000, 1000)  # the second fits alone, but not after the first
        sessions = [(await add_sessions(connection, cpu=cpu))[0] for cpu in sizes]
        bulk = [await put(connection, one, cpu=cpu) for one, cpu in zip(sessions, sizes, strict=True)]
        placed = await place(connection, bulk, now=NOW)
    assert placed == Placed(sessions=(sessions[0], sessions[2]), conflicts={sessions[1]: "no_room"})


# -- apart -------------------------------------------------------------------------------------------------------------
async def apart(database: Database, session_id: SessionId, agent: str = "a") -> str | None:
    async with database.transaction() as connection:
        return await place_apart(connection, await put(connection, session_id, agent), now=NOW)


async def replicas(database: Database, number: int, **constraints: Any) -> list[SessionId]:
    async with database.transaction() as connection:
        sessions = await add_sessions(connection, number)
        await connection.execute(
            'UPDATE sessions SET labels = \'{"app": "api"}\', constraints = $2 WHERE id = ANY($1)',
            sessions,
            constraints,
        )
    return sessions


async def test_two_that_keep_apart_never_share_a_host(database: Database, a: AgentId) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "b")
    sessions = await replicas(database, 6, apart_from={"app": "api"})
    found = await asyncio.gather(*(apart(database, one, "ab"[n % 2]) for n, one in enumerate(sessions)))
    assert sorted(map(str, found)) == ["None"] * 2 + ["changed"] * 4
    async with database.reader() as connection:
        held = "SELECT count(DISTINCT kernel_id) FROM allocations GROUP BY agent_id"
        assert [row["count"] for row in await connection.fetch(held)] == [1, 1]


async def test_it_keeps_apart_from_one_that_another_scheduler_is_just_placing(database: Database, a: AgentId) -> None:
    [other] = await replicas(database, 1)
    [careful] = await replicas(database, 1, apart_from={"app": "api"})
    async with database.transaction() as connection:
        assert (await place(connection, [await put(connection, other)], now=NOW)).sessions == (other,)
        waiting = asyncio.create_task(apart(database, careful))
        locked = "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.reader() as watcher, asyncio.timeout(5):
            while not await watcher.fetchval(locked):
                await asyncio.sleep(0)
    assert await waiting == "changed"


async def test_a_bulk_puts_nobody_beside_one_that_keeps_apart(database: Database, a: AgentId) -> None:
    [careful] = await replicas(database, 1, apart_from={"app": "api"})
    early, late = await replicas(database, 2)
    async with database.reader() as connection:
        version = await connection.fetchval("SELECT xmin::text::bigint FROM sessions WHERE id = $1", early)
        placement = await put(connection, early)

    async def in_bulk() -> Placed:
        async with database.reader() as connection:
            return await place(connection, [placement], now=NOW, versions={early: version})

    async with database.transaction() as connection:
        assert await place_apart(connection, await put(connection, careful), now=NOW) is None
        waiting = asyncio.create_task(in_bulk())
        locked = "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.reader() as watcher, asyncio.timeout(5):
            while not await watcher.fetchval(locked):
                await asyncio.sleep(0)
    assert (await waiting).conflicts == {early: "changed"}
    assert await outcome(database, late) == "changed"


async def test_it_keeps_apart_only_from_those_that_carry_the_label(database: Database, a: AgentId) -> None:
    [unlabelled] = await running(database, "a")
    [careful] = await replicas(database, 1, apart_from={"app": "api"})
    assert await apart(database, careful) is None
    assert unlabelled != careful


async def test_a_session_whose_wait_is_over_is_placed_by_nobody(database: Database, a: AgentId) -> None:
    async with database.transaction() as connection:
        [session_id] = await add_sessions(connection)
        await connection.execute("UPDATE sessions SET starts_at = $1", NOW + timedelta(seconds=1))
        placement = await put(connection, session_id)
        assert (await place(connection, [placement], now=NOW)).conflicts == {session_id: "not_pending"}
        assert (await place(connection, [placement], now=NOW + timedelta(seconds=1))).sessions == (session_id,)
