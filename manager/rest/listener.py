"""The HTTP server beneath the door: limits on connections, time and headers, and an orderly end.

aiohttp waits over a minute for the rest of a request's headers, and answers malformed requests in plain text.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web, web_protocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_request import BaseRequest

from domain.errors import Internal, InvalidRequest, MoorageError, TooManyRequests
from manager.rest.problems import problem

log = logging.getLogger("moorage.rest")

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]
HEADER_SECONDS: Final = 15.0
KEEPALIVE_SECONDS: Final = 75.0
MAX_LINE_BYTES: Final = 8190
MAX_HEADERS: Final = 100
MAX_CONNECTIONS: Final = 4096
BACKLOG: Final = 1024


class Connection(web_protocol.RequestHandler):
    """One client's connection."""

    def __init__(self, manager: Listener, **options: Any) -> None:
        super().__init__(manager, **options)
        self._listener = manager
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._listener.connections) > self._listener.max_connections:
            log.warning("more than %d connections: one is turned away", self._listener.max_connections)
            assert isinstance(transport, asyncio.Transport)
            transport.write(_FULL)
            self.force_close()
            return
        # A new connection has as long for its first request as any other has from its first byte.
        self._header_timer = self._loop.call_later(self._listener.header_seconds, self._too_slow)

    def data_received(self, data: bytes) -> None:
        count = self._request_count
        super().data_received(data)
        if self._request_count > count:
            self._stop_timer()
        elif self._header_timer is None and data and self.is_idle and not self._upgraded:
            self._header_timer = self._loop.call_later(self._listener.header_seconds, self._too_slow)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """For what never reached the door: a malformed request, or a failure of the door itself."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        request_id = self._listener.new_request_id()
        error: MoorageError
        if status == 400 or isinstance(exc, HttpProcessingError):
            first = (message or str(exc) or "").strip().splitlines()
            error = InvalidRequest(f"This is not a valid HTTP request: {(first[0] if first else 'malformed')[:200]}")
        else:
            log.error("request %s failed", request_id, exc_info=exc)
            error = Internal()
        answer = problem(error, request_id, close=True)
        answer.headers.update({"X-Request-Id": request_id, "Server": "moorage", "Connection": "close"})
        return answer

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.is_idle:
            self.force_close()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def _full() -> bytes:
    answer = problem(TooManyRequests("This manager has as many connections as it takes; come back shortly."), "")
    body = answer.body
    assert isinstance(body, bytes)
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


_FULL: Final = _full()


class Listener(web.Server):
    """Sockets that listen, and the connections that came of them."""

    def __init__(
        self,
        handler: Handler,
        new_request_id: Callable[[], str],
        *,
        header_seconds: float = HEADER_SECONDS,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        super().__init__(handler)
        self.new_request_id = new_request_id
        self.header_seconds = header_seconds
        self.max_connections = max_connections
        self._keepalive_seconds = keepalive_seconds
        self._servers: list[asyncio.Server] = []

    def __call__(self) -> Connection:
        return Connection(
            self,
            loop=self._loop,
            keepalive_timeout=self._keepalive_seconds,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=2.0,
            read_bufsize=2**18,
            # A small body must not become a large one: `Content-Encoding` is refused by the door.
            auto_decompress=False,
            access_log=None,
            logger=log,
        )

    async def listen(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        sock: socket.socket | None = None,
    ) -> int:
        """Take connections; the port, which may have been 0."""
        handshake = 10.0 if tls else None
        if sock is not None:
            server = await self._loop.create_server(
                self, sock=sock, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake
            )
        else:
            server = await self._loop.create_server(
                self, host, port or 0, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake
            )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """Take no more connections; those that wait for a next request are closed."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection in self.connections:
            if isinstance(connection, Connection) and connection.is_idle:
                connection.close()

    async def close(self) -> None:
        """End every connection, whatever it is doing."""
        self.stop_listening()
        await self.shutdown(0.5)
        await asyncio.sleep(0)  # transports that have nothing more to send are closed with the next turn
