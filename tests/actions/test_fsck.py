"""Checking all invariants, and repairing what can be."""

from __future__ import annotations

from typing import Any

from actions import FsckAction, FsckRepairAction
from domain.errors import AgentUnavailable, InvalidRequest, PermissionDenied
from domain.session import Status
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import (
    HOST,
    ID,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_session,
    kernel_of,
    scenarios,
)


def counted(number: int) -> Given:
    async def put(connection: Any) -> None:
        await connection.execute("UPDATE resources SET used = used + $1 WHERE name = 'cpu'", number)

    return Given(put=put)


def has(**changes: Any) -> Any:
    """The host's engine has the container of the one session, or what these say instead."""
    container = {
        "name": "moorage-1", "kernel_id": kernel_of(ID).hex, "attempt": "1", "status": "running", "cpu_milli": 1000,
        "memory_mib": 512, "pids": 4096, "confined": True, **changes,
    }  # fmt: skip

    def prepare(fake: FakeAgent) -> None:
        fake.counted = {"containers": [container], "networks": []}

    return prepare


def names(answer: Any) -> set[str]:
    """But for what the rows of the stage lack, and the settings of the test server."""
    return {one.check for one in answer.findings} - {"durability", "history_head"}


@scenarios(
    FsckAction,
    success=TestScenario(
        given=(a_session(),),
        do=FsckAction(),
        by=ROOT,
        agent=has(),
        answer=lambda a: names(a) == set() and a.hosts == [HOST] and len(a.checks) > 15,
        then_agent=("census",),
    ),
    stranger=TestScenario(do=FsckAction(), error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NotApplicable("it looks at sessions in every status"),
    not_found=NotApplicable("it names nothing"),
    bad_input=NotApplicable("it is asked for nothing but whether hosts are looked at"),
    more={
        "a_monitor_may_look": TestScenario(
            given=(counted(7),),
            do=FsckAction(hosts=False),
            by=WATCHER,
            answer=lambda a: names(a) == {"slots_in_use"} and a.hosts == [],
        ),
        "what_stays_wrong_on_a_host_is_told": TestScenario(
            given=(a_session(),),
            do=FsckAction(),
            by=ROOT,
            agent=has(memory_mib=0),
            answer=lambda a: names(a) == {"limits"},
            then_agent=("census", "census"),
        ),
        "a_host_that_does_not_answer_is_named": TestScenario(
            given=(a_session(),),
            do=FsckAction(),
            by=ROOT,
            agent=lambda fake: setattr(fake, "fails_with", AgentUnavailable()),
            answer=lambda a: (names(a), a.hosts, a.not_reached) == (set(), [], [HOST]),
            then_agent=("census",),
        ),
    },
)
async def test_fsck(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    FsckRepairAction,
    success=TestScenario(
        given=(a_session(Status.RUNNING), counted(7)),
        do=FsckRepairAction(checks=("slots_in_use",)),
        by=ROOT,
        answer=lambda a: a.rows == {"slots_in_use": 1},
        then_rows=("resources cpu: used 1007 -> 1000",),
    ),
    stranger=TestScenario(
        do=FsckRepairAction(checks=("slots_in_use",)), error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NotApplicable("it repairs rows in every status"),
    not_found=NotApplicable("it names no session"),
    bad_input=TestScenario(
        do=FsckRepairAction(checks=("audit_chain",)), by=ROOT, error=InvalidRequest, then_audit=None
    ),
    more={
        "a_monitor_repairs_nothing": TestScenario(
            do=FsckRepairAction(checks=("slots_in_use",)),
            by=WATCHER,
            error=PermissionDenied,
            then_audit="permission_denied",
        )
    },
)
async def test_repair(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
