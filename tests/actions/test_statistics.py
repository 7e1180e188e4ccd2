"""What sessions use and hold: series, live figures, usage; and what rules make of it. Samples here are simulated."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from actions import (
    GetAbusingReportAction,
    GetMetricsAction,
    GetTopAction,
    SearchAbusingReportsAction,
)
from actions.statistics import COARSE_KEPT, FINE_KEPT
from actions.usage import KEPT
from agent.wire import Sample
from domain.errors import (
    InvalidRange,
    InvalidRequest,
    KernelNotFound,
    PermissionDenied,
    SessionNotFound,
    TooManyPoints,
)
from domain.ids import AgentId, SessionId
from domain.session import Status
from repositories.database import Connection, Database
from repositories.samples import store_samples
from repositories.upkeep import Retention
from tests.scenario import (
    ALICE,
    HOST,
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

MIB = 1 << 20


def used(session_id: SessionId = ID, *, minutes: float = 65, every: float = 30.0, **rates: float) -> Given:
    """Samples up to now, as its agent would tell them: `cpu` CPUs, `mem` MiB, `tx` bytes/s, `pids`, `gpu` busy devices."""

    def tell() -> Iterator[tuple[AgentId, Sample]]:
        for number in range(int(minutes * 60 / every)):
            at = NOW - timedelta(seconds=number * every)
            yield (
                AgentId(HOST),
                Sample(
                    kernel_id=str(kernel_of(session_id)),
                    attempt=1,
                    at=at.timestamp(),
                    seconds=every,
                    cpu_seconds=rates.get("cpu", 0.0) * every,
                    mem_bytes=int(rates.get("mem", 16) * MIB),
                    net_tx_bytes=int(rates.get("tx", 0) * every),
                    pids=int(rates.get("pids", 3)),
                    oom_kills=int(rates.get("kills", 0)) if number == 0 else 0,
                    forks_refused=int(rates.get("refused", 0)) if number == 0 else 0,
                    gpus=int(rates.get("gpus", 0)),
                    gpu_seconds=rates.get("gpu", 0.0) * every,
                ),
            )

    async def put(connection: Connection) -> None:
        await store_samples(connection, list(tell()), now=NOW)

    return Given(put=put)


def metrics(**fields: Any) -> GetMetricsAction:
    return GetMetricsAction(session_name=str(ID), **fields)


HALF = (a_session(), used(cpu=0.5, mem=200))


def refused(error: Any, **fields: Any) -> TestScenario:
    return TestScenario(given=HALF, do=metrics(**fields), error=error, then_audit=None)


@scenarios(
    GetMetricsAction,
    success=TestScenario(
        given=HALF,
        do=metrics(),
        answer=lambda a: (
            (a.kernels[0].name, a.kernels[0].now.cpu, a.kernels[0].now.mem) == ("main1", 0.5, 200.0)
            and {(point.cpu, point.mem) for point in a.kernels[0].points} == {(0.5, 200.0)}
            and a.step_seconds == 10.0
        ),
        then_audit=None,
    ),
    stranger=TestScenario(given=HALF, do=metrics(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"),
    wrong_status=NotApplicable("what was used can be looked at in every status"),
    not_found=TestScenario(do=metrics(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=refused(InvalidRange, range="7x"),
    more={
        "no_time_at_all": refused(InvalidRange, range="0"),
        "longer_than_is_kept": refused(InvalidRange, range="15d"),
        "a_step_that_is_none": refused(InvalidRange, step="soon"),
        "a_step_below_a_second": refused(InvalidRange, step="0.5"),
        "a_short_step_of_what_is_kept_by_the_minute": refused(InvalidRange, range="7h", step="30s"),
        "too_many_points": refused(TooManyPoints, range="6h", step="1"),
        "a_kernel_that_is_not_there": TestScenario(
            given=HALF, do=metrics(kernel="worker7"), error=KernelNotFound, then_audit="kernel_not_found"
        ),
        "by_the_minute": TestScenario(
            given=HALF,
            do=metrics(range="1h", step="10m"),
            answer=lambda a: [round(p.cpu, 6) for p in a.kernels[0].points] == [0.5] * 6 and a.step_seconds == 600,
            then_audit=None,
        ),
        "one_kernel_by_name": TestScenario(
            given=HALF, do=metrics(kernel="main1"), answer=lambda a: len(a.kernels) == 1, then_audit=None
        ),
        "nothing_yet": TestScenario(
            given=(a_session(),),
            do=metrics(),
            answer=lambda a: a.kernels[0].now is None and a.kernels[0].points == [],
            then_audit=None,
        ),
        "of_an_ended_one_what_it_used": TestScenario(
            given=(a_session(Status.TERMINATED), used(cpu=1)),
            do=metrics(),
            answer=lambda a: a.kernels[0].now is None and a.kernels[0].points[0].cpu == 1.0,
            then_audit=None,
        ),
        "a_monitor_may_look": TestScenario(given=HALF, do=metrics(), by=WATCHER),
    },
)
async def test_metrics(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def test_what_is_promised_is_what_is_kept() -> None:
    keep = Retention()
    assert (timedelta(hours=keep.samples_hours), timedelta(days=keep.sample_minutes_days)) == (FINE_KEPT, COARSE_KEPT)
    assert timedelta(days=keep.usage_days) == KEPT


SEVERAL = (*HALF, a_session(id=OTHER_ID, name="other", owner=ROOT), used(OTHER_ID, cpu=0.9, mem=100))


@scenarios(
    GetTopAction,
    success=TestScenario(
        given=SEVERAL,
        do=GetTopAction(),
        answer=lambda a: [(s.name, s.cpu, s.mem, s.agents) for s in a.sessions] == [("train", 0.5, 200.0, [HOST])],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=SEVERAL, do=GetTopAction(), by=MALLORY, answer=lambda a: not a.sessions and not a.hosts, then_audit=None
    ),
    wrong_status=NotApplicable("a list has no status"),
    not_found=NotApplicable("it names nothing"),
    bad_input=TestScenario(do=GetTopAction(sort="colour"), error=InvalidRequest, then_audit=None),
    more={
        "everybodys_for_an_administrator": TestScenario(
            given=SEVERAL,
            do=GetTopAction(all=True),
            by=ROOT,
            answer=lambda a: (
                [s.name for s in a.sessions] == ["other", "train"]
                and a.hosts[0].held.to_json() == {"cpu": 2, "mem": 1024}
            ),
            then_audit=None,
        ),
        "by_memory": TestScenario(
            given=SEVERAL,
            do=GetTopAction(all=True, sort="mem"),
            by=WATCHER,
            answer=lambda a: [s.name for s in a.sessions] == ["train", "other"],
            then_audit=None,
        ),
        "everybodys_is_not_for_users": TestScenario(
            given=SEVERAL, do=GetTopAction(all=True), error=PermissionDenied, then_audit="permission_denied"
        ),
    },
)
async def test_top(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- abuse ---------------------------------------------------------------------------------------------------------------
BIG = {"cpu": 4000, "mem": 8192, "gpu": 2}


def a_big_session(hours: float = 2, **columns: Any) -> Given:
    """It holds 4 CPUs, 8 GiB and 2 GPUs since so many hours."""
    plain = a_session(started_at=NOW - timedelta(hours=hours), **columns)

    async def put(connection: Connection) -> None:
        await plain.put(connection)
        devices = {"devices": {"gpu/one": 81920, "gpu/two": 81920}}
        await connection.execute(
            "UPDATE kernels SET slots = $2, spec = spec || $3 WHERE id = $1", kernel_of(ID), BIG, devices
        )

    return Given(put=put)


def fired(*rules: str) -> Any:
    def check(report: Any) -> bool:
        found = [each.rule for each in report.checks if each.fired]
        explained = all(each.explanation.endswith(".") and "thresholds" in each.evidence for each in report.checks)
        return found == list(rules) and report.abusive is bool(rules) and explained

    return check


report = GetAbusingReportAction(session_name=str(ID))
#: What keeps every rule silent.
BUSY: dict[str, Any] = {"cpu": 2.0, "mem": 6000, "gpus": 2, "gpu": 1.5}


def judged(*rules: str, hours: float = 2, **rates: Any) -> TestScenario:
    return TestScenario(
        given=(a_big_session(hours), used(**{**BUSY, **rates})), do=report, answer=fired(*rules), then_audit=None
    )


@scenarios(
    GetAbusingReportAction,
    success=judged("cpu_idle", cpu=0.01),
    stranger=TestScenario(
        given=(a_session(),), do=report, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("a report can be had in every status"),
    not_found=TestScenario(do=report, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(do=GetAbusingReportAction(session_name=wrong(7)), error=InvalidRequest, then_audit=None),
    more={
        "a_busy_one_is_left_alone": judged(),
        "gpus_held_but_idle": judged("gpu_idle", gpu=0.02),
        "gpus_that_tell_nothing_are_not_judged": judged(gpus=0, gpu=0),
        "memory_never_used": judged("memory_unused", mem=300),
        "much_is_sent_out": judged("egress", tx=20 * MIB),
        "a_fork_storm": judged("fork_storm", pids=1500),
        "forks_that_were_refused": judged("fork_storm", refused=9),
        "a_loop_of_running_out_of_memory": judged("oom_loop", kills=3),
        "killed_twice_is_no_loop": judged(kills=2),
        "a_long_life": judged("over_long", hours=24 * 8),
        "all_at_once": judged(
            "gpu_idle",
            "cpu_idle",
            "memory_unused",
            "egress",
            "fork_storm",
            "oom_loop",
            "over_long",
            hours=24 * 8,
            cpu=0.0,
            mem=16,
            gpu=0,
            tx=20 * MIB,
            pids=1500,
            kills=5,
        ),
        "too_young_to_be_judged": TestScenario(
            given=(a_big_session(0.2), used(minutes=10, cpu=0, mem=10, gpus=2, gpu=0)),
            do=report,
            answer=fired(),
            then_audit=None,
        ),
        "a_threshold_of_the_project": TestScenario(
            given=(
                a_big_session(),
                used(**BUSY),
                a_row("watch_rules", scope=str(PROJECT), name="cpu_idle", settings={"max_share": 0.6}),
                a_row("watch_rules", scope="", name="cpu_idle", settings={"max_share": 0.001}),
            ),
            do=report,
            answer=fired("cpu_idle"),
            then_audit=None,
        ),
        "a_rule_that_is_switched_off": TestScenario(
            given=(
                a_big_session(),
                used(**{**BUSY, "cpu": 0.0}),
                a_row("watch_rules", scope="", name="cpu_idle", settings={"enabled": 0}),
            ),
            do=report,
            answer=lambda a: "cpu_idle" not in [check.rule for check in a.checks] and not a.abusive,
            then_audit=None,
        ),
        "of_an_ended_one_up_to_its_end": TestScenario(
            given=(a_big_session(status=Status.TERMINATED), used(**{**BUSY, "mem": 300})),
            do=report,
            answer=fired("memory_unused"),
            then_audit=None,
        ),
    },
)
async def test_abusing_report(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


IDLE_AND_BUSY = (
    a_big_session(),
    used(**{**BUSY, "cpu": 0.01}),
    a_session(id=OTHER_ID, name="other", owner=ROOT),
    used(OTHER_ID, cpu=0.5),
)


@scenarios(
    SearchAbusingReportsAction,
    success=TestScenario(
        given=IDLE_AND_BUSY,
        do=SearchAbusingReportsAction(),
        by=ROOT,
        answer=lambda a: [(one.name, one.owner) for one in a.items] == [("train", ALICE.access_key)],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=IDLE_AND_BUSY, do=SearchAbusingReportsAction(), error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NotApplicable("a list has no status"),
    not_found=TestScenario(
        given=IDLE_AND_BUSY,
        do=SearchAbusingReportsAction(project="nothing"),
        by=ROOT,
        answer=lambda a: a.items == [],
        then_audit=None,
    ),
    bad_input=TestScenario(do=SearchAbusingReportsAction(cursor="!"), by=ROOT, error=InvalidRequest, then_audit=None),
    more={
        "the_quiet_ones_too": TestScenario(
            given=IDLE_AND_BUSY,
            do=SearchAbusingReportsAction(quiet=True),
            by=WATCHER,
            answer=lambda a: len(a.items) == 2,
            then_audit=None,
        ),
        "in_pages": TestScenario(
            given=IDLE_AND_BUSY,
            do=SearchAbusingReportsAction(quiet=True, limit=1),
            by=ROOT,
            answer=lambda a: len(a.items) == 1 and a.next_cursor is not None,
            then_audit=None,
        ),
    },
)
async def test_search_abusing_reports(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
