"""PID 1 of a session's container: listens to the agent, runs worker and commands, writes their output to rings."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from runner import processes, ring
from runner.files import Files, Refused
from runner.frames import CHUNK, MAX_CHUNK_BYTES, PROTOCOL, BadFrame, FrameBuffer, pack
from runner.lease import Lease, end_now
from runner.loop import READ, WRITE, Loop, Timer
from runner.moorage_session import State, StateBusy, StateDamaged, StateFull
from runner.once import Once
from runner.serving import MODES as SERVING_MODES
from runner.serving import Hands, Serving
from runner.streamed import Line
from runner.terminals import Terminals
from runner.tunnel import Dial, listening

GRACE_SECONDS = 2.0  #: from interrupt to kill, after a timeout
DRAIN_SECONDS = 0.04  #: for output of processes that outlive their parent and hold its pipes
BELL_SECONDS = 0.001  #: a first record waits so long for company
SMALL_READ, PAUSE_SECONDS = 4096, 0.002  #: small writes are collected this long
TEE_BYTES = 1 << 20  #: of each run that the log holds too
MAX_CONNECTIONS = 256
MAX_STREAMS = 32
MAX_DIALS = 128
MAX_QUEUED = 1000
MAX_TYPED_AHEAD = 4 << 20
MAX_BACKLOG = 64 << 20
MAX_STRAYS = 64
BOMB_PROCESSES = 1000  #: so many are ended by one call, not one by one
STREAM_IDLE_SECONDS = 120
ARGUMENT_BYTES = 100 << 10  #: longer scripts go through a memory file
WORKER_FD = 3
SCRIPT_FD = 3
HERE = os.path.dirname(os.path.abspath(__file__))

LATER: Any = object()  #: an operation that answers by itself
Answer = Callable[[dict[str, Any] | None, Refused | None], None]


class Config:
    """config.json of the link directory, read once."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.environ: dict[str, str] = {
            str(k): str(v) for k, v in (data.get("environ") or {}).items() if "\0" not in f"{k}{v}"
        }
        self.workdir = str(data.get("workdir") or "/home/work")
        self.file_roots = [str(root) for root in data.get("file_roots") or []]
        self.quota_bytes: int | None = data.get("quota_bytes")
        self.python: str | None = data.get("python")
        self.ipython = str(data.get("ipython") or "auto")
        self.attempt = int(data.get("attempt") or 1)
        environ = self.environ
        environ.setdefault("PATH", processes.DEFAULT_PATH)
        environ.setdefault("HOME", self.workdir)
        environ.setdefault("USER", "work")
        environ.setdefault("LOGNAME", "work")
        environ.setdefault("LANG", "C.UTF-8")
        environ.setdefault("MPLBACKEND", "agg")
        environ.setdefault("MPLCONFIGDIR", "/tmp/.matplotlib")
        session = os.path.join(os.path.dirname(HERE), "session")
        environ["PYTHONPATH"] = ":".join(p for p in (environ.get("PYTHONPATH"), session) if p)


