"""What begins anew elsewhere when a host falls silent, what does not, and what its return changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest

from agent.wire import exit_record
from domain.ids import AgentId, SessionId
from manager.fencing import MARGIN_SECONDS, Replacements, Watch, over
from manager.herald import Herald
from repositories.agents import heartbeats, hello
from repositories.database import Database
from repositories.fencing import Leased
from tests.control.fakes import Clock
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
    said_hello,
    status_of,
    tell,
)

A, B = AgentId("a"), AgentId("b")
LEASE = 60.0


class Silent:
    def announce(self, topic: str, *ids: object) -> None: ...


class Loops:
    """The loop, and how much time has gone by for it."""

    def __init__(self, database: Database) -> None:
        self.elapsed, self.clock, self.database = 0.0, Clock(), database
        self.loop = Replacements(database, cast(Herald, Silent()), clock=self.clock, elapsed=lambda: self.elapsed)

    async def after(self, seconds: float) -> None:
        await self.loop.step()
        self.elapsed += seconds
        await self.loop.step()


async def leased_session(
    database: Database, *, fences: bool = True, observed: str = "RUNNING", **options: Any
) -> SessionId:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=10**6, mem=10**6)
        await _says_so(connection, A, fences)
        [session_id] = await add_sessions(connection, **options)
        await lease(connection, session_id)
        await plan_and_place(connection)
        fact = await fact_of(connection, session_id, observed, 10)
    await tell(database, "a", fact)
    return session_id


async def _says_so(connection: Any, agent_id: AgentId, fences: bool = True) -> None:
    await connection.execute("UPDATE agents SET info = $2 WHERE id = $1", agent_id, {"fences": fences})


async def lease(connection: Any, session_id: SessionId) -> None:
    await connection.execute(
        "UPDATE sessions SET on_agent_lost = 'replace', agent_lease_seconds = $2 WHERE id = $1", session_id, LEASE
    )


@pytest.fixture
def loops(database: Database) -> Loops:
    return Loops(database)


async def test_after_lease_and_margin_it_begins_anew(database: Database, loops: Loops) -> None:
    session_id = await leased_session(database)
    await loops.after(LEASE + MARGIN_SECONDS)  # not even a clock that runs slow is still within it
    assert await status_of(database, session_id) == "RUNNING"
    await loops.after(1.0)
    row = await row_of(database, session_id)
    assert (row["status"], row["attempt"], row["retries"], row["failed"]) == ("PENDING", 2, 0, False)
    assert row["status_reason"].startswith("its host a was silent for 7")
    assert row["status_reason"].endswith("its lease there is over; its work begins again on another")
    assert (await history_of(database, session_id))[-3:] == ["RUNNING", "TERMINATING", "PENDING"]
    assert len(await events_of(database, "agent.fenced")) == 1
    # its slots there stay taken, and what is there is to go as soon as that can be said
    await assert_slots_add_up(database)
    async with database.reader() as connection:
        old, new = await kernels_of(connection, session_id)
        assert (old["want"], old["fenced_at"], old["observed"]) == ("GONE", NOW, "RUNNING")
        assert (new["want"], new["agent_id"], new["id"]) == (
            "NONE",
            None,
            (await row_of(database, session_id))["main_kernel_id"],
        )


async def test_on_return_one_attempt_survives(database: Database, loops: Loops) -> None:
    session_id = await leased_session(database)
    await loops.after(LEASE + MARGIN_SECONDS + 1)
    async with database.transaction() as connection:
        await add_agent(connection, "b", cpu=10**6, mem=10**6)
        await connection.execute("UPDATE agents SET schedulable = false WHERE id = 'a'")
        await plan_and_place(connection)
        old, new = await kernels_of(connection, session_id)
        assert (old["agent_id"], new["agent_id"]) == ("a", "b")
        still = await fact_of(connection, session_id, "RUNNING", 11, generation=1)
        up = await fact_of(connection, session_id, "RUNNING", 1, kernel_id=new["id"].hex, attempt=2, generation=1)
    await tell(database, "b", up)
    assert (await row_of(database, session_id))["status"] == "RUNNING"
    await tell(database, "a", still)  # the host that nobody heard still has it, and says so
    assert (await row_of(database, session_id))["attempt"] == 2
    async with database.reader() as connection:
        gone = await fact_of(connection, session_id, "GONE", 12)
    await tell(database, "a", gone)
    row = await row_of(database, session_id)
    assert (row["status"], row["attempt"]) == ("RUNNING", 2)
    await assert_slots_add_up(database)


async def test_what_its_host_has_ended_itself_begins_anew_and_has_not_failed(database: Database) -> None:
    session_id = await leased_session(database)
    async with database.reader() as connection:
        ended = await fact_of(
            connection, session_id, "EXITED", 11, exit=exit_record("fenced", "The host had no answer.")
        )
    await tell(database, "a", ended)
    row = await row_of(database, session_id)
    assert (row["status"], row["retrying"], row["replaced"], row["moves_from"]) == ("TERMINATING", True, 0, "a")
    async with database.reader() as connection:
        gone = await fact_of(connection, session_id, "GONE", 12)
    await tell(database, "a", gone)
    row = await row_of(database, session_id)
    assert (row["status"], row["attempt"]) == ("PENDING", 2)
    assert "its lease on its host was over: The host had no answer." in row["status_reason"]
    await assert_slots_add_up(database)


async def test_who_is_heard_of_keeps_what_it_has(database: Database, loops: Loops) -> None:
    session_id = await leased_session(database)
    for second in range(1, 20):
        await loops.after(LEASE)
        async with database.transaction() as connection:
            await heartbeats(connection, [A], now=NOW + timedelta(seconds=second), lease_seconds=30)
    assert await status_of(database, session_id) == "RUNNING"


@pytest.mark.parametrize("by", [timedelta(minutes=5), timedelta(minutes=-5), timedelta(hours=-2)])
async def test_clocks_that_are_set_change_nothing(database: Database, loops: Loops, by: timedelta) -> None:
    session_id = await leased_session(database)
    loops.clock.now += by
    await loops.after(LEASE)
    assert await status_of(database, session_id) == "RUNNING"
    async with (
        database.transaction() as connection
    ):  # heard of, at a time that lies before the last one, or long after it
        await heartbeats(connection, [A], now=NOW + by, lease_seconds=30)
    await loops.after(LEASE)
    assert await status_of(database, session_id) == "RUNNING"
    await loops.after(MARGIN_SECONDS + 1)
    assert await status_of(database, session_id) == "PENDING"


async def test_who_could_not_look_begins_to_count_again(database: Database, loops: Loops) -> None:
    session_id = await leased_session(database)
    await loops.after(LEASE)
    loops.loop.failed()
    await loops.after(LEASE)
    assert await status_of(database, session_id) == "RUNNING"


@pytest.mark.parametrize("fences", [False, None])
async def test_a_host_of_an_older_release_keeps_what_it_has(database: Database, loops: Loops, fences: Any) -> None:
    session_id = await leased_session(database, fences=fences)
    await loops.after(10 * LEASE)
    assert await status_of(database, session_id) == "RUNNING"


@pytest.mark.parametrize("observed", ["PREPARING", "PULLING"])
async def test_what_was_coming_up_comes_up_elsewhere(database: Database, loops: Loops, observed: str) -> None:
    session_id = await leased_session(database, observed=observed)
    await loops.after(2 * LEASE)
    assert await status_of(database, session_id) == "PENDING"


async def test_what_was_ending_has_ended(database: Database, loops: Loops) -> None:
    """Its owner does not wait for the deadline of the end: its host has ended it by now."""
    session_id = await leased_session(database)
    await destroy(database, session_id)
    await loops.after(2 * LEASE)
    assert await status_of(database, session_id) == "TERMINATED"
    await assert_slots_add_up(database)
    async with database.reader() as connection:
        gone = await fact_of(connection, session_id, "GONE", 12)
    await tell(database, "a", gone)
    await assert_slots_add_up(database)


async def test_a_cluster_waits_for_its_other_hosts(database: Database, loops: Loops) -> None:
    """The kernels on hosts that are heard of have to be gone first: no two attempts, not even in part."""
    async with database.transaction() as connection:
        for name in (A, B):
            await add_agent(connection, name, cpu=1000, mem=1024)
            await _says_so(connection, name)
        [session_id] = await add_sessions(connection, kernels=2, cluster_mode="multi-node")
        await lease(connection, session_id)
        await plan_and_place(connection)
        kernels = await kernels_of(connection, session_id)
    for kernel in kernels:
        async with database.reader() as connection:
            fact = await fact_of(
                connection, session_id, "RUNNING", 10, kernel_id=kernel["id"].hex, generation=kernel["generation"]
            )
        await tell(database, kernel["agent_id"], fact)
    assert await status_of(database, session_id) == "RUNNING"
    await loops.loop.step()
    loops.elapsed += 2 * LEASE
    async with database.transaction() as connection:
        await heartbeats(connection, [B], now=NOW + timedelta(seconds=1), lease_seconds=30)
    await loops.loop.step()
    row = await row_of(database, session_id)
    assert (row["status"], row["retrying"]) == ("TERMINATING", True)
    async with database.reader() as connection:
        [there] = [row for row in await kernels_of(connection, session_id) if row["agent_id"] == B]
        gone = await fact_of(
            connection, session_id, "GONE", 11, kernel_id=there["id"].hex, generation=there["generation"]
        )
    await tell(database, B, gone)
    row = await row_of(database, session_id)
    assert (row["status"], row["attempt"]) == ("PENDING", 2)
    await assert_slots_add_up(database)


async def test_a_host_that_comes_back_at_this_moment(database: Database, loops: Loops) -> None:
    """Its hello is being written: nothing is taken from it."""
    session_id = await leased_session(database)
    await loops.loop.step()
    loops.elapsed += 2 * LEASE
    async with database.transaction() as connection:
        fact = await fact_of(connection, session_id, "RUNNING", 10)
        said = said_hello("a", facts=[fact], resources={"cpu": 10**6, "mem": 10**6})
        await hello(connection, said, now=NOW + timedelta(seconds=9), lease_seconds=30)
        await loops.loop.step()
    assert await status_of(database, session_id) == "RUNNING"


def test_silence_is_counted_from_when_it_was_first_seen() -> None:
    watch, seen = Watch(), Leased(agent_id=A, seen_at=NOW, seconds=LEASE)
    later = Leased(agent_id=A, seen_at=NOW - timedelta(hours=2), seconds=LEASE)
    assert watch.silent([seen], 100.0) == {A: 0.0}
    assert watch.silent([seen], 130.0) == {A: 30.0}
    assert watch.silent([later], 140.0) == {A: 0.0}
    assert watch.silent([], 150.0) == {}
    assert watch.silent([later], 160.0) == {A: 0.0}
    assert over(LEASE + MARGIN_SECONDS) < LEASE < over(LEASE * 1.02 + MARGIN_SECONDS)
