"""HTTP as it should not be: every malformed request is a clean problem, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from domain.errors import Internal
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from tests.rest.conftest import SECRET, Caller, Installation

AUTH = f"Authorization: Bearer KEY-alice.{SECRET}\r\n".encode()
HOST = b"Host: x\r\n"


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        await cut(writer)


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def say(port: int, data: bytes, *, whole: bool = True) -> tuple[int, dict[str, str], bytes]:
    async with connection(port) as (reader, writer), asyncio.timeout(10):
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0"))) if whole else b""
        return int(lines[0].split()[1]), headers, body


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/whoami HTTP/9.9\r\n\r\n",
        b"G\x00T /v1/whoami HTTP/1.1\r\n\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"bad header\r\n\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"".join(b"X%d: y\r\n" % n for n in range(300)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls hello \r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
async def test_malformed_requests(installation: Installation, nobody: Caller, data: bytes) -> None:
    status, headers, body = await say(installation.port, data)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["server"] == "moorage"
    assert json.loads(body)["code"] == "invalid_request"
    assert (await nobody.get("/healthz")).status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/v1/whoami", 200),
        (b"http://x/v1/whoami", 200),
        (b"/v1/whoami?", 200),
        (b"/v1/whoami#fragment", 404),
        (b"*", 404),
        (b"/v1/whoami%00", 404),
        (b"/v1/../v1/whoami", 404),
        (b"/v1/sessions/%FF", 400),
        (b"/v1/sessions/%00", 400),
        (b"/v1/sessions/%ED%A0%80", 400),
        (b"/v1/sessions/%zz", 404),
        (b"/v1/sessions/\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", 400),
        (b"/v1/sessions?name=%FF", 400),
        (b"/v1/sessions?name=%00", 400),
        (b"/v1/sessions?" + b"&".join(b"a%d=1" % n for n in range(200)), 400),
    ],
)
async def test_odd_targets(installation: Installation, target: bytes, status: int) -> None:
    method = b"OPTIONS" if target == b"*" else b"GET"
    got, headers, body = await say(installation.port, method + b" " + target + b" HTTP/1.1\r\n" + HOST + AUTH + b"\r\n")
    assert got == status, body
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"


async def test_connect_leads_nowhere(installation: Installation) -> None:
    for data in (b"CONNECT x:443 HTTP/1.1\r\n" + HOST + b"\r\n", b"CONNECT /v1/sessions HTTP/1.1\r\n" + HOST + b"\r\n"):
        status, _, _ = await say(installation.port, data, whole=False)
        assert status in (400, 401, 404)


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        (b"", b"", 400, "invalid_request"),  # nothing is a question without any field
        (b"Content-Type: application/json\r\n", b"{", 400, "invalid_json"),
        (b"Content-Type: text/plain\r\n", b"{}", 415, "unsupported_media_type"),
        (b"", b"{}", 415, "unsupported_media_type"),
        (b"Content-Type: application/json; charset=latin-1\r\n", b"{}", 415, "unsupported_media_type"),
        (b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", b"{}", 415, "unsupported_media_type"),
        (b"Content-Type: application/json\r\nExpect: cake\r\n", b"{}", 400, "invalid_request"),
        (b"Content-Type: application/json\r\n", b"[" * 100_000, 400, "invalid_request"),
        (b"Content-Type: application/vnd.moorage+json\r\n", b'{"image": "nothing"}', 404, "image_not_found"),
    ],
)
async def test_odd_bodies(installation: Installation, headers: bytes, body: bytes, status: int, code: str) -> None:
    length = b"Content-Length: %d\r\n" % len(body)
    request = b"POST /v1/sessions HTTP/1.1\r\n" + HOST + AUTH + headers + length + b"\r\n" + body
    got, _, answer = await say(installation.port, request)
    assert (got, json.loads(answer)["code"]) == (status, code)


async def test_a_large_json_body_is_refused_unread(installation: Installation) -> None:
    for length in (b"Content-Length: 9000000000\r\n", b"Content-Length: 2000000\r\n"):
        head = (
            b"POST /v1/sessions HTTP/1.1\r\n" + HOST + AUTH + b"Content-Type: application/json\r\n" + length + b"\r\n"
        )
        status, headers, body = await say(installation.port, head)
        assert (status, json.loads(body)["code"], headers["connection"]) == (413, "request_too_large", "close")
    chunked = (
        (
            b"POST /v1/sessions HTTP/1.1\r\n"
            + HOST
            + AUTH
            + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        + (b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n") * 2
        + b"0\r\n\r\n"
    )
    status, _, _ = await say(installation.port, chunked)
    assert status == 413
    code = b'{"code": "' + b"x" * 3_000_000 + b'"}'
    head = b"POST /v1/sessions/%s/execute HTTP/1.1\r\n" % b"waits" + HOST + AUTH
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(code)
    status, _, body = await say(installation.port, head + code)  # code may be longer
    assert (status, json.loads(body)["code"]) == (409, "session_not_ready")


async def test_a_client_that_asks_first_is_invited_only_when_all_is_well(installation: Installation) -> None:
    head = b"PUT /v1/sessions/%s/files/x HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nExpect: 100-continue\r\n"
    async with connection(installation.port) as (reader, writer), asyncio.timeout(10):
        writer.write(head % b"train" + AUTH + b"\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"text")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    for name, extra, status in ((b"train", b"", 401), (b"nothing", AUTH, 404), (b"waits", AUTH, 409)):
        got, _, _ = await say(installation.port, head % name + extra + b"\r\n")
        assert got == status


async def test_requests_one_behind_the_other(installation: Installation) -> None:
    one = b"GET /v1/sessions/train HTTP/1.1\r\n" + HOST + AUTH + b"\r\n"
    async with connection(installation.port) as (reader, writer), asyncio.timeout(10):
        writer.write(one * 20)
        for _ in range(20):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
            await reader.readexactly(int(length.split()[1]))


async def test_an_unread_body_is_not_the_next_request(installation: Installation) -> None:
    """A body that smuggles a request: the connection ends with the refusal."""
    smuggled = b"DELETE /v1/sessions/train HTTP/1.1\r\n" + HOST + AUTH + b"\r\n"
    head = b"POST /v1/sessions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (len(smuggled) + 9)
    async with connection(installation.port) as (reader, writer), asyncio.timeout(10):
        writer.write(head + smuggled)
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1") == 1
        assert b"401" in answer.split(b"\r\n")[0]
    status, _, body = await say(installation.port, b"GET /v1/sessions/train HTTP/1.1\r\n" + HOST + AUTH + b"\r\n")
    assert (status, json.loads(body)["status"]) == (200, "RUNNING")


@pytest.fixture
async def hurried(installation: Installation) -> AsyncIterator[int]:
    """A door of short patience, for few at once."""
    door = RestDoor(installation.world, Metrics(), header_seconds=0.3, keepalive_seconds=0.3, max_connections=5)
    yield await door.listen("127.0.0.1", 0)
    await door.close(1.0)


@pytest.mark.parametrize("beginning", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nX-Slow: "])
async def test_slow_headers_are_cut_off(hurried: int, beginning: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" if beginning else b"")
            await asyncio.sleep(0.05)

    async with connection(hurried) as (reader, writer), asyncio.timeout(3):
        writer.write(beginning)
        dripping = asyncio.create_task(drip(writer))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        dripping.cancel()


async def test_an_idle_connection_is_closed_and_a_slow_second_request_too(hurried: int) -> None:
    for second in (b"", b"GET /heal"):
        async with connection(hurried) as (reader, writer), asyncio.timeout(3):
            writer.write(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            writer.write(second)
            assert b"HTTP" not in await reader.read()


async def test_more_connections_than_allowed_are_turned_away(hurried: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    open_ones = [await asyncio.open_connection("127.0.0.1", hurried) for _ in range(5)]
    status, headers, _ = await say(hurried, b"")
    assert (status, headers["retry-after"]) == (503, "1")
    for _, writer in open_ones:
        await cut(writer)


async def test_a_request_id_is_kept_when_it_is_sane(nobody: Caller) -> None:
    kept = await nobody.get("/v1/whoami", headers={"X-Request-Id": "abc-123.4"})
    assert (kept.headers["X-Request-Id"], kept.json["request_id"]) == ("abc-123.4", "abc-123.4")
    for odd in ("x" * 65, "a b", "<script>"):
        made = await nobody.get("/v1/whoami", headers={"X-Request-Id": odd})
        assert made.headers["X-Request-Id"] != odd
    assert (await nobody.get("/healthz")).headers["X-Request-Id"]


async def test_what_nobody_expected_is_an_internal_error(
    installation: Installation, alice: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(*_: object, **__: object) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(installation.world.processor, "run", breaks)
    answer = await alice.get("/v1/whoami")
    assert (answer.status, answer.code) == (500, "internal")
    assert answer.json["detail"] == Internal().message
    assert b"secret detail" not in answer.body
    assert answer.headers["X-Request-Id"] in caplog.text
    assert "KeyError" in caplog.text


async def test_a_deadline_is_no_crash(
    installation: Installation, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(installation.world.processor, "run", late)
    answer = await alice.get("/v1/whoami")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_without_the_database_everything_is_503_and_then_back(
    installation: Installation, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take() -> None:
        raise ConnectionRefusedError

    with monkeypatch.context() as gone:
        gone.setattr(installation.world.database, "_take", take)
        ready = await alice.get("/readyz")
        assert ready.status == 503
        answer = await alice.get("/v1/sessions")
        assert (answer.status, answer.code) == (503, "database_unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert (await alice.get("/healthz")).status == 200
    assert (await alice.get("/v1/sessions")).status == 200


async def test_no_page_of_another_site_is_served(alice: Caller) -> None:
    answer = await alice.get("/v1/whoami", headers={"Origin": "https://evil.example"})
    assert not any(name.lower().startswith("access-control") for name in answer.headers)
    preflight = await alice.ask("OPTIONS", "/v1/whoami", headers={"Access-Control-Request-Method": "POST"})
    assert preflight.status == 405
