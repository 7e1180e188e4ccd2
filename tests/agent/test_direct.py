"""Files straight from and to a host: what a ticket opens, and for how long; over a real agent, runner and container."""

from __future__ import annotations

import asyncio
import io
import ssl
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from agent.direct import Ticket, Tickets, part_of
from domain.errors import RangeNotSatisfiable, SessionEnded, Unauthenticated
from tests.agent.bed import RealBed
from tests.agent.contract import Subject


class Clock:
    at = 1000.0

    def __call__(self) -> float:
        return self.at


TICKET = Ticket(kernel_id="k", attempt=1, write=True, by="u", expires_at=1300.0)


def test_a_ticket_is_good_until_it_expires() -> None:
    clock = Clock()
    tickets = Tickets(clock)
    header = f"Bearer {tickets.sign(TICKET)}"
    assert tickets.read(header) == TICKET
    clock.at = 1300.0
    with pytest.raises(Unauthenticated, match="too old"):
        tickets.read(header)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: None,
        lambda token: token,
        lambda token: f"Basic {token}",
        lambda token: "Bearer",
        lambda token: "Bearer .",
        lambda token: "Bearer é.é",
        lambda token: f"Bearer {token}A",
        lambda token: f"Bearer A{token}",
        lambda token: f"Bearer {token.partition('.')[0]}",
        lambda token: f"Bearer {Tickets(Clock()).sign(TICKET)}",
    ],
)
def test_what_was_not_signed_here_is_refused(spoil: Callable[[str], str | None]) -> None:
    tickets = Tickets(Clock())
    with pytest.raises(Unauthenticated, match="no ticket"):
        tickets.read(spoil(tickets.sign(TICKET)))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 6)),
        ("bytes=-3", (7, 3)),
        ("bytes=-30", (0, 10)),
        ("bytes=8-99", (8, 2)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=0-1,3-4", None),
    ],
)
def test_ranges(header: str | None, part: tuple[int, int] | None) -> None:
    assert part_of(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0", "bytes=99-100"])
def test_a_range_outside_is_refused(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        part_of(header, 10)


class Reader:
    """A client that trusts the address's own certificate alone."""

    def __init__(self, http: aiohttp.ClientSession, address: dict[str, Any]) -> None:
        self._http = http
        self._url = address["url"]
        self.token = address["token"]

    def open(self, path: str) -> Any:
        return self._http.get(self._url + path, headers={"Authorization": f"Bearer {self.token}"})

    async def __call__(self, method: str, path: str, **more: Any) -> tuple[int, bytes, Any]:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        async with self._http.request(method, self._url + path, headers=headers, **more) as answer:
            return answer.status, await answer.read(), answer.headers


@asynccontextmanager
async def client(address: dict[str, Any]) -> AsyncIterator[Reader]:
    tls = ssl.create_default_context(cadata=address["certificate"])
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
        yield Reader(http, address)


async def cut_short(address: dict[str, Any]) -> None:
    """An upload whose sender goes away in the middle of it."""
    url, tls = urlsplit(address["url"]), ssl.create_default_context(cadata=address["certificate"])
    reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=tls)
    head = (
        f"PUT /files/half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {address['token']}\r\nExpect: 100-continue\r\n"
    )
    writer.write(f"{head}Content-Length: 4194304\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"x" * 1_000_000)
    await writer.drain()
    writer.transport.abort()


@pytest.fixture(scope="module")
async def bed(engine_host: str, kernel_image: str) -> AsyncIterator[RealBed]:
    bed = RealBed(engine_host, kernel_image)
    try:
        await bed.open(direct="127.0.0.1:0")
        yield bed
    finally:
        await bed.close()


@pytest.mark.containers
async def test_files_pass_no_manager(bed: RealBed) -> None:
    subject, other = Subject(bed), Subject(bed)
    await subject.up()
    await other.up()
    address = await bed.hub.grant_direct(subject.where, write=True, by="alice")
    content = bytes(range(256)) * (12 << 10)  # 3 MiB
    async with client(address) as ask:
        status, body, _ = await ask("PUT", "/files/in/a%20b?mode=640", data=io.BytesIO(content), expect100=True)
        assert (status, b'"size": 3145728' in body) == (200, True), body
        status, body, headers = await ask("GET", "/files/in/a%20b")
        assert (status, body == content, headers["Accept-Ranges"]) == (200, True, "bytes")
        status, body, headers = await ask("GET", "/files/in/a%20b", headers={"Range": "bytes=1048570-1048580"})
        assert (status, body) == (206, content[1048570:1048581])
        assert headers["Content-Range"] == "bytes 1048570-1048580/3145728"
        status, body, headers = await ask("HEAD", "/files/in/a%20b")
        assert (status, body, headers["Content-Length"]) == (200, b"", "3145728")
        status, body, headers = await ask("GET", "/files/in/a%20b", headers={"Range": "bytes=9999999-"})
        assert (status, headers["Content-Range"]) == (416, "bytes */3145728")
        status, body, _ = await ask("GET", "/archive?path=in")
        assert status == 200
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            assert "in/a b" in [name.removeprefix("home/work/").removeprefix("./") for name in tar.getnames()]
        # refused, with nothing left behind
        for method, path, refused, more in (
            ("PUT", "/files/in/a%20b", 409, {"headers": {"If-None-Match": "*"}, "data": b"x"}),
            ("PUT", "/files/b", 502, {"headers": {"X-Content-Sha256": "0" * 64}, "data": b"x"}),
            ("PUT", "/files/b?mode=rw", 400, {"data": b"x"}),
            ("GET", "/files/b", 404, {}),
            ("GET", "/files//etc/passwd", 400, {}),
            ("GET", "/archive", 400, {}),
            ("POST", "/files/b", 405, {}),
            ("GET", "/", 404, {}),
        ):
            status, body, _ = await ask(method, path, **more)
            assert status == refused, (method, path, status, body)
        await cut_short(address)
        assert (await ask("GET", "/files/half"))[0] == 404
        # one session's ticket opens no other's files, and one for reading writes nothing
        ask.token = (await bed.hub.grant_direct(other.where, write=False, by="bob"))["token"]
        assert (await ask("GET", "/files/in/a%20b"))[0] == 404
        assert (await ask("PUT", "/files/in/a%20b", data=b"x"))[0] == 403
        for wrong in ("", "x.y", address["token"][:-2]):
            ask.token = wrong
            assert (await ask("GET", "/files/in/a%20b"))[0] == 401
        # nor is one good for anything after the session's end, which breaks off what is under way
        ask.token = address["token"]
        await subject.execute("open('/home/work/large', 'wb').truncate(1 << 28)")
        with pytest.raises(aiohttp.ClientPayloadError):
            async with ask.open("/files/large") as answer:
                assert (answer.status, len(await answer.content.read(1000))) == (200, 1000)
                await subject.down()
                await answer.read()
        status, body, _ = await ask("GET", "/files/in/a%20b")
        assert (status, b"session_ended" in body) == (410, True), body
        with pytest.raises(SessionEnded):
            await bed.hub.grant_direct(subject.where, write=True, by="alice")
    await other.down()
    assert "upload of kernel" in bed.log()
    assert address["token"] not in bed.log()
    assert "Traceback" not in bed.log(), bed.log()
