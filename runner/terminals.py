"""The processes that are streamed: how they are asked for, found again, limited, and cleared away."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from runner import processes
from runner.files import Refused
from runner.frames import pack
from runner.loop import Loop
from runner.streamed import LOOK_SECONDS, Line, Streamed

MAX_TERMINALS = 32
MAX_PIPED = 128
MAX_OVER = 32  #: ended terminals, kept for who comes back to them
IDLE_SECONDS = 12 * 3600.0
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
TERM = re.compile(r"[A-Za-z0-9._+-]{1,64}")
MAX_ARGUMENTS = 4096
_IN_FOLDER = 'cd -- "$1" && shift && exec "$@"'
HERE = os.path.dirname(os.path.abspath(__file__))


class Terminals:
    """All of them, of one container."""

    def __init__(
        self,
        loop: Loop,
        children: dict[int, Callable[[int], None]],
        environ: dict[str, str],
        *,
        token: str,
        make_room: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.children = children
        self._environ = environ
        self._token = token
        self._make_room = make_room  #: ends processes that nobody needs
        self._known: dict[str, Streamed] = {}
        self._count = 0
        loop.later(LOOK_SECONDS, self._look)

    @property
    def marks(self) -> set[str]:
        """Of what is not to be taken for left over."""
        return {process.mark for process in self._known.values() if process.pid}

    @property
    def pids(self) -> set[int]:
        return {process.pid for process in self._known.values() if process.pid}

    def hang_up(self) -> None:
        """All of them: the session is stopped."""
        for process in list(self._known.values()):
            process.hang_up()

    # -- requests ------------------------------------------------------------------------------------------------------------
    def listed(self) -> list[dict[str, Any]]:
        return [
            {"id": process.name, "attached": process.line is not None, "position": process.position}
            for process in self._known.values()
            if process.terminal and process.pid
        ]

    def open(self, request: int, header: dict[str, Any], line: Line) -> None:
        """Start a process, or go on with a terminal that is known. The line gets an answer, then pieces."""
        resumed = False
        name = header.get("process")
        if name is not None and (not isinstance(name, str) or not NAME.fullmatch(name)):
            raise Refused("invalid_request", "A terminal's id has 1 to 64 letters, digits, '-' or '_'.")
        found = self._known.get(name) if name is not None else None
        after = header.get("after")
        if found is not None:
            resumed = True
        elif header.get("resume"):
            raise Refused("pty_not_found", "There is no such terminal any more; open a new one.")
        else:
            found = self._started(header, name)
        after = after if isinstance(after, int) and not isinstance(after, bool) else None
        first = found.first_kept(after)
        told = {"process": found.name, "position": first, "resumed": resumed, "lost": first - (after or 0)}
        line.send(pack({"id": request, "ok": True, "result": told}))
        if resumed and "rows" in header:
            found.resize(*_size(header))
        over = found.over is not None
        for piece in found.attach(line, after):
            line.send(piece)
        if over:
            found.line = None
            line.finish()
            if not found.terminal:
                del self._known[found.name]

    def _started(self, header: dict[str, Any], name: str | None) -> Streamed:
        terminal = bool(header.get("terminal"))
        alive = sum(process.terminal == terminal for process in self._known.values() if process.pid)
        if alive >= (MAX_TERMINALS if terminal else MAX_PIPED):
            what = f"{MAX_TERMINALS} terminals" if terminal else f"{MAX_PIPED} processes"
            raise Refused("resource_exhausted", f"{what} are open in this session already; close some.")
        idle = header.get("idle_seconds")
        idle_seconds = float(idle) if isinstance(idle, (int, float)) and idle > 0 else IDLE_SECONDS
        self._count += 1
        name = name or f"p{self._count}-{os.urandom(6).hex()}"
        mark = f"stream-{self._count}.{self._token}"
        made = Streamed(self, name, mark, terminal=terminal, idle_seconds=idle_seconds)
        argv, environ = self._argv(header), self._environ_of(header, mark)
        for tried in range(2):
            try:
                if "/" not in argv[0]:
                    argv[0] = processes.find_program((argv[0],), environ["PATH"]) or _missing(argv[0])
                made.start(argv, environ, _size(header))
            except OSError as error:
                if error.errno == errno.EAGAIN and not tried:
                    self._make_room()
                    continue
                code = 127 if error.errno == errno.ENOENT else 126
                end = "\r\n" if terminal else "\n"
                made.fail(f"moorage: {argv[0]!r} cannot be started: {error.strerror}{end}", code)
            break
        self._known[name] = made
        return made

    def _argv(self, header: dict[str, Any]) -> list[str]:
        argv, shell, cwd = header.get("argv"), header.get("shell"), header.get("cwd")
        if header.get("program") == "sftp":
            words = own_python("sftp.py")
        elif isinstance(shell, str):
            words = [self._shell(), "-c", shell]
        elif argv is None:
            words = [self._shell(), "-l"]
        elif isinstance(argv, list) and argv and all(isinstance(word, str) for word in argv):
            words = [*argv]
        else:
            raise Refused("invalid_request", "'argv' is a list of words, the first of them the program.")
        if cwd:
            words = ["/bin/sh", "-c", _IN_FOLDER, "sh", str(cwd), *words]
        if len(words) > MAX_ARGUMENTS or any("\0" in word for word in words) or not words[0]:
            raise Refused("invalid_request", f"A command has at most {MAX_ARGUMENTS} words, without NUL.")
        return words

    def _shell(self) -> str:
        found = processes.find_program(("bash", "sh"), f"{self._environ['PATH']}:{processes.DEFAULT_PATH}")
        if found is None:
            raise Refused("no_shell", "The image has no shell; name a program to run.")
        return found

    def _environ_of(self, header: dict[str, Any], mark: str) -> dict[str, str]:
        environ, given = dict(self._environ), header.get("environ")
        if isinstance(given, dict):
            environ.update(
                {str(k): str(v) for k, v in given.items() if VARIABLE.fullmatch(str(k)) and "\0" not in str(v)}
            )
        if header.get("terminal"):
            term = str(header.get("term") or "")
            environ["TERM"] = term if TERM.fullmatch(term) else "xterm-256color"
            environ.setdefault("SHELL", self._shell() if header.get("argv") is None else "/bin/sh")
        environ["MOORAGE_RUN"] = mark
        return environ

    # -- what is over --------------------------------------------------------------------------------------------------------
    def ended(self, process: Streamed) -> None:
        if not process.terminal:
            self._known.pop(process.name, None)
            return
        over = [known for known in self._known.values() if known.over is not None]
        for oldest in sorted(over, key=lambda known: known.seen_at)[: max(0, len(over) - MAX_OVER)]:
            del self._known[oldest.name]

    def _look(self) -> None:
        self.loop.later(LOOK_SECONDS, self._look)
        for process in [process for process in self._known.values() if process.overdue]:
            if process.over is not None:
                del self._known[process.name]
            else:
                process.hang_up()
                process.seen_at = time.monotonic()


def own_python(script: str) -> list[str]:
    """How a script of ours is run: by the interpreter that runs this, whatever the image has."""
    rt = os.path.dirname(HERE)
    python = [sys.executable]
    try:
        with open(os.path.join(rt, "loader"), encoding="ascii") as file:
            loader = file.read().strip()
        python = [f"{rt}/lib/{loader}", "--library-path", f"{rt}/lib", f"{rt}/bin/python"]
    except OSError:
        pass  # in tests, and where the interpreter needs no loader of its own
    return [*python, "-I", "-S", "-B", os.path.join(HERE, script)]


def _size(header: dict[str, Any]) -> tuple[int, int]:
    rows, cols = header.get("rows"), header.get("cols")
    return (
        rows if isinstance(rows, int) and 0 < rows < 10_000 else 24,
        cols if isinstance(cols, int) and 0 < cols < 10_000 else 80,
    )


def _missing(program: str) -> str:
    raise FileNotFoundError(errno.ENOENT, "not found on PATH", program)
