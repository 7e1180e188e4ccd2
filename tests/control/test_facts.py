"""Facts move sessions: whoever carries them, in any order, any number of times, and only their own agent's."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from agent.wire import Fact, exit_record
from domain.session import DEADLINES, Event, Status
from repositories.database import Database
from repositories.kernels import back_off_seconds, claim, overtake, record_facts, renew_pull, try_again
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
    running,
    status_of,
    tell,
)

MANAGER = uuid4()


async def scheduled(database: Database, number: int = 1, **options: Any) -> Any:
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=10**9, mem=10**9)
        sessions = await add_sessions(connection, number, **options)
        await plan_and_place(connection)
    return sessions if number > 1 else sessions[0]


async def fact(database: Database, session_id: Any, observed: str, seq: int, **changes: Any) -> Fact:
    async with database.reader() as connection:
        return await fact_of(connection, session_id, observed, seq, **changes)


async def test_a_session_comes_up_and_goes_away_by_its_agents_words(database: Database) -> None:
    session_id = await scheduled(database)
    for seq, observed in enumerate(["PREPARING", "PULLING", "PREPARING", "RUNNING"]):
        await tell(database, "a", await fact(database, session_id, observed, seq + 1, started_at=1e9))
    assert (await row_of(database, session_id))["started_at"] == NOW
    await destroy(database, session_id)
    recorded = await tell(database, "a", await fact(database, session_id, "GONE", 9))
    assert recorded.released
    assert not recorded.intents
    assert await history_of(database, session_id) == [
        "PENDING", "SCHEDULED", "PREPARING", "PULLING", "PREPARING", "RUNNING", "TERMINATING", "TERMINATED",
    ]  # fmt: skip
    [told] = await events_of(database, "session.running")
    assert told["cause"] == {"by": "agent:a"}
    await assert_slots_add_up(database)


async def test_an_older_fact_an_equal_one_and_one_of_an_older_start_change_nothing(database: Database) -> None:
    [session_id] = await running(database)
    before = await row_of(database, session_id)
    for seq, boot_no in ((10, 1), (9, 1), (99, 0)):
        failed = await fact(database, session_id, "FAILED", seq, boot_no=boot_no)
        recorded = await tell(database, "a", failed)
        assert (recorded.accepted, recorded.changed, recorded.moved) == (0, set(), [])
    assert await row_of(database, session_id) == before
    restarted = await fact(database, session_id, "EXITED", 1, boot_no=2)
    assert (await tell(database, "a", restarted)).accepted == 1


async def test_facts_of_another_attempt_or_of_intents_never_sent_change_nothing(database: Database) -> None:
    [session_id] = await running(database)
    await destroy(database, session_id, Event.RESTART)
    old = await fact(database, session_id, "EXITED", 20, attempt=1)
    future = await fact(database, session_id, "RUNNING", 20, generation=77)
    assert (await tell(database, "a", old)).accepted == 0
    assert (await tell(database, "a", future)).accepted == 0
    assert await status_of(database, session_id) == Status.RESTARTING
    await tell(database, "a", await fact(database, session_id, "RUNNING", 21))
    assert await status_of(database, session_id) == Status.RUNNING


async def test_an_agent_cannot_speak_of_kernels_that_are_not_its_own(database: Database) -> None:
    [session_id] = await running(database)
    async with database.transaction() as connection:
        await add_agent(connection, "mallory")
        [pending] = await add_sessions(connection, architecture="none")
        kernel = (await kernels_of(connection, session_id))[0]["id"]
    before = await row_of(database, session_id)
    lies = [
        await fact(database, session_id, "GONE", 99, boot_no=9),
        await fact(database, pending, "RUNNING", 99, generation=0),
        Fact(kernel_id=uuid4().hex, attempt=1, generation=1, observed="RUNNING", boot_no=9, seq=9),
    ]
    recorded = await tell(database, "mallory", *lies)
    assert recorded.refused == [("mallory", kernel)]
    assert recorded.accepted == 0
    assert await row_of(database, session_id) == before
    assert await status_of(database, pending) == "PENDING"
    await assert_slots_add_up(database)


async def test_nonsense_is_left_out_and_the_rest_is_recorded(database: Database) -> None:
    first, second = await scheduled(database, 2)
    good = await fact(database, first, "RUNNING", 1)
    strange = await fact(
        database, second, "FAILED", 2**61,
        exit={"reason": "create_failed", "message": "a\x00b" * 100_000, "nan": float("nan"), "n": 2**80, "deep": [[{}]]},
        notices=[{"kind": "x", "message": "\x00"}, "no notice"], started_at=float("inf"), container_id="c\x00",
    )  # fmt: skip
    nonsense = [
        replace(good, kernel_id="../../etc"),
        replace(good, observed="SLEEPING"),
        replace(good, seq=2**70, observed="FAILED"),
        replace(good, generation=-1),
        replace(good, attempt="1"),  # type: ignore[arg-type]
        replace(good, observed=["RUNNING"]),  # type: ignore[arg-type]
    ]
    recorded = await tell(database, "a", *nonsense, good, strange)
    assert recorded.accepted == 2
    assert await status_of(database, first) == "RUNNING"
    assert await status_of(database, second) == "TERMINATING"


async def test_shuffled_and_doubled_facts_through_three_writers_end_right(database: Database) -> None:
    sessions = await scheduled(database, 60)
    story = ["PREPARING", "PULLING", "PREPARING", "RUNNING"]
    facts = [await fact(database, one, state, seq + 1) for one in sessions for seq, state in enumerate(story)]
    spread = [one for one in facts for _ in range(5)]
    random.Random(4).shuffle(spread)

    async def writer(mine: list[Fact]) -> None:
        for at in range(0, len(mine), 25):
            await tell(database, "a", *mine[at : at + 25])

    await asyncio.gather(*(writer(spread[number::3]) for number in range(3)))
    for one in sessions:
        history = await history_of(database, one)
        assert history[-1] == "RUNNING"
        assert len(await events_of(database, "session.running")) == 60
        assert len(history) == len(set(enumerate(history)))
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT DISTINCT observed, report_seq FROM kernels")
        assert [tuple(row) for row in rows] == [("RUNNING", 4)]


@pytest.mark.parametrize("seed", range(5))
async def test_a_restart_against_a_destroy_ends_in_one_of_both_orders(database: Database, seed: int) -> None:
    sessions = await running(database, number=10)
    order = [(one, event) for one in sessions for event in (Event.DESTROY, Event.RESTART)]
    random.Random(seed).shuffle(order)
    await asyncio.gather(*(destroy(database, one, event) for one, event in order))
    for one in sessions:
        history = (await history_of(database, one))[3:]
        assert history in (["TERMINATING"], ["RESTARTING", "TERMINATING"])
        async with database.reader() as connection:
            [kernel] = await kernels_of(connection, one)
        assert kernel["want"] == "GONE"
        assert kernel["generation"] == len(history) + 1
        # what the old attempt still says does not matter
        await tell(database, "a", await fact(database, one, "RUNNING", 11, attempt=1, generation=1))
        await tell(database, "a", await fact(database, one, "GONE", 12))
        assert await status_of(database, one) == "TERMINATED"
    await assert_slots_add_up(database)


@pytest.mark.parametrize(
    ("exit", "reason", "exit_code", "result"),
    [
        (exit_record("finished", "", exit_code=0, finished=True), "the session's work ended", 0, "SUCCESS"),
        (exit_record("finished", "", exit_code=3, finished=True), "the session's work ended", 3, "FAILURE"),
        (exit_record("out_of_memory", "limit 512 MiB", exit_code=137), "the session ran out of memory: limit 512 MiB", 137, "FAILURE"),
        (exit_record("killed", "", signal=9), "the session's container was killed", 137, "FAILURE"),
        (exit_record("runner_lost", ""), "the session's runner ended", None, "FAILURE"),
        (None, "the host says that the container is gone", None, "FAILURE"),
    ],
)  # fmt: skip
async def test_an_end_says_why(
    database: Database, exit: dict[str, Any] | None, reason: str, exit_code: int | None, result: str
) -> None:
    [session_id] = await running(database)
    recorded = await tell(database, "a", await fact(database, session_id, "EXITED", 11, exit=exit))
    assert recorded.intents
    row = await row_of(database, session_id)
    assert (row["status"], row["status_reason"], row["exit_code"], row["result"]) == (
        "TERMINATING", reason, exit_code, result,
    )  # fmt: skip
    await tell(database, "a", await fact(database, session_id, "GONE", 12, exit=exit))
    row = await row_of(database, session_id)
    assert row["status"] == ("TERMINATED" if exit and exit["finished"] else "ERROR")
    assert row["status_reason"] == reason
    await assert_slots_add_up(database)


@pytest.mark.parametrize("reason", ["image_missing", "create_failed", "bootstrap_failed", "agent_restarted"])
async def test_what_could_not_be_brought_up_ends_with_its_reason(database: Database, reason: str) -> None:
    session_id = await scheduled(database)
    failed = exit_record(reason, "the details")
    await tell(database, "a", await fact(database, session_id, "FAILED", 1, exit=failed))
    row = await row_of(database, session_id)
    assert row["status"] == "TERMINATING"
    assert row["status_reason"].endswith(": the details")
    await tell(database, "a", await fact(database, session_id, "GONE", 2, exit=failed))
    assert await history_of(database, session_id) == ["PENDING", "SCHEDULED", "TERMINATING", "ERROR"]


async def test_work_that_is_over_before_it_was_reported_ran_all_the_same(database: Database) -> None:
    session_id = await scheduled(database)
    done = exit_record("finished", "", exit_code=0, finished=True)
    await tell(database, "a", await fact(database, session_id, "EXITED", 5, exit=done))
    assert (await history_of(database, session_id))[2:] == ["RUNNING", "TERMINATING"]
    await tell(database, "a", await fact(database, session_id, "GONE", 6))
    assert (await row_of(database, session_id))["result"] == "SUCCESS"


async def test_a_worker_that_ends_degrades_and_its_return_recovers(database: Database) -> None:
    session_id = await scheduled(database, kernels=2)
    async with database.reader() as connection:
        main, worker = await kernels_of(connection, session_id)

    def said(kernel: dict[str, Any], observed: str, seq: int, **more: Any) -> Fact:
        return Fact(kernel_id=kernel["id"].hex, attempt=1, generation=1, observed=observed, boot_no=1, seq=seq, **more)

    await tell(database, "a", said(main, "RUNNING", 1))
    assert await status_of(database, session_id) == "SCHEDULED"
    await tell(database, "a", said(worker, "RUNNING", 1))
    await tell(database, "a", said(worker, "EXITED", 2, exit=exit_record("out_of_memory", "")))
    row = await row_of(database, session_id)
    assert (row["status"], row["status_reason"]) == (
        "RUNNING_DEGRADED",
        "worker container: the session ran out of memory",
    )
    await tell(database, "a", said(worker, "RUNNING", 3))
    assert await status_of(database, session_id) == "RUNNING"


async def test_notices_are_kept_once_and_change_no_version(database: Database) -> None:
    session_id = await scheduled(database)
    notice = {"kind": "bootstrap_failed", "message": "exit 1", "log_tail": "boom"}
    for seq in (1, 2, 3):
        await tell(database, "a", await fact(database, session_id, "RUNNING", seq, notices=[notice]))
    row = await row_of(database, session_id)
    assert row["notices"] == [notice]
    assert (row["version"], row["activity"]) == (3, 1)


async def test_a_fact_for_a_session_that_was_ended_by_force_frees_its_slots(database: Database) -> None:
    [session_id] = await running(database)
    await destroy(database, session_id, Event.FORCE)
    row = await row_of(database, session_id)
    await assert_slots_add_up(database)
    assert (await tell(database, "a", await fact(database, session_id, "GONE", 11))).released
    assert await row_of(database, session_id) == row
    await assert_slots_add_up(database)


async def test_progress_renews_the_deadline_of_a_pull(database: Database) -> None:
    session_id = await scheduled(database)
    seconds = DEADLINES[Status.PULLING].seconds
    await tell(database, "a", await fact(database, session_id, "PULLING", 1))
    later = NOW + timedelta(hours=1)
    await tell(database, "a", await fact(database, session_id, "PULLING", 2), now=later)
    assert (await row_of(database, session_id))["deadline_at"] == later + timedelta(seconds=seconds)
    async with database.reader() as connection:
        kernel = (await kernels_of(connection, session_id))[0]["id"]
        await renew_pull(connection, "b", kernel, now=later + timedelta(hours=9))  # type: ignore[arg-type]
        await renew_pull(connection, "a", kernel, now=later + timedelta(hours=1))  # type: ignore[arg-type]
    assert (await row_of(database, session_id))["deadline_at"] == later + timedelta(hours=1, seconds=seconds)


# -- intents -----------------------------------------------------------------------------------------------------------
async def test_an_intent_is_claimed_once_until_it_is_seen(database: Database) -> None:
    sessions = await scheduled(database, 30)

    async def claimed(now: Any = NOW, agents: Any = ("a",), limit: int = 8) -> list[Any]:
        async with database.reader() as connection:
            return await claim(connection, agents, by=MANAGER, now=now, limit=limit, claim_seconds=2)

    found = [one for batch in await asyncio.gather(*(claimed() for _ in range(6))) for one in batch]
    assert len(found) == len({one.kernel_id for one in found}) == 30
    assert await claimed() == []
    assert await claimed(NOW + timedelta(seconds=3), agents=("b",)) == []
    again = await claimed(NOW + timedelta(seconds=3), limit=100)
    assert {one.tries for one in again} == {2}
    assert {one.session_id for one in again} == set(sessions)
    assert again[0].spec is not None
    assert again[0].spec.image == "i"
    await tell(database, "a", *[await fact(database, one, "PREPARING", 1) for one in sessions])
    assert await claimed(NOW + timedelta(hours=1), limit=100) == []


async def test_a_failed_intent_is_due_again_later_unless_it_is_another_by_then(database: Database) -> None:
    session_id = await scheduled(database)
    later = NOW + timedelta(seconds=7)
    async with database.reader() as connection:

        async def claimed(now: Any) -> list[Any]:
            return await claim(connection, ["a"], by=MANAGER, now=now, limit=9, claim_seconds=2)  # type: ignore[list-item]

        [intent] = await claimed(NOW)
        await try_again(connection, intent, at=later)
        assert await claimed(NOW + timedelta(seconds=6)) == []
        [intent] = await claimed(later)
        await destroy(database, session_id)
        await try_again(connection, intent, at=later + timedelta(hours=1))  # it was about the creation
        [gone] = await claimed(NOW)
        assert (gone.want, gone.generation, gone.tries, gone.spec) == ("GONE", intent.generation + 1, 1, None)
        await overtake(connection, gone, 40, now=NOW)
        [gone] = await claimed(NOW)
        assert gone.generation == 41


def test_back_off_grows_to_its_limit_and_is_spread() -> None:
    assert [back_off_seconds(tries, 0.5) for tries in (1, 2, 3, 50)] == [0.1, 0.2, 0.4, 30.0]
    assert back_off_seconds(1, 0) < back_off_seconds(1, 0.99) < back_off_seconds(2, 0)


async def test_hundreds_of_facts_are_one_transaction(database: Database) -> None:
    sessions = await scheduled(database, 400)
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT id FROM kernels")
    facts = [
        ("a", Fact(kernel_id=row["id"].hex, attempt=1, generation=1, observed="RUNNING", boot_no=1, seq=1))
        for row in rows
    ]
    async with database.transaction() as connection:
        recorded = await record_facts(connection, facts, now=NOW)  # type: ignore[arg-type]
    assert recorded.changed == set(sessions)
    assert {moved.target for moved in recorded.moved} == {Status.RUNNING}


async def test_a_new_intent_is_due_at_once_whatever_its_writers_clock_says(database: Database) -> None:
    await scheduled(database)
    async with database.reader() as connection:
        ahead = NOW - timedelta(minutes=5)  # of a control process, seen from a door that is five minutes ahead
        assert len(await claim(connection, ["a"], by=MANAGER, now=ahead, limit=9, claim_seconds=2)) == 1  # type: ignore[list-item]
