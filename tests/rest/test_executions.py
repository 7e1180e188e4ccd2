"""Running code over HTTP: held answers, streams, the WebSocket, and reading on later."""

from __future__ import annotations

import asyncio
import base64
from typing import Any
from uuid import uuid4

import aiohttp
import orjson
import pytest

from tests.rest.conftest import PENDING, RUNNING, Caller, Installation

EXECUTE = "/v1/sessions/train/execute"
NDJSON = {"Accept": "application/x-ndjson"}
SSE = {"Accept": "text/event-stream"}


def lines(body: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in body.splitlines()]


async def test_code_is_run_and_its_output_answered(alice: Caller) -> None:
    answer = await alice.post(EXECUTE, {"code": "print(1)"})
    assert answer.status == 200
    run = answer.json
    assert (run["status"], run["stdout"], run["exit_code"], run["reason"]) == ("done", "1\n", 0, "finished")
    assert run["started_at"].endswith("Z")
    assert (run["error"], run["gap"], run["truncated"], run["next_seq"]) == (None, None, False, 3)
    figure = (await alice.post(EXECUTE, {"code": "figure"})).json
    assert figure["results"] == [{"text/plain": "2", "image/png": "aGk="}]
    failed = (await alice.post(EXECUTE, {"code": "error"})).json
    assert (failed["exit_code"], failed["error"]["ename"]) == (1, "ZeroDivisionError")


async def test_the_same_key_runs_once(alice: Caller, installation: Installation) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await alice.post(EXECUTE, {"code": "print(1)"}, headers=headers)
    again = await alice.post(EXECUTE, {"code": "print(1)"}, headers=headers)
    assert first.json == again.json
    assert len(installation.host.runs) == 1
    other = await alice.post(EXECUTE, {"code": "print(2)"}, headers=headers)
    assert (other.status, other.code) == (422, "idempotency_mismatch")


async def test_input_is_asked_for_and_given(alice: Caller) -> None:
    asked = (await alice.post(EXECUTE, {"code": "ask"})).json
    assert asked["status"] == "waiting_input"
    assert asked["input_request"] == {"prompt": "name? ", "password": False}
    told = await alice.post(EXECUTE, {"mode": "input", "run_id": asked["run_id"], "code": "Ann", "from_seq": 2})
    assert (told.json["status"], told.json["stdout"]) == ("done", "hello Ann")
    assert (await alice.post(EXECUTE, {"mode": "input", "code": "Ann"})).code == "invalid_request"
    unknown = await alice.post(EXECUTE, {"mode": "continue", "run_id": str(uuid4())})
    assert (unknown.status, unknown.code) == (404, "run_not_found")


async def test_an_answer_is_held_no_longer_than_asked(alice: Caller) -> None:
    held = (await alice.post(EXECUTE, {"code": "wait", "wait": 0})).json
    assert held["status"] == "running"
    assert (await alice.post(f"/v1/sessions/train/executions/{held['run_id']}/kill")).json == {"killed": True}
    done = (await alice.post(EXECUTE, {"mode": "continue", "run_id": held["run_id"]})).json
    assert (done["status"], done["reason"]) == ("done", "killed")
    assert (await alice.post(f"/v1/sessions/train/executions/{held['run_id']}/kill")).json == {"killed": False}


async def test_a_session_that_does_not_run_is_refused(alice: Caller, installation: Installation) -> None:
    answer = await alice.post(f"/v1/sessions/{PENDING}/execute", {"code": "print(1)"})
    assert (answer.status, answer.code) == (409, "session_not_ready")
    installation.host.connected = False
    away = await alice.post(EXECUTE, {"code": "print(1)"})
    assert (away.status, away.code, away.headers["Retry-After"]) == (503, "agent_unavailable", "1")


async def test_records_stream_as_lines(alice: Caller) -> None:
    answer = await alice.post(EXECUTE, {"code": "print(1)"}, headers=NDJSON)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    records = lines(answer.body)
    assert [record["kind"] for record in records] == ["run", "stdout", "done"]
    assert records[0]["run_id"] == answer.headers["X-Run-Id"]
    assert (records[1]["seq"], records[1]["text"]) == (1, "1\n")
    assert records[1]["time"].startswith("2026-")
    assert records[2]["data"]["exit_code"] == 0


