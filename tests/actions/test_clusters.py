"""What happens when clusters are created, grow and shrink, and when one of their kernels is meant."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from actions import (
    Action,
    CreateClusterAction,
    CreateFromParamsAction,
    ExecuteSessionAction,
    GetSessionInfoAction,
    ListFilesAction,
    ModifySessionAction,
    RestartSessionAction,
)
from actions.clusters import KernelRole
from actions.resizing import Change, change
from agent.client import FilePage, KernelAddress, VolumeAddress
from domain.errors import (
    ImageNotFound,
    InvalidConfiguration,
    InvalidRequest,
    KernelNotFound,
    MoorageError,
    PermissionDenied,
    QuotaExceeded,
    ResourcesImpossible,
    SessionNotFound,
    SessionNotReady,
    WrongStatus,
)
from domain.ids import KernelId
from domain.resources import ResourceSlot
from domain.session import ClusterMode, KernelState, SessionTypes, Status
from repositories.clusters import Member
from repositories.database import Connection, Database
from tests.agent.fake import FakeAgent
from tests.scenario import (
    ALICE,
    HOST,
    ID,
    IMAGE,
    MALLORY,
    NOW,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    insert,
    kernel_of,
    scenarios,
    stage,
)


def create(**changes: Any) -> CreateClusterAction:
    slots = ResourceSlot(cpu=2, mem=1024)
    return CreateClusterAction(**{"name": "train", "image": "python", "resource_slots": slots, "workers": 2, **changes})


def quota(**limits: int) -> tuple[Given, ...]:
    return tuple(
        a_row("quotas", scope="user", scope_id=str(UUID(int=1)), name=name, max_amount=most)
        for name, most in limits.items()
    )


CREATED = (*["+kernels train"] * 3, "+sessions train", "+status_history train create PENDING")
GPU_IMAGE = a_row("images", name="gpu:1", architecture="x86_64")


@scenarios(
    CreateClusterAction,
    success=TestScenario(
        do=create(),
        answer=lambda a: (
            [kernel.name for kernel in a.session_data.kernels] == ["main1", "worker1", "worker2"]
            and a.session_data.cluster_size == 3
        ),
        then_rows=CREATED,
    ),
    stranger=TestScenario(
        do=create(owner_access_key="KEY-alice"), by=MALLORY, error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NotApplicable("there is no session yet"),
    not_found=TestScenario(
        do=create(worker=KernelRole(image="nosuch")), error=ImageNotFound, then_audit="image_not_found"
    ),
    bad_input=TestScenario(do=create(workers=0), error=InvalidRequest, then_audit=None),
    more={
        "together_too_large_for_one_host": TestScenario(
            do=create(workers=4), error=ResourcesImpossible, then_audit=None
        ),
        "larger_than_any_fleet": TestScenario(
            do=create(workers=4, cluster_mode=ClusterMode.MULTI_NODE), error=ResourcesImpossible, then_audit=None
        ),
        "a_worker_larger_than_any_host": TestScenario(
            do=create(
                cluster_mode=ClusterMode.MULTI_NODE, worker=KernelRole(resource_slots=ResourceSlot(cpu=9, mem=512))
            ),
            error=ResourcesImpossible,
            then_audit=None,
        ),
        "more_kernels_than_a_subnet_has_addresses": TestScenario(
            do=create(workers=200), error=InvalidRequest, then_audit=None
        ),
        "a_size_that_contradicts_the_workers": TestScenario(
            do=create(cluster_size=7), error=InvalidConfiguration, then_audit=None
        ),
        "roles_of_two_architectures": TestScenario(
            given=(a_row("images", name="arm:1", architecture="aarch64"),),
            do=create(worker=KernelRole(image="arm:1")),
            error=InvalidConfiguration,
            then_audit=None,
        ),
        "the_quota_counts_all_kernels": TestScenario(
            given=quota(cpu=6000, sessions=1),
            do=create(),
            then_rows=(
                *CREATED,
                "+quota_uses train cpu 6000",
                "+quota_uses train sessions 1",
                "quotas cpu: queued 0 -> 6000",
                "quotas sessions: queued 0 -> 1",
            ),
        ),
        "a_full_quota_refuses_all_of_it": TestScenario(
            given=quota(cpu=5999), do=create(), error=QuotaExceeded, then_audit=None
        ),
    },
)
async def test_create_cluster(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_each_role_has_its_own_image_and_size(database: Database) -> None:
    processor = await stage(database, GPU_IMAGE)
    small = ResourceSlot(cpu=1, mem=512)
    await processor.run(
        create(worker=KernelRole(image="gpu:1", resource_slots=small, environ={"A": "worker"}), environ={"A": "all"}),
        by=ALICE,
    )
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT role, slots, spec FROM kernels ORDER BY role, idx")
    assert [(row["role"], row["spec"]["image"], row["slots"], row["spec"]["environ"]) for row in rows] == [
        ("main", IMAGE, {"cpu": 2000, "mem": 1024}, {"A": "all"}),
        *[("worker", "gpu:1", {"cpu": 1000, "mem": 512}, {"A": "worker"})] * 2,
    ]
    assert {row["spec"]["cluster"] for row in rows} == {"single-node"}


async def test_create_from_params_makes_clusters_as_well(database: Database) -> None:
    processor = await stage(database)
    made = await processor.run(
        CreateFromParamsAction(
            image="python", resource_slots=ResourceSlot(cpu=1, mem=512), cluster_size=4, session_type=SessionTypes.BATCH,
            startup_command="true",
        ),
        by=ALICE,
    )  # fmt: skip
    assert [kernel.name for kernel in made.session_data.kernels] == ["main1", "worker1", "worker2", "worker3"]
    async with database.reader() as connection:
        commands = await connection.fetch("SELECT role, spec ->> 'startup_command' AS command FROM kernels ORDER BY 1")
    assert [row["command"] for row in commands] == ["true", None, None, None]  # the work is the main kernel's


# -- one that runs -------------------------------------------------------------------------------------------------------
def worker_of(index: int) -> UUID:
    return UUID(int=ID.int + 0x2000 + index)


def a_cluster(*workers: str | None, status: Status = Status.RUNNING, **columns: Any) -> tuple[Given, ...]:
    """With a main kernel that runs, and workers of which this was observed; None: waiting for a host."""

    async def put(connection: Connection) -> None:
        network = {"address": "10.0.0.2", "gateway": "10.0.0.254"}
        spec = {"session_id": str(ID), "session_name": "train", "image": IMAGE, "cluster": "single-node"}
        await connection.execute("UPDATE kernels SET spec = $1", {**spec, "network": network})
        await insert(
            connection, "cluster_networks", {"session_id": ID, "subnet": "10.0.0.0/24", "vni": 7, "created_at": NOW}
        )
        for index, observed in enumerate(workers, 1):
            placed = observed is not None
            row = {
                "id": worker_of(index),
                "session_id": ID,
                "role": "worker",
                "idx": index,
                "spec": {**spec, "network": {**network, "address": f"10.0.0.{index + 2}"}} if placed else spec,
                "slots": {"cpu": 1000, "mem": 512},
                "agent_id": HOST if placed else None,
                "want": "RUN" if placed else "NONE",
                "joining": not placed,
                "observed": observed,
                "generation": int(placed),
                "seen_generation": int(placed),
                "created_at": NOW,
            }
            await insert(connection, "kernels", row)

    return a_session(status, cluster_size=1 + len(workers), **columns), Given(put=put)


def resize(size: int, **more: Any) -> ModifySessionAction:
    return ModifySessionAction(session_name="train", cluster_size=size, **more)


def on(kernel: str, **more: Any) -> ExecuteSessionAction:
    return ExecuteSessionAction(session_name="train", code="1", kernel=kernel, **more)


REFUSALS: dict[str, tuple[tuple[Given, ...], Action[Any, Any], type[MoorageError], str | None]] = {
    "a_kernel_that_is_not_there": (a_cluster("RUNNING"), on("worker2"), KernelNotFound, "kernel_not_found"),
    "a_kernel_that_has_ended": (a_cluster("EXITED"), on("worker1"), WrongStatus, None),
    "a_kernel_without_a_host": (a_cluster(None), on("worker1"), SessionNotReady, None),
    "another_sessions_cluster": (a_cluster("RUNNING"), on("worker1"), SessionNotFound, "session_not_found"),
    "a_kernel_of_a_single_session": ((a_session(),), on("worker1"), KernelNotFound, "kernel_not_found"),
    "more_than_the_host_can_hold": (a_cluster("RUNNING"), resize(99), ResourcesImpossible, None),
    "no_kernel_at_all": (a_cluster("RUNNING"), resize(0), InvalidRequest, None),
    "growth_of_a_single_session": ((a_session(),), resize(2), InvalidConfiguration, None),
    "growth_before_it_runs": (a_cluster("PREPARING", status=Status.PREPARING), resize(3), SessionNotReady, None),
    "growth_over_the_quota": ((*a_cluster("RUNNING"), *quota(cpu=2000)), resize(3), QuotaExceeded, None),
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
async def test_refused_with_nothing_changed(database: Database, name: str) -> None:
    given, do, error, audit = REFUSALS[name]
    by = MALLORY if name.startswith("another") else ALICE
    await TestScenario(given=given, do=do, by=by, error=error, then_audit=audit).play(database)


class Seeing(FakeAgent):
    """Remembers which kernel files were asked of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[UUID] = []

    async def list_files(
        self, where: KernelAddress | VolumeAddress, path: str, *, cursor: str | None, limit: int
    ) -> FilePage:
        assert isinstance(where, KernelAddress)
        self.seen.append(where.kernel_id)
        return await super().list_files(where, path, cursor=cursor, limit=limit)


