"""What no client library would send, against a running server: floods, slow senders, broken JSON, and names of every kind."""

from __future__ import annotations

import asyncio
import json
import time
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.gate.people import USER
from tests.gate.raw import Reply, Wire
from tests.gate.server import running
from tests.gate.test_schemathesis import MOST_GROWTH_BYTES, held, settled
from tests.gate.things import thing_id


@dataclass(frozen=True)
class Server:
    wire: Wire
    services: Wire
    pid: int

    async def ask(self, method: str, path: str, body: bytes = b"", *headers: str) -> Reply:
        kind = ("Content-Type: application/json",) if body and not headers else headers
        return await self.wire.ask(method, path, (USER.header, *kind), body)


@pytest.fixture
async def server(dsn: str, tmp_path: Path) -> AsyncIterator[Server]:
    """It must be as well afterwards as it was before, and not have grown."""
    async with running(dsn, tmp_path) as told:
        made = Server(Wire(str(told["rest"])), Wire(str(told["services"])), int(told["pid"]))
        assert (await made.ask("GET", "/v1/whoami")).status == 200
        before = held(made.pid)
        yield made
        assert (await made.ask("GET", "/v1/whoami")).status == 200
        after = await settled(made.pid, before)
        log = (tmp_path / "server.log").read_text()
    assert after["bytes"] - before["bytes"] < MOST_GROWTH_BYTES, (before, after)
    assert after["descriptors"] <= before["descriptors"] + 8, (before, after)
    assert "Traceback" not in log, log[:4000]


async def floods_and_slow_senders(server: Server) -> None:
    """A thousand connections that begin and do not end, heads without end: others are answered all the while."""
    head = f"GET /v1/whoami HTTP/1.1\r\nHost: x\r\n{USER.header}\r\n".encode()
    many = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 60) for n in range(90))
    for wire in (server.wire, server.services):
        opened = await asyncio.gather(
            *(asyncio.open_connection(wire.host, wire.port) for _ in range(500)), return_exceptions=True
        )
        writers = [pair[1] for pair in opened if not isinstance(pair, BaseException)]
        assert len(writers) == 500
        for writer in writers:
            writer.write(head + many)  # and no end of it
        assert (await server.wire.ask("GET", "/healthz")).status == 200
        assert (await server.ask("GET", "/v1/whoami")).status == 200
        for writer in writers:
            writer.transport.abort()
    for flood in (
        head + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
        head + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        head + b"y" * 3_000_000,
        b"\r\n" * 100_000 + head + b"\r\n",
        bytes(range(256)) * 4000,
    ):
        for wire in (server.wire, server.services):
            reply = await wire.send(flood)
            assert reply.status in (0, 200, 400, 401, 414, 431), (flood[:40], reply)


BODIES: Final = {
    "deep list": b'{"tag": ' + b"[" * 500_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "giant": b'{"tag": "' + b"x" * 2_000_000 + b'"}',
    "giant integer": b'{"priority": ' + b"9" * 500_000 + b"}",
    "integer of 65 bits": b'{"priority": 18446744073709551616}',
    "giant exponent": b'{"priority": 1e999999999}',
    "NaN": b'{"priority": NaN}',
    "infinity": b'{"priority": -Infinity}',
    "twice": b'{"tag": "a", "tag": "b"}',
    "many names": b"{" + b",".join(b'"%d": 1' % n for n in range(60_000)) + b"}",
    "NUL": b'{"tag": "a\\u0000b"}',
    "raw NUL": b'{"tag": "a\x00b"}',
    "lone surrogate": b'{"tag": "\\ud800"}',
    "not UTF-8": b'{"tag": "\xff\xfe"}',
    "UTF-16": '{"tag": "a"}'.encode("utf-16"),
    "a list": b"[]",
    "a word": b"true",
    "nothing": b" ",
    "two": b"{} {}",
    "comment": b"{/**/}",
    "newline in a string": b'{"tag": "a\nb"}',
}


async def json_of_every_kind(server: Server) -> None:
    target = "/v1/sessions"
    for name, body in BODIES.items():
        begun = time.monotonic()
        reply = await server.ask("POST", target, body)
        assert 400 <= reply.status < 500, (name, reply)
        assert json.loads(reply.body)["code"], name
        assert time.monotonic() - begun < 10, name  # of a second at most, on a machine that is busy
    lies = (b"Content-Length: 99999999999\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n")
    for lie in lies:
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\n{USER.header}\r\nContent-Type: application/json\r\n".encode()
        reply = await server.wire.send(head + lie + b"\r\n" + b"zz\r\n{}")
        assert reply.status in (400, 413), (lie, reply)


