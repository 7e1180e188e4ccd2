"""The plan is pure: what it places fits, what it leaves out does not, and the same question has one answer."""

from __future__ import annotations

import random
import time
from collections import Counter
from datetime import timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import Host, PendingKernel, PendingSession, Snapshot
from domain.scheduler import plan
from domain.session import ClusterMode
from tests.control.rows import NOW

amounts = st.integers(0, 6)
slots = st.fixed_dictionaries({"cpu": amounts}, optional={"mem": amounts, "gpu": st.integers(0, 3), "tpu": amounts})


@st.composite
def hosts(draw: st.DrawFn, number: int) -> Host:
    capacity = draw(
        st.dictionaries(st.sampled_from(["cpu", "mem", "tpu", "gpu/A", "gpu/B", "gpu/C"]), st.integers(0, 9))
    )
    free = {name: draw(st.integers(-1, most)) for name, most in capacity.items()}
    return Host(
        id=AgentId(f"h{number}"),
        architecture=draw(st.sampled_from(["x86_64", "aarch64"])),
        free=free,
        capacity=capacity,
    )


@st.composite
def sessions(draw: st.DrawFn, number: int) -> PendingSession:
    kernels = draw(st.lists(slots, min_size=1, max_size=3))
    return PendingSession(
        id=SessionId(UUID(int=number)),
        architecture=draw(st.sampled_from(["x86_64", "aarch64", "riscv64"])),
        priority=draw(st.integers(0, 2)),
        created_at=NOW + timedelta(seconds=draw(st.integers(0, 3))),
        kernels=tuple(PendingKernel(id=KernelId(UUID(int=number * 10 + i)), slots=k) for i, k in enumerate(kernels)),
        cluster_mode=draw(st.sampled_from(ClusterMode)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    return Snapshot(
        pending=tuple(draw(sessions(n)) for n in range(1, 1 + draw(st.integers(0, 8)))),
        hosts=tuple(draw(hosts(n)) for n in range(draw(st.integers(0, 5)))),
    )


@given(snapshots(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_a_plan_is_possible_complete_and_the_same_in_any_order(snapshot: Snapshot, shuffler: random.Random) -> None:
    planned = plan(snapshot, NOW)
    by_id = {session.id: session for session in snapshot.pending}
    by_host = {host.id: host for host in snapshot.hosts}
    free = {(host.id, name): max(0, amount) for host in snapshot.hosts for name, amount in host.free.items()}

    assert {p.session_id for p in planned.placements} | set(planned.blocked) == set(by_id)
    assert {p.session_id for p in planned.placements} & set(planned.blocked) == set()
    for placement in planned.placements:
        session = by_id[placement.session_id]
        assert [k.kernel_id for k in placement.kernels] == [k.id for k in session.kernels]
        if session.cluster_mode is ClusterMode.SINGLE_NODE:
            assert len({k.agent_id for k in placement.kernels}) == 1
        for kernel, asked in zip(placement.kernels, session.kernels, strict=True):
            assert by_host[kernel.agent_id].architecture == session.architecture
            assert len(kernel.devices) == asked.slots.get("gpu", 0)
            assert all(by_host[kernel.agent_id].capacity[name] == amount for name, amount in kernel.devices.items())
            assert {n: a for n, a in kernel.amounts.items() if n not in kernel.devices} == {
                n: a for n, a in asked.slots.items() if a and n != "gpu"
            }
            for name, amount in kernel.amounts.items():
                free[kernel.agent_id, name] -= amount
                assert free[kernel.agent_id, name] >= 0
    # left out is only what does not fit into what is left, or would delay one that comes first
    for session_id, why in planned.blocked.items():
        if why.code == "reserved":
            continue
        session = by_id[session_id]
        for host in snapshot.hosts:
            if host.architecture == session.architecture and len(session.kernels) == 1:
                left = {name: free[host.id, name] for name in host.free}
                left["gpu"] = sum(0 < host.capacity[n] == left[n] for n in host.free if n.startswith("gpu/"))
                assert any(amount > left.get(name, 0) for name, amount in session.kernels[0].slots.items())
    shuffled = Snapshot(
        pending=tuple(shuffler.sample(snapshot.pending, len(snapshot.pending))),
        hosts=tuple(shuffler.sample(snapshot.hosts, len(snapshot.hosts))),
    )
    assert plan(shuffled, NOW) == planned


def pending(
    number: int, *, priority: int = 10, age: int = 0, architecture: str = "x86_64", **slots: int
) -> PendingSession:
    return PendingSession(
        id=SessionId(UUID(int=number)),
        architecture=architecture,
        priority=priority,
        created_at=NOW - timedelta(seconds=age),
        kernels=(PendingKernel(id=KernelId(UUID(int=number)), slots=slots),),
    )


def host(name: str, architecture: str = "x86_64", **free: int) -> Host:
    return Host(id=AgentId(name), architecture=architecture, free=free, capacity=free)


def test_priority_then_age_then_id_decides() -> None:
    queue = (pending(1, cpu=1), pending(2, cpu=1, age=5), pending(3, cpu=1, priority=20), pending(4, cpu=1))
    planned = plan(Snapshot(pending=queue, hosts=(host("a", cpu=3),)), NOW)
    assert [p.session_id.int for p in planned.placements] == [3, 2, 1]
    assert [one.int for one in planned.blocked] == [4]


def test_what_is_lacking_is_said_in_words() -> None:
    queue = (
        pending(1, cpu=3000),
        pending(2, cpu=2000, mem=512),
        pending(3, cpu=64000),
        pending(4, architecture="aarch64", cpu=1),
        pending(5, cpu=1000, mem=1024),
        pending(6, gpu=1),
    )
    fleet = (host("a", cpu=4000, mem=1024), host("b", cpu=2000, mem=4096))
    planned = plan(Snapshot(pending=queue, hosts=fleet), NOW)
    assert [p.session_id.int for p in planned.placements] == [1, 2, 5]
    said = {session_id.int: (why.code, why.detail) for session_id, why in planned.blocked.items()}
    assert said == {
        3: ("impossible", "no host that takes sessions has 64 CPUs, not even when it is empty"),
        4: ("no_hosts", "no host of architecture aarch64 takes sessions at the moment"),
        6: ("impossible", "no host that takes sessions has 1 GPU, not even when it is empty"),
    }
    fuller = (pending(1, cpu=4000), pending(2, cpu=3000), pending(3, cpu=2000, mem=1024))
    planned = plan(Snapshot(pending=fuller, hosts=fleet), NOW)
    assert planned.blocked[SessionId(UUID(int=2))].detail == "needs 3 CPUs; the most that is free on one host is 2 CPUs"


def test_what_a_gang_gives_back_is_there_for_the_next() -> None:
    gang = PendingSession(
        id=SessionId(UUID(int=1)),
        architecture="x86_64",
        priority=99,
        created_at=NOW,
        kernels=tuple(PendingKernel(id=KernelId(UUID(int=n)), slots={"cpu": cpu}) for n, cpu in enumerate((4, 1), 1)),
        cluster_mode=ClusterMode.MULTI_NODE,
    )
    planned = plan(Snapshot(pending=(gang, pending(3, cpu=1)), hosts=(host("a", cpu=4),)), NOW)
    assert [p.session_id.int for p in planned.placements] == [3]
    assert planned.blocked[gang.id].detail == (
        "its 2 kernels do not fit on all hosts together, not even when they are empty"
    )


def test_ten_thousand_sessions_on_a_thousand_hosts_take_a_moment() -> None:
    chance = random.Random(1)
    queue = tuple(
        pending(n, cpu=chance.choice([500, 1000, 2000, 4000]), mem=chance.randrange(256, 8192), age=n)
        for n in range(1, 10_001)
    )
    fleet = tuple(host(f"h{n:04}", cpu=16000, mem=32768) for n in range(1000))
    started = time.process_time()
    planned = plan(Snapshot(pending=queue, hosts=fleet), NOW)
    assert time.process_time() - started < 5  # 0.4 s when nothing else runs
    assert Counter(k.agent_id for p in planned.placements for k in p.kernels).total() > 7000


def test_a_session_of_a_snapshot_goes_where_that_lies() -> None:
    def session(number: int, *images_on: str) -> PendingSession:
        kernel = PendingKernel(id=KernelId(UUID(int=number)), slots={"cpu": 1})
        return PendingSession(
            id=SessionId(UUID(int=number)),
            architecture="x86_64",
            priority=10,
            created_at=NOW,
            kernels=(kernel,),
            images_on=frozenset(map(AgentId, images_on)),
        )

    def host(name: str) -> Host:
        return Host(id=AgentId(name), architecture="x86_64", free={"cpu": 1}, capacity={"cpu": 2})

    pending = (session(1, "b"), session(2, "b"), session(3, "c"), session(4, "a", "b"), session(5))
    made = plan(Snapshot(pending=pending, hosts=(host("a"), host("b"))), NOW)
    assert {p.session_id.int: p.kernels[0].agent_id for p in made.placements} == {1: "b", 5: "a"}
    codes = {session_id.int: why.code for session_id, why in made.blocked.items()}
    assert codes == {2: "insufficient", 3: "image_elsewhere", 4: "impossible"}
