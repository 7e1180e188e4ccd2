"""The worker while it serves an app: calls come over its link, run on one lasting asyncio loop, and are answered there.

On the image's Python (3.8 or later); loaded by path when the first `load` comes. How an app looks is an adapter's business
(adapter_*.py); here is what holds for all of them: setup, calls and their logs, cancelling, progress, the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import io
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

TYPE_CHECKING = False  # `typing` is not loaded for annotations only
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = struct.Struct("!II")
STDOUT, STDERR, RESULT, ERROR = 1, 2, 3, 4
MAX_OUTPUT_BYTES = 4 << 20  #: of one output or partial, as JSON
MAX_LOG_BYTES = 64 << 10  #: of one log record
MAX_DEPTH = 200
FLUSH_SECONDS = 0.005
PROGRESS_SECONDS = 0.1  #: between two records of progress
STUBBORN_SECONDS = 0.5  #: after it was cancelled, asynchronous code that still blocks is interrupted
_real_exit = os._exit
_NOT_THE_APPS = (HERE, "<frozen", asyncio.__path__[0], importlib.__path__[0])

_SCALARS = (str, int, float, bool)

CURRENT: contextvars.ContextVar[Any] = contextvars.ContextVar("moorage_call", default=None)


class AppError(Exception):
    """What the adapter or the app did wrong, under a code of ours."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call:
    """One `load` or `call`, from its message to its done."""

    def __init__(self, run: str, body: bytes) -> None:
        self.run = run
        self.body = body
        self.task: Any = None
        self.main = False  #: its plain function is running in the main thread: SIGINT interrupts it
        self.begun = False  #: the same, or it has just run and its outcome is on the way to the task
        self.thread = 0  #: in which it runs: a plain function beside other calls
        self.inside = False  #: the app's code is running
        self.cancelled = 0.0  #: when it was asked to end
        self.timed_out = False  #: which is why
        self.over = False
        self.logs: dict[int, list[str]] = {STDOUT: [], STDERR: []}
        self.log_size = 0
        self.progress: bytes | None = None  #: not told yet
        self.told = 0.0
        self.timer = False


class Sender:
    """Whole frames to the runner, from any thread, whatever signals come."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self.pid = os.getpid()
        self.held = 0  #: the main thread is at something that an interrupt must not break off
        self.on_release: Callable[[], None] = lambda: None

    def send(self, *messages: tuple[dict[str, Any], bytes]) -> None:
        if os.getpid() != self.pid:
            return  # a forked child
        out = bytearray()
        for header, body in messages:
            raw = json.dumps(header).encode()
            out += LENGTHS.pack(len(raw), len(body)) + raw + body
        with self.holding(), self._lock:
            self._socket.sendall(out)

    @contextlib.contextmanager
    def holding(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1
            if not self.held:
                self.on_release()


class Logs:
    """What calls print, on its way: by the same link as their results, so that the order between them is exact."""

    def __init__(self, sender: Sender, calls: dict[str, Call], wake: Callable[[], None]) -> None:
        self.dirty = False  #: the flusher's thread looks at that
        self._sender = sender
        self._calls = calls
        self._wake = wake
        self._lock = threading.RLock()
        self._flushed_at = 0.0

    def write(self, call: Call, kind: int, text: str) -> None:
        with self._lock:
            call.logs[kind].append(text)
            call.log_size += len(text)
            self.dirty = True
            if call.log_size >= MAX_LOG_BYTES:
                self.flush_call(call)
        if text[-1:] == "\n" and time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush_call(call)
        else:
            self._wake()

    def flush(self) -> None:
        """Everybody's."""
        self.dirty = False
        for call in list(self._calls.values()):
            self.flush_call(call)

    def flush_call(self, call: Call) -> None:
        self._flushed_at = time.monotonic()
        with self._sender.holding(), self._lock:
            call.log_size = 0
            for kind, pieces in call.logs.items():
                if pieces:
                    call.logs[kind] = []
                    raw = "".join(pieces).encode("utf-8", "backslashreplace")
                    for at in range(0, len(raw), MAX_LOG_BYTES):
                        header = {"op": "output", "run": call.run, "kind": kind}
                        self._sender.send((header, raw[at : at + MAX_LOG_BYTES]))


