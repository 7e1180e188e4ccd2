"""The smallest HTTP client that does the job, so that the client's own time hides nothing: one keep-alive connection."""

from __future__ import annotations

import json
import socket
from typing import Any

from bench.installation import Installation


class Client:
    """Blocking. The answer's body comes by Content-Length."""

    def __init__(self, host: str, port: int, bearer: str | None = None) -> None:
        self._sock = socket.create_connection((host, port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._sock.makefile("rb", buffering=1 << 16)
        self._head = f"Host: {host}\r\n" + (f"Authorization: Bearer {bearer}\r\n" if bearer else "")

    @classmethod
    def of(cls, installation: Installation) -> Client:
        return cls(installation.host, installation.port, installation.bearer)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.send(self.request(method, path, body))
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500]!r}")
        return json.loads(answer) if answer else None

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """A whole request, to be sent many times."""
        data = json.dumps(body).encode() if body is not None else b""
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        length = f"Content-Length: {len(data)}\r\n" if body is not None or method != "GET" else ""
        return f"{method} {path} HTTP/1.1\r\n{self._head}{kind}{length}\r\n".encode() + data

    def send(self, request: bytes) -> tuple[int, bytes]:
        self._sock.sendall(request)
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, self._file.read(length)

    def close(self) -> None:
        self._sock.close()
