"""A terminal of a session on this terminal: raw, as large as the window, taken up again when the connection breaks."""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from moorage._errors import MoorageError, StreamBroken
from moorage.cli import terminal

if TYPE_CHECKING:
    from moorage.sync import Session
    from moorage.sync.terminals import Pty

#: Typed alone, leaves the terminal open, to be come back to.
DETACH = b"\x1d"  # Ctrl-]
_READ_BYTES = 64 << 10


def run(session: Session, command: Sequence[str], *, attach: str | None, kernel: str | None) -> int:
    """Until the process ends (its exit code), or Ctrl-] leaves it."""
    if not (os.isatty(0) and os.isatty(1)):
        raise click.UsageError("-t needs a terminal; leave it out where input or output is a file or a pipe.")
    rows, cols = window()
    pty = session.pty.open(
        command,
        id=attach,
        resume=attach is not None,
        rows=rows,
        cols=cols,
        term=os.environ.get("TERM") or "xterm-256color",
        kernel=kernel,
    )
    stays = True  # whatever ends this side: the terminal can be come back to
    try:
        with raw(0), resizing(pty):
            threading.Thread(target=_type, args=(pty,), daemon=True).start()
            for data in pty.output():
                _show(data)
        if pty.exit is not None:
            stays = False
            return _exit_code(pty)
        terminal.note(f"moorage: left; 'moorage exec -it {session.name} --attach {pty.id}' comes back to it.")
        return terminal.OK
    except StreamBroken as problem:
        terminal.note(f"\nmoorage: {problem}")
        return terminal.FAILED
    finally:
        if stays:
            pty.detach()


def _exit_code(pty: Pty) -> int:
    assert pty.exit is not None
    return 1 if pty.exit.exit_code is None else pty.exit.exit_code


def _type(pty: Pty) -> None:
    """What is typed here; Ctrl-] leaves."""
    while True:
        try:
            data = os.read(0, _READ_BYTES)
        except OSError:
            return
        try:
            if not data or data == DETACH:
                pty.detach()
                return
            pty.send(data)
        except MoorageError:
            return


def _show(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def window() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 24, 80
    return max(1, size.lines), max(1, size.columns)


@contextmanager
def raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        sys.stdout.flush()


@contextmanager
def resizing(pty: Pty) -> Iterator[None]:
    """The window's size, whenever it changes. Told by a thread of its own: a handler must not wait for the network."""
    changed = threading.Event()
    over = False

    def tell() -> None:
        while changed.wait() and not over:
            changed.clear()
            try:
                pty.resize(*window())
            except MoorageError:
                return

    threading.Thread(target=tell, daemon=True).start()
    before = signal.signal(signal.SIGWINCH, lambda *_: changed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
        over = True
        changed.set()
