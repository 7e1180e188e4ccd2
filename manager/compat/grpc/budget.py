"""How many bytes of messages one user may have in this process at once: whoever sends too much is refused, and nobody else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

#: A message that is about to come waits so long for room for the largest one.
PATIENCE_SECONDS: Final = 20.0
#: Of one user at once.
MOST_CALLS: Final = 200


class OverBudget(Exception):
    """There is no room for more messages of this user."""


class Share:
    """One user's. A message is reserved for at the largest size before it is read, for only then its size is known."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.calls = 0  #: that have it in their hands
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        return self.total - self.used

    async def reserve(self, amount: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits its turn. Raises OverBudget when there was none."""
        if not self._waiting and amount <= self.free:
            self.used += amount
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.release(amount)  # it came at the same moment
            else:
                with suppress(ValueError):
                    self._waiting.remove((amount, turn))
                self._admit()
            if isinstance(error, TimeoutError):
                raise OverBudget from None
            raise

    def take(self, amount: int) -> None:
        """At once. Raises OverBudget."""
        if amount > self.free:
            raise OverBudget
        self.used += amount

    def release(self, amount: int) -> None:
        self.used -= amount
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.cancelled():
                if amount > self.free:
                    return
                self.used += amount
                turn.set_result(None)
            self._waiting.popleft()


class Budget:
    """Of all users. `largest`: bytes that one message may have."""

    def __init__(self, *, each: int, largest: int) -> None:
        self.largest = largest
        self._each = max(each, largest)
        self._shares: dict[str, Share] = {}

    @contextmanager
    def share(self, of: str) -> Iterator[Share]:
        """Raises OverBudget for too many calls at once. Forgotten after the last one."""
        share = self._shares.setdefault(of, Share(self._each))
        if share.calls >= MOST_CALLS:
            raise OverBudget
        share.calls += 1
        try:
            yield share
        finally:
            share.calls -= 1
            if not share.calls:
                del self._shares[of]
