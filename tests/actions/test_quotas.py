"""Limits: who sees them, who sets them, and what they refuse."""

from __future__ import annotations

from typing import Any

from actions import ListQuotasAction, SetQuotaAction
from actions.quotas import LimitSpec
from domain.errors import (
    DomainNotFound,
    InvalidLimit,
    InvalidRequest,
    InvalidResources,
    KeypairNotFound,
    PermissionDenied,
    UserNotFound,
)
from domain.session import Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    MALLORY,
    OTHER_ID,
    PROJECT,
    ROOT,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    scenarios,
)

NO_STATUS = NotApplicable("this is about no session's status")
OTHER_PROJECT = "00000000-0000-7000-8000-000000000077"


def a_quota(scope: str, scope_id: str, name: str = "sessions", most: int = 3, **more: Any) -> Given:
    return a_row("quotas", scope=scope, scope_id=scope_id, name=name, max_amount=most, **more)


def malformed(do: Any) -> TestScenario:
    return TestScenario(do=do, by=ROOT, error=InvalidRequest, then_audit=None)


QUOTAS = (
    a_quota("keypair", ALICE.access_key),
    a_quota("user", str(ALICE.user_id)),
    a_quota("user", str(MALLORY.user_id)),
    a_quota("project", str(PROJECT)),
    a_quota("project", OTHER_PROJECT),
    a_quota("domain", "default"),
)


def scopes(*expected: str) -> Any:
    return lambda answer: [row.scope for row in answer.items] == list(expected)


