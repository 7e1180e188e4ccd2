"""The few things that waiting does differently here than on the blocking side (its twin is moorage/sync/_io.py)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from moorage import _socket
from moorage._tls import tls_context
from moorage._version import USER_AGENT
from moorage.config import Config

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")
M = TypeVar("M", bound=AbstractAsyncContextManager[Any])

Condition = asyncio.Condition
sleep = asyncio.sleep


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what blocks (a local file) without holding up others."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def result_of(value: object) -> object:
    """What a callback gave; it may be a plain or an async function."""
    return await value if inspect.isawaitable(value) else value


async def side_by_side(function: Callable[[A], Awaitable[T]], items: Iterable[A]) -> list[T]:
    """The answers for all items, asked for at the same time."""
    return await asyncio.gather(*(function(item) for item in items))


def begin(function: Callable[[A], Coroutine[Any, Any, None]], argument: A) -> asyncio.Task[None]:
    """Let it run beside us; it has to tell failures itself."""
    return asyncio.create_task(function(argument))


async def ended(begun: asyncio.Task[None]) -> None:
    """Wait for its end."""
    await asyncio.wait([begun])


class Items:
    """What the blocking side offers in brackets has to be waited for here: `await state.get(key)`, `set`, `delete`."""


class Socket:
    """A WebSocket. `recv` and `send` raise `SocketClosed` when it has ended."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def recv(self) -> str | bytes:
        with _socket.closing():
            return await self._inner.recv()  # type: ignore[no-any-return]

    async def send(self, message: str | bytes) -> None:
        with _socket.closing():
            await self._inner.send(message)

    async def close(self) -> None:
        await self._inner.close()


async def open_socket(config: Config, path: str, params: Sequence[tuple[str, str]] = ()) -> Socket:
    """A WebSocket to the server."""
    from websockets.asyncio.client import connect

    secure = await in_thread(tls_context, config) if config.endpoint.startswith("https:") else None
    with _socket.handshake(config):
        inner = await connect(
            _socket.socket_url(config, path, params),
            additional_headers={"Authorization": config.authorization},
            user_agent_header=USER_AGENT,
            ssl=secure,
            compression=None,
            max_size=_socket.MAX_MESSAGE_BYTES,
            proxy=None if config.is_local else True,
        )
    return Socket(inner)


class Opening(Generic[M]):
    """Both `thing = await open()` and `async with open() as thing:`."""

    def __init__(self, call: Callable[[], Awaitable[M]]) -> None:
        self._call = call
        self._opened: M | None = None

    def __await__(self) -> Generator[Any, None, M]:
        return self._call().__await__()

    async def __aenter__(self) -> M:
        self._opened = await self._call()
        await self._opened.__aenter__()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._opened is not None  # __aenter__ came before
        return await self._opened.__aexit__(kind, error, trace)


def opening(function: Callable[P, Coroutine[Any, Any, M]]) -> Callable[P, Opening[M]]:
    """Make the coroutine function's answer usable in `async with` as well."""

    def opened(*args: P.args, **kwargs: P.kwargs) -> Opening[M]:
        return Opening(lambda: function(*args, **kwargs))

    opened.__doc__, opened.__name__ = function.__doc__, function.__name__
    return opened
