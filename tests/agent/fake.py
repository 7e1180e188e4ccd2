"""An agent in memory, for the scenarios of actions: does what it is told, as far as it can without containers.

Passes the same contract suite as the real one (tests/agent/contract.py), but for what needs a Python or a shell.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import orjson

from agent.client import FilePage, FileStat, KernelAddress, Output, Place, ProcessEnd, VolumeAddress
from agent.wire import RECORD, RECORD_KINDS, Fact, KernelSpec, ProcessSpec, RunRead, ServiceFact, ServiceSpec
from domain.errors import (
    AgentUnavailable,
    ArchiveRefused,
    FileExists,
    FileNotFound,
    InvalidPath,
    MoorageError,
    NothingListens,
    NotWaitingForInput,
    PtyNotFound,
    RunNotFound,
    StateFull,
)
from domain.ids import AgentId, RunId

HOST = AgentId("host-1")


def record(seq: int, kind: str, payload: bytes | dict[str, Any], at: float = 0.0) -> bytes:
    """A ring record, as a runner writes it."""
    body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return RECORD.pack(len(body), seq, RECORD_KINDS.index(kind), at) + body


@dataclass
class Run:
    """One run's output so far."""

    mode: str = "query"
    records: list[bytes] = field(default_factory=list)
    status: str = "running"
    done: dict[str, Any] | None = None
    inputs: list[bytes] = field(default_factory=list)

    def say(self, kind: str, payload: bytes | dict[str, Any]) -> Run:
        self.records.append(record(len(self.records) + 1, kind, payload))
        return self

    def end(self, exit_code: int | None = 0, *, reason: str = "finished", signal: int | None = None) -> Run:
        self.status = "done"
        self.done = {"exit_code": exit_code, "signal": signal, "reason": reason, "namespace_lost": False}
        self.done |= {"started_at": 1.0, "finished_at": 2.0, "bytes": 0}
        return self.say("done", self.done)


def _unscripted(mode: str, code: str) -> Run:
    """Code prints itself; an app is loaded at once, and its calls give back what they were given."""
    if mode == "load":
        return Run().say("result", {"output": {"functions": ["run"]}}).end()
    if mode == "call":
        return Run().say("result", {"output": orjson.loads(code)["input"]}).end()
    return Run().say("stdout", code.encode()).end()


@dataclass
class Kernel:
    attempt: int
    generation: int
    want: str
    fact: Fact


