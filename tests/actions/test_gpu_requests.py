"""What may be asked of devices, and what is refused with nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest

from actions import CreateClusterAction, CreateFromParamsAction, ModifySessionAction
from actions.clusters import KernelRole
from domain.errors import (
    GpuModelUnknown,
    GpuNotShared,
    InvalidConfiguration,
    InvalidResources,
    MoorageError,
    ResourcesImpossible,
)
from domain.resources import ResourceSlot
from domain.session import ClusterMode, Status
from repositories.database import Connection, Database
from tests.actions.test_devices import H100, OUT, a_device
from tests.scenario import ALICE, Given, a_row, a_session, changes, rows, stage

A40 = {"model": "NVIDIA A40", "memory_mib": 46068}
MIG = {"model": f"{H100} MIG 1g.10gb", "memory_mib": 9984, "info": {"parent": "gpu/x", "whole_only": True}}


async def _share(connection: Connection) -> None:
    await connection.execute("UPDATE resource_groups SET gpu_sharing = true")


sharing = Given(put=_share)
#: two H100, one A40, one instance of an H100
HOST_WITH_GPUS: tuple[Given, ...] = (
    *a_device("h1"), *a_device("h2"), *a_device("a1", offered=46068, **A40), *a_device("m1", offered=9984, **MIG),
)  # fmt: skip


def ask(model: str | None = None, /, **slots: Any) -> CreateFromParamsAction:
    amounts = {name.replace("_", "-"): amount for name, amount in slots.items()}
    return CreateFromParamsAction(
        image="python", name="train", gpu_model=model, resource_slots=ResourceSlot(cpu=1, mem=512, **amounts)
    )


def cluster(mode: ClusterMode, workers: int, **worker: Any) -> CreateClusterAction:
    amounts = {name.replace("_", "-"): amount for name, amount in worker.items()}
    return CreateClusterAction(
        image="python", name="train", workers=workers, cluster_mode=mode, resource_slots=ResourceSlot(cpu=1, mem=512),
        worker=KernelRole(resource_slots=ResourceSlot(cpu=1, mem=512, **amounts)),
    )  # fmt: skip


ONE_HOST, MANY = ClusterMode.SINGLE_NODE, ClusterMode.MULTI_NODE


@pytest.mark.parametrize(
    ("given", "asked", "constraints", "slots"),
    [
        (HOST_WITH_GPUS, ask(gpu=4), {}, {"gpu": 4}),
        (HOST_WITH_GPUS, ask("h100", gpu=2), {"gpu_model": "h100"}, {"gpu": 2}),
        (HOST_WITH_GPUS, ask("mig", gpu=1), {"gpu_model": "mig"}, {"gpu": 1}),
        ((*HOST_WITH_GPUS, sharing), ask("A40", gpu=1, gpu_mem="40g"), {"gpu_model": "A40"}, {"gpu-mem": 40960}),
        ((*HOST_WITH_GPUS, sharing), ask(gpu_mem="80g"), {}, {"gpu-mem": 81920}),
        ((*a_device("h1", **OUT), *a_device("h2")), ask("h100", gpu=2), {"gpu_model": "h100"}, {"gpu": 2}),
        ((*HOST_WITH_GPUS, sharing), cluster(ONE_HOST, 2, gpu_mem="60g"), {}, {}),
        (HOST_WITH_GPUS, cluster(ONE_HOST, 2, gpu=2), {}, {}),
    ],
)
async def test_what_can_be_given_is_queued(
    given: tuple[Given, ...], asked: CreateFromParamsAction, constraints: Any, slots: Any, database: Database
) -> None:
    processor = await stage(database, *given)
    made = (await processor.run(asked, by=ALICE)).session_data
    assert (made.status, made.constraints) == (Status.PENDING, constraints)
    assert {name: amount for name, amount in made.requested_slots.items() if name not in ("cpu", "mem")} == slots


@pytest.mark.parametrize(
    ("given", "asked", "error", "says"),
    [
        (
            HOST_WITH_GPUS,
            ask("b200", gpu=1),
            GpuModelUnknown,
            "it has NVIDIA A40, NVIDIA H100 80GB HBM3 and NVIDIA H100",
        ),
        (HOST_WITH_GPUS, ask("h100", gpu=3), ResourcesImpossible, "2 GPUs"),
        (HOST_WITH_GPUS, ask(gpu=5), ResourcesImpossible, "4 GPUs"),
        ((), ask(gpu=1), ResourcesImpossible, "none has a GPU"),
        (HOST_WITH_GPUS, ask("h100"), InvalidConfiguration, "ask for some with gpu"),
        (HOST_WITH_GPUS, ask(gpu_mem="10g"), GpuNotShared, "does not share devices"),
        ((*HOST_WITH_GPUS, sharing), ask("mig", gpu_mem="1g"), GpuNotShared, "handed out whole only"),
        ((*HOST_WITH_GPUS, sharing), ask("a40", gpu_mem="60g"), ResourcesImpossible, "46068 MiB"),
        ((*HOST_WITH_GPUS, sharing), ask(gpu_mem="81g"), ResourcesImpossible, "81920 MiB"),
        (HOST_WITH_GPUS, cluster(ONE_HOST, 3, gpu=2), ResourcesImpossible, "4 GPUs"),
        (HOST_WITH_GPUS, cluster(MANY, 3, gpu=2), ResourcesImpossible, "All hosts together"),
        ((*HOST_WITH_GPUS, sharing), cluster(ONE_HOST, 4, gpu_mem="60g"), ResourcesImpossible, "GiB of one GPU"),
    ],
)
async def test_what_can_never_be_given_is_refused(
    given: tuple[Given, ...],
    asked: CreateFromParamsAction,
    error: type[MoorageError],
    says: str,
    database: Database,
) -> None:
    processor = await stage(database, *given)
    async with database.reader() as connection:
        before = await rows(connection)
    with pytest.raises(error, match=says) as caught:
        await processor.run(asked, by=ALICE)
    assert type(caught.value) is error
    assert caught.value.http_status == 422
    async with database.reader() as connection:
        assert changes(before, await rows(connection)) == ()


async def test_a_session_waits_for_the_first_device_of_a_group_without_hosts(database: Database) -> None:
    processor = await stage(database, a_row("resource_groups", name="gpus", open=True))
    asked = CreateFromParamsAction(
        image="python",
        name="train",
        gpu_model="h100",
        resource_group="gpus",
        resource_slots=ResourceSlot(cpu=1, mem=512, gpu=1),
    )
    assert (await processor.run(asked, by=ALICE)).session_data.status is Status.PENDING


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"gpu": 1}, None),
        ({"gpu-mem": "10g"}, GpuNotShared),
        ({"gpu": 9}, ResourcesImpossible),
    ],
)
async def test_a_queued_session_may_ask_for_other_devices(wanted: Any, error: Any, database: Database) -> None:
    waits = a_session(Status.PENDING, requested_slots={"cpu": 1000, "mem": 512, "gpu-mem": 1024})
    processor = await stage(database, *HOST_WITH_GPUS, waits)
    change = ModifySessionAction(session_name="train", resource_slots=ResourceSlot(wanted))
    if error is None:
        found = (await processor.run(change, by=ALICE)).session_data.requested_slots
        assert dict(found) == {"cpu": 1000, "mem": 512, "gpu": 1}
    else:
        with pytest.raises(error):
            await processor.run(change, by=ALICE)


async def test_devices_are_not_exchanged_while_it_runs(database: Database) -> None:
    processor = await stage(database, *HOST_WITH_GPUS, sharing, a_session())
    for wanted in ({"gpu": 1}, {"gpu-mem": "1g"}):
        with pytest.raises(InvalidResources, match="While a session runs"):
            await processor.run(
                ModifySessionAction(session_name="train", resource_slots=ResourceSlot(wanted)), by=ALICE
            )
