"""The listener: knows who calls before it reads a message, and answers every failure with a status that clients know."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from domain.errors import MoorageError, QuotaExceeded, ResourceUnavailable
from domain.ids import SessionId
from domain.principal import Principal
from manager.compat.grpc.budget import Budget, OverBudget
from manager.compat.grpc.callers import Callers
from manager.compat.grpc.health import health_handler
from manager.compat.grpc.links import FRAME_BYTES, Links
from manager.compat.grpc.methods import CLOSE, CREATE, METHODS, Method
from manager.compat.grpc.relay import TOO_MUCH, Held, Message, Refused, relay
from manager.compat.grpc.sessions import Sessions, meant, shown
from manager.compat.grpc.watch import Watch
from manager.compat.grpc.wire import Malformed, flag, text, text_field

if TYPE_CHECKING:
    from manager.config import ManagerConfig
    from manager.world import World

log = logging.getLogger("moorage.grpc")
Code = grpc.StatusCode
#: What ends a call that goes on; anything else may pass by itself.
_LEAVES: Final = frozenset({401, 403, 404, 410})
_LARGE_BYTES: Final = 8 * 2**20
_CODES: Final = {
    400: Code.INVALID_ARGUMENT, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 404: Code.NOT_FOUND,
    409: Code.FAILED_PRECONDITION, 410: Code.NOT_FOUND, 413: Code.RESOURCE_EXHAUSTED, 422: Code.FAILED_PRECONDITION,
    412: Code.FAILED_PRECONDITION, 429: Code.RESOURCE_EXHAUSTED, 502: Code.UNAVAILABLE, 503: Code.UNAVAILABLE,
    507: Code.RESOURCE_EXHAUSTED,
}  # fmt: skip
_FULL: Final = (QuotaExceeded, ResourceUnavailable)


class GrpcDoor:
    """`listen` and `close`. Further listeners are for one user each, and on loopback only."""

    def __init__(self, world: World, config: ManagerConfig) -> None:
        largest = config.grpc_message_mib * 2**20
        self._world = world
        self._callers = Callers(world)
        self._budget = Budget(each=config.grpc_user_mib * 2**20, largest=largest)
        self._links = Links(world.agents.tunnel_socket, largest=largest)
        self.sessions = Sessions(world, template=config.grpc_template)
        self._options = [
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_send_message_length", largest),
            ("grpc.http2.max_frame_size", FRAME_BYTES),
            ("grpc.max_concurrent_streams", 100),
            ("grpc.so_reuseport", 0),
            # a client that has vanished is noticed, and its call cancelled
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
        self._watch = Watch()
        for topic in ("identity", "sessions"):
            world.herald.subscribe(topic, self._watch.wake)
        self._servers: list[grpc.aio.Server] = []
        self._tidying: asyncio.TimerHandle | None = None
        self._closing = asyncio.Event()
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def listen(self, address: str, *, key: bytes = b"", certificate: bytes = b"", user: str | None = None) -> int:
        """Take calls at HOST:PORT, with TLS when there is a certificate; `user`: whose, when they show no credential."""
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((_Handlers(partial(self._call, user), self._closing),))
        if certificate:
            port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
        else:
            port = server.add_insecure_port(address)
        await server.start()
        self._servers.append(server)
        return int(port)

    async def close(self, grace_seconds: float = 5.0) -> None:
        self._closing.set()
        self._watch.close()
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))
        await self._links.close()

    # -- one call --------------------------------------------------------------------------------------------------------
    async def _call(self, user: str | None, method: Method, _: object, context: Any) -> None:
        request_id = f"{self._prefix}-g{next(self._numbers):x}"
        try:
            by = await self._callers.principal(context, user)
            with self._budget.share(by.access_key) as share:
                held = Held(share)
                try:
                    await self._answer(by, user, method, context, held, request_id)
                finally:
                    held.release()
                    self._tidy_after(held)
            return
        except Refused as refused:
            refusal = refused
        except MoorageError as error:
            code = Code.RESOURCE_EXHAUSTED if isinstance(error, _FULL) else _CODES.get(error.http_status, Code.INTERNAL)
            refusal = Refused(code, error.message)
        except OverBudget:
            refusal = Refused(Code.RESOURCE_EXHAUSTED, TOO_MUCH)
        except TimeoutError:
            refusal = Refused(Code.UNAVAILABLE, "It took too long, and it is not known whether it happened; ask again.")
        except Malformed:
            refusal = Refused(Code.INVALID_ARGUMENT, "The request is not a message that names its session.")
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:
            log.exception("call %s of %s failed", request_id, method.name)
            refusal = Refused(Code.INTERNAL, f"Something failed here; tell your administrator: {request_id}.")
        await context.abort(refusal.code, refusal.details, tuple(refusal.trailing))

    def _tidy_after(self, held: Held) -> None:
        """What large messages took is the system's again when no more of them come for a moment."""
        if held.most >= _LARGE_BYTES:
            if self._tidying is not None:
                self._tidying.cancel()
            loop = asyncio.get_running_loop()
            self._tidying = loop.call_later(1.0, lambda: loop.run_in_executor(None, _trim))

    async def _answer(
        self, by: Principal, user: str | None, method: Method, context: Any, held: Held, request_id: str
    ) -> None:
        await held.reserve(self._budget.largest)  # how large it is shows when it is there
        if (data := await context.read()) is grpc.aio.EOF:
            raise Malformed
        message = Message(data)
        del data
        held.keep(len(message.data))
        if method is CREATE:
            made = await self.sessions.create(by, request_id, context.time_remaining())
            await context.write(text(1, shown(made)))
            return
        if method is CLOSE:
            await context.write(flag(1, await self._closed(by, message.data, request_id)))
            return
        session_id, message = await self._session_of(by, method, message, context, request_id)
        place = await self.sessions.place(by, session_id, request_id)

        async def may_stay() -> None:
            try:
                await self._callers.still(context, user, by)
                await self.sessions.place(by, session_id, request_id)
            except MoorageError as error:
                if error.http_status in _LEAVES:
                    raise

        async with self._watch.over(may_stay), self._links.to(place.where, place.port, held.share) as link:
            try:
                await relay(context, method, message, held, link)
            except Refused as refused:
                if refused.code is Code.UNAVAILABLE:
                    self._links.forget(link)
                    self.sessions.forget(session_id)
                raise

    async def _session_of(
        self, by: Principal, method: Method, message: Message, context: Any, request_id: str
    ) -> tuple[SessionId, Message]:
        named = None if method.session_field is None else text_field(message.data, method.session_field)
        if method.session_field is None or (method.needs_none and not named):
            newest = await self.sessions.newest(by, request_id)
            if newest is None:
                raise Refused(
                    Code.FAILED_PRECONDITION, f"{method.name} is answered by a session: call CreateSession first."
                )
            return newest, message
        if not named and method.makes_session:
            made = await self.sessions.create(by, request_id, context.time_remaining())
            return made, Message(message.take() + text(method.session_field, shown(made)))
        return meant(named), message

    async def _closed(self, by: Principal, message: bytes, request_id: str) -> bool:
        try:
            session_id = meant(text_field(message, 1))
        except MoorageError:
            return False
        self.sessions.forget(session_id)
        return await self.sessions.close(by, session_id, request_id)


def _trim() -> None:
    """The C library keeps what many small pieces were freed of, until it is told."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Every call is taken as a stream, so that it is known who calls before a message is read."""

    def __init__(self, call: Callable[[Method, object, Any], Awaitable[None]], closing: asyncio.Event) -> None:
        self._call = call
        self._closing = closing

    def service(self, details: Any) -> Any:
        method = METHODS.get(details.method)
        if method is None:
            return health_handler(details.method, self._closing)
        return grpc.stream_stream_rpc_method_handler(partial(self._call, method))


__all__ = ["GrpcDoor"]
