"""How the manager asks an agent to do something."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias
from uuid import UUID

from agent.wire import Fact, KernelSpec, ProcessSpec, RunRead, ServiceFact, ServiceSpec
from domain.ids import AgentId, KernelId, RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelAddress:
    """Where a kernel is: its host, and the attempt that is meant."""

    agent_id: AgentId
    kernel_id: KernelId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeAddress:
    """A volume, and a host that has its store: its files are managed there, without any session."""

    agent_id: AgentId
    volume_id: UUID
    store: str
    uid: int  #: as whom its files are read and written
    gid: int
    quota_bytes: int | None = None
    quota_files: int | None = None

    def pack(self) -> dict[str, Any]:
        return {
            "id": str(self.volume_id),
            "store": self.store,
            "uid": self.uid,
            "gid": self.gid,
            "quota_bytes": self.quota_bytes,
            "quota_files": self.quota_files,
        }


#: Whose files are meant.
Place: TypeAlias = KernelAddress | VolumeAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """A file in a session. Times are unix seconds."""

    name: str  #: relative to the listed folder, or the path that was asked for
    type: str  #: file, directory, link, fifo, socket, device
    size: int
    mtime: float
    mode: int  #: permission bits
    owner: int
    group: int
    link_target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePage:
    files: Sequence[FileStat]
    next_cursor: str | None


class Download(Protocol):
    """Bytes on their way out of a session. Always closed, also when it is not read to its end."""

    stat: FileStat | None  #: None for archives

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Bytes that a process wrote."""

    data: bytes
    error: bool = False  #: to its stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnd:
    """Why no more comes of a process."""

    reason: str  #: exited; taken (somebody else attached to its terminal); lost (the connection broke)
    exit_code: int | None = None
    signal: str | None = None  #: such as TERM, of a process that was ended by it


