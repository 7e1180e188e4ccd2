"""What the agent remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.store import Store, StoredKernel
from agent.wire import KernelSpec, RunDone


def _kernel(generation: int, want: str = "RUN") -> StoredKernel:
    spec = KernelSpec(session_id="s", session_name="demo", image="python:3", slots={"cpu": 1000})
    return StoredKernel(
        kernel_id="k", attempt=1, generation=generation, want=want, spec=spec, observed="PREPARING", notices=[{"a": 1}]
    )


async def test_another_start_remembers_everything(tmp_path: Path) -> None:
    first = await Store.open(tmp_path / "agent.db")
    await first.save(_kernel(1))
    await first.close()

    second = await Store.open(tmp_path / "agent.db")
    try:
        assert (second.uid, second.boot_no) == (first.uid, 2)
        assert await second.kernels() == [_kernel(1)]
    finally:
        await second.close()


async def test_a_late_write_does_not_overwrite_a_newer_intent(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "agent.db")
    try:
        await store.save(_kernel(2, "GONE"))
        await store.save(_kernel(1))
        assert [kernel.want for kernel in await store.kernels()] == ["GONE"]
    finally:
        await store.close()


@pytest.mark.parametrize("times", [1, 2])
async def test_a_finished_run_is_kept_until_it_was_told(tmp_path: Path, times: int) -> None:
    run = RunDone(run_id="r", kernel_id="k", attempt=1, started_at=1.0, finished_at=2.0, exit_code=0)
    store = await Store.open(tmp_path / "agent.db")
    try:
        assert [await store.begin_run("r", "k", 1) for _ in range(2)] == [True, False]
        assert await store.unfinished_runs() == [("r", "k", 1)]
        assert [await store.finish_runs([run]) for _ in range(times)] == [[run], []][:times]
        assert (await store.unfinished_runs(), await store.untold_runs()) == ([], [run])
        await store.runs_told(["r"])
        assert await store.untold_runs() == []
        assert not await store.begin_run("r", "k", 1)
    finally:
        await store.close()


async def test_a_run_whose_code_was_refused_may_come_again(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "agent.db")
    try:
        await store.begin_run("r", "k", 1)
        await store.refuse_run("r")
        assert await store.begin_run("r", "k", 1)
    finally:
        await store.close()
