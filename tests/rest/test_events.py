"""What happens, as server-sent events: in order, nothing twice, nothing of others."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import orjson
import pytest

from agent.client import AgentClient
from manager.herald import Herald
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from manager.world import World
from repositories.database import Database
from repositories.upkeep import stamp_events
from tests.rest.conftest import RUNNING, Caller, Installation
from tests.rest.host import MemoryHost


async def stamp(installation: Installation) -> None:
    """What the control process does."""
    async with installation.world.database.transaction() as connection:
        await stamp_events(connection)
    installation.world.herald.announce("events")


async def block(response: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            found = {}
            text = (await response.content.readuntil(b"\n\n")).decode()
            for line in text.strip().splitlines():
                name, _, value = line.partition(": ")
                found[name] = value
            if "data" in found:
                return {**orjson.loads(found["data"]), "sse_id": found.get("id"), "sse_event": found["event"]}


def blocks(body: bytes) -> list[dict[str, Any]]:
    found = []
    for text in body.decode().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in text.splitlines())
        if "data" in fields:
            found.append(orjson.loads(fields["data"]))
    return found


async def test_events_come_as_they_happen(alice: Caller, installation: Installation) -> None:
    async with alice.request("GET", "/v1/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        await response.content.readuntil(b"\n\n")
        await alice.post("/v1/sessions/train/rename", {"new_name": "best"})
        await stamp(installation)
        event = await block(response)
        assert (event["type"], event["sse_event"]) == ("session.renamed", "session.renamed")
        assert event["session_id"] == str(RUNNING)
        assert (event["id"], event["name"]) == (event["sse_id"], "best")
        assert event["cause"]["action"] == "rename_session"
        assert event["data"]["after"] == {"name": "best"}
        assert event["at"].endswith("Z")


async def test_a_broken_stream_is_taken_up_where_it_broke(alice: Caller, installation: Installation) -> None:
    for number in range(5):
        await alice.ask("PATCH", "/v1/sessions/train", {"tag": f"t{number}"})
    await stamp(installation)
    past = blocks((await alice.get("/v1/events?follow=false")).body)
    tags = [event["data"]["after"]["tag"] for event in past if event["type"] == "session.modified"]
    assert tags == [f"t{number}" for number in range(5)]
    later = blocks((await alice.get("/v1/events?follow=false", headers={"Last-Event-ID": past[2]["id"]})).body)
    assert [event["id"] for event in later] == [event["id"] for event in past[3:]]
    restored = await alice.get("/v1/events?follow=false", headers={"Last-Event-ID": "99.3"})
    assert len(blocks(restored.body)) == len(past)  # of another epoch: from the beginning
    for odd in ("x", "1", "1.x", "1.-3", "9" * 30 + ".1", ""):
        assert (await alice.get("/v1/events", headers={"Last-Event-ID": odd})).code == "invalid_request"


async def test_everybody_sees_their_own(alice: Caller, root: Caller, installation: Installation) -> None:
    mallory, watcher = installation.caller("mallory"), installation.caller("watcher")
    await alice.ask("PATCH", "/v1/sessions/train", {"tag": "mine"})
    made = (await mallory.post("/v1/sessions", {"image": "python"})).json
    await stamp(installation)

    async def seen(caller: Caller, query: str = "") -> set[str]:
        answer = await caller.get(f"/v1/events?follow=false{query}")
        return {event["session_id"] for event in blocks(answer.body)}

    assert await seen(alice) == {str(RUNNING)}
    assert await seen(mallory) == {made["id"]}
    assert await seen(root) == await seen(watcher) == {str(RUNNING), made["id"]}
    assert await seen(root, "&owner_access_key=KEY-alice") == {str(RUNNING)}
    assert await seen(root, f"&session={made['id']}") == {made["id"]}
    assert await seen(alice, "&session=train") == {str(RUNNING)}
    assert (await mallory.get("/v1/events?session=train")).code == "session_not_found"
    assert (await mallory.get(f"/v1/events?session={RUNNING}")).code == "session_not_found"
    assert (await mallory.get("/v1/events?owner_access_key=KEY-alice")).code == "permission_denied"
    assert (await mallory.get("/v1/events?colour=red")).code == "invalid_request"


async def test_events_of_another_manager_arrive(alice: Caller, installation: Installation) -> None:
    other_database = await Database.connect(installation.world.database.dsn)
    herald = Herald(other_database.dsn)
    await herald.start()
    world = World.build(other_database, herald, cast(AgentClient, MemoryHost()), observe=lambda *_: None)
    door = RestDoor(world, Metrics())
    port = await door.listen("127.0.0.1", 0)
    there = Caller(alice.http, f"http://127.0.0.1:{port}", alice.headers)
    try:
        async with there.request("GET", "/v1/events") as response:
            await response.content.readuntil(b"\n\n")
            await alice.ask("PATCH", "/v1/sessions/train", {"tag": "far"})
            await stamp(installation)
            first = await block(response)
            assert first["data"]["after"] == {"tag": "far"}
        # and the stream is taken up at the other manager
        again = await alice.get("/v1/events?follow=false", headers={"Last-Event-ID": first["id"]})
        assert blocks(again.body) == []
        # a change there is seen here at once: no stale ETag
        etag = (await alice.get("/v1/sessions/train")).headers["ETag"]
        await there.ask("PATCH", "/v1/sessions/train", {"tag": "near"})
        assert (await alice.get("/v1/sessions/train", headers={"If-None-Match": etag})).json["tag"] == "near"
    finally:
        await door.close(2.0)
        await herald.close()
        await other_database.close()


async def test_heartbeats(alice: Caller, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    from manager.rest import streams

    monkeypatch.setattr(streams.with_heartbeats, "__defaults__", (0.05,))
    async with alice.request("GET", "/v1/events") as response:
        await response.content.readuntil(b"\n\n")
        async with asyncio.timeout(5):
            assert await response.content.readuntil(b"\n\n") == b":\n\n"


async def test_streams_end_with_the_manager(alice: Caller, installation: Installation) -> None:
    async with alice.request("GET", "/v1/events") as response:
        await response.content.readuntil(b"\n\n")
        closing = asyncio.create_task(installation.door.close(5.0))
        assert await response.read() == b"event: closing\ndata: {}\n\n"
        await closing
