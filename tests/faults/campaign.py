"""The campaign of crash points: arm one, drive until it kills, wait until all goes on, check everything; again and again."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Final

from tests.faults import errands
from tests.faults.installation import Installation, Killed
from tests.faults.points import all_points
from tests.faults.routes import driver_of
from tests.faults.workload import DRIVERS, Town, Violation

assert errands  # it adds its drivers
#: Beside the driver, so that no fault finds everybody but one asleep.
_BESIDE: Final = ("execute", "upload", "execute", "rename", "look")
#: Deaths at any moment, beside those at points.
_RANDOM: Final = ("api", "control", "proxy", "agent", "ssh", "manager")
_TRIES: Final = 6
#: One in so many kills is at a moment of no point's choosing.
_RANDOM_ONE_IN: Final = 8


@dataclass(slots=True, kw_only=True)
class Result:
    """One kill, and what became of it."""

    number: int
    point: str
    driver: str
    process: str = ""
    ready_seconds: float | None = None  #: from the death until its successor works
    done_seconds: float | None = None  #: from the death until what was under way was done
    seconds: float = 0.0  #: all of it
    violations: list[str] = field(default_factory=list)
    reached: bool = True


def order(seed: int, kills: int, only: Sequence[str] = ()) -> list[str]:
    """The points in the order in which they are armed; all of them before any comes again. `random PROCESS`: any moment.

    `kills` of 0: each point once.
    """
    rng, points = Random(seed), [point for point in all_points() if not only or point.startswith(tuple(only))]
    planned: list[str] = []
    while len(planned) < max(kills, 1):
        rng.shuffle(points)
        for number, point in enumerate(points, 1):
            planned.append(point)
            if number % _RANDOM_ONE_IN == 0 and not only:
                planned.append(f"random {rng.choice(_RANDOM)}")
    return planned[:kills] if kills else planned


class Campaign:
    """`run` kills in the given order, for at most so many seconds."""

    def __init__(self, town: Town, out: IO[str]) -> None:
        self._town = town
        self._out = out
        self.results: list[Result] = []

    async def run(self, planned: Sequence[str], *, seconds: float | None = None) -> None:
        until = time.monotonic() + seconds if seconds else None
        for number, point in enumerate(planned, 1):
            if until is not None and time.monotonic() > until:
                return
            result = await self._one(number, point)
            self.results.append(result)
            self._out.write(json.dumps(asdict(result)) + "\n")
            self._out.flush()
            say = "; ".join(result.violations) or "all is well"
            done = f"{result.done_seconds:.1f}" if result.done_seconds is not None else "-"
            ready = f"{result.ready_seconds:.1f}" if result.ready_seconds is not None else "-"
            print(f"{number:5} {result.seconds:5.1f} s, ready {ready}, done {done}  {point}: {say}", flush=True)

    async def _one(self, number: int, point: str) -> Result:
        town, begun = self._town, time.monotonic()
        random, _, process = point.partition(" ")
        driver = town.rng.choice(sorted(DRIVERS)) if random == "random" else driver_of(point)
        if driver is None:
            return Result(number=number, point=point, driver="", violations=["no driver leads there"], reached=False)
        result = Result(number=number, point=point, driver=driver)
        beside = asyncio.create_task(DRIVERS[town.rng.choice(_BESIDE)](town))
        try:
            killed = await (
                self._at_random(process, driver, result) if random == "random" else self._at(point, driver, result)
            )
            if killed is None:
                result.reached = False
                result.violations.append(f"{point} was not reached by {driver}")
            else:
                result.process = killed.process
        except Violation as violation:
            result.violations.append(str(violation))
        except TimeoutError as late:
            result.violations.append(f"I11 {late}")
        except Exception as error:
            result.violations.append(f"{type(error).__name__}: {error}")
        finally:
            town.installation.disarm()
        try:
            await beside
        except Exception as violation:
            result.violations.append(f"beside: {violation}")
        result.violations += await self._check()
        result.seconds = round(time.monotonic() - begun, 3)
        return result

    async def _at(self, point: str, driver: str, result: Result) -> Killed | None:
        """Drive until the point is reached; then until the driver has done its work, over the death."""
        installation = self._town.installation
        installation.arm(point)
        killed = None
        for _ in range(_TRIES):
            work = asyncio.create_task(DRIVERS[driver](self._town))
            try:
                while killed is None and not work.done():
                    await asyncio.wait({work}, timeout=0.005)
                    killed = installation.last_fired()
                if killed is None and work.done():  # some points come a moment after the answer
                    killed = await installation.fired(seconds=0.3)
                if killed is not None:
                    await self._recover(killed, work, result)
                    return killed
                work.result()
            finally:
                work.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await work
        return None

    async def _at_random(self, process: str, driver: str, result: Result) -> Killed:
        work = asyncio.create_task(DRIVERS[driver](self._town))
        await asyncio.sleep(self._town.rng.uniform(0.0, 1.0))
        killed = self._town.installation.kill(process)
        await self._recover(killed, work, result)
        return killed

    async def _recover(self, killed: Killed, work: asyncio.Task[None], result: Result) -> None:
        ready = asyncio.create_task(self._town.installation.recovered(killed))
        try:
            await work
            result.done_seconds = round(time.monotonic() - killed.at, 3)
        finally:
            result.ready_seconds = round(await ready, 3)

    async def _check(self) -> list[str]:
        town = self._town
        try:
            async with asyncio.timeout(60):
                found = await town.installation.check(town.client)
                return found + await town.model.verify()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return [f"I9 it could not be checked: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"]


async def campaign(folder: Path, *, seed: int, kills: int, seconds: float | None, only: Sequence[str] = ()) -> Campaign:
    """A whole one. Lines of JSON in `folder`/results.jsonl."""
    with (
        Installation.up(folder) as installation,
        (folder / "results.jsonl").open("w") as out,
    ):
        async with Town.founded(installation, seed) as town:
            run = Campaign(town, out)
            await run.run(order(seed, kills, only), seconds=seconds)
            hits = installation.reached()
        out.write(json.dumps({"hits": dict(sorted(hits.items())), "seed": seed, "points": len(all_points())}) + "\n")
    return run
