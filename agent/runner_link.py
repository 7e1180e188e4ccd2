"""The agent's end of the conversation with a container's runner (docs/runner.md).

Everything that comes from a container is hostile: frames are bounded and checked, every request has a deadline, and a
runner that breaks the rules is treated as lost. Nothing here knows Docker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.client import FilePage, FileStat
from agent.rings import RunnerError

__all__ = ["Archive", "RunnerConfig", "RunnerError", "RunnerLink", "Tail", "prepare_link"]


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


class ReadySignal:
    """Wakes up when the runner listens. Make it with `prepare_link`, before the container starts."""

    async def wait(self, timeout_seconds: float) -> None:
        """Until the runner listens; RunnerError("runner_lost") when that takes longer. Closes the signal."""

    def close(self) -> None: ...


def prepare_link(link_dir: Path, config: RunnerConfig, *, uid: int = 1000, gid: int = 1000) -> ReadySignal:
    """Make the directory to mount read-write at /moorage/link, ready for a (new) start of its container.

    Rings of earlier attempts stay readable; runs that these left unfinished are closed as `worker_lost`.
    Call it when no runner is alive there.
    """
    raise NotImplementedError


class Archive:
    """A tar stream on its way out of a session: iterate, and always `aclose`."""

    stat: FileStat | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def aclose(self) -> None: ...


class RunnerLink:
    """One control connection to one runner. All methods raise `RunnerError`; after `lost` is set all raise "runner_lost"."""

    lost: asyncio.Event  #: set when the runner, or the connection to it, has gone
    worker: dict[str, Any]  #: {state: starting|ready|absent|failed, version, pid} at the time of the hello
    runs: dict[str, dict[str, Any]]  #: unfinished runs at the time of the hello: {run: {mode, status, seq, started_at}}

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
        raise NotImplementedError

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
        raise NotImplementedError

    async def wait_tail(self, run: str, after_seq: int, timeout_seconds: float) -> Tail:
        """Until records beyond `after_seq` exist or the run is done, at most `timeout_seconds`. The run `"log"` never ends."""
        raise NotImplementedError

    async def send_input(self, run: str, data: bytes, *, eof: bool = False) -> None:
        """Feed a running run; kept for it when it does not ask yet. Error: not_waiting_for_input when it is done."""

    async def interrupt(self, run: str | None = None) -> bool:
        """SIGINT to one run, or to all that run; False when nothing ran."""
        raise NotImplementedError

    async def kill(self, run: str) -> bool:
        """SIGKILL to one run (its worker, or its process group); False when it does not run."""
        raise NotImplementedError

    async def complete(self, *, code: str, row: int, col: int, line: str, post: str) -> dict[str, Any]:
        """{suggestions: [str], start: int, end: int}: offsets in the line; no suggestions while the worker is busy."""
        raise NotImplementedError

    async def bootstrap(self, script: str, *, run: str = "bootstrap", timeout_seconds: float | None = None) -> Tail:
        """Run a shell script as a batch run in the working folder, and wait for its end (read its ring for the result)."""
        raise NotImplementedError

    async def status(self) -> dict[str, Any]:
        """{worker, runs, disk_bytes (of the working folder), ring_bytes, processes}."""
        raise NotImplementedError

    async def list_files(self, path: str = ".", *, cursor: str | None = None, limit: int = 100) -> FilePage:
        raise NotImplementedError

    async def manage_file(self, op: str, arguments: dict[str, Any]) -> FileStat | None:
        """mkdir {path, parents, mode}, move {path, to, overwrite}, copy {path, to, overwrite, recursive},
        remove {path, recursive}, stat {path}, chmod {path, mode, recursive}. The new stat; None after remove."""
        raise NotImplementedError

    async def open_file(self, path: str) -> tuple[int, FileStat]:
        """A regular file opened by the session's user, as a descriptor that the caller must close."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def archive(self, paths: Sequence[str]) -> Archive:
        """A tar stream of files and folders; links stay links. Closing the stream stops the runner's work on it."""
        raise NotImplementedError

    async def shutdown(self, grace_seconds: float) -> None:
        """SIGTERM to everything, SIGKILL after the grace; finished output is complete on disk when this returns."""

    async def close(self) -> None:
        """Let go of the connection; the runner and its runs go on."""
