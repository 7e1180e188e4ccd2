"""Faults of the database of a whole installation, while users go on with their work; and how soon the API is back."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.faults.book import Book
from tests.faults.installation import Installation
from tests.faults.postgres import Postgres
from tests.faults.workload import DRIVERS, Town, Violation

#: What users do meanwhile.
BESIDE = ("execute", "upload", "rename", "look", "life", "execute", "feed", "modify")
BACK = "PostgreSQL back -> API"


def postgres_of(installation: Installation) -> Postgres:
    return Postgres(installation.data_dir / "postgres")


class Watch:
    """Asks the API without end; knows when it answered last, and whatever it answered that was not planned."""

    def __init__(self, endpoint: str, bearer: str) -> None:
        self._request = urllib.request.Request(
            f"{endpoint}/v1/sessions?limit=1", headers={"Authorization": f"Bearer {bearer}"}
        )
        self.unplanned: list[str] = []
        self.refusals = 0

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._request, timeout=40) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refusal:
            self.refusals += 1
            if refusal.code != 503 or not refusal.headers.get("Retry-After"):
                self.unplanned.append(f"I9 {refusal.code} {refusal.read()[:200]!r}")
        except OSError as error:
            self.unplanned.append(f"I9 {error!r}")
        return False

    async def back_after(self, is_up: Callable[[], bool], *, seconds: float = 60.0) -> float:
        """Seconds between the database's return and that of the API."""

        async def first(holds: Callable[[], bool]) -> float:
            while not await asyncio.to_thread(holds):
                await asyncio.sleep(0.01)
            return time.monotonic()

        async with asyncio.timeout(seconds):
            database, api = await asyncio.gather(first(is_up), first(self.answers))
        return max(0.0, api - database)


@asynccontextmanager
async def at_work(town: Town, found: list[str]) -> AsyncIterator[None]:
    """Users work; what they were in the middle of is finished after the fault."""
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            name = town.rng.choice(BESIDE)
            try:
                await DRIVERS[name](town)
            except Violation as violation:
                found.append(str(violation))

    working = [asyncio.create_task(work()) for _ in range(2)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*working)


async def restarted(town: Town, book: Book, watch: Watch, number: signal.Signals) -> None:
    """Its processes end at once; `moorage up` starts it again."""
    postgres = postgres_of(town.installation)
    await asyncio.to_thread(postgres.crash, number)
    book.took(BACK, await watch.back_after(postgres._is_ready))


async def terminated(town: Town, book: Book, watch: Watch, seconds: float) -> None:
    """Ten connections a second are ended."""
    await postgres_of(town.installation).terminate_backends(per_second=10, seconds=seconds)
    began = time.monotonic()
    while not await asyncio.to_thread(watch.answers):
        await asyncio.sleep(0.01)
    book.took("connections are left alone -> API", time.monotonic() - began)


async def hung(town: Town, book: Book, watch: Watch, seconds: float) -> None:
    """It is there, and does nothing."""
    with postgres_of(town.installation).stopped():
        await asyncio.sleep(seconds)
    began = time.monotonic()
    while not await asyncio.to_thread(watch.answers):
        await asyncio.sleep(0.01)
    book.took("PostgreSQL goes on -> API", time.monotonic() - began)


Fault = Callable[[Town, Book, Watch], Awaitable[None]]


def outages(seconds: float) -> dict[str, Fault]:
    """By name. `seconds`: for how long connections are ended."""
    return {
        "database stopped immediately": lambda t, b, w: restarted(t, b, w, signal.SIGQUIT),
        "database killed": lambda t, b, w: restarted(t, b, w, signal.SIGKILL),
        f"10 connections a second ended for {seconds:g} s": lambda t, b, w: terminated(t, b, w, seconds),
        "database hung for 3 s": lambda t, b, w: hung(t, b, w, 3.0),
    }


async def inject(name: str, fault: Fault, town: Town, book: Book) -> None:
    """Once, with people at work, and everything checked afterwards."""
    installation = town.installation
    watch = Watch(installation.endpoint, f"{installation.access_key}.{installation.secret_key}")
    found: list[str] = []
    async with at_work(town, found):
        await asyncio.sleep(0.3)
        try:
            await fault(town, book, watch)
        except TimeoutError:
            found.append("I11 the API did not come back")
        await asyncio.sleep(0.3)
    found += watch.unplanned
    found += await town.model.verify()
    found += await installation.check(town.client)
    book.fault(name, found)


async def measured(town: Town, book: Book, *, times: int) -> None:
    """Restarts of the database with people at work, one after the other, and one check at the end."""
    installation, found = town.installation, list[str]()
    watch = Watch(installation.endpoint, f"{installation.access_key}.{installation.secret_key}")
    async with at_work(town, found):
        for number in range(times):
            await restarted(town, book, watch, signal.SIGKILL if number % 2 else signal.SIGQUIT)
            await asyncio.sleep(town.rng.uniform(0.2, 1.0))
    found += watch.unplanned
    found += await town.model.verify()
    found += await installation.check(town.client)
    book.fault(f"{times} restarts of the database in a row", found)
