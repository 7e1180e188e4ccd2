"""Why sessions wait, run and ended as they did; what a creation would come to; neither leaves anything behind."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from actions import (
    CreateClusterAction,
    CreateFromParamsAction,
    CreateFromTemplateAction,
    DryRunAction,
    ExplainSessionAction,
)
from actions.explain import Explained
from domain.errors import (
    ImageNotFound,
    InvalidRequest,
    NameTaken,
    QuotaExceeded,
    ResourcesImpossible,
    SessionNotFound,
    TemplateNotFound,
)
from domain.resources import ResourceSlot
from domain.session import ClusterMode, SessionTypes, Status
from repositories.database import Database
from tests.actions.test_templates import a_template
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
    rows,
    scenarios,
    stage,
    wrong,
)

explain = ExplainSessionAction(session_name=str(ID))


def changed(statement: str) -> Given:
    async def put(connection: Any) -> None:
        await connection.execute(statement)

    return Given(put=put)


#: The host of the stage has reported.
READY = changed("UPDATE agents SET uid = '7'")


def asks(**slots: int) -> Given:
    """The session waits, and asks for so much."""

    async def put(connection: Any) -> None:
        await a_session(Status.PENDING).put(connection)
        await connection.execute("UPDATE kernels SET slots = $2 WHERE session_id = $1", ID, slots)

    return Given(put=put)


def scheduled_after(seconds: float) -> Given:
    row = {"version": 2, "source": "PENDING", "event": "schedule", "target": "SCHEDULED"}
    return a_row("status_history", session_id=ID, at=NOW + timedelta(seconds=seconds), **row)


def held(*, by: Any = MALLORY, **columns: Any) -> Given:
    """Another session holds 1 CPU and 512 MiB of the host's 8 and 8 GiB."""
    return a_session(id=OTHER_ID, name="secret-plan", owner=by, **columns)


def says(code: str, *words: str, way: str | None = None) -> Any:
    def holds(answer: Explained) -> bool:
        said = " ".join([answer.text, *answer.details, *(way.text for way in answer.ways)])
        assert answer.code == code, answer
        assert way is None or way in [one.kind for one in answer.ways], answer.ways
        assert "secret-plan" not in str(answer), "another user's session is named"
        return all(word in said for word in words)

    return holds