@pytest.mark.parametrize("kernel", [None, "main1", "worker1", str(worker_of(1))])
async def test_an_execution_goes_to_the_kernel_that_is_meant(database: Database, kernel: str | None) -> None:
    fake = Seeing()
    processor = await stage(database, *a_cluster("RUNNING"), fake=fake)
    expected = kernel_of(ID) if kernel in (None, "main1") else worker_of(1)
    answer = await processor.run(ExecuteSessionAction(session_name="train", code="1", kernel=kernel), by=ALICE)
    async with database.reader() as connection:
        ran_on = await connection.fetchval("SELECT kernel_id FROM executions WHERE run_id = $1", answer.run_id)
    await processor.run(ListFilesAction(session_name="train", kernel=kernel), by=ALICE)
    assert (ran_on, fake.seen) == (expected, [expected])


async def test_info_shows_every_kernel(database: Database) -> None:
    processor = await stage(database, *a_cluster("RUNNING", "EXITED", None, status=Status.RUNNING_DEGRADED))
    info = (await processor.run(GetSessionInfoAction(session_name="train"), by=ALICE)).session_info
    assert [(k.name, k.agent, k.status, k.pending) for k in info.kernels] == [
        ("main1", HOST, "RUNNING", False),
        ("worker1", HOST, "RUNNING", False),
        ("worker2", HOST, "EXITED", False),
        ("worker3", None, None, False),
    ]


