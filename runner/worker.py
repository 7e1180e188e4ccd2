"""Runs the user's Python cells in one lasting namespace, on the image's Python (3.8 or later).

A child of the runner: cells come over descriptor 3, output leaves through the pipes at 1 and 2. It trusts the user's
code with everything it has, and the runner trusts it with nothing.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import types

TYPE_CHECKING = False  # `typing` is not loaded for annotations only
if TYPE_CHECKING:
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = struct.Struct("!II")
RESULT, ERROR = 3, 4
MAX_RESULT_BYTES = 4 << 20
FLUSH_SECONDS = 0.005
PENDING_CHARACTERS = 8192
NEEDS_IPYTHON = ("%", "!", "?", "IPython", "get_ipython")
_real_exit = os._exit


class Interrupts:
    """SIGINT raises KeyboardInterrupt while a cell runs, at a moment when no message is half read or written."""

    def __init__(self) -> None:
        self.running = False
        self._held = 0
        self._pending = False

    def install(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if not self.running:
            return
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._held += 1

    def __exit__(self, *exc: object) -> None:
        self._held -= 1
        if self._pending and not self._held:
            self._pending = False
            if self.running:
                raise KeyboardInterrupt

    def clear(self) -> None:
        self._pending = False


class Link:
    """Messages to and from the runner."""

    def __init__(self, fd: int, interrupts: Interrupts) -> None:
        self._socket = socket.socket(fileno=fd)
        self._buffer = bytearray()
        self._interrupts = interrupts
        self._writing = threading.Lock()
        self.pid = os.getpid()

    def send(self, *messages: tuple[dict[str, Any], bytes]) -> None:
        """Send (header, body) pairs with one call."""
        out = bytearray()
        for header, body in messages:
            raw = json.dumps(header).encode()
            out += LENGTHS.pack(len(raw), len(body)) + raw + body
        with self._interrupts, self._writing:
            self._socket.sendall(out)

    def receive(self) -> tuple[Any, bytes]:
        """The next message; (None, b"") when the runner has gone."""
        while True:
            with self._interrupts:
                if len(self._buffer) >= 8:
                    header_length, body_length = LENGTHS.unpack_from(self._buffer)
                    end = 8 + header_length + body_length
                    if len(self._buffer) >= end:
                        header = json.loads(bytes(self._buffer[8 : 8 + header_length]))
                        body = bytes(self._buffer[8 + header_length : end])
                        del self._buffer[:end]
                        if header.get("op") == "environ":  # also while the code waits for input
                            os.environ.update(header["values"])
                            continue
                        return header, body
            if self._interrupts.running:
                # outside of the guard: this wait is what an interrupt ends
                select.select([self._socket], [], [])
            with self._interrupts:
                data = self._socket.recv(1 << 16)
                if not data:
                    return None, b""
                self._buffer += data


class Pipe(io.BufferedIOBase):
    """Descriptor 1 or 2. Writes are whole, whatever signals come."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            view = view[os.write(self._fd, view) :]
        return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False


class Output(io.TextIOWrapper):
    """Flushes a line at once when the last flush is 5 ms old, else leaves it to the flusher.

    Live, and cheap for a million prints. Whoever flushes takes what is there and writes it before the next one may: two
    threads at once would write "1" and its newline in the wrong order. So nothing is written but by `flush`.
    """

    def __init__(self, fd: int, name: str, flusher: Flusher) -> None:
        self._flusher = flusher
        self._flushed_at = 0.0
        self.dirty = False
        pipe: Any = Pipe(fd)
        super().__init__(pipe, "utf-8", "backslashreplace", newline="\n")
        self._CHUNK_SIZE = sys.maxsize  # what is pending is never written by `write`
        self._size = 0  #: about as many characters are pending
        self._name = name
        self._allow_flush()
        os.register_at_fork(after_in_child=self._allow_flush)  # another thread may have been at it

    def _allow_flush(self) -> None:
        self._flushing = threading.RLock()  # a signal's handler may print, too

    @property
    def name(self) -> str:
        return self._name

    def write(self, text: str, _write: Any = io.TextIOWrapper.write, _clock: Any = time.monotonic) -> int:
        written: int = _write(self, text)
        self.dirty = True
        self._size += written
        # print() writes its newline apart: only that is worth a flush
        if self._size > PENDING_CHARACTERS or (_clock() - self._flushed_at > FLUSH_SECONDS and text[-1:] in "\r\n"):
            self.flush()
        elif not self._flusher.awake:
            self._flusher.wake()
        return written

    def flush(self) -> None:
        with self._flushing:
            self.dirty = False
            self._size = 0
            super().flush()
        self._flushed_at = time.monotonic()


