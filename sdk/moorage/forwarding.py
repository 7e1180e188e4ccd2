"""Local ports that lead to ports of sessions, through the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from moorage._errors import MoorageError
from moorage._models import PortPass
from moorage._tls import tls_context
from moorage.config import Config

Renew = Callable[[int], PortPass]
_PIECE = 256 << 10


class Refused(MoorageError):
    """The proxy did not let a connection through."""


async def forward(
    bind: str,
    ports: Sequence[tuple[int, int, PortPass]],
    told: Callable[[int, int], object],
    *,
    config: Config,
    renew: Renew,
) -> None:
    """Listen on each local port, say which it is, and carry connections until cancelled."""
    async with contextlib.AsyncExitStack() as stack:
        for local, remote, port_pass in ports:
            one = _Forwarding(remote, port_pass, config, renew)
            server = await asyncio.start_server(one.serve, bind, local, limit=_PIECE)
            await stack.enter_async_context(server)
            told(server.sockets[0].getsockname()[1], remote)
        await asyncio.Event().wait()


class _Forwarding:
    def __init__(self, remote: int, port_pass: PortPass, config: Config, renew: Renew) -> None:
        self._remote = remote
        self._pass = port_pass
        self._config = config
        self._renew = renew

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._connect()
        except (MoorageError, OSError, asyncio.IncompleteReadError) as problem:
            print(f"port {self._remote}: {problem}", file=sys.stderr)
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer), return_exceptions=True)
        for one in (writer, back):
            one.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with contextlib.suppress(Refused):
            return await connect_port(self._pass, self._config)
        # it may have expired: these last for hours, and forwardings for days
        self._pass = await asyncio.to_thread(self._renew, self._remote)
        return await connect_port(self._pass, self._config)


async def connect_port(port_pass: PortPass, config: Config) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One connection to the port that a pass is for. The writer's `write_eof` ends one direction."""
    at = urlsplit(port_pass.url)
    tls = await asyncio.to_thread(tls_context, config) if at.scheme == "https" else None  # it may ask for a certificate
    reader, writer = await asyncio.open_connection(at.hostname, at.port or (443 if tls else 80), ssl=tls, limit=_PIECE)
    try:
        asked = (
            f"GET {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Authorization: Bearer {port_pass.token}\r\n\r\n"
        )
        writer.write(asked.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            body = await reader.read(4096)
            raise Refused(_why(body) or head.split(b"\r\n", 1)[0].decode("latin-1"))
    except BaseException:
        writer.close()
        raise
    return reader, writer


def _why(body: bytes) -> str | None:
    import json

    try:
        return str(json.loads(body)["detail"])
    except (ValueError, LookupError, TypeError):
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()
