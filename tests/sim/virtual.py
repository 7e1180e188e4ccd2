"""Virtual time, and processes that can be killed at any await: what is woken for a dead one is never run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any


class Process:
    """Everything that one daemon is: whatever runs in `context` dies with it, without any clean-up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.context: Context = copy_context()
        self.context.run(PROCESS.set, self)
        self.on_death: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return self.name

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            for tell in self.on_death:
                tell()


#: Whose code runs at the moment; None: the world itself.
PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class Deadlock(Exception):
    """Everybody waits, and nothing will ever happen."""


class Endless(Exception):
    """So many turns, and no end: somebody spins."""


MOST_TURNS = 200_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which time passes only when nothing is left to do at the present moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0
        super().__init__(_Clockwork(self))
        #: how long a thread takes, before and after what it does
        self.thread_seconds: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
        self.set_exception_handler(lambda _loop, _context: None)

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        return super().call_soon(_if_alive, _process(context), callback, args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        return super().call_at(when, _if_alive, _process(context), callback, args, context=context)

    def run_in_executor(self, _executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """At once when its turn has come, in this thread; others have their turn before and after."""
        future: asyncio.Future[Any] = self.create_future()
        before, after = self.thread_seconds()

        def work() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                self.call_later(after, _fail, future, error)
            else:
                self.call_later(after, _succeed, future, result)

        self.call_later(before, work)
        return future

    def bury(self) -> None:
        """The end of a world: what never came to its end is ended here, unheard."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # there is no other way to say so
            work = task.get_coro()
            if work is not None:
                with suppress(BaseException):
                    work.close()
        self.close()


class _Clockwork(selectors.SelectSelector):
    """Instead of waiting for input, lets the time pass."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.turns += 1
        if self._loop.turns > MOST_TURNS:
            raise Endless
        if timeout is None:
            raise Deadlock
        if timeout > 0:
            self._loop.now += timeout
        return []


def _process(context: Context | None) -> Process | None:
    return PROCESS.get() if context is None else context.get(PROCESS)


def _if_alive(process: Process | None, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if process is None or process.alive:
        callback(*args)


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


async def for_ever() -> Any:
    """Where a killed process stays."""
    await asyncio.get_running_loop().create_future()


def start(process: Process, work: Any, name: str) -> asyncio.Task[Any]:
    """A first task of a process."""
    task: asyncio.Task[Any] = process.context.copy().run(asyncio.ensure_future, work)
    task.set_name(name)
    return task


class VirtualTime:
    """Stands in for the module `time` where a module counts on the monotonic clock."""

    def __init__(self, loop: VirtualLoop, epoch: float) -> None:
        self._loop = loop
        self._epoch = epoch

    def monotonic(self) -> float:
        return self._loop.now

    def time(self) -> float:
        return self._epoch + self._loop.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)
