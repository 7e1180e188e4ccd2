"""Hosts that are taken out of use and into use again, and where sessions may run."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from actions import (
    CordonAgentAction,
    CreateFromParamsAction,
    DrainAgentAction,
    ModifyAgentAction,
    RestartSessionAction,
    UncordonAgentAction,
)
from domain.errors import (
    AgentNotFound,
    InvalidConfiguration,
    InvalidLabel,
    InvalidRequest,
    MoorageError,
    NoMatchingHosts,
    PermissionDenied,
    ResourceGroupDenied,
    ResourceGroupInactive,
    ResourceGroupNotFound,
    ResourcesImpossible,
    StillInUse,
)
from domain.resources import ResourceSlot
from domain.session import Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    HOST,
    ID,
    NOW,
    ROOT,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    kernel_of,
    scenarios,
    stage,
    wrong,
)

BIG = a_row("resource_groups", name="big", open=True)
CORDONED = (f"agents {HOST}: schedulable true -> false",)
DRAINED = (*CORDONED, f"agents {HOST}: draining false -> true")


def set_agent(**columns: Any) -> Given:
    async def put(connection: Any) -> None:
        for column, value in columns.items():
            await connection.execute(f"UPDATE agents SET {column} = $1", value)

    return Given(put=put)


OUT = set_agent(schedulable=False, cordoned_at=NOW, cordon_reason="a fan is loud", draining=True)
TOLD = [{"kind": "drain", "agent": HOST, "message": "go"}, {"kind": "environ", "message": "left out"}]


def denied(do: Any) -> TestScenario:
    return TestScenario(do=do, error=PermissionDenied, then_audit="permission_denied")


def nowhere(do: Any) -> TestScenario:
    return TestScenario(do=do, by=ROOT, error=AgentNotFound, then_audit="agent_not_found")


def malformed(do: Any) -> TestScenario:
    return TestScenario(do=do, by=ROOT, error=InvalidRequest, then_audit=None)


ANY_STATUS = NotApplicable("a host may be taken out of use whatever it does")


@scenarios(
    CordonAgentAction,
    success=TestScenario(
        do=CordonAgentAction(agent=HOST, reason="a fan is loud"),
        by=ROOT,
        answer=lambda a: (
            (a.agent.schedulable, a.agent.cordoned_at, a.agent.draining) == (False, NOW + timedelta(seconds=1), False)
        ),
        then_rows=(*CORDONED, f"agents {HOST}: cordon_reason null -> a fan is loud"),
    ),
    stranger=denied(CordonAgentAction(agent=HOST)),
    wrong_status=ANY_STATUS,
    not_found=nowhere(CordonAgentAction(agent="host-9")),
    bad_input=malformed(CordonAgentAction(agent=HOST, reason="x" * 501)),
    more={
        "asked_twice": TestScenario(
            given=(OUT,), do=CordonAgentAction(agent=HOST), by=ROOT, answer=lambda a: a.agent.cordoned_at == NOW
        ),
    },
)
async def test_cordon_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DrainAgentAction,
    success=TestScenario(
        given=(a_session(),),
        do=DrainAgentAction(agent=HOST, move_batch=True, force_after=600),
        by=ROOT,
        answer=lambda a: a.agent.kernels == 1 and a.agent.drain_until == NOW + timedelta(seconds=601),
        then_rows=(
            *DRAINED,
            f"agents {HOST}: drain_moves false -> true",
            f"agents {HOST}: drain_until null -> 2026-03-01T12:10:01+00:00",
        ),
    ),
    stranger=denied(DrainAgentAction(agent=HOST)),
    wrong_status=ANY_STATUS,
    not_found=nowhere(DrainAgentAction(agent="host-9")),
    bad_input=malformed(DrainAgentAction(agent=HOST, force_after=-1)),
    more={
        "asked_again_without_force": TestScenario(
            given=(OUT, set_agent(drain_until=NOW, drain_moves=True)),
            do=DrainAgentAction(agent=HOST),
            by=ROOT,
            answer=lambda a: a.agent.drain_until is None and a.agent.cordon_reason == "a fan is loud",
            then_rows=(
                f"agents {HOST}: drain_moves true -> false",
                f"agents {HOST}: drain_until 2026-03-01T12:00:00+00:00 -> null",
            ),
        ),
    },
)
async def test_drain_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    UncordonAgentAction,
    success=TestScenario(
        given=(OUT, a_session(notices=TOLD)),
        do=UncordonAgentAction(agent=HOST),
        by=ROOT,
        answer=lambda a: a.agent.schedulable and a.agent.cordoned_at is None,
        then_rows=(
            f"agents {HOST}: cordon_reason a fan is loud -> null",
            f"agents {HOST}: draining true -> false",
            f"agents {HOST}: schedulable false -> true",
            f"sessions train: notices {json.dumps(TOLD)} -> {json.dumps(TOLD[1:])}",
        ),
    ),
    stranger=denied(UncordonAgentAction(agent=HOST)),
    wrong_status=ANY_STATUS,
    not_found=nowhere(UncordonAgentAction(agent="host-9")),
    bad_input=malformed(UncordonAgentAction(agent=wrong(7))),
    more={"that_is_in_use": TestScenario(do=UncordonAgentAction(agent=HOST), by=ROOT)},
)
async def test_uncordon_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_a_host_changes_its_group_while_it_is_empty_and_its_labels_at_any_time(database: Database) -> None:
    processor = await stage(database, BIG, a_session())
    await _refused(processor, ModifyAgentAction(agent=HOST, resource_group="big"), StillInUse)
    await _refused(processor, ModifyAgentAction(agent=HOST, resource_group="small"), ResourceGroupNotFound)
    await _refused(processor, ModifyAgentAction(agent="host-9", labels={"zone": "a"}), AgentNotFound)
    await _refused(processor, ModifyAgentAction(agent=HOST, labels={"zone of": "a"}), InvalidLabel)
    await _refused(processor, ModifyAgentAction(agent=HOST), InvalidRequest)
    labelled = await processor.run(ModifyAgentAction(agent=HOST, labels={"zone": "a", "disk": "fast"}), by=ROOT)
    assert labelled.agent.labels == {"zone": "a", "disk": "fast"}
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM allocations")
        await connection.execute("UPDATE kernels SET observed = 'GONE', want = 'GONE'")
    moved = await processor.run(
        ModifyAgentAction(agent=HOST, resource_group="big", labels={"disk": None}, schedulable=False), by=ROOT
    )
    assert (moved.agent.resource_group, moved.agent.labels, moved.agent.schedulable) == ("big", {"zone": "a"}, False)


async def _refused(processor: Any, do: Any, error: type[MoorageError], by: Any = ROOT) -> None:
    with pytest.raises(error) as caught:
        await processor.run(do, by=by)
    assert type(caught.value) is error
    assert len(caught.value.message) > 10


# -- where sessions may run ----------------------------------------------------------------------------------------------
CLOSED = a_row("resource_groups", name="closed")
ASLEEP = a_row("resource_groups", name="asleep", open=True, active=False)
SECOND = (
    a_row(
        "agents",
        id="host-2",
        fingerprint="f2",
        architecture="x86_64",
        resource_group="big",
        labels={"zone": "b"},
        created_at=NOW,
    ),
    a_row("resources", agent_id="host-2", name="cpu", capacity=2000, reported=2000),
    a_row("resources", agent_id="host-2", name="mem", capacity=2048, reported=2048),
)


def create(name: str = "s1-x", cpu: float = 1, **more: Any) -> CreateFromParamsAction:
    return CreateFromParamsAction(name=name, image="python", resource_slots=ResourceSlot(cpu=cpu, mem=512), **more)


async def test_a_session_says_where_it_may_run(database: Database) -> None:
    processor = await stage(database, BIG, CLOSED, ASLEEP, *SECOND)
    plain = await processor.run(create("plain"), by=ALICE)
    assert (plain.session_data.resource_group, plain.session_data.constraints) == ("default", {})
    made = await processor.run(
        create("wide", resource_group="big", host_labels={"zone": "b"}, apart_from={"job": "a"}),
        by=ALICE,
    )
    assert made.session_data.resource_group == "big"
    assert made.session_data.constraints == {"labels": {"zone": "b"}, "apart_from": {"job": "a"}}
    there = await processor.run(create("there", agent="host-2"), by=ROOT)  # its group is the host's
    assert (there.session_data.resource_group, there.session_data.constraints) == ("big", {"agent": "host-2"})
    empty = await processor.run(create("later", resource_group="closed"), by=ROOT)
    assert "has no hosts" in empty.session_data.notices[0]["message"]


async def test_what_could_never_run_is_refused(database: Database) -> None:
    processor = await stage(database, BIG, CLOSED, ASLEEP, *SECOND)
    for error, do, by in (
        (ResourceGroupNotFound, create(resource_group="nothing"), ALICE),
        (ResourceGroupDenied, create(resource_group="closed"), ALICE),
        (ResourceGroupInactive, create(resource_group="asleep"), ALICE),
        (ResourcesImpossible, create(cpu=4, resource_group="big"), ALICE),  # the default group has a larger host
        (NoMatchingHosts, create(resource_group="big", host_labels={"zone": "c"}), ALICE),
        (InvalidLabel, create(host_labels={"zone of": "c"}), ALICE),
        (InvalidLabel, create(apart_from={"": "c"}), ALICE),
        (PermissionDenied, create(agent=HOST), ALICE),
        (AgentNotFound, create(agent="host-9"), ROOT),
        (InvalidConfiguration, create(agent=HOST, resource_group="big"), ROOT),
        (NoMatchingHosts, create(agent=HOST, host_labels={"zone": "c"}), ROOT),
    ):
        await _refused(processor, do, error, by)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 0


async def test_who_may_not_use_the_default_group_gets_the_first_other_one(database: Database) -> None:
    async def close(connection: Any) -> None:
        await connection.execute("UPDATE resource_groups SET open = false WHERE name = 'default'")

    processor = await stage(database, Given(put=close))
    await _refused(processor, create(), ResourceGroupDenied, ALICE)
    async with database.transaction() as connection:
        for one in (BIG, *SECOND):
            await one.put(connection)
    assert (await processor.run(create(), by=ALICE)).session_data.resource_group == "big"


async def test_a_new_attempt_keeps_to_its_place(database: Database) -> None:
    ended = a_session(Status.TERMINATED, resource_group="big", constraints={"labels": {"zone": "b"}})
    processor = await stage(database, BIG, *SECOND, ended)
    again = await processor.run(RestartSessionAction(session_name=str(ID)), by=ALICE)
    assert (again.session_data.resource_group, again.session_data.constraints) == ("big", {"labels": {"zone": "b"}})
    assert again.session_data.kernels[0].id != kernel_of(ID)


async def test_a_new_attempt_of_an_ended_session_needs_the_group_still(database: Database) -> None:
    processor = await stage(database, ASLEEP, CLOSED, a_session(Status.TERMINATED, resource_group="closed"))
    await _refused(processor, RestartSessionAction(session_name=str(ID)), ResourceGroupDenied, ALICE)
    async with database.transaction() as connection:
        await connection.execute("UPDATE sessions SET resource_group = 'asleep'")
    await _refused(processor, RestartSessionAction(session_name=str(ID)), ResourceGroupInactive, ALICE)


async def test_where_there_is_no_gpu_it_is_said_so(database: Database) -> None:
    processor = await stage(database)
    asked = CreateFromParamsAction(name="with-gpu", image="python", resource_slots=ResourceSlot(cpu=1, mem=512, gpu=1))
    with pytest.raises(ResourcesImpossible, match=r"1 GPU.*: none has a GPU; ask for less"):
        await processor.run(asked, by=ALICE)
