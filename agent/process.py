"""A process of a container, as who started it sees it: pieces over one connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any, Final

from agent.client import Output, ProcessEnd
from agent.streams import broken
from domain.errors import RunnerLost
from runner.pieces import (
    EXIT,
    HANG_UP,
    MAX_PIECE_BYTES,
    PIECE,
    RESIZE,
    SIGNAL,
    SIZE,
    STDERR,
    STDIN,
    STDIN_END,
    STDOUT,
    TAKEN,
    pack_piece,
)

_BUFFER_BYTES: Final = 256 << 10


class StreamedProcess:
    """Implements `agent.client.Process`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: dict[str, Any]) -> None:
        self._reader = reader
        self._writer = writer
        self.id = str(said.get("process", ""))[:64]
        self.position = _number(said.get("position"))
        self.resumed = bool(said.get("resumed"))
        self.lost = _number(said.get("lost"))

    @classmethod
    async def over(cls, sock: socket.socket, said: dict[str, Any]) -> StreamedProcess:
        """`said`: the runner's answer, which came before the pieces."""
        try:
            if sock.family == socket.AF_UNIX:
                reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_BUFFER_BYTES)
            else:
                reader, writer = await asyncio.open_connection(sock=sock, limit=_BUFFER_BYTES)
        except OSError:
            sock.close()
            raise broken() from None
        return cls(reader, writer, said)

    async def read(self) -> Output | ProcessEnd:
        """What comes next. After a `ProcessEnd` nothing does. Cancelling it loses nothing of what was returned before."""
        try:
            kind, length = PIECE.unpack(await self._reader.readexactly(PIECE.size))
            if length > MAX_PIECE_BYTES:
                raise RunnerLost("The session's runner does not keep to the protocol.")
            payload = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return ProcessEnd(reason="lost")
        if kind in (STDOUT, STDERR):
            self.position += length
            return Output(data=payload, error=kind == STDERR)
        if kind == TAKEN:
            return ProcessEnd(reason="taken")
        if kind != EXIT:
            raise RunnerLost("The session's runner does not keep to the protocol.")
        try:
            how = json.loads(payload)
            code, name = how["exit_code"], how["signal"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RunnerLost("The session's runner does not keep to the protocol.") from None
        return ProcessEnd(
            reason="exited",
            exit_code=code & 0xFF if isinstance(code, int) else None,
            signal=name[:16] if isinstance(name, str) and name.isalnum() else None,
        )

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), MAX_PIECE_BYTES):
            await self._send(STDIN, data[at : at + MAX_PIECE_BYTES])

    async def write_eof(self) -> None:
        await self._send(STDIN_END)

    async def resize(self, rows: int, cols: int) -> None:
        await self._send(RESIZE, SIZE.pack(min(max(rows, 1), 9999), min(max(cols, 1), 9999)))

    async def signal(self, name: str) -> None:
        await self._send(SIGNAL, name.removeprefix("SIG").encode("ascii", "replace")[:16])

    async def hang_up(self) -> None:
        await self._send(HANG_UP)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._writer.wait_closed()

    async def _send(self, kind: int, payload: bytes = b"") -> None:
        try:
            self._writer.write(pack_piece(kind, payload))
            await self._writer.drain()
        except OSError:
            raise RunnerLost("The process can be reached no more.") from None


def _number(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