class Process(Protocol):
    """A process to which this connection is attached. Its terminal outlives the connection; without one, it ends with it."""

    id: str
    position: int  #: how many bytes of output there were before what `read` gives next
    resumed: bool  #: it had been there before
    lost: int  #: bytes that were asked for and are no longer kept

    async def read(self) -> Output | ProcessEnd: ...
    async def write(self, data: bytes) -> None: ...
    async def write_eof(self) -> None: ...
    async def resize(self, rows: int, cols: int) -> None: ...
    async def signal(self, name: str) -> None:
        """To what runs in the foreground; INT, TERM, ..."""
        ...

    async def hang_up(self) -> None:
        """End it, as closing a terminal does."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class AgentClient(Protocol):
    """Every call raises `AgentUnavailable` when the agent is not connected to this process or does not answer in time,
    and the domain error that the agent names otherwise. A timeout means *unknown*: ask again."""

    def is_connected(self, agent_id: AgentId) -> bool: ...

    async def ensure(
        self, where: KernelAddress, *, generation: int, want: str, spec: KernelSpec | None, grace_seconds: float = 10.0
    ) -> Fact:
        """Make it so, and answer with what is true at this moment; the rest follows as facts.

        A lower (attempt, generation) than the agent has seen is refused as stale, an equal one is answered with the
        present fact, GONE of an unknown kernel leaves a tombstone.
        """
        ...

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
        """Start the run, at most once per run id however often this is called, and answer like `read` from seq 0."""
        ...

    async def read(
        self, where: KernelAddress, run_id: RunId | str, *, from_seq: int, max_bytes: int, wait_seconds: float
    ) -> RunRead:
        """Output from `from_seq` on; waits up to `wait_seconds` when there is none yet. The run `"log"` is the container's log."""
        ...

    async def send_input(
        self, where: KernelAddress, run_id: RunId, data: bytes, *, eof: bool = False, key: UUID | None = None
    ) -> None: ...

    async def interrupt(self, where: KernelAddress, run_id: RunId | None) -> bool:
        """SIGINT to one run or to whatever runs; False when nothing ran."""
        ...

    async def kill(self, where: KernelAddress, run_id: RunId, grace_seconds: float | None = None) -> bool:
        """SIGKILL to one run; with a grace SIGTERM, and SIGKILL when it has not ended by then. False when it did not run."""
        ...

    async def complete(
        self, where: KernelAddress, *, code: str, row: int, col: int, line: str, post: str
    ) -> dict[str, Any]: ...

    async def state(
        self,
        where: KernelAddress,
        do: Literal["get", "set", "delete", "list"],
        name: str | None = None,
        value: Any = None,
        *,
        key: UUID | None = None,
    ) -> dict[str, Any]:
        """The session's store: get {found, value}, set {}, delete {deleted}, list {sizes: {name: bytes}}. Once for each key."""
        ...

    async def list_files(self, where: Place, path: str, *, cursor: str | None, limit: int) -> FilePage: ...

    async def manage_file(
        self, where: Place, op: str, arguments: dict[str, Any], *, key: UUID | None = None
    ) -> FileStat | None:
        """`op` is mkdir, move, copy, remove, stat or chmod."""
        ...

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
        """Write a file as the session's user: whole or not at all."""
        ...

    async def unpack(
        self, where: Place, path: str, body: AsyncIterator[bytes], *, size: int | None, overwrite: bool = True
    ) -> dict[str, int]:
        """Unpack a tar or zip archive into the folder `path`, whole or not at all: {files, folders, links, bytes}."""
        ...

    async def volume_usage(self, where: VolumeAddress) -> dict[str, int]:
        """{bytes, files}"""
        ...

    def clone_volume(self, where: VolumeAddress, job: UUID, source: UUID) -> AsyncIterator[dict[str, Any]]:
        """Fill the volume with what is in another one of the same store. Progress, and at last {"result": {bytes, files}}."""
        ...

    def remove_volume(self, where: VolumeAddress, job: UUID) -> AsyncIterator[dict[str, Any]]:
        """Remove all of its files for good. Progress, and at last {"result": None}; the same when there is none."""
        ...

    async def download(self, where: Place, path: str, *, offset: int = 0, length: int | None = None) -> Download: ...

    async def archive(self, where: Place, paths: Sequence[str]) -> Download:
        """A tar stream of files and folders; links stay links."""
        ...

    async def results(self, where: KernelAddress) -> Download:
        """A tar stream of what is kept of a kernel that is gone. Raises ResultsNotFound when there is nothing."""
        ...

    async def start_service(self, where: KernelAddress, spec: ServiceSpec) -> ServiceFact:
        """Start a program and wait for its first answer; asked again for the same generation, wait for the same start.

        ServiceEnded, ServiceSilent or PortConflict when that fails; nothing is left of it then.
        """
        ...

    async def stop_service(self, where: KernelAddress, name: str) -> None:
        """SIGTERM, then SIGKILL; nothing happens when there is no such service."""
        ...

    async def tunnel_socket(self, where: KernelAddress, port: int) -> socket.socket:
        """A connection to a port inside the container, as a non-blocking socket that the caller closes.

        `NothingListens` when no program takes connections there.
        """
        ...

    async def open_tunnel(self, where: KernelAddress, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same as streams: the writer's `write_eof` ends one direction, `drain` waits for a slow reader."""
        ...

    async def open_process(self, where: KernelAddress, spec: ProcessSpec) -> Process:
        """Start a process as the session's user and attach to it, or attach again to a terminal.

        `PtyNotFound` when that is gone, `ResourceExhausted` when there are too many.
        """
        ...

    async def grant_direct(self, where: KernelAddress, *, write: bool, by: str) -> dict[str, Any]:
        """An address at which the host itself serves the kernel's files, {url, token, certificate, write, expires_at}, or
        {refused} with a sentence on why there is none."""
        ...

    async def statistics(self, where: KernelAddress) -> dict[str, Any]:
        """{cpu_seconds, mem_bytes, mem_peak_bytes, pids, oom_kills, disk_bytes, ...}, from the cgroup's own files."""
        ...

    def pull_image(
        self, agent_id: AgentId, image: str, auth: dict[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Progress {current, total, message} until the image is there. `auth` is {username, password}."""
        ...

    def push_image(
        self, agent_id: AgentId, job: UUID, image: str, auth: dict[str, str] | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Progress, at last {"result": {digest}}. Who asks again for a job attaches to it."""
        ...

    def commit(
        self, where: KernelAddress, job: UUID, image: str, labels: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        """Make an image of a kernel and its files. Progress, at last {"result": {image_id, architecture, labels,
        size_bytes, frozen_seconds}}. Who asks again for a job attaches to it."""
        ...

    async def cancel_job(self, agent_id: AgentId, job: UUID) -> bool:
        """Returns when the commit or push has stopped, and nothing is left of it. False when it does not run."""
        ...

    async def census(self, agent_id: AgentId) -> dict[str, Any]:
        """What the host's engine really has of ours, whatever the agent remembers:

        {"containers": [{name, kernel_id, attempt, status, cpu_milli, memory_mib, pids, confined}], "networks": [session ids]}
        """
        ...

    async def list_images(self, agent_id: AgentId) -> list[dict[str, Any]]:
        """[{id, tags, digests, labels, size_bytes}, ...]"""
        ...

    async def remove_image(self, agent_id: AgentId, image: str, *, job: UUID | None = None) -> bool:
        """False when it is not there. With `job`, only the image that this job has made."""
        ...
