"""The few things that waiting does differently here than on the async side (its twin is moorage/aio/_io.py)."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from moorage import _socket
from moorage._tls import tls_context
from moorage._version import USER_AGENT
from moorage.config import Config

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")

Condition = threading.Condition
sleep = time.sleep


def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Here, blocking is what everybody expects."""
    return function(*args, **kwargs)


class Items(ABC):
    """A store as a dictionary; `get`, `set`, `delete` and `sizes` are the store's own."""

    @abstractmethod
    def get(self, key: str, default: Any = None) -> Any: ...
    @abstractmethod
    def set(self, key: str, value: Any) -> None: ...
    @abstractmethod
    def delete(self, key: str) -> bool: ...
    @abstractmethod
    def sizes(self) -> dict[str, int]: ...

    def __getitem__(self, key: str) -> Any:
        missing = object()
        if (value := self.get(key, missing)) is missing:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return key in self.sizes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes())

    def __len__(self) -> int:
        return len(self.sizes())


def result_of(value: object) -> object:
    """What a callback gave."""
    return value


def side_by_side(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """The answers for all items, asked for at the same time."""
    listed = list(items)
    with ThreadPoolExecutor(max(len(listed), 1)) as threads:
        return list(threads.map(function, listed))


def begin(function: Callable[[A], None], argument: A) -> threading.Thread:
    """Let it run beside us; it has to tell failures itself."""
    thread = threading.Thread(target=function, args=(argument,), daemon=True)
    thread.start()
    return thread


def ended(begun: threading.Thread) -> None:
    """Wait for its end."""
    begun.join()


class Socket:
    """A WebSocket. `recv` and `send` raise `SocketClosed` when it has ended."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def recv(self) -> str | bytes:
        with _socket.closing():
            return self._inner.recv()  # type: ignore[no-any-return]

    def send(self, message: str | bytes) -> None:
        with _socket.closing():
            self._inner.send(message)

    def close(self) -> None:
        self._inner.close()


def open_socket(config: Config, path: str, params: Sequence[tuple[str, str]] = ()) -> Socket:
    """A WebSocket to the server."""
    from websockets.sync.client import connect

    secure = tls_context(config) if config.endpoint.startswith("https:") else None
    with _socket.handshake(config):
        # to be used in `with`, says the library; our own closing does the same
        inner = connect(
            _socket.socket_url(config, path, params),
            additional_headers={"Authorization": config.authorization},
            user_agent_header=USER_AGENT,
            ssl=secure,
            compression=None,
            max_size=_socket.MAX_MESSAGE_BYTES,
            proxy=None if config.is_local else True,
        ).__enter__()
    return Socket(inner)


def opening(function: Callable[P, T]) -> Callable[P, T]:
    """A session is a context manager itself."""
    return function
