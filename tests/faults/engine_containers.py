"""Containers that die, vanish, freeze and never come up: seen soon, with the right reason, and their slots are free."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker
from moorage import aio

from tests.faults.book import Book
from tests.faults.installation import Installation

SMALL: Final[dict[str, Any]] = {"cpu": 0.2, "mem": "128m"}
_ENDED: Final = ("TERMINATED", "ERROR", "CANCELLED")
#: reliability.md
SEEN_SECONDS: Final = 3.0


@dataclass
class Bench:
    installation: Installation
    client: aio.Client
    engine: docker.DockerClient
    book: Book
    number: int = 0

    async def session(self, **settings: Any) -> aio.Session:
        self.number += 1
        return await self.client.sessions.create(f"patient-{self.number}", **{**SMALL, **settings})

    def container(self, session: aio.Session) -> Any:
        (found,) = self.engine.containers.list(all=True, filters={"label": f"moorage.session={session.id}"})
        return found

    async def ends(self, what: str, session: aio.Session, begun: float, reason: str) -> list[str]:
        """Seen, for its reason, and its slots are free."""
        await session.wait_until("TERMINATING", *_ENDED, timeout=30)
        seen = time.monotonic() - begun
        self.book.took("a container that has ended is seen", seen)
        await session.wait_until(*_ENDED, timeout=30)
        freed = time.monotonic() - begun
        self.book.took("a container that has ended: its slots are free", freed)
        found = []
        if reason not in (session.info.status_reason or ""):
            found.append(f"I4 its reason is {session.info.status_reason!r}, not {reason!r}")
        if seen > SEEN_SECONDS or freed > 2 * SEEN_SECONDS:
            found.append(f"I11 seen after {seen:.1f} s, slots free after {freed:.1f} s")
        return found

    async def judge(self, name: str, found: list[str]) -> None:
        used = sum(sum((agent.used or {}).values()) for agent in await self.client.agents.list())
        if used:
            found = [*found, f"I1 {used} units are still in use"]
        self.book.fault(name, found + await self.installation.check(self.client))


async def killed(here: Bench) -> None:
    session = await here.session()
    begun = time.monotonic()
    here.container(session).kill()
    await here.judge(
        "container killed", await here.ends("killed", session, begun, "the session's container was killed")
    )


async def removed(here: Bench) -> None:
    session = await here.session()
    begun = time.monotonic()
    here.container(session).remove(force=True)
    # who asks first sees it dead, or gone
    await here.judge(
        "container removed by hand", await here.ends("removed", session, begun, "the session's container was")
    )


async def stopped(here: Bench) -> None:
    session = await here.session()
    begun = time.monotonic()
    await asyncio.to_thread(here.container(session).kill, "SIGTERM")
    await asyncio.to_thread(here.container(session).stop, timeout=1)
    await here.judge(
        "container stopped by hand", await here.ends("stopped", session, begun, "the session's container was")
    )


async def out_of_memory(here: Bench) -> None:
    """150 children that undo their own mark to be killed first: PID 1 dies as well (or none of it, and it goes on)."""
    code = """
import os, time
for n in range(150):
    if os.fork() == 0:
        open('/proc/self/oom_score_adj', 'w').write('0')
        block = bytearray(4 << 20)
        for i in range(0, len(block), 4096): block[i] = 1
        time.sleep(60)
time.sleep(60)
"""
    session = await here.session()
    begun = time.monotonic()
    run = await session.executions.start(code, mode="batch")
    try:
        await session.wait_until("TERMINATING", *_ENDED, timeout=10)
    except TimeoutError:
        pass
    except Exception as error:
        if type(error).__name__ != "WaitTimeout":
            raise
    found: list[str] = []
    if session.status == "RUNNING":
        await run.kill()
        ran = await session.run_code("print(1)")
        found += [] if ran.stdout == "1\n" else [f"it goes on, and printed {ran.stdout!r}"]
        await session.destroy(wait=30)
    else:
        await session.wait_until(*_ENDED, timeout=30)
        here.book.took("out of memory to the end of the session", time.monotonic() - begun)
        if "memory" not in (session.info.status_reason or ""):
            found.append(f"I4 its reason is {session.info.status_reason!r}")
    await here.judge("out of memory, PID 1 included", found)


def freeze(container: Any) -> None:
    """Under load the runtime gives up now and then."""
    for _ in range(20):
        try:
            container.pause()
            return
        except docker.errors.APIError as error:
            if "unable to freeze" not in str(error):
                raise
    raise TimeoutError("the engine cannot freeze it")


async def frozen(here: Bench) -> None:
    """By hand: thawed, and its owner is told."""
    session = await here.session()
    begun = time.monotonic()
    freeze(here.container(session))
    ran = await session.run_code("print(2)", timeout=30)
    here.book.took("a container that was frozen by hand goes on", time.monotonic() - begun)
    notices: list[str] = []
    while "frozen" not in notices and time.monotonic() - begun < SEEN_SECONDS:
        await session.refresh()
        notices = [str(notice.kind) for notice in session.info.notices]
    found = [] if ran.stdout == "2\n" else [f"it printed {ran.stdout!r}"]
    found += [] if "frozen" in notices else [f"its owner was told of {notices}"]
    await session.destroy(wait=30)
    await here.judge("container frozen by hand", found)


async def dies_at_start(here: Bench) -> None:
    """Killed the moment it was started, before its runner has answered."""

    def kill_the_next() -> None:
        for event in here.engine.events(decode=True, filters={"type": "container", "event": ["start"]}):
            said = event["Actor"]["Attributes"]
            if said.get("moorage.agent") == here.installation.outside.uid:
                here.engine.containers.get(said["name"]).kill()
                return

    killing = asyncio.ensure_future(asyncio.to_thread(kill_the_next))
    await asyncio.sleep(0.3)  # until the engine's events are followed
    here.number += 1
    session = await here.client.sessions.create(f"patient-{here.number}", wait=False, **SMALL)
    await session.wait_until("RUNNING", *_ENDED, timeout=30)
    await killing
    await session.wait_until(*_ENDED, timeout=30)
    found = [] if session.info.status_reason else ["I4 nothing says why"]
    if session.status != "ERROR":
        found.append(f"it is {session.status}")
    await here.judge("container dies at its start", found)


Story = Callable[[Bench], Awaitable[None]]
STORIES: Final[tuple[Story, ...]] = (killed, removed, stopped, out_of_memory, frozen, dies_at_start)


async def containers(folder: Path, book: Book, *, rounds: int = 3) -> None:
    engine = docker.DockerClient(base_url=os.environ["DOCKER_HOST"], timeout=60)
    with Installation.up(folder) as installation:
        async with installation.client() as client:
            here = Bench(installation, client, engine, book)
            for _ in range(rounds):
                for story in STORIES:
                    await story(here)
    engine.close()
