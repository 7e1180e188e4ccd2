"""The user's generator behind a tensor stream: loaded, set up, and run beside the server, never on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from runner import moorage_authorizers, moorage_tensors, tensor_arrays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.moorage_tensors import Body

#: A generator that does not end when it is closed is let go after so long.
_CLOSE_SECONDS = 10.0
#: What follows the last output.
END: Any = object()


class AppFailed(Exception):
    """The application raised; `ename`, `evalue` and `traceback` are its exception's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.ename = type(error).__name__
        self.evalue = str(error)[:4096]
        there = error.__traceback__
        while there is not None and there.tb_frame.f_code.co_filename == __file__:  # of no interest to its author
            there = there.tb_next
        self.traceback = "".join(traceback.format_exception(type(error), error, there))[-16384:]


class BadOutput(Exception):
    """The application gave what is no tensor, or too large."""


class App:
    """`entry` is module:name: an async generator function, or a class with `run` (and `setup`, `close`). It is called with
    (prompt, tensor), and with start_at where it has such a parameter.
    """

    def __init__(self, entry: str, *, path: str, tensors: str = "auto", concurrency: int = 16) -> None:
        self._entry = entry
        self._path = path
        self._kind = tensors
        # twice as many: a generator that is closed waits for its last step
        self._threads = ThreadPoolExecutor(2 * concurrency, thread_name_prefix="app")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="app", daemon=True)
        self._made: Any = None
        self._run: Callable[..., Any] = lambda *_: None
        self.resume = "none"  #: own (it takes start_at), repeat (outputs are made again and dropped), none
        self.authorizer: moorage_authorizers.AuthorizerBase | None = None

    async def start(self) -> None:
        """Import, make, set up. Raises whatever the application raises."""
        self._thread.start()
        await self.within(self._load)

    async def _load(self) -> None:
        for ours in (moorage_tensors, moorage_authorizers):  # applications import them by these names
            sys.modules.setdefault(ours.__name__.rpartition(".")[2], ours)
        os.chdir(self._path)
        sys.path.insert(0, os.getcwd())
        importlib.invalidate_caches()
        module, _, name = self._entry.partition(":")
        if not name:
            raise ValueError(f"'{self._entry}' is to name a module and what to serve of it, as app:Generate.")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        self._made = found() if inspect.isclass(found) else found
        self._run = self._made.run if inspect.isclass(found) else found
        if (setup := getattr(self._made, "setup", None)) is not None and inspect.isclass(found):
            await _called(setup)
        if "start_at" in inspect.signature(self._run).parameters:
            self.resume = "own"
        elif getattr(self._made, "repeatable", False):
            self.resume = "repeat"
        self.authorizer = getattr(self._made, "authorizer", None)

    async def close(self) -> None:
        if self._made is not None and (close := getattr(self._made, "close", None)) is not None:
            with contextlib.suppress(AppFailed, asyncio.TimeoutError):
                await asyncio.wait_for(self.within(lambda: _called(close)), _CLOSE_SECONDS)
        self._threads.shutdown(wait=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, _CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def stream(self, prompt: str, body: Body, start_at: int, most_bytes: int) -> Run:
        """One run of the generator. Raises BadTensor for what the application's library cannot hold."""
        kind = tensor_arrays.loaded_kind() if self._kind == "auto" else self._kind
        tensor = tensor_arrays.unpack(body, kind)
        asked = {"start_at": start_at} if self.resume == "own" else {}
        skip = 0 if asked else start_at
        return Run(self, lambda: self._run(prompt, tensor, **asked), skip=skip, most_bytes=most_bytes)

    async def within(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """On the application's event loop, in its own thread. Raises AppFailed for what the application raises."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_guarded(work), self._loop))

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _guarded_call, work)


class Run:
    """One output after the other, each made when it is asked for."""

    def __init__(self, app: App, begin: Callable[[], Any], *, skip: int, most_bytes: int) -> None:
        self._app = app
        self._begin = begin
        self._skip = skip
        self._most_bytes = most_bytes
        self._source: Any = None
        self._single = False
        self._step_task: asyncio.Future[Any] | None = None  #: on the application's loop
        self._lock = threading.Lock()  #: of a generator that is not asynchronous

    async def next(self) -> Body:
        """The next output, as bytes; None at the end. Raises AppFailed for what the application raises, BadOutput."""
        while self._skip:
            self._skip -= 1
            if await self._step(wanted=False) is None:
                return None
        found: Body = await self._step()
        return found

    async def close(self) -> None:
        """The generator's `finally` runs, wherever it is; one that does not end is let go."""
        with contextlib.suppress(AppFailed, asyncio.TimeoutError):  # what it says now, nobody hears
            if inspect.isgenerator(self._source):
                await asyncio.wait_for(self._app.in_thread(self._close_plain), _CLOSE_SECONDS)
            else:
                await asyncio.wait_for(self._app.within(self._close_async), _CLOSE_SECONDS)

    async def _step(self, *, wanted: bool = True) -> Any:
        if self._source is None:
            # calling a generator function runs nothing of it; of any other, it is the application's work
            await self._app.within(self._start)
        if self._single:
            value, self._source = self._source, None if self._source is END else END
            return None if value is END else self._packed(value)
        if inspect.isasyncgen(self._source):
            return await self._app.within(lambda: self._step_async(wanted))
        return await self._app.in_thread(lambda: self._step_plain(wanted))

    async def _start(self) -> None:
        source = self._begin()
        if inspect.isawaitable(source):
            self._step_task = asyncio.ensure_future(_guarded(lambda: source))
            self._source, self._single = await self._step_task, True
        elif inspect.isasyncgen(source) or inspect.isgenerator(source):
            self._source = source
        else:
            raise TypeError(f"The application gave a {type(source).__name__}; it is to be a generator of tensors.")

    async def _step_async(self, wanted: bool) -> Any:
        self._step_task = asyncio.ensure_future(_guarded(lambda: _next_of(self._source)))
        value = await self._step_task
        return self._packed(value) if wanted or value is END else True

    def _step_plain(self, wanted: bool) -> Any:
        with self._lock:
            value = next(self._source, END)
        return self._packed(value) if wanted or value is END else True

    def _packed(self, value: Any) -> Body:
        """In the application's thread: a device may be waited for."""
        if value is END:
            return None
        if value is None:
            raise BadOutput("The application gave None where a tensor is wanted.")
        try:
            return tensor_arrays.pack(value, self._most_bytes)
        except moorage_tensors.BadTensor as error:
            raise BadOutput(str(error)) from None

    async def _close_async(self) -> None:
        if self._step_task is not None and not self._step_task.done():
            self._step_task.cancel()
            await asyncio.wait({self._step_task})
        if inspect.isasyncgen(self._source):
            await self._source.aclose()

    def _close_plain(self) -> None:
        with self._lock:
            self._source.close()


async def _next_of(source: Any) -> Any:
    try:
        return await source.__anext__()
    except StopAsyncIteration:
        return END


async def _guarded(work: Callable[[], Awaitable[Any]]) -> Any:
    """Whatever it raises as AppFailed: a SystemExit would end the event loop."""
    try:
        return await work()
    except (asyncio.CancelledError, AppFailed, BadOutput):
        raise
    except BaseException as error:
        raise AppFailed(error) from error


def _guarded_call(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (AppFailed, BadOutput):
        raise
    except BaseException as error:
        raise AppFailed(error) from error


async def _called(function: Callable[[], Any]) -> None:
    value = function()
    if inspect.isawaitable(value):
        await value
