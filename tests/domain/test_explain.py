"""What people are told of a session that waits: word by word, one cause after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from domain.explain import Away, Explanation, Surroundings, explain
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
    Share,
    Snapshot,
)
from domain.session import ClusterMode

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ANN, BEN = UUID(int=1), UUID(int=2)
PROJECT = ("project", "p")


def session(number: int = 1, *, gpu: int = 0, cpu: int = 1000, kernels: int = 1, **more: Any) -> PendingSession:
    slots = {"cpu": cpu, "mem": 1024} | ({"gpu": gpu} if gpu else {})
    asked: dict[str, Any] = {
        "id": SessionId(UUID(int=number)),
        "name": f"waits-{number}",
        "architecture": "x86_64",
        "priority": 10,
        "created_at": NOW + timedelta(seconds=number - 100),
        "user_id": ANN,
        "kernels": tuple(PendingKernel(id=KernelId(UUID(int=100 * number + k)), slots=slots) for k in range(kernels)),
    }
    return PendingSession(**(asked | more))


def host(number: int, *, gpus: int = 4, cpu: int = 8000, model: str = "NVIDIA H100", **more: Any) -> Host:
    devices = tuple(Device(name=f"gpu/{number}-{which}", model=model) for which in range(gpus))
    capacity = {"cpu": cpu, "mem": 65536, **{device.name: 80_000 for device in devices}}
    asked: dict[str, Any] = {"architecture": "x86_64", "free": capacity, "capacity": capacity, "devices": devices}
    return Host(id=AgentId(f"host-{number}"), **(asked | more))


def holding(number: int, on: Host, *, gpus: int = 0, minutes: float | None = None, **more: Any) -> Holding:
    """Of the last devices; the host's `free` is taken by `fleet`."""
    amounts = {"cpu": 1000, **dict.fromkeys([d.name for d in on.devices][-gpus:] if gpus else [], 80_000)}
    ends_at = None if minutes is None else NOW + timedelta(minutes=minutes)
    asked: dict[str, Any] = {"name": f"runs-{number}", "user_id": BEN, "amounts": amounts, "ends_at": ends_at}
    return Holding(session_id=SessionId(UUID(int=1000 + number)), agent_id=on.id, **(asked | more))


def fleet(hosts: tuple[Host, ...], *held: Holding, **more: Any) -> Snapshot:
    free: dict[str, dict[str, int]] = {one.id: dict(one.free) for one in hosts}
    for one in held:
        for name, amount in one.amounts.items():
            free[one.agent_id][name] -= amount
    hosts = tuple(replace(one, free=free[one.id]) for one in hosts)
    return Snapshot(pending=more.pop("pending", ()), hosts=hosts, holdings=held, groups=(Group(),), **more)


def told(snapshot: Snapshot, asked: PendingSession, **around: Any) -> Explanation:
    with_it = replace(snapshot, pending=(*snapshot.pending, asked))
    return explain(with_it, asked.id, NOW, Surroundings(**({"viewer": ANN} | around)))


def ways(found: Explanation) -> list[str]:
    return [way.text for way in found.ways]


def test_one_that_starts() -> None:
    found = told(fleet((host(1),)), session(gpu=2))
    assert (found.code, found.on, found.position, found.ways) == ("starting", ("host-1",), 1, ())
    assert found.text == "Everything that it asks for is free on host-1: it is about to start."


def test_too_few_gpus() -> None:
    first, second = host(1), host(2)
    found = told(
        fleet(
            (first, second, host(3, architecture="aarch64"), host(4, gpus=0)),
            holding(1, first, gpus=1, minutes=25),
            holding(2, second, gpus=2, user_id=ANN),
        ),
        session(gpu=4),
        away=(Away(id=AgentId("host-5"), architecture="x86_64", code="cordoned", text="cordoned"),),
    )
    assert found.code == "insufficient"
    assert [(count.hosts, count.text) for count in found.hosts] == [
        (2, "1 to 2 GPUs too few"),
        (1, "4 GPUs too few, even when it is empty"),
        (1, "cordoned"),
        (1, "other architecture (aarch64)"),
    ]
    assert ways(found) == [
        "with 3 GPUs",
        "when session runs-2 on host-2 ends (it has no lifetime limit)",
        "when a session of another user on host-1 ends, at the latest at 12:25 UTC (in 25 min), its lifetime limit",
    ]
    assert found.ways[-1].endings[0].session_id is None
    assert found.reservation is not None
    assert found.reservation.own
    assert found.reservation.text == "Room is kept for it on host-1: it starts at the latest at 12:25 UTC (in 25 min)."
    assert len(found.per_host) == 5


