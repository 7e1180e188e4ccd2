"""Without a credential: every address of every listener, with every method, in every way of writing it.

The addresses come from the running listeners themselves, so that a new one is in the sweep without being put there. What
may be had without a credential is in `PUBLIC`, written by hand.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

import pytest

from manager.rest.routes import ROUTES
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.gate.raw import Reply, Wire
from tests.gate.stack import Stack, opened

#: What anybody may have: listener, method, address, and why.
PUBLIC: Final = {
    ("rest", "GET", "/"): "leads to the documentation",
    ("rest", "GET", "/docs"): "the documentation",
    ("rest", "GET", "/openapi.json"): "the same for programs",
    ("rest", "GET", "/healthz"): "for load balancers: the process is alive",
    ("rest", "GET", "/readyz"): "for load balancers: it takes requests",
    ("rest", "GET", "/metrics"): "for scrapers on this machine only; elsewhere 401",
    ("rest", "POST", "/v1/sign-in"): "takes an e-mail address and a password for a token, a few times",
    ("agents", "GET", "/agent/ca"): "the authority's certificate; the join token carries its hash",
    ("agents", "POST", "/agent/join"): "takes a one-time secret for a certificate",
    ("services", "GET", "/healthz"): "for load balancers: the process is alive",
    ("services", "GET", "/proxy/11111111-0000-7000-8000-000000000001/web"): "the same address with a slash; asks nobody",
}  # fmt: skip
METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND",
)  # fmt: skip
UPGRADE: Final = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
A_SESSION: Final = "11111111-0000-7000-8000-000000000001"
TICKET: Final = "t" * 43


def rest_addresses(stack: Stack) -> list[str]:
    rows = [re.sub(r"\{[a-z_]+\*?\}", "x", route.path) for route in ROUTES]
    return list(dict.fromkeys([*stack.door._public, *rows]))


def agent_addresses(stack: Stack) -> list[str]:
    runner = stack.hub._runner
    assert runner is not None
    assert runner.app is not None
    return list(dict.fromkeys(str(resource.canonical) for resource in runner.app.router.resources()))


SERVICES: Final = [
    "/healthz",
    "/metrics",
    "/v1/sessions",
    "/proxy",
    f"/proxy/{A_SESSION}/web",
    f"/proxy/{A_SESSION}/web/",
    f"/proxy/{A_SESSION}/web/lab?token=x",
    f"/proxy/{A_SESSION}/web/../other/",
    f"/proxy/{TICKET}/web",
    f"/proxy/{TICKET}/web/lab",
]
FILES: Final = ["/", "/files", "/files/home/work/a", "/files/../../etc/passwd", "/archive", "/archive?path=/etc"]


@pytest.fixture
async def stack(dsn: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with opened(dsn, tmp_path, FakeAgent()) as made:
        yield made


def _ways(path: str) -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """How an address may be written, and what may be sent with it."""
    yield "as it is", path, ()
    yield "for a WebSocket", path, UPGRADE
    yield "for a WebSocket of another site", path, (*UPGRADE, "Origin: https://evil.example")
    yield "for a tunnel", path, ("Upgrade: tcp", "Connection: Upgrade")
    yield "with a slash", f"{path}/", ()
    yield "with two slashes", f"/{path}", ()
    yield "encoded", path.replace("/v1", "/%76%31", 1), ()
    yield "in capitals", path.upper(), ()
    yield "as of a proxy", f"http://127.0.0.1{path}", ()
    yield "with a key in the query", f"{path}{'&' if '?' in path else '?'}access_token=a.b&token=a.b", ()
    yield (
        "with somebody else's word",
        path,
        ("X-Forwarded-User: root", "X-Forwarded-For: 127.0.0.1", "Cookie: token=a.b"),
    )
    yield "overridden", path, ("X-HTTP-Method-Override: GET", "X-Original-URL: /docs")
    yield "prefetched", path, ("Sec-Purpose: prefetch", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors")


async def test_every_address_and_every_method(stack: Stack) -> None:
    listeners = {
        "rest": (stack.rest, rest_addresses(stack)),
        "agents": (stack.hub.url, agent_addresses(stack)),
        "services": (stack.services, SERVICES),
        "files": (stack.direct.url, FILES),
    }
    unknown = ["/v1", "/v2/sessions", "/nothing", "/.env", "/v1/sessions/x/y/z"]
    asked = [
        (name, Wire(url), method, path, way, target, headers)
        for name, (url, paths) in listeners.items()
        for path in [*paths, *unknown]
        for way, target, headers in _ways(path)
        for method in (METHODS if way == "as it is" else ("GET", "POST"))
    ]
    faults: list[str] = []
    few = asyncio.Semaphore(32)

    async def ask(
        name: str, wire: Wire, method: str, path: str, way: str, target: str, headers: tuple[str, ...]
    ) -> None:
        async with few:
            reply = await wire.ask(method, target, headers)
        if fault := _fault(reply, name, method, path, way):
            faults.append(f"{name}: {method} {target} ({way}): {reply.status} {fault} {reply.body[:120]!r}")

    await asyncio.gather(*(ask(*each) for each in asked))
    assert not faults, f"{len(faults)} of {len(asked)}:\n" + "\n".join(sorted(faults)[:60])
    assert len(asked) > 3000
    async with stack.database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM audit") == 0


def _fault(reply: Reply, name: str, method: str, path: str, way: str) -> str | None:
    public = (name, "GET" if method == "HEAD" else method, path) in PUBLIC
    if public and way == "as it is":
        expected = {"/agent/join": 400, "/v1/sign-in": 400, "/": 302, PROXY_SLASH: 308}.get(path, 200)
        return None if reply.status == expected else f"is public and should be {expected}"
    if public:  # written in another way, it is the public one or nothing
        return None if reply.status in (200, 302, 308, 400, 401, 404, 429) else "is public, and this is odd"
    if name == "services" and way == "as of a proxy":  # which that listener is not
        return None if reply.status == 400 else "is passed on"
    if reply.status not in (401, 404):
        return "is neither 401 nor 404"
    if reply.status == 401 and name != "agents" and reply.header("WWW-Authenticate") is None:
        return "does not say how to authenticate"
    return None


PROXY_SLASH: Final = f"/proxy/{A_SESSION}/web"


async def test_what_is_public_is_listed(stack: Stack) -> None:
    """The list is as long as what is there: no entry names an address that is gone, and no public one is missing."""
    open_rows = {(route.method, route.path) for route in ROUTES if route.public}
    open_pages = {("GET", path) for path in stack.door._public}
    assert {(method, path) for name, method, path in PUBLIC if name == "rest"} == open_rows | open_pages
    assert {path for name, _, path in PUBLIC if name == "agents"} < set(agent_addresses(stack))


async def test_metrics_are_for_this_machine(stack: Stack) -> None:
    wire = Wire(stack.rest)
    assert (await wire.ask("GET", "/metrics")).status == 200
    for told in ("X-Forwarded-For: 198.51.100.7", "Forwarded: for=198.51.100.7", "X-Real-IP: 198.51.100.7"):
        assert (await wire.ask("GET", "/metrics", (told,))).status == 401


@pytest.mark.parametrize("method", ["BREW", "get", "GE\tT", "GET\x00"])
async def test_what_is_no_method_is_refused_whatever_the_address(stack: Stack, method: str) -> None:
    """Before any address is looked at, so that the answer tells nothing of it."""
    for url in (stack.rest, stack.hub.url, stack.direct.url, stack.services):
        replies = [await Wire(url).ask(method, path) for path in ("/nothing", "/v1/sessions", "/agent/ca", "/docs")]
        assert len({reply.status for reply in replies}) == 1, (url, replies)
        assert replies[0].status in (400, 401), (url, replies[0])


async def test_a_connection_of_a_host_needs_its_certificate(stack: Stack) -> None:
    reply = await Wire(stack.hub.url).ask("GET", "/agent/link", UPGRADE)
    assert reply.status == 401


@pytest.mark.parametrize(
    "credential",
    ["Bearer", "Bearer x", "Bearer x.y", "Basic eDp5", "Negotiate x", "Bearer \xff", f"Bearer {'x' * 4000}", "bearer a.b c"],
)  # fmt: skip
async def test_a_wrong_credential_is_none(stack: Stack, credential: str) -> None:
    for url in (stack.rest, stack.services, stack.direct.url):
        path = {stack.rest: "/v1/whoami", stack.services: f"/proxy/{A_SESSION}/web/"}.get(url, "/files/home/work/a")
        reply = await Wire(url).ask("GET", path, (f"Authorization: {credential}",))
        assert reply.status == 401, (url, reply)


async def test_nothing_is_run_for_nobody(stack: Stack, database: Database) -> None:
    """A refused request costs no look into the database: there is no credential to look up."""
    async with database.reader() as connection:
        before = await connection.fetchval(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        )
    await asyncio.gather(*(Wire(stack.rest).ask("POST", "/v1/sessions", (), b"{}") for _ in range(50)))
    async with database.reader() as connection:
        after = await connection.fetchval("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    assert after - before < 50