@scenarios(
    ExplainSessionAction,
    success=TestScenario(
        given=(asks(cpu=8000, mem=512), held()),
        do=explain,
        answer=says("insufficient", "with 7 CPUs", f"a session of another user on {HOST}", way="ends"),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(asks(cpu=1000, mem=512),), do=explain, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("a session is explained in every status"),
    not_found=TestScenario(do=explain, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        do=ExplainSessionAction(session_name="train", host_limit=-1), error=InvalidRequest, then_audit=None
    ),
    more={
        "an_administrator_sees_whose_end_would_do": TestScenario(
            given=(asks(cpu=8000, mem=512), held()),
            do=explain,
            by=ROOT,
            answer=lambda a: "when session secret-plan on host-1 ends" in str(a.ways),
        ),
        "a_monitor_may_look": TestScenario(given=(asks(cpu=1000, mem=512),), do=explain, by=WATCHER),
        "one_that_is_about_to_start": TestScenario(
            given=(asks(cpu=1000, mem=512),),
            do=explain,
            answer=lambda a: (a.code, a.on, a.position) == ("starting", (HOST,), 1),
            then_audit=None,
        ),
        "one_that_can_never_start": TestScenario(
            given=(asks(cpu=9000, mem=512),),
            do=explain,
            answer=lambda a: a.never and a.text.startswith("It can never start") and "8 CPUs" in a.ways[0].text,
            then_audit=None,
        ),
        "its_owners_own_session_is_named": TestScenario(
            given=(
                asks(cpu=8000, mem=512),
                a_session(id=OTHER_ID, name="older", started_at=NOW, expires_at=NOW + timedelta(minutes=25)),
            ),
            do=explain,
            answer=says("insufficient", "when session older on host-1 ends, at the latest at 12:25 UTC"),
            then_audit=None,
        ),
        "one_that_depends_on_others": TestScenario(
            given=(
                a_session(Status.RUNNING, id=OTHER_ID, name="data"),
                asks(cpu=1000, mem=512),
                a_row("session_dependencies", session_id=ID, depends_on_id=OTHER_ID, condition="success"),
            ),
            do=explain,
            answer=lambda a: (
                a.code == "dependencies"
                and a.text == "It waits for 'data' (RUNNING, and has to succeed) to end."
                and [one.name for one in a.waits_for] == ["data"]
                and a.details[-1].startswith("Nothing else is in its way: it would start now on host-1.")
            ),
            then_audit=None,
        ),
        "one_whose_time_has_not_come": TestScenario(
            given=(a_session(Status.PENDING, starts_at=NOW + timedelta(hours=2, seconds=1)),),
            do=explain,
            answer=says("starts_at", "no sooner than 14:00 UTC (in 2 h)"),
            then_audit=None,
        ),
        "one_that_is_tried_again_later": TestScenario(
            given=(
                a_session(Status.PENDING, starts_at=NOW + timedelta(seconds=31), retries=1, max_retries=3, attempt=2),
            ),
            do=explain,
            answer=says("retry_delay", "tried again at 12:00 UTC (in 30 s): retry 1 of 3"),
            then_audit=None,
        ),
        "a_running_one": TestScenario(
            given=(
                a_session(started_at=NOW),
                scheduled_after(42),
            ),
            do=explain,
            answer=says("running", "It runs on host-1", "after 42 s in the queue", "fills its hosts one by one"),
            then_audit=None,
        ),
        "one_that_is_being_made": TestScenario(
            given=(a_session(Status.PULLING),),
            do=explain,
            answer=says("pulling", "host-1 fetches the image", "it has 29 min for that"),
            then_audit=None,
        ),
        "an_ended_one": TestScenario(
            given=(a_session(Status.ERROR, status_reason="out of memory", exit_code=137),),
            do=explain,
            answer=says("ended", "It has failed: out of memory; exit code 137."),
            then_audit=None,
        ),
        "an_end_is_said_once": TestScenario(
            given=(a_session(Status.ERROR, status_reason="its work ended (exit code 3).", exit_code=3),),
            do=explain,
            answer=lambda a: a.text == "It has failed: its work ended (exit code 3).",
            then_audit=None,
        ),
        "hosts_that_take_no_sessions_are_told_of": TestScenario(
            given=(
                asks(cpu=1000, mem=512),
                a_row(
                    "agents",
                    id="host-2",
                    uid="8",
                    fingerprint="f2",
                    architecture="x86_64",
                    schedulable=False,
                    cordoned_at=NOW,
                    cordon_reason="",
                    seen_at=NOW,
                    lease_until=NOW + timedelta(days=1),
                    created_at=NOW,
                ),
                changed("UPDATE agents SET schedulable = false, cordoned_at = now(), cordon_reason = ''"),
            ),
            do=explain,
            answer=lambda a: [(h.hosts, h.codes) for h in a.hosts] == [(2, ("cordoned",))] and a.hosts_total == 2,
            then_audit=None,
        ),
        "the_list_of_hosts_is_cut": TestScenario(
            given=(asks(cpu=9000, mem=512),),
            do=ExplainSessionAction(session_name="train", host_offset=1),
            answer=lambda a: a.per_host == () and a.hosts_total == 1,
            then_audit=None,
        ),
    },
)
async def test_explain(scenario: TestScenario, database: Database) -> None:
    await replace(scenario, given=(READY, *scenario.given)).play(database)


# -- before it is asked for --------------------------------------------------------------------------------------------
def dry(creation: Any = None, **fields: Any) -> DryRunAction:
    return DryRunAction(creation=creation or CreateFromParamsAction(**{"image": "python", "name": "fresh", **fields}))


def limit(name: str, most: int, *, waits: bool = False) -> Given:
    return a_row("quotas", scope="project", scope_id=str(PROJECT), name=name, max_amount=most, waits=waits)


@scenarios(
    DryRunAction,
    success=TestScenario(
        do=dry(),
        answer=lambda a: (a.session_id, a.status, a.code, a.on) == (None, None, "starting", (HOST,)),
        then_audit=None,
    ),
    stranger=NotApplicable("everybody asks for sessions of their own"),
    wrong_status=NotApplicable("there is no session yet"),
    not_found=TestScenario(do=dry(image="nosuch"), error=ImageNotFound, then_audit="image_not_found"),
    bad_input=TestScenario(do=DryRunAction(creation=wrong("a session")), error=InvalidRequest, then_audit=None),
    more={
        "it_waits_for_room": TestScenario(
            given=(held(),),
            do=dry(resource_slots=ResourceSlot(cpu=8, mem=512)),
            answer=says("insufficient", "with 7 CPUs"),
            then_audit=None,
        ),
        "it_would_be_the_last_in_the_queue": TestScenario(
            given=(asks(cpu=8000, mem=512), held()),
            do=dry(resource_slots=ResourceSlot(cpu=8, mem=512)),
            answer=lambda a: (a.position, a.queued) == (2, 2),
            then_audit=None,
        ),
        "a_quota_refuses_it": TestScenario(
            given=(limit("cpu", 1500), held(by=ALICE)),
            do=dry(resource_slots=ResourceSlot(cpu=2, mem=512)),
            error=QuotaExceeded,
            then_audit=None,
        ),
        "it_waits_for_quota": TestScenario(
            given=(
                limit("cpu", 2000, waits=True),
                held(by=ALICE),
                a_row(
                    "quota_uses",
                    session_id=OTHER_ID,
                    scope="project",
                    scope_id=str(PROJECT),
                    name="cpu",
                    amount=1000,
                    placed=True,
                ),
            ),
            do=dry(resource_slots=ResourceSlot(cpu=2, mem=512)),
            answer=lambda a: (
                a.code == "quota"
                and "the project default may hold 2 CPUs at once and holds 1 CPU already" in a.text
                and "with 1 more CPU of quota in project default" in [way.text for way in a.ways]
                and any(way.kind == "ends" and way.endings[0].name == "secret-plan" for way in a.ways)
            ),
            then_audit=None,
        ),
        "more_than_any_host_has": TestScenario(
            do=dry(resource_slots=ResourceSlot(cpu=9, mem=512)), error=ResourcesImpossible, then_audit=None
        ),
        "a_name_that_is_taken": TestScenario(
            given=(a_session(),), do=dry(name="train"), error=NameTaken, then_audit=None
        ),
        "one_that_is_there_would_be_taken_again": TestScenario(
            given=(a_session(),),
            do=dry(name="train", reuse_if_exists=True),
            answer=lambda a: a.session_id == ID and "would be taken again" in a.details[-1],
            then_audit=None,
        ),
        "a_batch_that_waits_for_another": TestScenario(
            given=(a_session(),),
            do=dry(session_type=SessionTypes.BATCH, startup_command="true", depends_on=("train",)),
            answer=lambda a: a.code == "dependencies" and a.waits_for[0].name == "train",
            then_audit=None,
        ),
        "a_cluster": TestScenario(
            given=(held(),),
            do=dry(
                CreateClusterAction(
                    image="python",
                    workers=3,
                    cluster_mode=ClusterMode.SINGLE_NODE,
                    resource_slots=ResourceSlot(cpu=2, mem=512),
                )
            ),
            answer=says("insufficient", "with 2 workers", way="kernels"),
            then_audit=None,
        ),
        "a_template_that_there_is_not": TestScenario(
            do=dry(CreateFromTemplateAction(template="nosuch")), error=TemplateNotFound, then_audit="template_not_found"
        ),
        "of_a_template": TestScenario(
            given=(a_template(),),
            do=dry(
                CreateFromTemplateAction(
                    template="trainer", parameters={"cpu": 1, "rate": 1}, overrides={"name": "fresh"}
                )
            ),
            answer=lambda a: (a.name, a.session_id) == ("fresh", None),
            then_audit=None,
        ),
        "an_administrator_for_another": TestScenario(
            do=DryRunAction(creation=CreateFromParamsAction(image="python"), owner_access_key=ALICE.access_key),
            by=ROOT,
        ),
    },
)
async def test_dry_run(scenario: TestScenario, database: Database) -> None:
    await replace(scenario, given=(READY, *scenario.given)).play(database)


async def test_a_dry_run_uses_no_key(database: Database) -> None:
    """The same key afterwards creates; and a dry run after that is no creation."""
    processor = await stage(database, READY)
    create = CreateFromParamsAction(image="python", name="fresh")
    await processor.run(DryRunAction(creation=create), by=ALICE, key="k")
    async with database.reader() as connection:
        before = await rows(connection)
        assert not [name for name in before if name.startswith("sessions ")]
    made = await processor.run(create, by=ALICE, key="k")
    assert made.created
    with pytest.raises(NameTaken):
        await processor.run(DryRunAction(creation=create), by=ALICE, key="k")
