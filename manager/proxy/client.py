"""One connection of a user: requests are admitted, sent to a kernel, and their answers passed back as they come."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Final, Protocol
from uuid import UUID

from domain.crash import reach
from domain.errors import MoorageError, ServiceUnreachable, Unauthenticated
from manager.proxy.access import Access, Key
from manager.proxy.balance import Balancer, Upstream
from manager.proxy.body import Body
from manager.proxy.heads import MAX_HEAD_BYTES, BadHead, RequestHead, request_head, request_line, response_head
from manager.proxy.refusals import answer, passed, refusal
from repositories.service import PASS_HOURS, Backend, Route

log = logging.getLogger("moorage.proxy")
_PATH: Final = re.compile(rb"/proxy/([A-Za-z0-9_-]{16,64})/([a-z0-9~.-]{1,80})(/[^?#]*)?(\?.*)?")
#: What is read ahead of a request that cannot be passed on yet.
_MOST_BUFFERED: Final = 256 << 10
_HEAD_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 75.0
_SAFE: Final = (b"GET", b"HEAD", b"OPTIONS")


class Server(Protocol):
    """What all connections share."""

    access: Access
    balancer: Balancer
    secure: bool  #: users come over TLS
    isolated: bool  #: every session has a host name of its own
    clients: set[Client]


class Phase(Enum):
    HEAD = auto()  #: a request is awaited
    WAIT = auto()  #: it is being admitted, or a connection to its kernel made
    EXCHANGE = auto()  #: it is being answered
    TUNNEL = auto()  #: bytes pass both ways, whatever they are
    CLOSED = auto()


class Client(asyncio.Protocol):
    """Implements `manager.proxy.balance.Owner`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._phase = Phase.HEAD
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._upstream: Upstream | None = None
        self._tried: frozenset[UUID] = frozenset()
        self._full = False  #: the user takes nothing at the moment
        self._ended = False  #: the user sends no more
        self._upstream_ended = False
        self._upstream_full = False
        self.deadline: float | None = None
        #: the pass on which a request is being answered, or bytes pass, and what for
        self.held: tuple[str, Key] | None = None
        self._peer = b""

    # -- the user's side -----------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is one in all but its bases
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0] if peer else "").encode()
        self._server.clients.add(self)
        self.deadline = asyncio.get_running_loop().time() + _HEAD_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = Phase.CLOSED
        self._server.clients.discard(self)
        if self._task is not None:
            self._task.cancel()
        if self._upstream is not None:
            self._server.balancer.drop(self._upstream)
            self._upstream = None

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.TUNNEL and self._upstream is not None:
            self._upstream.transport.write(data)
            return
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        self._ended = True
        if self._phase is Phase.TUNNEL and self._upstream is not None:
            if self._upstream.transport.can_write_eof():
                self._upstream.transport.write_eof()
            return not self._upstream_ended
        # whoever ends in the middle of a request has gone; one that is being answered may be waited for
        return self._phase in (Phase.WAIT, Phase.EXCHANGE)

    def pause_writing(self) -> None:
        self._full = True
        if self._upstream is not None:
            self._upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._upstream is not None:
            self._upstream.transport.resume_reading()

    def _advance(self) -> None:
        if self._phase is Phase.HEAD:
            self._read_head()
        elif self._phase is Phase.EXCHANGE and not self._body.done:
            self._pass_body()
        elif len(self._buffer) > _MOST_BUFFERED:
            self._transport.pause_reading()

    # -- a request -----------------------------------------------------------------------------------------------------
    def _read_head(self) -> None:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # some send one after a body
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(buffer) > MAX_HEAD_BYTES:
                self._refuse(431, "request_too_large", "The head of the request is larger than 64 KiB.")
            return
        line, _, block = bytes(buffer[: end + 2]).partition(b"\r\n")
        del buffer[: end + 4]
        self.deadline = None
        try:
            self._method, self._target, self._http11 = request_line(line)
            self._head = request_head(block, self._http11)
        except BadHead as error:
            self._refuse(error.status, "invalid_request", str(error))
            return
        self._body = Body(self._head.framing)
        self._tried = frozenset()
        self._passed = False  #: bytes of its body have been sent on
        self._route_it()

    def _route_it(self) -> None:
        match = _PATH.fullmatch(self._target)
        if match is None:
            if self._target == b"/healthz" and self._method in (b"GET", b"HEAD"):
                self._answer(answer(200, b"ok"))
            else:
                self._refuse_with(Unauthenticated("There is nothing at this address without a ticket."))
            return
        who, name, rest, query = match.groups()
        session_id = _uuid(who)
        if session_id is None:
            self._start(self._exchange(who.decode(), name.decode(), ((rest or b"/")[1:] + (query or b"")).decode()))
            return
        if not self._at_home(session_id):
            return
        if rest is None and self._method in (b"GET", b"HEAD"):
            self._answer(
                answer(308, b"", f"Location: {self._target.decode().partition('?')[0]}/{(query or b'').decode()}")
            )
            return
        self._prefix = b"/proxy/" + who + b"/" + name + b"/"
        self._key = (session_id, name.decode())
        head = self._head
        foreign = head.origin is not None and head.origin.partition(b"://")[2] != head.host
        if head.tokens and (head.cross_site or (foreign and (head.upgrade or self._method not in _SAFE))):
            self._refuse(403, "permission_denied", "A page of another site may not ask this.")
            return
        known = self._server.access.known(head.tokens, self._key)
        if known is None:
            self._start(self._admit())
        else:
            token, route = known
            self.held = (token, self._key)
            self._send_to(route)

    def _at_home(self, session_id: UUID) -> bool:
        """Whether this is the session's own host name, where it has one."""
        if not self._server.isolated or self._head.host.split(b".", 1)[0].lower() == session_id.hex.encode():
            return True
        self._refuse(
            421, "misdirected", "The services of this session have a host name of their own; ask for an address."
        )
        return False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._phase = Phase.WAIT
        self._task = asyncio.create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except MoorageError as error:
            self._refuse_with(error)
        except Exception:
            log.exception("a request could not be passed on")
            self._refuse(502, "internal", "The proxy failed; try again.")

    async def _exchange(self, ticket: str, name: str, rest: str) -> None:
        if self._method != b"GET" or self._head.prefetch:
            raise Unauthenticated("A ticket is exchanged by GET, for one use, and is not fetched ahead.")
        session_id, token = await self._server.access.exchange(ticket, name)
        if not self._at_home(session_id):
            return
        prefix = f"/proxy/{session_id}/{name}/"
        as_json = self._head.wants_json and not self._head.wants_html
        seconds = PASS_HOURS * 3600
        self._answer(passed(prefix, rest, token, secure=self._server.secure, seconds=seconds, as_json=as_json))

    async def _admit(self) -> None:
        token, route = await self._server.access.admit(self._head.tokens, self._key)
        if token is None:
            raise Unauthenticated(
                "You have no pass for this service, or it has expired; open the address that 'moorage service url' prints."
            )
        if route is None:
            raise ServiceUnreachable(f"The service '{self._key[1]}' does not run at the moment; ask again shortly.")
        self.held = (token, self._key)
        self._send_to(route)

    # -- to a kernel -----------------------------------------------------------------------------------------------------
    def _send_to(self, route: Route) -> None:
        self._route = route
        if self._method in (b"CONNECT", b"TRACE"):
            self._refuse(405, "method_not_allowed", "This method is not passed on.")
            return
        if route.protocol == "tcp" and self._head.upgrade != b"tcp":
            self._refuse(426, "upgrade_required", "This service speaks no HTTP; reach it with 'moorage port-forward'.")
            return
        backend = self._server.balancer.chosen(route, self._tried)
        if backend is None:
            self._refuse_with(ServiceUnreachable())
            return
        plain = self._head.upgrade is None and self._http11
        upstream = self._server.balancer.take_idle(route, backend) if plain else None
        if upstream is not None:
            self._use(upstream)
        else:
            self._start(self._connect(route, backend))

    async def _connect(self, route: Route, backend: Backend) -> None:
        """Nothing has been sent yet, so another kernel may be asked when this one refuses."""
        while True:
            try:
                upstream = await self._server.balancer.connect(route, backend)
                break
            except ServiceUnreachable:
                self._tried |= {backend.kernel_id}
                if (other := self._server.balancer.chosen(route, self._tried)) is None:
                    raise
                backend = other
        reach("proxy.tunnel.opened")
        if self._phase is Phase.CLOSED:
            upstream.owner = self
            self._server.balancer.drop(upstream)
        else:
            self._use(upstream)

    def _use(self, upstream: Upstream) -> None:
        self._upstream, self._upstream_ended = upstream, False
        upstream.owner = self
        self._answered = False  #: something of its answer has been passed on
        self._response = bytearray()
        self._response_body: Body | None = None
        if self._full:
            upstream.transport.pause_reading()
        if self._head.upgrade == b"tcp":
            self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            self._begin_tunnel()
            return
        self._phase = Phase.EXCHANGE
        self._upstream_full = False
        upstream.transport.write(self._request())
        if not self._body.done:
            self._pass_body()
            if not self._upstream_full:
                self._transport.resume_reading()

    def _request(self) -> bytes:
        head, target = self._head, self._target
        if not self._route.keep_prefix:
            target = b"/" + target[len(self._prefix) :]
        version = b" HTTP/1.1\r\n" if self._http11 else b" HTTP/1.0\r\n"
        upgrade = b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n" if head.upgrade else b""
        scheme = b"https" if self._server.secure else b"http"
        return b"".join(
            (
                self._method, b" ", target, version, head.forward, upgrade,
                b"X-Forwarded-For: ", self._peer, b"\r\nX-Forwarded-Proto: ", scheme,
                b"\r\nX-Forwarded-Host: ", head.host, b"\r\nX-Forwarded-Prefix: ", self._prefix[:-1], b"\r\n\r\n",
            )
        )  # fmt: skip

    def _pass_body(self) -> None:
        if not self._buffer or self._upstream is None:
            return
        try:
            count = self._body.take(self._buffer)
        except BadHead as error:
            self._refuse(400, "invalid_request", str(error))
            return
        if count:
            self._passed = True
            self._upstream.transport.write(bytes(self._buffer[:count]))
            del self._buffer[:count]

    # -- its answer ------------------------------------------------------------------------------------------------------
    def upstream_data(self, data: bytes) -> None:
        if self._phase is Phase.TUNNEL:
            self._transport.write(data)
            return
        if self._response_body is not None:
            self._pass_response(data)
            return
        self._response += data
        while self._phase is Phase.EXCHANGE and self._response_body is None:
            end = self._response.find(b"\r\n\r\n")
            if end < 0:
                if len(self._response) > MAX_HEAD_BYTES:
                    self._broken("Its answer has too large a head.")
                return
            block = bytes(self._response[: end + 2])
            rest = bytes(self._response[end + 4 :])
            self._response = bytearray(rest)
            self._read_response(block, rest)

    def _read_response(self, block: bytes, rest: bytes) -> None:
        strip = not self._route.keep_prefix
        try:
            status, head = response_head(block, self._method, self._http11, self._prefix, strip=strip)
        except BadHead as error:
            self._broken(str(error))
            return
        if status == 101:
            if self._head.upgrade is None or head.upgrade is None:
                self._broken("It changed the protocol unasked.")
                return
            self._transport.write(
                head.forward + b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n" + rest
            )
            self._begin_tunnel()
            return
        if status < 200:  # a word ahead of the answer
            if self._http11:
                self._transport.write(head.forward + b"\r\n")
            return
        reach("proxy.answer.begun")
        self._answered = True
        self._closing = self._head.close or bool(head.framing and head.framing.until_close)
        self._reusable = self._http11 and not head.close
        end = b"Connection: close\r\n\r\n" if self._closing else b"\r\n"
        if head.framing is None:
            self._transport.write(head.forward + end)
            self._finished(extra=bool(rest))
            return
        self._response_body = body = Body(head.framing)
        try:
            count = body.take(rest) if rest else 0
        except BadHead as error:
            self._broken(str(error))
            return
        self._transport.write(head.forward + end + rest[:count])
        if body.done:
            self._finished(extra=len(rest) > count)

    def _pass_response(self, data: bytes) -> None:
        assert self._response_body is not None
        try:
            count = self._response_body.take(data)
        except BadHead as error:
            self._broken(str(error))
            return
        self._transport.write(data if count == len(data) else data[:count])
        if self._response_body.done:
            self._finished(extra=len(data) > count)

    def _finished(self, *, extra: bool) -> None:
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        # what answers before it has heard everything cannot be asked again, and neither can who speaks unasked
        early = not self._body.done
        if self._reusable and not extra and not early and not self._upstream_ended:
            self._server.balancer.give_back(upstream)
        else:
            self._server.balancer.drop(upstream)
        self._end_request(close=self._closing or early)

    def _end_request(self, *, close: bool) -> None:
        if close or self._ended:
            self._close()
            return
        self._phase = Phase.HEAD
        self.held = None
        self.deadline = asyncio.get_running_loop().time() + IDLE_SECONDS
        self._transport.resume_reading()
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._phase is Phase.HEAD:
            self._read_head()

    # -- both ways -------------------------------------------------------------------------------------------------------
    def _begin_tunnel(self) -> None:
        assert self._upstream is not None
        self._phase, self.deadline = Phase.TUNNEL, None
        if self._buffer:
            self._upstream.transport.write(bytes(self._buffer))
            self._buffer.clear()
        self._transport.resume_reading()
        if self._ended:
            self._upstream.transport.write_eof()

    def upstream_eof(self) -> None:
        self._upstream_ended = True
        if self._phase is Phase.TUNNEL:
            if self._ended or not self._transport.can_write_eof():
                self._close()
            else:
                self._transport.write_eof()
        elif self._reads_to_end():
            self._finished(extra=False)
        else:
            self.upstream_lost()

    def _reads_to_end(self) -> bool:
        return self._response_body is not None and self._response_body.until_close

    def upstream_lost(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is None or self._phase is Phase.CLOSED:
            return
        self._server.balancer.drop(upstream)
        if self._phase is Phase.TUNNEL or self._answered:
            if self._phase is Phase.TUNNEL or self._reads_to_end():
                self._close()
            else:
                self._transport.abort()  # nobody shall take what was sent for the whole
            return
        # Nothing came back. A connection that had been used may just have been closed as we asked; asking twice for
        # what changes nothing is harmless.
        if self._method in _SAFE and not self._passed and not self._response:
            if upstream.fresh:
                self._server.balancer.failed(upstream.backend)
                self._tried |= {upstream.backend.kernel_id}
            self._phase = Phase.HEAD
            self._send_to(self._route)
            return
        self._server.balancer.failed(upstream.backend)
        self._refuse_with(ServiceUnreachable(f"The service '{self._route.name}' broke the connection off."))

    def upstream_full(self) -> None:
        self._upstream_full = True
        self._transport.pause_reading()

    def upstream_free(self) -> None:
        self._upstream_full = False
        self._transport.resume_reading()

    def _broken(self, why: str) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._server.balancer.drop(upstream)
        if self._answered:
            self._transport.abort()
        else:
            self._refuse_with(ServiceUnreachable(f"The service '{self._route.name}' gave no proper answer. {why}"))

    # -- answers of our own ------------------------------------------------------------------------------------------------
    def _refuse_with(self, error: MoorageError) -> None:
        self._refuse(error.http_status, error.code, error.message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._phase is Phase.CLOSED:
            return
        if self._upstream is not None:
            self._server.balancer.drop(self._upstream)
            self._upstream = None
        head: RequestHead | None = getattr(self, "_head", None)
        html = head is not None and head.wants_html
        done = head is not None and status not in (400, 405, 431) and self._body.done
        self._transport.write(refusal(status, code, message, wants_html=html, close=not done))
        self._end_request(close=not done)

    def _answer(self, data: bytes) -> None:
        if self._phase is Phase.CLOSED:
            return
        self._transport.write(data)
        self._end_request(close=self._head.close or not self._body.done)

    def _close(self) -> None:
        if self._upstream is not None:
            self._server.balancer.drop(self._upstream)
            self._upstream = None
        self._phase = Phase.CLOSED
        self._transport.close()

    def leave(self) -> None:
        self._close()

    def cut(self) -> None:
        """Its holder may not stay: nobody shall take what was sent for the whole, and nothing more is sent."""
        self._close()
        self._transport.abort()

    def expire(self, now: float) -> None:
        """Called now and then: who neither asks nor is being answered is let go."""
        if self.deadline is not None and now > self.deadline:
            if self._buffer and self._phase is Phase.HEAD:
                self._refuse(408, "request_timeout", "The request did not come in time.")
            self._close()


@lru_cache(maxsize=4096)
def _uuid(text: bytes) -> UUID | None:
    try:
        found = UUID(text.decode())
    except ValueError:
        return None
    return found if str(found) == text.decode() else None
