"""What passes the proxy, in which shape, and what does not."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from aiohttp import web

from actions import (
    CreateTokenAction,
    DeleteTokenAction,
    DestroySessionAction,
    ModifyKeypairAction,
    ModifyProjectAction,
    ModifyUserAction,
    OpenPortAction,
    OpenServiceAction,
    ShutdownServiceAction,
)
from domain.principal import Credential, Role
from tests.proxy.conftest import PORT, Bed, Serving
from tests.scenario import ALICE, ID, ROOT

BIG = bytes(range(256)) * 40_000


async def code_of(response: aiohttp.ClientResponse) -> str:
    return str((await response.json(content_type=None))["code"])


# -- the way in ----------------------------------------------------------------------------------------------------------
async def test_a_ticket_opens_its_service_once(bed: Bed) -> None:
    address = bed.local((await bed.start()).wsproxy_addr)
    async with bed.http.get(address + "a/b?c=d") as response:
        assert (response.status, await response.text()) == (200, "hello from /a/b?c=d")
        assert str(response.url) == f"{bed.base}/proxy/{ID}/web/a/b?c=d", "the ticket is in no address any more"
        cookie = response.history[0].headers["Set-Cookie"]
        assert all(part in cookie for part in (f"Path=/proxy/{ID}/web/", "HttpOnly", "SameSite=Lax"))
    async with bed.http.get(address) as response:
        assert (response.status, await code_of(response)) == (401, "ticket_used")


async def test_tickets_that_are_good_for_nothing(bed: Bed) -> None:
    first = bed.local((await bed.start()).wsproxy_addr)
    await bed.start("other", 8001)
    async with bed.http.get(first.replace("/web/", "/other/")) as response:
        assert (response.status, await code_of(response)) == (401, "ticket_invalid")
    async with bed.http.get(f"{bed.base}/proxy/{'x' * 43}/web/") as response:
        assert (response.status, await code_of(response)) == (401, "ticket_invalid")
    async with bed.world.database.transaction() as connection:
        await connection.execute("UPDATE service_tickets SET expires_at = $1", datetime.now(UTC) - timedelta(seconds=1))
    async with bed.http.get(first) as response:
        assert (response.status, await code_of(response)) == (401, "ticket_expired")
    async with bed.http.get(first, headers={"Sec-Purpose": "prefetch"}) as response:
        assert response.status == 401


async def test_nothing_is_served_without_a_pass(bed: Bed) -> None:
    started = await bed.start()
    for address in (bed.local(started.service.url), f"{bed.base}/proxy/{ID}/nothing/", f"{bed.base}/v1/sessions"):
        async with bed.http.get(address) as response:
            assert (response.status, await code_of(response)) == (401, "unauthenticated")
    headers = {"Authorization": f"Bearer {ALICE.access_key}.secret-alice"}
    async with bed.http.get(bed.local(started.service.url), headers=headers) as response:
        assert response.status == 401, "the API's credentials are not the proxy's"
    assert bed.seen.requests == []


async def test_a_pass_is_for_one_service(bed: Bed) -> None:
    await bed.enter()
    other = bed.local((await bed.start("other", 8001)).service.url)
    token = next(cookie.value for cookie in bed.http.cookie_jar)
    async with bed.http.get(other, cookies={"moorage_pass": token}) as response:
        assert response.status == 401


@pytest.mark.parametrize("what", ["shut down", "destroyed", "keypair off", "expired"])
async def test_a_pass_ends_with_what_it_is_for(bed: Bed, what: str) -> None:
    address = await bed.enter()
    async with bed.http.get(address) as response:
        assert response.status == 200
    run = bed.world.processor.run
    if what == "shut down":
        await run(ShutdownServiceAction(session_name=str(ID), service="web"), by=ALICE)
    elif what == "destroyed":
        await run(DestroySessionAction(session_name=str(ID)), by=ALICE)
    elif what == "keypair off":
        await run(ModifyKeypairAction(keypair=ALICE.access_key, active=False), by=ROOT)
    else:
        async with bed.world.database.transaction() as connection:
            await connection.execute("UPDATE service_tickets SET expires_at = now()")
        bed.world.herald.announce("services")
    async with bed.http.get(address) as response:
        assert response.status in (401, 502)


async def test_a_program_exchanges_its_ticket_for_a_token(bed: Bed) -> None:
    address = bed.local((await bed.start()).wsproxy_addr)
    async with bed.http.get(address, headers={"Accept": "application/json"}) as response:
        answer = await response.json()
    bed.http.cookie_jar.clear()
    headers = {"Authorization": f"Bearer {answer['token']}"}
    async with bed.http.get(bed.base + answer["path"], headers=headers) as response:
        assert response.status == 200
    assert "Authorization" not in bed.seen.requests[-1].headers


async def test_an_address_without_its_slash(bed: Bed) -> None:
    address = await bed.enter()
    async with bed.http.get(address[:-1], allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (308, f"/proxy/{ID}/web/")


# -- what passes ---------------------------------------------------------------------------------------------------------
async def test_heads_are_stripped_and_said_anew(bed: Bed) -> None:
    address = await bed.enter()
    headers = {
        "Authorization": "token abc",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-User": "root",
        "Forwarded": "for=1.2.3.4",
        "X-Real-IP": "1.2.3.4",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "X-Own": "stays",
        "Cookie": "own=1",
    }
    async with bed.http.get(address, headers=headers) as response:
        assert response.status == 200
    seen = bed.seen.requests[-1].headers
    assert not {"Authorization", "X-Forwarded-User", "Forwarded", "X-Real-IP", "X-Hop"} & set(seen)
    assert (seen["X-Own"], seen["Cookie"]) == ("stays", "own=1")
    assert seen["X-Forwarded-For"] == "127.0.0.1"
    assert seen["X-Forwarded-Prefix"] == f"/proxy/{ID}/web"
    assert (seen["X-Forwarded-Proto"], seen["X-Forwarded-Host"]) == ("http", bed.base.removeprefix("http://"))


async def test_what_a_service_says_stays_in_its_place(bed: Bed) -> None:
    address = await bed.enter()
    async with bed.http.get(address + "cookies", allow_redirects=False) as response:
        assert response.headers.getall("Set-Cookie") == [f"theirs=1; Path=/proxy/{ID}/web/"]
        assert response.headers["Location"] == f"/proxy/{ID}/web/next"
        assert "Service-Worker-Allowed" not in response.headers


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_pass_both_ways(bed: Bed, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(BIG), 100_000):
            yield BIG[at : at + 100_000]

    address = await bed.enter()
    async with bed.http.post(address, data=pieces() if chunked else io.BytesIO(BIG)) as response:
        assert await response.read() == BIG
    async with bed.http.get(address + "stream") as response:
        assert len(await response.read()) == sum(len(f"{n}\n") for n in range(100)) * 1000
    async with bed.http.head(address) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_a_service_that_knows_its_path_sees_all_of_it(bed: Bed) -> None:
    address = await bed.enter(keep_prefix=True)
    async with bed.http.get(address + "x") as response:
        assert await response.text() == f"hello from /proxy/{ID}/web/x"


async def test_websockets_pass(bed: Bed) -> None:
    address = await bed.enter()
    async with bed.http.ws_connect(address + "ws", headers={"Origin": bed.base}) as ws:
        for number in range(100):
            await ws.send_str(str(number))
            assert await ws.receive_str() == f"echo {number}"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await bed.http.ws_connect(address + "ws", headers={"Origin": "http://evil.example"})
    assert refused.value.status == 403


async def test_pages_of_other_sites_ask_for_nothing(bed: Bed) -> None:
    address = await bed.enter()
    async with bed.http.post(address, headers={"Origin": "http://evil.example"}) as response:
        assert response.status == 403
    async with bed.http.get(address, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}) as response:
        assert response.status == 403
    assert bed.seen.requests == []


# -- who may no longer ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["keypair", "account", "role", "project", "token", "service"])
async def test_an_open_connection_ends_with_the_right_to_it(bed: Bed, way: str) -> None:
    run, by = bed.world.processor.run, ALICE
    token = (await run(CreateTokenAction(token_name="ci"), by=ALICE)).token
    if way == "token":
        by = replace(ALICE, credential=Credential.TOKEN, token_id=token.id)
    address = await bed.enter(by=by)
    async with bed.http.ws_connect(address + "ws", headers={"Origin": bed.base}) as ws:
        await ws.send_str("a")
        assert await ws.receive_str() == "echo a"
        if way == "keypair":
            await run(ModifyKeypairAction(keypair=ALICE.access_key, active=False), by=ROOT)
        elif way == "account":
            await run(ModifyUserAction(user="alice@example.org", active=False), by=ROOT)
        elif way == "role":
            await run(ModifyUserAction(user="alice@example.org", role=Role.MONITOR), by=ROOT)
        elif way == "project":
            await run(ModifyProjectAction(project="default", remove_members=["alice@example.org"]), by=ROOT)
        elif way == "token":
            await run(DeleteTokenAction(token_id=token.id), by=ALICE)
        else:
            await run(ShutdownServiceAction(session_name=str(ID), service="web"), by=ALICE)
        async with asyncio.timeout(8):
            assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    async with bed.http.get(address) as response:
        assert response.status in (401, 502)


async def test_an_administrators_pass_ends_with_the_administration(bed: Bed) -> None:
    address = await bed.enter(by=ROOT)
    async with bed.http.get(address) as response:
        assert response.status == 200
    async with bed.world.database.transaction() as connection:
        await connection.execute("UPDATE users SET role = 'user' WHERE email = 'root@example.org'")
    bed.world.herald.announce("identity")
    async with bed.http.get(address) as response:
        assert response.status == 401


# -- raw bytes -----------------------------------------------------------------------------------------------------------
async def test_a_port_is_reached_with_a_pass_for_it(bed: Bed) -> None:
    opened = await bed.world.processor.run(OpenPortAction(session_name=str(ID), port=PORT), by=ALICE)
    reader, writer = await asyncio.open_connection("127.0.0.1", bed.proxy.port)
    path = bed.local(opened.url).removeprefix(bed.base)
    head = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\nAuthorization: Bearer {opened.token}"
    )
    writer.write(f"{head}\r\n\r\nGET /raw HTTP/1.0\r\n\r\n".encode())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    assert b"hello from /raw" in await reader.read()
    writer.close()
    await writer.wait_closed()


# -- trouble -------------------------------------------------------------------------------------------------------------
async def test_a_service_that_does_not_answer_is_a_502(bed: Bed) -> None:
    address = await bed.enter()
    del bed.fake.ports[PORT]
    async with bed.http.get(address) as response:
        assert (response.status, await code_of(response)) == (502, "service_unreachable")
    async with bed.http.get(address, headers={"Accept": "text/html"}) as response:
        assert response.content_type == "text/html"


async def test_a_kernel_that_went_away_is_gone_around(bed: Bed, serving: Serving) -> None:
    """An answer that breaks off is not taken for a whole one."""

    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/", breaks)
    bed.fake.ports[PORT] = await serving(app)
    address = await bed.enter()
    with pytest.raises(aiohttp.ClientError):
        async with bed.http.get(address) as response:
            await response.read()


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1",
        "GET /proxy/x HTTP/2.0\r\nHost: x",
        "GET {path} HTTP/1.1\r\nHost: x\r\nHost: y",
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2",
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: +1",
        "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked",
        "GET {path} HTTP/1.1\r\nHost: x\r\n folded: 1",
        "GET {path} HTTP/1.1\r\nHost: x\r\nbad name: 1",
        "GET {path} HTTP/1.1\r\nHost: x\r\nA: b\nC: d",
        "CONNECT x:80 HTTP/1.1\r\nHost: x",
        "GET {path} HTTP/1.1\r\nHost: x\r\nX: " + "y" * 70_000,
    ],
)
async def test_doubtful_heads_are_refused(bed: Bed, head: str) -> None:
    address = await bed.enter()
    reader, writer = await asyncio.open_connection("127.0.0.1", bed.proxy.port)
    writer.write((head.replace("{path}", address.removeprefix(bed.base)) + "\r\n\r\n").encode())
    answer = await reader.read()
    assert answer.split(b" ")[1] in (b"400", b"401", b"405", b"431")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert bed.seen.requests == []
    writer.close()
    await writer.wait_closed()


async def test_requests_are_answered_in_order_over_one_connection(bed: Bed) -> None:
    address = await bed.enter()
    token = next(cookie.value for cookie in bed.http.cookie_jar)
    reader, writer = await asyncio.open_connection("127.0.0.1", bed.proxy.port)
    path = address.removeprefix(bed.base)
    for number in range(50):
        writer.write(f"GET {path}{number} HTTP/1.1\r\nHost: x\r\nCookie: moorage_pass={token}\r\n\r\n".encode())
    for number in range(50):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert await reader.readexactly(length) == f"hello from /{number}".encode()
    writer.close()
    await writer.wait_closed()


async def test_a_new_address_for_a_running_service(bed: Bed) -> None:
    await bed.start()
    opened = await bed.world.processor.run(OpenServiceAction(session_name=str(ID), service="web"), by=ALICE)
    async with bed.http.get(bed.local(opened.wsproxy_addr)) as response:
        assert response.status == 200


async def test_a_session_with_a_host_name_of_its_own_is_served_there_alone(bed: Bed) -> None:
    bed.proxy.isolated = True
    own = {"Host": f"{ID.hex}.apps.example.org"}
    address = bed.local((await bed.start()).wsproxy_addr)
    async with bed.http.get(address, headers={**own, "Accept": "application/json"}) as response:
        token = (await response.json())["token"]
    bed.http.cookie_jar.clear()
    headers = {"Authorization": f"Bearer {token}"}
    async with bed.http.get(f"{bed.base}/proxy/{ID}/web/", headers={**headers, **own}) as response:
        assert response.status == 200
    async with bed.http.get(f"{bed.base}/proxy/{ID}/web/", headers=headers) as response:
        assert (response.status, await code_of(response)) == (421, "misdirected")
