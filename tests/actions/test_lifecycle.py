"""What happens when sessions are created, changed, restarted and destroyed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from actions import (
    CheckAndTransitStatusAction,
    CreateFromParamsAction,
    DestroySessionAction,
    GetSessionInfoAction,
    ModifySessionAction,
    RenameSessionAction,
    RestartSessionAction,
)
from actions.lifecycle import TransitOutcomes
from domain.errors import (
    ImageNotFound,
    InvalidConfiguration,
    InvalidName,
    InvalidRequest,
    InvalidResources,
    MoorageError,
    NameTaken,
    NoAgents,
    PermissionDenied,
    PreconditionFailed,
    ProjectNotFound,
    QuotaExceeded,
    ResourcesImpossible,
    ResourceUnavailable,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    StartFailed,
)
from domain.ids import SessionId
from domain.resources import ResourceSlot
from domain.session import FINAL, Session, SessionTypes, Status
from repositories.database import Database
from repositories.session import SessionRepository
from repositories.transit import Cause
from tests.scenario import (
    ALICE,
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
    new_id,
    scenarios,
    stage,
    wrong,
)

to_best = RenameSessionAction(session_name="train", new_name="best")


@scenarios(
    RenameSessionAction,
    success=TestScenario(
        given=(a_session(),),
        do=to_best,
        answer=lambda a: a.session_data.name == "best",
        then_rows=("sessions best: name train -> best",),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=to_best, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=RenameSessionAction(session_name=str(ID), new_name="best"),
        error=SessionEnded,
        then_audit=None,
    ),
    not_found=TestScenario(do=to_best, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=RenameSessionAction(session_name="train", new_name="../x"),
        error=InvalidName,
        then_audit=None,
    ),
    more={
        "a_live_namesake_blocks": TestScenario(
            given=(a_session(), a_session(id=OTHER_ID, name="best")), do=to_best, error=NameTaken, then_audit=None
        ),
        "a_finished_namesake_does_not": TestScenario(
            given=(a_session(), a_session(Status.TERMINATED, id=OTHER_ID, name="best")),
            do=to_best,
            then_rows=("sessions best: name train -> best",),
        ),
        "an_admin_renames_for_the_owner": TestScenario(
            given=(a_session(),),
            do=RenameSessionAction(session_name="train", new_name="best", owner_access_key=ALICE.access_key),
            by=ROOT,
            then_rows=("sessions best: name train -> best",),
        ),
        "a_monitor_may_look_but_not_touch": TestScenario(
            given=(a_session(),),
            do=RenameSessionAction(session_name=str(ID), new_name="best"),
            by=WATCHER,
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "a_name_that_looks_like_an_id_is_refused": TestScenario(
            given=(a_session(),),
            do=RenameSessionAction(session_name="train", new_name=str(OTHER_ID)),
            error=InvalidName,
            then_audit=None,
        ),
    },
)
async def test_rename(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


destroy = DestroySessionAction(session_name=str(ID))


@scenarios(
    DestroySessionAction,
    success=TestScenario(
        given=(a_session(),),
        do=destroy,
        answer=lambda a: a.session_data.status is Status.TERMINATING,
        then_rows=(
            "+status_history train destroy TERMINATING",
            "kernels train: generation 1 -> 2",
            "kernels train: want RUN -> GONE",
            "sessions train: prev_status null -> RUNNING",
            "sessions train: status RUNNING -> TERMINATING",
            "sessions train: status_reason null -> destroyed by its owner",
        ),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=destroy, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("a session can be destroyed in every status"),
    not_found=TestScenario(
        do=DestroySessionAction(session_name=str(NOBODYS_ID)), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=DestroySessionAction(session_name="train", forced=wrong("surely")),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "a_queued_session_is_only_cancelled": TestScenario(
            given=(a_session(Status.PENDING),),
            do=destroy,
            then_rows=(
                "+status_history train destroy CANCELLED",
                "sessions train: prev_status null -> PENDING",
                "sessions train: status PENDING -> CANCELLED",
                "sessions train: status_reason null -> destroyed by its owner",
            ),
        ),
        "asking_twice_changes_nothing": TestScenario(given=(a_session(Status.TERMINATING),), do=destroy),
        "forced_it_is_over_at_once_and_the_slots_stay_taken": TestScenario(
            given=(a_session(Status.TERMINATING),),
            do=DestroySessionAction(session_name=str(ID), forced=True),
            then_rows=(
                "+status_history train force TERMINATED",
                "sessions train: prev_status null -> TERMINATING",
                "sessions train: status TERMINATING -> TERMINATED",
                "sessions train: status_reason null -> destroyed by its owner",
            ),
        ),
        **{f"of_a_{s}_one_is_done_already": TestScenario(given=(a_session(s),), do=destroy) for s in sorted(FINAL)},
    },
)
async def test_destroy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def create(**changes: Any) -> CreateFromParamsAction:
    return CreateFromParamsAction(
        **{"name": "train", "image": "python:3.9", "resource_slots": ResourceSlot(cpu=2, mem=4096), **changes}
    )


CREATED = ("+kernels train", "+sessions train", "+status_history train create PENDING")


def quota(**limits: int) -> tuple[Given, ...]:
    return tuple(
        a_row("quotas", scope="user", scope_id=str(ALICE.user_id), name=name, max_amount=most)
        for name, most in limits.items()
    )


@scenarios(
    CreateFromParamsAction,
    success=TestScenario(
        do=create(), answer=lambda a: a.created and a.session_data.status is Status.PENDING, then_rows=CREATED
    ),
    stranger=TestScenario(
        do=create(owner_access_key=ALICE.access_key), by=MALLORY, error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NotApplicable("there is no session yet"),
    not_found=TestScenario(do=create(image="nosuch"), error=ImageNotFound, then_audit="image_not_found"),
    bad_input=TestScenario(do=create(name="a\0b/c"), error=InvalidName, then_audit=None),
    more={
        "a_live_namesake_blocks": TestScenario(given=(a_session(),), do=create(), error=NameTaken, then_audit=None),
        "a_live_namesake_is_reused_when_asked": TestScenario(
            given=(a_session(),),
            do=create(reuse_if_exists=True),
            answer=lambda a: not a.created and a.session_data.id == ID,
        ),
        "another_image_is_not_reused": TestScenario(
            given=(a_session(image="other:1"),), do=create(reuse_if_exists=True), error=NameTaken, then_audit=None
        ),
        "what_no_host_could_hold_is_refused": TestScenario(
            do=create(resource_slots=ResourceSlot(cpu=9, mem=512)), error=ResourcesImpossible, then_audit=None
        ),
        "a_resource_that_nobody_has_is_refused": TestScenario(
            do=create(resource_slots=ResourceSlot(cpu=1, mem=512, gpu=1)), error=ResourcesImpossible, then_audit=None
        ),
        "no_host_of_the_images_architecture": TestScenario(
            given=(a_row("images", name="arm:1", architecture="aarch64"),),
            do=create(image="arm:1"),
            error=NoAgents,
            then_audit=None,
        ),
        "the_wrong_architecture": TestScenario(
            do=create(architecture="aarch64"), error=InvalidConfiguration, then_audit=None
        ),
        "no_memory": TestScenario(
            do=create(resource_slots=ResourceSlot(cpu=1, mem=1)), error=InvalidResources, then_audit=None
        ),
        "a_negative_lifetime": TestScenario(do=create(timeout=-1), error=InvalidRequest, then_audit=None),
        "a_foreign_project": TestScenario(
            do=create(project="secret"), error=ProjectNotFound, then_audit="project_not_found"
        ),
        "batch_without_a_command": TestScenario(
            do=create(session_type=SessionTypes.BATCH), error=InvalidConfiguration, then_audit=None
        ),
        "system_sessions_are_for_administrators": TestScenario(
            do=create(session_type=SessionTypes.SYSTEM), error=PermissionDenied, then_audit="permission_denied"
        ),
        "a_monitor_creates_nothing": TestScenario(
            do=create(), by=WATCHER, error=PermissionDenied, then_audit="permission_denied"
        ),
        "a_quota_is_charged": TestScenario(
            given=quota(sessions=1, cpu=2000),
            do=create(),
            then_rows=(
                *CREATED,
                "+quota_uses train cpu 2000",
                "+quota_uses train sessions 1",
                "quotas cpu: queued 0 -> 2000",
                "quotas sessions: queued 0 -> 1",
            ),
        ),
        "a_full_quota_refuses": TestScenario(
            given=quota(cpu=1999),
            do=create(),
            error=QuotaExceeded,
            then_audit=None,
        ),
        "a_variable_whose_name_is_none": TestScenario(
            do=create(environ={"A\n": "1"}), error=InvalidRequest, then_audit=None
        ),
        "dangerous_variables_are_left_out_with_a_notice": TestScenario(
            do=create(environ={"LD_PRELOAD": "/x.so", "A": "1"}),
            answer=lambda a: a.session_data.environ == {"A": "1"} and a.session_data.notices[0]["kind"] == "environ",
            then_rows=CREATED,
        ),
    },
)
async def test_create_from_params(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def modify(**changes: Any) -> ModifySessionAction:
    return ModifySessionAction(**{"session_name": "train", **changes})


@scenarios(
    ModifySessionAction,
    success=TestScenario(
        given=(a_session(),),
        do=modify(priority=20, tag="night"),
        answer=lambda a: (a.session_data.priority, a.session_data.tag, a.session_data.version) == (20, "night", 2),
        then_rows=("sessions train: priority 10 -> 20", "sessions train: tag null -> night"),
    ),
    stranger=TestScenario(
        given=(a_session(),),
        do=modify(priority=20),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.ERROR),),
        do=modify(session_name=str(ID), priority=20),
        error=SessionEnded,
        then_audit=None,
    ),
    not_found=TestScenario(do=modify(priority=20), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=modify(priority=101), error=InvalidRequest, then_audit=None),
    more={
        "nothing_to_change_is_a_mistake": TestScenario(
            given=(a_session(),), do=modify(), error=InvalidRequest, then_audit=None
        ),
        "the_version_that_was_read_is_still_there": TestScenario(
            given=(a_session(version=7),), do=modify(tag="a", version=7), then_rows=("sessions train: tag null -> a",)
        ),
        "somebody_was_faster": TestScenario(
            given=(a_session(version=8),), do=modify(tag="a", version=7), error=PreconditionFailed, then_audit=None
        ),
        "a_lifetime_counts_from_running": TestScenario(
            given=(a_session(),),
            do=modify(timeout=60),
            answer=lambda a: a.session_data.expires_at == NOW + timedelta(seconds=60),
            then_rows=("sessions train: timeout_seconds null -> 60",),
        ),
        "a_queued_ones_lifetime_has_not_begun": TestScenario(
            given=(a_session(Status.PENDING, expires_at=NOW + timedelta(seconds=5)),),
            do=modify(timeout=60),
            answer=lambda a: a.session_data.expires_at == NOW + timedelta(seconds=5),
            then_rows=("sessions train: timeout_seconds null -> 60",),
        ),
        "a_live_namesake_blocks": TestScenario(
            given=(a_session(), a_session(id=OTHER_ID, name="best")),
            do=modify(name="best", priority=1),
            error=NameTaken,
            then_audit=None,
        ),
        "a_tag_with_nul": TestScenario(
            given=(a_session(),), do=modify(tag="a\0b"), error=InvalidRequest, then_audit=None
        ),
        "a_version_that_no_row_can_have": TestScenario(
            given=(a_session(),), do=modify(tag="a", version=2**70), error=InvalidRequest, then_audit=None
        ),
        "an_endless_lifetime_is_no_number": TestScenario(
            given=(a_session(),), do=modify(timeout=float("inf")), error=InvalidRequest, then_audit=None
        ),
        "an_administrator_reaches_it_by_id": TestScenario(
            given=(a_session(),),
            do=modify(session_name=str(ID), tag="a"),
            by=ROOT,
            then_rows=("sessions train: tag null -> a",),
        ),
        "an_administrator_of_all_finds_no_names": TestScenario(
            given=(a_session(),),
            do=modify(tag="a"),
            by=ROOT,
            error=SessionNotFound,
            then_audit="session_not_found",
        ),
    },
)
async def test_modify(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


restart = RestartSessionAction(session_name=str(ID))


def requeued(source: Status) -> tuple[str, ...]:
    return (
        "+kernels train",
        "+status_history train restart PENDING",
        "sessions train: attempt 1 -> 2",
        f"sessions train: main_kernel_id {kernel_of(ID)} -> {new_id(0)}",
        f"sessions train: prev_status null -> {source}",
        f"sessions train: status {source} -> PENDING",
    )


def in_place(source: Status) -> tuple[str, ...]:
    return (
        "+status_history train restart RESTARTING",
        "kernels train: attempt 1 -> 2",
        "kernels train: generation 1 -> 2",
        "kernels train: observed RUNNING -> null",
        'kernels train: spec {} -> {"egress": "open", "profile": "hardened"}',
        "sessions train: attempt 1 -> 2",
        f"sessions train: prev_status null -> {source}",
        f"sessions train: status {source} -> RESTARTING",
    )


@scenarios(
    RestartSessionAction,
    success=TestScenario(
        given=(a_session(),),
        do=restart,
        answer=lambda a: a.session_data.status is Status.RESTARTING and a.session_data.attempt == 2,
        then_rows=in_place(Status.RUNNING),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=restart, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PENDING),), do=restart, error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=restart, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=RestartSessionAction(session_name=wrong(b"\xff")),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "a_degraded_one_is_restarted_in_place_too": TestScenario(
            given=(a_session(Status.RUNNING_DEGRADED),), do=restart, then_rows=in_place(Status.RUNNING_DEGRADED)
        ),
        **{
            f"a_{status}_one_queues_for_a_new_attempt": TestScenario(
                given=(a_session(status),),
                do=restart,
                answer=lambda a: a.session_data.ended_at is None and a.session_data.agent is None,
                then_rows=requeued(status),
            )
            for status in sorted(FINAL)
        },
        **{
            f"not_while_{status}": TestScenario(
                given=(a_session(status),), do=restart, error=SessionNotReady, then_audit=None
            )
            for status in (Status.SCHEDULED, Status.PREPARING, Status.PULLING, Status.RESTARTING)
        },
        "not_while_it_ends": TestScenario(
            given=(a_session(Status.TERMINATING),), do=restart, error=SessionEnded, then_audit=None
        ),
        "its_name_was_given_away": TestScenario(
            given=(a_session(Status.TERMINATED), a_session(id=OTHER_ID)), do=restart, error=NameTaken, then_audit=None
        ),
        "its_quota_is_charged_anew": TestScenario(
            given=(*quota(sessions=1), a_session(Status.TERMINATED)),
            do=restart,
            then_rows=(
                *requeued(Status.TERMINATED),
                "+quota_uses train sessions 1",
                "quotas sessions: queued 0 -> 1",
            ),
        ),
        "its_quota_was_given_away": TestScenario(
            given=(*quota(sessions=0), a_session(Status.TERMINATED)), do=restart, error=QuotaExceeded, then_audit=None
        ),
    },
)
async def test_restart(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def settle(*session_ids: SessionId) -> CheckAndTransitStatusAction:
    return CheckAndTransitStatusAction(session_ids=session_ids)


def outcomes(answer: TransitOutcomes) -> list[tuple[SessionId, tuple[Status, ...], str | None]]:
    return [(o.session_id, o.path, o.error) for o in answer.outcomes]


STARTED = (
    "+status_history train start RUNNING",
    "sessions train: prev_status null -> SCHEDULED",
    "sessions train: status SCHEDULED -> RUNNING",
)


@scenarios(
    CheckAndTransitStatusAction,
    success=TestScenario(
        given=(a_session(Status.SCHEDULED),),  # its host has said RUNNING
        do=settle(ID),
        answer=lambda a: (a.outcomes[0].before, a.outcomes[0].after) == (Status.SCHEDULED, Status.RUNNING),
        then_rows=STARTED,
    ),
    stranger=TestScenario(
        given=(a_session(Status.SCHEDULED),),
        do=settle(ID),
        by=MALLORY,
        answer=lambda a: outcomes(a) == [(ID, (), "session_not_found")],
        then_audit="session_not_found",
    ),
    wrong_status=NotApplicable("the status is what it is to find out"),
    not_found=TestScenario(
        do=settle(NOBODYS_ID),
        answer=lambda a: outcomes(a) == [(NOBODYS_ID, (), "session_not_found")],
        then_audit="session_not_found",
    ),
    bad_input=TestScenario(do=settle(), error=InvalidRequest, then_audit=None),
    more={
        "one_outcome_for_each_in_order": TestScenario(
            given=(a_session(Status.SCHEDULED), a_session(id=OTHER_ID, name="other")),
            do=settle(NOBODYS_ID, ID, OTHER_ID),
            answer=lambda a: (
                outcomes(a)
                == [(NOBODYS_ID, (), "session_not_found"), (ID, (Status.RUNNING,), None), (OTHER_ID, (), None)]
            ),
            then_rows=STARTED,
            then_audit=("session_not_found", "ok", "ok"),
        ),
        "a_session_named_twice_moves_once": TestScenario(
            given=(a_session(Status.SCHEDULED),),
            do=settle(ID, ID),
            answer=lambda a: outcomes(a) == [(ID, (Status.RUNNING,), None), (ID, (), None)],
            then_rows=STARTED,
            then_audit=("ok", "ok"),
        ),
        "a_monitor_moves_nothing": TestScenario(
            given=(a_session(Status.SCHEDULED),),
            do=settle(ID),
            by=WATCHER,
            answer=lambda a: outcomes(a) == [(ID, (), "permission_denied")],
            then_audit="permission_denied",
        ),
        "an_administrator_moves_everybodys": TestScenario(
            given=(a_session(Status.SCHEDULED),), do=settle(ID), by=ROOT, then_rows=STARTED
        ),
    },
)
async def test_check_and_transit_status(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@dataclass
class Ended:
    """As much of the service as waiting for a session takes."""

    session: Session

    async def wait_for_session(
        self, _id: SessionId, until: Callable[[Session], bool], _seconds: float | None
    ) -> Session:
        assert until(self.session)
        return self.session


@pytest.mark.parametrize(
    ("status", "result", "error"),
    [
        (Status.RUNNING, "UNDEFINED", None),
        (Status.TERMINATED, "SUCCESS", None),
        (Status.CANCELLED, "UNDEFINED", None),
        (Status.CANCELLED, "FAILURE", ResourceUnavailable),
        (Status.ERROR, "FAILURE", StartFailed),
    ],
)
async def test_a_creation_that_was_waited_for(
    database: Database, status: Status, result: str, error: type[MoorageError] | None
) -> None:
    """It answers with the session, or says why there is none: no room in time, or it could not be started."""
    processor = await stage(database)
    action = create(max_wait=1)
    answer = await processor.run(action, by=ALICE)
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(
            "UPDATE sessions SET status = $1, result = $2, status_reason = 'no host had room', ended_at = $3",
            status,
            result,
            NOW if status in FINAL else None,
        )
    async with database.reader() as connection:
        rows = SessionRepository(connection, ALICE.user_id, now=NOW, cause=Cause(by="test"))
        service: Any = Ended(await rows.get(answer.session_data.id))
    if error is None:
        assert (await action.settled(service, answer, 1)).session_data.status is status
    else:
        with pytest.raises(error, match="no host had room"):
            await action.settled(service, answer, 1)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tag": "t", "environ": {"A": "b"}, "labels": {"a": "b"}, "preopen_ports": (8080,), "idle_timeout": 60.0},
        {"timeout": 60.0, "max_wait": 90.0, "priority": 5, "shm_size": "64m", "bootstrap_script": "true"},
        {"cluster_size": 3, "gpu_model": None, "host_labels": {}, "apart_from": {"a": "b"}},
        {"session_type": SessionTypes.BATCH, "startup_command": "true", "max_retries": 2, "batch_timeout": 5.0},
        {"starts_at": NOW + timedelta(hours=1)},
    ],
)
async def test_the_answer_to_a_creation_is_what_is_on_record(more: dict[str, Any], database: Database) -> None:
    """It is not read again for the answer."""
    processor = await stage(database)
    slots = ResourceSlot(cpu=1, mem=256)
    made = await processor.run(
        CreateFromParamsAction(image="python", name="train", resource_slots=slots, **more), by=ALICE
    )
    there = await processor.run(GetSessionInfoAction(session_name="train"), by=ALICE)
    assert made.session_data == there.session_info
