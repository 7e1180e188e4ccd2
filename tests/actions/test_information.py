"""What is to be seen of sessions, their logs and figures, tasks and events, and by whom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import (
    CancelTaskAction,
    GetContainerLogsAction,
    GetSessionInfoAction,
    GetStatisticsAction,
    GetStatusHistoryAction,
    GetTaskAction,
    ListTasksAction,
    MatchSessionsAction,
    ReadEventsAction,
    SearchSessionsAction,
)
from domain.errors import (
    AgentUnavailable,
    InvalidRequest,
    KernelNotFound,
    PermissionDenied,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    TaskNotFound,
)
from domain.ids import SessionId
from domain.session import FINAL, Status
from repositories.database import Database
from tests.agent.fake import FakeAgent, Run
from tests.scenario import (
    ALICE,
    HOST,
    ID,
    MALLORY,
    NOBODYS_ID,
    NOW,
    OTHER_ID,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    kernel_of,
    scenarios,
    stage,
    wrong,
)

info = GetSessionInfoAction(session_name=str(ID))


@scenarios(
    GetSessionInfoAction,
    success=TestScenario(
        given=(a_session(),),
        do=GetSessionInfoAction(session_name="train"),
        answer=lambda a: (
            (a.session_info.id, a.session_info.agent, a.session_info.status) == (ID, HOST, Status.RUNNING)
            and a.session_info.occupied_slots.to_json() == {"cpu": 1, "mem": 512}
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=info, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("a session can be looked at in every status"),
    not_found=TestScenario(do=info, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(do=GetSessionInfoAction(session_name=wrong(None)), error=InvalidRequest, then_audit=None),
    more={
        **{
            f"a_{status}_one_holds_nothing": TestScenario(
                given=(a_session(status),),
                do=info,
                answer=lambda a: not a.session_info.occupied_slots,
                then_audit=None,
            )
            for status in (Status.PENDING, *sorted(FINAL))
        },
        "an_ended_one_has_no_name": TestScenario(
            given=(a_session(Status.TERMINATED),),
            do=GetSessionInfoAction(session_name="train"),
            error=SessionNotFound,
            then_audit="session_not_found",
        ),
        "of_two_of_a_name_the_live_one": TestScenario(
            given=(a_session(Status.TERMINATED), a_session(id=OTHER_ID)),
            do=GetSessionInfoAction(session_name="train"),
            answer=lambda a: a.session_info.id == OTHER_ID,
            then_audit=None,
        ),
        "a_monitor_may_look_and_that_is_on_record": TestScenario(given=(a_session(),), do=info, by=WATCHER),
        "an_administrator_may_look_by_name_of_the_owner": TestScenario(
            given=(a_session(),),
            do=GetSessionInfoAction(session_name="train", owner_access_key=ALICE.access_key),
            by=ROOT,
        ),
        "a_name_with_nul": TestScenario(
            do=GetSessionInfoAction(session_name="a\0b"), error=InvalidRequest, then_audit=None
        ),
    },
)
async def test_info(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def moved(version: int, source: Status, event: str, target: Status, seconds: int) -> Given:
    at = NOW + timedelta(seconds=seconds)
    row = {"version": version, "source": str(source), "event": event, "target": str(target), "at": at}
    return a_row("status_history", session_id=ID, **row)


history = GetStatusHistoryAction(session_name=str(ID))


@scenarios(
    GetStatusHistoryAction,
    success=TestScenario(
        given=(
            a_session(Status.TERMINATING),
            moved(3, Status.SCHEDULED, "destroy", Status.TERMINATING, 5),
            moved(2, Status.PENDING, "schedule", Status.SCHEDULED, 2),
        ),
        do=history,
        answer=lambda a: (
            [(row["status"], row["event"], row["duration_seconds"]) for row in a.status_history["history"]]
            == [("PENDING", None, 2.0), ("SCHEDULED", "schedule", 3.0), ("TERMINATING", "destroy", None)]
            and all(row["reason"] or row["event"] == "destroy" for row in a.status_history["history"])
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=history, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("the history stays there in every status"),
    not_found=TestScenario(do=history, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(do=GetStatusHistoryAction(session_name=wrong(7)), error=InvalidRequest, then_audit=None),
)
async def test_history(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- many --------------------------------------------------------------------------------------------------------------
THIRD_ID = SessionId(UUID(int=OTHER_ID.int + 1))
#: Alice's two live ones and one that has ended, and one of Root's.
SOME = (
    a_session(created_at=NOW),
    a_session(Status.PENDING, id=OTHER_ID, name="test_1", created_at=NOW + timedelta(seconds=1), tag="night"),
    a_session(Status.TERMINATED, id=THIRD_ID, name="train", created_at=NOW + timedelta(seconds=2)),
    a_session(id=NOBODYS_ID, name="trainer", owner=ROOT, created_at=NOW + timedelta(seconds=3)),
)


def found(*ids: SessionId) -> Any:
    return lambda answer: [session.id for session in answer.items] == list(ids)


def search(*ids: SessionId, by: Any = ALICE, audit: str | None = None, **fields: Any) -> TestScenario:
    return TestScenario(given=SOME, do=SearchSessionsAction(**fields), by=by, answer=found(*ids), then_audit=audit)


def no_search(error: Any, audit: str | None = None, **fields: Any) -> TestScenario:
    return TestScenario(given=SOME, do=SearchSessionsAction(**fields), error=error, then_audit=audit)


@scenarios(
    SearchSessionsAction,
    success=search(OTHER_ID, ID),
    stranger=search(by=MALLORY),
    wrong_status=NotApplicable("a list has no status"),
    not_found=search(name="nothing*"),
    bad_input=no_search(InvalidRequest, status=("SLEEPING",)),
    more={
        "all_statuses": search(THIRD_ID, OTHER_ID, ID, status=("all",)),
        "one_status_in_small_letters": search(OTHER_ID, status=("pending",)),
        "by_tag": search(OTHER_ID, tag="night"),
        "by_prefix": search(ID, name="tra"),
        "by_glob": search(OTHER_ID, name="*_?"),
        "an_underscore_is_no_wildcard": search(name="trai_"),
        "a_percent_sign_is_no_wildcard": search(name="%"),
        "another_project": search(project="secret"),
        "everybodys_for_an_administrator": search(NOBODYS_ID, OTHER_ID, ID, by=ROOT, all=True, audit="ok"),
        "everybodys_for_a_monitor": search(NOBODYS_ID, OTHER_ID, ID, by=WATCHER, all=True, audit="ok"),
        "everybodys_is_not_for_users": no_search(PermissionDenied, "permission_denied", all=True),
        "another_owners_is_on_record": search(OTHER_ID, ID, by=ROOT, owner_access_key=ALICE.access_key, audit="ok"),
        "another_owners_is_not_for_users": no_search(
            PermissionDenied, "permission_denied", owner_access_key=ROOT.access_key
        ),
        "a_cursor_of_ones_own_making": no_search(InvalidRequest, cursor="!"),
        "too_many_at_once": no_search(InvalidRequest, limit=1001),
    },
)
async def test_search(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_pages_of_sessions_leave_nothing_out(database: Database) -> None:
    processor = await stage(database, *SOME)
    seen, cursor = [], None
    for _ in range(4):
        page = await processor.run(SearchSessionsAction(status=("all",), limit=1, cursor=cursor), by=ALICE)
        seen += [session.id for session in page.items]
        cursor = page.next_cursor
    assert seen == [THIRD_ID, OTHER_ID, ID]
    assert cursor is None


def match(pattern: str, *ids: SessionId, by: Any = ALICE) -> TestScenario:
    return TestScenario(given=SOME, do=MatchSessionsAction(pattern=pattern), by=by, answer=found(*ids), then_audit=None)


@scenarios(
    MatchSessionsAction,
    success=match("t*", OTHER_ID, ID),
    stranger=match("t*", by=MALLORY),
    wrong_status=NotApplicable("only live ones are looked at"),
    not_found=match("x*"),
    bad_input=TestScenario(do=MatchSessionsAction(pattern=""), error=InvalidRequest, then_audit=None),
    more={
        "by_the_beginning_of_an_id": match(str(ID)[:8], OTHER_ID, ID),
        "by_a_whole_id": match(str(ID), ID),
        "a_backslash_is_a_backslash": match("tra\\*"),
    },
)
async def test_match(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- logs and figures --------------------------------------------------------------------------------------------------
logs = GetContainerLogsAction(session_name=str(ID))


@scenarios(
    GetContainerLogsAction,
    success=TestScenario(
        given=(a_session(),), do=logs, answer=lambda a: a.where.kernel_id == kernel_of(ID), then_audit=None
    ),
    stranger=TestScenario(
        given=(a_session(),), do=logs, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PENDING),), do=logs, error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=logs, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=GetContainerLogsAction(session_name="train", tail=-1),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "of_an_ended_session_as_well": TestScenario(given=(a_session(Status.ERROR),), do=logs, then_audit=None),
        "of_a_kernel_by_its_id": TestScenario(
            given=(a_session(),),
            do=GetContainerLogsAction(session_name="train", kernel=str(kernel_of(ID))),
            then_audit=None,
        ),
        "of_another_sessions_kernel": TestScenario(
            given=(a_session(), a_session(id=OTHER_ID, name="other", owner=ROOT)),
            do=GetContainerLogsAction(session_name="train", kernel=str(kernel_of(OTHER_ID))),
            error=KernelNotFound,
            then_audit="kernel_not_found",
        ),
    },
)
async def test_logs(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


LINES = b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, LINES),
        ({"tail": 0}, b""),
        ({"tail": 1}, b"three\n"),
        ({"tail": 2}, b"two\nthree\n"),
        ({"tail": 99}, LINES),
        ({"since": datetime.fromtimestamp(0, UTC)}, LINES),
        ({"since": NOW}, b""),
        ({"follow": True}, LINES),
    ],
)
async def test_what_the_log_shows(database: Database, asked: dict[str, Any], shown: bytes) -> None:
    fake = FakeAgent()
    fake.log = Run().say("stdout", LINES[:6]).say("stderr", LINES[6:]).end()
    processor = await stage(database, a_session(), fake=fake)
    log = await processor.run(GetContainerLogsAction(session_name="train", **asked), by=ALICE)
    assert b"".join([chunk async for chunk in log.chunks()]) == shown


figures = GetStatisticsAction(session_name=str(ID))


def fails(fake: FakeAgent) -> None:
    fake.fails_with = AgentUnavailable()


@scenarios(
    GetStatisticsAction,
    success=TestScenario(
        given=(a_session(),),
        do=figures,
        answer=lambda a: a.statistics["cpu_seconds"] == 1.5,
        then_agent=("statistics",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=figures, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.TERMINATED),), do=figures, error=SessionEnded, then_audit=None),
    not_found=TestScenario(do=figures, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(do=GetStatisticsAction(session_name=wrong(["a"])), error=InvalidRequest, then_audit=None),
    more={
        "a_monitor_may_look_and_that_is_on_record": TestScenario(
            given=(a_session(),), do=figures, by=WATCHER, then_agent=("statistics",)
        ),
        "the_host_is_away": TestScenario(
            given=(a_session(),),
            agent=fails,
            do=figures,
            error=AgentUnavailable,
            then_agent=("statistics",),
            then_audit=None,
        ),
    },
)
async def test_statistics(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- tasks -------------------------------------------------------------------------------------------------------------
TASK = UUID("33333333-0000-7000-8000-000000000001")
ROOTS_TASK = UUID("33333333-0000-7000-8000-000000000002")


def a_task(id: UUID = TASK, owner: Any = ALICE, seconds: int = 0, **columns: Any) -> Given:
    row = {"id": id, "action": "pull_image", "user_id": owner.user_id, "created_at": NOW + timedelta(seconds=seconds)}
    return a_row("tasks", **{**row, **columns})


TASKS = (a_task(), a_task(ROOTS_TASK, ROOT, 1))


def shows(*ids: UUID) -> Any:
    return lambda answer: [task.id for task in answer.items] == list(ids)


@scenarios(
    ListTasksAction,
    success=TestScenario(given=TASKS, do=ListTasksAction(), answer=shows(TASK), then_audit=None),
    stranger=TestScenario(given=TASKS, do=ListTasksAction(), by=MALLORY, answer=shows(), then_audit=None),
    wrong_status=NotApplicable("a list has no status"),
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=TestScenario(do=ListTasksAction(cursor="?"), error=InvalidRequest, then_audit=None),
    more={
        "everybodys_for_an_administrator": TestScenario(
            given=TASKS, do=ListTasksAction(), by=ROOT, answer=shows(ROOTS_TASK, TASK), then_audit=None
        ),
    },
)
async def test_list_tasks(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_pages_of_tasks_leave_nothing_out(database: Database) -> None:
    processor = await stage(database, *TASKS)
    first = await processor.run(ListTasksAction(limit=1), by=ROOT)
    second = await processor.run(ListTasksAction(limit=1, cursor=first.next_cursor), by=ROOT)
    assert [task.id for task in (*first.items, *second.items)] == [ROOTS_TASK, TASK]


@scenarios(
    GetTaskAction,
    success=TestScenario(
        given=TASKS, do=GetTaskAction(task_id=TASK), answer=lambda a: a.task.status == "queued", then_audit=None
    ),
    stranger=TestScenario(
        given=TASKS, do=GetTaskAction(task_id=TASK), by=MALLORY, error=TaskNotFound, then_audit="task_not_found"
    ),
    wrong_status=NotApplicable("a task can be looked at in every status"),
    not_found=TestScenario(do=GetTaskAction(task_id=TASK), error=TaskNotFound, then_audit="task_not_found"),
    bad_input=TestScenario(do=GetTaskAction(task_id=wrong("7")), error=InvalidRequest, then_audit=None),
    more={"a_monitor_may_look": TestScenario(given=TASKS, do=GetTaskAction(task_id=TASK), by=WATCHER, then_audit=None)},
)
async def test_get_task(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


cancel = CancelTaskAction(task_id=TASK)


@scenarios(
    CancelTaskAction,
    success=TestScenario(
        given=TASKS,
        do=cancel,
        answer=lambda a: a.task.status == "cancelled" and a.task.finished_at is not None,
        then_rows=("tasks pull_image: cancel false -> true", "tasks pull_image: status queued -> cancelled"),
    ),
    stranger=TestScenario(given=TASKS, do=cancel, by=MALLORY, error=TaskNotFound, then_audit="task_not_found"),
    wrong_status=TestScenario(
        given=(a_task(status="done", finished_at=NOW),), do=cancel, answer=lambda a: a.task.status == "done"
    ),
    not_found=TestScenario(do=cancel, error=TaskNotFound, then_audit="task_not_found"),
    bad_input=TestScenario(do=CancelTaskAction(task_id=wrong("")), error=InvalidRequest, then_audit=None),
    more={
        "a_running_one_is_told": TestScenario(
            given=(a_task(status="running"),),
            do=cancel,
            answer=lambda a: a.task.status == "running",
            then_rows=("tasks pull_image: cancel false -> true",),
        ),
        "an_administrator_cancels_anybodys": TestScenario(
            given=TASKS,
            do=cancel,
            by=ROOT,
            then_rows=("tasks pull_image: cancel false -> true", "tasks pull_image: status queued -> cancelled"),
        ),
        "a_monitor_cancels_nothing": TestScenario(
            given=TASKS, do=cancel, by=WATCHER, error=PermissionDenied, then_audit="permission_denied"
        ),
    },
)
async def test_cancel_task(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- events ------------------------------------------------------------------------------------------------------------
def an_event(seq: int, type: str, session_id: SessionId = ID, owner: Any = ALICE, domain: str = "default") -> Given:
    row = {"at": NOW, "seq": seq, "type": type, "session_id": session_id, "user_id": owner.user_id, "domain": domain}
    return a_row("events", **row)


def stamped_up_to(last: int) -> Given:
    async def put(connection: Any) -> None:
        await connection.execute("UPDATE sequencer SET last_seq = $1 WHERE name = 'events'", last)

    return Given(put=put)


TOLD = (
    a_session(),
    a_session(id=OTHER_ID, name="other", owner=ROOT),
    an_event(1, "session.pending"),
    an_event(2, "session.pending", OTHER_ID, ROOT),
    an_event(3, "session.running"),
    stamped_up_to(3),
)


def events(*seqs: int, next_seq: int = 3, by: Any = ALICE, audit: str | None = None, **fields: Any) -> TestScenario:
    return TestScenario(
        given=TOLD,
        do=ReadEventsAction(**fields),
        by=by,
        answer=lambda a: ([event.seq for event in a.items], a.next_seq) == (list(seqs), next_seq),
        then_audit=audit,
    )


@scenarios(
    ReadEventsAction,
    success=events(1, 3, after=0),
    stranger=events(by=MALLORY, after=0),
    wrong_status=NotApplicable("events have no status"),
    not_found=TestScenario(
        given=TOLD,
        do=ReadEventsAction(session=str(OTHER_ID), after=0),
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    bad_input=TestScenario(given=TOLD, do=ReadEventsAction(after=-1), error=InvalidRequest, then_audit=None),
    more={
        "it_begins_now": events(),
        "after_a_place": events(3, after=1),
        "a_page_ends_where_the_next_begins": events(1, next_seq=1, after=0, limit=1),
        "of_one_session_by_name": events(1, 3, after=0, session="train"),
        "everybodys_for_an_administrator": events(1, 2, 3, by=ROOT, after=0),
        "everybodys_for_a_monitor": events(1, 2, 3, by=WATCHER, after=0),
        "an_administrator_as_the_owner": events(1, 3, by=ROOT, after=0, owner_access_key=ALICE.access_key, audit="ok"),
        "of_a_restored_database_it_begins_anew": events(1, 3, after=2, epoch=99),
        "a_place_that_is_not_there_yet": events(after=1000),
    },
)
async def test_read_events(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
