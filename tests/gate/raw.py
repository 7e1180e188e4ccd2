"""HTTP by hand: whatever a client library would refuse to send."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    status: int  #: 0: the connection was closed without an answer
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            field, _, value = line.decode("latin-1").partition(":")
            if field.lower() == name.lower():
                return value.strip()
        return None


class Wire:
    """Connections to one listener, made anew for each request; what is sent is sent as it is."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host, self.port = parts.hostname, parts.port or 80
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE

    async def ask(self, method: str, target: str, headers: tuple[str, ...] = (), body: bytes = b"") -> Reply:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}:{self.port}", *headers]
        if not any(line.lower().startswith("connection:") for line in headers):
            lines.append("Connection: close")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        return await self.send(head + b"\r\n\r\n" + body)

    async def send(self, data: bytes, *, seconds: float = 20.0) -> Reply:
        """The answer to these bytes, read to its end or to that of its body."""
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self._tls)
            try:
                writer.write(data)
                await writer.drain()
                return await _reply(reader)
            except ConnectionError:
                return Reply(0, b"", b"")
            finally:
                writer.transport.abort()


async def _reply(reader: asyncio.StreamReader) -> Reply:
    head = b""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return Reply(0, b"", b"")
        status = int(head.split(b" ", 2)[1])
        if status >= 200 or status == 101:
            break
    reply = Reply(status, head, b"")
    length = reply.header("Content-Length")
    if status == 101 or status in (204, 304):
        return reply
    try:
        body = await (reader.readexactly(int(length)) if length is not None else reader.read())
    except asyncio.IncompleteReadError as short:  # of HEAD
        body = short.partial
    return Reply(status, head, body)
