"""The scheduler's loop: what it looks at, when it looks again, and that any number of them does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from domain.ids import AgentId
from domain.placement import Blocked, Constraints, Holding, Plan, Reservation, Snapshot
from manager import scheduling
from manager.herald import Herald
from manager.scheduling import Scheduler
from repositories import snapshot as reading
from repositories.agents import set_resources
from repositories.database import Database
from repositories.snapshot import Remembered, snapshot
from tests.control.fakes import Clock, until
from tests.control.rows import (
    NOW,
    PROJECT,
    USER,
    add_agent,
    add_sessions,
    assert_slots_add_up,
    destroy,
    kernels_of,
    plan_and_place,
    running,
    status_of,
)


@asynccontextmanager
async def schedulers(database: Database, number: int = 1) -> AsyncIterator[list[tuple[Scheduler, Herald]]]:
    """Each as in a process of its own: woken by what others say, too."""
    async with AsyncExitStack() as stack:
        made, tasks = [], []
        for _ in range(number):
            herald = Herald(database.dsn)
            await herald.start()
            stack.push_async_callback(herald.close)
            scheduler = Scheduler(database, herald, clock=Clock())
            herald.subscribe("queue", scheduler.wake)
            herald.subscribe("agents", scheduler.wake)
            tasks.append(asyncio.create_task(scheduler.run()))
            made.append((scheduler, herald))
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def look(database: Database, **options: Any) -> Snapshot:
    async with database.reader() as connection:
        return await snapshot(connection, now=NOW, **options)


# -- what it looks at --------------------------------------------------------------------------------------------------
async def test_a_snapshot_tells_all_that_decides(database: Database) -> None:
    async with database.transaction() as connection:
        a = await add_agent(connection, "a")
        await set_resources(connection, a, {"cpu": 8000, "mem": 8192, "gpu/A": 24000, "gpu/B": 24000, "gpu/C": 9000})
        await connection.execute(
            """
            INSERT INTO devices (agent_id, name, model, memory_mib, info, seen_at, out_since, out_reason, out_by)
            SELECT 'a', name, 'NVIDIA H100', 24000, info, $1, out_since, reason, out_by FROM (VALUES
                ('gpu/A', '{"numa": 1, "links": {"gpu/B": 90}, "whole_only": true}'::jsonb, NULL::timestamptz, NULL, NULL),
                ('gpu/B', '{"shared_only": "people"}', NULL, NULL, NULL), ('gpu/C', '{}', $1, 'hot', 'health'))
                AS v(name, info, out_since, reason, out_by)
            """,
            NOW,
        )
        await connection.execute('UPDATE agents SET labels = \'{"rack": "1"}\'')
        await connection.execute(
            "INSERT INTO resource_groups (name, ordering, fit, backfill, gpu_sharing, half_life_seconds, active)"
            " VALUES ('lab', 'fifo', 'spread', false, true, 60, false)"
        )
        [waiting] = await add_sessions(connection, timeout=60)
        constraints = {"agent": "a", "labels": {"rack": "1"}, "apart_from": {"app": "x"}, "gpu_model": "h100"}
        await connection.execute('UPDATE sessions SET constraints = $1, labels = \'{"app": "x"}\'', constraints)
        await connection.execute(
            "INSERT INTO quotas (scope, scope_id, name, max_amount) VALUES ('domain', 'default', 'cpu', 9000)"
        )
        await connection.execute(
            "INSERT INTO quota_uses (session_id, scope, scope_id, name, amount) VALUES ($1, 'domain', 'default', 'cpu', 1000)",
            waiting,
        )
    seen = await look(database)
    [session], [host], [limit] = seen.pending, seen.hosts, seen.limits
    assert session.constraints == Constraints(**constraints)  # type: ignore[arg-type]
    assert (session.name, session.user_id, session.lifetime_seconds) == (f"s-{waiting}", USER, 60)
    assert session.scopes == (("keypair", "AK"), ("user", str(USER)), ("project", str(PROJECT)), ("domain", "default"))
    assert host.free == {"cpu": 8000, "mem": 8192, "gpu/A": 24000, "gpu/B": 24000}
    assert host.capacity == {**host.free, "gpu/B": 24001}  # people are on it: it is never all free
    assert host.labels == {"rack": "1"}
    first, second = host.devices
    assert (first.model, first.numa, first.whole_only, first.links) == ("NVIDIA H100", 1, True, {"gpu/B": 90})
    assert (second.name, second.shared_only) == ("gpu/B", True)
    lab = {group.name: group for group in seen.groups}["lab"]
    assert (lab.fair_share, lab.spread, lab.backfill, lab.gpu_sharing, lab.half_life_seconds, lab.active) == (
        False, True, False, True, 60, False,
    )  # fmt: skip
    assert (limit.scope, limit.name, limit.max_amount, limit.held) == (("domain", "default"), "cpu", 9000, 0)


async def test_what_is_held_says_until_when(database: Database) -> None:
    [up] = await running(database, timeout=60)
    [forever] = await running(database)
    [going] = await running(database, timeout=60)
    await destroy(database, going)
    async with database.transaction() as connection:
        [starting] = await add_sessions(connection, timeout=30)
        await plan_and_place(connection)
    held = {holding.session_id: holding for holding in (await look(database)).holdings}
    assert held == {}  # nobody waits: nothing is read
    async with database.transaction() as connection:
        await add_sessions(connection)
    assert (await look(database)).holdings == ()
    held = {holding.session_id: holding for holding in (await look(database, holdings=True)).holdings}
    assert held[up] == Holding(
        session_id=up, agent_id=AgentId("a"), amounts={"cpu": 1000, "mem": 1024}, name=f"s-{up}", user_id=USER,
        ends_at=NOW + timedelta(seconds=60),
    )  # fmt: skip
    assert held[forever].ends_at is None
    assert held[starting].ends_at == NOW + timedelta(seconds=30)
    assert held[going].ends_at == NOW + timedelta(seconds=10)


@pytest.mark.parametrize("few", [0, 100])
async def test_what_is_remembered_of_the_queue_is_what_is_there(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(reading, "_FEW", few)
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        sessions = await add_sessions(connection, 3)
    known: Remembered = {}
    before = {one.id: one for one in (await look(database, known=known)).pending}
    async with database.transaction() as connection:
        await connection.execute("UPDATE sessions SET priority = 99 WHERE id = $1", sessions[0])
        [new] = await add_sessions(connection)
    await destroy(database, sessions[1])
    after = {one.id: one for one in (await look(database, known=known)).pending}
    assert after.keys() == {sessions[0], sessions[2], new} == known.keys()
    assert after[sessions[0]].priority == 99
    assert after[sessions[2]] == before[sessions[2]]
    assert (after[sessions[2]] is before[sessions[2]]) == (few == 0)
    assert {one.id: one for one in (await look(database)).pending} == after


async def test_a_group_that_is_not_active_places_nothing_and_says_so(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [session_id] = await add_sessions(connection)
        await connection.execute("UPDATE resource_groups SET active = false")
    planned = scheduling.plan(await look(database), NOW)
    assert planned.placements == ()
    blocked = planned.blocked[session_id]
    assert (blocked.code, "default takes no sessions until" in blocked.detail) == ("no_hosts", True)


async def test_a_session_that_keeps_apart_binds_those_that_come_later(database: Database) -> None:
    async with database.transaction() as connection:
        for host in "ab":
            await add_agent(connection, host)
        [careful] = await add_sessions(connection)
        await connection.execute("UPDATE sessions SET constraints = $1", {"apart_from": {"app": "api"}})
        assert (await plan_and_place(connection)).sessions == (careful,)
        [there] = [kernel["agent_id"] for kernel in await kernels_of(connection, careful)]
        sessions = await add_sessions(connection, 3)
        await connection.execute('UPDATE sessions SET labels = \'{"app": "api"}\' WHERE id = ANY($1)', sessions)
        assert set((await plan_and_place(connection)).sessions) == set(sessions)
        hosts = [kernel["agent_id"] for one in sessions for kernel in await kernels_of(connection, one)]
        assert (await snapshot(connection, now=NOW)).holdings == ()  # nobody waits
    assert set(hosts) == {"a", "b"} - {there}


# -- when it looks -----------------------------------------------------------------------------------------------------
class Planner:
    """Stands in for the plan: counts what it is asked, and answers as told."""

    def __init__(self, answer: Callable[[Snapshot, datetime], Plan]) -> None:
        self.answer = answer
        self.seen: list[Snapshot] = []

    def __call__(self, seen: Snapshot, now: datetime) -> Plan:
        self.seen.append(seen)
        return self.answer(seen, now)


def nothing(code: str, *, at: datetime | None = None) -> Callable[[Snapshot, datetime], Plan]:
    def answer(seen: Snapshot, _now: datetime) -> Plan:
        blocked = {session.id: Blocked(code=code, detail="") for session in seen.pending}
        reserved = [Reservation(session_id=session.id, hosts=(), at=at) for session in seen.pending[:1]]
        return Plan(placements=(), blocked=blocked, reservations=tuple(reserved))

    return answer


@pytest.fixture
def scheduler(database: Database) -> Scheduler:
    return Scheduler(database, Herald(database.dsn), clock=Clock())


async def test_what_others_hold_is_read_only_when_somebody_waits_for_room(
    database: Database, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(database)
    async with database.transaction() as connection:
        await add_sessions(connection)
    looks = [("quota", [False]), ("insufficient", [False, True]), ("insufficient", [True]), ("no_hosts", [True])]
    for code, expected in [*looks, ("quota", [False])]:
        planner = Planner(nothing(code))
        monkeypatch.setattr(scheduling, "plan", planner)
        scheduler._fruitless = None
        await scheduler.step()
        assert [bool(seen.holdings) for seen in planner.seen] == expected, code
    async with database.reader() as connection:
        await connection.execute("UPDATE resource_groups SET backfill = false")
    planner = Planner(nothing("insufficient"))
    monkeypatch.setattr(scheduling, "plan", planner)
    await scheduler.step()
    assert [bool(seen.holdings) for seen in planner.seen] == [False]


async def test_a_picture_that_led_to_nothing_is_not_thought_over_again_until_it_changes(
    database: Database, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "unchanged_factor", 1e6)
    planner = Planner(nothing("no_hosts"))
    monkeypatch.setattr(scheduling, "plan", planner)
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [session_id] = await add_sessions(connection)
    for change in (
        None,
        "UPDATE sessions SET priority = 3",
        'UPDATE agents SET labels = \'{"rack": "1"}\'',
        "UPDATE resource_groups SET fit = 'spread'",
        "UPDATE resources SET reported = 7000 WHERE name = 'cpu'",
        "INSERT INTO quotas (scope, scope_id, name, max_amount, queued) VALUES ('domain', 'default', 'cpu', 9000, 1)",
        "UPDATE quotas SET max_amount = 10000",
    ):
        if change:
            async with database.reader() as connection:
                await connection.execute(change)
        planner.seen.clear()
        for _ in range(3):
            await scheduler.step()
        assert len(planner.seen) == 1, change
    assert await status_of(database, session_id) == "PENDING"


async def test_it_wakes_when_a_time_is_reached_and_not_for_one_that_has_passed(
    database: Database, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        await add_sessions(connection)
    for at, expected in ((NOW + timedelta(seconds=7), 7), (NOW - timedelta(seconds=7), None)):
        monkeypatch.setattr(scheduling, "plan", Planner(nothing("no_hosts", at=at)))
        scheduler._fruitless = None
        assert await scheduler.step() == expected
    async with database.transaction() as connection:
        [later] = await add_sessions(connection)
        await connection.execute("UPDATE sessions SET starts_at = $2 WHERE id = $1", later, NOW + timedelta(seconds=3))
    assert await scheduler.step() == 3


async def test_conflicts_that_come_again_are_tried_ever_more_slowly(
    database: Database, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        await add_sessions(connection)
    planned = scheduling.plan(await look(database), NOW)
    assert planned.placements
    monkeypatch.setattr(scheduling, "plan", lambda _seen, _now: planned)
    async with database.reader() as connection:
        await connection.execute("UPDATE agents SET schedulable = false")
    pauses = [await scheduler.step() for _ in range(12)]
    assert pauses == sorted(pauses, key=lambda one: one or 0)
    assert pauses[0] == 0.002
    assert pauses[-1] == scheduler.floor_seconds
    async with database.reader() as connection:
        await connection.execute("UPDATE agents SET schedulable = true")
    assert await scheduler.step() is None
    assert scheduler._conflicts_in_a_row == 0


# -- several of them ---------------------------------------------------------------------------------------------------
async def test_three_of_them_place_three_hundred_sessions_once_within_room_and_quota(database: Database) -> None:
    async with database.transaction() as connection:
        for number in range(8):
            await add_agent(connection, f"a{number}", cpu=25000, mem=10**6)
    async with schedulers(database, 3) as made:
        async with database.transaction() as connection:
            sessions = await add_sessions(connection, 300)
            await connection.execute(
                "INSERT INTO quotas (scope, scope_id, name, max_amount, waits) VALUES ('user', $1, 'sessions', 301, true),"
                " ('domain', 'default', 'cpu', 1000000, true)",
                str(USER),
            )
            await connection.execute(
                "INSERT INTO quota_uses (session_id, scope, scope_id, name, amount)"
                " SELECT id, 'user', $2, 'sessions', 1 FROM unnest($1::uuid[]) id UNION ALL"
                " SELECT id, 'domain', 'default', 'cpu', 1000 FROM unnest($1::uuid[]) id",
                sessions,
                str(USER),
            )
            await connection.execute("UPDATE quotas SET max_amount = 170 WHERE name = 'sessions'")
        for _, herald in made:
            herald.announce("queue")

        async def placed(number: int) -> bool:
            async with database.reader() as connection:
                found = await connection.fetchval("SELECT count(*) FROM sessions WHERE status = 'SCHEDULED'")
            return bool(found == number)

        await until(made[0][1], lambda: placed(170))
        async with database.reader() as connection:
            await connection.execute("UPDATE quotas SET max_amount = 1000 WHERE name = 'sessions'")
        made[1][1].announce("queue")
        await until(made[2][1], lambda: placed(200))  # the fleet is full
    await assert_slots_add_up(database)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions WHERE status = 'SCHEDULED'") == 200
        taken = await connection.fetch("SELECT used, queued FROM quotas ORDER BY name")
        assert [tuple(row) for row in taken] == [(200000, 100000), (200, 100)]
        generations = "SELECT max(generation) FROM kernels"
        assert await connection.fetchval(generations) == 1  # nobody was placed twice
