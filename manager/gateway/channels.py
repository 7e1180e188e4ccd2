"""What runs over an authenticated connection: shells, commands, SFTP, and connections to ports of the session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import asyncssh

from agent.client import Process, ProcessEnd
from domain.errors import MoorageError

log = logging.getLogger("moorage.gateway")
#: Kept for a process that does not read, before the client is held up.
_UNREAD_BYTES: Final = 512 << 10
_SIGNALS: Final = {"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}
Open = Callable[[dict[str, Any]], Awaitable[Process]]


class Channel(asyncssh.SSHServerSession[bytes]):
    """One channel: a shell, a command or the SFTP subsystem, as a process of the session."""

    def __init__(self, open_process: Open, gone: Callable[[Channel], None]) -> None:
        self._open = open_process
        self._gone = gone
        self._channel: asyncssh.SSHServerChannel[bytes]
        self._fields: dict[str, Any] = {"terminal": False}
        self._process: Process | None = None
        self._typed: asyncio.Queue[Callable[[Process], Awaitable[None]]] = asyncio.Queue()
        self._unread = 0
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    # -- what is asked for -------------------------------------------------------------------------------------------
    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]
    ) -> bool:
        cols, rows, *_ = term_size
        self._fields = {"terminal": True, "rows": _side(rows, 24), "cols": _side(cols, 80)}
        if term_type.replace("-", "").replace(".", "").replace("+", "").isalnum() and term_type.isascii():
            self._fields["term"] = term_type[:64]
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._fields["shell"] = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        if subsystem != "sftp":
            return False
        self._fields = {"terminal": False, "program": "sftp"}
        return True

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ssh channel")

    # -- what comes --------------------------------------------------------------------------------------------------
    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        async def write(process: Process) -> None:
            await process.write(data)
            self._unread -= len(data)
            if self._unread <= _UNREAD_BYTES:
                self._channel.resume_reading()

        self._unread += len(data)
        if self._unread > _UNREAD_BYTES:
            self._channel.pause_reading()
        self._typed.put_nowait(write)

    def eof_received(self) -> bool:
        self._typed.put_nowait(lambda process: process.write_eof())
        return True  # its output goes on

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._typed.put_nowait(lambda process: process.resize(_side(height, 24), _side(width, 80)))

    def signal_received(self, signal: str) -> None:
        self._typed.put_nowait(lambda process: process.signal(signal))

    def break_received(self, msec: int) -> bool:
        self._typed.put_nowait(lambda process: process.signal("INT"))
        return True

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone(self)
        if self._task is not None:
            self._task.cancel()

    def refuse(self, reason: str) -> None:
        """End it, and say why."""
        if self._task is not None and not self._task.done():
            self._say(reason)
            with contextlib.suppress(asyncssh.Error, OSError):
                self._channel.exit(255)

    # -- the process ---------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            environ = {str(k): str(v) for k, v in self._channel.get_environment().items()}
            try:
                self._process = await self._open({**self._fields, "environ": environ})
            except MoorageError as error:
                self._say(error.message)
                self._channel.exit(255)
                return
            typing = asyncio.create_task(self._type(self._process))
            try:
                end = await self._show(self._process)
            finally:
                typing.cancel()
                await asyncio.gather(typing, return_exceptions=True)
            self._end(end)
        except (asyncssh.Error, OSError) as error:
            log.debug("a channel broke off: %r", error)
        except MoorageError as error:
            self._say(error.message)
            self._channel.exit(255)
        finally:
            if self._process is not None:
                with contextlib.suppress(MoorageError):
                    await self._process.hang_up()  # a terminal of SSH's ends with its channel, as everywhere
                await self._process.close()

    async def _type(self, process: Process) -> None:
        while True:
            await (await self._typed.get())(process)

    async def _show(self, process: Process) -> ProcessEnd:
        while True:
            piece = await process.read()
            if isinstance(piece, ProcessEnd):
                return piece
            await self._may_write.wait()
            self._channel.write(piece.data, asyncssh.EXTENDED_DATA_STDERR if piece.error else None)

    def _end(self, end: ProcessEnd) -> None:
        if end.reason != "exited":
            self._say("The session has ended, or its container has gone.")
            self._channel.exit(255)
        elif end.signal in _SIGNALS:
            self._channel.exit_with_signal(end.signal)
        else:
            self._channel.exit(255 if end.exit_code is None else end.exit_code)

    def _say(self, message: str) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            end = b"\r\n" if self._fields.get("terminal") else b"\n"
            self._channel.write_stderr(b"moorage: " + message.encode("utf-8", "replace") + end)


def _side(value: int, otherwise: int) -> int:
    return min(value, 9999) if value > 0 else otherwise


class Forwarded(asyncssh.SSHTCPSession[bytes]):
    """One forwarded connection: bytes between the client and a port of the session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._channel: asyncssh.SSHTCPChannel[bytes]
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._relay(), name="ssh forward")

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > _UNREAD_BYTES and self._draining is None:
            self._channel.pause_reading()
            self._draining = asyncio.create_task(self._drain())

    def eof_received(self) -> bool:
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        return True

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writer.close()
        for task in (self._task, self._draining):
            if task is not None:
                task.cancel()

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
            self._channel.resume_reading()
        except OSError:
            self._channel.abort()
        finally:
            self._draining = None

    async def _relay(self) -> None:
        try:
            while data := await self._reader.read(64 << 10):
                await self._may_write.wait()
                self._channel.write(data)
            self._channel.write_eof()
        except OSError:
            self._channel.abort()
