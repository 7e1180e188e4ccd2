"""What sessions carry besides their work: checked at the creation, found by it, changed later."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import pytest

from actions import CreateFromParamsAction, ModifySessionAction, SearchSessionsAction
from actions.base import Action
from domain.errors import (
    InvalidConfiguration,
    InvalidLabel,
    InvalidRequest,
    InvalidResources,
    PreconditionFailed,
    QuotaExceeded,
    ResourcesImpossible,
    ResourceUnavailable,
    WrongStatus,
)
from domain.resources import ResourceSlot
from domain.session import SessionTypes, Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    ID,
    NOW,
    OTHER_ID,
    ROOT,
    TestScenario,
    a_row,
    a_session,
    kernel_of,
    stage,
)

A_SECRET: Final = a_row("webhook_secrets", user_id=ALICE.user_id, sealed=b"x")
CREATED: Final = ("+kernels train", "+sessions train", "+status_history train create PENDING")


def create(**changes: Any) -> CreateFromParamsAction:
    slots = ResourceSlot(cpu=1, mem=512)
    return CreateFromParamsAction(**{"name": "train", "image": "python", "resource_slots": slots, **changes})


def modify(**changes: Any) -> ModifySessionAction:
    return ModifySessionAction(**{"session_name": "train", **changes})


def refused(do: Action[Any, Any], error: type[Exception], *given: Any) -> TestScenario:
    return TestScenario(given=given, do=do, error=error, then_audit=None)  # type: ignore[arg-type]


def uses(mebibytes: int, seconds_ago: float = 1.0) -> Any:
    at = NOW - timedelta(seconds=seconds_ago)
    figures = {"seconds": 5.0, "cpu_seconds": 1.0, "mem_bytes": mebibytes << 20}
    return a_row("samples", kernel_id=kernel_of(ID), at=at, **figures)


def resized(cpu: int = 1000, mem: int = 512, used: tuple[int, int] = (1000, 512)) -> tuple[str, ...]:
    """Rows that differ when a running session's slots do."""
    slots = f'{{"cpu": {cpu}, "mem": {mem}}}'
    before = '{"cpu": 1000, "mem": 512}'
    found = [
        "kernels train: generation 1 -> 2",
        f"kernels train: slots {before} -> {slots}",
        f'kernels train: spec {{}} -> {{"slots": {slots}}}',
        f"sessions train: requested_slots {before} -> {slots}",
    ]
    for name, new, old in (("cpu", cpu, used[0]), ("mem", mem, used[1])):
        if new != old:
            found.append(f"+usage train {name} {new}")
            found.append(f"allocations train {name} {new}: amount {old} -> {new}")
            found.append(f"resources {name}: used {old} -> {new}")
    return tuple(found)


