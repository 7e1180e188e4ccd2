"""What is said of each host agrees with what the planner does, and every constraint has its own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.ids import AgentId
from domain.placement import Constraints, Group, Holding, Host, PendingSession, Placement, Reservation, Snapshot
from domain.scheduler import plan
from domain.scheduler.obstacles import obstacles
from domain.session import ClusterMode
from tests.domain.snapshots import NOW, seeded
from tests.domain.test_plan import gpus, holding, host, session


@given(st.integers(0, 2**63))
@settings(max_examples=500, deadline=None)
def test_a_host_has_an_obstacle_exactly_when_the_planner_leaves_it_out(seed: int) -> None:
    snapshot = seeded(seed)
    made = plan(snapshot, NOW)
    sessions = {one.id: one for one in snapshot.pending}
    for placement in made.placements:
        chosen = sessions[placement.session_id]
        if len(chosen.kernels) == 1:
            [on] = [one for one in snapshot.hosts if one.id == placement.kernels[0].agent_id]
            assert not obstacles(chosen, on, snapshot)
        snapshot = after(snapshot, chosen, placement)
    for session_id, why in made.blocked.items():
        if why.code not in ("quota", "reserved", "behind") and len(sessions[session_id].kernels) == 1:
            assert all(obstacles(sessions[session_id], on, snapshot) for on in snapshot.hosts), why


def after(snapshot: Snapshot, chosen: PendingSession, placement: Placement) -> Snapshot:
    taken: dict[AgentId, dict[str, int]] = {}
    for kernel in placement.kernels:
        there = taken.setdefault(kernel.agent_id, {})
        for name, amount in kernel.amounts.items():
            there[name] = there.get(name, 0) + amount
    held = tuple(
        Holding(
            session_id=chosen.id,
            agent_id=agent,
            amounts=amounts,
            user_id=chosen.user_id,
            labels=chosen.labels,
            apart_from=chosen.constraints.apart_from,
        )
        for agent, amounts in taken.items()
    )
    hosts = tuple(replace(one, free=less(one.free, taken.get(one.id, {}))) for one in snapshot.hosts)
    return replace(snapshot, hosts=hosts, holdings=(*snapshot.holdings, *held))


def less(free: Mapping[str, int], taken: Mapping[str, int]) -> dict[str, int]:
    return {name: amount - taken.get(name, 0) for name, amount in free.items()}


def said(asked: PendingSession, on: Host, **more: object) -> dict[str, tuple[str, Mapping[str, int], bool]]:
    seen = Snapshot(pending=(asked,), hosts=(on,), **more)  # type: ignore[arg-type]
    return {one.code: (one.detail, one.missing, one.ever) for one in obstacles(asked, on, seen)}


def test_each_constraint_says_what_is_wrong() -> None:
    asked = session(
        1,
        resource_group="gpus",
        architecture="aarch64",
        constraints=Constraints(agent=AgentId("z"), labels={"zone": "a"}, apart_from={"role": "db"}),
        images_on=frozenset([AgentId("y")]),
        stores=frozenset(["nfs"]),
    )
    neighbour = replace(holding(7, "h"), labels={"role": "db"})
    found = said(asked, host("h", cpu=4, labels={"zone": "b"}), holdings=(neighbour,))
    assert {code: detail for code, (detail, _, _) in found.items()} == {
        "resource_group": "is in resource group default, not in gpus",
        "architecture": "is x86_64, not aarch64",
        "agent": "is not z, the host that was asked for",
        "labels": "has no label zone=a",
        "image_elsewhere": "has not its image, a snapshot on y",
        "store": "has not the volume store nfs",
        "apart_from": f"holds session {neighbour.session_id}, from which this one is kept apart",
    }
    assert [code for code, (_, _, ever) in found.items() if not ever] == ["apart_from"]


def test_what_is_missing_is_counted() -> None:
    free = {"cpu": 1000, "gpu/h-0": 0, "gpu/h-1": 30}
    on = host("h", *gpus("h", 2), cpu=4000, mem=64, free=free)
    assert said(session(1, {"cpu": 3000, "mem": 16, "gpu": 1}), on) == {
        "insufficient": ("lacks 2 CPUs, 1 GPU", {"cpu": 2000, "gpu": 1}, False)
    }
    assert said(session(1, {"cpu": 5000}), on) == {
        "insufficient": ("lacks 4 CPUs, and has too little when it is empty too", {"cpu": 4000}, True)
    }
    assert said(session(1, {"gpu-mem": 40}), on, groups=(Group(gpu_sharing=True),)) == {
        "insufficient": ("lacks 10 MiB of one GPU", {"gpu-mem": 10}, False)
    }
    assert said(session(1, {"cpu": 3000}, {"cpu": 1000}), on) == {}  # its smallest kernel fits


def test_devices_that_are_not_there_or_not_shared() -> None:
    model = Constraints(gpu_model="h100")
    on = host("h", *gpus("h", 2), cpu=4)
    assert said(session(1, {"gpu": 1}, constraints=model), on) == {"gpu_model": ("has no GPU that is h100", {}, True)}
    assert said(session(1, {"gpu-mem": 4}), on) == {
        "gpu_sharing": ("is in resource group default, which shares no GPUs", {}, True)
    }
    parts = host("h", *gpus("h", 2, "NVIDIA H100 MIG 1g.10gb", whole_only=True), cpu=4)
    assert said(session(1, {"gpu-mem": 4}), parts, groups=(Group(gpu_sharing=True),)) == {
        "gpu_sharing": ("has only GPUs that are given whole", {}, True)
    }


def test_a_cluster_needs_hosts_that_reach_each_other_and_room_may_be_kept() -> None:
    cluster = session(1, {"cpu": 3}, {"cpu": 3}, clustered=True, cluster_mode=ClusterMode.MULTI_NODE)
    on = host("h", cpu=4)
    assert said(cluster, on) == {
        "address": ("has no address under which other hosts reach it, and not room for the whole cluster", {}, True)
    }
    assert said(cluster, replace(on, address="10.0.0.1")) == {}
    kept = Reservation(session_id=session(9).id, hosts=(on.id,), at=None)
    seen = Snapshot(pending=(), hosts=(on,))
    [reserved] = obstacles(session(2), on, seen, reservations=(kept,))
    assert (reserved.code, reserved.ever) == ("reserved", False)
