"""Worker sessions on the manager's side: apps are brought and loaded, every call ends, and idle ones end in time."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from agent.wire import RunDone
from domain.apps import load_run_id
from domain.errors import AgentUnavailable, AppEnded
from domain.ids import AgentId, RunId
from domain.session import Status
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from manager.reconciler import Deadlines
from manager.workers import CAUSE, Workers
from repositories.calls import CallRepository
from repositories.database import Database
from repositories.runs_done import finish_runs
from repositories.workers import loading, unsettled
from tests.agent.fake import FakeAgent, Run
from tests.control.fakes import Clock
from tests.scenario import (
    APP,
    CALL,
    HOST,
    ID,
    NOW,
    Given,
    a_call,
    a_row,
    a_worker,
    an_app,
    kernel_of,
    people_and_a_host,
)

LOAD = load_run_id(ID, 1)
ARCHIVED: dict[str, Any] = {"path": None}
CHUNKS = tuple(a_row("app_chunks", app_id=APP, version=1, number=n, content=c) for n, c in enumerate((b"app.", b"py")))


class Silent:
    """A herald whom nobody hears: the loops below are stepped by hand."""

    def announce(self, topic: str, *ids: object) -> None: ...


async def put(database: Database, *given: Given) -> None:
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        for one in given:
            await one.put(connection)


def loop(database: Database, fake: FakeAgent, clock: Clock) -> Workers:
    return Workers(database, cast(Herald, Silent()), cast(ConnectedAgents, fake), clock=clock)


async def turn(*workers: Workers) -> None:
    """One step of each, and all that it has begun."""
    for one in workers:
        await one.step()
    await asyncio.gather(*(task for one in workers for task in tuple(one._at_work.values())))


async def tell(database: Database, run_id: Any, *, exit_code: int = 0, now: datetime = NOW, **said: Any) -> None:
    """The host says that a run is over."""
    done = RunDone(
        run_id=str(run_id),
        kernel_id=str(kernel_of(ID)),
        attempt=1,
        started_at=1.0,
        finished_at=2.0,
        exit_code=exit_code,
        **said,
    )
    async with database.transaction() as connection:
        await finish_runs(connection, [(AgentId(HOST), done)], now=now)


async def value(database: Database, sql: str) -> Any:
    async with database.reader() as connection:
        return await connection.fetchval(sql)


def asked(fake: FakeAgent) -> list[Any]:
    return [(call[0], *call[2:3]) if call[0] == "execute" else call[0] for call in fake.calls]


# -- loading ---------------------------------------------------------------------------------------------------------------
async def test_an_app_is_brought_loaded_and_ready(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, an_app(**ARCHIVED), *CHUNKS, a_worker(ready=False, app=ARCHIVED))
    workers = loop(database, fake, clock)
    await turn(workers)
    assert asked(fake) == ["unpack", ("execute", "load")]
    assert fake.files == {"/home/work/app/app.py": b""}
    assert json.loads(fake.calls[-1][3])["path"] == "/home/work/app"
    assert await value(database, "SELECT ready_at FROM workers") is None
    await tell(database, LOAD, now=NOW + timedelta(seconds=3))
    assert await value(database, "SELECT ready_attempt FROM workers") == 1
    assert await value(database, "SELECT idle_until_at FROM workers") == NOW + timedelta(seconds=63)
    await turn(workers)
    assert len(fake.calls) == 2, "and nothing more is asked"


async def test_of_several_managers_one_brings_it(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, an_app(**ARCHIVED), *CHUNKS, a_worker(ready=False, app=ARCHIVED))
    await turn(*(loop(database, fake, clock) for _ in range(3)))
    assert asked(fake).count("unpack") == 1
    assert list(fake.runs) == [str(LOAD)]


async def test_another_manager_goes_on_when_the_first_is_no_more(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, an_app(), a_worker(ready=False))
    async with database.reader() as connection:
        await connection.execute("UPDATE workers SET claimed_until = $1", NOW + timedelta(seconds=10))
    workers = loop(database, fake, clock)
    await turn(workers)
    assert fake.calls == []
    clock.turn(seconds=10)
    await turn(workers)
    assert asked(fake) == [("execute", "load")]


async def test_what_takes_long_to_bring_is_brought_by_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.workers._CLAIM_SECONDS", 0.3)
    clock, there = Clock(NOW), asyncio.Event()

    class Slow(FakeAgent):
        async def unpack(self, *where: Any, **more: Any) -> dict[str, int]:
            await there.wait()
            return await super().unpack(*where, **more)

    fake = Slow()
    await put(database, an_app(**ARCHIVED), *CHUNKS, a_worker(ready=False, app=ARCHIVED))
    bringing = loop(database, fake, clock)
    await bringing.step()
    claimed = "SELECT claimed_until FROM workers"
    async with asyncio.timeout(20):
        while await value(database, claimed) is None:
            await asyncio.sleep(0.02)
        clock.turn(seconds=3)
        while await value(database, claimed) < clock.now:  # it is renewed
            await asyncio.sleep(0.02)
    await loop(database, fake, clock).step()
    there.set()
    await turn(bringing)
    assert asked(fake) == ["unpack", ("execute", "load")]
    assert await value(database, "SELECT claimed_until FROM workers") is None


async def test_a_session_that_was_started_anew_does_not_end_for_its_last_attempt(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, an_app(), a_worker(ready=False))
    workers = loop(database, fake, clock)
    await turn(workers)
    await tell(database, LOAD, exit_code=1)
    async with database.transaction() as connection:
        [failed] = await loading(connection, now=NOW)
        await connection.execute("UPDATE sessions SET attempt = 2")
    await workers._end_unloaded(failed)
    assert await value(database, "SELECT status FROM sessions") == "RUNNING"


async def test_a_load_that_nobody_knows_the_fate_of_is_asked_for_again(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, an_app(), a_worker(ready=False))
    fake.fails_with = AgentUnavailable()
    await turn(loop(database, fake, clock))
    fake.fails_with = None
    await turn(loop(database, fake, clock))
    assert asked(fake) == [("execute", "load")] * 2
    assert await value(database, "SELECT count(*) FROM executions") == 1


async def test_an_app_that_does_not_load_ends_its_session_with_its_own_error(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    failed = {"ename": "ModuleNotFoundError", "evalue": "No module named 'x'", "traceback": ["here"]}
    fake.script.append(Run().say("error", failed).end(1))
    await put(database, an_app(), a_worker(ready=False), a_call(run=False))
    workers = loop(database, fake, clock)
    await turn(workers)
    await tell(database, LOAD, exit_code=1)
    await turn(workers)
    assert await value(database, "SELECT status FROM sessions") == "TERMINATING"
    said = "the app could not be loaded: ModuleNotFoundError: No module named 'x'"
    assert await value(database, "SELECT status_reason FROM sessions") == said
    assert json.loads(await value(database, "SELECT error FROM calls")) == {"code": "app_not_loaded", **failed}
    assert await value(database, "SELECT open_calls FROM workers") == 0


async def test_a_setup_without_end_is_named(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    fake.script.append(Run().end(None, reason="timeout"))
    await put(database, an_app(), a_worker(ready=False, app={"setup_timeout": 5.0}))
    workers = loop(database, fake, clock)
    await turn(workers)
    await tell(database, LOAD, exit_code=1, reason="timeout")
    await turn(workers)
    assert "its setup took longer than 5 s" in await value(database, "SELECT status_reason FROM sessions")


async def test_a_hostile_archive_ends_the_session(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    hostile = a_row("app_chunks", app_id=APP, version=1, number=0, content=b"../../etc/passwd")
    await put(database, an_app(**ARCHIVED), hostile, a_worker(ready=False, app=ARCHIVED))
    await turn(loop(database, fake, clock))
    assert asked(fake) == ["unpack"]
    assert "the app's archive was refused" in await value(database, "SELECT status_reason FROM sessions")


# -- calls -----------------------------------------------------------------------------------------------------------------
async def test_calls_that_waited_are_delivered_once_the_app_is_ready(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(ready=False), a_call(run=False))
    workers = loop(database, fake, clock)
    await turn(workers)
    assert asked(fake) == [("execute", "load")]
    await tell(database, LOAD)
    assert await value(database, "SELECT idle_until_at FROM workers") is None, "for it is called"
    await turn(workers)
    assert asked(fake)[1:] == [("execute", "call")]
    await tell(database, CALL)
    await turn(workers)
    assert await value(database, "SELECT (status, output) FROM calls") == ("completed", "1")
    assert await value(database, "SELECT idle_until_at FROM workers") == NOW + timedelta(seconds=60)
    assert await value(database, "SELECT call_count FROM workers") == 1


async def test_they_are_sent_in_the_order_in_which_they_were_asked(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    later = [a_call(run=False, id=UUID(int=number), created_at=NOW + timedelta(seconds=number)) for number in (3, 1, 2)]
    await put(database, a_worker(), a_call(run=False), *later)
    await turn(loop(database, fake, clock), loop(database, fake, clock))
    first = list(fake.runs)
    assert first == [str(CALL), *(str(UUID(int=number)) for number in (1, 2, 3))]
    assert await value(database, "SELECT count(*) FROM calls WHERE sent_at IS NULL") == 0


async def test_nothing_overtakes_what_another_manager_is_about_to_send(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    later = a_call(run=False, id=UUID(int=1), created_at=NOW + timedelta(seconds=1))
    await put(database, a_worker(), a_call(run=False), later)
    async with database.transaction() as connection:
        queue = await unsettled(connection, now=NOW)
        assert (
            await CallRepository(connection, now=NOW, cause=CAUSE).deliver(RunId(CALL)) is not None
        )  # and it dies here
    await loop(database, fake, clock)._send(ID, queue)
    assert list(fake.runs) == [str(CALL), str(UUID(int=1))]


async def test_many_long_calls_do_not_hide_one_that_waits(database: Database) -> None:
    long = [a_call(id=UUID(int=number)) for number in range(1, 4)]
    waits = a_call(run=False, created_at=NOW + timedelta(seconds=9))
    await put(database, a_worker(app={"concurrency": 10}), *long, waits)
    async with database.reader() as connection:
        found = await unsettled(connection, now=NOW + timedelta(seconds=10), limit=2)
    assert found[0].id == CALL
    assert len(found) == 2


async def test_what_its_host_refuses_is_over(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(), a_call(run=False))
    fake.fails_with = AppEnded()
    await turn(loop(database, fake, clock))
    assert await value(database, "SELECT (status, reason) FROM calls") == ("failed", "session_ended")
    assert json.loads(await value(database, "SELECT error FROM calls"))["code"] == "app_ended"


async def test_a_long_call_is_neither_sent_nor_read_again_as_a_whole(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    run = fake.runs[str(CALL)] = Run(mode="call")
    for _ in range(3):
        run.say("stdout", bytes(1024 * 1024))
    await put(database, a_worker(), a_call())
    clock.turn(seconds=6)
    await turn(loop(database, fake, clock))
    assert asked(fake) == ["read"]


async def test_a_call_whose_manager_is_no_more_is_seen_to_its_end(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    fake.runs[str(CALL)] = Run(mode="call").say("result", {"output": [1]}).end()
    await put(database, a_worker(), a_call())
    await turn(loop(database, fake, clock))
    assert fake.calls == [], "it may still be answered by whoever delivered it"
    await tell(database, CALL)
    await turn(loop(database, fake, clock))
    assert await value(database, "SELECT (status, output) FROM calls") == ("completed", "[1]")


async def test_a_delivery_that_got_lost_is_made_again(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(), a_call())
    clock.turn(seconds=6)
    await turn(loop(database, fake, clock))
    assert asked(fake) == ["read", ("execute", "call")]
    assert await value(database, "SELECT status FROM calls") == "completed"


async def test_a_cancelled_call_is_interrupted_until_it_ends(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    fake.runs[str(CALL)] = Run(mode="call").say("stdout", b"at it")
    await put(database, a_worker(), a_call(cancel_at=NOW))
    clock.turn(seconds=6)
    await turn(loop(database, fake, clock))
    assert asked(fake)[0] == "interrupt"


async def test_what_waits_for_a_session_that_ended_fails(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(Status.TERMINATED, status_reason="destroyed by its owner"), a_call(run=False))
    await turn(loop(database, fake, clock))
    error = json.loads(await value(database, "SELECT error FROM calls"))
    assert (error["code"], "destroyed by its owner" in error["evalue"]) == ("session_ended", True)


async def test_a_run_that_died_with_its_host_is_given_up(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(Status.TERMINATED), a_call())
    await turn(loop(database, fake, clock))
    assert await value(database, "SELECT status FROM calls") == "open", "its host may report it yet"
    clock.turn(seconds=61)
    await turn(loop(database, fake, clock))
    assert await value(database, "SELECT (status, reason) FROM calls") == ("failed", "session_ended")
    assert await value(database, "SELECT open_calls FROM workers") == 0


async def test_a_new_attempt_begins_without_the_calls_of_the_one_before(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(attempt=2), a_call(run=False))
    await turn(loop(database, fake, clock))
    assert await value(database, "SELECT status FROM calls") == "failed"
    assert asked(fake) == [("execute", "load")], "for what was loaded was the one before"


# -- the end ---------------------------------------------------------------------------------------------------------------
async def test_an_idle_session_ends_exactly_when_its_time_is_over(database: Database) -> None:
    clock = Clock(NOW)
    await put(database, a_worker())
    deadlines = Deadlines(database, cast(Herald, Silent()), clock=clock)
    assert await deadlines.step() == pytest.approx(60.0)
    clock.turn(seconds=59.999)
    assert await deadlines.step() == pytest.approx(0.001)
    assert await value(database, "SELECT status FROM sessions") == "RUNNING"
    clock.turn(seconds=0.001)
    await deadlines.step()
    assert await value(database, "SELECT status FROM sessions") == "TERMINATING"
    assert (
        await value(database, "SELECT status_reason FROM sessions") == "nobody called it for its idle_timeout of 60 s"
    )


async def test_one_that_is_called_does_not(database: Database) -> None:
    clock = Clock(NOW)
    await put(database, a_worker(), a_call())
    deadlines = Deadlines(database, cast(Herald, Silent()), clock=clock)
    clock.turn(seconds=3600)
    assert await deadlines.step() is None
    assert await value(database, "SELECT status FROM sessions") == "RUNNING"


async def test_one_that_loads_does_not_either(database: Database) -> None:
    clock = Clock(NOW)
    await put(database, a_worker(ready=False))
    clock.turn(seconds=3600)
    assert await Deadlines(database, cast(Herald, Silent()), clock=clock).step() is None


async def test_what_has_ended_is_not_looked_at_again(database: Database) -> None:
    fake, clock = FakeAgent(), Clock(NOW)
    await put(database, a_worker(Status.TERMINATED))
    await turn(loop(database, fake, clock))
    assert await value(database, "SELECT idle_until_at FROM workers") is None
