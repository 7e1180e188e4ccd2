"""The agent's end of the conversation with a container's runner (docs/runner.md).

Everything that comes from a container is hostile: frames are bounded and checked, every request has a deadline, and a
runner that breaks the rules is treated as lost. Nothing here knows Docker.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from agent.client import FilePage, FileStat
from agent.rings import RunnerError, close_unfinished
from domain.crash import reach
from runner.frames import CHUNK, LENGTHS, MAX_CHUNK_BYTES, PROTOCOL, BadFrame, FrameBuffer, pack
from runner.ring import RECENT_BYTES

__all__ = ["Archive", "ReadySignal", "RunnerConfig", "RunnerError", "RunnerLink", "Tail", "prepare_link"]

#: So that the agent takes the next piece while the runner writes this one.
_UPLOAD_BUFFER_BYTES: Final = 2 << 20
REQUEST_SECONDS: Final = 30.0  #: for any answer that does not wait for user code
FILE_SECONDS: Final = 300.0  #: for one file operation: a tree may be large
STALLED_SECONDS: Final = 60.0  #: a transfer that moves no byte for so long has failed
_MAX_UNASKED = 1000  #: answers to nothing, before the runner is taken for hostile
_MAX_UNSENT_BYTES = 64 << 20
_PIECE = 1 << 20
_MAX_ANSWER_BYTES = 64 << 10
_SOCKET = "runner.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """What the runner is told at its start, as config.json in the link directory. Holds no credential."""

    #: the whole environment of user code: the image's own (PATH, LD_LIBRARY_PATH, ...) with the session's over it
    environ: dict[str, str] = field(default_factory=dict)
    workdir: str = "/home/work"
    #: further folders that file operations may touch, beside `workdir` and /tmp: mounted volumes
    file_roots: tuple[str, ...] = ()
    quota_bytes: int | None = None  #: of what the tree under `workdir` holds
    python: str | None = None  #: the worker's interpreter; None: python3 or python on PATH
    ipython: str = "auto"  #: auto: when a cell needs it; always: at once; never
    context: dict[str, Any] = field(default_factory=dict)  #: read-only facts for `moorage_session.context`
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """How far a run's output has come."""

    run: str
    seq: int  #: of the last record; 0 when there is none
    done: bool
    status: str  #: queued, running, waiting_input, done
    records: bytes = b""  #: a short run's, whole, when its end came with the first answer