def test_administrators_see_names() -> None:
    one = host(1)
    found = told(fleet((one,), holding(1, one, gpus=1)), session(gpu=4), viewer=None)
    assert "when session runs-1 on host-1 ends (it has no lifetime limit)" in ways(found)


def test_several_have_to_end() -> None:
    one = host(1)
    held = (holding(1, one, user_id=ANN, amounts={"gpu/1-0": 80_000}), holding(2, one, amounts={"gpu/1-1": 80_000}))
    found = told(fleet((one,), *held), session(gpu=4))
    assert ways(found) == [
        "with 2 GPUs",
        "when session runs-1 on host-1 and 1 session of other users on host-1 have ended",
    ]


def test_all_with_a_lifetime_have_ended() -> None:
    one = host(1)
    amounts: list[Mapping[str, int]] = [{f"gpu/1-{which}": 80_000} for which in range(3)]
    held = [holding(which, one, minutes=10 * (which + 1), amounts=amounts[which]) for which in range(3)]
    found = told(fleet((one,), *held), session(gpu=3))
    at = "at the latest at 12:20 UTC (in 20 min), when 2 sessions will have reached their lifetime limits"
    assert at in ways(found)
    assert next(way.at for way in found.ways if way.kind == "time") == NOW + timedelta(minutes=20)


def test_more_than_any_host_has() -> None:
    found = told(fleet((host(1),)), session(gpu=6))
    assert found.never
    assert found.text.startswith("It can never start as it is: no host")
    assert [(way.text, way.now) for way in found.ways] == [("with 4 GPUs", True)]


def test_what_could_start_at_some_time() -> None:
    one = host(1)
    found = told(fleet((one,), holding(1, one, gpus=4)), session(gpu=6))
    assert found.never
    assert [(way.text, way.now) for way in found.ways] == [("with 4 GPUs", False)]


def test_hosts_that_may_come_back() -> None:
    away = Away(id=AgentId("host-9"), architecture="x86_64", code="lost", text="does not answer")
    found = told(fleet((host(1),)), session(gpu=6), away=(away,))
    assert not found.never
    assert found.text.endswith("But 1 other host of the group takes no sessions at the moment.")


def test_a_group_without_hosts() -> None:
    found = told(fleet((host(1),)), session(resource_group="empty"), groups=("default", "empty"))
    assert (found.code, found.never, found.hosts) == ("no_hosts", True, ())
    assert found.text == "It can never start as it is: the resource group empty has no host that takes sessions."
    assert ways(found) == ["in the resource group default"]


def test_constraints_that_no_host_meets() -> None:
    asked = session(gpu=1, constraints=Constraints(gpu_model="a100", labels={"zone": "a"}))
    found = told(fleet((host(1, labels={"zone": "a"}),)), asked)
    assert found.code == "gpu_model"
    assert ways(found) == ["without the demand for GPUs of the model a100"]
    both = told(fleet((host(1),)), asked)
    assert ways(both) == ["without the demand for a host with zone=a and GPUs of the model a100"]


def test_kept_apart_from_ones_own() -> None:
    one = host(1)
    found = told(
        fleet((one,), holding(1, one, user_id=ANN, labels={"app": "db"})),
        session(constraints=Constraints(apart_from={"app": "db"})),
    )
    assert found.code == "apart_from"
    assert [count.text for count in found.hosts] == [
        "holds another session of its owner, from which it is to be kept apart"
    ]
    assert ways(found)[0] == "without the demand for distance from sessions with app=db"
    assert ways(found)[1].startswith("when session runs-1 on host-1 ends")


