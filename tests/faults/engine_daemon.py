"""The engine's daemon killed, restarted, hung and slow, under sessions that compute."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import docker
from moorage import aio
from moorage.aio.executions import Execution

from images.build import ensure_image
from tests.faults.book import Book
from tests.faults.engines import PrivateEngine
from tests.faults.installation import Installation

SMALL: Final[dict[str, Any]] = {"cpu": 0.2, "mem": "128m"}
_COUNT: Final = "import time\nfor i in range(100000):\n    print(i, flush=True)\n    time.sleep(0.05)"
_ENDED: Final = ("TERMINATED", "ERROR", "CANCELLED")


@dataclass
class Ward:
    """Sessions that count aloud, on an engine of our own."""

    engine: PrivateEngine
    installation: Installation
    client: aio.Client
    book: Book
    counting: list[tuple[aio.Session, Execution]] = field(default_factory=list)

    async def begin(self, number: int = 3) -> None:
        for n in range(number):
            session = await self.client.sessions.create(f"count-{len(self.counting)}-{n}-{time.time_ns()}", **SMALL)
            self.counting.append((session, await session.executions.start(_COUNT)))

    async def end(self) -> None:
        for session, _ in self.counting:
            await session.destroy(wait=60)
        self.counting.clear()

    async def counts_on(self) -> list[str]:
        """All of them go on, and every number was said once."""
        return [one for session, run in self.counting for one in await self._counts_on(session, run)]

    async def _counts_on(self, session: aio.Session, run: Execution) -> list[str]:
        await session.refresh()
        if session.status != "RUNNING":
            return [f"{session.name} is {session.status}: {session.info.status_reason}"]
        said = await self._said(run)
        async with asyncio.timeout(20):
            while len(more := await self._said(run)) <= len(said):
                await asyncio.sleep(0.1)
        return [] if more == list(range(len(more))) else [f"I3 {session.name} counts {more[:3]}...{more[-3:]}"]

    async def _said(self, run: Execution) -> list[int]:
        text = "".join([record.text or "" async for record in run.output(follow=False)])
        return [int(line) for line in text.split("\n")[:-1]]

    async def another(self, name: str, begun: float) -> None:
        """How long until a session can be created again."""
        session = await self.client.sessions.create(f"after-{time.time_ns()}", wait=60, **SMALL)
        self.book.took(name, time.monotonic() - begun)
        ran = await session.run_code("print(1)")
        assert ran.stdout == "1\n"
        await session.destroy(wait=60)

    async def judge(self, name: str, found: list[str]) -> None:
        self.book.fault(name, found + await self.installation.check(self.client))


@asynccontextmanager
async def ward(folder: Path, book: Book, *, live_restore: bool) -> AsyncIterator[Ward]:
    host = os.environ["DOCKER_HOST"]
    client = docker.DockerClient(base_url=host)
    image = await asyncio.to_thread(ensure_image, client)
    client.close()
    engine = PrivateEngine(folder / "engine", live_restore=live_restore)
    try:
        await asyncio.to_thread(engine.open, image, host)
        with Installation.up(folder / "up", environ={"DOCKER_HOST": engine.host}) as installation:
            async with installation.client() as asked:
                yield Ward(engine, installation, asked, book)
    finally:
        await asyncio.to_thread(engine.close)


async def _down(here: Ward, number: int, *, containerd: bool = False, seconds: float = 1.0) -> float:
    """Ends the daemon, and starts it after a while; when it answered again."""
    await asyncio.to_thread(here.engine.kill, number, containerd=containerd)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(here.engine.start)
    return time.monotonic()


async def killed(here: Ward) -> None:
    """With live-restore nothing ends."""
    back = await _down(here, signal.SIGKILL)
    await here.another("engine back: the next session runs", back)
    await here.judge("dockerd killed", await here.counts_on())


async def restarted(here: Ward) -> None:
    back = await _down(here, signal.SIGTERM)
    await here.another("engine back: the next session runs", back)
    await here.judge("dockerd restarted", await here.counts_on())


async def killed_with_containerd(here: Ward) -> None:
    back = await _down(here, signal.SIGKILL, containerd=True)
    await here.another("engine back: the next session runs", back)
    await here.judge("dockerd and containerd killed", await here.counts_on())


async def hung(here: Ward) -> None:
    """What is asked for meanwhile is done afterwards; what computes goes on."""
    doomed = await here.client.sessions.create(f"doomed-{time.time_ns()}", **SMALL)
    here.engine.stop_answering()
    try:
        waiting = await here.client.sessions.create(f"waits-{time.time_ns()}", wait=False, **SMALL)
        await doomed.destroy(wait=False)
        found = await here.counts_on()
        await asyncio.sleep(5)
        await waiting.refresh()
        if waiting.status in ("RUNNING", *_ENDED):
            found.append(f"what was asked for while the engine hung is {waiting.status}: {waiting.info.status_reason}")
    finally:
        here.engine.answer_again()
    back = time.monotonic()
    await waiting.wait_until("RUNNING", *_ENDED, timeout=60)
    here.book.took("engine answers again: what waited runs", time.monotonic() - back)
    if waiting.status != "RUNNING":
        found.append(f"{waiting.status}: {waiting.info.status_reason}")
    await doomed.wait_until(*_ENDED, timeout=60)
    here.book.took("engine answers again: what was to end is gone", time.monotonic() - back)
    await waiting.destroy(wait=60)
    await here.judge("dockerd hung", found + await here.counts_on())


async def agent_restarted_without_an_engine(here: Ward) -> None:
    """The agent waits for its engine, and finds everything again."""
    await asyncio.to_thread(here.engine.kill)
    dead = here.installation.kill("agent")
    await asyncio.sleep(2)
    await asyncio.to_thread(here.engine.start)
    back = time.monotonic()
    await here.installation.recovered(dead)
    here.book.took("engine back: its agent serves again", time.monotonic() - back)
    await here.judge("agent and dockerd killed", await here.counts_on())


async def killed_without_live_restore(here: Ward) -> None:
    """Everything ends, says so, frees its slots, and nothing comes back by itself."""
    await _ends(here, signal.SIGKILL, "dockerd killed, without live-restore")


async def restarted_without_live_restore(here: Ward) -> None:
    await _ends(here, signal.SIGTERM, "dockerd restarted, without live-restore")


async def _ends(here: Ward, number: int, name: str) -> None:
    sessions = [session for session, _ in here.counting]
    back = await _down(here, number)
    found = []
    for session in sessions:
        await session.wait_until(*_ENDED, timeout=60)
        if session.status != "ERROR" or not session.info.status_reason:
            found.append(f"I4 {session.name} is {session.status}: {session.info.status_reason!r}")
    here.book.took(
        "engine back without live-restore: every session has ended, with its reason", time.monotonic() - back
    )
    print(sessions[0].info.status_reason)
    await here.another("engine back: the next session runs", back)
    here.counting.clear()
    await here.judge(name, found)


Story = Callable[[Ward], Awaitable[None]]
WITH: Final[tuple[Story, ...]] = (killed, restarted, killed_with_containerd, hung, agent_restarted_without_an_engine)
WITHOUT: Final[tuple[Story, ...]] = (killed_without_live_restore, restarted_without_live_restore)


async def daemon(folder: Path, book: Book, *, rounds: int = 1) -> None:
    async with ward(folder / "with", book, live_restore=True) as here:
        await here.begin()
        for _ in range(rounds):
            for story in WITH:
                await story(here)
        await here.end()
    async with ward(folder / "without", book, live_restore=False) as here:
        for _ in range(rounds):
            for story in WITHOUT:
                await here.begin()
                await story(here)
