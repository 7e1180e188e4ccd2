"""Whether those whose calls go on may still be here: asked again when anybody's rights change, and now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from domain.errors import DatabaseUnavailable, MoorageError

log = logging.getLogger("moorage.grpc")
LOOK_SECONDS = 1.0


@dataclass(eq=False)
class _Open:
    task: asyncio.Task[object]
    #: raises what the caller is to be told
    ask: Callable[[], Awaitable[None]]
    error: MoorageError | None = None


class Watch:
    """`async with watch.over(ask):` is left by the error of `ask`, as soon as there is one."""

    def __init__(self) -> None:
        self._open: set[_Open] = set()
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def wake(self, _: object = None) -> None:
        self._changed.set()

    @contextlib.asynccontextmanager
    async def over(self, ask: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        one = _Open(task, ask)
        self._open.add(one)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="watch calls")
        try:
            yield
        except asyncio.CancelledError:
            if one.error is None:
                raise
            task.uncancel()
            raise one.error from None
        finally:
            self._open.discard(one)

    async def _look(self) -> None:
        while self._open:
            before = set(self._open)  # what has only begun was asked for just now
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_SECONDS)
            self._changed.clear()
            for one in before & self._open:
                try:
                    await one.ask()
                except DatabaseUnavailable:
                    continue  # nobody is cut off for that
                except MoorageError as error:
                    if one in self._open and one.error is None:
                        one.error = error
                        one.task.cancel()
                except Exception:  # the others are still watched, and this one is asked about again
                    log.exception("it cannot be told whether a call may go on")
        self._looking = None

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
