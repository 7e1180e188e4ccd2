"""What stands open ends when its opener may no longer: every kind of stream, and every way to lose a right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.rest.conftest import Caller, Installation

SESSION = "/v1/sessions/train"
#: Far above what is promised: it is looked at whether it ends, and the promise is measured in docs/credentials.md.
_PATIENCE_SECONDS = 8.0
Opened = Callable[[], Awaitable[None]]  #: waits until the stream has ended


async def _ended(response: aiohttp.ClientResponse) -> None:
    try:
        while await response.content.readany():
            pass
    except aiohttp.ClientError:
        pass
    finally:
        response.close()


async def _events(alice: Caller, _: Installation) -> Opened:
    response = await alice.request("GET", "/v1/events").__aenter__()
    await response.content.readuntil(b"\n\n")
    return lambda: _ended(response)


async def _output(alice: Caller, _: Installation) -> Opened:
    headers = {"Accept": "application/x-ndjson"}
    response = await alice.request("POST", f"{SESSION}/execute", {"code": "wait"}, headers=headers).__aenter__()
    await response.content.readline()
    return lambda: _ended(response)


async def _held(alice: Caller, installation: Installation) -> Opened:
    asking = asyncio.create_task(alice.post(f"{SESSION}/execute", {"code": "wait"}))
    await installation.host.started.wait()

    async def ended() -> None:
        assert (await asking).code == "unauthenticated"

    return ended


async def _waiting(alice: Caller, _: Installation) -> Opened:
    body = {"image": "python", "name": "later", "resource_slots": {"cpu": 1, "mem": "512m"}}
    asking = asyncio.create_task(alice.post("/v1/sessions?wait=600", body))
    while (await alice.get("/v1/sessions/later")).status != 200:
        assert not asking.done(), asking.result().body
        await asyncio.sleep(0.01)

    async def ended() -> None:
        assert (await asking).code == "unauthenticated"

    return ended


async def _download(alice: Caller, installation: Installation) -> Opened:
    installation.host.big_bytes = 1 << 40
    response = await alice.request("GET", f"{SESSION}/files/big").__aenter__()
    assert response.status == 200
    return lambda: _ended(response)


async def _upload(alice: Caller, installation: Installation) -> Opened:
    async def endless() -> Any:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.02)

    async def send() -> None:
        try:
            answer = await alice.ask("PUT", f"{SESSION}/files/big", data=endless())
        except aiohttp.ClientError:
            return
        assert answer.code == "unauthenticated"

    sending = asyncio.create_task(send())
    while not installation.host.big_bytes:
        assert not sending.done()
        await asyncio.sleep(0.01)

    async def ended() -> None:
        await sending

    return ended


async def _socket(alice: Caller, address: str) -> Opened:
    ws = await alice.http.ws_connect(f"{alice.base}{address}", headers=alice.headers)

    async def ended() -> None:
        while not ws.closed:
            await ws.receive()
        assert ws.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION

    return ended


async def _terminal(alice: Caller, _: Installation) -> Opened:
    return await _socket(alice, f"{SESSION}/pty")


async def _run(alice: Caller, installation: Installation) -> Opened:
    started = await alice.post(f"{SESSION}/execute", {"code": "wait", "wait": 0})
    return await _socket(alice, f"{SESSION}/executions/{started.json['run_id']}/stream")


STREAMS = {
    "events": _events,
    "output": _output,
    "held_answer": _held,
    "awaited_creation": _waiting,
    "download": _download,
    "upload": _upload,
    "terminal": _terminal,
    "run": _run,
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_what_is_open_ends_with_the_keypair(
    alice: Caller, root: Caller, installation: Installation, kind: str
) -> None:
    ended = await STREAMS[kind](alice, installation)
    assert (await root.ask("PATCH", "/v1/keypairs/KEY-alice", {"active": False})).status == 200
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await ended()
    assert (await alice.get("/v1/whoami")).code == "unauthenticated"


async def _sql(installation: Installation, statement: str) -> None:
    """Behind everybody's back: nobody is told, so it has to be looked at."""
    async with installation.world.database.transaction() as connection:
        await connection.execute(statement)


async def _by_removal(root: Caller, installation: Installation) -> None:
    token = (await root.get("/v1/tokens?user=alice@example.org")).json["items"][0]["id"]
    assert (await root.ask("DELETE", f"/v1/tokens/{token}")).status == 204


async def _by_membership(root: Caller, installation: Installation) -> None:
    changed = await root.ask("PATCH", "/v1/projects/default", {"remove_members": ["alice@example.org"]})
    assert changed.status == 200


async def _by_dismissal(root: Caller, installation: Installation) -> None:
    changed = await root.ask("PATCH", "/v1/projects/default", {"remove_admins": ["alice@example.org"]})
    assert changed.json["admins"] == []


WAYS: dict[str, Callable[[Caller, Installation], Awaitable[object]]] = {
    "account_closed": lambda root, _: root.ask("PATCH", "/v1/users/alice@example.org", {"active": False}),
    "role_changed": lambda root, _: root.ask("PATCH", "/v1/users/alice@example.org", {"role": "monitor"}),
    "domain_closed": lambda _, door: _sql(door, "UPDATE domains SET active = false"),
    "keypair_removed": lambda root, _: root.ask("DELETE", "/v1/keypairs/KEY-alice"),
    "secret_rotated": lambda root, _: root.post("/v1/keypairs/KEY-alice/rotate", {}),
    "left_the_project": _by_membership,
    "leads_it_no_more": _by_dismissal,
    "token_removed": _by_removal,
    "token_expired": lambda _, door: _sql(door, "UPDATE tokens SET expires_at = now() - interval '1 s'"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_to_lose_a_right(alice: Caller, root: Caller, installation: Installation, way: str) -> None:
    if way == "leads_it_no_more":
        await root.ask("PATCH", "/v1/projects/default", {"add_admins": ["alice@example.org"]})
    if way.startswith("token"):
        token = (await alice.post("/v1/tokens", {"name": "t"})).json["token"]
        alice = Caller(alice.http, alice.base, {"Authorization": f"Bearer {token}"})
    ended = await _events(alice, installation)
    await WAYS[way](root, installation)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await ended()


async def test_what_is_gained_ends_nothing(alice: Caller, root: Caller, installation: Installation) -> None:
    ended = asyncio.ensure_future((await _events(alice, installation))())
    await root.post("/v1/projects", {"name": "vision", "admins": ["alice@example.org"]})
    await root.ask("PATCH", "/v1/users/mallory@example.org", {"active": False})
    await asyncio.wait({ended}, timeout=1.2)  # longer than it takes to look
    assert not ended.done()
    await root.ask("PATCH", "/v1/users/alice@example.org", {"active": False})
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await ended


async def test_a_blind_door_cuts_nobody_off(
    alice: Caller, root: Caller, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from domain.errors import DatabaseUnavailable

    ended = asyncio.ensure_future((await _events(alice, installation))())
    looked = asyncio.Event()

    async def unreachable(_: str) -> None:
        looked.set()
        raise DatabaseUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(installation.door.authenticator, "_authenticate", unreachable)
        await looked.wait()
        looked.clear()
        await looked.wait()
        assert not ended.done()
    await root.ask("PATCH", "/v1/users/alice@example.org", {"active": False})
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await ended