async def test_growing_adds_kernels_that_wait_for_a_host(database: Database) -> None:
    processor = await stage(database, *a_cluster("RUNNING"), *quota(cpu=9000))
    grown = (await processor.run(resize(4), by=ALICE)).session_data
    assert (grown.cluster_size, grown.status) == (4, "RUNNING")
    assert [kernel.name for kernel in grown.kernels] == ["main1", "worker1", "worker2", "worker3"]
    async with database.reader() as connection:
        new = await connection.fetch("SELECT spec, want, joining, slots FROM kernels WHERE idx > 1 ORDER BY idx")
        assert await connection.fetchval("SELECT used FROM quotas") == 4000
    assert [(row["want"], row["joining"], row["slots"]) for row in new] == [
        ("NONE", True, {"cpu": 1000, "mem": 512})
    ] * 2
    assert all("network" not in row["spec"] for row in new)


async def test_shrinking_tells_the_last_ones_to_go_and_the_others_of_it(database: Database) -> None:
    processor = await stage(database, *a_cluster("RUNNING", "RUNNING", None))
    shrunk = (await processor.run(resize(2), by=ALICE)).session_data
    assert [kernel.name for kernel in shrunk.kernels] == ["main1", "worker1"]
    assert all(kernel.pending for kernel in shrunk.kernels)  # they are told of the new circle
    async with database.reader() as connection:
        left = await connection.fetch("SELECT idx, want FROM kernels WHERE left_at IS NOT NULL ORDER BY idx")
        told = await connection.fetch("SELECT spec -> 'network' -> 'hosts' AS hosts FROM kernels WHERE left_at IS NULL")
    assert [(row["idx"], row["want"]) for row in left] == [(2, "GONE"), (3, "NONE")]
    assert {json.dumps(row["hosts"]) for row in told} == {'[["main1", "10.0.0.2"], ["worker1", "10.0.0.3"]]'}


