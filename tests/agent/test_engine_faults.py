"""An engine that answers wrongly, whose events are lost, doubled or late, and a host whose clock is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from agent.containers import Containers, EngineError
from tests.agent.conftest import Host
from tests.faults.proxy import EngineProxy, Fault


@pytest.fixture
def proxy(tmp_path: Path, engine_host: str) -> Iterator[EngineProxy]:
    made = EngineProxy(tmp_path / "engine.sock", engine_host, delay_seconds=1.0)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def behind(tmp_path: Path, shared_runtime: Path, proxy: EngineProxy, kernel_image: str) -> AsyncIterator[Host]:
    made = Host(tmp_path / "data", shared_runtime, proxy.host, kernel_image)
    await made.start()
    yield made
    await made.stop()
    proxy.disarm()
    await made.clear()


async def life(host: Host) -> str:
    """What became of a kernel that was begun; nothing is left of it in any case."""
    kernel_id = str(uuid4())
    await host.run(kernel_id)
    fact = await host.until(kernel_id, "RUNNING", "FAILED", "EXITED")
    assert fact.observed == "RUNNING" or (fact.exit or {}).get("message")
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")
    return fact.observed


async def test_every_wrong_answer_leads_to_one_container_or_none(behind: Host, proxy: EngineProxy) -> None:
    wrong = (
        ("POST containers/create", Fault.LOST, "RUNNING"),
        ("POST containers/create", Fault.FAILED, "RUNNING"),
        ("POST containers/create", Fault.DOUBLED, "RUNNING"),
        ("POST containers/*/start", Fault.LOST, "RUNNING"),
        ("POST containers/*/start", Fault.TRUNCATED, "RUNNING"),
        ("POST containers/*/start", Fault.REFUSED, "FAILED"),
        ("GET containers/*/json", Fault.TRUNCATED, "RUNNING"),
        ("DELETE containers/*", Fault.LOST, "RUNNING"),
        ("DELETE containers/*", Fault.REFUSED, "RUNNING"),
        ("GET containers/json", Fault.LOST, "RUNNING"),
    )
    for kind, fault, becomes in wrong:
        fallen = proxy.arm(kind, fault)
        assert await life(behind) == becomes, f"{kind}: {fault}"
        assert fallen.is_set()
        assert await behind.containers() == [], f"{kind}: {fault}"


async def test_who_is_frozen_is_seen_and_not_believed(behind: Host, proxy: EngineProxy) -> None:
    kernel_id = str(uuid4())
    await behind.run(kernel_id)
    await behind.until(kernel_id, "RUNNING")
    kernel = behind.kernel(kernel_id)
    await kernel.hold_still()  # else it thaws what it has not frozen
    for step, change, becomes in (
        ("pause", behind.engine.freeze, "paused"),
        ("unpause", behind.engine.thaw, "running"),
    ):
        proxy.arm(f"POST containers/*/{step}", Fault.REFUSED)
        with pytest.raises(EngineError):
            await change(kernel.name)
        for fault in (Fault.FAILED, Fault.TRUNCATED):
            fallen = proxy.arm(f"POST containers/*/{step}", fault)
            await change(kernel.name)
            assert fallen.is_set()
            state = await behind.engine.inspect(kernel.name)
            assert state is not None
            assert state.status == becomes
    kernel.go_on()
    await behind.end(kernel_id)
    await behind.until(kernel_id, "GONE")


async def test_what_the_engine_does_too_late_is_found_and_removed(
    host: Host, kernel_id: str, engine: docker.DockerClient
) -> None:
    """A create whose connection broke long ago, after the kernel has gone; the next look, or start, removes it."""
    await host.end(kernel_id, attempt=1, generation=2)
    labels = {"moorage.agent": host.uid, "moorage.kernel": kernel_id, "moorage.attempt": "1"}
    for look in (host.kernels.sweep_late, _start_again(host)):
        await asyncio.to_thread(engine.containers.create, host.image, labels=labels, command=["true"])
        assert len(await host.containers()) == 1
        await look()
        assert await host.containers() == []
    assert host.kernels.quarantined == []


def _start_again(host: Host) -> Callable[[], Awaitable[None]]:
    async def again() -> None:
        await host.stop()
        await host.start()

    return again


EVENTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "lost": lambda _data: [],
    "doubled": lambda data: [data, data],
    "of others first": lambda data: [b'{"id":"0","Action":"die"}\n', data],
}


@pytest.mark.parametrize("events", EVENTS)
async def test_a_dead_container_is_seen_whatever_becomes_of_events(
    behind: Host, proxy: EngineProxy, engine: docker.DockerClient, events: str
) -> None:
    proxy.event_filter = EVENTS[events]
    kernel_id = str(uuid4())
    await behind.run(kernel_id)
    await behind.until(kernel_id, "RUNNING")
    begun = time.monotonic()
    await asyncio.to_thread(engine.containers.get(behind.kernel(kernel_id).name).kill)
    fact = await behind.until(kernel_id, "EXITED")
    assert (fact.exit or {})["reason"] == "killed"
    print(f"seen after {time.monotonic() - begun:.2f} s")
    await behind.end(kernel_id)
    await behind.until(kernel_id, "GONE")


async def test_one_that_dies_at_its_start_is_seen_without_events(
    behind: Host, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.event_filter = EVENTS["lost"]
    start = Containers.start

    async def and_kill(engine: Containers, container_id: str) -> None:
        await start(engine, container_id)
        await engine.signal(container_id, "SIGKILL")

    monkeypatch.setattr(Containers, "start", and_kill)
    assert await asyncio.wait_for(life(behind), 20) == "FAILED"  # not after a minute of waiting for its runner


@pytest.mark.parametrize("minutes", [5, -120])
async def test_a_host_whose_clock_is_wrong_does_the_same(host: Host, minutes: int) -> None:
    host.kernels._clock = lambda: time.time() + 60 * minutes
    kernel_id = str(uuid4())
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING")
    link = host.kernel(kernel_id).link
    assert link is not None
    await link.execute("r1", mode="query", code="print(6 * 7)", wait_seconds=20.0)
    assert "42" in host.kernel(kernel_id).rings.text("r1", 1000)
    await host.stop()
    await host.start()
    await host.until(kernel_id, "RUNNING")
    assert await host.kernels.purge(host.kernels.now()) == []
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")
    assert await host.containers() == []


async def test_what_was_frozen_by_hand_goes_on_and_is_told(host: Host, kernel_id: str) -> None:
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING")
    kernel = host.kernel(kernel_id)
    await host.engine.freeze(kernel.name)
    async with asyncio.timeout(20):
        while not kernel.fact().notices:
            host.kernels.changed.clear()
            await host.kernels.changed.wait()
    assert [notice["kind"] for notice in kernel.fact().notices] == ["frozen"]
    there = await host.engine.inspect(kernel.name)
    assert there is not None
    assert there.status == "running"
