"""A kernel with a lease ends by itself, with the agent, without it, and when it is found again too late."""

from __future__ import annotations

import asyncio

import docker

from domain.elapsed import boottime
from runner.lease import EXIT_CODE
from tests.agent.conftest import Host


async def test_an_agent_that_hears_of_nobody_ends_it(host: Host, kernel_id: str) -> None:
    host.kernels.renewed(boottime())
    await host.run(kernel_id, lease_seconds=4.0)
    await host.until(kernel_id, "RUNNING")
    sent_at = boottime()
    host.kernels.renewed(sent_at)
    link = host.kernel(kernel_id).link
    assert link is not None
    await link.execute("r1", mode="query", code="import time; time.sleep(60)", wait_seconds=0.0)
    fact = await host.until(kernel_id, "EXITED", "FAILED")
    assert boottime() - sent_at >= 4.0
    assert fact.exit is not None
    assert (fact.observed, fact.exit["reason"]) == ("EXITED", "fenced")
    assert "no answer from the manager for 4 s" in fact.exit["message"]


async def test_a_runner_without_an_agent_ends_by_itself(
    host: Host, kernel_id: str, engine: docker.DockerClient
) -> None:
    host.kernels.renewed(boottime())
    await host.run(kernel_id, lease_seconds=4.0)
    await host.until(kernel_id, "RUNNING")
    host.kernels.renewed(boottime())
    await host.kernel(kernel_id).tell_lease()
    name = host.kernel(kernel_id).name
    await host.stop()
    assert (await asyncio.to_thread(engine.containers.get(name).wait))["StatusCode"] == EXIT_CODE
    await host.start()
    fact = await host.until(kernel_id, "EXITED", "FAILED")
    assert fact.exit is not None
    assert fact.exit["reason"] == "fenced"


async def test_what_is_over_is_not_begun(host: Host, kernel_id: str) -> None:
    """As an agent that was stopped finds it in its sockets."""
    await host.run(kernel_id, lease_seconds=4.0)
    fact = await host.until(kernel_id, "FAILED", "RUNNING")
    assert fact.exit is not None
    assert (fact.observed, fact.exit["reason"]) == ("FAILED", "fenced")
    assert await host.containers() == []


async def test_without_a_lease_nothing_ends(host: Host, kernel_id: str) -> None:
    host.kernels.renewed(boottime() - 1e6)
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING")
    for kernel in (host.kernel(kernel_id),):
        await kernel.tell_lease()
        assert kernel.lease_left > 1e9
