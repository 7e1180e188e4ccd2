"""Managers and agents of releases that are one apart, and of such that are further apart. The older side is played here as it spoke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent import pki, wire
from agent.link import Links
from agent.rpc import Peer
from agent.runs import Runs
from agent.store import Store
from agent.wire import AgentHello, KernelSpec, RunDone, common_protocol
from domain.errors import InvalidRequest
from tests.agent.test_hub import HOST, KERNEL, Host, Place, a_fact, answering

#: What an agent of protocol 1 says.
OLD_HELLO: dict[str, Any] = {
    "protocol": 1,
    "agent_id": HOST,
    "uid": "u1",
    "boot_no": 1,
    "version": "0.0.9",
    "hostname": "h",
    "architecture": "x86_64",
    "resources": {"cpu": 4000},
    "info": {},
    "facts": [],
    "images": [],
    "devices": [],
    "devices_seq": 0,
}
SPEC = KernelSpec(session_id="s", session_name="train", image="python", begun=True)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    await made.close()


@asynccontextmanager
async def old_agent(place: Place, url: str) -> AsyncIterator[Peer]:
    """Connected, and not yet greeted."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/agent/link", ssl=place.certify()) as socket,
    ):
        peer = Peer(socket, "manager")
        reading = asyncio.create_task(peer.run())
        try:
            yield peer
        finally:
            await peer.close()
            await reading


async def test_an_agent_of_the_release_before_works_with_this_manager(place: Place) -> None:
    hub = await place.hub()
    asked: list[dict[str, Any]] = []

    async def ensure(arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(arguments)
        return replace(a_fact(7), kernel_id=arguments["kernel_id"]).pack()

    async with old_agent(place, hub.url) as peer:
        peer.handle(wire.ENSURE, ensure)
        welcome = await peer.request(wire.HELLO, OLD_HELLO, timeout_seconds=5)
        assert welcome["protocol"] == 1
        await peer.request(wire.FACTS, {"facts": [a_fact(1).pack()]}, timeout_seconds=5)
        await peer.request(wire.HEARTBEAT, {}, timeout_seconds=5)
        fact = await hub.ensure(KERNEL, generation=1, want="RUN", spec=SPEC)
        assert fact.kernel_id == str(KERNEL.kernel_id)
        # what it does not know is left out by it: that is how every release reads messages
        assert asked[0]["spec"]["begun"] is True
        with pytest.raises(InvalidRequest, match="may be of another version"):
            await hub.census(HOST)
    assert [said.holds for said in place.manager.helloes] == [{}]
    assert [fact.seq for fact in place.manager.facts] == [1]


@asynccontextmanager
async def old_manager(place: Place, heard: list[dict[str, Any]], told: list[str]) -> AsyncIterator[str]:
    """Its URL. It refuses every protocol but its own, and welcomes with fewer words."""

    async def hello(arguments: dict[str, Any]) -> dict[str, Any]:
        heard.append(arguments)
        if arguments["protocol"] != 1:
            raise InvalidRequest("The manager speaks protocol 1; upgrade the older side.")
        return {"manager_id": "m", "role": "control", "managers": [], "heartbeat_seconds": 0.05, "lease_seconds": 30.0}

    async def link(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=wire.MAX_FRAME_BYTES)
        await socket.prepare(request)
        peer = Peer(socket, "agent")
        peer.handle(wire.HELLO, hello)
        for name in (wire.FACTS, wire.RUNS_DONE, wire.HEARTBEAT):

            async def take(arguments: dict[str, Any], name: str = name) -> dict[str, Any]:
                told.append(name)
                return {"managers": []}

            peer.handle(name, take)
        await peer.run()
        return socket

    app = web.Application()
    app.add_routes([web.get("/agent/link", link)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=pki.server_context(place.folder / "ca"))
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_an_agent_of_this_release_works_with_the_manager_before(place: Place) -> None:
    host, heard, told = Host(), list[dict[str, Any]](), list[str]()
    async with old_manager(place, heard, told) as url:
        links = Links([url], place.certify(), host, answering(host))
        running = asyncio.create_task(links.run())
        host.says(a_fact(1))
        async with asyncio.timeout(10):
            await host.idle.wait()
            while wire.HEARTBEAT not in told:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [said["protocol"] for said in heard] == [wire.PROTOCOL_VERSION, 1]
    assert wire.FACTS in told


@pytest.mark.parametrize(
    ("newest", "oldest", "common"),
    [
        (wire.PROTOCOL_VERSION, wire.OLDEST_PROTOCOL, wire.PROTOCOL_VERSION),
        (1, 1, 1),
        (wire.PROTOCOL_VERSION + 1, 2, 2),
    ],
)
def test_the_older_sides_newest_is_spoken(newest: int, oldest: int, common: int) -> None:
    assert common_protocol(hello(newest, oldest)) == common


@pytest.mark.parametrize(("newest", "oldest", "who"), [(0, 0, "agent"), (9, 8, "manager")])
def test_releases_that_are_too_far_apart_are_told_which_one_to_upgrade(newest: int, oldest: int, who: str) -> None:
    with pytest.raises(InvalidRequest, match=f"upgrade the {who}"):
        common_protocol(hello(newest, oldest))


def hello(newest: int, oldest: int) -> AgentHello:
    return AgentHello.unpack(OLD_HELLO | {"protocol": newest, "oldest_protocol": oldest})


async def test_a_restored_database_is_told_again_how_runs_ended(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "agent.db")
    try:
        runs = Runs(store, asyncio.Event())
        run = RunDone(run_id="r", kernel_id="k", attempt=1, started_at=1.0, finished_at=2.0, exit_code=0)
        await store.finish_runs([run])
        await runs.load()
        runs.acknowledged(runs.pending())
        await runs.close()
        assert (runs.pending(), await store.untold_runs()) == ([], [])
        await runs.tell_again()
        assert runs.pending() == await store.untold_runs() == [run]
        assert await store.epoch() == 0
        await store.keep_epoch(1_795_000_000)
        assert await store.epoch() == 1_795_000_000
    finally:
        await store.close()