class Flusher:
    """A thread that flushes what a burst of prints left behind, each 5 ms; it sleeps when nothing was printed for a while."""

    def __init__(self) -> None:
        self.awake = False
        self.outputs: list[Output] = []
        self._lock = threading.Lock()
        self._pid = 0

    def wake(self) -> None:
        self.awake = True
        if self._pid != os.getpid():  # first use, or in a forked child
            self._pid = os.getpid()
            self._lock = threading.Lock()
            self._lock.acquire()
            try:
                threading.Thread(target=self._run, name="flusher", daemon=True).start()
            except RuntimeError:  # no thread to be had
                self._pid = 0
                self.awake = False
                self.flush()
            return
        try:
            self._lock.release()
        except RuntimeError:
            pass  # released already

    def _run(self) -> None:
        lock, pid, quiet = self._lock, self._pid, 0
        while self._pid == pid:
            time.sleep(FLUSH_SECONDS)
            quiet += 1
            if any(output.dirty for output in self.outputs):
                self.flush()
                quiet = 0
            elif quiet > 200:
                self.awake = False
                if not any(output.dirty for output in self.outputs):
                    lock.acquire()
                self.awake, quiet = True, 0

    def flush(self) -> None:
        for output in self.outputs:
            try:
                output.flush()
            except Exception:
                pass  # closed by the user, or the pipe is gone


