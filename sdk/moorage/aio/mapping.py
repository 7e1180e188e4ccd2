"""The same work on many inputs, over several sessions at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from moorage import _shipped
from moorage._errors import CommandFailed, MoorageError
from moorage._shipped import Work
from moorage.aio import _io
from moorage.aio.executions import Execution
from moorage.aio.sessions import Session, Sessions
from moorage.errors import InvalidRequest, SessionEnded, SessionNotFound, WrongStatus
from moorage.results import RunResult

#: Makes a session fit for the work: code that is run in it once, or something that is done with it.
Setup = str | Callable[[Session], object]
#: Inputs that are worked on, or done and not asked for yet, for each session.
AHEAD = 4
MAX_STARTS = 3
#: A session that answers so has not begun with an input, which may then be given to another.
_NOT_BEGUN = (SessionEnded, SessionNotFound, WrongStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What became of one input: its `value`, or why there is none (`error`); `run` is how it ran, with its output."""

    index: int
    input: Any
    value: Any = None
    error: MoorageError | None = None
    run: RunResult | None = None

    @property
    def ok(self) -> bool:
        """It has a value."""
        return self.error is None

    def check(self) -> Any:
        """The value; raises the error, if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


class Place:
    """Where one worker works: a session of the caller's, or one that is made for this."""

    def __init__(self, given: Session | None) -> None:
        self.given = given is not None
        self.session = given
        self.ready = False  # whether it knows the work
        self.running: Execution | None = None


