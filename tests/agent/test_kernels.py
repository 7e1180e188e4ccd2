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


async def test_what_has_begun_never_begins_a_second_time(host: Host, kernel_id: str) -> None:
    """After a restore from a time before its end was forgotten here."""
    fact = await host.run(kernel_id, begun=True)
    assert (fact.observed, fact.generation) == ("GONE", 1)
    assert await host.containers() == []


async def test_a_startup_command_ends_its_kernel(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id, startup_command="echo done; exit 3")
    fact = await host.until(kernel_id, "EXITED", "FAILED")
    assert fact.exit is not None
    assert (fact.exit["reason"], fact.exit["exit_code"], fact.exit["finished"]) == ("finished", 3, True)
    assert [run.exit_code for run in await host.until_ended(kernel_id)] == [3]

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
    assert [run.exit_code for run in await host.until_ended("short")] == [4]
    assert kernel.link is not None
    assert set(kernel.link.runs) == {"long"}
    assert [fact.boot_no for fact in host.kernels.inventory()] == [2]


async def test_what_a_crash_left_half_done_is_done(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.stop()
    await host.start()
    assert (await host.until(kernel_id, "RUNNING", "FAILED")).observed == "RUNNING"
    await host.end(kernel_id)
    await host.stop()
    await host.start()
    await host.until(kernel_id, "GONE")
    assert await host.containers() == []


async def test_a_container_that_vanished_while_nobody_looked_is_missed(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    await host.stop()
    await host.outside("rm", "-f", str(fact.container_id))
    await host.start()
    fact = await host.until(kernel_id, "EXITED")
    assert fact.exit is not None
    assert fact.exit["reason"] == "disappeared"


async def test_a_frozen_container_is_thawed_and_a_strange_one_left_alone(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    await host.stop()
    await host.outside("pause", str(fact.container_id))
    label = f"moorage.agent={host.uid}"
    await host.outside("create", "--name", f"strange-{kernel_id}", "--label", label, host.image, "true")
    await host.start()
    assert host.kernels.quarantined == [f"strange-{kernel_id}"]
    await host.outside("inspect", f"strange-{kernel_id}")
    link = host.kernel(kernel_id).link
    while link is None:
        await asyncio.sleep(0.01)
        link = host.kernel(kernel_id).link
    assert (await link.execute("r1", mode="batch", code="true", wait_seconds=20.0)).done


async def test_a_command_that_eats_all_memory_is_told_so(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id, startup_command="exec python3 -c 'x = bytearray(900 << 20)'")
    fact = await host.until(kernel_id, "EXITED")
    assert fact.exit is not None
    assert (fact.exit["exit_code"], fact.exit["finished"]) == (137, True)
    assert [run.reason for run in await host.until_ended(kernel_id)] == ["out_of_memory"]


async def test_what_is_long_gone_is_forgotten(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING", "FAILED")
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")
    folder, now = host.kernel(kernel_id).folders.root, host.kernels.now()
    assert await host.kernels.purge(now + 86400) == []
    assert folder.exists()
    assert await host.kernels.purge(now + 8 * 86400) == [kernel_id]
    assert not folder.exists()
    assert host.kernels.inventory() == []


async def test_the_network_that_vanished_is_made_again(host: Host, kernel_id: str) -> None:
    await host.engine.remove_network()
    await host.run(kernel_id)
    assert (await host.until(kernel_id, "RUNNING", "FAILED")).observed == "RUNNING"


async def test_sessions_cannot_do_what_the_profile_forbids(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING", "FAILED")
    look = "exec 2>&1; id -u; touch /nope; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status"
    code = f"{look}; touch /tmp/x /home/work/y && echo writable"
    link = host.kernel(kernel_id).link
    assert link is not None
    assert (await link.execute("r1", mode="batch", code=code, wait_seconds=20.0)).seq
    while host.kernel(kernel_id).rings.done("r1") is None:
        await link.wait_tail("r1", 1 << 40, 20.0)
    said = host.kernel(kernel_id).rings.text("r1", 4000).split()
    assert said[0] == "1000"
    assert said[-1] == "writable"
    assert "Read-only" in said
    assert said[said.index("CapEff:") + 1] == "0" * 16
    assert said[said.index("NoNewPrivs:") + 1] == "1"
    assert said[said.index("Seccomp:") + 1] == "2"