class Stdin(io.TextIOBase):
    """sys.stdin: a line is asked for when it is read."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines: list[str] = []
        self._eof = False

    def ask(self, prompt: object, password: bool = False) -> str:
        """One line with its newline, or an empty text at the end of input."""
        if not self._lines and not self._eof:
            text, self._eof = self._session.ask(prompt, password)
            if text and not text.endswith("\n"):
                text += "\n"
            self._lines = text.splitlines(True)
        if self._lines:
            return self._lines.pop(0)
        self._eof = False  # like a terminal: the next read may go on
        return ""

    def forget(self) -> None:
        self._lines, self._eof = [], False

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        return self.ask("")

    def read(self, size: int | None = -1) -> str:
        out = ""
        while size is None or size < 0 or len(out) < size:
            line = self.ask("")
            if not line:
                break
            out += line
        return out

    def __next__(self) -> str:  # type: ignore[override]
        line = self.ask("")
        if not line:
            raise StopIteration
        return line

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return 0

    encoding = "utf-8"


class Session:
    """The namespace, and what surrounds a cell."""

    def __init__(self, link: Link, interrupts: Interrupts, ipython: str) -> None:
        self.link = link
        self.interrupts = interrupts
        self.flusher = Flusher()
        self.flusher.outputs = [Output(1, "<stdout>", self.flusher), Output(2, "<stderr>", self.flusher)]
        self.stdin = Stdin(self)
        space: Any = sys
        space.stdout, space.stderr = space.__stdout__, space.__stderr__ = self.flusher.outputs
        space.stdin = space.__stdin__ = self.stdin
        self.module = types.ModuleType("__main__")
        self.namespace: dict[str, Any] = self.module.__dict__
        self.namespace["__builtins__"] = builtins
        sys.modules["__main__"] = self.module
        self.count = 0
        self.shell: Any = None
        self._ipython = ipython
        self._extras: Any = None
        self._asking = threading.RLock()
        self._patch()

    def _patch(self) -> None:
        space: Any = builtins
        space.input, space.display = self._input, self.display

        def leave(status: int) -> None:
            self.flusher.flush()
            _real_exit(status)

        os._exit = leave  # type: ignore[assignment]
        flush, events = (
            self.flusher.flush,
            {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"},
        )

        def on_event(event: str, args: Any) -> None:
            if event in events:
                flush()

        sys.addaudithook(on_event)
        import getpass

        space = getpass
        space.getpass = lambda prompt="Password: ", stream=None: self._line(prompt, True)

    @property
    def extras(self) -> Any:
        """display.py, loaded when it is first needed."""
        return self._extras or self.load_extras()

    def load_extras(self) -> Any:
        if self._extras is None:
            from importlib.util import module_from_spec, spec_from_file_location

            spec: Any = spec_from_file_location("_moorage_display", os.path.join(HERE, "display.py"))
            self._extras = module_from_spec(spec)
            spec.loader.exec_module(self._extras)
        return self._extras

    # -- input ---------------------------------------------------------------------------------------------------------
    def ask(self, prompt: object, password: bool) -> tuple[str, bool]:
        if os.getpid() != self.link.pid or not self.interrupts.running:
            return "", True
        with self._asking:
            self.flusher.flush()
            self.link.send(({"op": "input", "prompt": str(prompt)[:4096], "password": password}, b""))
            header, body = self.link.receive()
            if header is None:
                _real_exit(1)
            return body.decode("utf-8", "replace"), bool(header.get("eof"))

    def _line(self, prompt: object, password: bool = False) -> str:
        line = self.stdin.ask(prompt, password)
        if not line:
            raise EOFError("EOF when reading a line")
        return line[:-1] if line.endswith("\n") else line  # noqa: FURB188 -- removesuffix is younger than 3.8

    def _input(self, prompt: object = "", /) -> str:
        return self._line(prompt)

    # -- rich output ---------------------------------------------------------------------------------------------------
    def publish(self, bundle: dict[str, Any]) -> None:
        """Send a MIME bundle from the middle of a cell, in its place among the prints."""
        if os.getpid() != self.link.pid or not self.interrupts.running:
            print(bundle.get("text/plain", ""))
            return
        body = self.extras.encode(bundle, MAX_RESULT_BYTES)
        with self._asking:
            self.flusher.flush()
            self.link.send(({"op": "record", "kind": RESULT, "ack": True}, body))
            if self.link.receive()[0] is None:
                _real_exit(1)

    def display(self, *objects: Any, **kwargs: Any) -> None:
        for value in objects:
            self.publish(self.extras.bundle(value, self.shell))

    # -- cells ---------------------------------------------------------------------------------------------------------
    def run(self, code: str) -> list[tuple[dict[str, Any], bytes]]:
        """Run one cell; the messages that tell its end."""
        self.count += 1
        name = f"<cell {self.count}>"
        tail: list[tuple[int, bytes]] = []
        exit_code, interrupted = 0, False
        self.interrupts.install()
        self.interrupts.clear()
        try:
            self.interrupts.running = True
            try:
                value = self._evaluate(code, name)
                if value is not None:
                    self.namespace["_"] = value
                    tail.append((RESULT, self.extras.encode(self.extras.bundle(value, self.shell), MAX_RESULT_BYTES)))
                if self.shell is not None or "matplotlib.pyplot" in sys.modules:
                    tail += [(RESULT, self.extras.encode(b, MAX_RESULT_BYTES)) for b in self.extras.figures(self.shell)]
            finally:
                self.interrupts.running = False
        except SystemExit as error:
            exit_code = self._exit_code(error)
        except KeyboardInterrupt as error:
            exit_code, interrupted = 130, True
            tail.append((ERROR, self.extras.failure(error)))
        except BaseException as error:
            exit_code = 1
            self.namespace["_error"] = error
            tail.append((ERROR, self.extras.failure(error)))
        self.interrupts.running = False
        if os.getpid() != self.link.pid:
            self.flusher.flush()
            _real_exit(exit_code)  # a forked child that came out of its cell
        self.stdin.forget()
        if sys.stdout not in self.flusher.outputs:  # left redirected
            try:
                sys.stdout.flush()
            except Exception:
                pass
        self.flusher.flush()
        messages = [({"op": "record", "kind": kind}, body) for kind, body in tail]
        messages.append(({"op": "done", "exit_code": exit_code, "interrupted": interrupted}, b""))
        return messages

    def _evaluate(self, code: str, name: str) -> Any:
        if self._ipython != "never" and self.shell is None and self._wants_ipython(code):
            self.shell = self.extras.ipython_shell(self)
        if self.shell is not None:
            self.shell.events.trigger("pre_execute")
            code = self.shell.transform_cell(code)
        self._remember(name, code)
        tree: Any = compile(code, name, "exec", ast.PyCF_ONLY_AST, True)
        last: Any = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)
        try:
            if tree.body:
                self._step(compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True))
            if last is not None:
                return self._step(compile(last, name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True))
            return None
        finally:
            if self.shell is not None:
                self.shell.events.trigger("post_execute")

    def _step(self, program: Any) -> Any:
        value = eval(program, self.namespace)
        if program.co_flags & 0x80:  # CO_COROUTINE: the cell awaits at its top level
            import asyncio

            loop = self.namespace.get("__moorage_loop__")
            if loop is None or loop.is_closed():
                loop = self.namespace["__moorage_loop__"] = asyncio.new_event_loop()
                asyncio.set_event_loop(loop)
            task = loop.create_task(value)
            try:
                return loop.run_until_complete(task)
            except KeyboardInterrupt:
                task.cancel()
                try:
                    loop.run_until_complete(task)
                except BaseException:
                    pass
                raise
        return value

    @staticmethod
    def _wants_ipython(code: str) -> bool:
        if not any(mark in code for mark in NEEDS_IPYTHON):
            return False
        for line in map(str.strip, code.splitlines()):
            if (
                line[:1] in ("%", "!")
                or line[-1:] == "?"
                or "IPython" in line
                or "get_ipython" in line
                or "= !" in line
                or "= %" in line
            ):
                try:
                    from importlib.util import find_spec

                    return find_spec("IPython") is not None
                except (ImportError, ValueError):
                    return False
        return False

    @staticmethod
    def _remember(name: str, code: str) -> None:
        """So that tracebacks show the cell's lines."""
        import linecache

        linecache.cache[name] = (len(code), None, code.splitlines(True), name)

    @staticmethod
    def _exit_code(error: SystemExit) -> int:
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        print(code, file=sys.stderr)
        return 1

    def complete(self, request: dict[str, Any]) -> Any:
        self.interrupts.install()
        self.interrupts.clear()
        try:
            self.interrupts.running = True
            return self.extras.complete(self, request)
        except BaseException:
            return {"suggestions": [], "start": 0, "end": 0}
        finally:
            self.interrupts.running = False