async def test_bytes_that_are_no_text_arrive_exactly(alice: Caller) -> None:
    answer = await alice.post(f"{EXECUTE}?binary=1", {"code": "binary"}, headers=NDJSON)
    assert base64.b64decode(lines(answer.body)[1]["base64"]) == b"\xff\x00\xfe"
    plain = await alice.post(EXECUTE, {"code": "binary"})
    assert plain.json["stdout"] == "�\x00�"


async def test_records_stream_as_server_sent_events(alice: Caller) -> None:
    answer = await alice.post(EXECUTE, {"code": "print(1)"}, headers=SSE)
    assert answer.headers["Content-Type"] == "text/event-stream"
    blocks = answer.body.decode().strip().split("\n\n")
    assert blocks[0].startswith("event: run\ndata: {")
    assert blocks[1].startswith("id: 1\nevent: stdout\ndata: {")
    assert blocks[2].startswith("id: 2\nevent: done\ndata: {")


async def test_output_streams_while_it_comes(alice: Caller, installation: Installation) -> None:
    async with alice.request("POST", EXECUTE, {"code": "wait"}, headers=NDJSON) as response:
        first = orjson.loads(await response.content.readline())
        run = installation.host.runs[first["run_id"]]
        for text in (b"a", b"b"):
            run.say("stdout", text)
            assert orjson.loads(await response.content.readline())["text"] == text.decode()
        run.end()
        assert orjson.loads(await response.content.readline())["kind"] == "done"
        assert await response.read() == b""


async def test_output_is_read_again_from_any_number(alice: Caller) -> None:
    run_id = (await alice.post(EXECUTE, {"code": "print(1)"})).json["run_id"]
    address = f"/v1/sessions/{RUNNING}/executions/{run_id}"
    piece = (await alice.get(f"{address}?from_seq=2")).json
    assert [record["kind"] for record in piece["records"]] == ["done"]
    assert (piece["run_id"], piece["status"], piece["next_seq"], piece["exit_code"]) == (run_id, "done", 3, 0)
    assert piece["records"][0]["time"].endswith("Z")
    followed = await alice.get(f"{address}?follow=true", headers=NDJSON)
    assert [record["kind"] for record in lines(followed.body)] == ["run", "stdout", "done"]
    kept = await alice.get(address, headers=NDJSON)
    assert [record["kind"] for record in lines(kept.body)] == ["run", "stdout", "done"]
    resumed = await alice.get(f"{address}?follow=true", headers={**SSE, "Last-Event-ID": "1"})
    assert b"event: stdout" not in resumed.body
    assert b"event: done" in resumed.body
    listed = (await alice.get("/v1/sessions/train/executions")).json
    assert [item["run_id"] for item in listed["items"]] == [run_id]
    assert (await alice.get(f"/v1/sessions/train/executions/{uuid4()}")).code == "run_not_found"
    assert (await alice.get("/v1/sessions/train/executions/nonsense")).code == "invalid_request"


async def test_what_goes_wrong_in_a_stream_is_its_last_line(alice: Caller, installation: Installation) -> None:
    async with alice.request("POST", EXECUTE, {"code": "wait"}, headers=NDJSON) as response:
        first = orjson.loads(await response.content.readline())
        installation.host.runs[first["run_id"]].say("stdout", b"last")
        assert orjson.loads(await response.content.readline())["text"] == "last"
        installation.host.runs.pop(first["run_id"]).say("stdout", b"")  # the host forgets it
        assert lines(await response.read())[-1]["code"] == "run_not_found"


async def test_a_revoked_credential_ends_its_streams(alice: Caller, root: Caller) -> None:
    async with alice.request("POST", EXECUTE, {"code": "wait"}, headers=NDJSON) as response:
        await response.content.readline()
        assert (await root.ask("PATCH", "/v1/keypairs/KEY-alice", {"active": False})).status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            async with asyncio.timeout(5):
                await response.read()


