"""Worker sessions are made of apps, called, looked at and kept alive, each by whoever may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest

from actions import (
    CallAppAction,
    CancelCallAction,
    CreateFromParamsAction,
    DeleteCallAction,
    ExecuteSessionAction,
    FollowCallAction,
    GetCallAction,
    KeepaliveSessionAction,
    ListCallsAction,
    ModifySessionAction,
    StartCallAction,
)
from agent.wire import RunRead
from domain.apps import MOST_INPUT_BYTES
from domain.errors import (
    AgentUnavailable,
    AppEnded,
    AppNotFound,
    CallNotFound,
    Conflict,
    FunctionUnknown,
    IdempotencyMismatch,
    InputTooLarge,
    InvalidConfiguration,
    InvalidRequest,
    MoorageError,
    NameTaken,
    NotAWorker,
    PermissionDenied,
    ResourceExhausted,
    RunnerLost,
    SessionEnded,
    SessionExpired,
    SessionNotFound,
    SessionNotReady,
)
from domain.session import Status
from repositories.database import Database
from tests.agent.fake import FakeAgent, Run
from tests.scenario import (
    ALICE,
    CALL,
    ID,
    MALLORY,
    NOW,
    ROOT,
    WATCHER,
    NotApplicable,
    Outbox,
    TestScenario,
    a_call,
    a_row,
    a_session,
    a_worker,
    an_app,
    scenarios,
    stage,
    wrong,
)


def script(*runs: Run) -> Callable[[FakeAgent], None]:
    return lambda agent: agent.script.extend(runs)


def there(run: Run) -> Callable[[FakeAgent], None]:
    """The call of the stage is a run at its host."""

    def put(agent: FakeAgent) -> None:
        run.mode = "call"
        agent.runs[str(CALL)] = run

    return put


def refusing(error: MoorageError, *, once: bool = False) -> Callable[[FakeAgent], None]:
    def refuse(agent: FakeAgent) -> None:
        asked = agent._asked

        def ask(name: str, *arguments: Any) -> None:
            asked(name, *arguments)
            if not (once and len(agent.calls) > 1):
                raise error

        agent._asked = ask  # type: ignore[method-assign]

    return refuse


def start(**fields: Any) -> StartCallAction:
    return StartCallAction(**{"session_name": "train", "input": {"x": 1}, **fields})


EXPIRED: Final = a_row(
    "status_history", session_id=ID, version=2, source="RUNNING", event="expire", target="TERMINATING", at=NOW
)
FAILED: Final = Run().say("error", {"ename": "ValueError", "evalue": "no", "traceback": ["a", "b"]}).end(1)
COUNTED: Final = "workers train: call_count 0 -> 1"
#: What a call leaves that was delivered and answered.
CALLED: Final = ("+calls run", "+executions call", COUNTED)
WAITS: Final = ("+calls run", "workers train: open_calls 0 -> 1")


@scenarios(
    StartCallAction,
    success=TestScenario(
        given=(a_worker(),),
        do=start(),
        answer=lambda a: (
            (a.call.status, a.call.output, a.call.input, a.call.error) == ("completed", {"x": 1}, {"x": 1}, None)
            and a.call.finished_at is not None
        ),
        then_rows=CALLED,
        then_agent=("execute",),
    ),
    stranger=TestScenario(
        given=(a_worker(),), do=start(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_worker(Status.TERMINATED),), do=start(), error=SessionNotFound, then_audit="session_not_found"
    ),
    not_found=TestScenario(do=start(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_worker(),), do=start(function="no such"), error=InvalidRequest, then_audit=None),
    more={
        "an_exception_is_told": TestScenario(
            given=(a_worker(),),
            do=start(),
            agent=script(FAILED),
            answer=lambda a: (a.call.status, a.call.error["ename"], a.call.output) == ("failed", "ValueError", None),
            then_rows=CALLED,
            then_agent=("execute",),
        ),
        "an_app_that_dies_fails_its_call": TestScenario(
            given=(a_worker(),),
            do=start(),
            agent=script(Run().end(None, reason="out_of_memory", signal=9)),
            answer=lambda a: (a.call.status, a.call.error["code"]) == ("failed", "resource_exhausted"),
            then_rows=CALLED,
            then_agent=("execute",),
        ),
        "partials_and_progress_are_counted": TestScenario(
            given=(a_worker(),),
            do=start(),
            agent=script(
                Run()
                .say("result", {"partial": 1})
                .say("result", {"progress": {"at": 0.5}})
                .say("result", {"partial": 2})
                .say("result", {"output": None})
                .end()
            ),
            answer=lambda a: (a.call.partials, a.call.progress, a.call.output) == (2, {"at": 0.5}, None),
            then_rows=CALLED,
            then_agent=("execute",),
        ),
        "what_is_asked_before_the_app_is_ready_waits": TestScenario(
            given=(a_worker(ready=False),),
            do=start(wait=0),
            answer=lambda a: a.call.status == "queued",
            then_rows=WAITS,
        ),
        "what_is_asked_while_it_queues_waits_too": TestScenario(
            given=(a_worker(Status.PENDING, ready=False),),
            do=start(wait=0),
            answer=lambda a: a.call.status == "queued",
            then_rows=WAITS,
        ),
        "a_call_without_end_goes_on_by_itself": TestScenario(
            given=(a_worker(),),
            do=start(wait=0),
            agent=script(Run().say("stdout", b"at it")),
            answer=lambda a: a.call.status == "running",
            then_rows=("+calls run", "+executions call", "workers train: open_calls 0 -> 1"),
            then_agent=("execute",),
        ),
        "nothing_overtakes_what_waits": TestScenario(
            given=(a_worker(), a_call(run=False)),
            do=start(wait=0),
            answer=lambda a: a.call.status == "queued",
            then_rows=("+calls run", "workers train: open_calls 1 -> 2"),
        ),
        "a_session_that_has_expired_says_so": TestScenario(
            given=(a_worker(Status.TERMINATING), EXPIRED), do=start(), error=SessionExpired, then_audit=None
        ),
        "one_that_has_ended_says_so": TestScenario(
            given=(a_worker(Status.TERMINATED),),
            do=start(session_name=str(ID)),
            error=SessionEnded,
            then_audit=None,
        ),
        "other_sessions_are_not_called": TestScenario(
            given=(a_session(),), do=start(), error=NotAWorker, then_audit=None
        ),
        "functions_that_are_not_named_are_not_called": TestScenario(
            given=(a_worker(app={"functions": ["train"]}),), do=start(), error=FunctionUnknown, then_audit=None
        ),
        "an_input_that_is_too_large": TestScenario(
            given=(a_worker(),), do=start(input="x" * (MOST_INPUT_BYTES - 1)), error=InputTooLarge, then_audit=None
        ),
        "what_its_host_refuses_never_runs": TestScenario(
            given=(a_worker(),),
            do=start(),
            agent=refusing(ResourceExhausted()),
            error=ResourceExhausted,
            then_rows=CALLED,
            then_agent=("execute",),
        ),
        "what_came_of_it_when_the_runner_was_lost_is_asked": TestScenario(
            given=(a_worker(),),
            do=start(),
            agent=refusing(RunnerLost(), once=True),
            answer=lambda a: a.call.status == "completed",
            then_rows=CALLED,
            then_agent=("execute", "execute"),
        ),
        "an_administrator_calls_anybodys": TestScenario(
            given=(a_worker(),),
            do=start(session_name=str(ID)),
            by=ROOT,
            answer=lambda a: a.call.status == "completed",
            then_rows=CALLED,
            then_agent=("execute",),
        ),
    },
)
async def test_start_call(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_the_same_key_makes_one_call(database: Database) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_worker(), fake=fake)
    first = await processor.run(start(), by=ALICE, key="once")
    again = await processor.run(start(), by=ALICE, key="once")
    assert again.call == first.call
    assert [call[0] for call in fake.calls] == ["execute"]
    with pytest.raises(IdempotencyMismatch):
        await processor.run(start(input=2), by=ALICE, key="once")


async def test_the_same_key_has_the_answer_also_when_the_call_ended_its_session(database: Database) -> None:
    processor = await stage(database, a_worker())
    first = await processor.run(start(session_name=str(ID)), by=ALICE, key="once")
    async with database.reader() as connection:
        await connection.execute("UPDATE sessions SET status = 'TERMINATING'")
    again = await processor.run(start(session_name=str(ID)), by=ALICE, key="once")
    assert again.call == first.call
    with pytest.raises(SessionEnded):
        await processor.run(start(session_name=str(ID)), by=ALICE, key="another")
    with pytest.raises(SessionEnded):
        await processor.run(start(session_name=str(ID)), by=ALICE)


async def test_a_call_that_came_too_late_is_told_so_again(database: Database) -> None:
    fake = FakeAgent()
    fake.fails_with = AppEnded()
    processor = await stage(database, a_worker(), fake=fake)
    for _ in range(2):
        with pytest.raises(SessionEnded):
            await processor.run(start(), by=ALICE, key="once")
    assert len(fake.calls) == 1


async def test_who_asks_for_a_while_is_answered_then_also_by_an_app_that_never_stops_talking(
    database: Database,
) -> None:
    class Talking(FakeAgent):
        def _read(self, run_id: str, from_seq: int, max_bytes: int) -> RunRead:
            self.runs[run_id].say("result", {"progress": {"at": 0.5}})
            assert len(self.runs[run_id].records) < 1000, "it is read on and on"
            return super()._read(run_id, from_seq, max_bytes)

    fake = Talking()
    fake.script.append(Run())
    processor = await stage(database, a_worker(), fake=fake)
    async with asyncio.timeout(20):
        told = await processor.run(start(wait=0), by=ALICE)
    assert (told.call.status, told.call.progress) == ("running", {"at": 0.5})


async def test_who_waits_for_a_call_that_is_cancelled_meanwhile_is_told(database: Database) -> None:
    class Heard(Outbox):
        def __init__(self) -> None:
            super().__init__()
            self.waiting = asyncio.Event()

        @contextmanager
        def watching(self, _session_id: Any, wake: Callable[[], None]) -> Iterator[None]:
            self.wake = wake
            self.waiting.set()
            yield

        def announce(self, topic: str, *ids: Any) -> None:
            if topic == "sessions":
                self.wake()

    outbox = Heard()
    processor = await stage(database, a_worker(ready=False), a_call(run=False), outbox=outbox)
    waiting = asyncio.create_task(processor.run(GetCallAction(call_id=CALL, wait=60), by=ALICE))
    async with asyncio.timeout(20):
        await outbox.waiting.wait()
        await until_idle(database)
        await processor.run(CancelCallAction(call_id=CALL), by=ALICE)
        assert (await waiting).call.status == "cancelled"


async def until_idle(database: Database) -> None:
    """The waiting one has looked, and listens."""
    while database._pool.get_idle_size() + len(database._idle) < database._pool.get_size():
        await asyncio.sleep(0.01)


async def test_a_call_ends_the_idle_time_and_its_end_begins_it_anew(database: Database) -> None:
    processor = await stage(database, a_worker(), fake=(fake := FakeAgent()))
    fake.script.append(run := Run().say("stdout", b"at it"))

    async def idle_until() -> Any:
        async with database.reader() as connection:
            return await connection.fetchval("SELECT idle_until_at FROM workers")

    assert await idle_until() == NOW + timedelta(seconds=60)
    made = await processor.run(start(wait=0), by=ALICE)
    assert await idle_until() is None
    fake.runs[str(made.call.id)].records, fake.runs[str(made.call.id)].status = run.records, run.status
    fake.runs[str(made.call.id)].say("result", {"output": 5}).end()
    done = await processor.run(GetCallAction(call_id=made.call.id), by=ALICE)
    assert (done.call.status, done.call.output) == ("completed", 5)
    assert done.call.finished_at is not None
    assert await idle_until() == done.call.finished_at + timedelta(seconds=60)


# -- executions of mode call -------------------------------------------------------------------------------------------
async def test_an_execution_of_mode_call_is_a_call(database: Database) -> None:
    processor = await stage(database, a_worker())
    ran = await processor.run(ExecuteSessionAction(session_name="train", mode="call", input=[1]), by=ALICE)
    assert (ran.status, ran.exit_code, ran.results) == ("done", 0, [{"output": [1]}])
    found = await processor.run(GetCallAction(call_id=ran.run_id), by=ALICE)
    assert (found.call.status, found.call.output) == ("completed", [1])


async def test_it_takes_no_code(database: Database) -> None:
    processor = await stage(database, a_worker())
    with pytest.raises(InvalidRequest):
        await processor.run(ExecuteSessionAction(session_name="train", mode="call", code="1"), by=ALICE)


async def test_an_execution_waits_for_the_app_too(database: Database) -> None:
    processor = await stage(database, a_worker(ready=False))
    waits = await processor.run(ExecuteSessionAction(session_name="train", mode="call", wait=0.0), by=ALICE)
    assert (waits.status, waits.results) == ("queued", [])


# -- lists and looks -----------------------------------------------------------------------------------------------------
@scenarios(
    ListCallsAction,
    success=TestScenario(
        given=(a_worker(), a_call()),
        do=ListCallsAction(session_name="train"),
        answer=lambda a: [(c.id, c.status, c.input) for c in a.items] == [(CALL, "running", None)],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_worker(), a_call()),
        do=ListCallsAction(session_name="train"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=NotApplicable("they are listed in every status"),
    not_found=TestScenario(
        do=ListCallsAction(session_name="train"), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(
        given=(a_worker(),), do=ListCallsAction(session_name="train", cursor="?"), error=InvalidRequest, then_audit=None
    ),
    more={
        "one_runs_and_the_others_wait": TestScenario(
            given=(a_worker(), a_call(), a_call(id=UUID(int=9), run=False, created_at=NOW + timedelta(seconds=1))),
            do=ListCallsAction(session_name="train"),
            answer=lambda a: [c.status for c in a.items] == ["queued", "running"],
            then_audit=None,
        ),
    },
)
async def test_list_calls(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


OVER: Final = a_call(
    run=False, status="completed", output="[1]", finished_at=NOW, started_at=NOW, reason="finished", partials=2
)
ENDED: Final = {
    "code": "session_ended",
    "ename": "SessionEnded",
    "evalue": "The session ended before the call: gone",
    "traceback": [],
}
CRASHED: Final = {
    "code": "runner_lost",
    "ename": "crashed",
    "evalue": "The app's process ended while it was at work on the call.",
    "traceback": [],
}
get: Final = GetCallAction(call_id=CALL)


@scenarios(
    GetCallAction,
    success=TestScenario(
        given=(a_worker(Status.TERMINATED), OVER),
        do=get,
        answer=lambda a: (a.call.status, a.call.output, a.call.input, a.call.partials) == ("completed", [1], 1, 2),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_worker(), OVER), do=get, by=MALLORY, error=CallNotFound, then_audit="call_not_found"
    ),
    wrong_status=NotApplicable("a call is looked at whatever its session's status"),
    not_found=TestScenario(do=get, error=CallNotFound, then_audit="call_not_found"),
    bad_input=TestScenario(do=GetCallAction(call_id=wrong("x")), error=InvalidRequest, then_audit=None),
    more={
        "its_end_is_noticed_by_whoever_looks": TestScenario(
            given=(a_worker(), a_call()),
            do=get,
            agent=there(Run().say("result", {"output": 2}).end()),
            answer=lambda a: (a.call.status, a.call.output) == ("completed", 2),
            then_rows=(
                "calls run: output null -> 2",
                "calls run: reason null -> finished",
                "calls run: status open -> completed",
                COUNTED,
                "workers train: open_calls 1 -> 0",
            ),
            then_agent=("execute",),
            then_audit=None,
        ),
        "progress_is_told": TestScenario(
            given=(a_worker(), a_call()),
            do=get,
            agent=there(Run().say("result", {"progress": {"at": 1}}).say("result", {"partial": 0})),
            answer=lambda a: (a.call.status, a.call.progress, a.call.partials) == ("running", {"at": 1}, 1),
            then_agent=("execute",),
            then_audit=None,
        ),
        "an_administrators_look_is_on_record": TestScenario(
            given=(a_worker(), OVER), do=get, by=ROOT, answer=lambda a: a.call.output == [1]
        ),
        "a_monitors_too": TestScenario(given=(a_worker(), OVER), do=get, by=WATCHER),
        "a_call_of_a_session_that_ended_before_it": TestScenario(
            given=(a_worker(Status.TERMINATED, status_reason="gone"), a_call(run=False)),
            do=get,
            answer=lambda a: (a.call.status, a.call.error["code"]) == ("failed", "session_ended"),
            then_rows=(
                f"calls run: error null -> {json.dumps(ENDED, separators=(',', ':'))}",
                "calls run: reason null -> session_ended",
                "calls run: status open -> failed",
                COUNTED,
                "workers train: open_calls 1 -> 0",
            ),
            then_audit=None,
        ),
        "what_ended_a_session_ended_its_call": TestScenario(
            given=(a_worker(Status.ERROR, status_reason="its app crashed"), a_call(sent_at=None)),
            do=get,
            agent=there(Run().end(137, reason="crashed", signal=9)),
            answer=lambda a: (
                (a.call.status, a.call.reason, a.call.error["code"]) == ("failed", "crashed", "runner_lost")
            ),
            then_rows=(
                f"calls run: error null -> {json.dumps(CRASHED, separators=(',', ':'))}",
                "calls run: reason null -> crashed",
                "calls run: status open -> failed",
                COUNTED,
                "workers train: open_calls 1 -> 0",
            ),
            then_agent=("execute",),
            then_audit=None,
        ),
    },
)
async def test_get_call(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


follow: Final = FollowCallAction(call_id=CALL)


@scenarios(
    FollowCallAction,
    success=TestScenario(given=(a_worker(), a_call()), do=follow, answer=lambda a: a.call_id == CALL, then_audit=None),
    stranger=TestScenario(
        given=(a_worker(), OVER), do=follow, by=MALLORY, error=CallNotFound, then_audit="call_not_found"
    ),
    wrong_status=NotApplicable("a call is looked at whatever its session's status"),
    not_found=TestScenario(do=follow, error=CallNotFound, then_audit="call_not_found"),
    bad_input=TestScenario(do=FollowCallAction(call_id=wrong("x")), error=InvalidRequest, then_audit=None),
)
async def test_follow_call(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_an_output_that_nobody_can_read_keeps_nobody_from_looking(database: Database) -> None:
    over = a_call(run=False, status="completed", output="[" * 5000 + "]" * 5000, finished_at=NOW, reason="finished")
    processor = await stage(database, a_worker(), over)
    found = await processor.run(get, by=ALICE)
    assert (found.call.status, found.call.output) == ("completed", None)


async def test_what_is_followed_ends_with_the_call(database: Database) -> None:
    fake = FakeAgent()
    there(Run().say("stdout", b"hello").say("result", {"output": 7}).end())(fake)
    processor = await stage(database, a_worker(), a_call(), fake=fake)
    follower = await processor.run(follow, by=ALICE)
    reads = [read async for read in follower.reads()]
    assert reads[-1].done is not None
    assert (await follower.result()).output == 7


async def test_who_follows_brings_to_the_host_what_has_just_become_a_run(database: Database) -> None:
    fake = FakeAgent()
    script(Run().say("result", {"output": 7}).end())(fake)
    processor = await stage(database, a_worker(), a_call(), fake=fake)
    follower = await processor.run(follow, by=ALICE)
    assert [read async for read in follower.reads()][-1].done is not None
    assert fake.calls[0][0] == "execute"
    assert (await follower.result()).output == 7


cancel: Final = CancelCallAction(call_id=CALL)
NEVER_RUN: Final = (
    "calls run: reason null -> interrupted",
    "calls run: status open -> cancelled",
    "workers train: open_calls 1 -> 0",
)


@scenarios(
    CancelCallAction,
    success=TestScenario(
        given=(a_worker(ready=False), a_call(run=False)),
        do=cancel,
        answer=lambda a: (a.call.status, a.call.reason) == ("cancelled", "interrupted"),
        then_rows=NEVER_RUN,
    ),
    stranger=TestScenario(
        given=(a_worker(), OVER), do=cancel, by=MALLORY, error=CallNotFound, then_audit="call_not_found"
    ),
    wrong_status=TestScenario(given=(a_worker(), OVER), do=cancel, answer=lambda a: a.call.status == "completed"),
    not_found=TestScenario(do=cancel, error=CallNotFound, then_audit="call_not_found"),
    bad_input=TestScenario(do=CancelCallAction(call_id=wrong("x")), error=InvalidRequest, then_audit=None),
    more={
        "one_that_runs_is_interrupted": TestScenario(
            given=(a_worker(), a_call()),
            do=cancel,
            agent=there(Run().say("stdout", b"at it")),
            answer=lambda a: (a.call.status, a.call.cancelling) == ("running", True),
            then_agent=("interrupt", "execute"),
        ),
        "what_its_host_cannot_be_told_now_it_is_told_later": TestScenario(
            given=(a_worker(), a_call()),
            do=cancel,
            agent=refusing(AgentUnavailable()),
            answer=lambda a: (a.call.status, a.call.cancelling) == ("running", True),
            then_agent=("interrupt", "execute"),
        ),
        "monitors_only_look": TestScenario(
            given=(a_worker(), OVER), do=cancel, by=WATCHER, error=PermissionDenied, then_audit="permission_denied"
        ),
    },
)
async def test_cancel_call(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


delete: Final = DeleteCallAction(call_id=CALL)


@scenarios(
    DeleteCallAction,
    success=TestScenario(given=(a_worker(), OVER), do=delete, then_rows=("-calls run",)),
    stranger=TestScenario(
        given=(a_worker(), OVER), do=delete, by=MALLORY, error=CallNotFound, then_audit="call_not_found"
    ),
    wrong_status=TestScenario(given=(a_worker(), a_call()), do=delete, error=Conflict, then_audit=None),
    not_found=TestScenario(do=delete, error=CallNotFound, then_audit="call_not_found"),
    bad_input=TestScenario(do=DeleteCallAction(call_id=wrong("x")), error=InvalidRequest, then_audit=None),
    more={
        "monitors_only_look": TestScenario(
            given=(a_worker(), OVER), do=delete, by=WATCHER, error=PermissionDenied, then_audit="permission_denied"
        ),
        "also_when_its_session_has_ended": TestScenario(
            given=(a_worker(Status.TERMINATED), OVER), do=delete, then_rows=("-calls run",)
        ),
    },
)
async def test_delete_call(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


keep: Final = KeepaliveSessionAction(session_name="train")


@scenarios(
    KeepaliveSessionAction,
    success=TestScenario(
        given=(a_worker(),), do=keep, answer=lambda a: a.session_data.expires_at == NOW + timedelta(seconds=61)
    ),
    stranger=TestScenario(
        given=(a_worker(),), do=keep, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_worker(Status.TERMINATING), EXPIRED), do=keep, error=SessionExpired, then_audit=None
    ),
    not_found=TestScenario(do=keep, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(do=KeepaliveSessionAction(session_name=wrong(7)), error=InvalidRequest, then_audit=None),
    more={
        "one_that_is_called_has_no_idle_time": TestScenario(
            given=(a_worker(), a_call()), do=keep, answer=lambda a: a.session_data.expires_at is None
        ),
        "one_that_does_not_run_yet": TestScenario(
            given=(a_worker(Status.PENDING, ready=False),), do=keep, error=SessionNotReady, then_audit=None
        ),
        "other_sessions_are_used_by_it": TestScenario(given=(a_session(),), do=keep),
    },
)
async def test_keepalive_session(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- sessions of apps ----------------------------------------------------------------------------------------------------
MADE: Final = ("+kernels train", "+sessions train", "+status_history train create PENDING", "+workers train")
once: Final = CallAppAction(app="blur", input=5)


@scenarios(
    CallAppAction,
    success=TestScenario(
        given=(an_app(),),
        do=once,
        answer=lambda a: (a.call.status, a.call.input) == ("queued", 5),
        then_rows=(
            "+calls run",
            "+kernels session-000000abc000",
            "+sessions session-000000abc000",
            "+status_history session-000000abc000 create PENDING",
            "+workers session-000000abc000",
        ),
    ),
    stranger=TestScenario(given=(an_app(),), do=once, by=MALLORY, error=AppNotFound, then_audit="app_not_found"),
    wrong_status=NotApplicable("there is no session yet"),
    not_found=TestScenario(do=once, error=AppNotFound, then_audit="app_not_found"),
    bad_input=TestScenario(do=CallAppAction(app="blur", function=""), error=InvalidRequest, then_audit=None),
    more={
        "nothing_is_left_of_what_is_refused": TestScenario(
            given=(an_app(functions=["train"]),), do=once, error=FunctionUnknown, then_audit=None
        ),
    },
)
async def test_call_app(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def create(**fields: Any) -> CreateFromParamsAction:
    return CreateFromParamsAction(**{"name": "train", "app": "blur", **fields})


CREATIONS: Final = {
    "all_that_its_app_says": TestScenario(
        given=(an_app(environ={"A": "1", "B": "2"}, resource_slots={"cpu": 2, "mem": 512}),),
        do=create(environ={"B": "3"}),
        answer=lambda a: (
            (a.session_data.app.name, a.session_data.app.version, a.session_data.session_type) == ("blur", 1, "worker")
            and a.session_data.environ == {"A": "1", "B": "3"}
            and dict(a.session_data.requested_slots) == {"cpu": 2000, "mem": 512}
            and (a.session_data.idle_timeout, a.session_data.ready_at) == (60, None)
        ),
        then_rows=MADE,
    ),
    "what_is_asked_goes_over_it": TestScenario(
        given=(an_app(resource_slots={"cpu": 2, "mem": 512}),),
        do=create(app="blur@1", idle_timeout=300, resource_slots={"cpu": 1, "mem": 1024}),
        answer=lambda a: (a.session_data.idle_timeout, a.session_data.requested_slots["cpu"]) == (300, 1000),
        then_rows=MADE,
    ),
    "an_app_that_is_not_there": TestScenario(do=create(), error=AppNotFound, then_audit="app_not_found"),
    "a_version_that_is_not_there": TestScenario(
        given=(an_app(),), do=create(app="blur@2"), error=AppNotFound, then_audit="app_not_found"
    ),
    "a_worker_without_an_app": TestScenario(
        do=create(app=None, image="python", session_type="worker"), error=InvalidConfiguration, then_audit=None
    ),
    "neither_app_nor_image": TestScenario(do=create(app=None), error=InvalidRequest, then_audit=None),
    "a_batch_session_of_an_app": TestScenario(
        given=(an_app(),), do=create(session_type="batch"), error=InvalidConfiguration, then_audit=None
    ),
    "an_idle_timeout_that_is_too_short": TestScenario(
        given=(an_app(),), do=create(idle_timeout=0.5), error=InvalidConfiguration, then_audit=None
    ),
    "never_anew_by_itself": TestScenario(
        given=(an_app(),), do=create(on_agent_lost="replace"), error=InvalidConfiguration, then_audit=None
    ),
    "a_live_one_of_the_same_app_is_reused": TestScenario(
        given=(an_app(), a_worker()),
        do=create(reuse_if_exists=True),
        answer=lambda a: not a.created and a.session_data.id == ID,
    ),
    "one_of_another_version_is_not": TestScenario(
        given=(an_app(version=2), a_worker()), do=create(reuse_if_exists=True), error=NameTaken, then_audit=None
    ),
}


@pytest.mark.parametrize("scenario", [pytest.param(row, id=name) for name, row in CREATIONS.items()])
async def test_sessions_of_apps(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_what_is_left_changes_with_the_idle_timeout(database: Database) -> None:
    processor = await stage(database, a_worker())
    changed = await processor.run(ModifySessionAction(session_name="train", idle_timeout=10), by=ALICE)
    assert changed.session_data.expires_at == NOW + timedelta(seconds=10)
    with pytest.raises(InvalidConfiguration):
        await processor.run(ModifySessionAction(session_name="train", idle_timeout=0), by=ALICE)


def test_a_call_is_told_to_the_runner_as_json() -> None:
    from actions.calling import call_code

    assert json.loads(call_code("run", '{"a":[1,"\\u0000"]}')) == {"function": "run", "input": {"a": [1, "\0"]}}