@scenarios(
    ListQuotasAction,
    success=TestScenario(
        given=QUOTAS, do=ListQuotasAction(), answer=scopes("keypair", "user", "project", "domain"), then_audit=None
    ),
    stranger=TestScenario(
        do=ListQuotasAction(of="user:mallory@example.org"), error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=ListQuotasAction(of="user:nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"
    ),
    bad_input=malformed(ListQuotasAction(of="mallory@example.org")),
    more={
        "nothing_of_others": TestScenario(
            given=QUOTAS[:2], do=ListQuotasAction(), by=MALLORY, answer=lambda a: a.items == [], then_audit=None
        ),
        "all_for_an_administrator": TestScenario(
            given=QUOTAS,
            do=ListQuotasAction(everybody=True),
            by=ROOT,
            answer=scopes("keypair", "user", "user", "project", "project", "domain"),
            then_audit=None,
        ),
        "what_binds_another": TestScenario(
            given=QUOTAS,
            do=ListQuotasAction(of="user:mallory@example.org"),
            by=ROOT,
            answer=scopes("user", "project", "domain"),
            then_audit=None,
        ),
        "of_a_keypair": TestScenario(
            given=QUOTAS,
            do=ListQuotasAction(of="keypair:KEY-alice"),
            by=ROOT,
            answer=scopes("keypair"),
            then_audit=None,
        ),
        "not_everybodys_for_a_user": TestScenario(
            do=ListQuotasAction(everybody=True), error=PermissionDenied, then_audit="permission_denied"
        ),
        "images_are_counted": TestScenario(
            given=(a_quota("user", str(ALICE.user_id), "images"), a_quota("domain", "default", "volumes")),
            do=ListQuotasAction(),
            answer=lambda a: (
                [(row.name, row.used, row.free) for row in a.items] == [("images", 0, 3), ("volumes", 0, 3)]
            ),
            then_audit=None,
        ),
    },
)
async def test_list_quotas(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def limit(scope: Any = "user", of: str = "alice@example.org", **limits: Any) -> SetQuotaAction:
    return SetQuotaAction(scope=scope, of=of, limits={name.replace("__", "."): most for name, most in limits.items()})


@scenarios(
    SetQuotaAction,
    success=TestScenario(
        do=limit(cpu=2, mem="4g", sessions=3, lifetime="8h", session__mem="1g"),
        by=ROOT,
        answer=lambda a: (
            {row.name: row.max for row in a.items}
            == {"cpu": 2000, "mem": 4096, "sessions": 3, "lifetime": 28800, "session.mem": 1024}
        ),
        then_rows=("+quotas cpu", "+quotas lifetime", "+quotas mem", "+quotas session.mem", "+quotas sessions"),
    ),
    stranger=TestScenario(do=limit(sessions=100), error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=limit(of="nobody", sessions=1), by=ROOT, error=UserNotFound, then_audit="user_not_found"),
    bad_input=malformed(limit()),
    more={
        "a_negative_limit": TestScenario(do=limit(cpu=-1), by=ROOT, error=InvalidResources, then_audit=None),
        "more_than_anybody_can_have": TestScenario(
            do=limit(mem="9999999p"), by=ROOT, error=InvalidResources, then_audit=None
        ),
        "an_overflowing_number": TestScenario(do=limit(sessions=2**63), by=ROOT, error=InvalidLimit, then_audit=None),
        "half_a_session": TestScenario(do=limit(sessions=0.5), by=ROOT, error=InvalidLimit, then_audit=None),
        "a_name_that_is_none": TestScenario(do=limit(cpus=2), by=ROOT, error=InvalidLimit, then_audit=None),
        "a_time_that_is_none": TestScenario(do=limit(lifetime="soon"), by=ROOT, error=InvalidLimit, then_audit=None),
        "a_priority_out_of_range": TestScenario(do=limit(priority=101), by=ROOT, error=InvalidLimit, then_audit=None),
        "nothing_waits_for_a_lifetime": TestScenario(
            do=limit(lifetime=LimitSpec(max=60, waits=True)), by=ROOT, error=InvalidLimit, then_audit=None
        ),
        "it_may_let_sessions_wait": TestScenario(
            do=limit(cpu=LimitSpec(max=2, waits=True)),
            by=ROOT,
            answer=lambda a: (a.items[0].waits, a.items[0].policy) == (True, None),
            then_rows=("+quotas cpu",),
        ),
        "what_is_in_use_already_counts": TestScenario(
            given=(a_session(), a_session(Status.TERMINATED, id=OTHER_ID)),
            do=limit(sessions=5, mem=1024),
            by=ROOT,
            answer=lambda a: {row.name: row.used for row in a.items} == {"sessions": 1, "mem": 512},
            then_rows=("+quota_uses train mem 512", "+quota_uses train sessions 1", "+quotas mem", "+quotas sessions"),
        ),
        "what_waits_counts_apart": TestScenario(
            given=(a_session(Status.PENDING),),
            do=limit(sessions=5, pending_sessions=1),
            by=ROOT,
            answer=lambda a: (
                {row.name: (row.used, row.queued, row.free) for row in a.items}
                == {"sessions": (0, 1, 4), "pending_sessions": (0, 1, 0)}
            ),
            then_rows=(
                "+quota_uses train pending_sessions 1",
                "+quota_uses train sessions 1",
                "+quotas pending_sessions",
                "+quotas sessions",
            ),
        ),
        "a_limit_below_what_is_in_use_takes_nothing_away": TestScenario(
            given=(a_session(),),
            do=limit(sessions=0),
            by=ROOT,
            answer=lambda a: (a.items[0].max, a.items[0].used) == (0, 1),
            then_rows=("+quota_uses train sessions 1", "+quotas sessions"),
        ),
        "null_lifts_it": TestScenario(
            given=QUOTAS[1:2], do=limit(sessions=None), by=ROOT, then_rows=("-quotas sessions",)
        ),
        "of_a_project": TestScenario(
            given=(a_session(),),
            do=limit("project", "default", sessions=2),
            by=ROOT,
            then_rows=("+quota_uses train sessions 1", "+quotas sessions"),
        ),
        "of_a_keypair": TestScenario(
            given=(a_session(),),
            do=limit("keypair", "KEY-alice", cpu=2),
            by=ROOT,
            then_rows=("+quota_uses train cpu 1000", "+quotas cpu"),
        ),
        "of_a_keypair_that_is_not_there": TestScenario(
            do=limit("keypair", "KEY-x", cpu=2), by=ROOT, error=KeypairNotFound, then_audit="keypair_not_found"
        ),
        "of_a_domain_that_is_not_there": TestScenario(
            do=limit("domain", "nowhere", sessions=2), by=ROOT, error=DomainNotFound, then_audit="domain_not_found"
        ),
        "of_a_system_session_nothing_counts": TestScenario(
            given=(a_session(session_type="system"),),
            do=limit(sessions=1),
            by=ROOT,
            answer=lambda a: a.items[0].used == 0,
            then_rows=("+quotas sessions",),
        ),
        "an_unheard_of_scope": malformed(limit("planet", sessions=1)),
    },
)
async def test_set_quota(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
