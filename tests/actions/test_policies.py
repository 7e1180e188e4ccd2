"""Policies: what they say, whom they bind, and what goes before them."""

from __future__ import annotations

from typing import Any

import pytest

from actions import (
    AssignPolicyAction,
    CreatePolicyAction,
    DeletePolicyAction,
    DeleteUserAction,
    GetPolicyAction,
    ListPoliciesAction,
    ModifyPolicyAction,
    SetQuotaAction,
    UnassignPolicyAction,
)
from actions.quotas import LimitSpec
from domain.errors import (
    AlreadyExists,
    InvalidLimit,
    InvalidPolicy,
    InvalidRequest,
    InvalidResources,
    NotFound,
    PermissionDenied,
    PolicyInUse,
    PolicyNotFound,
    UserNotFound,
)
from domain.session import Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    MALLORY,
    NOW,
    OTHER_ID,
    PROJECT,
    ROOT,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    scenarios,
    stage,
)

NO_STATUS = NotApplicable("this is about no session's status")
STUDENTS = (
    a_row("policies", name="students", created_at=NOW),
    a_row("policy_limits", policy="students", name="cpu", max_amount=4000, waits=True),
    a_row("policy_limits", policy="students", name="sessions", max_amount=3),
)
EMAIL = "alice@example.org"


def given_to(scope: str, scope_id: str, policy: str = "students") -> Given:
    return a_row("policy_assignments", scope=scope, scope_id=scope_id, policy=policy)


def materialised(scope_id: str = str(ALICE.user_id)) -> tuple[Given, ...]:
    more = {"scope": "user", "scope_id": scope_id, "policy": "students"}
    return (
        a_row("quotas", name="cpu", max_amount=4000, waits=True, **more),
        a_row("quotas", name="sessions", max_amount=3, **more),
    )


ASSIGNED = (*STUDENTS, given_to("user", str(ALICE.user_id)), *materialised())


def denied(do: Any) -> TestScenario:
    return TestScenario(given=STUDENTS, do=do, error=PermissionDenied, then_audit="permission_denied")


def unknown(do: Any, **more: Any) -> TestScenario:
    return TestScenario(do=do, by=ROOT, error=PolicyNotFound, then_audit="policy_not_found", **more)


def refused(do: Any, error: Any = InvalidPolicy, *given: Given) -> TestScenario:
    return TestScenario(given=given, do=do, by=ROOT, error=error, then_audit=None)


def create(name: str = "students", **limits: Any) -> CreatePolicyAction:
    return CreatePolicyAction(policy=name, limits={key.replace("__", "."): most for key, most in limits.items()})


def waits(most: int | str) -> LimitSpec:
    return LimitSpec(max=most, waits=True)


@scenarios(
    CreatePolicyAction,
    success=TestScenario(
        do=create(cpu=waits(8), mem="32g", session__cpu=4, lifetime="12h", volumes=5),
        by=ROOT,
        answer=lambda a: (
            {one.name: (one.max, one.waits) for one in a.policy.limits}
            == {
                "cpu": (8000, True),
                "mem": (32768, False),
                "session.cpu": (4000, False),
                "lifetime": (43200, False),
                "volumes": (5, False),
            }
        ),
        then_rows=(
            "+policies students",
            *(f"+policy_limits {name} students" for name in ("cpu", "lifetime", "mem", "session.cpu", "volumes")),
        ),
    ),
    stranger=denied(create("others", cpu=1)),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it names nothing that could be missing"),
    bad_input=refused(create("two words", cpu=1), InvalidRequest),
    more={
        "more_for_one_than_for_all": refused(create(cpu=2, session__cpu=4)),
        "more_in_the_queue_than_there_may_be": refused(create(sessions=2, pending_sessions=5)),
        "idle_for_longer_than_it_lives": refused(create(lifetime="1h", idle="2h")),
        "an_unknown_name": refused(create(cups=1), InvalidLimit),
        "a_negative_amount": refused(create(mem=-1), InvalidResources),
        "an_overflowing_amount": refused(create(gpu=2**70), InvalidResources),
        "an_overflowing_count": refused(create(volumes=2**70), InvalidLimit),
        "nothing_waits_to_wait": refused(create(pending_sessions=waits(5)), InvalidLimit),
        "nothing_waits_for_itself_to_shrink": refused(create(session__mem=waits("4g")), InvalidLimit),
        "a_name_that_is_taken": refused(create(cpu=1), AlreadyExists, *STUDENTS),
    },
)
async def test_create_policy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def a_policy(answer: Any) -> bool:
    policy = answer.policy
    return [one.name for one in policy.limits] == ["cpu", "sessions"] and [
        (one.scope, one.of) for one in policy.assigned
    ] == [("user", EMAIL)]


