"""Clients that go in the middle: of a create, an upload, an execution, a download, at every so-manieth byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
from uuid import uuid4

from moorage import aio

from tests.faults.book import Book
from tests.faults.workload import SMALL, Town

DATA = b"0123456789abcdef" * 6000


def _head(town: Town, method: str, path: str, length: int, key: str, kind: str = "application/json") -> bytes:
    installation = town.installation
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {installation.access_key}.{installation.secret_key}\r\n"
        f"Content-Type: {kind}\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _send(town: Town, content: bytes, *, read: int = 0) -> None:
    """These bytes, so many of the answer, and the connection breaks."""
    host, _, port = town.installation.endpoint.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(content)
    await writer.drain()
    if read:
        await reader.readexactly(read)
    writer.transport.abort()


async def gone(town: Town, book: Book, *, cuts: int) -> None:
    """At `cuts` places of each request; then the same is asked to the end, and there is one effect."""
    found: list[str] = []
    session = town.home()
    for number in range(cuts):
        share = number / max(1, cuts - 1)
        found += await _execute(town, session, share)
        found += await _upload(town, session, share)
        found += await _download(town, session, share)
    found += await _create(town, 0.5)
    found += await _create(town, 1.0)
    found += await town.model.verify()
    found += await town.installation.check(town.client)
    book.fault(f"clients gone at {cuts} places of execute, upload, download and create", found)


async def _execute(town: Town, session: aio.Session, share: float) -> list[str]:
    name, key = town.name("left"), str(uuid4())
    code = f"open('{name}', 'a').write('once ')\nprint('{name}')"
    body = json.dumps({"mode": "query", "code": code}).encode()
    whole = _head(town, "POST", f"/v1/sessions/{session.id}/execute", len(body), key) + body
    await _send(town, whole[: round(len(whole) * share)])
    ran = await session.run_code(code, idempotency_key=key)
    wrote = await session.files.read_bytes(name)
    return [] if (ran.stdout, wrote) == (f"{name}\n", b"once ") else [f"I3 {name}: {ran.stdout!r}, {wrote!r}"]


async def _upload(town: Town, session: aio.Session, share: float) -> list[str]:
    path = town.name("half")
    head = _head(
        town,
        "PUT",
        f"/v1/sessions/{session.id}/files/{path}",
        len(DATA),
        str(uuid4()),
        "application/octet-stream",
    )
    await _send(town, (head + DATA)[: len(head) + round(len(DATA) * share * 0.99)])
    if await session.files.exists(path):
        return [f"I7 half of {path} is there"]
    await session.files.write(path, DATA)
    return [] if await session.files.read_bytes(path) == DATA else [f"I7 {path} is not what was written"]


async def _download(town: Town, session: aio.Session, share: float) -> list[str]:
    path = town.name("whole")
    await session.files.write(path, DATA)
    head = _head(town, "GET", f"/v1/sessions/{session.id}/files/{path}", 0, str(uuid4()))
    await _send(town, head, read=1 + round(len(DATA) * share * 0.9))
    again = hashlib.sha256(await session.files.read_bytes(path)).digest()
    return [] if again == hashlib.sha256(DATA).digest() else [f"I7 {path} is not what was written"]


async def _create(town: Town, share: float) -> list[str]:
    name, key = town.name("begun"), str(uuid4())
    body = json.dumps({"name": name, "image": "python", "resource_slots": SMALL}).encode()
    whole = _head(town, "POST", "/v1/sessions", len(body), key) + body
    await _send(town, whole[: round(len(whole) * share)])
    one = await town.client.sessions.create(name, **SMALL, idempotency_key=key)
    named = [each.id async for each in town.client.sessions.iterate() if each.name == name]
    await one.destroy(wait=60)
    return [] if named == [one.id] else [f"I6 {name}: {named}"]