async def test_what_has_ended_is_replaced_and_a_degraded_session_recovers(database: Database) -> None:
    processor = await stage(database, *a_cluster("EXITED", "RUNNING", status=Status.RUNNING_DEGRADED))
    kept = (await processor.run(resize(3), by=ALICE)).session_data
    assert (kept.status, [(k.name, k.status) for k in kept.kernels]) == (
        "RUNNING_DEGRADED",
        [("main1", "RUNNING"), ("worker1", None), ("worker2", "RUNNING")],
    )
    smaller = (await processor.run(resize(2), by=ALICE)).session_data  # without the one that waits, all run
    assert (smaller.status, [k.name for k in smaller.kernels]) == ("RUNNING", ["main1", "worker2"])


async def test_a_restart_is_everybodys_but_not_of_those_who_left(database: Database) -> None:
    processor = await stage(database, *a_cluster("RUNNING", "RUNNING"))
    await processor.run(resize(2), by=ALICE)
    await processor.run(RestartSessionAction(session_name="train"), by=ALICE)
    async with database.reader() as connection:
        rows = await connection.fetch(
            "SELECT attempt, want, left_at IS NOT NULL AS left FROM kernels ORDER BY role, idx"
        )
    assert [(row["attempt"], row["want"], row["left"]) for row in rows] == [
        (2, "RUN", False),
        (2, "RUN", False),
        (1, "GONE", True),
    ]


@pytest.mark.parametrize(
    ("observed", "size", "leave", "join"),
    [
        ("RR", 3, [], []),
        ("RR", 5, [], [3, 4]),
        ("RRRR", 3, [3, 4], []),
        ("ER", 3, [1], [1]),
        ("RER", 3, [2], []),
        ("ERE", 4, [1, 3], [1, 3]),
        ("", 3, [], [1, 2]),
        ("RR", 1, [1, 2], []),
        ("WR", 2, [1], []),
    ],
)
def test_who_leaves_and_who_joins(observed: str, size: int, leave: list[int], join: list[int]) -> None:
    states = {"R": KernelState.RUNNING, "E": KernelState.EXITED, "W": None}
    members = [member("main", 1, KernelState.RUNNING)]
    members += [member("worker", index, states[letter]) for index, letter in enumerate(observed, 1)]
    assert change(members, size) == Change(leave=tuple(KernelId(worker_of(i)) for i in leave), join=tuple(join))


def member(role: str, index: int, observed: KernelState | None) -> Member:
    return Member(id=KernelId(worker_of(index)), role=role, index=index, observed=observed, slots={}, spec={})