class Pipe:
    """The reading end of a process's stdout or stderr."""

    def __init__(self, loop: Loop, fd: int, sink: Callable[[memoryview], None]) -> None:
        self._loop = loop
        self.fd = fd
        self.sink = sink
        self.on_end: Callable[[], None] | None = None
        self._read_at = 0.0
        self._pause: Timer | None = None
        loop.watch(fd, READ, self._on_ready)

    @property
    def open(self) -> bool:
        return self.fd >= 0

    def drain(self) -> None:
        """Everything that was written up to now."""
        while self.fd >= 0 and self._read() > 0:
            pass

    def close(self) -> None:
        if self.fd >= 0:
            self._loop.cancel(self._pause)
            self._loop.forget(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _on_ready(self, events: int) -> None:
        size = self._read()
        if 0 < size < SMALL_READ and self.fd >= 0:
            now = time.monotonic()
            if now - self._read_at < 2 * PAUSE_SECONDS:  # a stream of small writes: let them collect
                self._loop.change(self.fd, 0)
                self._pause = self._loop.later(PAUSE_SECONDS, self._go_on)
            self._read_at = now

    def _go_on(self) -> None:
        if self.fd >= 0:
            self._loop.change(self.fd, READ)

    def _read(self) -> int:
        try:
            size = os.readv(self.fd, [_BUFFER])
        except BlockingIOError:
            return 0
        except OSError:
            size = 0
        if size:
            self.sink(_VIEW[:size])
            return size
        self.close()
        if self.on_end is not None:
            self.on_end()
        return 0


_BUFFER = bytearray(ring.MAX_OUTPUT_BYTES)
_VIEW = memoryview(_BUFFER)


class Run:
    """One execution, from its request to its done record."""

    def __init__(
        self, run: str, mode: str, code: str, opts: dict[str, Any], timeout: float | None, out: ring.Ring
    ) -> None:
        self.id = run
        self.mode = mode
        self.code = code
        self.opts = opts
        self.timeout = timeout
        self.ring = out
        self.status = "queued"
        self.started_at: float | None = None
        self.bytes = 0
        self.tee_left = TEE_BYTES
        self.timer: Timer | None = None
        self.bell: Timer | None = None
        self.arms: list[tuple[Connection, int, int]] = []  #: who waits: connection, request, after which record
        self.interrupted = False
        self.timed_out = False
        self.killed = False
        self.oom_before = 0
        self.typed: deque[tuple[bytes, bool]] = deque()  #: input that nobody asked for yet
        # batch only
        self.stages: list[tuple[list[str] | str, bool]] = []  #: program, and whether its failure ends the run
        self.pid = 0
        self.tries = 0  #: to start it, while there was no process to be had
        self.pipes: list[Pipe] = []
        self.stdin = -1
        self.stdin_rest = bytearray()
        self.stdin_eof = False

    def tail(self) -> dict[str, Any]:
        return {"run": self.id, "seq": self.ring.seq, "done": self.status == "done", "status": self.status}


class Worker:
    """The process that runs query cells. Replaced when it dies."""

    def __init__(self) -> None:
        self.state = "absent"  #: absent, starting, ready, failed
        self.version: str | None = None
        self.pid = 0
        self.socket: socket.socket | None = None
        self.frames = FrameBuffer(max_header=1 << 20, max_body=ring.MAX_JSON_BYTES)
        self.pipes: list[Pipe] = []
        self.backlog = bytearray()
        self.mark = ""

    def describe(self) -> dict[str, Any]:
        return {"state": self.state, "version": self.version, "pid": self.pid or None}


class Connection:
    """One peer on the runner's socket: a control connection until it asks for a stream."""

    def __init__(self, supervisor: Supervisor, sock: socket.socket) -> None:
        self.socket = sock
        self.frames = FrameBuffer()
        self.waiting: dict[int, Run | None] = {}  #: arms by request; None is the log
        self._supervisor = supervisor
        self._backlog = bytearray()
        self._fd = sock.fileno()
        sock.setblocking(False)
        supervisor.loop.watch(self._fd, READ, self._on_ready)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        if self._fd < 0:
            return
        data = pack(header, body)
        if not self._backlog:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._supervisor.loop.change(self._fd, READ | WRITE)
        self._backlog += data
        if len(self._backlog) > MAX_BACKLOG:
            self.close()  # it asks and does not listen

    def detach(self) -> socket.socket:
        """Give the socket to a thread."""
        self._supervisor.loop.forget(self._fd)
        self._supervisor.connections.discard(self)
        self._fd = -1
        return self.socket

    def close(self) -> None:
        if self._fd >= 0:
            self.detach().close()
            self._supervisor.forget_arms(self)

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self._backlog:
            try:
                del self._backlog[: self.socket.send(self._backlog)]
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if not self._backlog:
                self._supervisor.loop.change(self._fd, READ)
        if events & ~WRITE == 0:
            return
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.frames.feed(data)
        try:
            while self._fd >= 0 and (frame := self.frames.next()) is not None:
                self._supervisor.on_request(self, *frame)
        except BadFrame:
            self.close()


class Supervisor:
    """All of the runner's state; everything but file operations happens in one thread."""

    def __init__(self, link: str, *, any_peer: bool) -> None:
        self._link = link
        self._any_peer = any_peer
        with open(os.path.join(link, "config.json"), encoding="utf-8") as config:
            self.config = Config(json.load(config))
        self.loop = Loop(self._report)
        self._lease = Lease(self.loop, end_now)
        self._once = Once()
        self.connections: set[Connection] = set()
        self.runs: dict[str, Run] = {}  #: unfinished ones
        self._queue: deque[Run] = deque()
        self._current: Run | None = None  #: what the worker runs
        self._app: Serving | None = None  #: in a session whose main work is an app
        self._worker = Worker()
        self._failures = 0  #: of the worker, before it was ready
        self._streams = 0
        self._dials = 0
        self._file_threads = 0
        self._file_lock = threading.Lock()
        self._file_jobs: deque[Callable[[], None]] = deque()
        self._strays: deque[Pipe] = deque()
        self._completions: dict[int, tuple[Answer, Timer]] = {}
        self._completion_id = 0
        self._log_arms: list[tuple[Connection, int, int]] = []
        self._tees: list[tuple[int, bytes]] = []
        self._since_trim = 0
        self._stopping = False
        self._token = os.urandom(8).hex()  #: in the marks of our processes, so that no other runner's are meant
        self._oom = processes.OomCounter()
        self._process_count = processes.ProcessCounter()
        self._children: dict[int, Callable[[int], None]] = {}
        self._terminals = Terminals(
            self.loop, self._children, self.config.environ, token=self._token, make_room=self._kill_left_over
        )
        self._operations: dict[str, Callable[[Connection, int, dict[str, Any], bytes], Any]] = {
            "hello": self._hello,
            "execute": self._execute,
            "input": self._input,
            "interrupt": self._interrupt,
            "kill": self._kill,
            "terminate": self._terminate,
            "complete": self._complete,
            "arm": self._arm,
            "disarm": self._disarm,
            "status": self._status,
            "note": self._note,
            "lease": self._renew,
            "listening": self._listening,
            "terminals": lambda *_: {"terminals": self._terminals.listed()},
            "environ": self._environ,
            "list": self._list,
            "manage": self._manage,
            "state": self._state_operation,
            "shutdown": self._shutdown,
        }

    # -- start -----------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        processes.protect()
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o022)
        try:
            os.chdir(self.config.workdir)
        except OSError:
            with contextlib.suppress(OSError):
                os.makedirs(self.config.workdir)
            os.chdir(self.config.workdir if os.path.isdir(self.config.workdir) else "/")
        self._watch_children()
        self._start_worker()  # in parallel with everything below
        self.files = Files(self.config.workdir, self.config.file_roots, self.config.quota_bytes)
        self._state = State(self._link)
        self._rings = ring.Rings(os.path.join(self._link, "ring"))
        self._listen()
        self._say_ready()
        self._rings.start_preparing()
        self._say(f"runner {PROTOCOL} started, attempt {self.config.attempt}")
        if self._worker.state == "absent":
            self._say("the image has no python3 or python: only batch runs are possible")
        gc.collect()
        gc.freeze()

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        here = os.open(self._link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/self/fd/{here}/runner.sock"  # the directory's own path may be longer than a socket's may be
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)
        os.close(here)
        self._listener = listener
        self.loop.watch(listener.fileno(), READ, self._on_connect)

    def _say_ready(self) -> None:
        with contextlib.suppress(OSError):  # nobody waits, or the pipe is not there
            path = os.path.join(self._link, "ready")
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.write(fd, b"1")
            finally:
                os.close(fd)

    def _on_connect(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("iII", credentials)[0]
        # a peer in this pid namespace has a pid; the agent, outside of it, has none that could be named here
        if (pid != 0 and not self._any_peer) or len(self.connections) >= MAX_CONNECTIONS or self._stopping:
            sock.close()
            return
        self.connections.add(Connection(self, sock))

    # -- requests --------------------------------------------------------------------------------------------------------
    def on_request(self, connection: Connection, header: dict[str, Any], body: bytes) -> None:
        op, request = header.get("op"), header.get("id")
        if not isinstance(request, int):
            raise BadFrame("a request has a number")
        if op in ("open", "put", "archive", "unpack"):
            self._start_stream(connection, request, header)
            return
        if op == "connect":
            self._start_dial(connection, request, header)
            return
        if op == "process":
            self._attach_process(connection, request, header)
            return
        operation = self._operations.get(str(op))
        key = header.get("key")
        if isinstance(key, str) and not self._once.begin(key, connection, request):
            return
        try:
            if operation is None:
                raise Refused("invalid_request", f"The runner knows no operation {op!r}.")
            result = operation(connection, request, header, body)
        except Refused as refused:
            self._tell(connection, key, _refused(request, refused))
        except Exception as error:
            self._report()
            self._tell(connection, key, _refused(request, Refused("internal", f"The runner failed: {error}")))
        else:
            if result is not LATER:
                self._tell(connection, key, {"id": request, "ok": True, "result": result})

    def _tell(self, connection: Connection, key: object, answer: dict[str, Any]) -> None:
        if isinstance(key, str):
            self._once.end(key, answer)
        connection.send(answer)

    def _hello(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        return {
            "protocol": PROTOCOL,
            "attempt": self.config.attempt,
            "worker": self._worker.describe(),
            "runs": self._describe_runs(),
        }

    def _describe_runs(self) -> dict[str, Any]:
        return {
            run.id: {"mode": run.mode, "status": run.status, "seq": run.ring.seq, "started_at": run.started_at}
            for run in self.runs.values()
        }

    def _note(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        """Something that the host has to say, for the log."""
        self._say(body.decode("utf-8", "replace"))
        self._write_log()
        return {}

    def _renew(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        """The agent has heard of the manager: until then this container may live."""
        until, left = header.get("until"), header.get("left")
        if not isinstance(until, (int, float)) or not isinstance(left, (int, float)):
            raise Refused("invalid_request", "'until' and 'left' are numbers of seconds.")
        return self._lease.renew(float(until), float(left))

    def _status(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        def count() -> dict[str, Any]:
            processes_now = sum(name.isdigit() for name in os.listdir("/proc"))
            return {"disk_bytes": self.files.quota.used(), "processes": processes_now}

        facts = {"worker": self._worker.describe(), "runs": self._describe_runs(), "ring_bytes": self._rings.size}
        self._in_thread(connection, header, lambda: {**facts, **count()})
        return LATER

    def _environ(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        """Variables that have changed: for whatever is started from now on, and for the worker that is there."""
        given = header.get("values")
        if not isinstance(given, dict):
            raise Refused("invalid_request", "'values' is an object.")
        values = {str(k): str(v) for k, v in given.items() if k and "=" not in str(k) and "\0" not in f"{k}{v}"}
        self.config.environ.update(values)
        self._to_worker({"op": "environ", "values": values})
        return {}

    def _execute(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        name, mode, opts = header.get("run"), header.get("mode"), header.get("opts") or {}
        timeout = header.get("timeout_seconds")
        if not isinstance(name, str) or not ring.RUN_ID.fullmatch(name) or name == ring.LOG_RUN:
            raise Refused("invalid_request", "A run id has 1 to 64 letters, digits, '-' or '_'.")
        if mode not in ("query", "batch", *SERVING_MODES) or not isinstance(opts, dict):
            raise Refused("invalid_request", "'mode' is query, batch, load or call, and 'opts' an object.")
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0
        ):
            raise Refused("invalid_request", "'timeout_seconds' is a number above 0.")
        run = self.runs.get(name)
        if run is None and self._rings.get(name) is None:
            run = self._begin(name, mode, body.decode("utf-8", "replace"), opts, timeout)
        if header.get("wait"):
            return self._attach(connection, request, name, 0)
        return run.tail() if run is not None else self._finished_tail(name)

    def _begin(self, name: str, mode: str, code: str, opts: dict[str, Any], timeout: float | None) -> Run:
        if self._stopping:
            raise Refused("runner_lost", "The session is being stopped.")
        if mode == "query":
            self._need_worker()
            if len(self._queue) >= MAX_QUEUED:
                raise Refused("resource_exhausted", f"{MAX_QUEUED} executions wait already; wait for some to end.")
        if mode != "batch":
            self._check_app(mode, code)
        stages = _stages(code, opts) if mode == "batch" else []
        try:
            out = self._rings.create(name)
        except OSError as error:
            raise Refused("resource_exhausted", f"No output can be kept: {error.strerror}.") from None
        run = Run(name, mode, code, opts, timeout, out)
        run.stages = stages
        self.runs[name] = run
        if mode == "batch":
            self._started(run)
            self._next_stage(run)
        elif mode == "serve":
            self._started(run)
            self._app = Serving(run, self._hands())
        elif mode in SERVING_MODES and self._app is not None:
            self._app.add(run)
        else:
            self._queue.append(run)
            if self._current is not None:
                self._record(run, ring.STATUS, b'{"status":"queued"}')
            self._feed_worker()
        return run

    def _check_app(self, mode: str, code: str) -> None:
        """Raises Refused where the session is not one for that."""
        if mode == "serve":
            if self._app is not None or self._current is not None or self._queue:
                raise Refused("invalid_request", "The session does something else already.")
            return
        if (self._app is None) != (mode == "query"):
            if mode == "query":
                raise Refused("invalid_request", "The session serves an app and runs no cells; call its functions.")
            raise Refused("app_not_loaded", "This is no worker session, so no app is loaded in it.")
        if self._app is not None:
            self._app.check(mode, code)
            self._need_worker()

    def _hands(self) -> Hands:
        return Hands(
            started=self._started,
            finish=self._finish,
            record=self._record,
            output=self._output,
            to_worker=self._to_worker,
            signal_worker=self._signal_worker,
            worker_is_ready=lambda: self._worker.state == "ready",
            later=self.loop.later,
            say=self._say,
        )

    def _signal_worker(self, number: int) -> None:
        """An interrupt is for one call: what the app has started beside it is of others, too."""
        if number == signal.SIGKILL:
            processes.signal_group(self._worker.pid, number)
        elif self._worker.pid > 1:
            os.kill(self._worker.pid, number)

    def _need_worker(self) -> None:
        if self._worker.state == "absent":
            raise Refused("no_python", "The image has no Python; run commands with mode 'batch' instead.")
        if self._worker.state == "failed":
            self._failures = 0
            self._start_worker()
            if self._worker.state == "failed":
                raise Refused("resource_exhausted", "No Python process can be started; end some processes first.")

    def _attach(self, connection: Connection, request: int, name: str, after_seq: int) -> Any:
        """Answer now if there is something beyond `after_seq`, or the run is done; else as soon as there is."""
        if name == ring.LOG_RUN:
            if self._rings.log.seq > after_seq:
                return self._finished_tail(name)
            self._log_arms.append((connection, request, after_seq))
            connection.waiting[request] = None
            return LATER
        run = self.runs.get(name)
        if run is None:
            return self._finished_tail(name)
        if run.ring.seq > after_seq and run.bell is None:
            return run.tail()
        run.arms.append((connection, request, after_seq))
        connection.waiting[request] = run
        return LATER

    def _finished_tail(self, name: str) -> dict[str, Any]:
        out = self._rings.get(name)
        if out is None:
            raise Refused("run_not_found", f"There is no run {name!r} here.")
        done = name != ring.LOG_RUN
        return {"run": name, "seq": out.seq, "done": done, "status": "done" if done else "running"}

    def _arm(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        after = header.get("after_seq")
        if not isinstance(after, int):
            raise Refused("invalid_request", "'after_seq' is a number.")
        return self._attach(connection, request, str(header.get("run")), after)

    def _disarm(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        """The waiting request is answered at once with what there is. This one has no answer of its own."""
        armed = header.get("arm")
        if armed in connection.waiting:
            run = connection.waiting.pop(armed)
            if run is None:
                self._log_arms = [arm for arm in self._log_arms if arm[:2] != (connection, armed)]
                connection.send({"id": armed, "ok": True, "result": self._finished_tail(ring.LOG_RUN)})
            else:
                run.arms = [arm for arm in run.arms if arm[:2] != (connection, armed)]
                connection.send({"id": armed, "ok": True, "result": run.tail()})
        return LATER

    def forget_arms(self, connection: Connection) -> None:
        self._log_arms = [arm for arm in self._log_arms if arm[0] is not connection]
        for run in connection.waiting.values():
            if run is not None:
                run.arms = [arm for arm in run.arms if arm[0] is not connection]

    def _input(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        run = self._running(header)
        eof = bool(header.get("eof"))
        if run.mode == "batch":
            if run.stdin < 0 and run.pid:
                raise Refused("not_waiting_for_input", "The program's input is closed.")
            if len(run.stdin_rest) + len(body) > MAX_TYPED_AHEAD:
                raise Refused("resource_exhausted", "The program does not read its input; 4 MiB wait for it already.")
            run.stdin_rest += body
            run.stdin_eof = run.stdin_eof or eof
            self._feed_stdin(run)
            return {}
        if run.mode in SERVING_MODES:
            raise Refused("not_waiting_for_input", "A call has its input from the start; nothing can be fed to it.")
        if sum(len(data) for data, _ in run.typed) + len(body) > MAX_TYPED_AHEAD:
            raise Refused("resource_exhausted", "The code does not read its input; 4 MiB wait for it already.")
        run.typed.append((body, eof))
        if run.status == "waiting_input":
            self._answer_input(run)
        return {}

    def _running(self, header: dict[str, Any]) -> Run:
        run = self.runs.get(str(header.get("run")))
        if run is None:
            if self._rings.get(str(header.get("run"))) is None:
                raise Refused("run_not_found", f"There is no run {header.get('run')!r} here.")
            raise Refused(
                "not_waiting_for_input", "This execution is not running any more, so nothing can be fed to it."
            )
        return run

    def _interrupt(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        name = header.get("run")
        if name is None:
            runs = [run for run in self.runs.values() if run.status != "queued" and run.mode != "serve"]
        else:
            runs = [self.runs[name]] if name in self.runs else []
        for run in runs:
            run.interrupted = True
            self._signal(run, signal.SIGINT)
        return {"interrupted": bool(runs)}

    def _kill(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        run = self.runs.get(str(header.get("run")))
        if run is not None:
            run.killed = True
            self._signal(run, signal.SIGKILL)
        return {"killed": run is not None}

    def _terminate(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        run, grace = self.runs.get(str(header.get("run"))), header.get("grace_seconds")
        if run is not None:
            run.killed = True
            self._signal(run, signal.SIGTERM)
            seconds = float(grace) if isinstance(grace, (int, float)) else 0.0
            self.loop.cancel(run.timer)
            run.timer = self.loop.later(max(0.0, min(seconds, 600.0)), lambda: self._signal(run, signal.SIGKILL))
        return {"running": run is not None}

    def _signal(self, run: Run, number: int) -> None:
        if run.mode in SERVING_MODES:
            self._signal_app(run, number)
        elif run.status == "queued":
            with contextlib.suppress(ValueError):
                self._queue.remove(run)
            self._finish(run, 128 + number, number)
        elif run.mode == "query":
            if self._current is run and self._worker.pid:
                processes.signal_group(self._worker.pid, number)
        elif run.pid:
            processes.signal_group(run.pid, number)

    def _signal_app(self, run: Run, number: int) -> None:
        """Of what the app does, one call can be asked to end; killing it ends all of it."""
        if self._app is None:
            return
        if run.status == "queued":
            self._app.end_queued(run, number)
        elif number in (signal.SIGINT, signal.SIGTERM) and run is not self._app.main:
            self._app.ask_to_end(run)
        elif number == signal.SIGKILL and self._app.holds_worker:
            processes.signal_group(self._worker.pid, number)

    def _complete(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        if self._worker.state == "absent":
            raise Refused("no_python", "The image has no Python, so nothing can be completed.")
        # a worker that is only starting finds the question when it is ready
        able = self._worker.state in ("starting", "ready") and self._app is None
        if self._current is not None or self._queue or not able or len(self._completions) > 16:
            return {"suggestions": [], "start": 0, "end": 0, "busy": True}
        self._completion_id += 1
        number = self._completion_id

        def answer(result: dict[str, Any] | None, refused: Refused | None) -> None:
            connection.send({"id": request, "ok": True, "result": result})

        timer = self.loop.later(3.0, lambda: self._give_up_completion(number))
        self._completions[number] = (answer, timer)
        fields = {key: header.get(key) for key in ("row", "col", "line", "post")}
        self._to_worker({"op": "complete", "id": number, "code": body.decode("utf-8", "replace"), **fields})
        return LATER

    def _give_up_completion(self, number: int) -> None:
        answer, _ = self._completions.pop(number)
        answer({"suggestions": [], "start": 0, "end": 0, "busy": True}, None)
        if self._current is None and self._worker.pid and self._worker.state == "ready":
            processes.signal_group(self._worker.pid, signal.SIGINT)

    def _list(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        path, cursor, limit = header.get("path") or ".", header.get("cursor"), header.get("limit")
        limit = limit if isinstance(limit, int) else 100
        self._in_thread(connection, header, lambda: self.files.page(path, cursor, limit))
        return LATER

    def _manage(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        args = header.get("arguments")
        arguments = args if isinstance(args, dict) else {}
        self._in_thread(connection, header, lambda: self.files.manage(str(header.get("operation")), arguments))
        return LATER

    def _state_operation(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        self._in_thread(connection, header, lambda: _on_state(self._state, header))
        return LATER

    def _in_thread(self, connection: Connection, header: dict[str, Any], work: Callable[[], Any]) -> None:
        request, key = header["id"], header.get("key")

        def job() -> None:
            answer: dict[str, Any]
            try:
                answer = {"id": request, "ok": True, "result": work()}
            except Refused as refused:
                answer = _refused(request, refused)
            except RecursionError:
                answer = _refused(request, Refused("file_error", "The folders are nested too deeply."))
            except OSError as error:
                answer = _refused(request, Refused("file_error", f"{error.strerror}."))
            except Exception as error:
                answer = _refused(request, Refused("internal", f"The runner failed: {error}"))
            self.loop.from_thread(lambda: self._tell(connection, key, answer))

        with self._file_lock:
            self._file_jobs.append(job)
            if self._file_threads >= 4:
                return
            try:
                threading.Thread(target=self._do_file_jobs, daemon=True).start()
                self._file_threads += 1
            except RuntimeError:
                if not self._file_threads:
                    self._file_jobs.pop()
                    raise Refused("resource_exhausted", "The session has no free processes; end some first.") from None

    def _do_file_jobs(self) -> None:
        while True:
            with self._file_lock:
                if not self._file_jobs:
                    self._file_threads -= 1
                    return
                job = self._file_jobs.popleft()
            job()

    # -- ports of the container -------------------------------------------------------------------------------------------
    def _start_dial(self, connection: Connection, request: int, header: dict[str, Any]) -> None:
        if self._dials >= MAX_DIALS:
            busy = Refused("resource_exhausted", "Too many connections to the session are being made; try again.")
            connection.send(_refused(request, busy))
            return
        self._dials += 1
        Dial(self.loop, connection.detach(), request, header.get("port"), self._end_dial).start()

    def _end_dial(self) -> None:
        self._dials -= 1

    def _listening(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        port = header.get("port")
        if not isinstance(port, int):
            raise Refused("invalid_request", "A port is a number from 1 to 65535.")
        return {"listening": listening(port)}

    # -- processes that are streamed --------------------------------------------------------------------------------------
    def _attach_process(self, connection: Connection, request: int, header: dict[str, Any]) -> None:
        if self._stopping:
            connection.send(_refused(request, Refused("runner_lost", "The session is being stopped.")))
            return
        rest = connection.frames.rest()
        line = Line(self.loop, connection.detach(), rest)
        try:
            self._terminals.open(request, header, line)
        except Refused as refused:
            line.send(pack(_refused(request, refused)))
            line.finish()

    # -- connections that carry one file or archive ----------------------------------------------------------------------
    def _start_stream(self, connection: Connection, request: int, header: dict[str, Any]) -> None:
        rest = connection.frames.rest()
        if self._streams >= MAX_STREAMS:
            busy = Refused(
                "resource_exhausted", f"{MAX_STREAMS} transfers are going on in this session; wait for one to end."
            )
            connection.send(_refused(request, busy))
            return
        sock = connection.detach()
        self._streams += 1

        def serve() -> None:
            try:
                _Stream(self.files, sock, request, rest, self._say_from_thread).serve(header)
            finally:
                sock.close()
                self.loop.from_thread(self._end_stream)

        try:
            threading.Thread(target=serve, daemon=True).start()
        except RuntimeError:
            self._streams -= 1
            full = Refused("resource_exhausted", "The session has no free processes; end some first.")
            with contextlib.suppress(OSError):
                sock.send(pack(_refused(request, full)))
            sock.close()

    def _end_stream(self) -> None:
        self._streams -= 1

    # -- output ------------------------------------------------------------------------------------------------------------
    def _output(self, run: Run, kind: int, data: memoryview) -> None:
        run.bytes += len(data)
        if run.tee_left > 0:
            self._tee(kind, bytes(data[: run.tee_left]))
            run.tee_left -= len(data)
        self._record(run, kind, data)

    def _record(self, run: Run, kind: int, payload: bytes | memoryview) -> None:
        seq = run.ring.append(kind, payload)
        if run.bell is None and run.arms and any(seq > after_seq for _, _, after_seq in run.arms):
            run.bell = self.loop.later(BELL_SECONDS, lambda: self._ring_bell(run))

    def _ring_bell(self, run: Run) -> None:
        self.loop.cancel(run.bell)
        run.bell = None
        tail, arms = run.tail(), run.arms
        run.arms = []
        for arm in arms:
            connection, request, after_seq = arm
            if tail["seq"] > after_seq or tail["done"]:
                connection.waiting.pop(request, None)
                records = bytes(run.ring.recent or b"") if tail["done"] and not after_seq else b""
                connection.send({"id": request, "ok": True, "result": tail}, records)
            else:
                run.arms.append(arm)

    def _tee(self, kind: int, data: bytes) -> None:
        """To the log, when there is nothing more urgent."""
        if not self._tees:
            self.loop.idle(self._write_log)
        self._tees.append((kind, data))

    def _write_log(self) -> None:
        tees, self._tees = self._tees, []
        for kind, data in tees:
            self._rings.log.append(kind, data)
        arms, self._log_arms = self._log_arms, []
        for connection, request, _ in arms:
            connection.waiting.pop(request, None)
            connection.send({"id": request, "ok": True, "result": self._finished_tail(ring.LOG_RUN)})
        self._since_trim += 1
        if self._since_trim >= 256:
            self._since_trim = 0
            self._rings.trim()

    def _say(self, message: str) -> None:
        self._tee(ring.STDERR, f"[runner] {message}\n".encode("utf-8", "replace")[: ring.MAX_OUTPUT_BYTES])

    def _say_from_thread(self, message: str) -> None:
        self.loop.from_thread(lambda: self._say(message))

    def _report(self) -> None:
        """An exception in a callback: the runner goes on, the log says what happened."""
        text = traceback.format_exc()
        with contextlib.suppress(Exception):
            self._say(f"internal error: {text}")

    # -- the life of a run ---------------------------------------------------------------------------------------------------
    def _started(self, run: Run) -> None:
        run.status = "running"
        run.started_at = time.time()
        run.oom_before = self._oom.read()
        if run.timeout is not None:
            run.timer = self.loop.later(run.timeout, lambda: self._on_timeout(run))

    def _on_timeout(self, run: Run) -> None:
        run.timed_out = True
        if self._process_count.read() > BOMB_PROCESSES:
            self._end_bomb()
            return
        self._signal(run, signal.SIGINT)
        run.timer = self.loop.later(GRACE_SECONDS, lambda: self._signal(run, signal.SIGKILL))

    def _finish(
        self, run: Run, exit_code: int | None, number: int | None, *, lost: bool = False, reason: str | None = None
    ) -> None:
        """Write the end. `lost`: the worker died with the run in it."""
        if run.status == "done":
            return
        self.loop.cancel(run.timer)
        now = time.time()
        run.status = "done"
        run.ring.finish(
            {
                "exit_code": exit_code,
                "signal": number,
                "reason": reason or self._reason(run, exit_code, number, lost),
                "namespace_lost": lost,
                "started_at": run.started_at,
                "finished_at": now,
                "bytes": run.bytes,
            },
            now,
        )
        del self.runs[run.id]
        self._close_stdin(run)
        self._ring_bell(run)
        run.ring.forget()
        self.loop.idle(self._rings.prepare)
        self._since_trim += 1 + (run.ring.size >> 20)
        if self._since_trim >= 256:
            self._since_trim = 0
            self.loop.idle(self._rings.trim)

    def _reason(self, run: Run, exit_code: int | None, number: int | None, lost: bool) -> str:
        if run.timed_out:
            return "timeout"
        if run.killed:
            return "killed"
        if (number == signal.SIGKILL or exit_code == 137) and self._oom.read() > run.oom_before:
            return "out_of_memory"
        if run.interrupted and (number == signal.SIGINT or exit_code == 130):
            return "interrupted"
        if lost:
            return "crashed"
        if number is not None:
            return "killed" if number in (signal.SIGKILL, signal.SIGTERM) else "crashed"
        return "finished"

    # -- batch ---------------------------------------------------------------------------------------------------------------
    def _next_stage(self, run: Run) -> None:
        program, _ = run.stages[0]
        if run.killed:
            self._finish(run, 137, signal.SIGKILL)
            return
        more = run.opts.get("environ")
        own = {str(k): str(v) for k, v in more.items() if "\0" not in f"{k}{v}"} if isinstance(more, dict) else {}
        environ = {**self.config.environ, **own, "MOORAGE_RUN": self._mark(run)}
        script = -1
        try:
            argv, script = _command(program)
            if "/" not in argv[0]:
                found = processes.find_program((argv[0],), environ["PATH"])
                if found is None:
                    raise FileNotFoundError(errno.ENOENT, "not found on PATH")
                argv = [found, *argv[1:]]
            out, out_w = processes.pipe()
            err, err_w = processes.pipe()
            descriptors = {1: out_w, 2: err_w}
            stdin = -1
            if run.opts.get("stdin", True):
                stdin_r, stdin = os.pipe()
                stdin_r, stdin = processes.high(stdin_r), processes.high(stdin)
                os.set_blocking(stdin, False)
                descriptors[0] = stdin_r
            if script >= 0:
                descriptors[SCRIPT_FD] = script
            try:
                run.pid = processes.spawn(argv, environ, descriptors)
            except OSError:
                os.close(out)
                os.close(err)
                if stdin >= 0:
                    os.close(stdin)
                raise
            finally:
                for fd in descriptors.values():
                    os.close(fd)
        except OSError as error:
            if error.errno == errno.EAGAIN and run.tries < 5:
                run.tries += 1
                self._kill_left_over()
                self.loop.later(0.02 * run.tries, lambda: self._next_stage(run))
                return
            what = program if isinstance(program, list) else ["/bin/sh"]
            message = f"moorage: {what[0]!r} cannot be started: {error.strerror}\n".encode("utf-8", "replace")
            self._output(run, ring.STDERR, memoryview(message))
            code = 127 if error.errno == errno.ENOENT else 126
            self.loop.idle(lambda: self._finish(run, code, None))
            return
        self._close_stdin(run)
        run.stdin = stdin
        run.pipes = [
            Pipe(self.loop, out, lambda data: self._output(run, ring.STDOUT, data)),
            Pipe(self.loop, err, lambda data: self._output(run, ring.STDERR, data)),
        ]
        self._children[run.pid] = lambda status: self._stage_exited(run, status)
        self._feed_stdin(run)

    def _stage_exited(self, run: Run, status: int) -> None:
        exit_code, number = processes.exit_of(status)
        if run.killed or run.timed_out:
            processes.signal_group(run.pid, signal.SIGKILL)  # what ignored the interrupt, or forks on
            self._kill_strays(lambda mark: mark == self._mark(run))
        run.pid = 0
        for pipe in run.pipes:
            pipe.drain()

        def finish() -> None:
            self.loop.cancel(timer)
            for pipe in run.pipes:
                pipe.on_end = None
                pipe.drain()
                self._to_log_only(pipe)
            run.pipes = []
            _, needed = run.stages.pop(0)
            if (
                run.stages
                and not run.killed
                and not run.timed_out
                and not run.interrupted
                and (exit_code == 0 or not needed)
            ):
                self._next_stage(run)
            else:
                self._finish(run, exit_code, number)

        def on_end() -> None:
            if not any(pipe.open for pipe in run.pipes):
                finish()

        timer = self.loop.later(DRAIN_SECONDS, finish)
        for pipe in run.pipes:
            pipe.on_end = on_end
        on_end()

    def _alive(self) -> set[str]:
        """The marks of processes that belong to something that goes on."""
        return {*map(self._mark, self.runs.values()), self._worker.mark, *self._terminals.marks}

    def _mark(self, run: Run) -> str:
        return f"{run.id}.{self._token}"

    def _end_bomb(self) -> None:
        self._say(f"a run that was to end has left more than {BOMB_PROCESSES} processes: all processes are killed")
        processes.kill_everything()

    def _kill_left_over(self) -> None:
        self._kill_strays(lambda mark: mark.endswith(self._token) and mark not in self._alive())

    def _kill_strays(self, chosen: Callable[[str], bool]) -> None:
        if self._process_count.read() > BOMB_PROCESSES:
            self._end_bomb()
            return
        spared = {run.pid for run in self.runs.values()} | {self._worker.pid} | self._terminals.pids
        for _ in range(3):
            if not processes.kill_marked(chosen, spared):
                return
            self.reap()
        if processes.kill_marked(chosen, spared):
            self._say("processes of an ended run fork faster than they can be killed: all processes are killed")
            processes.kill_everything()

    def _to_log_only(self, pipe: Pipe) -> None:
        """A process that outlived its run goes on talking, to the log."""
        if not pipe.open:
            return
        budget = [TEE_BYTES]

        def sink(data: memoryview) -> None:
            if budget[0] > 0:
                self._tee(ring.STDOUT, bytes(data))
                budget[0] -= len(data)

        pipe.sink = sink
        self._strays.append(pipe)
        if len(self._strays) > MAX_STRAYS:
            self._strays = deque(stray for stray in self._strays if stray.open)
            if len(self._strays) > MAX_STRAYS:
                self._strays.popleft().close()

    def _feed_stdin(self, run: Run) -> None:
        if run.stdin < 0:
            return
        try:
            while run.stdin_rest:
                del run.stdin_rest[: os.write(run.stdin, run.stdin_rest)]
        except BlockingIOError:
            with contextlib.suppress(FileExistsError):
                self.loop.watch(run.stdin, WRITE, lambda _: self._feed_stdin(run))
            return
        except OSError:
            run.stdin_rest.clear()
            self._close_stdin(run)
            return
        self.loop.forget(run.stdin)
        if run.stdin_eof:
            self._close_stdin(run)

    def _close_stdin(self, run: Run) -> None:
        if run.stdin >= 0:
            self.loop.forget(run.stdin)
            os.close(run.stdin)
            run.stdin = -1

    # -- worker --------------------------------------------------------------------------------------------------------------
    def _start_worker(self) -> None:
        worker = self._worker = Worker()
        environ = {key: value for key, value in self.config.environ.items() if key != "PYTHONUNBUFFERED"}
        worker.mark = environ["MOORAGE_RUN"] = f"worker-{time.monotonic_ns()}.{self._token}"
        python = self.config.python or processes.find_program(("python3", "python"), environ["PATH"])
        if python is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        out, out_w = processes.pipe()
        err, err_w = processes.pipe()
        their_fd = processes.high(theirs.detach())
        argv = [python, os.path.join(HERE, "worker.py"), str(WORKER_FD), self.config.ipython]
        try:
            worker.pid = processes.spawn(argv, environ, {1: out_w, 2: err_w, WORKER_FD: their_fd})
        except OSError as error:
            ours.close()
            os.close(out)
            os.close(err)
            worker.state = "failed"
            self._worker_failed(error)
            return
        finally:
            for fd in (out_w, err_w, their_fd):
                os.close(fd)
        worker.state = "starting"
        worker.socket = ours
        ours.setblocking(False)
        worker.pipes = [
            Pipe(self.loop, out, lambda data: self._from_pipe(worker, ring.STDOUT, data)),
            Pipe(self.loop, err, lambda data: self._from_pipe(worker, ring.STDERR, data)),
        ]
        self.loop.watch(ours.fileno(), READ, lambda events: self._on_worker(worker, events))
        self._children[worker.pid] = lambda status: self._worker_exited(worker, status)

    def _worker_failed(self, error: OSError) -> None:
        self._failures += 1
        self._say(f"no worker can be started: {error.strerror}")
        if error.errno == errno.EAGAIN and self._failures <= 5:
            self._say("the session has no free processes: all processes are killed")
            processes.kill_everything()
            self._worker.state = "starting"
            self.loop.later(0.05, self._start_worker)
        elif self._app is not None and self._app.holds_worker:
            self._app.worker_exited(1, None)
        elif self._queue:
            for run in list(self._queue):
                self._queue.remove(run)
                self._finish(run, None, None, lost=True)

    def _from_pipe(self, worker: Worker, kind: int, data: memoryview) -> None:
        run = self._app.owner_of_output() if self._app is not None else self._current
        if run is not None and worker is self._worker:
            self._output(run, kind, data)
        else:
            self._tee(kind, bytes(data))

    def _to_worker(self, header: dict[str, Any], body: bytes = b"") -> None:
        worker = self._worker
        if worker.socket is None:
            return
        data = pack(header, body)
        if not worker.backlog:
            try:
                data = data[worker.socket.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # it dies; that is noticed elsewhere
            if data:
                self.loop.change(worker.socket.fileno(), READ | WRITE)
        worker.backlog += data

    def _feed_worker(self) -> None:
        if self._current is not None or not self._queue or self._worker.state != "ready":
            return
        run = self._current = self._queue.popleft()
        if run.ring.seq:  # it was said to be queued
            self._record(run, ring.STATUS, b'{"status":"running"}')
        self._started(run)
        self._to_worker({"op": "run", "run": run.id}, run.code.encode("utf-8", "replace"))
        run.code = ""

    def _on_worker(self, worker: Worker, events: int) -> None:
        assert worker.socket is not None
        if events & WRITE and worker.backlog:
            with contextlib.suppress(OSError):
                del worker.backlog[: worker.socket.send(worker.backlog)]
            if not worker.backlog:
                self.loop.change(worker.socket.fileno(), READ)
            if events == WRITE:
                return
        try:
            data = worker.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if not data:
                raise BadFrame("it closed its connection")
            worker.frames.feed(data)
            while (frame := worker.frames.next()) is not None:
                self._on_message(worker, *frame)
        except BadFrame as error:
            self.loop.forget(worker.socket.fileno())
            if worker.pid:
                if self._current is not None:
                    self._say(f"the worker is killed: {error}")
                # it may be on its way out with an exit code of its own
                self.loop.later(DRAIN_SECONDS, lambda: processes.signal_group(worker.pid, signal.SIGKILL))

    def _on_message(self, worker: Worker, header: dict[str, Any], body: bytes) -> None:
        op = header.get("op")
        if op == "ready":
            if worker.state == "starting":
                worker.state = "ready"
                worker.version = str(header.get("version"))[:64]
                self._failures = 0
                self._feed_worker()
                if self._app is not None:
                    self._app.feed()
            return
        if op == "completed":
            answer = self._completions.pop(header.get("id", 0), None)
            if answer is not None:
                self.loop.cancel(answer[1])
                answer[0](_completion(body), None)
            return
        run = self._current
        if run is None and self._app is None:
            return
        for pipe in worker.pipes:
            pipe.drain()  # what was printed before this message comes before it
        if self._app is not None:
            if not self._app.on_message(header, body):
                raise BadFrame("it sent a message that it may not send")
            return
        assert run is not None
        if op == "record":
            kind = header.get("kind")
            if kind not in (ring.RESULT, ring.ERROR):
                raise BadFrame("it sent a record of a kind that it may not send")
            self._record(run, kind, body)
            if header.get("ack"):
                self._to_worker({"op": "ack"})
        elif op == "input":
            if run.typed:
                self._answer_input(run)
                return
            run.status = "waiting_input"
            request = {"prompt": str(header.get("prompt"))[:4096], "password": bool(header.get("password"))}
            self._record(run, ring.INPUT_REQUEST, json.dumps(request).encode())
            self._ring_bell(run)
        elif op == "done":
            code = header.get("exit_code")
            self._current = None
            self._finish(run, code & 0xFF if isinstance(code, int) else 1, None)
            self._feed_worker()

    def _answer_input(self, run: Run) -> None:
        data, eof = run.typed.popleft()
        if run.status == "waiting_input":
            run.status = "running"
            self._record(run, ring.STATUS, b'{"status":"running"}')
        self._to_worker({"op": "input", "eof": eof}, data)

    def _worker_exited(self, worker: Worker, status: int) -> None:
        exit_code, number = processes.exit_of(status)
        pid, worker.pid = worker.pid, 0
        was, worker.state = worker.state, "failed"  # from here it is handed nothing more
        run = self._current if worker is self._worker else None
        if run is not None and (run.killed or run.timed_out):
            processes.signal_group(pid, signal.SIGKILL)
        for pipe in worker.pipes:
            pipe.drain()
        if worker.socket is not None:
            # what it still said: an answer may have been on its way
            with contextlib.suppress(OSError):  # nothing more for now: what it has forked holds the other end
                while data := worker.socket.recv(1 << 16):
                    worker.frames.feed(data)
            with contextlib.suppress(BadFrame):
                while (frame := worker.frames.next()) is not None:
                    self._on_message(worker, *frame)
            self.loop.forget(worker.socket.fileno())
            worker.socket.close()
            worker.socket = None
        run = self._current if worker is self._worker else None
        self._current = None
        for pipe in worker.pipes:
            self._to_log_only(pipe)
        for answer, timer in self._completions.values():
            self.loop.cancel(timer)
            answer({"suggestions": [], "start": 0, "end": 0, "busy": True}, None)
        self._completions.clear()
        if run is not None:
            self._finish(run, exit_code, number, lost=True)
        app = self._app
        if app is not None and app.holds_worker and worker is self._worker and not self._stopping:
            app.worker_exited(exit_code, number)
            return
        if self._stopping or worker is not self._worker:
            return
        self._say(f"the worker ended (exit code {exit_code}); a new one is started")
        if was == "starting":
            self._failures += 1
            if self._failures >= 3:
                self._say("the image's Python does not start: query runs are not possible")
                for waiting in list(self._queue):
                    self._queue.remove(waiting)
                    self._finish(waiting, exit_code, number, lost=True)
                return
        self._start_worker()

    # -- children ------------------------------------------------------------------------------------------------------------
    def _watch_children(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # PID 1 takes no signal that it has no handler for

        def on_signal(events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
            self.reap()

        self.loop.watch(reader, READ, on_signal)

    def reap(self) -> None:
        """All children that have ended, adopted ones too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            on_exit = self._children.pop(pid, None)
            if on_exit is not None:
                try:
                    on_exit(status)
                except Exception:
                    self._report()

    # -- end -----------------------------------------------------------------------------------------------------------------
    def _shutdown(self, connection: Connection, request: int, header: dict[str, Any], body: bytes) -> Any:
        grace = header.get("grace_seconds")
        grace = float(grace) if isinstance(grace, (int, float)) else 0.0
        self._stopping = True
        deadline = time.monotonic() + max(0.0, min(grace, 600.0))
        for run in list(self.runs.values()):
            run.killed = True
            self._signal(run, signal.SIGTERM)
        if self._app is not None:
            self._app.shutdown()
        if self._worker.pid and not (self._app is not None and self._app.holds_worker):
            processes.signal_group(self._worker.pid, signal.SIGTERM)
        self._terminals.hang_up()

        def wait() -> None:
            main = self._app.main if self._app is not None else None
            left = [run for run in self.runs.values() if run is not main]
            if (left or self._worker.pid) and time.monotonic() < deadline:
                self.loop.later(0.01, wait)
                return
            for run in list(self.runs.values()):
                self._signal(run, signal.SIGKILL)
            if self._worker.pid:
                processes.signal_group(self._worker.pid, signal.SIGKILL)
            processes.kill_everything()
            self.loop.later(DRAIN_SECONDS, finish)

        def finish() -> None:
            for run in list(self.runs.values()):
                self._finish(run, 137, signal.SIGKILL, lost=run.mode != "batch")
            self._say("the runner ends")
            self._write_log()
            connection.send({"id": request, "ok": True, "result": {}})
            self.loop.stop()

        wait()
        return LATER


class _Stream:
    """One file or archive, in a thread of its own."""

    def __init__(
        self, files: Files, sock: socket.socket, request: int, rest: bytes, say: Callable[[str], None]
    ) -> None:
        self._files = files
        self._socket = sock
        self._request = request
        self._rest = rest
        self._say = say
        sock.setblocking(True)
        sock.settimeout(STREAM_IDLE_SECONDS)

    def serve(self, header: dict[str, Any]) -> None:
        try:
            if header["op"] == "open":
                self._open(header)
            elif header["op"] == "put":
                self._put(header)
            elif header["op"] == "unpack":
                self._unpack(header)
            else:
                self._archive(header)
        except Refused as refused:
            self._answer(_refused(self._request, refused))
        except (ConnectionError, TimeoutError):
            pass  # the other side has gone; nothing was kept
        except Exception as error:
            self._answer(_refused(self._request, Refused("internal", f"The runner failed: {error}")))

    def _answer(self, header: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(pack(header))

    def _open(self, header: dict[str, Any]) -> None:
        fd, facts = self._files.open(header.get("path", ""))
        try:
            socket.send_fds(self._socket, [pack({"id": self._request, "ok": True, "result": facts})], [fd])
        finally:
            os.close(fd)

    def _put(self, header: dict[str, Any]) -> None:
        size, mode, digest = header.get("size"), header.get("mode"), header.get("sha256")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            raise Refused("invalid_request", "'size' is a number of bytes.")
        if mode is not None and (not isinstance(mode, int) or not 0 <= mode <= 0o7777):
            raise Refused("invalid_request", "'mode' is permission bits, from 0 to 0o7777.")
        facts = self._files.put(
            header.get("path", ""),
            self._pieces,
            size=size,
            mode=mode,
            overwrite=bool(header.get("overwrite", True)),
            sha256=digest if isinstance(digest, str) else None,
        )
        self._answer({"id": self._request, "ok": True, "result": facts})

    def _unpack(self, header: dict[str, Any]) -> None:
        from runner.unpack import Limits, unpack

        path, overwrite = header.get("path", ""), bool(header.get("overwrite", True))
        counts = unpack(self._files, path, self._pieces, limits=Limits(), overwrite=overwrite)
        self._answer({"id": self._request, "ok": True, "result": counts})

    def _pieces(self) -> Iterator[memoryview]:
        """What comes, until its end is announced; a connection that breaks off before is a failed transfer."""
        buffer = bytearray(1 << 20)
        view = memoryview(buffer)
        while True:
            (left,) = CHUNK.unpack(self._exactly(CHUNK.size))
            if left == 0:
                return
            if left > MAX_CHUNK_BYTES:
                raise Refused("invalid_request", "A piece of a file is too large.")
            while left:
                if self._rest:
                    piece, self._rest = self._rest[:left], self._rest[left:]
                    left -= len(piece)
                    yield memoryview(piece)
                    continue
                got = self._socket.recv_into(view[: min(left, len(buffer))])
                if not got:
                    raise ConnectionResetError
                left -= got
                yield view[:got]

    def _exactly(self, size: int) -> bytes:
        data, self._rest = self._rest[:size], self._rest[size:]
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    def _archive(self, header: dict[str, Any]) -> None:
        paths = header.get("paths")
        if not isinstance(paths, list) or not paths or len(paths) > 10_000:
            raise Refused("invalid_request", "'paths' is a list of 1 to 10,000 paths.")
        archive = self._files.archive(paths)
        left_out: list[str] = []
        pending = bytearray()

        def flush() -> None:
            if pending:
                self._socket.sendall(CHUNK.pack(len(pending)) + pending)
                pending.clear()

        def send(data: bytes) -> None:
            pending.extend(data)
            if len(pending) >= 1 << 18:
                flush()

        def send_file(fd: int, size: int) -> None:
            if size < 1 << 16:
                data = os.pread(fd, size, 0)
                send(data + b"\0" * (size - len(data)))
                return
            flush()
            offset = 0
            while offset < size:
                piece = min(size - offset, MAX_CHUNK_BYTES)
                self._socket.sendall(CHUNK.pack(piece))
                sent = 0
                while sent < piece:
                    count = self._send_part(fd, offset + sent, piece - sent)
                    if not count:  # it has shrunk
                        count = min(piece - sent, 1 << 16)
                        self._socket.sendall(b"\0" * count)
                    sent += count
                offset += piece

        try:
            self._answer({"id": self._request, "ok": True, "result": {}})
            archive.write(send, send_file, left_out)
            flush()
            self._socket.sendall(CHUNK.pack(0))
        finally:
            archive.close()
        if left_out:
            self._say(f"left out of an archive: {'; '.join(left_out[:20])}")

    def _send_part(self, fd: int, offset: int, size: int) -> int:
        # the socket has a timeout, so it does not block below: a full one is waited for with an ordinary send
        try:
            return os.sendfile(self._socket.fileno(), fd, offset, size)
        except BlockingIOError:
            data = os.pread(fd, min(size, 1 << 18), offset)
            self._socket.sendall(data)
            return len(data)


def _stages(code: str, opts: dict[str, Any]) -> list[tuple[list[str] | str, bool]]:
    """What a batch run does, in order: clean (may fail), build, and the main command."""
    argv = opts.get("argv")
    stages: list[tuple[list[str] | str, bool]] = []
    for name in ("clean", "build"):
        step = opts.get(name)
        if isinstance(step, str) and step.strip():
            stages.append((step, name == "build"))
    if isinstance(argv, list) and argv and all(isinstance(arg, str) and "\0" not in arg for arg in argv):
        stages.append((argv, True))
    else:
        main = opts.get("exec")
        stages.append((main if isinstance(main, str) and main.strip() else code, True))
    if any(isinstance(stage, str) and "\0" in stage for stage, _ in stages):
        raise Refused("invalid_request", "A command may not hold NUL.")
    return stages


def _command(program: list[str] | str) -> tuple[list[str], int]:
    """What to start, and the descriptor of a script that it reads (-1: none)."""
    if isinstance(program, list):
        return program, -1
    raw = program.encode("utf-8", "replace")
    if not raw.startswith(b"#!") and len(raw) < ARGUMENT_BYTES:
        return ["/bin/sh", "-c", program], -1
    interpreter = ["/bin/sh"]
    if raw.startswith(b"#!"):
        interpreter = raw[2:].split(b"\n", 1)[0].decode("utf-8", "replace").strip().split(None, 1) or interpreter
    fd = os.memfd_create("script", os.MFD_CLOEXEC)
    fd = processes.high(fd)
    view = memoryview(raw)
    while view:
        view = view[os.write(fd, view) :]
    return [*interpreter, f"/dev/fd/{SCRIPT_FD}"], fd


def _completion(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
        suggestions = [str(item)[:1000] for item in data["suggestions"][:500]]
        return {"suggestions": suggestions, "start": int(data["start"]), "end": int(data["end"]), "busy": False}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"suggestions": [], "start": 0, "end": 0, "busy": False}


#: What a store raises itself, and what it is called outside.
_STATE_REFUSALS: dict[type[Exception], str] = {
    TypeError: "invalid_request",
    StateFull: "state_full",
    StateBusy: "state_busy",
    StateDamaged: "state_damaged",
}


def _on_state(state: State, header: dict[str, Any]) -> dict[str, Any]:
    """`do` is get, set, delete or list."""
    do, key = header.get("do"), header.get("name")
    try:
        if do == "get":
            return {"found": True, "value": state[key]}  # type: ignore[index]  # it is checked there
        if do == "set":
            state.set(key, header.get("value"))  # type: ignore[arg-type]
            return {}
        if do == "delete":
            return {"deleted": state.delete(key)}  # type: ignore[arg-type]
        if do == "list":
            return {"sizes": state.sizes()}
    except KeyError:
        return {"found": False}
    except tuple(_STATE_REFUSALS) as error:
        raise Refused(_STATE_REFUSALS[type(error)], str(error)) from None
    raise Refused("invalid_request", f"Nothing on a state is called {do!r}.")


def _refused(request: int, refused: Refused) -> dict[str, Any]:
    return {"id": request, "ok": False, "code": refused.code, "message": refused.message}


def main(arguments: list[str]) -> int:
    """`LINK_DIRECTORY [--any-peer]`; --any-peer is for tests without a container."""
    supervisor = Supervisor(arguments[0], any_peer="--any-peer" in arguments[1:])
    sys.setswitchinterval(0.001)
    threading.stack_size(512 << 10)
    supervisor.start()
    supervisor.loop.run()
    return 0