@scenarios(
    GetPolicyAction,
    success=TestScenario(
        given=ASSIGNED, do=GetPolicyAction(policy="students"), by=ROOT, answer=a_policy, then_audit=None
    ),
    stranger=denied(GetPolicyAction(policy="students")),
    wrong_status=NO_STATUS,
    not_found=unknown(GetPolicyAction(policy="students")),
    bad_input=NotApplicable("a name that is none is not found"),
)
async def test_get_policy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListPoliciesAction,
    success=TestScenario(
        given=STUDENTS, do=ListPoliciesAction(), by=ROOT, answer=lambda a: len(a.items) == 1, then_audit=None
    ),
    stranger=denied(ListPoliciesAction()),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
)
async def test_list_policies(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def modify(**limits: Any) -> ModifyPolicyAction:
    return ModifyPolicyAction(policy="students", limits={k.replace("__", "."): most for k, most in limits.items()})


@scenarios(
    ModifyPolicyAction,
    success=TestScenario(
        given=(a_session(), a_session(Status.PENDING, id=OTHER_ID, name="queued"), *ASSIGNED),
        do=modify(cpu=6, mem="8g", sessions=None),
        by=ROOT,
        then_rows=(
            "+policy_limits mem students",
            "+quota_uses queued mem 512",
            "+quota_uses train mem 512",
            "+quotas mem",
            "-policy_limits sessions students",
            "-quotas sessions",
            "policy_limits cpu students: max_amount 4000 -> 6000",
            "policy_limits cpu students: waits true -> false",
            "quotas cpu: max_amount 4000 -> 6000",
            "quotas cpu: waits true -> false",
        ),
    ),
    stranger=denied(modify(cpu=1)),
    wrong_status=NO_STATUS,
    not_found=unknown(modify(cpu=1)),
    bad_input=refused(ModifyPolicyAction(policy="students"), InvalidRequest, *STUDENTS),
    more={
        "a_contradiction_with_what_it_says_already": refused(modify(session__cpu=5), InvalidPolicy, *STUDENTS),
        "none_when_the_other_goes_too": TestScenario(
            given=STUDENTS,
            do=modify(session__cpu=5, cpu=None),
            by=ROOT,
            then_rows=("+policy_limits session.cpu students", "-policy_limits cpu students"),
        ),
        "its_description": TestScenario(
            given=STUDENTS,
            do=ModifyPolicyAction(policy="students", description="First year"),
            by=ROOT,
            then_rows=("policies students: description  -> First year",),
        ),
        "own_settings_stay": TestScenario(
            given=(
                *STUDENTS,
                given_to("user", str(ALICE.user_id)),
                a_row("quotas", scope="user", scope_id=str(ALICE.user_id), name="cpu", max_amount=1000),
            ),
            do=modify(cpu=6),
            by=ROOT,
            then_rows=(
                "+quotas sessions",
                "policy_limits cpu students: max_amount 4000 -> 6000",
                "policy_limits cpu students: waits true -> false",
            ),
        ),
    },
)
async def test_modify_policy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeletePolicyAction,
    success=TestScenario(
        given=STUDENTS,
        do=DeletePolicyAction(policy="students"),
        by=ROOT,
        then_rows=("-policies students", "-policy_limits cpu students", "-policy_limits sessions students"),
    ),
    stranger=denied(DeletePolicyAction(policy="students")),
    wrong_status=NO_STATUS,
    not_found=unknown(DeletePolicyAction(policy="students")),
    bad_input=refused(DeletePolicyAction(policy="students"), PolicyInUse, *ASSIGNED),
)
async def test_delete_policy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def assign(scope: Any = "user", of: str = EMAIL, policy: str = "students") -> AssignPolicyAction:
    return AssignPolicyAction(policy=policy, scope=scope, of=of)


