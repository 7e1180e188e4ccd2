"""Processes that somebody is attached to: on a terminal, which outlives its connection, or on plain pipes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from runner import processes
from runner.loop import READ, WRITE, Loop, Timer
from runner.pieces import (
    EXIT,
    HANG_UP,
    MAX_PIECE_BYTES,
    RESIZE,
    SIGNAL,
    SIZE,
    STDERR,
    STDIN,
    STDIN_END,
    STDOUT,
    TAKEN,
    BadPiece,
    PieceBuffer,
    pack_piece,
)

SCROLLBACK_BYTES = 256 << 10
MAX_UNSENT_BYTES = 256 << 10  #: on the way to a slow reader, before its process is held up
MAX_UNREAD_BYTES = 256 << 10  #: on the way to a process that does not read, before its writer is held up
DRAIN_SECONDS = 0.04  #: for output of processes that outlive their parent and hold its pipes
END_SECONDS = 10.0  #: for the other side to close, after the last that it was told
KILL_SECONDS = 5.0  #: from hanging up to killing
LINGER_SECONDS = 120.0  #: how a terminal's process ended is told to who comes back within this time
LOOK_SECONDS = 30.0
SIGNALS = frozenset("HUP INT QUIT KILL TERM USR1 USR2 CONT STOP TSTP ABRT ALRM PIPE WINCH".split())
_IUTF8 = 0o40000


class Line:
    """The connection to whoever is attached: pieces both ways, with a bounded backlog."""

    def __init__(self, loop: Loop, sock: socket.socket, rest: bytes) -> None:
        self._loop = loop
        self._socket = sock
        self._pieces = PieceBuffer()
        self._pieces.feed(rest)
        self._backlog = bytearray()
        self._ending = False
        self._held = False
        self.on_piece: Callable[[int, bytes], None] = lambda kind, payload: None
        self.on_gone: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        loop.watch(sock.fileno(), READ, self._on_ready)

    @property
    def full(self) -> bool:
        return len(self._backlog) > MAX_UNSENT_BYTES

    def send(self, data: bytes) -> None:
        if self._socket.fileno() < 0 or self._ending:
            return
        if not self._backlog:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self._lose()
                return
        self._backlog += data
        self._attend()

    def hold(self, held: bool) -> None:
        """Take nothing more from the other side, or go on."""
        self._held = held
        self._attend()
        if not held:
            self._loop.idle(self._deliver)

    def finish(self) -> None:
        """End it when everything is sent. Closed only after the other side: what it still says must not break what it reads."""
        self._ending = True
        self.on_piece, self.on_gone, self.on_room = lambda kind, payload: None, lambda: None, lambda: None
        self._held = False
        self._attend()
        if not self._backlog:
            self._say_end()

    def _say_end(self) -> None:
        if self._socket.fileno() >= 0:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._close()
                return
            self._loop.later(END_SECONDS, self._close)

    def _attend(self) -> None:
        if self._socket.fileno() >= 0:
            events = (0 if self._held else READ) | (WRITE if self._backlog else 0)
            self._loop.change(self._socket.fileno(), events)

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self._backlog:
            was_full = self.full
            try:
                del self._backlog[: self._socket.send(self._backlog)]
            except BlockingIOError:
                pass
            except OSError:
                self._lose()
                return
            self._attend()
            if was_full and not self.full:
                self.on_room()
            if self._ending and not self._backlog:
                self._say_end()
        if events & ~WRITE and self._socket.fileno() >= 0:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            if not self._ending:
                self._pieces.feed(data)
                self._deliver()

    def _deliver(self) -> None:
        try:
            while not self._held and self._socket.fileno() >= 0 and (piece := self._pieces.next()) is not None:
                self.on_piece(*piece)
        except BadPiece:
            self._lose()

    def _lose(self) -> None:
        on_gone = self.on_gone
        self._close()
        on_gone()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        self._backlog.clear()


class House(Protocol):
    """Where processes are kept."""

    loop: Loop
    children: dict[int, Callable[[int], None]]

    def ended(self, process: Streamed) -> None: ...


class Streamed:
    """One process. `lines` come and go when it has a terminal; without one it ends with its line."""

    def __init__(self, house: House, name: str, mark: str, *, terminal: bool, idle_seconds: float) -> None:
        self.name = name
        self.mark = mark
        self.terminal = terminal
        self.pid = 0
        self.position = 0  #: bytes of output so far
        self.over: dict[str, Any] | None = None  #: how it ended
        self.seen_at = time.monotonic()  #: when bytes moved, or somebody came or went
        self.line: Line | None = None
        self.idle_seconds = idle_seconds
        self._house = house
        self._loop = house.loop
        self._scrollback = bytearray()
        self._outputs: dict[int, int] = {}  #: descriptors to read, and the kinds of what comes from them
        self._stdin = -1
        self._typed = bytearray()
        self._typed_end = False
        self._timers: list[Timer] = []

    # -- begin -------------------------------------------------------------------------------------------------------------
    def start(self, argv: list[str], environ: dict[str, str], size: tuple[int, int]) -> None:
        """OSError when it cannot be started."""
        if self.terminal:
            master, slave = os.openpty()
            master = processes.high(master)
            try:
                set_size(master, *size)
                modes = termios.tcgetattr(slave)
                modes[0] |= _IUTF8
                termios.tcsetattr(slave, termios.TCSANOW, modes)
                self.pid = processes.spawn(argv, environ, {}, terminal=os.ttyname(slave))
            except BaseException:
                os.close(master)
                raise
            finally:
                os.close(slave)
            os.set_blocking(master, False)
            self._stdin, self._outputs = master, {master: STDOUT}
            self._loop.watch(master, READ, lambda events: self._on_terminal(events, master))
        else:
            self._start_on_pipes(argv, environ)
        self._house.children[self.pid] = self._exited

    def _start_on_pipes(self, argv: list[str], environ: dict[str, str]) -> None:
        out, out_w = processes.pipe()
        err, err_w = processes.pipe()
        stdin_r, stdin = (processes.high(fd) for fd in os.pipe())
        os.set_blocking(stdin, False)
        try:
            self.pid = processes.spawn(argv, environ, {0: stdin_r, 1: out_w, 2: err_w})
        except BaseException:
            for fd in (out, err, stdin):
                os.close(fd)
            raise
        finally:
            for fd in (out_w, err_w, stdin_r):
                os.close(fd)
        self._stdin, self._outputs = stdin, {out: STDOUT, err: STDERR}
        for fd in (out, err):
            self._loop.watch(fd, READ, partial(self._on_pipe, fd))
        self._loop.watch(stdin, 0, self._on_stdin)

    def fail(self, message: str, exit_code: int) -> None:
        """It could not be started: it says so, and is over."""
        self._scrollback += message.encode("utf-8", "replace")
        self.position = len(self._scrollback)
        self.over = {"exit_code": exit_code, "signal": None}

    # -- who is attached -----------------------------------------------------------------------------------------------------
    def attach(self, line: Line, after: int | None) -> Iterator[bytes]:
        """From now on its output goes there. What is kept beyond `after` comes first."""
        if self.line is not None:
            self.line.send(pack_piece(TAKEN))
            self.line.finish()
        self.line = line
        self.seen_at = time.monotonic()
        line.on_piece, line.on_gone, line.on_room = self._on_piece, self._on_gone, self._attend
        for fd in list(self._outputs):
            self._loop.change(fd, self._events(fd))
        first = self.first_kept(after) - (self.position - len(self._scrollback))
        kept = bytes(self._scrollback[first:])
        for at in range(0, len(kept), MAX_PIECE_BYTES):
            yield pack_piece(STDOUT if self.terminal else STDERR, kept[at : at + MAX_PIECE_BYTES])
        if self.over is not None:
            yield pack_piece(EXIT, json.dumps(self.over).encode())

    def first_kept(self, after: int | None) -> int:
        """The position from which on output is still there, for one who has seen everything before `after`."""
        oldest = self.position - len(self._scrollback)
        return oldest if after is None else min(max(after, oldest), self.position)

    def _on_gone(self) -> None:
        self.line = None
        self.seen_at = time.monotonic()
        if not self.terminal:
            self.hang_up()
            return
        self._typed_end = False
        self._attend()  # its output goes on into the scrollback

    def _on_piece(self, kind: int, payload: bytes) -> None:
        self.seen_at = time.monotonic()
        if kind == STDIN:
            self._typed += payload
            self._write()
        elif kind == STDIN_END:
            if self.terminal:
                self._typed += b"\x04"
            else:
                self._typed_end = True
            self._write()
        elif kind == RESIZE and len(payload) == SIZE.size:
            self.resize(*SIZE.unpack(payload))
        elif kind == SIGNAL:
            self._signal(payload.decode("ascii", "replace"))
        elif kind == HANG_UP:
            self.hang_up()
        else:
            raise BadPiece(f"a piece of kind {kind}")

    def resize(self, rows: int, cols: int) -> None:
        if self.terminal and self._stdin >= 0:
            set_size(self._stdin, rows, cols)

    # -- bytes -----------------------------------------------------------------------------------------------------------------
    def _events(self, fd: int) -> int:
        reading = fd in self._outputs and not (self.line is not None and self.line.full)
        return (READ if reading else 0) | (WRITE if fd == self._stdin and self._typed else 0)

    def _attend(self) -> None:
        for fd in {*self._outputs, self._stdin} - {-1}:
            self._loop.change(fd, self._events(fd))

    def _on_terminal(self, events: int, fd: int) -> None:
        if events & WRITE:
            self._write()
        if events & ~WRITE and fd in self._outputs:
            self._read(fd)

    def _on_pipe(self, fd: int, events: int) -> None:
        self._read(fd)

    def _on_stdin(self, events: int) -> None:
        if events & WRITE:
            self._write()
        elif self._stdin >= 0:  # nobody reads it any more
            self._typed.clear()
            self._close_stdin()

    def _write(self) -> None:
        try:
            while self._typed and self._stdin >= 0:
                del self._typed[: os.write(self._stdin, self._typed[:MAX_PIECE_BYTES])]
        except BlockingIOError:
            pass
        except OSError:
            self._typed.clear()
            if not self.terminal:
                self._close_stdin()
        if self._stdin < 0:
            self._typed.clear()
        elif not self._typed and self._typed_end and not self.terminal:
            self._close_stdin()
        if self._stdin >= 0:
            self._loop.change(self._stdin, self._events(self._stdin))
        if self.line is not None:
            self.line.hold(len(self._typed) > MAX_UNREAD_BYTES)

    def _close_stdin(self) -> None:
        self._loop.forget(self._stdin)
        os.close(self._stdin)
        self._stdin = -1

    def _read(self, fd: int) -> int:
        """What is there at the moment, up to a piece; 0 when there is nothing, or never will be."""
        try:
            data = os.read(fd, MAX_PIECE_BYTES)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: no process has the terminal open
            data = b""
        if not data:
            self._close_output(fd)
            return 0
        self._output(self._outputs[fd], data)
        return len(data)

    def _close_output(self, fd: int) -> None:
        if self._outputs.pop(fd, None) is not None:
            if fd == self._stdin:
                self._stdin = -1
            self._loop.forget(fd)
            os.close(fd)

    def _output(self, kind: int, data: bytes) -> None:
        self.position += len(data)
        self.seen_at = time.monotonic()
        if self.terminal:
            self._scrollback += data
            if len(self._scrollback) > 2 * SCROLLBACK_BYTES:
                del self._scrollback[:-SCROLLBACK_BYTES]
        if self.line is not None:
            self.line.send(pack_piece(kind, data))
            if self.line is not None and self.line.full:
                self._attend()

    # -- end -----------------------------------------------------------------------------------------------------------------
    def _signal(self, name: str) -> None:
        if name not in SIGNALS or not self.pid:
            return
        group = self.pid
        if self.terminal and self._stdin >= 0:
            try:
                group = os.tcgetpgrp(self._stdin)
            except OSError:
                pass
        processes.signal_group(group, getattr(signal, f"SIG{name}"))

    def hang_up(self) -> None:
        """As when a terminal is closed. What asked to outlive that (nohup, setsid) does."""
        if not self.pid:
            return
        self._signal("HUP")
        processes.signal_group(self.pid, signal.SIGHUP)
        processes.signal_group(self.pid, signal.SIGCONT)
        if not self.terminal:
            self._typed_end = True
            self._write()
        self._timers.append(self._loop.later(KILL_SECONDS, self._kill))

    def _kill(self) -> None:
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except OSError:
                pass

    def _exited(self, status: int) -> None:
        self.pid = 0
        exit_code, number = processes.exit_of(status)
        name = signal.Signals(number).name[3:] if number is not None and number in set(signal.Signals) else None
        self._drain({"exit_code": exit_code, "signal": name}, last=False)

    def _drain(self, how: dict[str, Any], *, last: bool) -> None:
        for fd in list(self._outputs):
            while not (self.line is not None and self.line.full) and fd in self._outputs and self._read(fd):
                pass
        slow = self.line is not None and self.line.full
        if self._outputs and (slow or not last):
            self._timers.append(self._loop.later(DRAIN_SECONDS, lambda: self._drain(how, last=True)))
            return
        self._end(how)

    def _end(self, how: dict[str, Any]) -> None:
        for timer in self._timers:
            self._loop.cancel(timer)
        for fd in list(self._outputs):
            self._close_output(fd)
        if self._stdin >= 0:
            self._close_stdin()
        self.over = how
        self.seen_at = time.monotonic()
        if self.line is not None:
            self.line.send(pack_piece(EXIT, json.dumps(how).encode()))
            self.line.finish()
            self.line = None
        self._house.ended(self)

    @property
    def overdue(self) -> bool:
        """Nobody has come back to it, or nothing has moved, for too long."""
        return time.monotonic() - self.seen_at > (LINGER_SECONDS if self.over is not None else self.idle_seconds)


def set_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", max(1, rows), max(1, cols), 0, 0))
