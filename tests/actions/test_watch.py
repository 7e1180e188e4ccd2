"""Thresholds, exemptions, and hours that were held."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from actions import ExemptSessionAction, GetUsageAction, GetWatchRulesAction, SetWatchRulesAction
from domain.errors import (
    InvalidRange,
    InvalidRequest,
    PermissionDenied,
    ProjectNotFound,
    SessionEnded,
    SessionNotFound,
    UserNotFound,
)
from domain.session import FINAL
from repositories.database import Database
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOW,
    OTHER_ID,
    PROJECT,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    kernel_of,
    scenarios,
    wrong,
)

CHANGED = (
    a_row("watch_rules", scope="", name="cpu_idle", settings={"max_share": 0.05}),
    a_row("watch_rules", scope=str(PROJECT), name="idle", settings={"enabled": 0}),
)


@scenarios(
    GetWatchRulesAction,
    success=TestScenario(
        given=CHANGED,
        do=GetWatchRulesAction(),
        answer=lambda a: (
            (a.rules["cpu_idle"]["max_share"], a.rules["idle"]["enabled"]) == (0.05, 1)
            and a.changed == {"cpu_idle": {"max_share": 0.05}}
        ),
        then_audit=None,
    ),
    stranger=TestScenario(given=CHANGED, do=GetWatchRulesAction(), by=MALLORY, then_audit=None),
    wrong_status=NotApplicable("rules have no status"),
    not_found=TestScenario(
        do=GetWatchRulesAction(project="nothing"), error=ProjectNotFound, then_audit="project_not_found"
    ),
    bad_input=TestScenario(do=GetWatchRulesAction(project=wrong(7)), error=InvalidRequest, then_audit=None),
    more={
        "of_a_project": TestScenario(
            given=CHANGED,
            do=GetWatchRulesAction(project="default"),
            answer=lambda a: (a.rules["cpu_idle"]["max_share"], a.rules["idle"]["enabled"]) == (0.05, 0),
            then_audit=None,
        ),
    },
)
async def test_get_rules(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def setting(**fields: Any) -> SetWatchRulesAction:
    return SetWatchRulesAction(**fields)


def no_setting(settings: Any, error: Any = InvalidRequest, audit: str | None = None) -> TestScenario:
    return TestScenario(do=setting(settings=settings), by=ROOT, error=error, then_audit=audit)


@scenarios(
    SetWatchRulesAction,
    success=TestScenario(
        do=setting(settings={"cpu_idle": {"max_share": 0.1}}),
        by=ROOT,
        answer=lambda a: a.rules["cpu_idle"]["max_share"] == 0.1,
        then_rows=("+watch_rules cpu_idle ",),
    ),
    stranger=TestScenario(
        do=setting(settings={"cpu_idle": {"max_share": 0.1}}), error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NotApplicable("rules have no status"),
    not_found=TestScenario(
        do=setting(settings={"idle": {"enabled": 0}}, project="nothing"),
        by=ROOT,
        error=ProjectNotFound,
        then_audit="project_not_found",
    ),
    bad_input=no_setting({"cpu_idle": {"max_share": 7}}),
    more={
        "no_such_rule": no_setting({"laziness": {"max_share": 0.1}}),
        "no_such_setting": no_setting({"cpu_idle": {"colour": 1}}),
        "half_switched_on": no_setting({"cpu_idle": {"enabled": 0.5}}),
        "a_window_of_nothing": no_setting({"cpu_idle": {"window_seconds": 0}}),
        "below_nothing": no_setting({"egress": {"max_bytes": -1}}),
        "no_number": no_setting({"egress": {"max_bytes": "many"}}),
        "not_a_number": no_setting({"egress": {"max_bytes": float("nan")}}),
        "nothing_at_all": no_setting({}),
        "of_a_project": TestScenario(
            given=CHANGED,
            do=setting(settings={"idle": {"warn_seconds": 60}}, project="default"),
            by=ROOT,
            answer=lambda a: a.rules["idle"] == {"enabled": 0, "warn_seconds": 60},
            then_rows=(
                f'watch_rules idle {PROJECT}: settings {{"enabled": 0}} -> {{"enabled": 0, "warn_seconds": 60.0}}',
            ),
        ),
        "back_to_what_is_declared": TestScenario(
            given=CHANGED,
            do=setting(reset=True),
            by=ROOT,
            answer=lambda a: a.changed == {},
            then_rows=("-watch_rules cpu_idle ",),
        ),
    },
)
async def test_set_rules(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


exempt = ExemptSessionAction(session_name=str(ID), reason="a long talk")
WARNED = a_row("idle_warnings", session_id=ID, checker="no_call", reason="x", warned_at=NOW, due_at=NOW)
PEACE = a_row("idle_exemptions", session_id=ID, by_access_key="KEY-root")


@scenarios(
    ExemptSessionAction,
    success=TestScenario(
        given=(a_session(), WARNED),
        do=exempt,
        by=ROOT,
        answer=lambda a: a.session_data.idle_warning is None,
        then_rows=(f"+idle_exemptions {ID}", f"-idle_warnings {ID}"),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=exempt, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(min(FINAL)),), do=exempt, by=ROOT, error=SessionEnded, then_audit=None),
    not_found=TestScenario(do=exempt, by=ROOT, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=ExemptSessionAction(session_name=str(ID), reason="x" * 501),
        by=ROOT,
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "not_for_its_owner": TestScenario(
            given=(a_session(),), do=exempt, by=ALICE, error=PermissionDenied, then_audit="permission_denied"
        ),
        "and_no_longer": TestScenario(
            given=(a_session(), PEACE),
            do=ExemptSessionAction(session_name=str(ID), exempt=False),
            by=ROOT,
            then_rows=(f"-idle_exemptions {ID}",),
        ),
    },
)
async def test_exempt(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- usage ---------------------------------------------------------------------------------------------------------------
def held(
    amount: int,
    begin: timedelta,
    end: timedelta | None,
    *,
    name: str = "cpu",
    who: Any = ALICE,
    session: UUID = ID,
    share: float = 0.5,
    domain: str = "default",
) -> Given:
    """An allocation from NOW + begin to NOW + end, as the triggers write it."""
    return a_row(
        "usage",
        kernel_id=kernel_of(ID),
        session_id=session,
        session_name="train",
        user_id=who.user_id,
        project_id=PROJECT,
        domain=domain,
        agent_id="host-1",
        name=name,
        amount=amount,
        share=share,
        since_at=NOW + begin,
        until_at=None if end is None else NOW + end,
    )


HOUR = timedelta(hours=1)
#: Alice: 2 CPUs for 3 hours, 4 GiB for 3 hours, half a GPU for 2 hours, 1 CPU since an hour ago; Mallory: 8 CPUs for 1 hour.
HELD = (
    held(2000, -5 * HOUR, -2 * HOUR),
    held(4096, -5 * HOUR, -2 * HOUR, name="mem"),
    held(1, -5 * HOUR, -3 * HOUR, name="gpu/abc"),
    held(1000, -HOUR, None, session=OTHER_ID),
    held(8000, -2 * HOUR, -HOUR, who=MALLORY),
)


def hours(*expected: tuple[str, float, float, float]) -> Any:
    """Rows as (name, CPU, memory, GPU hours)."""

    def check(answer: Any) -> bool:
        found = [
            (row.name, round(row.cpu_hours, 3), round(row.mem_gib_hours, 3), round(row.gpu_hours, 3))
            for row in answer.rows
        ]
        return found == list(expected)

    return check


def usage(*expected: tuple[str, float, float, float], who: Any = ROOT, **fields: Any) -> TestScenario:
    return TestScenario(given=HELD, do=GetUsageAction(**fields), by=who, answer=hours(*expected), then_audit=None)


def no_usage(error: Any, who: Any = ROOT, audit: str | None = None, **fields: Any) -> TestScenario:
    return TestScenario(given=HELD, do=GetUsageAction(**fields), by=who, error=error, then_audit=audit)


ALICES = ("alice@example.org", 7.0, 12.0, 1.0)
MALLORYS = ("mallory@example.org", 8.0, 0.0, 0.0)


@scenarios(
    GetUsageAction,
    success=usage(ALICES, who=ALICE),
    stranger=usage(MALLORYS, who=MALLORY),
    wrong_status=NotApplicable("a report has no status"),
    not_found=no_usage(UserNotFound, user="nobody@example.org", audit="user_not_found"),
    bad_input=no_usage(InvalidRange, since=NOW, until=NOW),
    more={
        "everybodys_for_an_administrator": usage(MALLORYS, ALICES),
        "everybodys_for_a_monitor": usage(MALLORYS, ALICES, who=WATCHER),
        "of_one_user": usage(ALICES, user="alice@example.org"),
        "others_are_not_for_users": no_usage(
            PermissionDenied, who=ALICE, user="mallory@example.org", audit="permission_denied"
        ),
        "of_a_part_of_the_time": usage(
            ("alice@example.org", 2.0, 4.0, 0.0), who=ALICE, since=NOW - 3 * HOUR, until=NOW - HOUR
        ),
        "of_the_future_nothing": usage(since=NOW + HOUR, until=NOW + 2 * HOUR),
        "of_a_project_that_is_not_there": usage(project="nothing"),
        "by_project": usage(("default/default", 15.0, 12.0, 1.0), by="project"),
        "by_host": usage(("host-1", 15.0, 12.0, 1.0), by="host"),
        "by_session": usage(("train", 14.0, 12.0, 1.0), ("train", 1.0, 0.0, 0.0), by="session"),
        "by_day": usage(("2026-03-01", 15.0, 12.0, 1.0), by="day"),
        "in_all": usage(("total", 15.0, 12.0, 1.0), by="total"),
        "by_the_colour": no_usage(InvalidRequest, by="colour"),
        "an_end_before_the_beginning": no_usage(InvalidRange, since=NOW, until=NOW - HOUR),
        "longer_than_is_kept": no_usage(InvalidRange, since=NOW - timedelta(days=500)),
        "without_a_zone": no_usage(InvalidRange, since=datetime(2026, 2, 1)),  # noqa: DTZ001 - that is the point
    },
)
async def test_usage(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
