"""Calls of a driver that may never answer, from threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pynvml

T = TypeVar("T")
SECONDS: Final = 10.0
_WAIT_MS: Final = 500
_PAUSE_SECONDS: Final = 5.0


class Unanswered(Exception):
    """The driver has not answered in time."""


class Calls:
    """One call at a time, in one thread. While a call hangs, further ones fail at once instead of piling up behind it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds  #: that an answer may take
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hangs = False
        self.idle = threading.Event()  #: no call is being made; for tests
        self.idle.set()

    async def __call__(self, function: Callable[..., T], *words: Any, seconds: float | None = None) -> T:
        """Raises Unanswered, and whatever the function raises."""
        if self._hangs:
            raise Unanswered("NVIDIA's driver does not answer")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="agent-gpu", daemon=True)
            self._thread.start()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.put((lambda: function(*words), answer))
        try:
            async with asyncio.timeout(seconds or self.seconds):
                return await answer
        except TimeoutError:
            self._hangs = True
            raise Unanswered(f"NVIDIA's driver has not answered for {seconds or self.seconds:g} s") from None

    def close(self) -> None:
        """A thread whose call hangs ends with the process."""
        self._waiting.put(None)

    def _work(self) -> None:
        while (asked := self._waiting.get()) is not None:
            function, answer = asked
            loop = answer.get_loop()
            self.idle.clear()
            try:
                done: Any = function()
                failed: Exception | None = None
            except Exception as error:
                done, failed = None, error
            self._hangs = False
            self.idle.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, answer, done, failed)


class Xids:
    """Waits for the driver's events. `seen` is called in the loop's thread with a device's UUID and the number of its error."""

    def __init__(self, seen: Callable[[str, int], None]) -> None:
        self._seen = seen
        self._stop = threading.Event()

    def watch(self, uuids: frozenset[str]) -> None:
        """Devices, not MIG instances. Replaces what was watched before."""
        self._stop.set()
        self._stop = threading.Event()
        if uuids:
            words = (uuids, self._stop, asyncio.get_running_loop())
            threading.Thread(target=self._wait, args=words, name="agent-gpu-events", daemon=True).start()

    def close(self) -> None:
        self._stop.set()

    def _wait(self, uuids: frozenset[str], stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(pynvml.NVMLError, RuntimeError):
            events = pynvml.nvmlEventSetCreate()
            devices = {}
            for uuid in uuids:
                with contextlib.suppress(pynvml.NVMLError):  # not every device tells
                    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
                    devices[_address(handle)] = uuid
            while devices and not stop.is_set():
                try:
                    event = pynvml.nvmlEventSetWait_v2(events, _WAIT_MS)
                except pynvml.NVMLError_Timeout:
                    continue
                except pynvml.NVMLError:  # a device is lost; readings say which
                    stop.wait(_PAUSE_SECONDS)
                    continue
                if (uuid := devices.get(_address(event.device), "")) and not stop.is_set():
                    loop.call_soon_threadsafe(self._seen, uuid, int(event.eventData))
            pynvml.nvmlEventSetFree(events)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _settle(answer: asyncio.Future[Any], done: Any, failed: Exception | None) -> None:
    if answer.done():
        return
    if failed is not None:
        answer.set_exception(failed)
    else:
        answer.set_result(done)
