"""Every call that an agent makes of its engine, answered wrongly in every way: lost, late, cut, doubled, refused."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import moorage
from moorage import aio

from tests.faults.book import Book
from tests.faults.installation import Installation
from tests.faults.outside import Outside
from tests.faults.proxy import EngineProxy, Fault

#: No story takes so long, whatever was answered.
MOST_SECONDS: Final = 60.0
#: Asked by an agent that starts.
_AT_START: Final = frozenset(
    {"GET info", "GET version", "GET networks", "GET containers/json", "GET events", "GET images/json"}
)
SMALL: Final[dict[str, Any]] = {"cpu": 0.2, "mem": "128m"}


@dataclass
class Stand:
    """An installation whose agent speaks to its engine through a proxy."""

    installation: Installation
    proxy: EngineProxy
    client: aio.Client
    book: Book
    number: int = 0

    # -- stories -------------------------------------------------------------------------------------------------------
    async def story(self, *, restart_agent: bool = False) -> list[str]:
        """A session's life. What must never be."""
        self.number += 1
        try:
            async with asyncio.timeout(MOST_SECONDS):
                return await self._life(f"life-{self.number}", restart_agent)
        except TimeoutError:
            return [f"I11 the life of a session was not over within {MOST_SECONDS:g} s"]
        except moorage.MoorageError as error:
            return [f"I9 {error.code}: {error.message}"]

    async def _life(self, name: str, restart_agent: bool) -> list[str]:
        found: list[str] = []
        if restart_agent:
            await self.installation.recovered(self.installation.kill("agent"))
        session = await self.client.sessions.create(name, wait=False, **SMALL)
        try:
            await session.wait_until("RUNNING", "TERMINATED", "ERROR", "CANCELLED")
            if session.status == "RUNNING":
                found += await self._works(session)
            elif not session.info.status_reason:
                found.append(f"I4 it is {session.status}, and nothing says why")
        finally:
            await session.destroy(wait=MOST_SECONDS)
        return found

    async def _works(self, session: aio.Session) -> list[str]:
        """Run, be resized, be kept as an image, begin again. A refusal that says why is no violation."""
        ran = await session.run_code("print(6 * 7)")
        found = [] if ran.stdout == "42\n" else [f"I3 6 * 7 printed {ran.stdout!r}"]
        task = await session.commit(f"kept-{self.number}")
        await session.modify(mem=192)
        try:
            await task.wait(MOST_SECONDS)
            await self.client.images.remove(f"kept-{self.number}")
        except moorage.MoorageError as error:
            if task.status != "failed":
                found.append(f"I11 the commit is {task.status}: {error.message}")
        await session.restart(wait=False)
        await session.wait_until("RUNNING", "TERMINATED", "ERROR", "CANCELLED")
        if session.status == "RUNNING":
            again = await session.run_code("print(7 * 7)")
            found += [] if again.stdout == "49\n" else [f"I3 7 * 7 printed {again.stdout!r}"]
        elif not session.info.status_reason:
            found.append(f"I4 it is {session.status} after a restart, and nothing says why")
        return found

    async def trial(self, kind: str, fault: Fault) -> None:
        fallen = self.proxy.arm(kind, fault)
        begun = time.monotonic()
        found = await self.story(restart_agent=kind in _AT_START)
        self.proxy.disarm()
        if not fallen.is_set():
            return
        self.book.took("engine answers wrongly: a session's life", time.monotonic() - begun)
        self.book.fault(f"{kind}: {fault}", found + await self.installation.check(self.client))


async def every_call(stand: Stand, rng: Random, *, most: int | None = None) -> None:
    """Each kind that a life without faults is seen to need, in each way; in an order of the seed's, `most` of them."""
    found = await stand.story(restart_agent=True)
    found += await stand.installation.check(stand.client)
    stand.book.fault("none", found)
    kinds: Sequence[str] = sorted(kind for kind in stand.proxy.seen if "events" not in kind and "load" not in kind)
    trials = [(kind, fault) for kind in kinds for fault in Fault]
    rng.shuffle(trials)
    for kind, fault in trials[:most]:
        await stand.trial(kind, fault)


async def replies(folder: Path, book: Book, *, most: int | None = None) -> None:
    engine = os.environ["DOCKER_HOST"]
    folder.mkdir(parents=True, exist_ok=True)
    proxy = EngineProxy(folder / "engine.sock", engine, delay_seconds=2.0)
    proxy.start()
    try:
        with Installation.up(folder / "up", environ={"DOCKER_HOST": proxy.host}) as installation:
            installation.outside = Outside(installation.data_dir, engine)
            async with installation.client() as client:
                await every_call(Stand(installation, proxy, client, book), Random(book.seed), most=most)
    finally:
        proxy.stop()
