"""Requests and notices over one WebSocket, the same at both ends. Knows nothing of what they mean."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import msgpack
from aiohttp import WSMsgType

from agent.wire import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES
from domain.crash import reach
from domain.errors import AgentUnavailable, Internal, InvalidRequest, MoorageError, TooManyRequests, from_code

log = logging.getLogger("moorage.rpc")
Handler = Callable[[dict[str, Any]], Awaitable[Any]]
Notice = Callable[[dict[str, Any]], None]

_REQUEST, _ANSWER, _ERROR, _NOTICE, _CANCEL = range(5)
#: kind, id, more follow: msgpack takes at most 16 bytes for them
_PIECE_BYTES: Final = MAX_FRAME_BYTES - 64
_MOST_HANDLED: Final = 1024
_MOST_PARTIAL: Final = 256
#: Of all unfinished messages of one connection together: who leaves many behind is cut off, and harms nobody else.
_MOST_PARTIAL_BYTES: Final = 4 * MAX_MESSAGE_BYTES
#: Requests that wait to be refused, beyond those that are handled: who goes on asking is cut off.
_MOST_UNHANDLED: Final = 16 * _MOST_HANDLED


class WebSocket(Protocol):
    """What is used of aiohttp's two kinds of WebSockets."""

    async def send_bytes(self, data: bytes) -> None: ...
    async def receive(self) -> Any: ...
    async def close(self) -> Any: ...