SCENARIOS: Final = {
    "labels_ports_and_limits_are_kept": TestScenario(
        do=create(labels={"team": "vision", "run/1": ""}, preopen_ports=(8888, 80, 80), idle_timeout=60),
        answer=lambda a: (
            a.session_data.labels == {"team": "vision", "run/1": ""}
            and (a.session_data.preopen_ports, a.session_data.idle_timeout) == ((80, 8888), 60)
        ),
        then_rows=CREATED,
    ),
    "a_label_whose_name_is_none": refused(create(labels={"-a": "b"}), InvalidLabel),
    "a_label_whose_value_is_too_long": refused(create(labels={"a": 257 * "b"}), InvalidLabel),
    "a_label_with_a_newline": refused(create(labels={"a": "b\nc"}), InvalidLabel),
    "a_label_with_a_comma": refused(create(labels={"a": "b,c"}), InvalidLabel),
    "too_many_labels": refused(create(labels={f"a{n}": "b" for n in range(65)}), InvalidLabel),
    "a_port_that_is_none": refused(create(preopen_ports=(0,)), InvalidConfiguration),
    "too_many_ports": refused(create(preopen_ports=tuple(range(1, 40))), InvalidConfiguration),
    "an_idle_timeout_of_nothing": refused(create(idle_timeout=0), InvalidRequest),
    "it_stays_with_a_lost_host_unless_asked_otherwise": TestScenario(
        do=create(),
        answer=lambda a: (a.session_data.on_agent_lost, a.session_data.agent_lease) == ("keep", None),
        then_rows=CREATED,
    ),
    "it_is_replaced_after_a_lease": TestScenario(
        do=create(on_agent_lost="replace"),
        answer=lambda a: (a.session_data.on_agent_lost, a.session_data.agent_lease) == ("replace", 60.0),
        then_rows=CREATED,
    ),
    "a_lease_of_its_own": TestScenario(
        do=create(on_agent_lost="replace", agent_lease=20),
        answer=lambda a: a.session_data.agent_lease == 20.0,
        then_rows=CREATED,
    ),
    "a_lease_without_being_replaced": refused(create(agent_lease=60), InvalidConfiguration),
    "a_lease_that_a_moment_of_trouble_ends": refused(create(on_agent_lost="replace", agent_lease=19), InvalidRequest),
    "a_lease_without_end": refused(create(on_agent_lost="replace", agent_lease=1e6), InvalidRequest),
    "another_fate": refused(create(on_agent_lost="forget"), InvalidRequest),
    "a_callback_with_a_secret_to_sign": TestScenario(
        given=(A_SECRET,),
        do=create(callback_url="https://hooks.example.org/x?y=1"),
        answer=lambda a: a.session_data.callback_url == "https://hooks.example.org/x?y=1",
        then_rows=CREATED,
    ),
    "a_callback_without_one": refused(create(callback_url="https://hooks.example.org/x"), InvalidConfiguration),
    **{
        f"a_callback_that_is_no_address_{number}": refused(create(callback_url=url), InvalidConfiguration, A_SECRET)
        for number, url in enumerate(
            (
                "ftp://example.org/",
                "example.org",
                "http://user:pw@example.org/",
                "http:///x",
                "http://example.org/#x",
                "http://exa mple.org/",
                "http://example.org\\@127.0.0.1/",
                "http://example.org:99999/",
                "https://example.org/" + 2048 * "x",
                "",
            )
        )
    },
    "an_administrators_system_session_is_exempt_from_quota": TestScenario(
        given=(a_row("quotas", scope="user", scope_id=str(ROOT.user_id), name="sessions", max_amount=0),),
        do=create(session_type=SessionTypes.SYSTEM),
        by=ROOT,
        then_rows=CREATED,
    ),
    # -- changed later
    "labels_are_merged": TestScenario(
        given=(a_session(labels={"a": "1", "b": "2"}),),
        do=modify(labels={"b": None, "c": "3"}),
        answer=lambda a: a.session_data.labels == {"a": "1", "c": "3"},
        then_rows=('sessions train: labels {"a": "1", "b": "2"} -> {"a": "1", "c": "3"}',),
    ),
    "a_label_that_cannot_be": refused(modify(labels={"a b": "1"}), InvalidLabel, a_session()),
    "an_idle_timeout_is_set": TestScenario(
        given=(a_session(),),
        do=modify(idle_timeout=90),
        then_rows=("sessions train: idle_timeout_seconds null -> 90",),
    ),
    "and_taken_away": TestScenario(
        given=(a_session(idle_timeout_seconds=90.0),),
        do=modify(idle_timeout=0),
        then_rows=("sessions train: idle_timeout_seconds 90 -> null",),
    ),
    "a_callback_is_taken_away": TestScenario(
        given=(a_session(callback_url="http://a.example/"),),
        do=modify(callback_url=""),
        then_rows=("sessions train: callback_url http://a.example/ -> null",),
    ),
    "a_callback_is_set_only_with_a_secret": refused(
        modify(callback_url="http://a.example/"), InvalidConfiguration, a_session()
    ),
    # -- resources
    "a_running_one_grows": TestScenario(
        given=(a_session(),),
        do=modify(resource_slots=ResourceSlot(cpu=2, mem=1024)),
        answer=lambda a: a.session_data.occupied_slots == ResourceSlot(cpu=2, mem=1024),
        then_rows=resized(2000, 1024),
    ),
    "what_is_left_out_stays": TestScenario(
        given=(a_session(),), do=modify(resource_slots=ResourceSlot(mem=2048)), then_rows=resized(mem=2048)
    ),
    "what_its_host_has_not_free_is_refused": refused(
        modify(resource_slots=ResourceSlot(cpu=8)),
        ResourceUnavailable,
        a_session(),
        a_session(id=OTHER_ID, name="best"),
    ),
    "more_than_its_host_has_is_refused": refused(
        modify(resource_slots=ResourceSlot(mem="9g")), ResourceUnavailable, a_session()
    ),
    "one_shrinks_to_what_it_does_not_use": TestScenario(
        given=(a_session(), uses(100)), do=modify(resource_slots=ResourceSlot(mem=128)), then_rows=resized(mem=128)
    ),
    "below_what_it_uses_is_refused": refused(
        modify(resource_slots=ResourceSlot(mem=128)), InvalidResources, a_session(), uses(125)
    ),
    "what_it_uses_is_not_known": refused(
        modify(resource_slots=ResourceSlot(mem=128)), InvalidResources, a_session(), uses(10, seconds_ago=300)
    ),
    "less_than_a_session_needs": refused(
        modify(resource_slots=ResourceSlot(mem=1)), InvalidResources, a_session(), uses(1)
    ),
    "devices_are_not_exchanged_while_it_runs": refused(
        modify(resource_slots=ResourceSlot(gpu=1)), InvalidResources, a_session()
    ),
    "a_clusters_kernels_keep_their_size": refused(
        modify(resource_slots=ResourceSlot(cpu=2)), InvalidResources, a_session(cluster_size=2)
    ),
    "not_while_it_comes_up": refused(
        modify(resource_slots=ResourceSlot(cpu=2)), WrongStatus, a_session(Status.PREPARING)
    ),
    "somebody_was_faster": refused(
        modify(resource_slots=ResourceSlot(cpu=2), version=7), PreconditionFailed, a_session(version=8)
    ),
    "a_waiting_one_asks_for_less": TestScenario(
        given=(a_session(Status.PENDING),),
        do=modify(resource_slots=ResourceSlot(cpu="0.5")),
        then_rows=(
            'kernels train: slots {"cpu": 1000, "mem": 512} -> {"cpu": 500, "mem": 512}',
            'kernels train: spec {} -> {"slots": {"cpu": 500, "mem": 512}}',
            'sessions train: requested_slots {"cpu": 1000, "mem": 512} -> {"cpu": 500, "mem": 512}',
        ),
    ),
    "a_waiting_one_asks_for_too_much": refused(
        modify(resource_slots=ResourceSlot(cpu=9)), ResourcesImpossible, a_session(Status.PENDING)
    ),
    "a_quota_is_charged_anew": TestScenario(
        given=(
            a_row("quotas", scope="user", scope_id=str(ALICE.user_id), name="cpu", max_amount=2000),
            a_session(),
        ),
        do=modify(resource_slots=ResourceSlot(cpu=2)),
        then_rows=("+quota_uses train cpu 2000", "quotas cpu: used 0 -> 2000", *resized(2000)),
    ),
    "a_full_quota_refuses": refused(
        modify(resource_slots=ResourceSlot(cpu=3)),
        QuotaExceeded,
        a_row("quotas", scope="user", scope_id=str(ALICE.user_id), name="cpu", max_amount=2000),
        a_session(),
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_options(name: str, database: Database) -> None:
    await SCENARIOS[name].play(database)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (("team=a",), ["both", "one"]),
        (("team",), ["both", "one", "other"]),
        (("team=a", "run=2"), ["both"]),
        (("team=",), []),
    ],
)
async def test_sessions_are_found_by_their_labels(database: Database, label: tuple[str, ...], found: list[str]) -> None:
    processor = await stage(
        database,
        a_session(name="one", labels={"team": "a"}),
        a_session(id=OTHER_ID, name="both", labels={"team": "a", "run": "2"}),
    )
    made = create(name="other", labels={"team": "b"})
    await processor.run(made, by=ALICE)
    answer = await processor.run(SearchSessionsAction(label=label), by=ALICE)
    assert sorted(session.name for session in answer.items) == found
    with pytest.raises(InvalidLabel):
        await processor.run(SearchSessionsAction(label=("=x",)), by=ALICE)
