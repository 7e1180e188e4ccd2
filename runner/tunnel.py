"""A connection to a port of the container, made in it and handed to the agent: no byte of it passes the runner."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Any

from runner.files import Refused
from runner.frames import pack
from runner.loop import WRITE, Loop, Timer

CONNECT_SECONDS = 5.0
#: Programs that listen on "localhost" choose either.
_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Dial:
    """One attempt for one request; `peer` is the agent's connection, which is answered and closed."""

    def __init__(self, loop: Loop, peer: socket.socket, request: int, port: Any, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._peer = peer
        self._request = request
        self._port = port
        self._on_end = on_end
        self._left = list(_ADDRESSES)
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        port = self._port
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            self._refuse(Refused("invalid_request", "A port is a number from 1 to 65535."))
            return
        self._timer = self._loop.later(CONNECT_SECONDS, self._too_late)
        self._next()

    def _next(self) -> None:
        while self._left:
            family, host = self._left.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError:
                continue
            failure = sock.connect_ex((host, self._port))
            if failure == 0:
                self._hand_over(sock)
                return
            if failure == errno.EINPROGRESS:
                self._socket = sock
                self._loop.watch(sock.fileno(), WRITE, self._on_ready)
                return
            sock.close()
        self._refuse(Refused("nothing_listens", f"Nothing listens on port {self._port} in the session."))

    def _on_ready(self, events: int) -> None:
        sock = self._take_back()
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            sock.close()
            self._next()
        else:
            self._hand_over(sock)

    def _take_back(self) -> socket.socket:
        assert self._socket is not None
        sock, self._socket = self._socket, None
        self._loop.forget(sock.fileno())
        return sock

    def _too_late(self) -> None:
        if self._socket is not None:
            self._take_back().close()
            self._refuse(
                Refused("nothing_listens", f"Port {self._port} in the session takes no connection at the moment.")
            )

    def _hand_over(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = pack({"id": self._request, "ok": True, "result": {"port": self._port}})
            socket.send_fds(self._peer, [answer], [sock.fileno()])
        self._end()

    def _refuse(self, refused: Refused) -> None:
        answer = {"id": self._request, "ok": False, "code": refused.code, "message": refused.message}
        with contextlib.suppress(OSError):
            self._peer.send(pack(answer))
        self._end()

    def _end(self) -> None:
        self._loop.cancel(self._timer)
        self._peer.close()
        self._on_end()


def listening(port: int) -> bool:
    """Whether some process of this network listens on the port, without connecting to it."""
    wanted = f"{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as rows:
            for row in rows:
                fields = row.split()
                if len(fields) > 3 and fields[3] == "0A" and fields[1].rpartition(":")[2] == wanted:
                    return True
    return False
