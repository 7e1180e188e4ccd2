"""A runner without a container: the same program on a link directory, open to peers of its own namespace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent.rings import RingReader
from agent.runner_link import RunnerConfig, RunnerLink, prepare_link
from agent.wire import Record, decode_records

RUNNER = Path(__file__).parents[2] / "runner/__main__.py"


@dataclass
class Output:
    """One run, read to its end."""

    records: list[Record]
    done: dict[str, Any]
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def text(self, kind: str) -> str:
        return b"".join(record.payload for record in self.records if record.kind == kind).decode()

    @property
    def stdout(self) -> str:
        return self.text("stdout")

    @property
    def stderr(self) -> str:
        return self.text("stderr")

    @property
    def results(self) -> list[dict[str, Any]]:
        return [record.data for record in self.records if record.kind == "result"]

    @property
    def error(self) -> dict[str, Any]:
        return next(record.data for record in self.records if record.kind == "error")

    @property
    def kinds(self) -> list[str]:
        """In order; output that came in several records counts once."""
        kinds = [record.kind for record in self.records]
        return [kind for at, kind in enumerate(kinds) if kind[:3] != "std" or kinds[at - 1 : at] != [kind]]


@dataclass
class Kernel:
    """A running runner, and what a test does with it."""

    link: RunnerLink
    link_dir: Path
    work: Path
    pid: int
    reader: RingReader
    runs: int = 0

    def new_run(self) -> str:
        self.runs += 1
        return f"run-{self.runs}"

    async def run(self, code: str, *, mode: str = "query", run: str | None = None, **options: Any) -> Output:
        run = run or self.new_run()
        await self.link.execute(run, mode=mode, code=code, wait_seconds=30, **options)
        return await self.finish(run)

    async def finish(self, run: str) -> Output:
        """Follow a run to its end, as a reader from far away would."""
        records: list[Record] = []
        gaps: list[tuple[int, int]] = []
        at = 0
        async with asyncio.timeout(60):
            while True:
                chunk = self.reader.read(run, at)
                records += decode_records(chunk.records)
                if chunk.gap:
                    gaps.append(chunk.gap)
                at = chunk.next_seq
                if chunk.done is not None:
                    return Output(records, chunk.done, gaps)
                if not chunk.records:
                    await self.link.wait_tail(run, at - 1, 30)

    async def until(self, run: str, kind: str, after: int = 0) -> Record:
        """The first record of a kind beyond a sequence number."""
        at = after + 1
        async with asyncio.timeout(30):
            while True:
                chunk = self.reader.read(run, at)
                for record in decode_records(chunk.records):
                    if record.kind == kind:
                        return record
                at = chunk.next_seq
                assert chunk.done is None, f"the run ended without a {kind}"
                await self.link.wait_tail(run, at - 1, 30)


@contextlib.asynccontextmanager
async def started(folder: Path, config: RunnerConfig) -> AsyncIterator[Kernel]:
    """A runner that is no container's PID 1, on `folder`/link and `folder`/work."""
    link_dir, work = folder / "link", folder / "work"
    work.mkdir(exist_ok=True)
    config = replace(config, workdir=str(work))
    ready = prepare_link(link_dir, config, uid=os.getuid(), gid=os.getgid())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-B",
        str(RUNNER),
        str(link_dir),
        "--any-peer",
        env={},
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        await ready.wait(10)
        link = await RunnerLink.connect(link_dir, folder / "private", process.pid)
        reader = RingReader(link_dir)
        try:
            yield Kernel(link, link_dir, work, process.pid, reader)
        finally:
            reader.close()
            if not link.lost.is_set():
                with contextlib.suppress(Exception):
                    await link.shutdown(0.2)
            await link.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="runner-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def config() -> RunnerConfig:
    python = os.path.realpath(sys.executable)
    return RunnerConfig(environ={"PATH": os.environ["PATH"]}, python=python)


@pytest.fixture
async def kernel(folder: Path, config: RunnerConfig) -> AsyncIterator[Kernel]:
    async with started(folder, config) as running:
        yield running
