"""The door itself: finds the row, asks who it is, runs the action, and answers every failure as a problem."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from domain.errors import (
    AgentUnavailable,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    MoorageError,
    PermissionDenied,
    RouteNotFound,
)
from manager.compat import PREFIX, Front, mounted
from manager.figures import InstallationFigures
from manager.rest.auth import NOBODY, Authenticator, Rates
from manager.rest.exchange import Exchange
from manager.rest.json import dumps
from manager.rest.listener import Listener
from manager.rest.problems import problem
from manager.rest.routes import Route, Table, path_values
from manager.rest.rows import run
from repositories import event as event_rows

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from domain.principal import Principal
    from manager.config import ManagerConfig
    from manager.metrics import Metrics
    from manager.world import World

log = logging.getLogger("moorage.rest")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_READY_SECONDS: Final = 2.0
#: Loopback peers that speak for others are not on loopback.
_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


class RestDoor:
    """`/v1` over HTTP. `await door.listen(host, port)`, and at the end `await door.close()`."""

    def __init__(
        self,
        world: World,
        metrics: Metrics,
        *,
        join_token: Callable[[str], str] | None = None,
        **limits: Any,
    ) -> None:
        """`join_token` makes the token that a host joins with of the secret in it. `limits` are those of `Listener`."""
        self.world = world
        self.metrics = metrics
        self.figures = InstallationFigures(world.database, metrics, now=world.service.now)
        self.join_token = join_token
        self.authenticator = Authenticator(world.authenticate)
        self.closing = asyncio.Event()
        self.rates = Rates()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        #: what watches over answers that go on
        self.streams: set[asyncio.Task[None]] = set()
        self._table = Table()
        self._public: dict[str, Callable[[BaseRequest, str], Awaitable[web.StreamResponse]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
            "/docs": self._docs,
            "/": self._root,
        }
        self._fronts: Mapping[str, Front] = {}
        self._id_prefix = secrets.token_hex(4)
        self._id_counter = itertools.count(1)
        self._ready: tuple[float, str | None] = (0.0, None)
        self._listener = Listener(self._handle, self.new_request_id, **limits)

    def mount(self, fronts: Mapping[str, Front]) -> None:
        self._fronts = fronts

    async def listen(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        sock: socket.socket | None = None,
    ) -> int:
        """Take requests from now on; returns the port."""
        return await self._listener.listen(host, port, tls=tls, sock=sock)

    async def close(self, grace_seconds: float = 10.0, *, drain_seconds: float = 0.0) -> None:
        """Open streams are told and end, requests that run are finished, bodies included; new connections are refused.

        For `drain_seconds` before that `readyz` says 503 while everybody is still served, each answer the last one of its
        connection: time for a load balancer to send nobody here any more. Then answers are held for nobody any longer.
        """
        self.closing.set()
        if drain_seconds:
            await asyncio.sleep(drain_seconds)
        self.world.service.patience.end()
        self._listener.stop_listening()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests did not end in time and are cut off", self._running)
        await self._listener.close()

    def new_request_id(self) -> str:
        return f"{self._id_prefix}-{next(self._id_counter):x}"

    def stamp(self, response: web.StreamResponse, request_id: str) -> None:
        """What every answer says."""
        headers = response.headers
        headers["X-Request-Id"] = request_id
        headers["Server"] = "moorage"
        headers["X-Content-Type-Options"] = "nosniff"

    # -- one request -----------------------------------------------------------------------------------------------------
    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        self._running += 1
        self._idle.clear()
        try:
            response = await self._answer(request)
            if self.closing.is_set():
                response.force_close()
            return response
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _answer(self, request: BaseRequest) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id")
        request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else self.new_request_id()
        started = time.monotonic()
        name = "none"
        try:
            path = request.raw_path.partition("?")[0]
            if not path.startswith("/"):
                path = _origin_form(path)
            if (public := self._public.get(path)) is not None:
                name = path
                if request.method not in ("GET", "HEAD"):
                    await self.authenticator.principal(request)
                    raise MethodNotAllowed(allow="GET, HEAD")
                response = await public(request, request_id)
            elif path.startswith(PREFIX) and (front := self._front(path)) is not None:
                name = f"{PREFIX}{front}"
                response = await self._fronts[front].answer(request, path.removeprefix(name) or "/", request_id)
            else:
                route, raw = self._find(request, path)
                if not isinstance(route, Route):
                    await self.authenticator.principal(request)
                    raise MethodNotAllowed(allow=", ".join(sorted(route)))
                name = route.path
                by = NOBODY if route.public else await self._principal(request)
                exchange = Exchange(self, request, request_id, route, path_values(route, raw), by)
                response = await (route.handler or run)(exchange)
        except MoorageError as error:
            response = self._refused(request, error, request_id)
        except ConnectionError:
            raise
        except Exception as error:
            response = self._refused(request, self._unexpected(error, request, request_id), request_id)
        if not response.prepared:
            self.stamp(response, request_id)
        self.metrics.request(name, request.method, response.status, time.monotonic() - started)
        return response

    def _front(self, path: str) -> str | None:
        name = path.removeprefix(PREFIX).partition("/")[0]
        return name if name in self._fronts else None

    async def _principal(self, request: BaseRequest) -> Principal:
        by = await self.authenticator.principal(request)
        if by.requests_per_second is not None:
            self.rates.take(by)
        return by

    def _find(self, request: BaseRequest, path: str) -> tuple[Route | frozenset[str], list[str]]:
        method = request.method
        found = self._table.find("GET" if method == "HEAD" else method, path)
        if isinstance(found, frozenset):
            if not found:
                raise RouteNotFound
            return found, []
        route, raw = found
        if method == "HEAD" and not route.head:
            return frozenset({"GET"}), []
        return route, raw

    def _refused(self, request: BaseRequest, error: MoorageError, request_id: str) -> web.StreamResponse:
        if request.writer.output_size > 0:
            # An answer has begun; all that can be said now is that it is not whole.
            log.warning("request %s broke off: %s", request_id, error)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer broke off")
        # A body that nobody has read would be taken for the next request, or has to be read for nothing.
        return problem(error, request_id, close=request.body_exists and not request.content.is_eof())

    def _unexpected(self, error: Exception, request: BaseRequest, request_id: str) -> MoorageError:
        if isinstance(error, TimeoutError):
            log.warning("request %s: %s %s took too long", request_id, request.method, request.raw_path[:200])
            return AgentUnavailable("It took too long, and it is not known whether it happened; ask again shortly.")
        if isinstance(error, web.HTTPException) and error.status < 500:  # aiohttp's own, of a WebSocket handshake
            return InvalidRequest((error.text or error.reason).splitlines()[0][:200])
        log.error("request %s: %s %s failed", request_id, request.method, request.raw_path[:200], exc_info=error)
        return Internal()

    # -- addresses without credentials ---------------------------------------------------------------------------------------
    async def _healthz(self, request: BaseRequest, request_id: str) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _readyz(self, request: BaseRequest, request_id: str) -> web.StreamResponse:
        """Ready to take requests: not on the way out, and the database answers."""
        reason = "closing" if self.closing.is_set() else await self._database_fault()
        return _json({"status": "ok"} if reason is None else {"status": reason}, 200 if reason is None else 503)

    async def _database_fault(self) -> str | None:
        until, fault = self._ready
        if until < time.monotonic():
            try:
                async with asyncio.timeout(_READY_SECONDS), self.world.database.reader() as connection:
                    await event_rows.head(connection)
                fault = None
            except (MoorageError, TimeoutError):
                fault = "database unavailable"
            self._ready = (time.monotonic() + 0.5, fault)
        return fault

    async def _metrics(self, request: BaseRequest, request_id: str) -> web.StreamResponse:
        """For scrapers on this machine; for others with the credential of an administrator or monitor."""
        if not _on_loopback(request) or "Authorization" in request.headers:
            by = await self.authenticator.principal(request)
            if not by.sees_all:
                raise PermissionDenied("Metrics are for administrators and monitors.")
        await self.figures.refresh()
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": self.metrics.CONTENT_TYPE})

    async def _openapi(self, request: BaseRequest, request_id: str) -> web.StreamResponse:
        from manager.rest.openapi import document_bytes

        body, etag = document_bytes()
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=body, headers={"Content-Type": "application/json", "ETag": etag})

    async def _docs(self, request: BaseRequest, request_id: str) -> web.StreamResponse:
        from manager.rest.docs import CONTENT_SECURITY_POLICY, page_bytes

        return web.Response(
            body=page_bytes(),
            headers={"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": CONTENT_SECURITY_POLICY},
        )

    async def _root(self, request: BaseRequest, request_id: str) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/docs"})


def _json(value: Any, status: int = 200) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if status == 503:
        headers["Retry-After"] = "1"
    return web.Response(status=status, body=dumps(value), headers=headers)


def _on_loopback(request: BaseRequest) -> bool:
    return (request.remote or "").startswith(_LOOPBACK) and not any(name in request.headers for name in _FORWARDED)


def _origin_form(target: str) -> str:
    """`GET http://host/path`, as clients of proxies send it; everything else that is no path leads nowhere."""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    raise RouteNotFound


async def serve(world: World, config: ManagerConfig, metrics: Metrics, stack: AsyncExitStack) -> RestDoor:
    """Listen where the configuration says, until the stack unwinds."""
    from manager.bootstrap import join_token

    door = RestDoor(world, metrics, join_token=lambda secret: join_token(config, secret))
    door.mount(mounted(door, config))
    tls = None
    if config.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_cert_chain(config.tls_cert, config.tls_key)
    await door.listen(config.host, config.port, tls=tls)
    stack.push_async_callback(door.close)
    return door
