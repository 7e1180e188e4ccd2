"""The control role as a whole, against a real PostgreSQL and agents that follow a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from agent.wire import Fact, RunDone, exit_record
from domain.errors import DatabaseUnavailable
from domain.ids import AgentId, SessionId
from domain.session import Event
from manager.control import Control, ControlSettings
from manager.herald import Herald
from repositories.database import Database
from repositories.drains import cordon
from repositories.kernels import record_facts
from tests.control.fakes import Clock, ScriptedAgents, as_client, until
from tests.control.rows import (
    add_agent,
    add_sessions,
    assert_slots_add_up,
    destroy,
    events_of,
    fact_of,
    history_of,
    kernels_of,
    row_of,
    said_hello,
    status_of,
)

A = AgentId("a")
T = TypeVar("T")


class Manager:
    """One control process: its herald, its loops, and the agents that are connected to it."""

    def __init__(self, database: Database, herald: Herald, agents: ScriptedAgents, clock: Clock) -> None:
        self.database, self.herald, self.agents, self.clock = database, herald, agents, clock
        self.control = Control(
            database, herald, as_client(agents), manager_id=uuid4(), clock=clock, jitter=lambda: 0.5,
            settings=ControlSettings(lease_seconds=30),
        )  # fmt: skip

    async def is_in(self, status: str, *sessions: SessionId) -> None:
        async def condition() -> bool:
            return all([await status_of(self.database, one) == status for one in sessions])

        await until(self.herald, condition)


@asynccontextmanager
async def manager(database: Database, agents: ScriptedAgents, clock: Clock) -> AsyncIterator[Manager]:
    herald = Herald(database.dsn)
    await herald.start()
    made = Manager(database, herald, agents, clock)
    running = asyncio.create_task(made.control.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await herald.close()
    assert running.cancelled()  # nothing had ended it before


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def one(database: Database, clock: Clock) -> AsyncIterator[Manager]:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=64000, mem=65536)
    async with manager(database, ScriptedAgents("a"), clock) as made:
        yield made


async def queue(database: Database, herald: Herald, number: int = 1, **options: Any) -> list[SessionId]:
    async with database.transaction() as connection:
        sessions = await add_sessions(connection, number, **options)
    herald.announce("queue")
    return sessions


async def end(made: Manager, session_id: SessionId, event: Event = Event.DESTROY) -> None:
    await destroy(made.database, session_id, event)
    made.herald.announce("dispatch")
    made.herald.announce("sessions", session_id)


async def test_a_session_comes_and_goes_without_waiting_for_any_tick(one: Manager, database: Database) -> None:
    started = time.monotonic()
    for _ in range(10):
        [session_id] = await queue(database, one.herald)
        await one.is_in("RUNNING", session_id)
        await end(one, session_id)
        await one.is_in("TERMINATED", session_id)
        assert await history_of(database, session_id) == [
            "PENDING",
            "SCHEDULED",
            "RUNNING",
            "TERMINATING",
            "TERMINATED",
        ]
    assert time.monotonic() - started < 5  # the floor of every loop is a second: ten times two ticks would be twenty
    await assert_slots_add_up(database)


async def test_two_managers_share_a_burst_and_no_session_is_started_twice(database: Database, clock: Clock) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await add_agent(connection, name, cpu=50000, mem=65536)
    agents = ScriptedAgents("a", "b")
    async with manager(database, agents, clock) as first, manager(database, agents, clock) as second:
        sessions = await queue(database, first.herald, 140)

        async def all_that_fit() -> bool:
            async with database.reader() as connection:
                return bool(await connection.fetchval("SELECT count(*) = 100 FROM sessions WHERE status = 'RUNNING'"))

        await until(first.herald, all_that_fit)
        assert len(agents.asked) == 100
        await assert_slots_add_up(database)
        for session_id in sessions:
            await end(second, session_id)

        async def none_live() -> bool:
            async with database.reader() as connection:
                return not await connection.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL")

        await until(second.herald, none_live)
    assert agents.most_at_once > 5
    await assert_slots_add_up(database)


async def test_an_agent_out_of_reach_is_asked_again_later(one: Manager, database: Database) -> None:
    one.agents.unreachable = True
    [session_id] = await queue(database, one.herald)

    async def asked_once() -> bool:
        async with database.reader() as connection:
            [kernel] = await kernels_of(connection, session_id)
        return kernel["tries"] == 1 and kernel["claimed_until"] is None and kernel["next_try_at"] > one.clock()

    await until(one.herald, asked_once, "dispatch")
    one.agents.unreachable = False
    one.clock.turn(seconds=1)
    one.herald.announce("dispatch")
    await one.is_in("RUNNING", session_id)


async def test_a_destroy_during_a_slow_create_goes_out_at_once(one: Manager, database: Database) -> None:
    one.agents.hold = asyncio.Event()
    [session_id] = await queue(database, one.herald)
    await one.is_in("SCHEDULED", session_id)

    async def asked(number: int) -> None:
        async with asyncio.timeout(5):
            while len(one.agents.asked) < number:
                await asyncio.sleep(0)

    await asked(1)
    await end(one, session_id)
    await asked(2)
    one.agents.hold.set()
    await one.is_in("TERMINATED", session_id)
    assert [want for _, want, _, _ in one.agents.asked] == ["RUN", "GONE"]
    await assert_slots_add_up(database)


async def test_an_agent_that_knows_more_than_a_restored_database_is_overtaken(one: Manager, database: Database) -> None:
    one.agents.answer = lambda _where, generation, want: {
        "observed": "RUNNING" if want == "RUN" else "GONE",
        "generation": max(generation, 50),
    }
    [session_id] = await queue(database, one.herald)
    await one.is_in("RUNNING", session_id)
    assert [generation for _, _, _, generation in one.agents.asked] == [1, 51]


async def test_an_attempt_that_a_later_one_has_replaced_ends_and_the_later_one_is_left_alone(
    one: Manager, database: Database
) -> None:
    """After a restore: the session was restarted when the backup had been made."""
    one.agents.answer = lambda where, generation, want: {"observed": "RUNNING", "attempt": 2, "generation": 7}
    [session_id] = await queue(database, one.herald)
    await one.is_in("ERROR", session_id)
    assert "attempt 2 was begun after the backup" in (await row_of(database, session_id))["status_reason"]
    assert {attempt for _, _, attempt, _ in one.agents.asked} == {1}
    await assert_slots_add_up(database)


# -- deadlines -----------------------------------------------------------------------------------------------------------
async def test_who_waits_too_long_is_told_what_was_missing(one: Manager, database: Database) -> None:
    huge, elsewhere = [
        (await queue(database, one.herald, max_wait=60, **options))[0]
        for options in ({"cpu": 80000}, {"architecture": "aarch64", "cpu": 1})
    ]
    [patient] = await queue(database, one.herald, cpu=80000)
    one.clock.turn(seconds=61)
    one.control.deadlines.wake()
    await one.is_in("CANCELLED", huge, elsewhere)
    assert (await row_of(database, huge))["status_reason"] == (
        "resource_unavailable: no place was found within 60 s: no host that takes sessions has 80 CPUs, not even when it is empty"
    )
    assert (await row_of(database, elsewhere))["status_reason"].endswith(
        "no host of architecture aarch64 takes sessions at the moment"
    )
    assert await status_of(database, patient) == "PENDING"


async def test_a_lifetime_ends_in_an_orderly_end(one: Manager, database: Database) -> None:
    [session_id] = await queue(database, one.herald, timeout=90)
    await one.is_in("RUNNING", session_id)
    one.clock.turn(seconds=91)
    one.control.deadlines.wake()
    await one.is_in("TERMINATED", session_id)
    row = await row_of(database, session_id)
    assert (row["status_reason"], row["failed"]) == ("its lifetime of 90 s is over", False)
    await assert_slots_add_up(database)


async def test_no_status_that_is_meant_to_pass_lasts_for_ever(one: Manager, database: Database) -> None:
    one.agents.names.clear()  # nobody can tell the host anything
    [session_id] = await queue(database, one.herald)
    await one.is_in("SCHEDULED", session_id)
    one.clock.turn(seconds=121)
    one.control.deadlines.wake()
    await one.is_in("TERMINATING", session_id)
    one.clock.turn(seconds=181)
    one.control.deadlines.wake()
    await one.is_in("TERMINATED", session_id)
    row = await row_of(database, session_id)
    assert "slots stay taken until it does" in row["status_reason"]
    assert [told["cause"] for told in await events_of(database, "session.terminated")] == [{"by": "deadline"}]
    await assert_slots_add_up(database)  # still held: the host has not said that it is gone
    one.agents.names.add(A)
    one.herald.announce("dispatch")

    async def freed() -> bool:
        async with database.reader() as connection:
            return bool(await connection.fetchval("SELECT sum(used) = 0 FROM resources"))

    await until(one.herald, freed, "queue")
    assert [want for _, want, _, _ in one.agents.asked] == ["GONE"]


async def test_a_start_that_comes_with_the_deadline_is_not_taken_back(database: Database, clock: Clock) -> None:
    """What is due is decided on the locked row: RUNNING has no deadline, so nothing ends it."""
    async with database.transaction() as connection:
        await add_agent(connection, "a")
    agents = ScriptedAgents()
    async with manager(database, agents, clock) as made:
        [session_id] = await queue(database, made.herald)
        await made.is_in("SCHEDULED", session_id)
        clock.turn(seconds=121)
        async with database.reader() as connection:
            fact = await fact_of(connection, session_id, "RUNNING", 1)
        await asyncio.gather(made.control.ingest.on_facts(A, [fact]), made.control.deadlines.step())
        history = await history_of(database, session_id)
    assert history[2:] in (["RUNNING"], ["TERMINATING"])


# -- agents ----------------------------------------------------------------------------------------------------------------
async def test_hello_brings_the_inventory_and_work_for_a_new_host(database: Database, clock: Clock) -> None:
    async with database.transaction() as connection:
        a = await add_agent(connection, "a", cpu=1000, mem=1024)
        await cordon(connection, a, reason=None, now=clock())
        await add_agent(connection, "b", cpu=1, mem=1)
    agents = ScriptedAgents("a", "b")
    async with manager(database, agents, clock) as made:
        [session_id] = await queue(database, made.herald)
        await made.control.ingest.on_hello(said_hello("b", resources={"cpu": 4000, "mem": 4096}))
        await made.is_in("RUNNING", session_id)
        async with database.reader() as connection:
            gone = await fact_of(connection, session_id, "EXITED", 10, exit=exit_record("out_of_memory", ""))
        await made.control.ingest.on_hello(
            said_hello("b", boot_no=2, facts=[gone], resources={"cpu": 4000, "mem": 4096})
        )
        await made.is_in("TERMINATING", session_id)


async def test_silence_beyond_the_lease_is_said_and_a_heartbeat_takes_it_back(database: Database, clock: Clock) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", lease_seconds=30)
    async with manager(database, ScriptedAgents("a"), clock) as made:
        [session_id] = await queue(database, made.herald)
        await made.is_in("RUNNING", session_id)
        clock.turn(seconds=31)
        await made.control.lost_agents.step()
        assert not (await row_of(database, session_id))["agent_lost"]  # just started: agents get time to be heard
        made.control.lost_agents.look_again(after_seconds=0)
        await made.control.lost_agents.step()
        assert (await row_of(database, session_id))["agent_lost"]
        await made.control.ingest.on_heartbeat(A)
        assert not (await row_of(database, session_id))["agent_lost"]
        assert await status_of(database, session_id) == "RUNNING"


async def test_an_agent_in_wrong_hands_is_refused_and_audited(one: Manager, database: Database) -> None:
    [session_id] = await queue(database, one.herald)
    await one.is_in("RUNNING", session_id)
    async with database.transaction() as connection:
        await add_agent(connection, "mallory")
        lie = await fact_of(connection, session_id, "GONE", 99, boot_no=99)
    for _ in range(3):
        await one.control.ingest.on_facts(AgentId("mallory"), [lie])
    assert await status_of(database, session_id) == "RUNNING"
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT access_key, action, outcome FROM audit")
    assert [tuple(row) for row in rows] == [("agent:mallory", "report_facts", "permission_denied")]


async def test_progress_of_a_pull_is_written_now_and_then(one: Manager, database: Database) -> None:
    one.agents.answer = lambda *_: {"observed": "PULLING"}
    [session_id] = await queue(database, one.herald)
    await one.is_in("PULLING", session_id)
    async with database.reader() as connection:
        kernel = (await kernels_of(connection, session_id))[0]["id"]
    deadlines = set()
    for _ in range(4):
        one.clock.turn(seconds=6)
        await one.control.ingest.on_progress(A, {"kernel_id": kernel.hex, "current": 1})
        deadlines.add((await row_of(database, session_id))["deadline_at"])
    await one.control.ingest.on_progress(A, {"kernel_id": None})
    assert len(deadlines) == 2


# -- runs ------------------------------------------------------------------------------------------------------------------
async def test_finished_runs_are_counted_once_however_often_they_are_told(one: Manager, database: Database) -> None:
    [session_id] = await queue(database, one.herald)
    await one.is_in("RUNNING", session_id)
    async with database.reader() as connection:
        kernel = (await kernels_of(connection, session_id))[0]["id"]
        await connection.execute(
            """
            INSERT INTO executions (run_id, session_id, kernel_id, agent_id, user_id, request_hash, mode)
            SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid, $1, $2, 'a', $1, '', 'query' FROM generate_series(1, 5) n
            """,
            session_id,
            kernel,
        )
    runs = [
        RunDone(
            run_id=f"{n:032x}", kernel_id=kernel.hex, attempt=1, started_at=1e9, finished_at=1.9e9 + n, exit_code=n - 1,
            last_seq=n, output_bytes=100,
        )
        for n in range(1, 8)
    ]  # fmt: skip
    await asyncio.gather(
        *(one.control.ingest.on_runs_done(A, runs[at : at + 3]) for _ in range(3) for at in range(0, 7, 2))
    )
    await one.control.ingest.on_runs_done(A, runs)
    row = await row_of(database, session_id)
    # 6 and 7 had no index row any more: they are written anew, and counted too
    assert (row["execution_count"], row["bytes_out"], row["version"]) == (7, 700, 3)
    assert row["last_activity_at"].timestamp() == 1.9e9 + 7
    assert len(await events_of(database, "execution.finished")) == 7
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT exit_code, status, mode FROM executions ORDER BY run_id")
    assert [tuple(row) for row in rows] == [(n, "done", "query" if n < 5 else "batch") for n in range(7)]
    # another agent's word about this kernel counts nothing
    async with database.transaction() as connection:
        await add_agent(connection, "mallory")
    await one.control.ingest.on_runs_done(AgentId("mallory"), [RunDone.unpack({**runs[0].pack(), "run_id": "f" * 32})])
    assert (await row_of(database, session_id))["execution_count"] == 7


# -- outages ---------------------------------------------------------------------------------------------------------------
async def test_an_outage_of_the_database_ends_nothing_and_is_said_once(
    one: Manager, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [first] = await queue(database, one.herald)
    await one.is_in("RUNNING", first)
    async with database.reader() as connection:
        fact = await fact_of(connection, first, "RUNNING", 1000)

    away = True

    def broken(real: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **options: Any) -> Any:
            if away:
                raise DatabaseUnavailable
            return real(*args, **options)

        return maybe

    with monkeypatch.context() as patch:
        patch.setattr(Database, "reader", broken(Database.reader))
        patch.setattr(Database, "transaction", broken(Database.transaction))
        tried = 0
        for loop in one.control.loops:
            loop.wake()
        with pytest.raises(DatabaseUnavailable):
            await one.control.ingest.on_facts(A, [fact])
        while tried < 200:  # enough turns of the event loop for every loop to have failed more than once
            tried += 1
            await asyncio.sleep(0.001)
        away = False
    assert caplog.text.count("trying on") <= len(one.control.loops)
    await one.control.ingest.on_facts(A, [fact])
    [second] = await queue(database, one.herald)
    await one.is_in("RUNNING", second)


async def persistently(attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As a client does that is told to ask again."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await attempt()
            except DatabaseUnavailable:
                continue


async def test_backends_that_are_ended_in_mid_work_are_survived(one: Manager, database: Database) -> None:
    async def end_them() -> None:
        async with database.reader() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database() AND application_name LIKE 'moorage%'"
            )

    async def all_run() -> bool:
        async with database.reader() as connection:
            return bool(await connection.fetchval("SELECT count(*) = 20 FROM sessions WHERE status = 'RUNNING'"))

    for _ in range(5):
        await persistently(lambda: queue(database, one.herald, 4))
        await persistently(end_them)
    one.clock.turn(seconds=60)  # claims that died with their connection are over
    one.herald.announce("dispatch")
    await until(one.herald, lambda: persistently(all_run))
    await assert_slots_add_up(database)


async def test_one_report_that_cannot_be_written_holds_up_no_other(
    one: Manager, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def poisoned(connection: Any, reports: Any, **options: Any) -> Any:
        if any(fact.container_id == "poison" for _, fact in reports):
            raise ValueError("poison")
        return await record_facts(connection, reports, **options)

    monkeypatch.setattr("manager.ingest.record_facts", poisoned)
    one.agents.answer = lambda *_: {"observed": "PREPARING"}
    good, bad = await queue(database, one.herald, 2)
    await one.is_in("PREPARING", good, bad)
    async with database.reader() as connection:
        facts = [
            await fact_of(connection, good, "RUNNING", 1000),
            await fact_of(connection, bad, "RUNNING", 1001, container_id="poison"),
        ]
    results = await asyncio.gather(
        *(one.control.ingest.on_facts(A, [Fact.unpack(fact.pack())]) for fact in facts), return_exceptions=True
    )
    assert results[0] is None
    assert isinstance(results[1], ValueError)
    assert await status_of(database, good) == "RUNNING"


async def test_events_are_numbered_soon_after_their_commit(one: Manager, database: Database) -> None:
    [session_id] = await queue(database, one.herald)
    await one.is_in("RUNNING", session_id)
    one.herald.announce("events")

    async def numbered() -> bool:
        async with database.reader() as connection:
            return not await connection.fetchval("SELECT count(*) FROM events WHERE seq IS NULL")

    await until(one.herald, numbered, "stamped")
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT seq, type FROM events ORDER BY seq")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
