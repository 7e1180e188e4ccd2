"""WebSockets to the server: their addresses, and errors in words of ours. No input or output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlencode

from moorage import _wire
from moorage._errors import Unreachable
from moorage.config import Config

MAX_MESSAGE_BYTES = 4 << 20


class SocketClosed(Exception):
    """A WebSocket has ended. `code` is None when nobody said goodbye."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def socket_url(config: Config, path: str, params: Sequence[tuple[str, str]]) -> str:
    query = f"?{urlencode(list(params))}" if params else ""
    return f"ws{config.endpoint.removeprefix('http')}{path}{query}"


@contextmanager
def handshake(config: Config) -> Iterator[None]:
    """What goes wrong while a connection is opened is told as everywhere."""
    from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus

    try:
        yield
    except InvalidStatus as refused:
        answer = refused.response
        raise _wire.error_from(
            answer.status_code, bytes(answer.body or b""), dict(answer.headers.raw_items())
        ) from None
    except (OSError, TimeoutError, EOFError, InvalidMessage, InvalidHandshake) as problem:
        raise Unreachable(
            f"Nothing answers at {config.endpoint} ({problem or type(problem).__name__}); is the server up "
            "('moorage status'), is the address right?"
        ) from None


@contextmanager
def closing() -> Iterator[None]:
    """Ends of connections, as SocketClosed."""
    from websockets.exceptions import ConnectionClosed

    try:
        yield
    except ConnectionClosed as closed:
        said = closed.rcvd
        raise (SocketClosed(said.code, said.reason) if said is not None else SocketClosed()) from None
    except (OSError, EOFError):
        raise SocketClosed from None
