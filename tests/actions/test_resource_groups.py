"""Resource groups: their policy, who may use them, what users weigh, and what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from actions import (
    CreateResourceGroupAction,
    DeleteResourceGroupAction,
    GetResourceGroupAction,
    ListResourceGroupsAction,
    ListSharesAction,
    ModifyResourceGroupAccessAction,
    ModifyResourceGroupAction,
    SetWeightAction,
)
from domain.errors import (
    AlreadyExists,
    ContradictoryPolicy,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ProjectNotFound,
    ResourceGroupNotFound,
    StillInUse,
    UserNotFound,
)
from domain.session import Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    MALLORY,
    NOW,
    PROJECT,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    scenarios,
    wrong,
)

NO_STATUS = NotApplicable("this is about no session's status")
BIG = a_row("resource_groups", name="big")
OPEN = a_row("resource_groups", name="big", open=True)
FIFO = a_row("resource_groups", name="big", ordering="fifo")
ALICES = a_row("resource_group_access", resource_group="big", scope="user", scope_id=str(ALICE.user_id))
WEIGHTED = a_row("fair_shares", resource_group="big", user_id=ALICE.user_id, weight=2.0)


def denied(do: Any, *given: Given) -> TestScenario:
    return TestScenario(given=given, do=do, error=PermissionDenied, then_audit="permission_denied")


def refused(do: Any, error: type[Any] = ContradictoryPolicy, *given: Given) -> TestScenario:
    said = error.code if issubclass(error, NotFound) else None
    return TestScenario(given=given, do=do, by=ROOT, error=error, then_audit=said)


def malformed(do: Any) -> TestScenario:
    return TestScenario(do=do, by=ROOT, error=InvalidRequest, then_audit=None)


def missing(do: Any) -> TestScenario:
    return refused(do, ResourceGroupNotFound)


def names(answer: Any) -> list[str]:
    return [one.name for one in answer.items]


@scenarios(
    ListResourceGroupsAction,
    success=TestScenario(
        given=(BIG, ALICES, WEIGHTED),
        do=ListResourceGroupsAction(),
        answer=lambda a: (
            names(a) == ["default", "big"]
            and a.items[0].agents == a.items[0].agents_ready + 1 == 1
            and not a.items[1].weights
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(BIG, ALICES),
        do=ListResourceGroupsAction(),
        by=MALLORY,
        answer=lambda a: names(a) == ["default"],
        then_audit=None,
    ),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("there is always the default group"),
    bad_input=NotApplicable("it takes no input"),
    more={
        "administrators_and_monitors_see_all_of_it": TestScenario(
            given=(
                BIG,
                ALICES,
                WEIGHTED,
                a_session(),
                a_row("quotas", scope="user", scope_id="x", name="cpu", max_amount=1),
            ),
            do=ListResourceGroupsAction(),
            by=WATCHER,
            answer=lambda a: (
                a.items[0].sessions == 1
                and a.items[1].access[0].of == a.items[1].weights[0].user == "alice@example.org"
                and a.items[1].weights[0].weight == 2.0
            ),
            then_audit=None,
        ),
        "by_a_project": TestScenario(
            given=(BIG, a_row("resource_group_access", resource_group="big", scope="project", scope_id=str(PROJECT))),
            do=ListResourceGroupsAction(),
            by=MALLORY,
            answer=lambda a: names(a) == ["default", "big"],
            then_audit=None,
        ),
        "by_a_domain": TestScenario(
            given=(BIG, a_row("resource_group_access", resource_group="big", scope="domain", scope_id="default")),
            do=ListResourceGroupsAction(),
            by=MALLORY,
            answer=lambda a: names(a) == ["default", "big"],
            then_audit=None,
        ),
    },
)
async def test_list_resource_groups(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetResourceGroupAction,
    success=TestScenario(
        given=(BIG, ALICES),
        do=GetResourceGroupAction(resource_group="big"),
        answer=lambda a: a.resource_group.may_use and a.resource_group.agents == 0 and a.resource_group.access == (),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(BIG, ALICES),
        do=GetResourceGroupAction(resource_group="big"),
        by=MALLORY,
        error=ResourceGroupNotFound,
        then_audit="resource_group_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=missing(GetResourceGroupAction(resource_group="small")),
    bad_input=malformed(GetResourceGroupAction(resource_group=wrong(7))),
)
async def test_get_resource_group(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    CreateResourceGroupAction,
    success=TestScenario(
        do=CreateResourceGroupAction(resource_group="gpu", fit="spread", half_life_seconds=3600, gpu_sharing=True),
        by=ROOT,
        answer=lambda a: (a.resource_group.half_life_seconds, a.resource_group.open) == (3600, False),
        then_rows=("+resource_groups gpu",),
    ),
    stranger=denied(CreateResourceGroupAction(resource_group="gpu")),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it refers to nothing"),
    bad_input=malformed(CreateResourceGroupAction(resource_group="No Spaces")),
    more={
        "there_is_one_already": refused(CreateResourceGroupAction(resource_group="big"), AlreadyExists, BIG),
        "a_half_life_of_nothing": refused(CreateResourceGroupAction(resource_group="gpu", half_life_seconds=0)),
        "a_half_life_that_is_none": refused(
            CreateResourceGroupAction(resource_group="gpu", half_life_seconds=float("nan"))
        ),
        "a_half_life_where_nothing_counts": refused(
            CreateResourceGroupAction(resource_group="gpu", ordering="fifo", half_life_seconds=3600)
        ),
        "an_unknown_ordering": malformed(CreateResourceGroupAction(resource_group="gpu", ordering=wrong("lottery"))),
        "with_a_profile_and_no_way_out": TestScenario(
            do=CreateResourceGroupAction(resource_group="gpu", profile="standard", egress="none"),
            by=ROOT,
            answer=lambda a: (a.resource_group.profile, a.resource_group.egress) == ("standard", "none"),
            then_rows=("+resource_groups gpu",),
        ),
        "an_unknown_profile": malformed(CreateResourceGroupAction(resource_group="gpu", profile=wrong("privileged"))),
    },
)
async def test_create_resource_group(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ModifyResourceGroupAction,
    success=TestScenario(
        given=(BIG,),
        do=ModifyResourceGroupAction(resource_group="big", ordering="fifo", open=True, active=False),
        by=ROOT,
        then_rows=(
            "resource_groups big: active true -> false",
            "resource_groups big: open false -> true",
            "resource_groups big: ordering fair_share -> fifo",
        ),
    ),
    stranger=denied(ModifyResourceGroupAction(resource_group="big", open=True), BIG),
    wrong_status=NO_STATUS,
    not_found=missing(ModifyResourceGroupAction(resource_group="big", open=True)),
    bad_input=refused(ModifyResourceGroupAction(resource_group="big"), InvalidRequest, BIG),
    more={
        "another_half_life_counts_anew": TestScenario(
            given=(
                a_row("fair_usage", resource_group="default", user_id=ALICE.user_id, name="cpu", amount=5000.0, at=NOW),
            ),
            do=ModifyResourceGroupAction(resource_group="default", half_life_seconds=86400),
            by=ROOT,
            then_rows=(
                f"-fair_usage cpu default {ALICE.user_id}",  # there is no usage of it on record
                "resource_groups default: half_life_seconds 604800 -> 86400",
            ),
        ),
        "what_containers_may_do": TestScenario(
            given=(BIG,),
            do=ModifyResourceGroupAction(resource_group="big", profile="standard", egress="none"),
            by=ROOT,
            then_rows=(
                "resource_groups big: egress open -> none",
                "resource_groups big: profile hardened -> standard",
            ),
        ),
        "an_unknown_egress": malformed(ModifyResourceGroupAction(resource_group="big", egress=wrong("host"))),
        "too_long_a_half_life": refused(
            ModifyResourceGroupAction(resource_group="big", half_life_seconds=1e12), ContradictoryPolicy, BIG
        ),
        "a_half_life_where_nothing_counts": refused(
            ModifyResourceGroupAction(resource_group="big", half_life_seconds=3600), ContradictoryPolicy, FIFO
        ),
        "fifo_where_users_have_weights": refused(
            ModifyResourceGroupAction(resource_group="big", ordering="fifo"), ContradictoryPolicy, BIG, WEIGHTED
        ),
    },
)
async def test_modify_resource_group(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeleteResourceGroupAction,
    success=TestScenario(
        given=(BIG, ALICES, WEIGHTED, a_session(Status.TERMINATED, resource_group="big")),
        do=DeleteResourceGroupAction(resource_group="big"),
        by=ROOT,
        then_rows=(
            f"-fair_shares big {ALICE.user_id}",
            f"-resource_group_access big user {ALICE.user_id}",
            "-resource_groups big",
            "sessions train: resource_group big -> default",
        ),
    ),
    stranger=denied(DeleteResourceGroupAction(resource_group="big"), BIG),
    wrong_status=refused(
        DeleteResourceGroupAction(resource_group="big"), StillInUse, BIG, a_session(resource_group="big")
    ),
    not_found=missing(DeleteResourceGroupAction(resource_group="big")),
    bad_input=refused(DeleteResourceGroupAction(resource_group="default")),
    more={
        "with_hosts": refused(
            DeleteResourceGroupAction(resource_group="big"),
            StillInUse,
            BIG,
            a_row("agents", id="host-2", fingerprint="f2", resource_group="big", created_at=NOW),
        ),
    },
)
async def test_delete_resource_group(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def access(allowed: bool, **who: Any) -> ModifyResourceGroupAccessAction:
    return ModifyResourceGroupAccessAction(resource_group="big", allowed=allowed, **who)


@scenarios(
    ModifyResourceGroupAccessAction,
    success=TestScenario(
        given=(BIG,),
        do=access(True, users=("mallory@example.org",), projects=("default",), domains=("default",)),
        by=ROOT,
        answer=lambda a: (
            {(one.scope, one.of) for one in a.resource_group.access}
            == {("user", "mallory@example.org"), ("project", "default"), ("domain", "default")}
        ),
        then_rows=(
            "+resource_group_access big domain default",
            f"+resource_group_access big project {PROJECT}",
            f"+resource_group_access big user {MALLORY.user_id}",
        ),
    ),
    stranger=denied(access(True, users=("alice@example.org",)), BIG),
    wrong_status=refused(access(True, users=("alice@example.org",)), ContradictoryPolicy, OPEN),
    not_found=missing(access(True, users=("alice@example.org",))),
    bad_input=refused(access(True), InvalidRequest, BIG),
    more={
        "denied_again": TestScenario(
            given=(BIG, ALICES),
            do=access(False, users=("alice@example.org",)),
            by=ROOT,
            then_rows=(f"-resource_group_access big user {ALICE.user_id}",),
        ),
        "allowed_twice": TestScenario(given=(BIG, ALICES), do=access(True, users=("alice@example.org",)), by=ROOT),
        "denied_who_was_not_allowed": refused(access(False, projects=("default",)), InvalidRequest, BIG),
        "an_unknown_user": refused(access(True, users=("nobody@example.org",)), UserNotFound, BIG),
        "an_unknown_project": refused(access(True, projects=("nothing",)), ProjectNotFound, BIG),
        "an_unknown_domain": refused(
            access(True, users=("alice@example.org",), domains=("nowhere",)), InvalidRequest, BIG
        ),
    },
)
async def test_modify_resource_group_access(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def weigh(weight: float | None, user: str = "alice@example.org") -> SetWeightAction:
    return SetWeightAction(resource_group="big", user=user, weight=weight)


@scenarios(
    SetWeightAction,
    success=TestScenario(
        given=(BIG,),
        do=weigh(2.5),
        by=ROOT,
        answer=lambda a: a.resource_group.weights[0].weight == 2.5,
        then_rows=(f"+fair_shares big {ALICE.user_id}",),
    ),
    stranger=denied(weigh(1000), BIG),
    wrong_status=refused(weigh(2), ContradictoryPolicy, FIFO),
    not_found=missing(weigh(2)),
    bad_input=refused(weigh(0), ContradictoryPolicy, BIG),
    more={
        "less_than_nothing": refused(weigh(-1), ContradictoryPolicy, BIG),
        "no_number": refused(weigh(float("nan")), ContradictoryPolicy, BIG),
        "an_unknown_user": refused(weigh(2, "nobody@example.org"), UserNotFound, BIG),
        "the_usual_one_again": TestScenario(
            given=(BIG, WEIGHTED), do=weigh(None), by=ROOT, then_rows=(f"-fair_shares big {ALICE.user_id}",)
        ),
        "another_one": TestScenario(
            given=(BIG, WEIGHTED),
            do=weigh(3),
            by=ROOT,
            then_rows=(f"fair_shares big {ALICE.user_id}: weight 2 -> 3",),
        ),
    },
)
async def test_set_weight(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def _of_alice(answer: Any) -> bool:
    [one] = answer.items
    assert (one.user, one.held, one.place, one.users) == ("alice@example.org", {"cpu": 1.0, "mem": 512.0}, 1, 1)
    assert one.share == pytest.approx(0.125, rel=1e-3)  # one of eight CPUs, and a sixteenth of the memory
    assert answer.groups[0].capacity == {"cpu": 8.0, "mem": 8192.0}
    assert "counts half after 7 days" in answer.groups[0].explanation
    return True


async def _hello(connection: Any) -> None:
    await connection.execute("UPDATE agents SET uid = 'u'")


READY = Given(put=_hello)


@scenarios(
    ListSharesAction,
    success=TestScenario(given=(a_session(), READY), do=ListSharesAction(), answer=_of_alice, then_audit=None),
    stranger=TestScenario(
        given=(a_session(), READY),
        do=ListSharesAction(),
        by=MALLORY,  # sees what she has, and how many come before and after her
        answer=lambda a: (
            [(one.user, one.share, one.place, one.users) for one in a.items] == [("mallory@example.org", 0, 1, 2)]
        ),
        then_audit=None,
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        given=(BIG,),
        do=ListSharesAction(resource_group="big"),
        error=ResourceGroupNotFound,
        then_audit="resource_group_not_found",
    ),
    bad_input=malformed(ListSharesAction(resource_group=wrong(7))),
    more={
        "of_everybody": TestScenario(
            given=(BIG, WEIGHTED, a_session(), READY),
            do=ListSharesAction(),
            by=WATCHER,
            answer=lambda a: [(one.resource_group, one.weight) for one in a.items] == [("default", 1), ("big", 2)],
            then_audit=None,
        ),
        "where_nothing_counts": TestScenario(
            given=(FIFO, ALICES),
            do=ListSharesAction(resource_group="big"),
            answer=lambda a: a.groups[0].explanation.startswith("Higher priority first, then who asked first;"),
            then_audit=None,
        ),
    },
)
async def test_list_shares(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