class FakeAgent:
    """`calls` holds what it was asked, as (name, arguments...). `fails_with` makes every call raise."""

    def __init__(self, agents: Sequence[str] = (HOST,)) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.agents = {AgentId(agent) for agent in agents}
        self.kernels: dict[UUID, Kernel] = {}
        self.runs: dict[str, Run] = {}
        self.files: dict[str, bytes] = {}
        self.kept: dict[str, Any] = {}  #: the session's store
        self.images: dict[str, dict[str, str]] = {}  #: name -> labels
        self.counted: dict[str, Any] = {"containers": [], "networks": []}  #: what a census says
        self.folders: set[str] = {"/home/work"}
        self.fails_with: MoorageError | None = None
        #: the output of the next runs: the code is printed when there is none
        self.script: list[Run] = []
        self.log = Run(mode="log")
        self.nothing_runs = False
        self.services: dict[tuple[UUID, str], ServiceSpec] = {}
        self.direct: str | None = None  #: where it serves files itself
        self.processes: dict[str, FakeProcess] = {}
        self.ports: dict[int, int] = {}  #: of kernels, and where a test serves them

    def _asked(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if self.fails_with is not None:
            raise self.fails_with

    # -- who is there ----------------------------------------------------------------------------------------------------
    def connected(self) -> set[AgentId]:
        return self.agents

    def is_connected(self, agent_id: AgentId) -> bool:
        return agent_id in self.agents

    # -- kernels -----------------------------------------------------------------------------------------------------------
    async def ensure(
        self, where: KernelAddress, *, generation: int, want: str, spec: KernelSpec | None, grace_seconds: float = 10.0
    ) -> Fact:
        self._asked("ensure", where.kernel_id, where.attempt, generation, want)
        if where.agent_id not in self.agents:
            raise AgentUnavailable
        known = self.kernels.get(where.kernel_id)
        if known and (where.attempt, generation) < (known.attempt, known.generation):
            return known.fact
        if known and (where.attempt, generation) == (known.attempt, known.generation):
            return known.fact
        observed = "RUNNING" if want == "RUN" else "GONE"
        fact = Fact(
            kernel_id=str(where.kernel_id),
            attempt=where.attempt,
            generation=generation,
            observed=observed,
            boot_no=1,
            seq=len(self.calls),
        )
        self.kernels[where.kernel_id] = Kernel(where.attempt, generation, want, fact)
        return fact

    # -- runs --------------------------------------------------------------------------------------------------------------
    async def execute(
        self,
        where: KernelAddress,
        run_id: RunId,
        *,
        mode: str,
        code: str,
        opts: dict[str, Any],
        timeout_seconds: float | None,
        wait_seconds: float,
        max_bytes: int,
    ) -> RunRead:
        self._asked("execute", run_id, mode, code)
        if str(run_id) not in self.runs:
            run = self.script.pop(0) if self.script else _unscripted(mode, code)
            self.runs[str(run_id)] = replace(run, mode=mode)
        return self._read(str(run_id), 0, max_bytes)

    async def read(
        self, where: KernelAddress, run_id: RunId | str, *, from_seq: int, max_bytes: int, wait_seconds: float
    ) -> RunRead:
        self._asked("read", run_id, from_seq)
        return self._read(str(run_id), from_seq, max_bytes)

    def _read(self, run_id: str, from_seq: int, max_bytes: int) -> RunRead:
        run = self.log if run_id == "log" else self.runs.get(run_id)
        if run is None:
            raise RunNotFound(run_id=run_id)
        first = max(from_seq, 1)
        chosen: list[bytes] = []
        for one in run.records[first - 1 :]:
            if chosen and sum(map(len, chosen)) + len(one) > max_bytes:
                break
            chosen.append(one)
        next_seq = first + len(chosen)
        at_end = next_seq > len(run.records)
        return RunRead(
            run_id=run_id,
            records=b"".join(chosen),
            next_seq=next_seq,
            status=run.status,
            done=run.done if at_end else None,
        )

    async def send_input(
        self, where: KernelAddress, run_id: RunId, data: bytes, *, eof: bool = False, key: UUID | None = None
    ) -> None:
        self._asked("input", run_id, data, eof)
        run = self.runs.get(str(run_id))
        if run is None or run.done:
            raise NotWaitingForInput
        run.inputs.append(data)
        run.say("stdout", b"got " + data).end()

    async def interrupt(self, where: KernelAddress, run_id: RunId | None) -> bool:
        self._asked("interrupt", run_id)
        return not self.nothing_runs

    async def kill(self, where: KernelAddress, run_id: RunId, grace_seconds: float | None = None) -> bool:
        self._asked("kill", run_id)
        run = self.runs.get(str(run_id))
        if run is None or run.done:
            return False
        run.end(None, reason="killed", signal=9 if grace_seconds is None else 15)
        return True

    async def complete(
        self, where: KernelAddress, *, code: str, row: int, col: int, line: str, post: str
    ) -> dict[str, Any]:
        self._asked("complete", code)
        return {"suggestions": [code + "t"], "start": 0, "end": len(code)}

    async def state(
        self, where: KernelAddress, do: str, name: str | None = None, value: Any = None, *, key: UUID | None = None
    ) -> dict[str, Any]:
        self._asked("state", do, name)
        kept = self.kept
        if do == "get":
            return {"found": True, "value": kept[name]} if name in kept else {"found": False}
        if do == "set":
            if len(encoded := orjson.dumps(value)) > 64 << 10:
                raise StateFull
            kept[str(name)] = orjson.loads(encoded)
            return {}
        if do == "delete":
            return {"deleted": kept.pop(str(name), self) is not self}
        return {"sizes": {key: len(orjson.dumps(value)) for key, value in kept.items()}}

    # -- files -------------------------------------------------------------------------------------------------------------
    def _path(self, path: str) -> str:
        whole = posixpath.normpath(posixpath.join("/home/work", path))
        if not re.match(r"^/(home/work|tmp)(/|$)", whole):
            raise InvalidPath
        return whole

    def _stat(self, path: str, name: str | None = None) -> FileStat:
        if path in self.folders:
            return FileStat(name=name or path, type="directory", size=0, mtime=1.0, mode=0o755, owner=1000, group=1000)
        if path not in self.files:
            raise FileNotFound(path=path)
        size = len(self.files[path])
        return FileStat(name=name or path, type="file", size=size, mtime=1.0, mode=0o644, owner=1000, group=1000)

    async def list_files(self, where: Place, path: str, *, cursor: str | None, limit: int) -> FilePage:
        self._asked("list_files", path)
        folder = self._path(path)
        if folder not in self.folders:
            raise FileNotFound(path=path)
        inside = [p for p in sorted({*self.files, *self.folders}) if posixpath.dirname(p) == folder]
        names = [posixpath.basename(p) for p in inside]
        page = [name for name in names if cursor is None or name > cursor][:limit]
        more = page[-1] if page and page[-1] != names[-1] else None
        return FilePage(files=[self._stat(posixpath.join(folder, name), name) for name in page], next_cursor=more)

    async def manage_file(
        self, where: Place, op: str, arguments: dict[str, Any], *, key: UUID | None = None
    ) -> FileStat | None:
        self._asked("manage_file", op, arguments)
        path = self._path(arguments["path"])
        if op == "mkdir":
            if path in self.folders | set(self.files):
                raise FileExists(path=path)
            self.folders.add(path)
            return self._stat(path)
        stat = self._stat(path)
        if op == "remove":
            self.files.pop(path, None)
            self.folders.discard(path)
            return None
        if op in ("move", "copy"):
            to = self._path(arguments["to"])
            self.files[to] = self.files[path]
            if op == "move":
                del self.files[path]
            return self._stat(to)
        return replace(stat, mode=arguments["mode"]) if op == "chmod" else stat

    async def upload(
        self,
        where: Place,
        path: str,
        body: AsyncIterator[bytes],
        *,
        size: int | None,
        mode: int | None = None,
        overwrite: bool = True,
        sha256: str | None = None,
    ) -> FileStat:
        self._asked("upload", path)
        whole = self._path(path)
        if not overwrite and whole in self.files:
            raise FileExists(path=path)
        self.files[whole] = b"".join([bytes(chunk) async for chunk in body])
        return self._stat(whole)

    async def download(self, where: Place, path: str, *, offset: int = 0, length: int | None = None) -> FakeDownload:
        self._asked("download", path)
        stat = self._stat(self._path(path))
        content = self.files[self._path(path)]
        return FakeDownload(content[offset : None if length is None else offset + length], stat)

    async def archive(self, where: Place, paths: Sequence[str]) -> FakeDownload:
        self._asked("archive", tuple(paths))
        for path in paths:
            self._stat(self._path(path))
        return FakeDownload(b"tar of " + ",".join(paths).encode(), None)

    async def unpack(
        self, where: Place, path: str, body: AsyncIterator[bytes], *, size: int | None, overwrite: bool = True
    ) -> dict[str, int]:
        """Every line of the archive is the name of an empty file."""
        self._asked("unpack", path)
        names = b"".join([bytes(chunk) async for chunk in body]).decode().split()
        if any(".." in name for name in names):
            raise ArchiveRefused
        self.files |= {self._path(posixpath.join(path, name)): b"" for name in names}
        return {"files": len(names), "folders": 0, "links": 0, "bytes": 7 * len(names)}

    # -- volumes ---------------------------------------------------------------------------------------------------------
    async def volume_usage(self, where: VolumeAddress) -> dict[str, int]:
        self._asked("volume_usage", where.volume_id)
        return {"bytes": sum(map(len, self.files.values())), "files": len(self.files)}

    async def clone_volume(self, where: VolumeAddress, job: UUID, source: UUID) -> AsyncIterator[dict[str, Any]]:
        self._asked("clone_volume", where.volume_id, source)
        yield {"current": 1, "total": 2, "message": "1 of 2 MiB"}
        yield {"result": {"bytes": 2, "files": 1}}

    async def remove_volume(self, where: VolumeAddress, job: UUID) -> AsyncIterator[dict[str, Any]]:
        self._asked("remove_volume", where.volume_id)
        yield {"result": None}

    async def results(self, where: KernelAddress) -> FakeDownload:
        self._asked("results", where.attempt)
        return FakeDownload(b"tar of the results", None)

    # -- processes ---------------------------------------------------------------------------------------------------------
    async def open_process(self, where: KernelAddress, spec: ProcessSpec) -> FakeProcess:
        self._asked("open_process", where.kernel_id, spec)
        if spec.resume and spec.process not in self.processes:
            raise PtyNotFound
        made = FakeProcess(spec, resumed=spec.process in self.processes)
        self.processes[made.id] = made
        return made

    # -- the rest ----------------------------------------------------------------------------------------------------------
    async def statistics(self, where: KernelAddress) -> dict[str, Any]:
        self._asked("statistics")
        return {"cpu_seconds": 1.5, "mem_bytes": 1 << 20, "pids": 3, "at": time.time()}

    async def start_service(self, where: KernelAddress, spec: ServiceSpec) -> ServiceFact:
        self._asked("start_service", where.kernel_id, spec)
        self.services[where.kernel_id, spec.name] = spec
        return ServiceFact(
            kernel_id=str(where.kernel_id), attempt=where.attempt, name=spec.name, generation=spec.generation,
            state="healthy", boot_no=1, seq=len(self.calls),
        )  # fmt: skip

    async def grant_direct(self, where: KernelAddress, *, write: bool, by: str) -> dict[str, Any]:
        self._asked("grant_direct", where.kernel_id, write)
        if self.direct is None:
            return {"refused": "This host has no listener for direct transfers."}
        certificate = "-----BEGIN CERTIFICATE-----"
        return {"url": self.direct, "token": "t.s", "certificate": certificate, "write": write, "expires_at": 2e9}

    async def stop_service(self, where: KernelAddress, name: str) -> None:
        self._asked("stop_service", where.kernel_id, name)
        self.services.pop((where.kernel_id, name), None)

    async def tunnel_socket(self, where: KernelAddress, port: int) -> socket.socket:
        """To a port of this machine that a test listens on."""
        self._asked("tunnel_socket", where.kernel_id, port)
        if port not in self.ports:
            raise NothingListens
        sock = socket.create_connection(("127.0.0.1", self.ports[port]))
        sock.setblocking(False)
        return sock

    async def open_tunnel(self, where: KernelAddress, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=await self.tunnel_socket(where, port))

    async def commit(
        self, where: KernelAddress, job: UUID, image: str, labels: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        self._asked("commit", where.kernel_id, image)
        yield {"current": 1, "total": 2, "message": "packing"}
        made = {"image_id": "sha256:1", "architecture": "x86_64", "labels": labels, "size_bytes": 10}
        self.images[image] = {**labels, "moorage.image.task": str(job)}
        yield {"result": {**made, "frozen_seconds": 0.1}}

    async def push_image(
        self, agent_id: AgentId, job: UUID, image: str, auth: dict[str, str] | None
    ) -> AsyncIterator[dict[str, Any]]:
        self._asked("push_image", image, auth)
        yield {"current": 1, "total": 1, "message": "pushed"}
        yield {"result": {"digest": "sha256:2"}}

    async def cancel_job(self, agent_id: AgentId, job: UUID) -> bool:
        self._asked("cancel_job", job)
        return False

    async def census(self, agent_id: AgentId) -> dict[str, Any]:
        self._asked("census", agent_id)
        return self.counted

    async def list_images(self, agent_id: AgentId) -> list[dict[str, Any]]:
        self._asked("list_images", agent_id)
        return [
            {"id": f"sha256:{name}", "tags": [name], "digests": [], "labels": labels, "size_bytes": 10}
            for name, labels in self.images.items()
        ]

    async def remove_image(self, agent_id: AgentId, image: str, *, job: UUID | None = None) -> bool:
        self._asked("remove_image", image)
        return self.images.pop(image, None) is not None

    async def pull_image(
        self, agent_id: AgentId, image: str, auth: dict[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        self._asked("pull_image", agent_id, image)
        yield {"current": 1, "total": 2, "message": "half"}
        yield {"current": 2, "total": 2, "message": "there"}


class FakeProcess:
    """Says back what it is told, and ends with its input."""

    def __init__(self, spec: ProcessSpec, *, resumed: bool) -> None:
        self.spec = spec
        self.id = spec.process or "p1"
        self.position = self.lost = 0
        self.resumed = resumed
        self.told: asyncio.Queue[Output | ProcessEnd] = asyncio.Queue()
        self.sizes: list[tuple[int, int]] = []
        self.closed = False

    async def read(self) -> Output | ProcessEnd:
        return await self.told.get()

    async def write(self, data: bytes) -> None:
        self.told.put_nowait(Output(data=data))

    async def write_eof(self) -> None:
        self.told.put_nowait(ProcessEnd(reason="exited", exit_code=0))

    async def resize(self, rows: int, cols: int) -> None:
        self.sizes.append((rows, cols))

    async def signal(self, name: str) -> None:
        self.told.put_nowait(ProcessEnd(reason="exited", exit_code=128, signal=name))

    async def hang_up(self) -> None:
        await self.signal("HUP")

    async def close(self) -> None:
        self.closed = True


class FakeDownload:
    def __init__(self, content: bytes, stat: FileStat | None) -> None:
        self.content = content
        self.stat = stat
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.content), 1000):
            yield self.content[at : at + 1000]

    async def aclose(self) -> None:
        self.closed = True
