"""How long answers are held for their askers: until this manager is to go, and then no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """Shared by all who wait in this process. Once it has ended they are answered with what is so by then."""

    def __init__(self) -> None:
        self.ended = False
        self._scopes: set[asyncio.Timeout] = set()
        self._waiting: set[asyncio.Event] = set()

    def end(self) -> None:
        self.ended = True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            scope.reschedule(now)
        for event in self._waiting:
            event.set()

    async def ask(self, question: Callable[[float], Awaitable[T]], seconds: float) -> T:
        """The answer to `question(seconds)`; when patience ends before, to `question(0)`, which must do nothing a second time."""
        if seconds <= 0 or self.ended:
            return await question(0.0)
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    return await question(seconds)
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not self.ended:
                raise
        return await question(0.0)

    @contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """The event is set when patience ends."""
        self._waiting.add(event)
        try:
            yield
        finally:
            self._waiting.discard(event)
