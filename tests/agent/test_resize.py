"""A running container gets other limits, on a real engine, and nothing in it is killed for that."""

from __future__ import annotations

import pytest

from tests.agent.conftest import Host

pytestmark = pytest.mark.containers
MIB = 1 << 20
HOLD = "x = bytearray(150 * 1024 * 1024)"


def limits(host: Host, kernel_id: str) -> tuple[int | None, int | None]:
    cgroup = host.kernel(kernel_id).cgroup
    assert cgroup is not None
    return cgroup.limits()


async def test_limits_follow_the_intent_and_wait_for_room_below_them(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING", "FAILED")
    assert limits(host, kernel_id) == (256 * MIB, 100_000)
    container_id = host.kernel(kernel_id).state.container_id

    await host.run(kernel_id, generation=2, slots={"cpu": 500, "mem": 512})
    await host.kernel(kernel_id).adjusted()
    assert limits(host, kernel_id) == (512 * MIB, 50_000)

    link = host.kernel(kernel_id).link
    assert link is not None
    await link.execute("r1", mode="query", code=HOLD, wait_seconds=20.0)
    await host.run(kernel_id, generation=3, slots={"cpu": 500, "mem": 128})
    assert limits(host, kernel_id) == (512 * MIB, 50_000), "it would have been killed"
    await link.execute("r2", mode="query", code="del x", wait_seconds=20.0)
    await host.kernel(kernel_id).adjusted()
    assert limits(host, kernel_id) == (128 * MIB, 50_000)
    fact = host.kernel(kernel_id).fact()
    assert (fact.observed, fact.generation, host.kernel(kernel_id).state.container_id) == ("RUNNING", 3, container_id)

    await host.stop()  # what was asked while nobody was there is done by the next daemon
    await host.start()
    assert limits(host, kernel_id) == (128 * MIB, 50_000)
    await host.run(kernel_id, generation=4, slots={"cpu": 1000, "mem": 256})
    await host.kernel(kernel_id).adjusted()
    assert limits(host, kernel_id) == (256 * MIB, 100_000)
    await host.end(kernel_id, generation=5)
    await host.until(kernel_id, "GONE")
