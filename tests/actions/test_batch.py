"""Sessions that wait for others or for their time, are tried again, and leave graphs and results."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import (
    CheckAndTransitStatusAction,
    CreateFromParamsAction,
    DestroySessionAction,
    DownloadResultsAction,
    GetDependencyGraphAction,
    ModifySessionAction,
)
from actions.batch import DependsOn
from actions.inference import Serves
from domain.dependency import Condition
from domain.errors import (
    AgentUnavailable,
    DependencyCycle,
    DependencyFailed,
    DependencyNotFound,
    InvalidConfiguration,
    InvalidRequest,
    ResultsNotFound,
    SessionNotFound,
    WrongStatus,
)
from domain.ids import SessionId
from domain.resources import ResourceSlot
from domain.session import SessionTypes, Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOBODYS_ID,
    NOW,
    OTHER_ID,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    scenarios,
    stage,
    wrong,
)

THIRD_ID = SessionId(UUID("11111111-0000-7000-8000-000000000003"))
BATCH: dict[str, Any] = {"session_type": "batch", "startup_command": "true"}


def waits(session: SessionId = OTHER_ID, on: SessionId = ID, condition: str = "success", **more: Any) -> Given:
    return a_row(
        "session_dependencies", session_id=session, depends_on_id=on, condition=condition, created_at=NOW, **more
    )


def table(**rows: TestScenario) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scenario", [pytest.param(row, id=name) for name, row in rows.items()])


# -- creation ------------------------------------------------------------------------------------------------------------
def create(**changes: Any) -> CreateFromParamsAction:
    fields = {"name": "eval", "image": "python:3.9", "resource_slots": ResourceSlot(cpu=1, mem=512), **changes}
    return CreateFromParamsAction(**fields)


def batch(**changes: Any) -> CreateFromParamsAction:
    return create(session_type=SessionTypes.BATCH, startup_command="./eval.sh", **changes)


CREATED = ("+kernels eval", "+sessions eval", "+status_history eval create PENDING")
EDGE = "+session_dependencies eval <- train"


def refused(do: CreateFromParamsAction, error: type[Exception], *given: Given) -> TestScenario:
    audited = "dependency_not_found" if error is DependencyNotFound else None
    return TestScenario(given=given, do=do, error=error, then_audit=audited)  # type: ignore[arg-type]


@table(
    it_waits_for_one_that_runs=TestScenario(
        given=(a_session(**BATCH),),
        do=batch(depends_on=("train",), max_wait=60),
        answer=lambda a: (
            a.session_data.waits_for == ("train",)
            and a.session_data.status_reason == "waits for 'train'"
            and a.session_data.expires_at is None
        ),
        then_rows=(*CREATED, EDGE),
    ),
    by_id_and_on_any_end=TestScenario(
        given=(a_session(**BATCH),),
        do=create(depends_on=(DependsOn(session=str(ID), condition=Condition.END),)),
        answer=lambda a: a.session_data.waits_for == ("train",),
        then_rows=(*CREATED, EDGE),
    ),
    one_that_has_succeeded_is_not_waited_for=TestScenario(
        given=(a_session(Status.TERMINATED, result="SUCCESS", **BATCH),),
        do=batch(depends_on=("train",), max_wait=60),
        answer=lambda a: a.session_data.waits_for == () and a.session_data.expires_at == NOW + timedelta(seconds=61),
        then_rows=(*CREATED, EDGE),
    ),
    an_interactive_one_succeeds_by_ending=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=batch(depends_on=("train",)),
        answer=lambda a: a.session_data.waits_for == (),
        then_rows=(*CREATED, EDGE),
    ),
    the_live_one_of_a_name_is_meant=TestScenario(
        given=(a_session(Status.ERROR, id=OTHER_ID, result="FAILURE"), a_session(**BATCH)),
        do=batch(depends_on=("train",)),
        answer=lambda a: a.session_data.waits_for == ("train",),
        then_rows=(*CREATED, EDGE),
    ),
    one_that_has_failed_is_refused=refused(
        batch(depends_on=("train",)),
        DependencyFailed,
        a_session(Status.TERMINATED, result="FAILURE", exit_code=2, **BATCH),
    ),
    one_that_was_destroyed_is_refused=refused(
        batch(depends_on=("train",)), DependencyFailed, a_session(Status.TERMINATED, **BATCH)
    ),
    its_end_is_enough_where_that_is_asked=TestScenario(
        given=(a_session(Status.TERMINATED, result="FAILURE", exit_code=2, **BATCH),),
        do=batch(depends_on=(DependsOn(session="train", condition=Condition.END),)),
        answer=lambda a: a.session_data.waits_for == (),
        then_rows=(*CREATED, EDGE),
    ),
    anothers_is_not_there=refused(batch(depends_on=("train",)), DependencyNotFound, a_session(owner=MALLORY, **BATCH)),
    nor_is_anothers_id=refused(batch(depends_on=(str(ID),)), DependencyNotFound, a_session(owner=MALLORY, **BATCH)),
    nothing_of_this_name=refused(batch(depends_on=("train",)), DependencyNotFound),
    its_namesake_before_it=TestScenario(
        given=(a_session(Status.TERMINATED, name="eval", result="SUCCESS", **BATCH),),
        do=batch(depends_on=("eval",)),
        answer=lambda a: a.session_data.waits_for == (),
        then_rows=(*CREATED, "+session_dependencies eval <- eval"),
    ),
    not_even_itself=refused(batch(depends_on=("eval",)), DependencyNotFound),
    too_many=refused(batch(depends_on=tuple(f"s{n:04}" for n in range(101))), InvalidConfiguration),
    a_condition_that_is_none=refused(
        batch(depends_on=(wrong({"session": "train", "condition": "luck"}),)), InvalidRequest, a_session()
    ),
    it_starts_later=TestScenario(
        do=batch(starts_at=NOW + timedelta(hours=1), max_wait=60),
        answer=lambda a: (
            a.session_data.expires_at == NOW + timedelta(hours=1, seconds=60)
            and a.session_data.status_reason == "starts at 2026-03-01 13:00:00 UTC"
        ),
        then_rows=CREATED,
    ),
    a_time_that_has_passed_is_now=TestScenario(
        do=batch(starts_at=NOW - timedelta(hours=1), max_wait=60),
        answer=lambda a: a.session_data.expires_at == NOW + timedelta(seconds=61),
        then_rows=CREATED,
    ),
    a_time_without_zone=refused(batch(starts_at=datetime(2026, 3, 1, 12)), InvalidRequest),  # noqa: DTZ001
    a_time_too_far_away=refused(batch(starts_at=NOW + timedelta(days=500)), InvalidConfiguration),
    its_work_is_bounded_and_tried_again=TestScenario(
        do=batch(batch_timeout=30, max_retries=3, retry_delay=2, outputs=("out/*.csv", "/home/work/logs/")),
        answer=lambda a: (
            (a.session_data.batch_timeout, a.session_data.max_retries, a.session_data.retry_delay) == (30, 3, 2)
            and a.session_data.outputs == ("out/*.csv", "logs")
        ),
        then_rows=CREATED,
    ),
    a_folder_is_kept_when_nothing_is_said=TestScenario(
        do=batch(), answer=lambda a: a.session_data.outputs == ("outputs",), then_rows=CREATED
    ),
    only_a_batch_is_bounded=refused(create(batch_timeout=30), InvalidConfiguration),
    only_a_batch_is_tried_again=refused(create(max_retries=1), InvalidConfiguration),
    only_a_batch_leaves_results=refused(create(outputs=("a",)), InvalidConfiguration),
    results_outside=refused(batch(outputs=("../secret",)), InvalidConfiguration),
    results_anywhere=refused(batch(outputs=("/etc/passwd",)), InvalidConfiguration),
    a_negative_delay=refused(batch(max_retries=1, retry_delay=-1), InvalidRequest),
    too_many_retries=refused(batch(max_retries=101), InvalidRequest),
)
async def test_create(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def served(**changes: Any) -> CreateFromParamsAction:
    serves = {"command": ["serve", "{port}", "{prefix}"], "port": 8000, "path": "health", **changes}
    return create(session_type=SessionTypes.INFERENCE, serves=Serves(**serves), cluster_size=2)


@table(
    a_service_is_kept=TestScenario(
        do=served(),
        then_rows=("+kernels eval", "+kernels eval", "+sessions eval", "+status_history eval create PENDING"),
    ),
    a_known_kind=TestScenario(
        do=served(name="tensors", kind="tensor-stream", command=[], port=None, path=None, arguments=["app:Model"]),
        then_rows=("+kernels eval", "+kernels eval", "+sessions eval", "+status_history eval create PENDING"),
    ),
    a_known_kind_that_serves_nothing=refused(served(kind="tensor-stream", command=[], port=None), InvalidConfiguration),
    nothing_to_keep=refused(create(session_type=SessionTypes.INFERENCE), InvalidConfiguration),
    kept_by_another_type=refused(create(serves=Serves(command=["serve"], port=8000)), InvalidConfiguration),
    no_command=refused(served(command=[]), InvalidConfiguration),
    no_port=refused(served(port=None), InvalidConfiguration),
    a_port_that_is_none=refused(served(port=70000), InvalidRequest),
    a_name_that_is_none=refused(served(name="API!"), InvalidRequest),
    nul_in_its_command=refused(served(command=["a\0b"]), InvalidRequest),
)
async def test_inference(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_what_is_to_be_served_is_kept_with_the_session(database: Database) -> None:
    """As the control role declares it once the session runs."""
    processor = await stage(database)
    made = await processor.run(served(), by=ALICE)
    async with database.reader() as connection:
        declared = await connection.fetchval("SELECT inference FROM sessions")
        specs = [row["spec"] for row in await connection.fetch("SELECT spec FROM kernels")]
    prefix = f"/proxy/{made.session_data.id}/api/"
    assert (declared["name"], declared["port"], declared["kernels"]) == ("api", 8000, "all")
    assert declared["spec"]["argv"] == ["serve", "8000", prefix]
    assert declared["spec"]["path"] == "/health"
    assert [spec["cluster"] for spec in specs] == ["single-node"] * 2


# -- change --------------------------------------------------------------------------------------------------------------
PENDING_EVAL = a_session(Status.PENDING, id=OTHER_ID, name="eval")
add = ModifySessionAction(session_name="eval", add_dependencies=("train",))
WAITING = (
    "sessions eval: status_reason null -> waits for 'train'",
    "sessions eval: unmet 0 -> 1",
)


@table(
    a_dependency_is_added=TestScenario(given=(a_session(), PENDING_EVAL), do=add, then_rows=(EDGE, *WAITING)),
    and_taken_away=TestScenario(
        given=(a_session(), PENDING_EVAL, waits()),
        do=ModifySessionAction(session_name="eval", remove_dependencies=("train",)),
        answer=lambda a: a.session_data.waits_for == (),
        then_rows=("-session_dependencies eval <- train", "sessions eval: unmet 1 -> 0"),
    ),
    not_of_one_that_runs=TestScenario(
        given=(a_session(), a_session(id=OTHER_ID, name="eval")), do=add, error=WrongStatus, then_audit=None
    ),
    not_on_itself=TestScenario(
        given=(PENDING_EVAL,),
        do=ModifySessionAction(session_name="eval", add_dependencies=("eval",)),
        error=DependencyCycle,
        then_audit=None,
    ),
    not_on_what_waits_for_it=TestScenario(
        given=(a_session(Status.PENDING), PENDING_EVAL, waits(ID, OTHER_ID)),
        do=add,
        error=DependencyCycle,
        then_audit=None,
    ),
    not_on_what_waits_for_it_over_another=TestScenario(
        given=(
            a_session(Status.PENDING),
            PENDING_EVAL,
            a_session(Status.PENDING, id=THIRD_ID, name="middle"),
            waits(THIRD_ID, OTHER_ID),
            waits(ID, THIRD_ID, "end"),
        ),
        do=add,
        error=DependencyCycle,
        then_audit=None,
    ),
    not_on_anothers=TestScenario(
        given=(a_session(owner=MALLORY), PENDING_EVAL),
        do=add,
        error=DependencyNotFound,
        then_audit="dependency_not_found",
    ),
    not_on_one_that_has_failed=TestScenario(
        given=(a_session(Status.ERROR, result="FAILURE"), PENDING_EVAL), do=add, error=DependencyFailed, then_audit=None
    ),
    nothing_to_take_away=TestScenario(
        given=(a_session(), PENDING_EVAL),
        do=ModifySessionAction(session_name="eval", remove_dependencies=("train",)),
        error=DependencyNotFound,
        then_audit="dependency_not_found",
    ),
)
async def test_modify(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_two_changes_do_not_close_a_circle_together(database: Database) -> None:
    """Each alone is legal; at the same time, one of them is refused."""
    processor = await stage(database, a_session(Status.PENDING), PENDING_EVAL)
    for _ in range(10):
        changes = [
            processor.run(ModifySessionAction(session_name=one, add_dependencies=(other,)), by=ALICE)
            for one, other in (("train", "eval"), ("eval", "train"))
        ]
        done = await asyncio.gather(*changes, return_exceptions=True)
        assert sorted(type(one).__name__ for one in done) == ["DependencyCycle", "SessionResult"]
        async with database.transaction() as connection:
            assert await connection.fetchval("SELECT sum(unmet) FROM sessions") == 1
            await connection.execute("DELETE FROM session_dependencies")


# -- end -----------------------------------------------------------------------------------------------------------------
@table(
    dependants_stay=TestScenario(
        given=(a_session(Status.PENDING), PENDING_EVAL, waits()),
        do=DestroySessionAction(session_name="train"),
        then_rows=(
            "+status_history train destroy CANCELLED",
            "sessions train: prev_status null -> PENDING",
            "sessions train: status PENDING -> CANCELLED",
            "sessions train: status_reason null -> destroyed by its owner",
        ),
    ),
    or_are_taken_along=TestScenario(
        given=(
            a_session(Status.TERMINATED),
            PENDING_EVAL,
            waits(),
            a_session(id=THIRD_ID, name="last"),
            waits(THIRD_ID, OTHER_ID),
        ),
        do=DestroySessionAction(session_name=str(ID), recursive=True),
        then_rows=(
            "+status_history eval destroy CANCELLED",
            "+status_history last destroy TERMINATING",
            "kernels last: generation 1 -> 2",
            "kernels last: want RUN -> GONE",
            "sessions eval: prev_status null -> PENDING",
            "sessions eval: status PENDING -> CANCELLED",
            "sessions eval: status_reason null -> destroyed by its owner",
            "sessions last: prev_status null -> RUNNING",
            "sessions last: status RUNNING -> TERMINATING",
            "sessions last: status_reason null -> destroyed by its owner",
        ),
    ),
    one_that_would_be_tried_again_is_not=TestScenario(
        given=(a_session(Status.TERMINATING, retrying=True, max_retries=3, **BATCH),),
        do=DestroySessionAction(session_name="train"),
        then_rows=(
            "sessions train: retrying true -> false",
            "sessions train: status_reason null -> destroyed by its owner",
        ),
    ),
)
async def test_destroy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@table(
    what_was_done_is_told=TestScenario(
        given=(a_session(Status.SCHEDULED),),
        do=CheckAndTransitStatusAction(session_ids=(ID,)),
        answer=lambda a: (
            (a.outcomes[0].before, a.outcomes[0].after, a.outcomes[0].reason)
            == (Status.SCHEDULED, Status.RUNNING, "its hosts say: main1 RUNNING")
        ),
        then_rows=(
            "+status_history train start RUNNING",
            "sessions train: prev_status null -> SCHEDULED",
            "sessions train: status SCHEDULED -> RUNNING",
        ),
    ),
    and_why_nothing_was=TestScenario(
        given=(
            a_session(Status.PENDING, status_reason="waits for 'prepare'"),
            a_session(Status.TERMINATED, id=OTHER_ID, name="eval"),
        ),
        do=CheckAndTransitStatusAction(session_ids=(ID, OTHER_ID, NOBODYS_ID)),
        answer=lambda a: (
            [outcome.reason for outcome in a.outcomes]
            == ["waits for 'prepare'", "it has ended", SessionNotFound().message]
        ),
        then_audit=("ok", "ok", "session_not_found"),
    ),
)
async def test_transit(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- looking -------------------------------------------------------------------------------------------------------------
graph = GetDependencyGraphAction(session_name=str(ID))


@scenarios(
    GetDependencyGraphAction,
    success=TestScenario(
        given=(a_session(**BATCH), PENDING_EVAL, waits(condition="end"), a_session(id=THIRD_ID, name="alone")),
        do=graph,
        answer=lambda a: (
            [node.name for node in a.graph.nodes] == ["train", "eval"]
            and [(e.source, e.target, e.state) for e in a.graph.edges] == [(ID, OTHER_ID, "waiting")]
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=graph, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("a graph is there in every status"),
    not_found=TestScenario(do=graph, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=GetDependencyGraphAction(session_name=str(ID), format=wrong("png")),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "one_that_waits_for_nobody_is_alone": TestScenario(
            given=(a_session(),),
            do=graph,
            answer=lambda a: len(a.graph.nodes) == 1 and a.graph.edges == () and "<svg" in a.svg and "digraph" in a.dot,
            then_audit=None,
        ),
        "from_its_dependant_it_looks_the_same": TestScenario(
            given=(a_session(Status.ERROR, result="FAILURE"), PENDING_EVAL, waits()),
            do=GetDependencyGraphAction(session_name="eval"),
            answer=lambda a: (
                len(a.graph.nodes) == 2 and a.graph.edges[0].state == "broken" and a.graph.root == OTHER_ID
            ),
            then_audit=None,
        ),
    },
)
async def test_dependency_graph(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


results = DownloadResultsAction(session_name=str(ID))


@scenarios(
    DownloadResultsAction,
    success=TestScenario(
        given=(a_session(Status.TERMINATED, **BATCH),), do=results, then_agent=("results",), then_audit=None
    ),
    stranger=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=results,
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(given=(a_session(),), do=results, error=ResultsNotFound, then_audit="results_not_found"),
    not_found=TestScenario(do=results, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=DownloadResultsAction(session_name=str(ID), attempt=0),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "of_an_attempt_that_never_was": TestScenario(
            given=(a_session(Status.TERMINATED, **BATCH),),
            do=DownloadResultsAction(session_name=str(ID), attempt=2),
            error=ResultsNotFound,
            then_audit="results_not_found",
        ),
        "its_host_is_away": TestScenario(
            given=(a_session(Status.TERMINATED, **BATCH),),
            agent=lambda fake: setattr(fake, "fails_with", AgentUnavailable()),
            do=results,
            error=AgentUnavailable,
            then_agent=("results",),
            then_audit=None,
        ),
    },
)
async def test_results(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- times ---------------------------------------------------------------------------------------------------------------
@table(
    it_starts_later=TestScenario(
        given=(a_session(Status.PENDING, max_wait_seconds=60.0),),
        do=ModifySessionAction(session_name="train", starts_at=NOW + timedelta(hours=1)),
        answer=lambda a: a.session_data.expires_at == NOW + timedelta(hours=1, seconds=60),
        then_rows=("sessions train: status_reason null -> starts at 2026-03-01 13:00:00 UTC",),
    ),
    its_work_may_take_longer=TestScenario(
        given=(a_session(**BATCH, batch_timeout_seconds=5.0, work_until_at=NOW + timedelta(seconds=5)),),
        do=ModifySessionAction(session_name="train", batch_timeout=50, max_retries=2),
        then_rows=("sessions train: batch_timeout_seconds 5 -> 50", "sessions train: max_retries 0 -> 2"),
    ),
    what_runs_has_started=TestScenario(
        given=(a_session(),),
        do=ModifySessionAction(session_name="train", starts_at=NOW + timedelta(hours=1)),
        error=WrongStatus,
        then_audit=None,
    ),
    what_is_no_batch_has_no_work=TestScenario(
        given=(a_session(),),
        do=ModifySessionAction(session_name="train", batch_timeout=50),
        error=InvalidConfiguration,
        then_audit=None,
    ),
)
async def test_modify_times(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_a_longer_batch_timeout_moves_its_end(database: Database) -> None:
    processor = await stage(database, a_session(**BATCH, batch_timeout_seconds=5.0))
    await processor.run(ModifySessionAction(session_name="train", batch_timeout=50), by=ALICE)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT work_until_at FROM sessions") == NOW + timedelta(seconds=50)
