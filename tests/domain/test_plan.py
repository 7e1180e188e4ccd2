"""The policy of the plan, case by case: whose turn it is, which host it is, who has to wait and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import (
    Constraints,
    Device,
    Group,
    Holding,
    Host,
    Limit,
    PendingKernel,
    PendingSession,
    Plan,
    Share,
    Snapshot,
)
from domain.scheduler import plan
from domain.session import ClusterMode
from tests.domain.snapshots import NOW

ALICE, BOB = UUID(int=1), UUID(int=2)


def session(number: int, *kernels: Mapping[str, int], age: int = 0, **more: Any) -> PendingSession:
    asked = kernels or ({"cpu": 1},)
    return PendingSession(
        **{
            "id": SessionId(UUID(int=number)),
            "architecture": "x86_64",
            "priority": 10,
            "created_at": NOW - timedelta(seconds=age),
            "kernels": tuple(
                PendingKernel(id=KernelId(UUID(int=number * 100 + at)), slots=slots) for at, slots in enumerate(asked)
            ),
            "cluster_mode": ClusterMode.MULTI_NODE if len(asked) > 1 else ClusterMode.SINGLE_NODE,
            **more,
        }
    )


def host(name: str, *devices: Device, of: int = 80, free: Mapping[str, int] | None = None, **capacity: Any) -> Host:
    said = {key: capacity.pop(key) for key in ("labels", "resource_group", "architecture") if key in capacity}
    whole = {**capacity, **{device.name: of for device in devices}}
    return Host(
        id=AgentId(name),
        architecture=said.get("architecture", "x86_64"),
        free={**whole, **(free or {})},
        capacity=whole,
        devices=devices,
        labels=said.get("labels", {}),
        resource_group=said.get("resource_group", "default"),
    )


def gpus(name: str, number: int, model: str = "NVIDIA A100", **more: Any) -> tuple[Device, ...]:
    return tuple(Device(name=f"gpu/{name}-{at}", model=model, **more) for at in range(number))


def holding(number: int, on: str, *, ends_in: float | None = None, **amounts: int) -> Holding:
    return Holding(
        session_id=SessionId(UUID(int=number)),
        agent_id=AgentId(on),
        amounts=amounts,
        ends_at=None if ends_in is None else NOW + timedelta(seconds=ends_in),
    )


def planned(pending: list[PendingSession], hosts: list[Host], group: Group | None = None, **more: Any) -> Plan:
    groups = (group,) if group else ()
    return plan(Snapshot(pending=tuple(pending), hosts=tuple(hosts), groups=groups, **more), NOW)


def where(made: Plan) -> dict[int, list[str]]:
    return {one.session_id.int: [kernel.agent_id for kernel in one.kernels] for one in made.placements}


def devices(made: Plan, number: int) -> list[set[str]]:
    return [set(k.devices) for p in made.placements if p.session_id.int == number for k in p.kernels]


def codes(made: Plan) -> dict[int, str]:
    return {session_id.int: why.code for session_id, why in made.blocked.items()}


# -- whose turn it is ----------------------------------------------------------------------------------------------------
def test_users_fill_up_evenly_however_many_sessions_one_of_them_has_queued() -> None:
    many = [session(number, user_id=ALICE, age=100 - number) for number in range(1, 9)]
    made = planned([*many, *(session(n, user_id=BOB) for n in (11, 12))], [host("a", cpu=4)])
    assert [one.session_id.int for one in made.placements] == [1, 11, 2, 12]


@pytest.mark.parametrize(
    ("alice", "expected"),
    [
        (Share(resource_group="default", user_id=ALICE, held={"cpu": 2.0}), [11, 12, 1, 13]),
        (Share(resource_group="default", user_id=ALICE, past={"cpu": 2.0}), [11, 12, 1, 13]),
        (Share(resource_group="default", user_id=ALICE, held={"cpu": 2.0}, weight=4.0), [11, 1, 2, 3]),
        (Share(resource_group="default", user_id=ALICE, held={"mem": 100.0}), [11, 12, 13, 14]),
        (Share(resource_group="elsewhere", user_id=ALICE, held={"mem": 100.0}), [1, 11, 2, 12]),
    ],
)
def test_who_has_or_had_less_of_what_is_dominant_comes_first(alice: Share, expected: list[int]) -> None:
    pending = [session(number, user_id=ALICE, age=50 - number) for number in range(1, 5)]
    pending += [session(number, user_id=BOB) for number in range(11, 15)]
    made = planned(pending, [host("a", cpu=8, mem=100, free={"cpu": 4})], shares=(alice,))
    assert [one.session_id.int for one in made.placements] == expected
    assert [one.int for one in made.order["default"]][:4] == expected


def test_priority_is_above_shares_and_without_fair_share_age_decides() -> None:
    pending = [
        session(1, user_id=ALICE, age=9),
        session(2, user_id=ALICE, age=8),
        session(3, user_id=BOB),
        session(4, user_id=ALICE, priority=11),
    ]
    order = [one.int for one in planned(pending, [host("a", cpu=9)]).order["default"]]
    assert order == [4, 3, 1, 2]
    by_age = planned(pending, [host("a", cpu=9)], Group(fair_share=False))
    assert [one.int for one in by_age.order["default"]] == [4, 1, 2, 3]


# -- which host it is ----------------------------------------------------------------------------------------------------
def test_packing_fills_the_fullest_host_and_spreading_the_emptiest() -> None:
    fleet = [host("a", cpu=8), host("b", cpu=8, free={"cpu": 3}), host("c", cpu=8, free={"cpu": 5})]
    pending = [session(number, {"cpu": 2}) for number in (1, 2, 3)]
    assert where(planned(pending, fleet)) == {1: ["b"], 2: ["c"], 3: ["c"]}
    assert where(planned(pending, fleet, Group(spread=True))) == {1: ["a"], 2: ["a"], 3: ["c"]}


def test_hosts_with_idle_gpus_are_kept_for_those_who_want_them() -> None:
    fleet = [host("a", *gpus("a", 2), cpu=4), host("b", cpu=8)]
    made = planned([session(1), session(2, {"cpu": 1, "gpu": 1}), session(3, {"cpu": 7}), session(4)], fleet)
    assert where(made) == {1: ["b"], 2: ["a"], 3: ["b"], 4: ["a"]}


def test_devices_of_one_kernel_are_close_to_each_other() -> None:
    linked = [("A", "D"), ("B", "C")]
    links = {one: {f"gpu/{other}": 4} for pair in linked for one, other in (pair, pair[::-1])}
    four = [Device(name=f"gpu/{one}", links=links[one], numa=at // 2) for at, one in enumerate("ABCD")]
    assert devices(planned([session(1, {"gpu": 2})], [host("a", *four)]), 1) == [{"gpu/A", "gpu/D"}]
    alone = planned([session(1, {"gpu": 1}), session(2, {"gpu": 2}), session(3, {"gpu": 1})], [host("a", *four)])
    assert devices(alone, 2) == [{"gpu/B", "gpu/C"}]  # one alone took none of a pair that two can still have
    unlinked = [replace(device, links={}) for device in four]
    assert devices(planned([session(1, {"gpu": 2})], [host("a", *reversed(unlinked))]), 1) == [{"gpu/A", "gpu/B"}]


def test_shares_go_where_shares_are_and_never_onto_a_device_that_somebody_has_whole() -> None:
    group = Group(gpu_sharing=True)
    fleet = [host("a", *gpus("a", 2), of=80), host("b", *gpus("b", 2), of=80, free={"gpu/b-1": 30})]
    made = planned([session(n, {"gpu-mem": 20}) for n in (1, 2)] + [session(3, {"gpu": 1})], fleet, group)
    assert devices(made, 1) == [{"gpu/b-1"}]
    assert devices(made, 2) == [{"gpu/b-0"}] if where(made)[2] == ["b"] else [{"gpu/a-0"}]
    assert all(
        kernel.devices == {name: 20} for p in made.placements[:2] for kernel in p.kernels for name in kernel.devices
    )
    refused = planned([session(1, {"gpu-mem": 20})], fleet)
    assert codes(refused) == {1: "gpu_sharing"}
    parts = gpus("m", 1, "NVIDIA H100 MIG 1g.10gb", whole_only=True)
    assert codes(planned([session(1, {"gpu-mem": 5})], [host("a", *parts)], group)) == {1: "impossible"}


def test_a_model_is_meant_by_a_word_of_its_name() -> None:
    fleet = [
        host("a", *gpus("a", 1, "NVIDIA A100-SXM4-40GB")),
        host("h", *gpus("h", 1, "NVIDIA H100 80GB HBM3")),
        host("m", *gpus("m", 2, "NVIDIA H100 80GB HBM3 MIG 1g.10gb", whole_only=True)),
    ]

    def asks(number: int, model: str) -> PendingSession:
        return session(number, {"gpu": 1}, constraints=Constraints(gpu_model=model))

    made = planned([asks(1, "h100"), asks(2, "H100"), asks(3, "a100"), asks(4, "v100"), asks(5, "1g.10gb")], fleet)
    assert where(made) == {1: ["h"], 3: ["a"], 5: ["m"]}
    assert codes(made) == {2: "insufficient", 4: "gpu_model"}


# -- constraints ---------------------------------------------------------------------------------------------------------
def test_labels_and_a_designated_agent_bind() -> None:
    fleet = [host("a", cpu=4), host("b", cpu=4, labels={"zone": "b"})]
    pending = [
        session(1, constraints=Constraints(labels={"zone": "b"})),
        session(2, constraints=Constraints(labels={"zone": "c"})),
        session(3, constraints=Constraints(agent=AgentId("b"))),
        session(4, constraints=Constraints(agent=AgentId("z"))),
    ]
    made = planned(pending, fleet)
    assert where(made) == {1: ["b"], 3: ["b"]}
    assert codes(made) == {2: "labels", 4: "agent"}


def test_sessions_are_kept_apart_both_ways_and_in_one_plan_too() -> None:
    apart = Constraints(apart_from={"role": "db"})
    fleet = [host("a", cpu=4), host("b", cpu=4)]
    pending = [
        session(1, labels={"role": "db"}, age=3),
        session(2, constraints=apart, age=2),
        session(3, labels={"role": "db"}, age=1),
        session(4, constraints=apart, labels={"role": "db"}),
        session(5, constraints=apart, user_id=BOB),
    ]
    made = planned(pending, fleet, Group(fair_share=False))
    assert where(made) == {1: ["a"], 2: ["b"], 3: ["a"], 5: ["a"]}
    assert codes(made) == {4: "apart_from"}
    there = replace(holding(9, "a"), labels={"role": "db"})
    assert where(planned([session(2, constraints=apart)], fleet, holdings=(there,))) == {2: ["b"]}


def test_groups_have_their_own_hosts_and_a_group_without_any_says_so() -> None:
    fleet = [host("a", cpu=1, resource_group="gpus"), host("b", cpu=1)]
    made = planned([session(1, resource_group="gpus"), session(2), session(3, resource_group="empty")], fleet)
    assert where(made) == {1: ["a"], 2: ["b"]}
    [why] = made.blocked.values()
    assert why.code == "no_hosts"
    assert why.detail == "no host of resource group empty of architecture x86_64 takes sessions at the moment"


# -- limits --------------------------------------------------------------------------------------------------------------
def test_a_limit_holds_within_one_plan_and_whoever_waits_for_it_blocks_nobody() -> None:
    limit = Limit(scope=("project", "p"), name="cpu", max_amount=5000, held=2000, of="physics")
    bound = (("user", "u"), ("project", "p"))
    pending = [
        session(1, {"cpu": 2000}, scopes=bound, age=4),
        session(2, {"cpu": 2000}, scopes=bound, age=3),
        session(3, {"cpu": 1000}, scopes=bound, age=2),
        session(4, {"cpu": 4000}, age=1),
    ]
    made = planned(pending, [host("a", cpu=16000)], limits=(limit,))
    assert set(where(made)) == {1, 3, 4}
    assert not made.reservations
    [why] = made.blocked.values()
    assert why.code == "quota"
    assert why.detail == "project physics may hold 5 CPUs at once and holds 4; this asks for 2"
