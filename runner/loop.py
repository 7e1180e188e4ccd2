"""A small event loop over epoll: descriptors, timers, and calls from threads. asyncio costs 30 ms at start."""

from __future__ import annotations

import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
#: epoll refuses to wait for more than 24 days; a run may take 30.
MOST_PATIENCE_SECONDS = 86400.0


class Timer:
    """A call in the future."""

    __slots__ = ("action", "due")

    def __init__(self, due: float, action: Callable[[], None]) -> None:
        self.due = due
        self.action: Callable[[], None] | None = action

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Runs callbacks in one thread, until `stop`. `on_error` hears of exceptions in callbacks; they end nothing."""

    def __init__(self, on_error: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._cancelled = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._idle: deque[Callable[[], None]] = deque()
        self._on_error = on_error
        self._stopped = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, READ, self._on_wake)

    def _on_wake(self, events: int) -> None:
        os.eventfd_read(self._wake)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        if timer is None or timer.action is None:
            return
        timer.action = None
        self._cancelled += 1
        if self._cancelled > 256 and self._cancelled * 2 > len(self._timers):
            self._timers = [t for t in self._timers if t.action is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def idle(self, action: Callable[[], None]) -> None:
        """Call it once, after everything that is ready now: nobody waits for it."""
        self._idle.append(action)

    def from_thread(self, action: Callable[[], None]) -> None:
        """Call it in the loop's thread; the only method that other threads may use."""
        self._calls.append(action)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            for fd, events in self._epoll.poll(self._patience()):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    self._call(lambda callback=callback, events=events: callback(events))  # type: ignore[misc]
            now = time.monotonic()
            while self._timers and self._timers[0].due <= now:
                action = heapq.heappop(self._timers).action
                if action is None:
                    self._cancelled -= 1
                else:
                    self._call(action)
            while self._calls:
                self._call(self._calls.popleft())
            for _ in range(len(self._idle)):
                self._call(self._idle.popleft())

    def _patience(self) -> float:
        if self._calls or self._idle:
            return 0
        if not self._timers:
            return -1
        return min(max(0.0, self._timers[0].due - time.monotonic()), MOST_PATIENCE_SECONDS)

    def _call(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            self._on_error()