class CallOutput(io.TextIOBase):
    """sys.stdout or sys.stderr: what is printed goes to the call that prints it, else where it went before."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, kind: int, plain: Any, logs: Logs, pid: int) -> None:
        self._kind = kind
        self._plain = plain
        self._logs = logs
        self._pid = pid

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        call = CURRENT.get()
        if call is None or call.over or os.getpid() != self._pid:
            return int(self._plain.write(text))
        self._logs.write(call, self._kind, text)
        return len(text)

    def flush(self) -> None:
        call = CURRENT.get()
        if call is None or call.over or os.getpid() != self._pid:
            self._plain.flush()
        else:
            self._logs.flush_call(call)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def reconfigure(self, **options: Any) -> None:
        """Programs ask for UTF-8 or for lines at once, and have both already."""

    def fileno(self) -> int:
        return int(self._plain.fileno())

    @property
    def buffer(self) -> Any:
        self.flush()
        return self._plain.buffer


class Server:
    """The app, its loop, and the calls that are there."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.socket: socket.socket = session.link._socket
        self.sender = Sender(self.socket)
        self.sender.on_release = self._released
        self.adapter: Any = None
        self.concurrency = 1
        self.calls: dict[str, Call] = {}
        self.ending = False
        self._buffer = bytearray(session.link._buffer)
        self._pending = False
        self._jobs: deque[Callable[[], None]] = deque()  #: for the main thread, outside of the loop
        self._over = False
        self._threads: ThreadPoolExecutor | None = None
        self._early: dict[str, bool] = {}  #: what was to be cancelled before it began, and whether for its timeout
        self.logs = Logs(self.sender, self.calls, self._wake_flusher)
        session.flusher.outputs.append(self.logs)
        space: Any = sys
        for kind, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
            setattr(space, name, CallOutput(kind, session.flusher.outputs[kind - 1], self.logs, self.sender.pid))
        self.state = _load_module("moorage_session", "moorage_session.py")
        self.state._server = self

    # -- messages --------------------------------------------------------------------------------------------------------
    def serve(self, header: dict[str, Any], body: bytes) -> None:
        """Until the runner says that it is over, or has gone."""
        signal.signal(signal.SIGINT, self._on_signal)
        self.loop.add_reader(self.socket.fileno(), self._on_readable)
        self.loop.call_soon(self._on_message, header, body)
        self.loop.call_soon(self._on_readable)
        while not self._over:
            # of a task of the app's own, which has it as its end
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                self.loop.run_forever()
            while self._jobs:  # also then: what has asked to stop the loop is not heard twice
                self._jobs.popleft()()
        self.session.flusher.flush()

    def _on_readable(self) -> None:
        for header, body in self._take_in():
            self._on_message(header, body)

    def _take_in(self) -> list[tuple[dict[str, Any], bytes]]:
        """All messages that have come. Those that cancel are heeded at once: this runs in a signal handler too."""
        found: list[tuple[dict[str, Any], bytes]] = []
        with self.sender.holding():
            while True:
                try:
                    data = self.socket.recv(1 << 18, socket.MSG_DONTWAIT)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:
                    data = b""
                if not data:
                    _real_exit(1)  # the runner has gone
                self._buffer += data
            while len(self._buffer) >= LENGTHS.size:
                header_length, body_length = LENGTHS.unpack_from(self._buffer)
                end = LENGTHS.size + header_length + body_length
                if len(self._buffer) < end:
                    break
                header = json.loads(bytes(self._buffer[8 : 8 + header_length]))
                body = bytes(self._buffer[8 + header_length : end])
                del self._buffer[:end]
                if header.get("op") == "cancel":
                    self._cancel(header["run"], timed_out=bool(header.get("timed_out")))
                else:
                    found.append((header, body))
        return found

    def _on_message(self, header: dict[str, Any], body: bytes) -> None:
        op = header.get("op")
        if op == "environ":
            os.environ.update(header["values"])
        elif op == "load":
            self._begin(Call(header["run"], body), self._load)
        elif op == "call":
            self._begin(Call(header["run"], body), self._invoke)
        elif op == "unload":
            self.loop.create_task(self._unload())

    def _cancel(self, run: str, *, timed_out: bool = False) -> None:
        call = self.calls.get(run)
        if call is None:  # it is over, or among the messages that have come just now
            if len(self._early) > 1000:
                self._early.clear()
            self._early[run] = timed_out
            return
        call.cancelled = call.cancelled or time.monotonic()
        call.timed_out = timed_out
        self.loop.call_soon_threadsafe(self._cancel_task, call)  # this may be a signal in the midst of its beginning

    @staticmethod
    def _cancel_task(call: Call) -> None:
        if not call.begun:  # else plain code gets KeyboardInterrupt by the signal
            call.task.cancel()

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self.sender.pid:
            raise KeyboardInterrupt  # a forked child, whose link is its parent's
        if self.sender.held:
            self._pending = True
            return
        for header, body in self._take_in():
            self.loop.call_soon_threadsafe(self._on_message, header, body)
        call = CURRENT.get()
        if call is None or not call.inside or not call.cancelled:
            return
        if call.main or time.monotonic() - call.cancelled > STUBBORN_SECONDS:
            raise KeyboardInterrupt

    def _released(self) -> None:
        if self._pending:
            self._pending = False
            self._on_signal(signal.SIGINT, None)

    # -- calls -----------------------------------------------------------------------------------------------------------
    def _begin(self, call: Call, start: Callable[[Call], Any]) -> None:
        """`start` gives a plain function to run, or something to await or to iterate; all of it is the app's code."""
        call.task = self.loop.create_task(self._run(call, start))
        self.calls[call.run] = call  # from here a signal can cancel it: after the first step, which decides about that
        if call.run in self._early:
            self._cancel(call.run, timed_out=self._early.pop(call.run))

    async def _run(self, call: Call, start: Callable[[Call], Any]) -> None:
        """In the call's own context: what the app starts from here prints as this call."""
        CURRENT.set(call)
        value, error = None, None
        try:
            if call.cancelled:
                raise asyncio.CancelledError
            value = await self._inside(call, start(call))
        except BaseException as raised:
            error = raised
        self._finish(call, value, error)

    async def _inside(self, call: Call, program: Any) -> Any:
        call.inside = True
        try:
            if callable(program):
                program = await self._plainly(call, program)
            while inspect.isawaitable(program):
                program = await program
            if hasattr(program, "__aiter__"):
                return await self._partials(call, program)
            return program
        finally:
            call.inside = False

    async def _plainly(self, call: Call, function: Callable[[], Any]) -> Any:
        """A plain function: alone in the main thread, without a running loop; beside other calls in a thread of its own."""
        context = contextvars.copy_context()
        if self.concurrency > 1 and self.adapter is not None:
            value, error = await self._in_thread(call, lambda: context.run(self._drained, call, function))
        else:
            value, error = await self._in_main(call, lambda: context.run(self._interruptibly, call, function))
        if error is not None:
            raise error
        return value

    async def _in_main(self, call: Call, function: Callable[[], Any]) -> Any:
        waiting = self.loop.create_future()

        def job() -> None:
            if waiting.done():  # cancelled before it began
                return
            call.begun = True
            waiting.set_result(_outcome(function))

        self._jobs.append(job)
        self.loop.stop()
        try:
            return await waiting
        finally:
            call.begun = False

    async def _in_thread(self, call: Call, function: Callable[[], Any]) -> Any:
        """A thread that is to end is interrupted, and waited for: nothing of a call goes on when it is over."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="call")
        lock, ended = threading.Lock(), False

        def job() -> Any:
            with lock:
                if ended:
                    return None, KeyboardInterrupt()
                call.thread = threading.get_ident()
            try:
                return _outcome(function)
            finally:
                with lock:
                    call.thread = 0

        running = self.loop.run_in_executor(self._threads, job)
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.done():
                    raise
                with lock:
                    ended = True
                    if call.thread:
                        _interrupt(call.thread)

    def _interruptibly(self, call: Call, function: Callable[[], Any]) -> Any:
        """In the call's context, so that a signal either finds `main` set, or has set `cancelled` before it is looked at."""
        call.main = True
        try:
            if call.cancelled:
                raise KeyboardInterrupt
            return self._drained(call, function)
        finally:
            call.main = False

    def _drained(self, call: Call, function: Callable[[], Any]) -> Any:
        """A generator's items are partial outputs; the last one is the output."""
        value = function()
        if inspect.isgenerator(value):
            last = None
            for last in value:
                self._result(call, "partial", last)
            return last
        return value

    async def _partials(self, call: Call, items: Any) -> Any:
        last = None
        try:
            async for last in items:
                self._result(call, "partial", last)
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()
        return last

    def _result(self, call: Call, key: str, value: Any) -> None:
        body = encoded(key, value, self.state)
        self._flush(call)
        self.sender.send(({"op": "record", "run": call.run, "kind": RESULT}, body))

    def _finish(self, call: Call, value: Any, error: BaseException | None) -> None:
        if os.getpid() != self.sender.pid:
            self.session.flusher.flush()
            _real_exit(0 if error is None else 1)  # a forked child that came out of its call
        kind, body, exit_code, interrupted = RESULT, b"", 0, False
        if error is None:
            try:
                body = encoded("output", value, self.state)
            except BaseException as bad:  # a model of the app's may raise anything
                error = bad
        if error is not None:
            interrupted = bool(call.cancelled) and isinstance(error, (KeyboardInterrupt, asyncio.CancelledError))
            kind, body, exit_code = (
                ERROR,
                self._failure(error, call if interrupted else None),
                130 if interrupted else 1,
            )
        self._flush(call)
        call.over = True
        done = {"op": "done", "run": call.run, "exit_code": exit_code, "interrupted": interrupted}
        self.calls.pop(call.run, None)
        self.sender.send(({"op": "record", "run": call.run, "kind": kind}, body), (done, b""))

    def _flush(self, call: Call) -> None:
        """What was printed and told before comes before."""
        self._tell_progress(call)
        self.logs.flush_call(call)
        for output in self.session.flusher.outputs[:2]:
            with contextlib.suppress(Exception):  # closed by the app
                output.flush()

    def _wake_flusher(self) -> None:
        if not self.session.flusher.awake:
            self.session.flusher.wake()

    def _failure(self, error: BaseException, stopped: Call | None) -> bytes:
        """The JSON of an error record; the traceback of one that was `stopped` says where."""
        whole = json.loads(self.session.extras.failure(_without_our_frames(error)))
        if isinstance(error, AppError):
            whole.update(code=error.code, traceback=[])  # our own frames tell nobody anything
        elif stopped is not None and stopped.timed_out:
            said = "It ran longer than its timeout and was stopped."
            whole.update(ename="TimeoutError", evalue=said, code="execution_timeout")
        elif stopped is not None:
            whole.update(evalue="It was cancelled.")
        elif getattr(error, "moorage_code", None) is not None:
            whole["code"] = error.moorage_code  # type: ignore[attr-defined]
        return json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace")

    # -- the app ---------------------------------------------------------------------------------------------------------
    def _load(self, call: Call) -> Any:
        asked = json.loads(call.body)
        self.concurrency = int(asked.get("concurrency") or 1)

        def make() -> Any:
            with _coded("app_import_failed"):
                adapters = _load_module(f"_moorage_adapter_{asked['adapter']}", f"adapter_{asked['adapter']}.py")
                adapter = adapters.make(_entry(asked["entry"], asked.get("path")), asked.get("options") or {}, self)
            return self._set_up(adapter)

        return make

    def _set_up(self, adapter: Any) -> Any:
        async def finish(program: Any) -> Any:
            with _coded("app_setup_failed"):
                while inspect.isawaitable(program):
                    program = await program
            self.adapter = adapter
            return {"functions": adapter.functions()}

        with _coded("app_setup_failed"):
            return finish(adapter.setup())

    def _invoke(self, call: Call) -> Any:
        if self.adapter is None:
            raise AppError("app_not_loaded", "No app is loaded: its load has failed.")
        try:
            asked = json.loads(call.body)
            function, given = asked.get("function") or "run", asked.get("input")
        except (ValueError, AttributeError, RecursionError):
            raise AppError("input_invalid", "A call is an object with a function and an input.") from None
        call.body = b""
        return self.adapter.call(str(function), given)

    async def _unload(self) -> None:
        """At the end of the session: what still runs is cancelled, then the app may clean up."""
        tasks = [call.task for call in self.calls.values()]
        for call in list(self.calls.values()):
            self._cancel(call.run)
        if tasks:
            await asyncio.wait(tasks)
        try:
            if self.adapter is not None:
                program = self.adapter.unload()
                while inspect.isawaitable(program):
                    program = await program
        except BaseException as error:
            import traceback

            traceback.print_exception(type(error), error, error.__traceback__)
        self._over = True
        self.loop.stop()

    # -- what the app says of itself (moorage_session) --------------------------------------------------------------------
    def progress(self, said: dict[str, Any]) -> None:
        call = self._here()
        if call is None or os.getpid() != self.sender.pid:
            return
        call.progress = encoded("progress", said, self.state)  # it is refused where it is said, and told as it was then
        if time.monotonic() - call.told >= PROGRESS_SECONDS:
            self._tell_progress(call)
        elif not call.timer:
            call.timer = True
            self.loop.call_soon_threadsafe(self.loop.call_later, PROGRESS_SECONDS, self._progress_later, call)

    def _progress_later(self, call: Call) -> None:
        call.timer = False
        if call.run in self.calls:
            self._tell_progress(call)

    def _tell_progress(self, call: Call) -> None:
        said, call.progress = call.progress, None
        if said is not None:
            call.told = time.monotonic()
            self.sender.send(({"op": "record", "run": call.run, "kind": RESULT}, said))

    def end(self) -> None:
        if not self.ending and os.getpid() == self.sender.pid:
            self.ending = True
            self.sender.send(({"op": "end"}, b""))

    def _here(self) -> Call | None:
        """The call whose code this is; a thread of the app's own belongs to the only call that there is."""
        call: Call | None = CURRENT.get()
        if call is None and len(self.calls) == 1:
            call = next(iter(list(self.calls.values())), None)
        return call


