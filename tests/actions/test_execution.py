"""What happens when code is run, fed, stopped, and read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from actions import (
    CompleteAction,
    ExecuteSessionAction,
    FollowExecutionAction,
    InterruptAction,
    KillExecutionAction,
    ListExecutionsAction,
    ReadExecutionAction,
)
from domain.errors import (
    AgentUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    NotWaitingForInput,
    PermissionDenied,
    RunNotFound,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
)
from domain.session import Status
from repositories.database import Database
from tests.agent.fake import FakeAgent, Run, record
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOW,
    OTHER_ID,
    ROOT,
    RUN_ID,
    WATCHER,
    NotApplicable,
    TestScenario,
    a_run,
    a_session,
    new_id,
    scenarios,
    stage,
    wrong,
)

#: The run that an execution without an Idempotency-Key makes.
FIRST = str(new_id(0))
MIB = 1 << 20


def execute(**fields: Any) -> ExecuteSessionAction:
    return ExecuteSessionAction(**{"session_name": "train", "code": "print(1)", **fields})


def runs_as(*runs: Run) -> Callable[[FakeAgent], None]:
    """What comes of the next executions."""
    return lambda fake: fake.script.extend(runs)


def knows(run: Run, run_id: UUID = RUN_ID) -> Callable[[FakeAgent], None]:
    """A run that was started before."""
    return lambda fake: fake.runs.update({str(run_id): run})


def away(fake: FakeAgent) -> None:
    fake.fails_with = AgentUnavailable()


def printed(stdout: str = "", stderr: str = "") -> Run:
    run = Run()
    for kind, text in (("stdout", stdout), ("stderr", stderr)):
        if text:
            run.say(kind, text.encode())
    return run


def asking() -> Run:
    run = printed("hello\n").say("input_request", {"prompt": "name? ", "password": False})
    run.status = "waiting_input"
    return run


def nine_mebibytes() -> Run:
    run = Run()
    for number in range(9):
        run.say("stdout", b"%d" % number * MIB)
    return run.end()


BUNDLE = {"text/plain": "2", "image/png": "aGk="}
DIVIDED = {"ename": "ZeroDivisionError", "evalue": "1/0", "traceback": ["..."]}


@scenarios(
    ExecuteSessionAction,
    success=TestScenario(
        given=(a_session(),),
        agent=runs_as(printed("1\n", "careful\n").end()),
        do=execute(),
        answer=lambda a: (
            (a.status, a.exit_code, a.reason, a.stdout, a.stderr, a.error, a.truncated, a.next_seq)
            == ("done", 0, "finished", "1\n", "careful\n", None, False, 4)
            and a.result["run_id"] == FIRST
            and (a.started_at, a.finished_at) == (1.0, 2.0)
        ),
        then_rows=("+executions query",),
        then_agent=("execute",),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=execute(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PENDING),), do=execute(), error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=execute(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=execute(code="a\0b"), error=InvalidRequest, then_audit=None),
    more={
        "a_shell_command": TestScenario(
            given=(a_session(),),
            agent=runs_as(Run().end(3)),
            do=execute(mode="batch", code="exit 3"),
            answer=lambda a: a.exit_code == 3,
            then_rows=("+executions batch",),
            then_agent=("execute",),
        ),
        "a_degraded_session_answers": TestScenario(
            given=(a_session(Status.RUNNING_DEGRADED),),
            do=execute(),
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "an_ended_session_says_so": TestScenario(
            given=(a_session(Status.TERMINATED),),
            do=execute(session_name=str(ID)),
            error=SessionEnded,
            then_audit=None,
        ),
        "an_ending_session_says_so": TestScenario(
            given=(a_session(Status.TERMINATING),), do=execute(), error=SessionEnded, then_audit=None
        ),
        "a_monitor_runs_nothing": TestScenario(
            given=(a_session(),),
            do=execute(session_name=str(ID)),
            by=WATCHER,
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "an_administrator_runs_code_for_the_owner": TestScenario(
            given=(a_session(),),
            do=execute(owner_access_key=ALICE.access_key),
            by=ROOT,
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "an_unknown_mode": TestScenario(
            given=(a_session(),), do=execute(mode="shout"), error=InvalidRequest, then_audit=None
        ),
        "an_error_of_the_code_is_an_answer": TestScenario(
            given=(a_session(),),
            agent=runs_as(Run().say("error", DIVIDED).end(1)),
            do=execute(),
            answer=lambda a: (a.exit_code, a.error["ename"], "code" in a.error) == (1, "ZeroDivisionError", False),
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "a_timeout_is_named_and_keeps_the_output": TestScenario(
            given=(a_session(),),
            agent=runs_as(printed("so far\n").end(None, reason="timeout", signal=9)),
            do=execute(timeout=0.5),
            answer=lambda a: (
                (a.reason, a.signal, a.exit_code, a.stdout, a.error["code"])
                == ("timeout", 9, None, "so far\n", "execution_timeout")
            ),
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "running_out_of_memory_is_named": TestScenario(
            given=(a_session(),),
            agent=runs_as(printed("so far\n").end(None, reason="out_of_memory", signal=9)),
            do=execute(),
            answer=lambda a: (a.error["code"], a.stdout) == ("resource_exhausted", "so far\n"),
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "a_lost_runner_is_named": TestScenario(
            given=(a_session(),),
            agent=runs_as(Run().end(None, reason="worker_lost")),
            do=execute(),
            answer=lambda a: a.error["code"] == "runner_lost",
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "results_are_mime_bundles_whatever_is_sent": TestScenario(
            given=(a_session(),),
            agent=runs_as(Run().say("result", BUNDLE).say("result", b"\xffnot json").end()),
            do=execute(),
            answer=lambda a: a.results == [BUNDLE, {}],
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "it_does_not_wait_longer_than_asked": TestScenario(
            given=(a_session(),),
            agent=runs_as(printed("tick\n")),
            do=execute(wait=0),
            answer=lambda a: (a.status, a.stdout, a.exit_code, a.next_seq) == ("running", "tick\n", None, 2),
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "a_run_that_asks_comes_back_at_once": TestScenario(
            given=(a_session(),),
            agent=runs_as(asking()),
            do=execute(),
            answer=lambda a: (a.status, a.input_request["prompt"]) == ("waiting_input", "name? "),
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
        "input_feeds_a_run_and_waits_for_its_end": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(asking()),
            do=execute(mode="input", run_id=RUN_ID, code="you", from_seq=3),
            answer=lambda a: (a.run_id, a.status, a.stdout) == (RUN_ID, "done", "got you"),
            then_agent=("input", "read"),
            then_audit=None,
        ),
        "input_needs_a_run": TestScenario(
            given=(a_session(),), do=execute(mode="input"), error=InvalidRequest, then_audit=None
        ),
        "input_for_a_run_of_another_session": TestScenario(
            given=(a_session(), a_session(id=OTHER_ID, name="other"), a_run(OTHER_ID)),
            do=execute(mode="input", run_id=RUN_ID),
            error=RunNotFound,
            then_audit="run_not_found",
        ),
        "input_for_a_run_that_is_over": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(Run().end()),
            do=execute(mode="input", run_id=RUN_ID),
            error=NotWaitingForInput,
            then_agent=("input",),
            then_audit=None,
        ),
        "continue_reads_on": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(printed("old\n", "new\n").end()),
            do=execute(mode="continue", run_id=RUN_ID, from_seq=2),
            answer=lambda a: (a.stdout, a.stderr, a.exit_code) == ("", "new\n", 0),
            then_agent=("read",),
            then_audit=None,
        ),
        "one_answer_holds_eight_mebibytes": TestScenario(
            given=(a_session(),),
            agent=runs_as(nine_mebibytes()),
            do=execute(),
            answer=lambda a: (
                (len(a.stdout), a.truncated, a.status, a.next_seq, a.exit_code) == (8 * MIB, True, "done", 9, None)
            ),
            then_rows=("+executions query",),
            then_agent=("execute", *("read",) * 7),
        ),
        "an_agent_that_is_away_leaves_the_intent_on_record": TestScenario(
            given=(a_session(),),
            agent=away,
            do=execute(),
            error=AgentUnavailable,
            then_rows=("+executions query",),
            then_agent=("execute",),
        ),
    },
)
async def test_execute(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_the_same_key_attaches_to_the_same_run(database: Database) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_session(), fake=fake)
    first = await processor.run(execute(wait=0), by=ALICE, key="once")
    again = await processor.run(execute(wait=0), by=ALICE, key="once")
    assert again == first
    assert len({run_id for _, run_id, *_ in fake.calls}) == 1
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM executions") == 1
        assert await connection.fetchval("SELECT count(*) FROM audit") == 1
        assert await connection.fetchval("SELECT count(*) FROM events WHERE type = 'execution.started'") == 1


async def test_what_an_earlier_attempt_began_is_not_begun_again(database: Database) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_session(), fake=fake)
    await processor.run(execute(wait=0), by=ALICE, key="once")
    async with database.reader() as connection:
        await connection.execute("UPDATE sessions SET attempt = 2")
    again = await processor.run(execute(wait=0), by=ALICE, key="once")
    assert (again.status, again.stdout) == ("done", "print(1)")
    assert [name for name, *_ in fake.calls] == ["execute", "read"]


async def test_another_persons_key_is_another_run(database: Database) -> None:
    processor = await stage(database, a_session())
    mine = await processor.run(execute(), by=ALICE, key="once")
    theirs = await processor.run(execute(session_name=str(ID)), by=ROOT, key="once")
    assert mine.run_id != theirs.run_id


@pytest.mark.parametrize("change", [{"code": "print(2)"}, {"timeout": 5.0}, {"mode": "batch"}, {"opts": {"a": 1}}])
async def test_the_same_key_for_other_code_is_refused(database: Database, change: dict[str, Any]) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_session(), fake=fake)
    await processor.run(execute(), by=ALICE, key="once")
    with pytest.raises(IdempotencyMismatch) as refused:
        await processor.run(execute(**change), by=ALICE, key="once")
    assert refused.value.http_status == 422
    assert len(fake.calls) == 1


async def test_what_was_truncated_is_read_on(database: Database) -> None:
    fake = FakeAgent()
    fake.script.append(nine_mebibytes())
    processor = await stage(database, a_session(), fake=fake)
    head = await processor.run(execute(), by=ALICE)
    rest = await processor.run(execute(mode="continue", code="", run_id=head.run_id, from_seq=head.next_seq), by=ALICE)
    assert (rest.stdout, rest.status, rest.exit_code, rest.truncated) == ("8" * MIB, "done", 0, False)


# -- reading -----------------------------------------------------------------------------------------------------------
#: A run whose session has ended, so that its last output has been taken over.
KEPT = a_run(
    status="done",
    finished_at=NOW,
    exit_code=0,
    reason="finished",
    last_seq=6,
    tail=record(4, "stdout", b"four\n") + record(5, "stdout", b"\xff\n") + record(6, "done", {}),
)


def read(**fields: Any) -> ReadExecutionAction:
    return ReadExecutionAction(**{"session_name": str(ID), "run_id": RUN_ID, **fields})


def kinds(answer: Any) -> list[str]:
    return [record["kind"] for record in answer.records]


@scenarios(
    ReadExecutionAction,
    success=TestScenario(
        given=(a_session(), a_run()),
        agent=knows(printed("hi\n", "oh\n").end()),
        do=read(),
        answer=lambda a: (
            kinds(a) == ["stdout", "stderr", "done"]
            and a.records[0] == {"seq": 1, "kind": "stdout", "time": 0.0, "text": "hi\n"}
            and (a.status, a.exit_code, a.reason, a.next_seq, a.gap) == ("done", 0, "finished", 4, None)
        ),
        then_agent=("read",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(), a_run()), do=read(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("output stays readable in every status"),
    not_found=TestScenario(given=(a_session(),), do=read(), error=RunNotFound, then_audit="run_not_found"),
    bad_input=TestScenario(given=(a_session(), a_run()), do=read(from_seq=-1), error=InvalidRequest, then_audit=None),
    more={
        "only_what_is_new": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(printed("hi\n", "oh\n").end()),
            do=read(from_seq=2),
            answer=lambda a: kinds(a) == ["stderr", "done"],
            then_agent=("read",),
            then_audit=None,
        ),
        "a_running_one_has_no_end_yet": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(printed("hi\n")),
            do=read(),
            answer=lambda a: (a.status, a.exit_code, a.next_seq, a.finished_at) == ("running", None, 2, None),
            then_agent=("read",),
            then_audit=None,
        ),
        "to_the_byte_when_asked": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(Run().say("stdout", b"\xff\x00")),
            do=read(binary=True),
            answer=lambda a: a.records[0]["base64"] == "/wA=",
            then_agent=("read",),
            then_audit=None,
        ),
        "from_the_kept_tail_when_the_agent_is_away": TestScenario(
            given=(a_session(Status.TERMINATED), KEPT),
            agent=away,
            do=read(),
            answer=lambda a: (
                kinds(a) == ["stdout", "stdout", "done"]
                and [r.get("text") for r in a.records] == ["four\n", "\ufffd\n", None]
                and (a.gap, a.next_seq, a.status, a.exit_code) == ((1, 3), 7, "done", 0)
            ),
            then_agent=("read",),
            then_audit=None,
        ),
        "from_the_middle_of_the_kept_tail": TestScenario(
            given=(a_session(Status.TERMINATED), KEPT),
            agent=away,
            do=read(from_seq=5),
            answer=lambda a: kinds(a) == ["stdout", "done"] and a.gap is None,
            then_agent=("read",),
            then_audit=None,
        ),
        "a_piece_of_the_kept_tail": TestScenario(
            given=(a_session(Status.TERMINATED), KEPT),
            agent=away,
            do=read(from_seq=4, max_bytes=5),
            answer=lambda a: kinds(a) == ["stdout"] and a.next_seq == 5,
            then_agent=("read",),
            then_audit=None,
        ),
        "from_the_kept_tail_when_the_agent_has_forgotten_it": TestScenario(
            given=(a_session(Status.TERMINATED), KEPT),
            do=read(from_seq=6),
            answer=lambda a: kinds(a) == ["done"],
            then_agent=("read",),
            then_audit=None,
        ),
        "an_agent_that_is_away_with_nothing_kept": TestScenario(
            given=(a_session(), a_run()),
            agent=away,
            do=read(),
            error=AgentUnavailable,
            then_agent=("read",),
            then_audit=None,
        ),
        "a_monitor_may_look_and_that_is_on_record": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(Run().end()),
            do=read(),
            by=WATCHER,
            then_agent=("read",),
        ),
    },
)
async def test_read_execution(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def follow(**fields: Any) -> FollowExecutionAction:
    return FollowExecutionAction(**{"session_name": str(ID), "run_id": RUN_ID, **fields})


@scenarios(
    FollowExecutionAction,
    success=TestScenario(
        given=(a_session(), a_run()), do=follow(), answer=lambda a: a.run_id == RUN_ID, then_audit=None
    ),
    stranger=TestScenario(
        given=(a_session(), a_run()), do=follow(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("output stays readable in every status"),
    not_found=TestScenario(given=(a_session(),), do=follow(), error=RunNotFound, then_audit="run_not_found"),
    bad_input=TestScenario(given=(a_session(), a_run()), do=follow(run_id="7"), error=InvalidRequest, then_audit=None),
)
async def test_follow_execution(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_following_goes_on_to_the_end_over_an_absence(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, run = FakeAgent(), printed("one\n")
    knows(run)(fake)
    processor = await stage(database, a_session(), a_run(), fake=fake)
    follower = await processor.run(follow(), by=ALICE)

    async def it_comes_back_finished(_service: object, _seconds: float) -> None:
        fake.fails_with = None
        run.say("stdout", b"two\n").end()

    monkeypatch.setattr(type(follower.call.service), "sleep", it_comes_back_finished)
    reads = follower.reads()
    first = await anext(reads)
    away(fake)
    second = await anext(reads)
    assert b"one\n" in first.records
    assert b"two\n" in second.records
    assert b"one\n" not in second.records
    assert second.done == run.done
    assert [read async for read in reads] == []


LATER = UUID(int=RUN_ID.int + 1)
BOTH = (a_session(), a_run(), a_run(run_id=LATER, mode="batch", started_at=NOW.replace(hour=13)))


@scenarios(
    ListExecutionsAction,
    success=TestScenario(
        given=BOTH,
        do=ListExecutionsAction(session_name="train"),
        answer=lambda a: (
            [(run.run_id, run.mode) for run in a.items] == [(LATER, "batch"), (RUN_ID, "query")]
            and a.next_cursor is None
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=BOTH,
        do=ListExecutionsAction(session_name=str(ID)),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=NotApplicable("the list stays there in every status"),
    not_found=TestScenario(
        do=ListExecutionsAction(session_name="train"), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(
        given=BOTH,
        do=ListExecutionsAction(session_name="train", cursor="nonsense"),
        error=InvalidRequest,
        then_audit=None,
    ),
)
async def test_list_executions(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_pages_of_executions_leave_nothing_out(database: Database) -> None:
    processor = await stage(database, *BOTH)
    first = await processor.run(ListExecutionsAction(session_name="train", limit=1), by=ALICE)
    second = await processor.run(
        ListExecutionsAction(session_name="train", limit=1, cursor=first.next_cursor), by=ALICE
    )
    assert [run.run_id for run in (*first.items, *second.items)] == [LATER, RUN_ID]


# -- stopping ----------------------------------------------------------------------------------------------------------
@scenarios(
    InterruptAction,
    success=TestScenario(
        given=(a_session(),),
        agent=knows(Run()),
        do=InterruptAction(session_name="train"),
        answer=lambda a: a.interrupted,
        then_agent=("interrupt",),
    ),
    stranger=TestScenario(
        given=(a_session(),),
        do=InterruptAction(session_name="train"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.RESTARTING),),
        do=InterruptAction(session_name="train"),
        error=SessionNotReady,
        then_audit=None,
    ),
    not_found=TestScenario(
        given=(a_session(),),
        do=InterruptAction(session_name="train", run_id=RUN_ID),
        error=RunNotFound,
        then_audit="run_not_found",
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=InterruptAction(session_name="train", run_id=wrong("all")),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "nothing_runs": TestScenario(
            given=(a_session(),),
            agent=lambda fake: setattr(fake, "nothing_runs", True),
            do=InterruptAction(session_name="train"),
            answer=lambda a: not a.interrupted,
            then_agent=("interrupt",),
        ),
        "one_run_of_several": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(Run()),
            do=InterruptAction(session_name="train", run_id=RUN_ID),
            answer=lambda a: a.interrupted,
            then_agent=("interrupt",),
        ),
    },
)
async def test_interrupt(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


kill = KillExecutionAction(session_name="train", run_id=RUN_ID)


@scenarios(
    KillExecutionAction,
    success=TestScenario(
        given=(a_session(), a_run()),
        agent=knows(Run()),
        do=kill,
        answer=lambda a: a.killed,
        then_agent=("kill",),
    ),
    stranger=TestScenario(
        given=(a_session(), a_run()), do=kill, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATING), a_run()), do=kill, error=SessionEnded, then_audit=None
    ),
    not_found=TestScenario(given=(a_session(),), do=kill, error=RunNotFound, then_audit="run_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=KillExecutionAction(session_name="train", run_id=wrong(None)),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "what_is_given_time_is_asked_to_end_first": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(Run()),
            do=KillExecutionAction(session_name="train", run_id=RUN_ID, grace_seconds=5),
            answer=lambda a: a.killed,
            then_agent=("kill",),
        ),
        "no_time_without_end": TestScenario(
            given=(a_session(), a_run()),
            do=KillExecutionAction(session_name="train", run_id=RUN_ID, grace_seconds=601),
            error=InvalidRequest,
            then_audit=None,
        ),
        "what_is_over_cannot_be_killed": TestScenario(
            given=(a_session(), a_run()),
            agent=knows(Run().end()),
            do=kill,
            answer=lambda a: not a.killed,
            then_agent=("kill",),
        ),
    },
)
async def test_kill(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


complete = CompleteAction(session_name="train", code="impor", col=5)


def suggests_too_much(fake: FakeAgent) -> None:
    async def complete(*_: object, **__: object) -> dict[str, Any]:
        fake.calls.append(("complete",))
        return {"suggestions": ["x" * 2000] * 2000, "start": 1, "end": 2}

    fake.complete = complete  # type: ignore[method-assign]


@scenarios(
    CompleteAction,
    success=TestScenario(
        given=(a_session(),),
        do=complete,
        answer=lambda a: (a.suggestions, a.start, a.end) == (["import"], 0, 5),
        then_agent=("complete",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=complete, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PULLING),), do=complete, error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=complete, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=CompleteAction(session_name="train", code="a", row=-1),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "what_a_container_suggests_is_bounded": TestScenario(
            given=(a_session(),),
            agent=suggests_too_much,
            do=complete,
            answer=lambda a: (len(a.suggestions), len(a.suggestions[0])) == (1000, 1000),
            then_agent=("complete",),
            then_audit=None,
        ),
        "for_another_it_is_on_record": TestScenario(
            given=(a_session(),),
            do=CompleteAction(session_name=str(ID), code="a"),
            by=ROOT,
            then_agent=("complete",),
        ),
    },
)
async def test_complete(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
