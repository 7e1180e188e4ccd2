"""Sessions that wait, are tried again, or take too long, as the control role moves them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from actions.kernels import once_more
from agent.wire import exit_record
from domain.ids import AgentId, SessionId
from domain.scheduler import plan
from domain.session import Event
from manager.reconciler import Deadlines
from manager.scheduling import Scheduler
from repositories.database import Connection, Database
from repositories.placement import place, snapshot
from repositories.resolve import resolve
from repositories.session import SessionRepository
from repositories.tail import wanting
from tests.control.fakes import Clock, ScriptedAgents
from tests.control.rows import (
    NOW,
    TEST,
    add_agent,
    add_sessions,
    assert_slots_add_up,
    destroy,
    events_of,
    fact_of,
    kernels_of,
    plan_and_place,
    row_of,
    status_of,
    tell,
)
from tests.control.test_control import manager
from tests.scenario import Outbox


async def batches(connection: Connection, number: int = 1, **columns: Any) -> list[SessionId]:
    made = await add_sessions(connection, number)
    columns = {"session_type": "batch", "startup_command": "work", **columns}
    settings = ", ".join(f"{name} = ${at}" for at, name in enumerate(columns, 2))
    await connection.execute(f"UPDATE sessions SET {settings} WHERE id = ANY($1::uuid[])", made, *columns.values())
    return made


async def depend(connection: Connection, session: SessionId, on: SessionId, condition: str = "success") -> None:
    await connection.execute("INSERT INTO session_dependencies VALUES ($1, $2, $3)", session, on, condition)


async def settle_all(database: Database) -> None:
    """As the loop does, until nothing follows."""
    anything = True
    while anything:
        async with database.transaction() as connection:
            anything = (await resolve(connection, now=NOW)).anything


async def work(database: Database, session: SessionId, exit_code: int | None, seq: int) -> None:
    """Placed, brought up, done with this exit code, and gone."""
    async with database.transaction() as connection:
        await plan_and_place(connection)
    await report(database, session, "RUNNING", seq)
    finished = exit_record("finished", "It is done.", exit_code=exit_code, finished=True)
    await report(database, session, "EXITED", seq + 1, exit=finished)
    await report(database, session, "GONE", seq + 2)


async def report(database: Database, session: SessionId, observed: str, seq: int, **more: Any) -> None:
    async with database.transaction() as connection:
        main = (await row_of_main(connection, session))["id"]
        [kernel] = [k for k in await kernels_of(connection, session) if k["id"] == main]
        fact = await fact_of(connection, session, observed, seq, **more)
    changed = {"kernel_id": kernel["id"].hex, "attempt": kernel["attempt"], "generation": kernel["generation"]}
    await tell(database, "a", type(fact)(**{**fact.pack(), **changed}))


async def row_of_main(connection: Connection, session: SessionId) -> dict[str, Any]:
    row = await connection.fetchrow(
        "SELECT k.* FROM sessions s JOIN kernels k ON k.id = s.main_kernel_id WHERE s.id = $1", session
    )
    assert row is not None
    return dict(row)


# -- dependencies ----------------------------------------------------------------------------------------------------------
async def test_what_waits_is_not_placed_before_all_of_it_holds(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        first, second, last = await batches(connection, 3, max_wait_seconds=60.0, expires_at=None)
        await depend(connection, last, first)
        await depend(connection, last, second)
    await work(database, first, 0, 10)
    await settle_all(database)
    async with database.transaction() as connection:
        assert (await plan_and_place(connection)).sessions == ()
    assert (await row_of(database, last))["expires_at"] is None  # it does not wait for room yet
    await work(database, second, 0, 10)
    await settle_all(database)
    row = await row_of(database, last)
    assert (row["unmet"], row["expires_at"], row["status_reason"]) == (0, NOW + timedelta(seconds=60), None)
    async with database.transaction() as connection:
        assert (await plan_and_place(connection)).sessions == (last,)
    assert [event["session_id"] for event in await events_of(database, "session.unblocked")] == [last]


async def test_a_failure_ends_all_that_wait_for_it_and_is_named(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        train, evaluate, publish, clean = await batches(connection, 4)
        await connection.execute(
            "UPDATE sessions s SET name = n.name FROM unnest($1::uuid[], $2::text[]) n(id, name) WHERE s.id = n.id",
            [train, evaluate, publish, clean],
            ["train", "evaluate", "publish", "clean"],
        )
        await depend(connection, evaluate, train)
        await depend(connection, publish, evaluate)
        await depend(connection, clean, train, "end")
        await connection.execute("UPDATE sessions SET priority = 90 WHERE id = $1", train)
    await work(database, train, 3, 10)
    await settle_all(database)
    skipped = await row_of(database, evaluate)
    assert (skipped["status"], skipped["result"]) == ("CANCELLED", "FAILURE")
    assert skipped["status_reason"] == "dependency_failed: 'train' ended with exit code 3"
    assert (await row_of(database, publish))["status_reason"] == (
        "dependency_failed: 'train' ended with exit code 3; 'evaluate' was not run because of it"
    )
    async with database.transaction() as connection:
        assert (await plan_and_place(connection)).sessions == (clean,)


async def test_a_skipped_one_that_is_restarted_waits_again(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        train, evaluate = await batches(connection, 2)
        await depend(connection, evaluate, train)
    await work(database, train, 1, 10)
    await settle_all(database)
    for one in (train, evaluate):
        await destroy(database, one, Event.RESTART)
    assert (await row_of(database, evaluate))["unmet"] == 1
    await settle_all(database)
    assert await status_of(database, evaluate) == "PENDING"


async def test_a_pipeline_goes_through_the_loops_without_waiting_for_any_tick(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=64000, mem=65536)
    agents = ScriptedAgents("a")
    async with manager(database, agents, Clock()) as made:
        async with database.transaction() as connection:
            chain = await batches(connection, 8)
            for one, before in zip(chain[1:], chain, strict=False):
                await depend(connection, one, before)
        made.herald.announce("queue")
        for at, one in enumerate(chain):
            await made.is_in("RUNNING", one)
            assert [await status_of(database, later) for later in chain[at + 1 :]] == ["PENDING"] * (7 - at)
            finished = exit_record("finished", "It is done.", exit_code=0, finished=True)
            async with database.reader() as connection:
                agents._seq += 1
                fact = await fact_of(connection, one, "EXITED", agents._seq, exit=finished)
            await made.control.ingest.on_facts(next(iter(agents.names)), [fact])
            await made.is_in("TERMINATED", one)


# -- time ----------------------------------------------------------------------------------------------------------------
async def test_a_session_is_not_placed_before_its_time_and_the_loop_wakes_for_it(database: Database) -> None:
    clock = Clock()
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [later] = await add_sessions(connection)
        await connection.execute(
            "UPDATE sessions SET starts_at = $2 WHERE id = $1", later, NOW + timedelta(seconds=0.7)
        )
    scheduler = Scheduler(database, Outbox(), clock=clock)  # type: ignore[arg-type]
    assert await scheduler.step() == 0.7
    assert await status_of(database, later) == "PENDING"
    clock.turn(seconds=0.7)
    assert await scheduler.step() is None
    assert await status_of(database, later) == "SCHEDULED"


async def test_a_placing_that_comes_too_early_is_refused_by_the_statement(database: Database) -> None:
    """The plan may be a moment old; what it says is checked again on the locked row."""
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        first, second = await add_sessions(connection, 2)
        seen = await snapshot(connection, now=NOW)
        await depend(connection, first, second)
        await connection.execute("UPDATE sessions SET starts_at = $2 WHERE id = $1", second, NOW + timedelta(hours=1))
        placed = await place(connection, plan(seen, NOW).placements, now=NOW)
    assert placed.conflicts == {first: "not_pending", second: "not_pending"}


async def test_work_that_takes_too_long_has_failed(database: Database) -> None:
    clock = Clock()
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [slow] = await batches(connection, batch_timeout_seconds=30.0, timeout_seconds=3600.0)
        await plan_and_place(connection)
    await report(database, slow, "RUNNING", 10)
    deadlines = Deadlines(database, Outbox(), clock=clock)  # type: ignore[arg-type]
    assert await deadlines.step() == 30.0
    clock.turn(seconds=30)
    await deadlines.step()
    row = await row_of(database, slow)
    assert (row["status"], row["result"]) == ("TERMINATING", "FAILURE")
    assert row["status_reason"] == "batch_timeout: its work was not done within 30 s"
    await report(database, slow, "GONE", 11)
    assert await status_of(database, slow) == "TERMINATED"


# -- retries -------------------------------------------------------------------------------------------------------------
async def test_failed_work_is_tried_again_later_and_later(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [flaky] = await batches(connection, max_retries=2, retry_delay_seconds=10.0, max_wait_seconds=60.0)
        await connection.execute(
            "INSERT INTO quotas (scope, scope_id, name, max_amount) SELECT 'user', user_id::text, 'sessions', 1 FROM sessions"
        )
        await connection.execute(
            "INSERT INTO quota_uses (session_id, scope, scope_id, name, amount)"
            " SELECT id, 'user', user_id::text, 'sessions', 1 FROM sessions"
        )
    await work(database, flaky, 7, 10)
    row = await row_of(database, flaky)
    assert (row["status"], row["attempt"], row["retries"], row["result"]) == ("PENDING", 2, 1, "UNDEFINED")
    assert row["status_reason"] == "try 1 of 3 failed (exit code 7); try 2 follows in 10 s"
    assert (row["starts_at"], row["expires_at"]) == (NOW + timedelta(seconds=10), NOW + timedelta(seconds=70))
    async with database.transaction() as connection:
        assert (await plan_and_place(connection)).sessions == ()
        assert (await plan_and_place(connection, row["starts_at"])).sessions == (flaky,)
    await report(database, flaky, "RUNNING", 20)
    await report(database, flaky, "FAILED", 21, exit=exit_record("killed", "Gone."))
    await report(database, flaky, "GONE", 22)
    row = await row_of(database, flaky)
    assert (row["status"], row["retries"]) == ("PENDING", 2)
    assert row["starts_at"] == NOW + timedelta(seconds=20)
    async with database.transaction() as connection:
        await connection.execute("UPDATE sessions SET starts_at = NULL")
    await work(database, flaky, 7, 30)
    row = await row_of(database, flaky)
    assert (row["status"], row["result"], row["exit_code"], row["attempt"]) == ("TERMINATED", "FAILURE", 7, 3)
    async with database.reader() as connection:
        assert len({kernel["id"] for kernel in await kernels_of(connection, flaky)}) == 3
        assert await connection.fetchval("SELECT used FROM quotas") == 0
    await assert_slots_add_up(database)


async def test_work_that_succeeds_is_not_tried_again(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [fine] = await batches(connection, max_retries=2)
    await work(database, fine, 0, 10)
    row = await row_of(database, fine)
    assert (row["status"], row["result"], row["attempt"]) == ("TERMINATED", "SUCCESS", 1)


async def test_dependants_wait_for_the_last_try(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        flaky, after = await batches(connection, 2, max_retries=1)
        await depend(connection, after, flaky)
    await work(database, flaky, 1, 10)
    await settle_all(database)
    assert [await status_of(database, one) for one in (flaky, after)] == ["PENDING", "PENDING"]
    await work(database, flaky, 0, 20)
    await settle_all(database)
    assert (await row_of(database, after))["unmet"] == 0


async def test_a_destroyed_one_is_not_tried_again(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [flaky] = await batches(connection, max_retries=5)
        await plan_and_place(connection)
    await report(database, flaky, "RUNNING", 10)
    await destroy(database, flaky)
    finished = exit_record("finished", "It is done.", exit_code=1, finished=True)
    await report(database, flaky, "EXITED", 11, exit=finished)
    await report(database, flaky, "GONE", 12)
    assert await status_of(database, flaky) == "TERMINATED"


async def test_the_output_of_a_failed_try_is_taken_over_while_the_next_one_runs(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        [flaky] = await batches(connection, max_retries=1)
    await work(database, flaky, 1, 10)
    async with database.transaction() as connection:
        [run] = await connection.fetch("SELECT run_id, kernel_id FROM executions")
        assert run["run_id"] == run["kernel_id"]
        await connection.execute("UPDATE executions SET status = 'done', finished_at = $1", NOW)
        found = await wanting(connection, [AgentId("a")], now=NOW, limit=10)
    assert [one["run_id"] for one in found] == [run["run_id"]]


async def test_a_restart_does_not_count_the_wait_for_others(database: Database) -> None:
    async with database.transaction() as connection:
        await add_agent(connection, "a")
        train, evaluate = await batches(connection, 2, max_wait_seconds=60.0)
        await depend(connection, evaluate, train)
    await destroy(database, evaluate)
    async with database.transaction() as connection:
        user_id = (await row_of(database, evaluate))["user_id"]
        sessions = SessionRepository(connection, user_id, now=NOW, cause=TEST)
        session = await sessions.get(evaluate)
        kernels = once_more(await sessions.kernel_specs(session), uuid4)
        await sessions.restart(session, kernels)
    row = await row_of(database, evaluate)
    assert (row["status"], row["expires_at"]) == ("PENDING", None)
    assert row["status_reason"].startswith("waits for")
