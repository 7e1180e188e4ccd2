"""A host that keeps everything in memory: what the REST door needs to be tried without containers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import posixpath
import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import orjson

from agent.client import Download, FilePage, FileStat, KernelAddress
from agent.wire import RECORD, RECORD_KINDS, Fact, KernelSpec, ProcessSpec, RunRead
from domain.errors import (
    AgentUnavailable,
    FileExists,
    FileNotFound,
    NotARegularFile,
    PtyNotFound,
    RunNotFound,
    TransferFailed,
)
from domain.ids import AgentId, RunId
from tests.agent.fake import FakeProcess

MTIME = 1_770_000_000.25


@dataclass
class Run:
    code: str
    mode: str
    records: list[tuple[str, bytes]] = field(default_factory=list)
    done: dict[str, Any] | None = None
    status: str = "running"
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    fed: list[bytes] = field(default_factory=list)

    def say(self, kind: str, payload: bytes | dict[str, Any]) -> None:
        self.records.append((kind, payload if isinstance(payload, bytes) else orjson.dumps(payload)))
        self.changed.set()

    def end(self, exit_code: int = 0, reason: str = "finished") -> None:
        self.done = {
            "exit_code": exit_code,
            "signal": None,
            "reason": reason,
            "started_at": MTIME,
            "finished_at": MTIME,
        }
        self.status = "done"
        self.say("done", {"exit_code": exit_code, "reason": reason})


class Bytes(Download):
    def __init__(self, stat: FileStat | None, chunks: Sequence[bytes]) -> None:
        self.stat = stat
        self.closed = False
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if chunk == b"<break>":
                raise TransferFailed
            yield chunk

    async def aclose(self) -> None:
        self.closed = True


class MemoryHost:
    """`agent.client.AgentClient`. Code `print(X)` prints X; `ask` waits for input; `wait` waits to be ended by the test."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.processes: dict[str, FakeProcess] = {}
        self.files: dict[str, tuple[bytes, int]] = {}
        self.calls: list[str] = []
        self.connected = True
        self.downloads: list[Bytes] = []
        self.started = asyncio.Event()
        self.uploaded_bytes = 0
        self.big_bytes = 0  #: of the file `big`

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if not self.connected:
            raise AgentUnavailable

    def is_connected(self, agent_id: AgentId) -> bool:
        return self.connected

    async def ensure(
        self, where: KernelAddress, *, generation: int, want: str, spec: KernelSpec | None, grace_seconds: float = 10.0
    ) -> Fact:
        raise NotImplementedError

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
        self._called("execute")
        if str(run_id) not in self.runs:
            run = self.runs[str(run_id)] = Run(code, mode)
            self._start(run)
            self.started.set()
        return await self._read(str(run_id), 0, wait_seconds, max_bytes)

    def _start(self, run: Run) -> None:
        if run.code.startswith("print("):
            run.say("stdout", run.code[6:-1].encode() + b"\n")
            run.end()
        elif run.code == "binary":
            run.say("stdout", b"\xff\x00\xfe")
            run.end()
        elif run.code == "error":
            run.say("error", {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": []})
            run.end(1)
        elif run.code == "figure":
            run.say("result", {"text/plain": "2", "image/png": "aGk="})
            run.end()
        elif run.code == "ask":
            run.say("input_request", {"prompt": "name? ", "password": False})
            run.status = "waiting_input"

    async def read(
        self, where: KernelAddress, run_id: RunId | str, *, from_seq: int, max_bytes: int, wait_seconds: float
    ) -> RunRead:
        self._called("read")
        return await self._read(str(run_id), from_seq, wait_seconds, max_bytes)

    async def _read(self, run_id: str, from_seq: int, wait_seconds: float, max_bytes: int) -> RunRead:
        if (run := self.runs.get(run_id)) is None:
            raise RunNotFound(run_id=run_id)
        first = max(from_seq, 1)
        if len(run.records) < first and run.done is None and wait_seconds:
            run.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.changed.wait(), wait_seconds)
        packed: list[bytes] = []
        size, next_seq = 0, first
        for seq, (kind, payload) in enumerate(run.records[first - 1 :], first):
            if packed and size + len(payload) > max_bytes:
                break
            packed.append(RECORD.pack(len(payload), seq, RECORD_KINDS.index(kind), MTIME) + payload)
            size, next_seq = size + len(payload), seq + 1
        ended = run.done if next_seq > len(run.records) else None
        return RunRead(
            run_id=run_id, records=b"".join(packed), next_seq=next_seq, gap=None, status=run.status, done=ended
        )

    async def send_input(
        self, where: KernelAddress, run_id: RunId, data: bytes, *, eof: bool = False, key: UUID | None = None
    ) -> None:
        self._called("send_input")
        run = self.runs[str(run_id)]
        run.fed.append(data)
        if run.status == "waiting_input":
            run.status = "running"
            run.say("stdout", b"hello " + data)
            run.end()

    async def interrupt(self, where: KernelAddress, run_id: RunId | None) -> bool:
        self._called("interrupt")
        running = [run for run in self.runs.values() if run.done is None]
        for run in running:
            run.end(130, "interrupted")
        return bool(running)

    async def kill(self, where: KernelAddress, run_id: RunId, grace_seconds: float | None = None) -> bool:
        self._called("kill")
        run = self.runs[str(run_id)]
        if run.done is not None:
            return False
        run.end(137, "killed")
        return True

    async def complete(
        self, where: KernelAddress, *, code: str, row: int, col: int, line: str, post: str
    ) -> dict[str, Any]:
        self._called("complete")
        return {"suggestions": [f"{code}nt"], "start": 0, "end": len(code)}

    # -- files ---------------------------------------------------------------------------------------------------------
    def _stat(self, path: str) -> FileStat:
        path = posixpath.normpath(posixpath.join("/home/work", path))
        if path == "/home/work/big":
            return FileStat(
                name=path, type="file", size=self.big_bytes, mtime=MTIME, mode=0o644, owner=1000, group=1000
            )
        if any(name.startswith(f"{path}/") for name in self.files):
            return FileStat(name=path, type="directory", size=0, mtime=MTIME, mode=0o755, owner=1000, group=1000)
        if path not in self.files:
            raise FileNotFound(path=path)
        content, mode = self.files[path]
        return FileStat(name=path, type="file", size=len(content), mtime=MTIME, mode=mode, owner=1000, group=1000)

    async def list_files(self, where: KernelAddress, path: str, *, cursor: str | None, limit: int) -> FilePage:
        self._called("list_files")
        folder = posixpath.normpath(posixpath.join("/home/work", path))
        names = sorted(name for name in self.files if posixpath.dirname(name) == folder and name > (cursor or ""))
        found = [replace(self._stat(name), name=posixpath.basename(name)) for name in names[:limit]]
        return FilePage(files=found, next_cursor=names[limit - 1] if len(names) > limit else None)

    async def manage_file(
        self, where: KernelAddress, op: str, arguments: dict[str, Any], *, key: UUID | None = None
    ) -> FileStat | None:
        self._called(f"manage_file {op}")
        if op == "remove":
            del self.files[posixpath.join("/home/work", arguments["path"])]
            return None
        return self._stat(arguments["path"])

    async def upload(
        self,
        where: KernelAddress,
        path: str,
        body: AsyncIterator[bytes],
        *,
        size: int | None,
        mode: int | None = None,
        overwrite: bool = True,
        sha256: str | None = None,
    ) -> FileStat:
        self._called("upload")
        if path in self.files and not overwrite:
            raise FileExists(path=path)
        if path == "/home/work/big":
            self.big_bytes = 0
            async for chunk in body:
                self.big_bytes += len(chunk)
            return self._stat(path)
        content = b""
        async for chunk in body:
            content += chunk
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise TransferFailed("The content has another sum.")
        self.files[path] = (content, 0o644 if mode is None else mode)
        return self._stat(path)

    async def download(self, where: KernelAddress, path: str, *, offset: int = 0, length: int | None = None) -> Bytes:
        self._called("download")
        stat = self._stat(path)
        if stat.type != "file":
            raise NotARegularFile(path=path)
        if stat.name.endswith("/big"):
            count = stat.size - offset if length is None else length
            chunks: Sequence[bytes] = Zeros(count)
        else:
            content, _ = self.files[stat.name]
            end = None if length is None else offset + length
            chunks = [content[offset:end]]
            if stat.name.endswith("breaks"):
                chunks = [content[:3], b"<break>"]
        self.downloads.append(Bytes(stat, chunks))
        return self.downloads[-1]

    async def archive(self, where: KernelAddress, paths: Sequence[str]) -> Bytes:
        self._called("archive")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in paths:
                content, _ = self.files[self._stat(path).name]
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        self.downloads.append(Bytes(None, [buffer.getvalue()]))
        return self.downloads[-1]

    async def open_process(self, where: KernelAddress, spec: ProcessSpec) -> FakeProcess:
        if spec.resume and spec.process not in self.processes:
            raise PtyNotFound
        made = FakeProcess(spec, resumed=spec.process in self.processes)
        self.processes[made.id] = made
        return made

    async def statistics(self, where: KernelAddress) -> dict[str, Any]:
        self._called("statistics")
        return {"cpu_seconds": 1.5, "mem_bytes": 1024}

    async def pull_image(
        self, agent_id: AgentId, image: str, auth: dict[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        yield {"current": 1, "total": 1, "message": "there"}

    async def push_image(
        self, agent_id: AgentId, job: UUID, image: str, auth: dict[str, str] | None
    ) -> AsyncIterator[dict[str, Any]]:
        yield {"result": {"digest": "sha256:2"}}

    async def commit(
        self, where: KernelAddress, job: UUID, image: str, labels: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        made = {"image_id": "sha256:1", "architecture": "x86_64", "labels": labels, "size_bytes": 10}
        yield {"result": {**made, "frozen_seconds": 0.1}}

    async def cancel_job(self, agent_id: AgentId, job: UUID) -> bool:
        return False

    async def list_images(self, agent_id: AgentId) -> list[dict[str, Any]]:
        return []

    async def remove_image(self, agent_id: AgentId, image: str, *, job: UUID | None = None) -> bool:
        return False


class Zeros(Sequence[bytes]):
    """So many zero bytes in chunks of 1 MiB, without holding them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._chunk = bytes(1 << 20)

    def __len__(self) -> int:
        return (self._count + len(self._chunk) - 1) // len(self._chunk)

    def __getitem__(self, at: Any) -> Any:
        if at >= len(self):
            raise IndexError
        return self._chunk[: self._count - at * len(self._chunk)]
