"""`GET /v1/sessions/{id}`, authenticated, against the barest handler that reads the same row: aiohttp and asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from uuid import UUID

from bench.http import Client
from bench.installation import Installation
from bench.report import Row

SECONDS = 3.0
ROUNDS = 3
CLIENTS = (1, 32)


def run(installation: Installation) -> Iterator[Row]:
    client = Client.of(installation)
    session = client.ask("POST", "/v1/sessions?wait=60", {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}})
    config = tomllib.loads((installation.data_dir / "manager.toml").read_text())
    try:
        yield from compare(
            installation.host, installation.port, installation.bearer, session["id"], config["database_url"]
        )
    finally:
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
        client.close()


def compare(host: str, port: int, bearer: str, session_id: str, dsn: str) -> Iterator[Row]:
    """Interleaved, best of three each: the machine's mood shall not decide."""
    client = Client(host, port, bearer)
    request = client.request("GET", f"/v1/sessions/{session_id}")
    status, answer = client.send(request)
    assert status == 200, answer
    client.close()
    with bare(dsn) as bare_port:
        for clients in CLIENTS:
            ours, reference = [], []
            for _ in range(ROUNDS):
                reference.append(requests_per_second("127.0.0.1", bare_port, request, clients))
                ours.append(requests_per_second(host, port, request, clients))
            yield Row(
                name=f"GET session, {clients} client{'s' if clients > 1 else ''}",
                ours=max(ours),
                reference=max(reference),
                unit="req/s",
                bound="ratio >= 0.5",
                reference_is="bare aiohttp + asyncpg, unauthenticated",
            )


def requests_per_second(host: str, port: int, request: bytes, clients: int) -> float:
    """Each client has one request under way on a connection of its own."""
    selector = selectors.DefaultSelector()
    open_ones = []
    for _ in range(clients):
        one = socket.create_connection((host, port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(one, selectors.EVENT_READ, bytearray())
        open_ones.append(one)
        one.sendall(request)
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS:
        for key, _ in selector.select(1.0):
            ready, received = key.fileobj, key.data
            assert isinstance(ready, socket.socket)
            received += ready.recv(65536)
            if complete(received):
                assert received.startswith(b"HTTP/1.1 200"), bytes(received[:300])
                received.clear()
                done += 1
                ready.sendall(request)
    for one in open_ones:
        one.close()
    return done / elapsed


def complete(received: bytearray) -> bool:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = received.find(b"Content-Length: ", 0, end) + 16
    return len(received) >= end + 4 + int(received[at : received.index(b"\r\n", at)])


@contextlib.contextmanager
def bare(dsn: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "bench.rest_reads", dsn], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


async def serve_bare(dsn: str) -> None:
    """The reference: one statement by key, one dictionary, one answer."""
    import asyncpg
    import orjson
    from aiohttp import web

    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=16)

    async def session(request: web.Request) -> web.Response:
        row = await pool.fetchrow("SELECT * FROM sessions WHERE id = $1", UUID(request.match_info["id"]))
        return web.Response(body=orjson.dumps(dict(row or {}), default=str), content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/sessions/{id}", session)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_bare(sys.argv[1]))
