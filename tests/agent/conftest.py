"""An agent's kernels on a real engine, each test with a data dir of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.containers import Containers, EngineError
from agent.gpus import Gpus
from agent.kernel import Defaults, Kernel
from agent.kernels import Kernels
from agent.runtime import ensure_runtime
from agent.store import Store
from agent.wire import Fact, KernelSpec, RunDone

NETWORK = f"moorage-{os.getpid() % 100_000}"
WAIT_SECONDS = 30.0


@pytest.fixture(scope="session")
def shared_runtime() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="moorage-test-runtime-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield ensure_runtime(folder)
    shutil.rmtree(folder)


class Host:
    """One host's agent without its connections. `crash` and `start` again on the same data dir."""

    def __init__(self, data_dir: Path, runtime: Path, engine_host: str, image: str) -> None:
        self.data_dir = data_dir
        self.image = image
        self._runtime = runtime
        self._engine_host = engine_host
        self.gpus: Gpus | None = None  #: for the next start
        self.kernels: Kernels
        self._store: Store
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._store = await Store.open(self.data_dir / "agent.db")
        self.engine = Containers(self._engine_host, self._store.uid, NETWORK)
        await self.engine.open()
        defaults = Defaults(network=NETWORK)
        self.kernels = Kernels(
            self._store, self.engine, self.data_dir, self._runtime, defaults=defaults, gpus=self.gpus
        )
        await self.kernels.recover()
        self._watching = asyncio.create_task(self.kernels.watch())

    async def stop(self) -> None:
        """As a crash does, nothing is done to containers."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.kernels.close()
        await self._store.close()
        self.engine.close()

    async def clear(self) -> None:
        """Remove what is left on the engine. What was asked of it before is done by then, or shows here."""
        self.engine = Containers(self._engine_host, self._store.uid, NETWORK)
        await self.engine.open()
        while there := await self.engine.ours():
            for container in there:
                await self.engine.remove(container.id)
        with contextlib.suppress(EngineError):  # another run of these tests uses it
            await self.engine.remove_network()
        self.engine.close()

    def spec(self, **given: Any) -> KernelSpec:
        slots = {"cpu": 1000, "mem": 256}
        return KernelSpec(**{"session_id": "s", "session_name": "demo", "image": self.image, "slots": slots, **given})

    async def run(self, kernel_id: str, generation: int = 1, attempt: int = 1, **given: Any) -> Fact:
        return await self.kernels.ensure(kernel_id, attempt, generation=generation, want="RUN", spec=self.spec(**given))

    async def end(self, kernel_id: str, generation: int = 2, attempt: int = 1) -> Fact:
        return await self.kernels.ensure(
            kernel_id, attempt, generation=generation, want="GONE", spec=None, grace_seconds=0.5
        )

    @property
    def uid(self) -> str:
        return self._store.uid

    async def outside(self, *words: str) -> None:
        """Somebody else speaks to the engine."""
        command = ["docker", "-H", self._engine_host, *words]
        asked = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        assert await asked.wait() == 0

    def kernel(self, kernel_id: str) -> Kernel:
        kernel = self.kernels.find(kernel_id)
        assert kernel is not None
        return kernel

    async def until(self, kernel_id: str, *observed: str) -> Fact:
        """Wait for news until one of these is true."""
        async with asyncio.timeout(WAIT_SECONDS):
            while (fact := self.kernel(kernel_id).fact()).observed not in observed:
                self.kernels.changed.clear()
                await self.kernels.changed.wait()
        return fact

    async def until_ended(self, *run_ids: str) -> list[RunDone]:
        """Wait until the ends of these runs are to be told."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not {*run_ids} <= {run.run_id for run in self.kernels.runs.pending()}:
                self.kernels.changed.clear()
                await self.kernels.changed.wait()
        return [run for run in self.kernels.runs.pending() if run.run_id in run_ids]

    async def containers(self) -> list[str]:
        return [container.name for container in await self.engine.ours()]


@pytest.fixture
async def host(tmp_path: Path, shared_runtime: Path, engine_host: str, kernel_image: str) -> AsyncIterator[Host]:
    made = Host(tmp_path / "data", shared_runtime, engine_host, kernel_image)
    await made.start()
    yield made
    await made.stop()
    await made.clear()


@pytest.fixture
def kernel_id() -> str:
    return str(uuid4())