class Crew:
    """Workers, one place each, and what they have come to. With the lock, nothing but a change is waited for."""

    def __init__(
        self,
        sessions: Sessions,
        work: Work,
        inputs: Iterable[Any],
        places: int | Iterable[Session],
        *,
        setup: Setup | None,
        timeout: float | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._sessions = sessions
        self._definition = _shipped.definition(work)
        self._inputs: Iterator[Any] = iter(inputs)
        made = isinstance(places, int)
        self._places = [Place(None) for _ in range(places)] if isinstance(places, int) else [Place(s) for s in places]
        if not self._places:
            raise ValueError("the work needs at least one session" + (": sessions=1" if made else ""))
        self._setup = setup
        self._timeout = timeout
        self._settings = settings
        self._changed = _io.Condition()
        self._done: dict[int, Mapped] = {}
        self._next = 0  # to be told
        self._taken = 0
        self._returned: list[tuple[int, Any]] = []  # by workers that could not begin
        self._total: int | None = None
        self._working = len(self._places)
        self._opening = 0
        self._failure: BaseException | None = None
        self._ending = False

    async def outcomes(self) -> AsyncGenerator[Mapped]:
        """In the order of the inputs. Whoever stops asking ends the work, and the sessions that were made for it."""
        workers = [_io.begin(self._worker, place) for place in self._places]
        try:
            while True:
                async with self._changed:
                    while self._next not in self._done:
                        if self._next == self._total:
                            return
                        if self._failure is not None and (self._working == 0 or self._is_hopeless(self._failure)):
                            raise self._failure
                        await self._changed.wait()
                    outcome = self._done.pop(self._next)
                    self._next += 1
                    self._changed.notify_all()
                yield outcome
        finally:
            await self._end()
            for worker in workers:
                await _io.ended(worker)

    @staticmethod
    def _is_hopeless(failure: BaseException) -> bool:
        """What would fail in every session, unlike the lack of room for one more."""
        return isinstance(failure, CommandFailed) or not isinstance(failure, MoorageError)

    async def _end(self) -> None:
        async with self._changed:
            self._ending = True
            self._changed.notify_all()
        await _io.side_by_side(self._stop, self._places)

    async def _stop(self, place: Place) -> None:
        session, running = place.session, place.running
        with suppress(MoorageError):
            if session is not None and not place.given:
                await session.destroy()
            elif running is not None:
                await running.kill()

    async def _worker(self, place: Place) -> None:
        try:
            while (taken := await self._take()) is not None:
                if not await self._work_on(place, *taken):
                    break
        except BaseException as problem:
            async with self._changed:
                self._failure = self._failure or problem
        finally:
            async with self._changed:
                self._working -= 1
                self._changed.notify_all()
        if not place.given:
            await self._stop(place)

    async def _take(self) -> tuple[int, Any] | None:
        """An input that nobody works on, as soon as those who ask have come near enough to it."""
        async with self._changed:
            while not self._ending:
                if self._returned:
                    self._opening += 1
                    return self._returned.pop(0)
                if self._total is None and self._taken < self._next + AHEAD * len(self._places):
                    try:
                        item = next(self._inputs)
                    except StopIteration:
                        self._total = self._taken
                        self._changed.notify_all()
                        continue
                    self._taken += 1
                    self._opening += 1
                    return self._taken - 1, item
                if self._total is not None and self._opening == 0:
                    return None  # nobody can return anything any more
                await self._changed.wait()
            return None

    async def _work_on(self, place: Place, index: int, item: Any) -> bool:
        """Whether the place can go on."""
        begun: Execution | MoorageError | None = None
        failure: BaseException | None = None
        try:
            begun = await self._begun(place, item)
        except BaseException as problem:
            failure = problem
        async with self._changed:
            self._opening -= 1
            if failure is not None:
                self._failure = self._failure or failure
                self._returned.append((index, item))
            self._changed.notify_all()
        if begun is None:
            return False
        outcome = await self._outcome(place, begun, index, item)
        async with self._changed:
            self._done[index] = outcome
            self._changed.notify_all()
        return True

    async def _begun(self, place: Place, item: Any) -> Execution | MoorageError:
        """The run of the work on this input, or why there can be none."""
        try:
            code = _shipped.call(item)
        except TypeError as problem:
            return InvalidRequest(f"{problem}.")
        attempt = 0
        while True:
            attempt += 1
            try:
                session = await self._opened(place)
                return await session.executions.start(code, timeout=self._timeout)
            except _NOT_BEGUN:
                if place.given or attempt == MAX_STARTS or self._ending:
                    raise
                await self._stop(place)
                place.session, place.ready = None, False
            except CommandFailed:
                raise
            except MoorageError as problem:
                if not place.ready:
                    raise
                return problem

    async def _opened(self, place: Place) -> Session:
        """Its session, which knows the work."""
        if place.session is None:
            session = await self._sessions.create(wait=False, **self._settings)
            async with self._changed:
                place.session = session
                if self._ending:
                    raise SessionEnded("The work was called off.")
            await session.wait_ready()
        if not place.ready:
            if isinstance(self._setup, str):
                (await self._to_its_end(place, await place.session.executions.start(self._setup))).check()
            elif self._setup is not None:
                await _io.result_of(self._setup(place.session))
            (await self._to_its_end(place, await place.session.executions.start(self._definition))).check()
            place.ready = True
        return place.session

    async def _to_its_end(self, place: Place, begun: Execution) -> RunResult:
        place.running = begun  # first this, then the look: whoever ends the work does it the other way round
        if self._ending:
            await self._stop(place)
        try:
            return await begun.wait()
        finally:
            place.running = None

    async def _outcome(self, place: Place, begun: Execution | MoorageError, index: int, item: Any) -> Mapped:
        if isinstance(begun, MoorageError):
            return Mapped(index=index, input=item, error=begun)
        try:
            result = await self._to_its_end(place, begun)
        except MoorageError as problem:
            place.ready = False
            return Mapped(index=index, input=item, error=problem)
        if result.trouble:
            place.ready = False  # its interpreter may be another one now
        try:
            return Mapped(index=index, input=item, value=_shipped.value_of(result), run=result)
        except MoorageError as problem:
            return Mapped(index=index, input=item, error=problem, run=result)
