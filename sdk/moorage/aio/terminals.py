"""Terminals in sessions: bytes both ways, the window's size, and the exit code; they outlive a broken connection."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from moorage import _wire
from moorage._errors import MoorageError, StreamBroken, Unreachable
from moorage._socket import SocketClosed
from moorage.aio import _io
from moorage.aio._transport import Transport
from moorage.errors import PtyNotFound

#: A broken connection is taken up again for so long.
RESUME_SECONDS = 60.0
_FINAL_CODES = frozenset({1000, 1008, 1011})


@dataclass(frozen=True, slots=True)
class PtyExit:
    """How a terminal's process ended."""

    exit_code: int | None
    signal: str | None = None


class Pty:
    """A terminal that is open. As a context manager it is closed on exit, and its process with it; `detach` leaves it."""

    def __init__(self, transport: Transport, address: str, params: Sequence[tuple[str, str]]) -> None:
        self._transport = transport
        self._address = address
        self._params = list(params)
        self._socket: _io.Socket
        self._left = False
        self._reading = False
        #: to attach to it again, from anywhere, while its session lives: `session.pty.open(id=...)`
        self.id = ""
        self.resumed = False
        #: of its output, the bytes that were seen
        self.position = 0
        #: bytes that came too fast or too long ago to be kept for this reader
        self.lost = 0
        self.exit: PtyExit | None = None

    def __repr__(self) -> str:
        return f"<Pty {self.id}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def output(self) -> AsyncGenerator[bytes]:
        """What it shows, as it comes, to its end; `exit` then says how that was. Broken connections are taken up again.

        Raises `StreamBroken` when it was resumed elsewhere, or its session has ended.
        """
        while self.exit is None and not self._left:
            self._reading = True
            try:
                message = await self._socket.recv()
            except SocketClosed as closed:
                if self._left:
                    return
                await self._take_up(closed)
                continue
            finally:
                self._reading = False
            if isinstance(message, bytes):
                self.position += len(message)
                yield message
            else:
                self._note(json.loads(message))

    async def wait(self) -> PtyExit:
        """Until its process has ended; what it shows meanwhile is thrown away."""
        async for _ in self.output():
            pass
        if self.exit is None:
            raise StreamBroken("The terminal was left before its process ended.")
        return self.exit

    async def send(self, data: bytes | str) -> None:
        """Type. While the connection is being taken up again, waits."""
        await self._send(data.encode() if isinstance(data, str) else data)

    async def resize(self, rows: int, cols: int) -> None:
        """Tell it how large the window is."""
        await self._send(json.dumps({"type": "resize", "rows": rows, "cols": cols}))

    async def signal(self, name: str) -> None:
        """To what runs in its foreground: INT, TERM, ..."""
        await self._send(json.dumps({"type": "signal", "signal": name}))

    async def detach(self) -> None:
        """Leave it open, to be attached to again."""
        self._left = True
        await self._socket.close()

    async def close(self) -> None:
        """End its process as closing a window does, unless it has ended or was left."""
        if self._left:
            return
        self._left = True
        try:
            if self.exit is None:
                await self._socket.send(json.dumps({"type": "close"}))
        except SocketClosed:
            pass
        finally:
            await self._socket.close()

    async def open(self) -> Self:
        """Open it, or attach to it, with patience: by its id it is opened once, however often that is tried."""
        until, attempt = time.monotonic() + self._transport.patience(), 0
        while True:
            attempt += 1
            try:
                return await self.connect()
            except (Unreachable, StreamBroken, MoorageError) as problem:
                if time.monotonic() > until or not _again(problem):
                    raise
                await _io.sleep(_wire.pause_seconds(attempt))

    async def connect(self) -> Self:
        """Open it, or attach to it."""
        params = [(name, value) for name, value in self._params if name not in ("pty", "resume")]
        params += [("pty", self.id), ("resume", "true"), ("after", str(self.position))]
        self._socket = await _io.open_socket(self._transport.config, self._address, params if self.id else self._params)
        try:
            self._note(json.loads(await self._socket.recv()))
        except SocketClosed:
            raise StreamBroken("The terminal was closed as soon as it was open.") from None
        return self

    def _note(self, said: Mapping[str, Any]) -> None:
        match said.get("type"):
            case "ready":
                self.id = str(said.get("pty"))
                self.resumed = bool(said.get("resumed"))
                self.position = int(said.get("position") or 0)
                self.lost += int(said.get("lost") or 0)
            case "exit":
                self.exit = PtyExit(said.get("exit_code"), said.get("signal"))
            case "problem":
                raise _wire.error_from(int(said.get("status") or 500), json.dumps(said).encode(), {})

    async def _take_up(self, closed: SocketClosed) -> None:
        if closed.code in _FINAL_CODES:
            raise StreamBroken(f"The terminal's connection was ended: {closed.reason or closed.code}.")
        until, attempt = time.monotonic() + RESUME_SECONDS, 0
        while not self._left:
            attempt += 1
            try:
                await self.connect()
                return
            except PtyNotFound:
                raise StreamBroken("The terminal has ended while the connection was broken.") from None
            except (Unreachable, StreamBroken, MoorageError) as problem:
                if time.monotonic() > until or not _again(problem):
                    raise
                await _io.sleep(_wire.pause_seconds(attempt))

    async def _send(self, message: bytes | str) -> None:
        until = time.monotonic() + RESUME_SECONDS
        while True:
            try:
                await self._socket.send(message)
                return
            except SocketClosed as closed:
                if self.exit is not None or self._left or time.monotonic() > until:
                    raise StreamBroken("The terminal is closed.") from None
                if self._reading:  # whoever reads takes it up again
                    await _io.sleep(0.05)
                else:
                    await self._take_up(closed)


def _again(problem: MoorageError) -> bool:
    return isinstance(problem, Unreachable | StreamBroken) or problem.retryable


class Ptys:
    """`session.pty`"""

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str], kernel: str | None = None) -> None:
        self._transport = transport
        self._base = base
        self._owner = owner
        self._kernel = kernel

    @_io.opening
    async def open(
        self,
        command: Sequence[str] = (),
        *,
        id: str | None = None,
        rows: int = 24,
        cols: int = 80,
        term: str = "xterm-256color",
        cwd: str | None = None,
        kernel: str | None = None,
        resume: bool = False,
    ) -> Pty:
        """A terminal with the user's shell, or a command; an `id` that is known is attached to, its scrollback first.

        With `resume` it must be known already.
        """
        params = _wire.query(
            pty=id or uuid.uuid4().hex,
            rows=rows,
            cols=cols,
            term=term,
            cwd=cwd,
            kernel=kernel or self._kernel,
            resume=resume or None,
        )
        listed = [*self._owner.items(), *params.items(), *(("command", word) for word in command)]
        return await Pty(self._transport, f"{self._base}/pty", listed).open()