@scenarios(
    AssignPolicyAction,
    success=TestScenario(
        given=(a_session(), *STUDENTS),
        do=assign(),
        by=ROOT,
        answer=a_policy,
        then_rows=(
            f"+policy_assignments user {ALICE.user_id}",
            "+quota_uses train cpu 1000",
            "+quota_uses train sessions 1",
            "+quotas cpu",
            "+quotas sessions",
        ),
    ),
    stranger=denied(assign()),
    wrong_status=NO_STATUS,
    not_found=unknown(assign()),
    bad_input=TestScenario(
        given=STUDENTS, do=assign(of="nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"
    ),
    more={
        "instead_of_another": TestScenario(
            given=(
                *ASSIGNED,
                a_row("policies", name="staff", created_at=NOW),
                a_row("policy_limits", policy="staff", name="cpu", max_amount=9000),
            ),
            do=assign(policy="staff"),
            by=ROOT,
            then_rows=(
                "-quotas sessions",
                f"policy_assignments user {ALICE.user_id}: policy students -> staff",
                "quotas cpu: max_amount 4000 -> 9000",
                "quotas cpu: policy students -> staff",
                "quotas cpu: waits true -> false",
            ),
        ),
        **{
            f"to_a_{scope}": TestScenario(
                given=STUDENTS,
                do=assign(scope, of),
                by=ROOT,
                then_rows=(f"+policy_assignments {scope} {scope_id}", "+quotas cpu", "+quotas sessions"),
            )
            for scope, of, scope_id in (
                ("project", "default", PROJECT),
                ("domain", "default", "default"),
                ("keypair", "KEY-alice", "KEY-alice"),
            )
        },
    },
)
async def test_assign_policy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def unassign(of: str = EMAIL) -> UnassignPolicyAction:
    return UnassignPolicyAction(policy="students", scope="user", of=of)


@scenarios(
    UnassignPolicyAction,
    success=TestScenario(
        given=ASSIGNED,
        do=unassign(),
        by=ROOT,
        then_rows=(f"-policy_assignments user {ALICE.user_id}", "-quotas cpu", "-quotas sessions"),
    ),
    stranger=denied(unassign()),
    wrong_status=NO_STATUS,
    not_found=unknown(unassign()),
    bad_input=TestScenario(
        given=ASSIGNED, do=unassign("mallory@example.org"), by=ROOT, error=NotFound, then_audit="not_found"
    ),
)
async def test_unassign_policy(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def limits_of(database: Database, scope_id: str) -> dict[str, tuple[int, bool, str | None, int]]:
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT * FROM quotas WHERE scope_id = $1", scope_id)
    return {row["name"]: (row["max_amount"], row["waits"], row["policy"], row["used"]) for row in rows}


async def test_what_is_set_for_one_goes_before_the_policy_until_it_is_lifted(database: Database) -> None:
    processor = await stage(database, a_session(), *STUDENTS)
    await processor.run(assign(), by=ROOT)
    await processor.run(SetQuotaAction(scope="user", of=EMAIL, limits={"cpu": 2}), by=ROOT)
    alice = str(ALICE.user_id)
    assert await limits_of(database, alice) == {
        "cpu": (2000, False, None, 1000),
        "sessions": (3, False, "students", 1),
    }
    await processor.run(SetQuotaAction(scope="user", of=EMAIL, limits={"cpu": None}), by=ROOT)
    assert (await limits_of(database, alice))["cpu"] == (4000, True, "students", 1000)


async def test_a_change_binds_everybody_who_has_it(database: Database) -> None:
    processor = await stage(database, *STUDENTS)
    for of in (EMAIL, "mallory@example.org"):
        await processor.run(assign(of=of), by=ROOT)
    await processor.run(modify(cpu=1, gpu=2, sessions=None), by=ROOT)
    for who in (ALICE, MALLORY):
        assert await limits_of(database, str(who.user_id)) == {
            "cpu": (1000, False, "students", 0),
            "gpu": (2, False, "students", 0),
        }


async def test_what_binds_a_user_goes_with_the_user(database: Database) -> None:
    processor = await stage(database, *ASSIGNED)
    await processor.run(DeleteUserAction(user=EMAIL), by=ROOT)
    assert await limits_of(database, str(ALICE.user_id)) == {}
    await processor.run(DeletePolicyAction(policy="students"), by=ROOT)


@pytest.mark.parametrize("topic", ["queue"])
async def test_waiting_sessions_hear_of_a_change(database: Database, topic: str) -> None:
    from tests.scenario import Outbox

    outbox = Outbox()
    processor = await stage(database, *STUDENTS, outbox=outbox)
    await processor.run(assign(), by=ROOT)
    assert topic in {said for said, _ in outbox.said}