async def test_streams_are_told_when_the_manager_stops(alice: Caller, installation: Installation) -> None:
    async with alice.request("POST", EXECUTE, {"code": "wait"}, headers=SSE) as response:
        assert b"event: run" in await response.content.readuntil(b"\n\n")
        closing = asyncio.create_task(installation.door.close(5.0))
        assert await response.read() == b"event: closing\ndata: {}\n\n"
        async with asyncio.timeout(4):
            await closing


async def test_a_request_that_runs_is_finished_when_the_manager_stops(
    alice: Caller, installation: Installation
) -> None:
    running = asyncio.create_task(alice.post(EXECUTE, {"code": "wait"}))
    await installation.host.started.wait()
    closing = asyncio.create_task(installation.door.close(5.0))
    next(iter(installation.host.runs.values())).end()
    assert (await running).json["status"] == "done"
    await closing


async def test_the_readers_end_is_noticed(installation: Installation, alice: Caller) -> None:
    async with alice.request("POST", EXECUTE, {"code": "wait"}, headers=NDJSON) as response:
        await response.content.readline()
        assert len(installation.door.streams) == 1
        response.close()
    async with asyncio.timeout(5):
        while installation.door.streams:
            await asyncio.sleep(0.05)


# -- WebSocket -------------------------------------------------------------------------------------------------------
async def start(alice: Caller, code: str) -> str:
    return str((await alice.post(EXECUTE, {"code": code, "wait": 0})).json["run_id"])


def stream(run_id: str) -> str:
    return f"/v1/sessions/train/executions/{run_id}/stream"


async def test_a_websocket_tells_and_takes(alice: Caller, installation: Installation) -> None:
    run_id = await start(alice, "ask")
    async with alice.http.ws_connect(alice.base + stream(run_id), headers=alice.headers) as ws:
        assert (await ws.receive_json())["kind"] == "input_request"
        await ws.send_json({"type": "dance"})
        assert (await ws.receive_json())["code"] == "invalid_request"
        await ws.send_str("no json")
        assert (await ws.receive_json())["code"] == "invalid_json"
        await ws.send_bytes(b"bytes")
        assert (await ws.receive_json())["code"] == "invalid_request"
        await ws.send_json({"type": "input", "data": "Bob"})
        assert (await ws.receive_json())["text"] == "hello Bob"
        assert (await ws.receive_json())["kind"] == "done"
        assert (await ws.receive()).data == 1000
    assert installation.host.runs[run_id].fed == [b"Bob"]


async def test_a_websocket_interrupts_and_kills(alice: Caller) -> None:
    for word, reason in (("interrupt", "interrupted"), ("kill", "killed")):
        run_id = await start(alice, "wait")
        async with alice.http.ws_connect(alice.base + stream(run_id), headers=alice.headers) as ws:
            await ws.send_json({"type": word})
            assert (await ws.receive_json())["data"]["reason"] == reason


async def test_a_websocket_passes_the_same_checks(alice: Caller, installation: Installation) -> None:
    run_id = await start(alice, "wait")
    address = alice.base + stream(run_id)

    async def refused(**headers: str) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await alice.http.ws_connect(address, headers=headers)
        return caught.value.status

    assert await refused() == 401
    assert await refused(**installation.caller("mallory").headers) == 404
    assert await refused(**alice.headers, Origin="https://evil.example") == 403
    assert await refused(**alice.headers, Origin="null") == 403
    same = {**alice.headers, "Origin": alice.base}
    async with alice.http.ws_connect(address, headers=same) as ws:
        await ws.close()
    plain = await alice.get(stream(run_id))
    assert (plain.status, plain.code) == (400, "invalid_request")
    unknown = await alice.get(stream(str(uuid4())))
    assert unknown.code == "run_not_found"
    async with asyncio.timeout(5):
        while installation.door.streams:
            await asyncio.sleep(0.05)
