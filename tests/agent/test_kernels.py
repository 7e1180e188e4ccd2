"""Kernels on a real engine: brought up, watched, found again, taken down."""

from __future__ import annotations

import asyncio

from tests.agent.conftest import Host


async def test_a_kernel_comes_and_goes(host: Host, kernel_id: str) -> None:
    assert (await host.run(kernel_id)).observed == "PREPARING"
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    assert (fact.observed, fact.exit, len(await host.containers())) == ("RUNNING", None, 1)
    link = host.kernel(kernel_id).link
    assert link is not None
    await link.execute("r1", mode="query", code="print(6 * 7)", wait_seconds=20.0)
    assert "42" in host.kernel(kernel_id).rings.text("r1", 1000)

    assert (await host.end(kernel_id)).observed == "RUNNING"
    await host.until(kernel_id, "GONE")

    assert await host.containers() == []
    assert not host.kernel(kernel_id).folders.scratch.exists()
    assert "42" in host.kernel(kernel_id).rings.text("r1", 1000)


async def test_a_destroy_overtakes_a_create(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await asyncio.sleep(0.05)  # in the middle of it, wherever that is
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")
    assert await host.containers() == []
    assert (await host.run(kernel_id, generation=1)).observed == "GONE"


async def test_a_tombstone_refuses_a_late_create(host: Host, kernel_id: str) -> None:
    assert (await host.end(kernel_id, generation=2)).observed == "GONE"
    fact = await host.run(kernel_id, generation=1)
    assert (fact.observed, fact.generation) == ("GONE", 2)
    assert await host.containers() == []


async def test_a_startup_command_ends_its_kernel(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id, startup_command="echo done; exit 3")
    fact = await host.until(kernel_id, "EXITED", "FAILED")
    assert fact.exit is not None
    assert (fact.exit["reason"], fact.exit["exit_code"], fact.exit["finished"]) == ("finished", 3, True)
    assert [(run.run_id, run.exit_code) for run in host.kernels.runs.pending()] == [(kernel_id, 3)]

    await host.run(kernel_id, attempt=2, generation=2, startup_command="test -e kept || exit 7; touch kept")
    fact = await host.until(kernel_id, "EXITED", "FAILED")
    assert fact.exit is not None
    assert (fact.attempt, fact.exit["exit_code"]) == (2, 7)


async def test_a_failing_bootstrap_is_a_notice_unless_it_is_required(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id, bootstrap_script="echo oh no; exit 5")
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    assert fact.observed == "RUNNING"
    assert [(notice["kind"], notice["log_tail"]) for notice in fact.notices] == [("bootstrap_failed", "oh no\n")]

    other = kernel_id[:-1] + ("0" if kernel_id[-1] != "0" else "1")
    await host.run(other, bootstrap_script="exit 5", bootstrap_required=True)
    fact = await host.until(other, "RUNNING", "FAILED")
    assert fact.exit is not None
    assert (fact.observed, fact.exit["reason"], fact.exit["exit_code"]) == ("FAILED", "bootstrap_failed", 5)


async def test_an_image_that_is_nowhere_fails_the_kernel(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id, image="localhost:1/nothing:here")
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    assert fact.exit is not None
    assert fact.exit["reason"] in ("image_missing", "create_failed")


async def test_a_container_that_is_killed_from_outside_is_noticed(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    assert fact.container_id
    await host.engine.signal(fact.container_id, "KILL")
    fact = await host.until(kernel_id, "EXITED")
    assert fact.exit is not None
    assert (fact.exit["reason"], fact.exit["signal"]) == ("killed", 9)


async def test_a_restart_keeps_the_files_and_takes_a_new_container(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING", "FAILED")
    first = await host.containers()
    (host.kernel(kernel_id).folders.scratch / "kept").touch()

    await host.run(kernel_id, attempt=2, generation=2)
    fact = await host.until(kernel_id, "RUNNING", "FAILED")

    assert (fact.attempt, fact.observed) == (2, "RUNNING")
    second = await host.containers()
    assert len(second) == 1
    assert second != first
    assert (host.kernel(kernel_id).folders.scratch / "kept").exists()


async def test_everything_is_found_again_after_the_agent_died(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING", "FAILED")
    kernel = host.kernel(kernel_id)
    assert kernel.link is not None
    await host.kernels.runs.begin("short", kernel_id, 1)
    await host.kernels.runs.begin("long", kernel_id, 1)
    await kernel.link.execute("long", mode="batch", code="cat", wait_seconds=0.0)
    await kernel.link.execute("short", mode="batch", code="exit 4", wait_seconds=10.0)
    await host.stop()

    await host.start()
    kernel = host.kernel(kernel_id)
    async with asyncio.timeout(20):
        while not host.kernels.runs.pending() or kernel.link is None:
            host.kernels.changed.clear()
            await host.kernels.changed.wait()

    assert [(run.run_id, run.exit_code) for run in host.kernels.runs.pending()] == [("short", 4)]
    assert kernel.link is not None
    assert set(kernel.link.runs) == {"long"}
    assert [fact.boot_no for fact in host.kernels.inventory()] == [2]