def serve_app(session: Session, header: dict[str, Any], body: bytes) -> None:
    """From its first load on, this process serves an app (app.py) and runs no cells."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec: Any = spec_from_file_location("_moorage_app", os.path.join(HERE, "app.py"))
    app = sys.modules["_moorage_app"] = module_from_spec(spec)
    spec.loader.exec_module(app)
    app.Server(session).serve(header, body)


def raise_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:
        pass


def main() -> None:
    fd, ipython = int(sys.argv[1]), sys.argv[2]
    sys.argv = [""]
    sys.path[0] = ""
    raise_oom_score()
    os.environ.pop("PYTHONUNBUFFERED", None)
    interrupts = Interrupts()
    interrupts.install()
    os.set_inheritable(fd, False)
    link = Link(fd, interrupts)
    session = Session(link, interrupts, ipython)
    if ipython == "always":
        session.shell = session.extras.ipython_shell(session)
    link.send(({"op": "ready", "version": sys.version.split()[0], "pid": os.getpid()}, b""))
    session.load_extras()  # after the hello: it takes a few milliseconds
    while True:
        header, body = link.receive()
        if header is None:
            return
        if header["op"] == "run":
            messages = session.run(body.decode("utf-8", "surrogatepass"))
            link.send(*messages)
        elif header["op"] == "load":
            serve_app(session, header, body)
            return
        elif header["op"] == "unload":  # before anything was loaded
            return
        elif header["op"] == "complete":
            answer = session.complete(header)
            link.send(({"op": "completed", "id": header["id"]}, json.dumps(answer).encode()))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    _real_exit(0)
