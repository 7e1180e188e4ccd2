"""Terminals over WebSocket, and SSH keys over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.agent.fake import FakeProcess
from tests.rest.conftest import RUNNING, Caller, Installation

PTY = "/v1/sessions/train/pty"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ann@home"


def opened(caller: Caller, query: str = "") -> Any:
    return caller.http.ws_connect(f"{caller.base}{PTY}{query}", headers=caller.headers)


def process(installation: Installation) -> FakeProcess:
    return list(installation.host.processes.values())[-1]


async def test_bytes_and_wishes(alice: Caller, installation: Installation) -> None:
    async with opened(alice, "?rows=40&cols=100&command=a,b&command=c&cwd=/tmp&term=vt100") as ws:
        ready = await ws.receive_json()
        assert (ready["type"], ready["pty"], ready["resumed"]) == ("ready", "p1", False)
        spec = process(installation).spec
        assert (spec.rows, spec.cols, spec.argv, spec.cwd, spec.term) == (40, 100, ["a,b", "c"], "/tmp", "vt100")
        assert spec.terminal
        await ws.send_bytes(b"\x00\xffraw")
        assert (await ws.receive()).data == b"\x00\xffraw"
        await ws.send_json({"type": "input", "data": "täxt"})
        assert (await ws.receive()).data == "täxt".encode()
        for wrong in (
            {"type": "dance"},
            {"type": "resize", "rows": 0, "cols": 5},
            {"type": "signal", "signal": "; rm"},
        ):
            await ws.send_json(wrong)
            assert (await ws.receive_json())["code"] == "invalid_request"
        await ws.send_json({"type": "resize", "rows": 50, "cols": 132})
        await ws.send_json({"type": "signal", "signal": "TERM"})
        assert await ws.receive_json() == {"type": "exit", "exit_code": 128, "signal": "TERM"}
        assert (await ws.receive()).data == 1000
    assert process(installation).sizes == [(50, 132)]
    assert process(installation).closed


async def test_who_leaves_leaves_it_open(alice: Caller, installation: Installation) -> None:
    async with opened(alice, "?pty=mine") as ws:
        await ws.receive_json()
    async with asyncio.timeout(5):
        while not process(installation).closed:
            await asyncio.sleep(0.01)
    assert process(installation).told.empty(), "it was hung up"
    async with opened(alice, "?pty=mine&resume=true&after=7") as ws:
        assert (await ws.receive_json())["resumed"]
        assert process(installation).spec.after == 7
        await ws.send_json({"type": "close"})
        assert (await ws.receive_json())["signal"] == "HUP"


async def test_it_passes_the_same_checks(alice: Caller, installation: Installation) -> None:
    async def refused(query: str = "", **headers: str) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await alice.http.ws_connect(f"{alice.base}{PTY}{query}", headers=headers)
        return caught.value.status

    assert await refused() == 401
    assert await refused(**installation.caller("mallory").headers) == 404
    assert await refused(**alice.headers, Origin="https://evil.example") == 403
    assert await refused("?rows=0", **alice.headers) == 400
    assert await refused("?shell=ls", **alice.headers) == 400
    assert await refused("?pty=../x", **alice.headers) == 400
    assert await refused("?resume=true", **alice.headers) == 400
    assert await refused("?pty=gone&resume=true", **alice.headers) == 404
    assert (await alice.get(PTY)).code == "invalid_request"
    assert (await alice.get("/v1/sessions/waits/pty")).code == "invalid_request"
    assert not installation.host.processes


async def test_a_terminal_ends_with_the_credential(alice: Caller, root: Caller) -> None:
    async with opened(alice) as ws:
        await ws.receive_json()
        await root.ask("PATCH", "/v1/keypairs/KEY-alice", {"active": False})
        async with asyncio.timeout(3):
            message = await ws.receive()
        assert message.data == 1008


async def test_keys_come_and_go(alice: Caller, installation: Installation) -> None:
    added = (await alice.post("/v1/ssh-keys", {"public_key": KEY})).json
    assert (added["name"], added["fingerprint"][:7]) == ("ann@home", "SHA256:")
    assert (await alice.get("/v1/ssh-keys")).json["items"] == [added]
    assert (await installation.caller("mallory").post("/v1/ssh-keys", {"public_key": KEY})).code == "ssh_key_taken"
    assert (await alice.ask("DELETE", f"/v1/ssh-keys/{added['id']}")).json["name"] == "ann@home"
    assert (await alice.ask("DELETE", f"/v1/ssh-keys/{added['id']}")).code == "ssh_key_not_found"
    asked = {"public_key": KEY}
    assert (await alice.post(f"/v1/sessions/{RUNNING}/ssh-certificate", asked)).code == "ssh_gateway_off"