def test_quota() -> None:
    one = host(1)
    limit = Limit(scope=PROJECT, name="cpu", max_amount=4000, held=2000, of="vision")
    holder = holding(1, one, user_id=ANN)
    counted = {holder.session_id: {(PROJECT, "cpu"): 2000}}
    found = told(fleet((one,), holder, limits=(limit,)), session(cpu=3000, scopes=(PROJECT,)), counted=counted)
    assert found.code == "quota"
    assert found.text == (
        "It waits for quota: the project vision may hold 4 CPUs at once and holds 2 CPUs already; it asks for 3 CPUs."
    )
    assert ways(found)[:2] == ["with 2 CPUs", "with 1 more CPU of quota in project vision"]
    assert (found.ways[1].limits[0].more, found.ways[1].limits[0].max_amount) == (1000, 5000)


def test_a_limit_that_it_alone_exceeds() -> None:
    limit = Limit(scope=PROJECT, name="cpu", max_amount=4000, held=0, of="vision")
    found = told(fleet((host(1),), limits=(limit,)), session(cpu=6000, scopes=(PROJECT,)))
    assert (found.code, found.never) == ("quota", True)
    assert found.text.startswith("It can never start as it is: project vision may hold 4 CPUs at once")
    assert ways(found) == ["with 4 CPUs", "with 2 more CPUs of quota in project vision"]


def test_quota_comes_free_with_an_end() -> None:
    one = host(1)
    limit = Limit(scope=PROJECT, name="sessions", max_amount=1, held=1, of="vision")
    holder = holding(1, one, user_id=ANN, minutes=5)
    found = told(
        fleet((one,), holder, limits=(limit,)),
        session(scopes=(PROJECT,)),
        counted={holder.session_id: {(PROJECT, "sessions"): 1}},
    )
    assert "with 1 more session of quota in project vision" in ways(found)
    assert any(text.startswith("when session runs-1 on host-1 ends") for text in ways(found))


def test_behind_a_reservation() -> None:
    """Room is free, but kept for a larger one: a shorter one may pass, and so may one of higher priority."""
    one = host(1)
    big = session(1, gpu=4, user_id=BEN)
    found = told(
        fleet((one,), holding(1, one, gpus=2, minutes=30), pending=(big,)), session(2, gpu=1), most_priority=20
    )
    assert (found.code, found.position, found.queued) == ("reserved", 2, 2)
    assert found.text == "It waits because a session of another user comes first, and what is free is kept for that."
    assert found.reservation is not None
    assert not found.reservation.own
    assert found.reservation.text == (
        "Room on host-1 is kept for a session of another user, which starts at the latest at 12:30 UTC (in 30 min)."
    )
    assert "with a lifetime of at most 30 min (it would be over before the room is needed)" in ways(found)
    assert "with priority 11 instead of 10" in ways(found)
    assert "waits-1" not in str(found)


def test_who_is_before_it_and_by_what_rule() -> None:
    one = host(1, gpus=1)
    pending = (
        session(1, gpu=1, priority=20, user_id=BEN),
        session(2, gpu=1),
        session(9, gpu=1, user_id=BEN),
    )
    shares = (Share(resource_group="default", user_id=ANN, past={"cpu": 4000.0}),)
    found = told(fleet((one,), holding(1, one, gpus=1), pending=pending, shares=shares), session(3, gpu=1))
    assert (found.position, found.queued) == (4, 4)
    assert [(before.rule, before.text) for before in found.before] == [
        ("priority", "1 session with a higher priority"),
        ("share", "1 session of users who have had less of this group"),
        ("age", "1 session that came earlier, yours"),
    ]


def test_a_cluster_may_be_smaller() -> None:
    one = host(1)
    asked = session(cpu=2000, kernels=5, cluster_mode=ClusterMode.SINGLE_NODE, clustered=True)
    found = told(fleet((one,), holding(1, one)), asked)
    assert "with 2 workers" in ways(found)
    assert "with 1.4 CPUs for each of its kernels" in ways(found)