class ReadySignal:
    """Wakes up when the runner listens. Made by `prepare_link`, before the container starts."""

    def __init__(self, fifo: int) -> None:
        self._fifo = fifo

    async def wait(self, timeout_seconds: float) -> None:
        """Until the runner listens; RunnerError("runner_lost") when that takes longer. Closes the signal."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fifo, _wake, ready)
        try:
            await asyncio.wait_for(ready, timeout_seconds)
        except TimeoutError:
            raise RunnerError("runner_lost", f"The runner did not start within {timeout_seconds:g} s.") from None
        finally:
            loop.remove_reader(self._fifo)
            self.close()

    def close(self) -> None:
        if self._fifo >= 0:
            os.close(self._fifo)
            self._fifo = -1


def prepare_link(link_dir: Path, config: RunnerConfig, *, uid: int = 1000, gid: int = 1000) -> ReadySignal:
    """Make the directory to mount read-write at /moorage/link, ready for a (new) start of its container.

    Rings of earlier attempts stay readable; runs that these left unfinished are closed as `worker_lost`.
    Call it when no runner is alive there.
    """
    link_dir.mkdir(parents=True, exist_ok=True)
    own = os.geteuid() == 0
    folder = os.open(link_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if own:
            os.fchown(folder, uid, gid)
        os.fchmod(folder, 0o700)
        close_unfinished(link_dir, now=time.time(), uid=uid if own else -1, gid=gid if own else -1)
        # the user of an earlier attempt may have left anything under these names
        for name in (_SOCKET, "ready", "config.json"):
            _clear(folder, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        reach("agent.files.link.cleared")
        with os.fdopen(os.open("config.json", flags, 0o444, dir_fd=folder), "w", encoding="utf-8") as out:
            json.dump(asdict(config), out)
        reach("agent.files.link.configured")
        os.mkfifo("ready", 0o600, dir_fd=folder)
        fifo = os.open("ready", os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        if own:
            os.fchown(fifo, uid, gid)
        return ReadySignal(fifo)
    finally:
        os.close(folder)


def _clear(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError:  # a folder of that name: out of the way
        os.rename(name, f".replaced-{time.time_ns()}", src_dir_fd=folder, dst_dir_fd=folder)


class RunnerLink(asyncio.Protocol):
    """One control connection to one runner. All methods raise `RunnerError`; after `lost` is set all raise "runner_lost"."""

    lost: asyncio.Event  #: set when the runner, or the connection to it, has gone
    worker: dict[str, Any]  #: {state: starting|ready|absent|failed, version, pid} at the time of the hello
    runs: dict[str, dict[str, Any]]  #: unfinished runs at the time of the hello: {run: {mode, status, seq, started_at}}

    def __init__(self, address: _Address, on_lost: Callable[[], None] | None) -> None:
        """Use `connect`."""
        self.lost = asyncio.Event()
        self.worker, self.runs = {}, {}
        self._address = address
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(max_body=RECENT_BYTES)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 0
        self._unasked = 0

    @classmethod
    async def connect(
        cls,
        link_dir: Path,
        private_dir: Path,
        expected_pid: int | None,
        *,
        timeout_seconds: float = 10.0,
        on_lost: Callable[[], None] | None = None,
    ) -> RunnerLink:
        """Connect, check who listens, say hello.

        `private_dir` is a host directory on the same file system that containers cannot reach: a hard link to the
        socket is kept there, so that user code that replaces the socket changes nothing. `expected_pid` is PID 1 of the
        container as the host sees it (None: not checked).
        """
        address = _Address(link_dir, private_dir, expected_pid)
        try:
            async with asyncio.timeout(timeout_seconds):
                sock = await address.connect()
                link = cls(address, on_lost)
                loop = asyncio.get_running_loop()
                try:
                    await loop.create_unix_connection(lambda: link, sock=sock)
                except BaseException:
                    sock.close()
                    raise
                try:
                    hello = await link._ask({"op": "hello", "protocol": PROTOCOL})
                    if hello.get("protocol") != PROTOCOL:
                        raise RunnerError("runner_lost", f"The runner speaks protocol {hello.get('protocol')!r}.")
                    link.worker = _checked(hello.get("worker"), dict)
                    link.runs = _checked(hello.get("runs"), dict)
                except BaseException:
                    link._on_lost = None
                    await link.close()
                    raise
                return link
        except TimeoutError:
            raise RunnerError("runner_lost", f"The runner did not answer within {timeout_seconds:g} s.") from None
        except OSError as error:
            raise RunnerError("runner_lost", f"The runner cannot be reached: {error.strerror or error}.") from None

    # -- runs ------------------------------------------------------------------------------------------------------------
    async def execute(
        self,
        run: str,
        *,
        mode: str,
        code: str,
        timeout_seconds: float | None = None,
        opts: dict[str, Any] | None = None,
        wait_seconds: float = 0.0,
    ) -> Tail:
        """Start a run (mode query or batch), at most once per run id, and answer as `wait_tail(run, 0, wait_seconds)` does.

        One round trip: a short run is answered when it is done. Errors: no_python, invalid_request, resource_exhausted.
        """
        header: dict[str, Any] = {
            "op": "execute",
            "run": run,
            "mode": mode,
            "opts": opts or {},
            "timeout_seconds": timeout_seconds,
            "wait": wait_seconds > 0,
        }
        body = code.encode("utf-8", "replace")
        if len(body) > 15 << 20:
            raise RunnerError("invalid_request", "The code is larger than 15 MiB; upload it as a file and run that.")
        if wait_seconds <= 0:
            return _tail(await self._ask(header, body))
        answer = await self._ask_long(header, body, wait_seconds)
        return _tail(answer, answer.pop("records"))

    async def wait_tail(self, run: str, after_seq: int, timeout_seconds: float) -> Tail:
        """Until records beyond `after_seq` exist or the run is done, at most `timeout_seconds`. The run `"log"` never ends."""
        header = {"op": "arm", "run": run, "after_seq": max(0, after_seq)}
        return _tail(await self._ask_long(header, b"", timeout_seconds))

    async def send_input(self, run: str, data: bytes, *, eof: bool = False, key: str | None = None) -> None:
        """Feed a running run; kept for it when it does not ask yet. Error: not_waiting_for_input when it is done.

        With a `key`, once, however often it is asked for.
        """
        await self._ask({"op": "input", "run": run, "eof": eof, "key": key}, data)

    async def interrupt(self, run: str | None = None) -> bool:
        """SIGINT to one run, or to all that run; False when nothing ran."""
        return bool((await self._ask({"op": "interrupt", "run": run})).get("interrupted"))

    async def kill(self, run: str, grace_seconds: float | None = None) -> bool:
        """SIGKILL to one run (its worker, or its process group), with a grace after SIGTERM; False when it does not run."""
        if grace_seconds is not None:
            asked = {"op": "terminate", "run": run, "grace_seconds": grace_seconds}
            return bool((await self._ask(asked)).get("running"))
        return bool((await self._ask({"op": "kill", "run": run})).get("killed"))

    async def terminate(self, run: str, grace_seconds: float) -> None:
        """SIGTERM to a batch run, SIGKILL after the grace; it and what it started have ended when this returns."""
        with contextlib.suppress(RunnerError):
            if (await self._ask({"op": "terminate", "run": run, "grace_seconds": grace_seconds})).get("running"):
                await self.wait_tail(run, 1 << 60, grace_seconds + 5.0)

    async def complete(self, *, code: str, row: int, col: int, line: str, post: str) -> dict[str, Any]:
        """{suggestions: [str], start: int, end: int, busy: bool}: offsets in the line; nothing while the worker is busy."""
        header = {"op": "complete", "row": row, "col": col, "line": line[:65536], "post": post[:65536]}
        answer = await self._ask(header, code.encode("utf-8", "replace"))
        return {
            "suggestions": [str(item) for item in _checked(answer.get("suggestions"), list)],
            "start": _checked(answer.get("start"), int),
            "end": _checked(answer.get("end"), int),
            "busy": bool(answer.get("busy")),
        }

    async def bootstrap(self, script: str, *, run: str = "bootstrap", timeout_seconds: float | None = None) -> Tail:
        """Run a shell script as a batch run in the working folder, and wait for its end (read its ring for the result)."""
        tail = await self.execute(
            run, mode="batch", code=script, timeout_seconds=timeout_seconds, opts={"stdin": False}, wait_seconds=3600
        )
        while not tail.done:
            tail = await self.wait_tail(run, tail.seq, 3600)
        return tail

    async def note(self, text: str) -> None:
        """A line in the container's log."""
        await self._ask({"op": "note"}, text.encode(), seconds=5.0)

    async def lease(self, until: float, left: float) -> None:
        """The container ends itself then, unless it hears otherwise; `until` by the host's clock, as runner.lease has it."""
        await self._ask({"op": "lease", "until": until, "left": left}, seconds=5.0)

    async def ping(self) -> None:
        """The runner answers."""
        await self._ask({"op": "hello", "protocol": PROTOCOL})

    async def status(self) -> dict[str, Any]:
        """{worker, runs, disk_bytes (of the working folder), ring_bytes, processes}."""
        return await self._ask({"op": "status"}, seconds=FILE_SECONDS)

    # -- files -----------------------------------------------------------------------------------------------------------
    async def list_files(self, path: str = ".", *, cursor: str | None = None, limit: int = 100) -> FilePage:
        answer = await self._ask({"op": "list", "path": path, "cursor": cursor, "limit": limit}, seconds=FILE_SECONDS)
        following = answer.get("next_cursor")
        files = [_file_stat(item) for item in _checked(answer.get("files"), list)]
        return FilePage(files=files, next_cursor=following if isinstance(following, str) else None)

    async def manage_file(self, op: str, arguments: dict[str, Any], *, key: str | None = None) -> FileStat | None:
        """mkdir {path, parents, mode}, move {path, to, overwrite}, copy {path, to, overwrite, recursive},
        remove {path, recursive}, stat {path}, chmod {path, mode, recursive}. The new stat; None after remove."""
        header = {"op": "manage", "operation": op, "arguments": arguments, "key": key}
        answer = await self._ask(header, seconds=FILE_SECONDS, nullable=True)
        return _file_stat(answer) if answer else None

    async def state(
        self, do: str, name: str | None = None, value: Any = None, *, key: str | None = None
    ) -> dict[str, Any]:
        """The session's store: get {found, value}, set {}, delete {deleted}, list {sizes: {name: bytes}}."""
        header = {"op": "state", "do": do, "name": name, "value": value, "key": key}
        return await self._ask(header, seconds=FILE_SECONDS)

    async def open_file(self, path: str) -> tuple[int, FileStat]:
        """A regular file opened by the session's user, as a descriptor that the caller must close."""
        async with self._stream({"op": "open", "path": path}) as sock:
            async with _transfer(REQUEST_SECONDS):
                data, fd = await _receive_descriptor(sock)
                try:
                    answer = await self._answer_on(sock, data)
                    file = _file_stat(answer)
                    facts = os.fstat(fd) if fd >= 0 else None
                    if facts is None or not stat.S_ISREG(facts.st_mode):
                        raise RunnerError("not_a_regular_file", f"{path!r} is not a regular file.")
                except BaseException:
                    if fd >= 0:
                        os.close(fd)
                    raise
        # size, time and mode are the descriptor's own: the runner's word is not needed
        return fd, FileStat(
            name=file.name, type="file", size=facts.st_size, mtime=facts.st_mtime, mode=stat.S_IMODE(facts.st_mode),
            owner=facts.st_uid, group=facts.st_gid,
        )  # fmt: skip

    async def put_file(
        self,
        path: str,
        source: AsyncIterator[bytes],
        *,
        size: int | None = None,
        mode: int | None = None,
        overwrite: bool = True,
        sha256: str | None = None,
    ) -> FileStat:
        """Write a file as the session's user, whole or not at all; missing folders are made."""
        header = {"op": "put", "path": path, "size": size, "mode": mode, "overwrite": overwrite, "sha256": sha256}
        return _file_stat(await self._feed(header, source))

    async def unpack(
        self, path: str, source: AsyncIterator[bytes], *, size: int | None = None, overwrite: bool = True
    ) -> dict[str, int]:
        """Unpack an archive as the session's user into the folder `path`, whole or not at all."""
        answer = await self._feed({"op": "unpack", "path": path, "overwrite": overwrite}, source)
        return {name: _checked(answer.get(name), int) for name in ("files", "folders", "links", "bytes")}

    async def _feed(self, header: dict[str, Any], source: AsyncIterator[bytes]) -> dict[str, Any]:
        async with self._stream(header) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UPLOAD_BUFFER_BYTES)
            try:
                async for piece in source:
                    view = memoryview(piece)
                    for start in range(0, len(view), MAX_CHUNK_BYTES):
                        part = view[start : start + MAX_CHUNK_BYTES]
                        async with _transfer(STALLED_SECONDS):
                            await self._send_chunk(sock, part)
                async with _transfer(STALLED_SECONDS):
                    await self._loop.sock_sendall(sock, CHUNK.pack(0))
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                # the runner has hung up before the end: its answer says why
            async with _transfer(FILE_SECONDS):
                answer = await self._answer_on(sock)
            reach("agent.runner", header["op"], "after")
            return answer

    async def archive(self, paths: Sequence[str]) -> Archive:
        """A tar stream of files and folders; links stay links. Closing the stream stops the runner's work on it."""
        stack = contextlib.AsyncExitStack()
        sock = await stack.enter_async_context(self._stream({"op": "archive", "paths": list(paths)}))
        try:
            async with _transfer(FILE_SECONDS):
                buffer = FrameBuffer(max_body=0)
                await self._answer_on(sock, buffer=buffer)
        except BaseException:
            await stack.aclose()
            raise
        return Archive(sock, buffer.rest(), stack)

    # -- processes ---------------------------------------------------------------------------------------------------------
    async def open_process(self, spec: Mapping[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
        """Start a process, or attach to a terminal: the connection on which its pieces follow, and what was said of it.

        Errors: invalid_request, resource_exhausted, pty_not_found, no_shell.
        """
        async with contextlib.AsyncExitStack() as stack:
            sock = await stack.enter_async_context(self._stream({**spec, "op": "process"}))
            async with _transfer(REQUEST_SECONDS):
                lengths = await _exactly(sock, LENGTHS.size)
                header, body = LENGTHS.unpack(lengths)
                if header > _MAX_ANSWER_BYTES or body:
                    raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.")
                said = await self._answer_on(sock, lengths + await _exactly(sock, header))
            kept = sock.dup()  # the stream closes its own
            kept.setblocking(False)
            return kept, said

    async def terminals(self) -> list[dict[str, Any]]:
        """Open terminals: {id, attached, position}."""
        return [
            _checked(item, dict)
            for item in _checked((await self._ask({"op": "terminals"})).get("terminals"), list)[:100]
        ]

    # -- ports -------------------------------------------------------------------------------------------------------------
    async def connect_port(self, port: int) -> socket.socket:
        """A connection to a port of the container, made inside it. Error: nothing_listens."""
        async with self._stream({"op": "connect", "port": port}) as sock:
            async with _transfer(REQUEST_SECONDS):
                data, fd = await _receive_descriptor(sock)
                try:
                    await self._answer_on(sock, data)
                except BaseException:
                    if fd >= 0:
                        os.close(fd)
                    raise
        return _checked_connection(fd)

    async def listening(self, port: int) -> bool:
        """Whether a process of the container listens on the port, without connecting to it."""
        return bool((await self._ask({"op": "listening", "port": port})).get("listening"))

    async def set_environ(self, values: Mapping[str, str]) -> None:
        """Variables that have changed, for what is started from now on."""
        await self._ask({"op": "environ", "values": dict(values)})

    # -- the end -----------------------------------------------------------------------------------------------------------
    async def shutdown(self, grace_seconds: float) -> None:
        """SIGTERM to everything, SIGKILL after the grace; finished output is complete on disk when this returns."""
        await self._ask({"op": "shutdown", "grace_seconds": grace_seconds}, seconds=grace_seconds + 10)

    async def close(self) -> None:
        """Let go of the connection; the runner and its runs go on."""
        self._on_lost = None
        if self._transport is not None:
            self._transport.abort()
            await self.lost.wait()
        self._address.close()

    # -- requests ------------------------------------------------------------------------------------------------------------
    async def _ask(
        self, header: dict[str, Any], body: bytes = b"", *, seconds: float = REQUEST_SECONDS, nullable: bool = False
    ) -> dict[str, Any]:
        number, future = self._send(header, body)
        deadline = self._loop.call_later(seconds, self._give_up, number, seconds)
        try:
            answer = _result(await future, nullable=nullable)
            reach("agent.runner", header["op"], "after")
            return answer
        finally:
            deadline.cancel()
            self._pending.pop(number, None)

    async def _ask_long(self, header: dict[str, Any], body: bytes, wait_seconds: float) -> dict[str, Any]:
        """A request whose answer waits for user code: after `wait_seconds` the runner is asked to answer as it is."""
        number, future = self._send(header, body)
        disarm = self._loop.call_later(max(0.0, wait_seconds), self._disarm, number)
        deadline = self._loop.call_later(
            wait_seconds + REQUEST_SECONDS, self._give_up, number, wait_seconds + REQUEST_SECONDS
        )
        try:
            frame = await future
            reach("agent.runner", header["op"], "after")
            return {**_result(frame), "records": frame["body"]}
        except asyncio.CancelledError:
            self._disarm(number)
            raise
        finally:
            disarm.cancel()
            deadline.cancel()
            self._pending.pop(number, None)

    def _disarm(self, number: int) -> None:
        if not self.lost.is_set():
            self._next_id += 1
            self._write(pack({"op": "disarm", "id": self._next_id, "arm": number}))

    def _give_up(self, number: int, seconds: float) -> None:
        future = self._pending.get(number)
        if future is not None and not future.done():
            future.set_exception(
                RunnerError("runner_lost", f"The session's runner did not answer within {seconds:g} s.")
            )

    def _send(self, header: dict[str, Any], body: bytes) -> tuple[int, asyncio.Future[dict[str, Any]]]:
        if self.lost.is_set() or self._transport is None:
            raise RunnerError("runner_lost", "The session's runner is gone; restart the session.")
        reach("agent.runner", header["op"], "before")
        self._next_id += 1
        header["id"] = self._next_id
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._pending[self._next_id] = future
        self._write(pack(header, body))
        return self._next_id, future

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self._transport.abort()  # it takes nothing any more

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                self._on_frame(*frame)
        except BadFrame:
            self._break_off()

    def _on_frame(self, header: dict[str, Any], body: bytes) -> None:
        number = header.get("id")
        future = self._pending.get(number) if isinstance(number, int) else None
        if future is None:
            self._unasked += 1  # an answer that came too late, or noise
            if self._unasked > _MAX_UNASKED + self._next_id // 2:
                self._break_off()
        elif not future.done():
            header["body"] = body
            future.set_result(header)

    def _break_off(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._transport = None
        error = RunnerError("runner_lost", "The session's runner is gone; restart the session.")
        for future in self._pending.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waited may have gone
        self._pending.clear()
        if self._on_lost is not None:
            self._on_lost()

    # -- connections of their own ----------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def _stream(self, header: dict[str, Any]) -> AsyncIterator[socket.socket]:
        if self.lost.is_set():
            raise RunnerError("runner_lost", "The session's runner is gone; restart the session.")
        reach("agent.runner", header["op"], "before")
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                sock = await self._address.connect()
        except (TimeoutError, OSError):
            raise RunnerError("runner_lost", "The session's runner cannot be reached.") from None
        try:
            async with _transfer(REQUEST_SECONDS):
                await self._loop.sock_sendall(sock, pack({**header, "id": 1}))
            yield sock
        except OSError as error:
            raise RunnerError("transfer_failed", f"The transfer broke off: {error.strerror or error}.") from None
        finally:
            sock.close()

    async def _send_chunk(self, sock: socket.socket, part: memoryview) -> None:
        if not part:
            return
        try:
            sent = sock.sendmsg([CHUNK.pack(len(part)), part])
        except BlockingIOError:
            sent = 0
        if sent < CHUNK.size:
            await self._loop.sock_sendall(sock, CHUNK.pack(len(part))[sent:])
            sent = CHUNK.size
        if sent - CHUNK.size < len(part):
            await self._loop.sock_sendall(sock, part[sent - CHUNK.size :])

    async def _answer_on(
        self, sock: socket.socket, data: bytes = b"", *, buffer: FrameBuffer | None = None
    ) -> dict[str, Any]:
        buffer = buffer or FrameBuffer(max_body=0)
        buffer.feed(data)
        try:
            while (frame := buffer.next()) is None:
                more = await self._loop.sock_recv(sock, 1 << 16)
                if not more:
                    raise RunnerError("transfer_failed", "The runner broke the transfer off; repeat it.")
                buffer.feed(more)
        except BadFrame:
            raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.") from None
        return _result(frame[0])


class Archive:
    """A tar stream on its way out of a session: iterate, and always `aclose`."""

    stat: FileStat | None = None

    def __init__(self, sock: socket.socket, rest: bytes, stack: contextlib.AsyncExitStack) -> None:
        self._socket = sock
        self._rest = bytearray(rest)
        self._stack = stack

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of at most 1 MiB. A stream that ends too early: RunnerError("transfer_failed")."""
        while left := CHUNK.unpack(await self._exactly(CHUNK.size))[0]:
            if left > MAX_CHUNK_BYTES:
                raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.")
            while left:
                piece = await self._some(min(left, _PIECE))
                left -= len(piece)
                yield piece

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self._some(size - len(data))
        return data

    async def _some(self, size: int) -> bytes:
        if self._rest:
            piece = bytes(self._rest[:size])
            del self._rest[:size]
            return piece
        async with _transfer(STALLED_SECONDS):
            data = await asyncio.get_running_loop().sock_recv(self._socket, size)
        if not data:
            raise RunnerError("transfer_failed", "The archive broke off; repeat it.")
        return data


class _Address:
    """Where a runner listens, and how to be sure that it is this one."""

    def __init__(self, link_dir: Path, private_dir: Path, expected_pid: int | None) -> None:
        self._link_dir = link_dir
        self._private_dir = private_dir
        self._expected_pid = expected_pid
        self._folder = -1  #: the folder whose socket is the true one

    async def connect(self) -> socket.socket:
        """A connected, non-blocking socket. OSError, or RunnerError when someone else listens."""
        if self._folder < 0:
            self._private_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = os.open(self._private_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._adopt()
        try:
            return await self._open()
        except (ConnectionRefusedError, FileNotFoundError):
            if not self._adopt(anew=True):  # left from an earlier start
                raise
            return await self._open()

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _adopt(self, *, anew: bool = False) -> bool:
        """Link the socket into the private folder; whether it was not there."""
        source = os.open(self._link_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            there = os.stat(_SOCKET, dir_fd=source, follow_symlinks=False)
            if not stat.S_ISSOCK(there.st_mode):
                raise RunnerError("runner_lost", "The runner's socket was replaced from inside the session.")
            with contextlib.suppress(FileNotFoundError):
                kept = os.stat(_SOCKET, dir_fd=self._folder, follow_symlinks=False)
                if not anew or (kept.st_ino, kept.st_dev) == (there.st_ino, there.st_dev):
                    return False
                os.unlink(_SOCKET, dir_fd=self._folder)
            os.link(_SOCKET, _SOCKET, src_dir_fd=source, dst_dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISSOCK(os.stat(_SOCKET, dir_fd=self._folder, follow_symlinks=False).st_mode):
                os.unlink(_SOCKET, dir_fd=self._folder)
                raise RunnerError("runner_lost", "The runner's socket was replaced from inside the session.")
            return True
        except FileNotFoundError:
            if anew:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.stat(_SOCKET, dir_fd=self._folder, follow_symlinks=False)
            return False
        finally:
            os.close(source)

    async def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # through the descriptor: the folder's path may be longer than a socket's address may be
            await asyncio.get_running_loop().sock_connect(sock, f"/proc/self/fd/{self._folder}/{_SOCKET}")
            pid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            if self._expected_pid is not None and pid != self._expected_pid:
                raise RunnerError("runner_lost", "Another process than the runner listens on its socket.")
        except BaseException:
            sock.close()
            raise
        return sock


@contextlib.asynccontextmanager
async def _transfer(seconds: float) -> AsyncIterator[None]:
    """One step of a transfer, which the other side may not hold up for ever."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RunnerError(
            "transfer_failed", f"The transfer stood still for {seconds:g} s and was broken off."
        ) from None


async def _receive_descriptor(sock: socket.socket) -> tuple[bytes, int]:
    """The first bytes on a connection and the descriptor that came with them (-1: none)."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            break
        except BlockingIOError:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock, _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock)
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    for extra in found[1:]:
        os.close(extra)
    if not data:
        for fd in found[:1]:
            os.close(fd)
        raise RunnerError("transfer_failed", "The runner broke the transfer off; repeat it.")
    return data, found[0] if found else -1


def _checked_connection(fd: int) -> socket.socket:
    """What a runner passed as a connection: anything but one over TCP is not taken."""
    if fd < 0 or not stat.S_ISSOCK(os.fstat(fd).st_mode):
        if fd >= 0:
            os.close(fd)
        raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.")
    sock = socket.socket(fileno=fd)
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            raise OSError
        sock.getpeername()
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.") from None
    return sock


async def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not more:
            raise RunnerError("transfer_failed", "The runner broke the connection off; repeat it.")
        data += more
    return data


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _result(header: dict[str, Any], *, nullable: bool = False) -> dict[str, Any]:
    if header.get("ok") is True:
        result = header.get("result")
        if result is None and nullable:
            return {}
        return _checked(result, dict)  # type: ignore[no-any-return]
    code, message = header.get("code"), header.get("message")
    if not isinstance(code, str) or not isinstance(message, str):
        raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.")
    raise RunnerError(code[:64], message[:4096])


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RunnerError("runner_lost", "The session's runner does not keep to the protocol.")
    return value


def _tail(result: dict[str, Any], records: bytes = b"") -> Tail:
    return Tail(
        run=_checked(result.get("run"), str),
        seq=_checked(result.get("seq"), int),
        done=_checked(result.get("done"), bool),
        status=_checked(result.get("status"), str)[:32],
        records=records,
    )


def _file_stat(item: Any) -> FileStat:
    facts = _checked(item, dict)
    mtime, target = facts.get("mtime"), facts.get("link_target")
    return FileStat(
        name=_checked(facts.get("name"), str),
        type=_checked(facts.get("type"), str)[:32],
        size=_checked(facts.get("size"), int),
        mtime=float(mtime) if isinstance(mtime, (int, float)) else 0.0,
        mode=_checked(facts.get("mode"), int) & 0o7777,
        owner=_checked(facts.get("owner"), int),
        group=_checked(facts.get("group"), int),
        link_target=target if isinstance(target, str) else None,
    )