class Peer:
    """One end of a connection. `await run()` serves it until it closes.

    Long messages are cut into frames of at most 64 KiB, between which others get their turn. A handler's error goes to
    the one who asked and harms nobody else. When the connection closes, everything still waiting fails with AgentUnavailable.
    """

    def __init__(self, socket: WebSocket, name: str) -> None:
        self._socket = socket
        self.name = name
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._handlers: dict[str, Handler] = {}
        self._notices: dict[str, Notice] = {}
        self._handled: dict[int, asyncio.Task[None]] = {}
        self._partial: dict[tuple[int, int], bytearray] = {}
        self._partial_bytes = 0
        self._sending: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()

    def handle(self, name: str, handler: Handler) -> None:
        """`handler(arguments) -> answer`, run as a task of its own for each request."""
        self._handlers[name] = handler

    def on_notice(self, name: str, notice: Notice) -> None:
        """Called in the order of arrival; must not block."""
        self._notices[name] = notice

    async def request(self, name: str, arguments: dict[str, Any], *, timeout_seconds: float) -> Any:
        """The other side's answer. Raises its domain error, or AgentUnavailable: then it is unknown what happened."""
        if self.closed.is_set():
            raise AgentUnavailable
        number = next(self._ids)
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._send(_REQUEST, number, [name, arguments])
                return await waiting
        except TimeoutError:
            self._cancel(number)
            raise AgentUnavailable("The session's host did not answer in time; ask again.") from None
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        finally:
            self._waiting.pop(number, None)

    async def notify(self, name: str, arguments: dict[str, Any]) -> None:
        await self._send(_NOTICE, next(self._ids), [name, arguments])

    async def run(self) -> None:
        """Read until the connection is closed by either side or breaks the rules."""
        try:
            while True:
                message = await self._socket.receive()
                if message.type != WSMsgType.BINARY:
                    return
                self._take(message.data)
        except (ValueError, TypeError, LookupError, AttributeError, msgpack.UnpackException) as error:
            log.warning("%s breaks the protocol: %s", self.name, error)
        finally:
            await self.close()

    async def close(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(
                    AgentUnavailable("The connection to the session's host was lost; ask again shortly.")
                )
        for task in (*self._handled.values(), *self._sending):
            task.cancel()
        self._partial.clear()
        await self._socket.close()

    async def retire(self, seconds: float) -> None:
        """Close once nothing that was asked over it waits for its answer any more, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while left := [*self._waiting.values(), *self._handled.values()]:
                    await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        await self.close()

    # -- sending -----------------------------------------------------------------------------------------------------
    async def _send(self, kind: int, number: int, content: Any) -> None:
        # half a character, from a container's JSON, must not keep anything from being told
        body = msgpack.packb(content, default=_plain, unicode_errors="replace")
        if len(body) > MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"The message of {len(body)} bytes is too large; use the file routes.")
        at = 0
        try:
            while at < len(body):
                piece = body if len(body) <= _PIECE_BYTES else body[at : at + _PIECE_BYTES]
                more = at + _PIECE_BYTES < len(body)
                await self._socket.send_bytes(msgpack.packb([kind, number, more, piece]))
                at += _PIECE_BYTES
        except (ConnectionError, RuntimeError):
            raise AgentUnavailable("The connection to the session's host was lost; ask again shortly.") from None
        except asyncio.CancelledError:
            if len(body) > _PIECE_BYTES and at < len(
                body
            ):  # the other side keeps the first pieces until it hears of it
                self._later(self._socket.send_bytes(msgpack.packb([kind, number, False, None])))
            raise

    def _cancel(self, number: int) -> None:
        """Tell the other side that nobody waits any more; what it has begun is its own affair."""
        self._later(self._send(_CANCEL, number, None))

    def _later(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send without anybody waiting for it; when the connection is gone there is nobody to tell."""
        if self.closed.is_set():
            sending.close()
            return
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()

    # -- receiving -----------------------------------------------------------------------------------------------------
    def _take(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise ValueError("a frame is too long")
        kind, number, more, piece = msgpack.unpackb(frame)
        if not isinstance(kind, int) or not isinstance(number, int) or not isinstance(piece, bytes | None):
            raise ValueError("a frame is malformed")
        key = (kind, number)
        if piece is None:
            self._partial_bytes -= len(self._partial.pop(key, b""))
            return
        if more or key in self._partial:
            if (whole := self._joined(key, piece, more)) is None:
                return
            piece = whole
        content = msgpack.unpackb(piece, strict_map_key=False)
        match kind:
            case 0:
                self._serve(number, *content)
            case 1 | 2:
                self._answered(kind, number, content)
            case 3:
                self._noticed(*content)
            case 4:
                if task := self._handled.get(number):
                    task.cancel()
            case _:
                raise ValueError("a frame is of no known kind")

    def _noticed(self, name: str, arguments: dict[str, Any]) -> None:
        if not isinstance(arguments, dict):
            raise ValueError("a notice is malformed")
        if (notice := self._notices.get(name)) is None:
            return
        try:
            notice(arguments)
        except Exception:
            log.exception("%s of %s failed", name, self.name)

    def _joined(self, key: tuple[int, int], piece: bytes, more: bool) -> bytes | None:
        if key not in self._partial and len(self._partial) >= _MOST_PARTIAL:
            raise ValueError("too many messages are left unfinished")
        partial = self._partial.setdefault(key, bytearray())
        partial += piece
        self._partial_bytes += len(piece)
        if len(partial) > MAX_MESSAGE_BYTES:
            raise ValueError("a message is too long")
        if self._partial_bytes > _MOST_PARTIAL_BYTES:
            raise ValueError("too much is left unfinished")
        if more:
            return None
        self._partial_bytes -= len(partial)
        return bytes(self._partial.pop(key))

    def _answered(self, kind: int, number: int, content: Any) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():
            return
        if kind == _ANSWER:
            waiting.set_result(content)
        else:
            code, message, facts = content
            waiting.set_exception(from_code(str(code), str(message), **{str(k): v for k, v in facts.items()}))

    def _serve(self, number: int, name: str, arguments: dict[str, Any]) -> None:
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("a request is malformed")
        if number in self._handled or len(self._handled) > _MOST_UNHANDLED:
            raise ValueError("a number is used twice, or too many requests are asked at once")
        task = asyncio.create_task(self._answer(number, name, arguments), name=f"rpc {name[:40]}")
        self._handled[number] = task
        task.add_done_callback(lambda _: self._handled.pop(number, None))

    async def _answer(self, number: int, name: str, arguments: dict[str, Any]) -> None:
        try:
            if len(self._handled) > _MOST_HANDLED:
                raise TooManyRequests
            if (handler := self._handlers.get(name)) is None:
                raise InvalidRequest(f"The other side does not know '{name}'; it may be of another version.")
            answer = await handler(arguments)
            reach("answer", name)
            await self._send(_ANSWER, number, answer)
        except asyncio.CancelledError:
            raise
        except AgentUnavailable as error:
            if not self.closed.is_set():
                await self._refuse(number, error)
        except MoorageError as error:
            await self._refuse(number, error)
        except Exception as error:
            log.exception("%s of %s failed", name, self.name)
            await self._refuse(number, Internal(f"{name} failed: {type(error).__name__}"))

    async def _refuse(self, number: int, error: MoorageError) -> None:
        try:
            await self._send(_ERROR, number, [error.code, error.message, _facts(error)])
        except MoorageError:
            log.debug("%s went away before it was answered", self.name)


def _facts(error: MoorageError) -> dict[str, Any]:
    """What travels of an error's facts: plain values as they are, others as text."""
    return {k: v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in error.facts.items()}


def _plain(value: object) -> object:
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")
