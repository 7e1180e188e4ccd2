"""What has run here, as a workload that can be replayed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from actions import GetTraceAction
from domain.errors import InvalidRange, PermissionDenied
from domain.ids import SessionId
from domain.session import Status
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
)

LATER = SessionId(UUID(int=77))
ALL = GetTraceAction(since=NOW - timedelta(days=1), until=NOW + timedelta(days=1))


def held(session: SessionId, begin: float, end: float, who: Any = ALICE) -> Given:
    """Slots from NOW + begin to NOW + end seconds, as the triggers write it."""
    return a_row(
        "usage",
        kernel_id=kernel_of(session),
        session_id=session,
        session_name="train",
        user_id=who.user_id,
        project_id=PROJECT,
        domain="default",
        agent_id="host-1",
        name="cpu",
        amount=1000,
        share=0.5,
        since_at=NOW + timedelta(seconds=begin),
        until_at=NOW + timedelta(seconds=end),
    )


#: One that ran for 90 s, in two attempts; one of Mallory's that ran for 5 s; one that runs; one that never ran.
GIVEN = (
    a_session(Status.TERMINATED, timeout_seconds=120.0, constraints={"gpu_model": "h100"}, priority=20),
    held(ID, 10, 40),
    held(ID, 60, 100),
    a_session(Status.ERROR, id=OTHER_ID, owner=MALLORY, created_at=NOW + timedelta(seconds=5)),
    held(OTHER_ID, 20, 25, MALLORY),
    a_session(id=LATER, name="runs"),
    a_session(Status.CANCELLED, id=SessionId(UUID(int=78)), name="never"),
)


def is_told(answer: Any) -> bool:
    first, second = answer.sessions
    return (
        (first.user, first.duration, first.cpu, first.mem, first.kernels) == ("alice@example.org", 90.0, 1, 512, 1)
        and (first.timeout, first.gpu_model, first.priority, first.submitted_at) == (120.0, "h100", 20, NOW)
        and (second.user, second.duration) == ("mallory@example.org", 5.0)
        and (answer.running, answer.never_ran) == (1, 1)
    )


@scenarios(
    GetTraceAction,
    success=TestScenario(given=GIVEN, do=ALL, by=ROOT, answer=is_told, then_audit=None),
    stranger=TestScenario(given=GIVEN, do=ALL, by=ALICE, error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NotApplicable("a report has no status"),
    not_found=NotApplicable("who asks is there, and nobody else is named"),
    bad_input=TestScenario(do=GetTraceAction(since=NOW, until=NOW), by=ROOT, error=InvalidRange, then_audit=None),
    more={
        "a_monitor_may_look": TestScenario(given=GIVEN, do=ALL, by=WATCHER, answer=is_told, then_audit=None),
        "of_another_time_nothing": TestScenario(
            given=GIVEN,
            do=GetTraceAction(since=NOW - timedelta(days=3), until=NOW - timedelta(days=2)),
            by=ROOT,
            answer=lambda a: (a.sessions, a.running, a.never_ran) == ([], 0, 0),
            then_audit=None,
        ),
        "without_a_zone": TestScenario(
            do=GetTraceAction(since=datetime(2026, 2, 1)),  # noqa: DTZ001 - that is the point
            by=ROOT,
            error=InvalidRange,
            then_audit=None,
        ),
    },
)
async def test_trace(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
