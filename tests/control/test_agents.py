"""Agents join once, are believed about themselves, and are missed when they are silent."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from agent.wire import Fact
from domain.errors import AgentNotFound, AlreadyExists, Conflict, StillInUse, Unauthenticated
from domain.ids import AgentId
from domain.session import Event
from repositories.agents import (
    REMEMBERS_NOTHING,
    enrol,
    find_lost,
    get_agent,
    heartbeats,
    hello,
    issue_token,
    list_agents,
    list_managers,
    register_manager,
    remove,
    unregister_manager,
)
from repositories.database import Database
from repositories.drains import cordon, uncordon
from repositories.placement import snapshot
from repositories.trust import is_known
from tests.control.gpus import a_device
from tests.control.rows import (
    LATER,
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
    running,
    said_hello,
    status_of,
    tell,
)

A = AgentId("a")


async def test_a_token_lets_one_agent_in_once(database: Database) -> None:
    async with database.transaction() as connection:
        token = await issue_token(connection, expires_at=LATER, now=NOW)
        await enrol(connection, token, A, "print", now=NOW)
        assert await is_known(connection, A, "print", now=NOW)
        assert not await is_known(connection, A, "another", now=NOW)
        assert not await is_known(connection, AgentId("b"), "print", now=NOW)
        stored = await connection.fetchval("SELECT secret_hash FROM agent_tokens")
        assert token.encode() not in stored
    for wrong in (token, "guess", ""):
        with pytest.raises(Unauthenticated):
            async with database.transaction() as connection:
                await enrol(connection, wrong, AgentId("b"), "print", now=NOW)
    async with database.transaction() as connection:
        old = await issue_token(connection, expires_at=NOW, now=NOW)
        with pytest.raises(Unauthenticated):
            await enrol(connection, old, AgentId("b"), "print", now=NOW)


async def test_a_name_changes_hands_only_while_nobody_is_heard_under_it(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", lease_seconds=30)
        token = await issue_token(connection, expires_at=LATER, now=NOW)
    with pytest.raises(AlreadyExists):
        async with database.transaction() as connection:
            await enrol(connection, token, A, "another host's", now=NOW)
    async with database.transaction() as connection:
        await enrol(connection, token, A, "another host's", now=NOW + timedelta(minutes=1))
        assert await is_known(connection, A, "another host's", now=NOW)


async def test_only_who_has_joined_may_say_hello_and_no_older_daemon(database: Database) -> None:
    async with database.transaction() as connection:
        with pytest.raises(AgentNotFound):
            await hello(connection, said_hello("a", resources={}), now=NOW, lease_seconds=30)
        await add_agent(connection, "a", boot_no=5)
        await add_agent(connection, "a", boot_no=6)
        with pytest.raises(Conflict):
            await add_agent(connection, "a", boot_no=5)


async def test_a_restarted_agent_is_asked_about_what_it_leaves_out(database: Database) -> None:
    known, left_out = await running(database, number=2)
    async with database.transaction() as connection:
        fact = await fact_of(connection, known, "RUNNING", 10)
        await add_agent(connection, "a", boot_no=2, facts=[fact], cpu=10**9, mem=10**9)
        [first], [second] = await kernels_of(connection, known), await kernels_of(connection, left_out)
    assert first["seen_generation"] == first["generation"]
    assert second["seen_generation"] < second["generation"]
    assert await status_of(database, left_out) == "RUNNING"  # not given up by omission
    await tell(database, "a", await _fact(database, left_out, "RUNNING", 1, boot_no=2))
    async with database.reader() as connection:
        [second] = await kernels_of(connection, left_out)
    assert second["seen_generation"] == second["generation"]


async def test_an_agent_with_a_new_data_dir_is_never_believed_to_have_what_it_had(database: Database) -> None:
    up, ending, forced = await running(database, number=3)
    async with database.transaction() as connection:
        [fresh] = await add_sessions(connection)
        await plan_and_place(connection)
    await destroy(database, ending)
    await destroy(database, forced, Event.FORCE)
    async with database.transaction() as connection:
        await add_agent(connection, "a", uid="second", boot_no=1, cpu=10**9, mem=10**9)
    row = await row_of(database, up)
    assert (row["status"], row["status_reason"], row["failed"]) == ("TERMINATING", REMEMBERS_NOTHING, True)
    assert await status_of(database, fresh) == "SCHEDULED"  # it had never been there
    assert await status_of(database, forced) == "TERMINATED"
    # its reports count from the beginning again, and everything is asked of it anew
    for session_id in (up, ending, forced):
        async with database.reader() as connection:
            [kernel] = await kernels_of(connection, session_id)
            assert kernel["seen_generation"] < kernel["generation"]
        await tell(database, "a", await _fact(database, session_id, "GONE", 1))
    assert await status_of(database, up) == "ERROR"
    assert await status_of(database, ending) == "TERMINATED"
    await tell(database, "a", await _fact(database, fresh, "RUNNING", 2))
    assert await status_of(database, fresh) == "RUNNING"
    await assert_slots_add_up(database)


async def test_a_silent_agent_is_lost_and_its_sessions_go_on(database: Database) -> None:
    [session_id] = await running(database)
    async with database.transaction() as connection:
        await heartbeats(connection, [A], now=NOW, lease_seconds=30)
        assert await find_lost(connection, now=NOW + timedelta(seconds=29)) == ([], frozenset())
    late = NOW + timedelta(seconds=31)
    async with database.transaction() as connection:
        assert await find_lost(connection, now=late) == ([A], frozenset({session_id}))
        assert await find_lost(connection, now=late) == ([], frozenset())
        assert (await snapshot(connection, now=NOW)).hosts == ()
    row = await row_of(database, session_id)
    assert (row["status"], row["agent_lost"], row["version"]) == ("RUNNING", True, 3)
    assert row["status_reason"] == "the host a has not been heard of since 2030-01-01 12:00:00 UTC"
    [lost] = await events_of(database, "agent.lost")
    assert (lost["user_id"], lost["data"]["sessions"]) == (None, 1)
    assert len(await events_of(database, "session.agent_lost")) == 1
    async with database.transaction() as connection:
        assert await heartbeats(connection, [A], now=late, lease_seconds=30) == {session_id}
        assert await heartbeats(connection, [A], now=late, lease_seconds=30) == frozenset()
    row = await row_of(database, session_id)
    assert (row["agent_lost"], row["status_reason"]) == (False, None)
    assert (
        len(await events_of(database, "agent.returned"))
        == len(await events_of(database, "session.agent_returned"))
        == 1
    )
    assert await history_of(database, session_id) == ["PENDING", "SCHEDULED", "RUNNING"]


async def test_a_hello_is_a_return_too(database: Database) -> None:
    [session_id] = await running(database)
    async with database.transaction() as connection:
        await find_lost(connection, now=LATER)
        fact = await fact_of(connection, session_id, "RUNNING", 10)
        said = said_hello("a", boot_no=2, facts=[fact], resources={"cpu": 10**9, "mem": 10**9})
        greeted = await hello(connection, said, now=LATER, lease_seconds=30)
    assert (greeted.returned, greeted.forgot, greeted.changed) == (True, False, frozenset({session_id}))
    assert not (await row_of(database, session_id))["agent_lost"]


async def test_administrators_see_cordon_and_remove_agents(database: Database) -> None:
    [session_id] = await running(database)
    async with database.transaction() as connection:
        await add_agent(connection, "b", cpu=4000)
        a, b = await list_agents(connection)
        assert (a["id"], a["kernels"], b["kernels"]) == ("a", 1, 0)
        assert b["resources"] == {"cpu": {"capacity": 4000, "used": 0}}
        assert a["resources"]["cpu"]["used"] == 1000
        await cordon(connection, A, reason=None, now=NOW)
        assert not (await get_agent(connection, A))["schedulable"]
        await remove(connection, AgentId("b"), now=NOW)
        for unknown in (get_agent(connection, AgentId("b")), uncordon(connection, AgentId("b"), now=NOW)):
            with pytest.raises(AgentNotFound):
                await unknown
        with pytest.raises(StillInUse):
            await remove(connection, A, now=NOW, lost_for_good=True)
    await destroy(database, session_id)
    await tell(database, "a", await _fact(database, session_id, "GONE", 11))
    async with database.transaction() as connection:
        await remove(connection, A, now=NOW)
        assert await list_agents(connection) == []
    await assert_slots_add_up(database)


async def test_a_host_that_burned_down_is_given_up_only_by_an_administrators_word(database: Database) -> None:
    [session_id] = await running(database)
    await destroy(database, session_id, Event.FORCE)
    async with database.transaction() as connection:
        for lost_for_good in (False, True):  # it is heard of: it has to say itself that it is empty
            with pytest.raises(StillInUse):
                await remove(connection, A, now=NOW, lost_for_good=lost_for_good)
        await find_lost(connection, now=LATER)
        with pytest.raises(StillInUse):
            await remove(connection, A, now=NOW)
        await remove(connection, A, now=NOW, lost_for_good=True)
    await assert_slots_add_up(database)


async def test_managers_are_listed_while_they_give_signs_of_life(database: Database) -> None:
    one, two, quiet = uuid4(), uuid4(), uuid4()
    async with database.transaction() as connection:
        await register_manager(connection, one, role="control", agent_url="wss://one", now=NOW)
        await register_manager(connection, two, role="api", agent_url="wss://two", now=NOW + timedelta(seconds=1))
        await register_manager(connection, quiet, role="proxy", agent_url=None, now=NOW)
        found = await list_managers(connection, now=NOW + timedelta(seconds=2))
        assert [(m.id, m.role, m.agent_url) for m in found] == [
            (one, "control", "wss://one"),
            (two, "api", "wss://two"),
        ]
        later = NOW + timedelta(minutes=10)
        await register_manager(connection, two, role="api", agent_url="wss://two", now=later)
        assert [m.id for m in await list_managers(connection, now=later)] == [two]
        await unregister_manager(connection, two)
        assert await list_managers(connection, now=later) == []


async def _fact(database: Database, session_id, observed: str, seq: int, **changes):  # type: ignore[no-untyped-def]
    async with database.reader() as connection:
        return await fact_of(connection, session_id, observed, seq, **changes)


# -- after a restore -----------------------------------------------------------------------------------------------------
async def test_what_a_restored_database_does_not_know_keeps_its_room_and_is_named(database: Database) -> None:
    unknown, device, free = uuid4(), a_device("one"), a_device("two")
    fact = Fact(kernel_id=str(unknown), attempt=3, generation=9, observed="RUNNING", boot_no=2, seq=1)
    resources = {"cpu": 8000, "mem": 4096, device.name: 81920, free.name: 81920}
    holds = {str(unknown): {"cpu": 3000, "mem": 1024, device.name: 81920}}
    said = said_hello("a", resources=resources, boot_no=2, facts=[fact], holds=holds, devices=[device, free])
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=8000, mem=4096)
        await hello(connection, said, now=NOW, lease_seconds=30)
        known = await get_agent(connection, A)
        capacity = {name: slot["capacity"] for name, slot in known["resources"].items()}
        out = {row["name"]: row["out_reason"] for row in await connection.fetch("SELECT name, out_reason FROM devices")}
    assert known["info"]["quarantined"] == [f"moorage-{unknown.hex}-3"]
    assert (capacity["cpu"], capacity["mem"], capacity[free.name]) == (5000, 3072, 81920)
    assert (capacity.get(device.name, 0), out[free.name]) == (0, None)
    assert "quarantined container" in out[device.name]


async def test_what_is_known_of_is_no_stranger_and_a_later_attempt_of_it_is(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=8000, mem=4096)
    [session_id] = await running(database)
    async with database.reader() as connection:
        [kernel] = await kernels_of(connection, session_id)
    for attempt, strangers in ((1, 0), (2, 1)):
        fact = Fact(
            kernel_id=str(kernel["id"]), attempt=attempt, generation=9, observed="RUNNING", boot_no=attempt + 1, seq=1
        )
        said = said_hello(
            "a", resources={"cpu": 8000}, boot_no=attempt + 1, facts=[fact], holds={str(kernel["id"]): {"cpu": 1000}}
        )
        async with database.transaction() as connection:
            await hello(connection, said, now=NOW, lease_seconds=30)
            known = await get_agent(connection, A)
        assert len(known["info"]["quarantined"]) == strangers
