"""How the control role's work is driven: woken at once, at the latest after a second, and never ended by a failure."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Generic, TypeVar

from domain.errors import DatabaseUnavailable, MoorageError, RequestInProgress

T = TypeVar("T")


class Loop(ABC):
    """Runs `step` whenever it is woken, and each `floor_seconds` in any case: a lost wake-up costs a second, no more."""

    name: ClassVar[str]
    floor_seconds: ClassVar[float] = 1.0
    most_pause_seconds: ClassVar[float] = 1.0  #: after failures; short, so that all goes on soon after an outage
    #: After a wake-up, for loops on which no session waits: those on which one does go first, and a burst is one step.
    gather_seconds: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._log = logging.getLogger(f"moorage.control.{self.name}")

    def wake(self, _session_ids: object = None) -> None:
        """Also fits as a herald's callback. Any number of wakes during a step are one more step."""
        self._woken.set()

    @abstractmethod
    async def step(self) -> float | None:
        """Do what there is to do; seconds until it is due again (0: there is more, None: the floor)."""

    def failed(self) -> None:  # noqa: B027 - most have nothing to add
        """Called after each step that failed."""

    async def run(self) -> None:
        failures = 0
        while True:
            self._woken.clear()
            try:
                pause = await self.step()
            except Exception as error:
                failures += 1
                self._say(error, failures)
                self.failed()
                await asyncio.sleep(min(self.most_pause_seconds, 0.05 * 2 ** min(failures, 10)))
                continue
            if failures:
                self._log.warning("works again, after %d failed attempts", failures)
                failures = 0
            woken = await self._rest(self.floor_seconds if pause is None else min(pause, self.floor_seconds))
            if woken and self.gather_seconds:
                await asyncio.sleep(self.gather_seconds)

    async def _rest(self, seconds: float) -> bool:
        """Whether it was woken before the time was over."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True

    def _say(self, error: Exception, failures: int) -> None:
        """Once per trouble, not once per attempt."""
        if failures > 1:
            return
        if isinstance(error, MoorageError):
            self._log.warning("%s (trying on)", error)
        else:
            self._log.exception("failed (trying on)")


class Batcher(Generic[T]):
    """Writes what arrives together in one transaction: whatever came while the last one was committing is the next."""

    def __init__(self, name: str, write: Callable[[Sequence[T]], Awaitable[None]], *, most: int = 500) -> None:
        self._write = write
        self._most = most
        self._waiting: deque[tuple[Sequence[T], asyncio.Future[None]]] = deque()
        self._arrived = asyncio.Event()
        self._log = logging.getLogger(f"moorage.control.{name}")

    async def put(self, items: Sequence[T]) -> None:
        """Returns once `items` are committed. Raises what their transaction raised: tell them again then."""
        if not items:
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, written))
        self._arrived.set()
        await written

    async def run(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    await self._flush(self._take())
        finally:
            for _, written in self._waiting:
                written.cancel()

    def _take(self) -> list[tuple[Sequence[T], asyncio.Future[None]]]:
        batch = [self._waiting.popleft()]
        size = len(batch[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= self._most:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0])
        return batch

    async def _flush(self, batch: Sequence[tuple[Sequence[T], asyncio.Future[None]]]) -> None:
        try:
            await self._attempt([item for items, _ in batch for item in items])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, DatabaseUnavailable):
                for one in batch:  # so that one that cannot be written holds up no other
                    await self._flush([one])
                return
            if not isinstance(error, MoorageError):
                self._log.error("could not be written", exc_info=error)
            for _, written in batch:
                if not written.done():
                    written.set_exception(error)
        except BaseException:
            for _, written in batch:
                written.cancel()
            raise
        else:
            for _, written in batch:
                if not written.done():
                    written.set_result(None)

    async def _attempt(self, items: Sequence[T]) -> None:
        for _ in range(3):
            try:
                return await self._write(items)
            except RequestInProgress:  # a deadlock or lock timeout with another writer
                await asyncio.sleep(0.01)
        return await self._write(items)