NAMES: Final = (
    "-rf", "--help", "-", ".", "..", "../x", "a/b", "a\\b", " ", " a ", "a b", "a\nb", "a\rb", "a\tb", "a\0b", "\x1b[31mred",
    "x" * 255, "x" * 4096, "é" * 128, "\u202egnp.exe", "\u200b", "\ufeffa", unicodedata.normalize("NFC", "e\u0301te"),
    unicodedata.normalize("NFD", "\u00e9te"), "\U0001f600", "\ud800", "%00", "%2e%2e", "$(id)", "`id`", "';--", "<b>", "*", "",
    "CON", "null", "\u0130", "\uffff", "a" + "\u0301" * 100,
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A text of somebody's own: how it is set, and how it comes back."""

    method: str
    path: str
    body: Any  #: with `*` where the name goes
    back: str  #: address of what shows it
    by_path: bool = False  #: the name is in the address, percent-encoded


SESSION: Final = {"image": "python", "resource_slots": {"cpu": 1, "mem": 512}}
FIELDS: Final = {
    "session": Field("POST", "/v1/sessions", {**SESSION, "name": "*"}, "/v1/sessions"),
    "tag": Field("POST", "/v1/sessions", {**SESSION, "tag": "*"}, "/v1/sessions"),
    "label": Field("POST", "/v1/sessions", {**SESSION, "labels": {"of": "*"}}, "/v1/sessions"),
    "volume": Field("POST", "/v1/volumes", {"name": "*"}, "/v1/volumes"),
    "token": Field("POST", "/v1/tokens", {"name": "*", "ttl_seconds": 60}, "/v1/tokens"),
    "template": Field("POST", "/v1/templates", {"name": "*", "document": json.dumps({"session": SESSION})}, "/v1/templates"),
    "registry": Field("PUT", "/v1/registries/registry.example.org", {"username": "*", "password": "p"}, "/v1/registries"),
    "file": Field("PUT", "/v1/sessions/{session}/files/*", None, "/v1/sessions/{session}/files", by_path=True),
}  # fmt: skip


def filled(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: filled(item, name) for key, item in value.items()}
    return name if value == "*" else value


def strings(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(strings, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(strings, value)) if value else set()
    return {value} if isinstance(value, str) else set()


async def names_come_back_as_they_were_or_are_refused(server: Server) -> None:
    session = str(thing_id("session", 2))
    taken = dict.fromkeys(FIELDS, 0)
    for kind, field in FIELDS.items():
        for name in NAMES:
            path, back = (text.replace("{session}", session) for text in (field.path, field.back))
            if field.by_path:
                path = path.replace("*", quote(name.encode("utf-8", "surrogatepass"), safe=""))
                reply = await server.ask(field.method, path, b"content", "Content-Type: application/octet-stream")
            else:
                reply = await server.ask(field.method, path, json.dumps(filled(field.body, name)).encode())
            assert reply.status < 500, (kind, name, reply)
            if reply.status >= 400:
                assert json.loads(reply.body)["code"], (kind, name)
                continue
            taken[kind] += 1
            shown = await server.ask("GET", path if field.by_path else back)
            assert shown.status == 200, (kind, name, shown)
            if field.by_path and name not in (".", ""):  # the folder itself, which the fake host takes for a file
                assert shown.body == b"content", (name, shown)
            elif not field.by_path and name.strip():  # something else stands in for an empty name
                assert name in strings(json.loads(shown.body)), (kind, name)
    assert all(taken.values()), taken


async def names_in_addresses(server: Server) -> None:
    """An address that names nothing, however it is written, is refused and not followed."""
    for name in NAMES:
        encoded = quote(name.encode("utf-8", "surrogatepass"), safe="")
        for path in ("/v1/sessions/{}", "/v1/volumes/{}", "/v1/templates/{}", "/v1/tasks/{}", "/v1/images/{}/alias"):
            method = "POST" if path.endswith("alias") else "GET"
            reply = await server.ask(method, path.format(encoded), b'{"alias": "x"}' if method == "POST" else b"")
            assert reply.status in (200, 400, 403, 404, 405, 414), (path, name, reply)
        raw = name.encode("utf-8", "surrogatepass")
        reply = await server.wire.send(
            b"GET /v1/sessions/" + raw + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert reply.status in (0, 400, 401, 404, 414), (name, reply)


async def test_what_is_sent_badly(server: Server) -> None:
    await floods_and_slow_senders(server)
    await json_of_every_kind(server)


async def test_names(server: Server) -> None:
    await names_come_back_as_they_were_or_are_refused(server)
    await names_in_addresses(server)