def _outcome(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Value and exception: a future is not to carry an exception, for it takes no StopIteration."""
    try:
        return function(), None
    except StopIteration:
        return None, RuntimeError("the function raised StopIteration")
    except BaseException as error:
        return None, error


def _interrupt(thread: int) -> None:
    """Raise KeyboardInterrupt where that thread is, as soon as it is back in Python."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


@contextlib.contextmanager
def _coded(code: str) -> Any:
    """An exception that passes keeps its name, and gets a code."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            if getattr(error, "moorage_code", None) is None and not isinstance(error, AppError):
                error.moorage_code = code  # type: ignore[attr-defined]
        raise


def _entry(entry: str, path: str | None) -> Any:
    """The class or object that is called `module:Name`, below `path`."""
    module_name, _, name = entry.partition(":")
    if not module_name or not name:
        raise AppError("app_import_failed", f"{entry!r} names no class: write it as module:Class.")
    if path:
        if not os.path.isdir(path):
            raise AppError("app_import_failed", f"There is no folder {path} in the session.")
        os.chdir(path)
        if path not in sys.path:
            sys.path.insert(0, path)
    importlib.invalidate_caches()
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise AppError("app_import_failed", f"The module {module_name} has no {name}.")
        found = getattr(found, part)
    return found


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """With what pydantic makes of its models in the place of each, however deep they are."""
    if value is None or type(value) in _SCALARS:  # most of any large output
        return value
    if depth < 0:
        raise AppError("output_not_json", f"The output is nested more than {MAX_DEPTH} levels deep.")
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return plain(value.model_dump(mode="json"), depth - 1)
    if hasattr(value, "__fields__") and hasattr(value, "json") and not isinstance(value, type):  # pydantic 1
        return plain(json.loads(value.json()), depth - 1)
    if isinstance(value, dict):
        return {key: plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth - 1) for item in value]
    return value


def encoded(key: str, value: Any, rules: Any) -> bytes:
    """`{key: value}` as JSON that every reader understands. Raises AppError, with what to do instead."""
    try:
        value = plain(value)
        rules._check(value, MAX_DEPTH)
        body = json.dumps({key: value}, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise AppError("output_not_json", f"The {key} is not JSON: {error}") from None
    except RecursionError:
        raise AppError("output_not_json", f"The {key} is not JSON: it contains itself.") from None
    if len(body) > MAX_OUTPUT_BYTES:
        said = f"The {key} takes {len(body) / (1 << 20):.1f} MiB as JSON, and may take {MAX_OUTPUT_BYTES >> 20} MiB"
        raise AppError("output_too_large", f"{said}: write it to a file, and return its path.")
    return body


def _without_our_frames(error: BaseException) -> BaseException:
    """The traceback begins at the app's own code."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_NOT_THE_APPS):
        frames = frames.tb_next
    return error.with_traceback(frames)


def _load_module(name: str, file: str) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    if name in sys.modules:
        return sys.modules[name]
    path = os.path.join(HERE, file)
    if not os.path.isfile(path):
        raise AppError("invalid_request", f"There is no adapter for that: {file} is missing.")
    spec: Any = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
