"""Brings apps to worker sessions and has them loaded; and sees to it that every call ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Final

from actions.calling import call_code
from actions.outcome import CallCollector, ended_outcome, lost_outcome, refused_outcome
from agent.client import KernelAddress
from agent.wire import RunRead
from domain.apps import APP_FOLDER, load_run_id
from domain.crash import reach
from domain.errors import AgentUnavailable, AppNotLoaded, ArchiveRefused, MoorageError, RunNotFound, SessionEnded
from domain.ids import RunId, SessionId
from domain.session import Event
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from manager.loop import Loop
from repositories.apps import archive_chunk
from repositories.calls import CallRepository, CallRow, Outcome
from repositories.database import Database
from repositories.session import AdminSessionRepository
from repositories.transit import Cause, transit
from repositories.workers import (
    Loading,
    Unsettled,
    begin_load,
    claim,
    fail_open_calls,
    forget_ended,
    hold,
    live_workers,
    loading,
    locked,
    unsettled,
)

CAUSE: Final = Cause(by="workers")
#: One manager at a time brings an app to a session; it says so again while it is at it.
_CLAIM_SECONDS: Final = 5.0
_MOST_TRIES: Final = 10
_AWAY_SECONDS: Final = 0.5
_ASKED_AGAIN_SECONDS: Final = 20.0
_READ_BYTES: Final = 1024 * 1024
_AT_ONCE: Final = 20


class Workers(Loop):
    """What is to be done is read from the rows; what is asked of agents is asked again until it is so. Any number of
    managers may: a run is begun once, however often it is asked for, and the first to say how it ended has said it."""

    name: ClassVar[str] = "workers"
    gather_seconds: ClassVar[float] = 0.02

    def __init__(
        self, database: Database, herald: Herald, agents: ConnectedAgents, *, clock: Callable[[], datetime]
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._agents = agents
        self._clock = clock
        self._known: set[SessionId] = set()
        self._at_work: dict[Hashable, asyncio.Task[None]] = {}
        self._paused: dict[Hashable, float] = {}  #: until when it is not tried again
        self._places = asyncio.Semaphore(_AT_ONCE)

    def wake(self, session_ids: object = None) -> None:
        """Of all that happens to sessions and runs, only what happens to worker sessions is of interest."""
        if not session_ids or (isinstance(session_ids, Collection) and self._known.intersection(session_ids)):
            super().wake()

    def meet(self, session_ids: object = None) -> None:
        """There is a new one, or a new call."""
        super().wake()

    async def step(self) -> float | None:
        now = self._clock()
        async with self._database.reader() as connection:
            self._known = await live_workers(connection)
            if not self._known:
                await forget_ended(connection)
                return None
            sessions = await loading(connection, now=now)
            calls = await unsettled(connection, now=now)
            await forget_ended(connection)
        self._paused = {key: until for key, until in self._paused.items() if until > time.monotonic()}
        for session in sessions:
            if session.run == "done":
                self._begin(("failed", session.id), partial(self._end_unloaded, session))
            elif not session.claimed or session.run is not None:
                self._begin(("load", session.id, session.attempt), partial(self._load, session))
        waiting: dict[SessionId, list[Unsettled]] = {}
        for call in calls:
            if call.sent or call.stale or call.done:
                self._begin(("call", call.id, call.done, call.cancelling), partial(self._see_to, call))
            else:
                waiting.setdefault(call.session_id, []).append(call)
        for session_id, queue in waiting.items():
            self._begin(("queue", session_id), partial(self._send, session_id, queue))
        return None

    async def close(self) -> None:
        tasks = tuple(self._at_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one thing at a time for each session and call -------------------------------------------------------------------
    def _begin(self, key: Hashable, work: Callable[[], Awaitable[float]]) -> None:
        """Unless it is being done, or was done a moment ago; `work` says for how many seconds that holds."""
        if key in self._at_work or time.monotonic() < self._paused.get(key, 0.0):
            return
        task = asyncio.create_task(self._do(key, work))
        self._at_work[key] = task
        task.add_done_callback(lambda _: self._at_work.pop(key, None))

    async def _do(self, key: Hashable, work: Callable[[], Awaitable[float]]) -> None:
        pause = _AWAY_SECONDS
        try:
            async with self._places:
                pause = await work()
        except AgentUnavailable:  # nobody knows what came of it: it is asked again
            pass
        except MoorageError as error:
            self._log.warning("%s: %s (trying on)", key, error)
        except Exception:
            self._log.exception("%s failed (trying on)", key)
            pause = 1.0
        if pause:
            self._paused[key] = time.monotonic() + pause

    # -- loading ---------------------------------------------------------------------------------------------------------
    async def _load(self, one: Loading) -> float:
        where = _where(one)
        if one.agent_id not in self._agents.connected():
            return _AWAY_SECONDS
        run_id = load_run_id(one.id, one.attempt)
        if one.run is None and not await self._bring(one, where, run_id):
            return 0.0
        await self._agents.execute(
            where,
            run_id,
            mode="load",
            code=json.dumps(one.app.load_code()),
            opts={},
            timeout_seconds=one.app.setup_timeout,
            wait_seconds=0.0,
            max_bytes=_READ_BYTES,
        )
        reach("control.workers.asked")
        return _ASKED_AGAIN_SECONDS

    async def _bring(self, one: Loading, where: KernelAddress, run_id: RunId) -> bool:
        """The app's files there, and its run on record. False when it is another's to do, or the session has moved on."""
        now = self._clock()
        async with self._database.reader() as connection:
            if not await claim(connection, one, now=now, seconds=_CLAIM_SECONDS):
                return False
        try:
            if one.app.path is None:
                async with self._claimed(one):
                    await self._agents.unpack(where, APP_FOLDER, self._archive(one), size=None)
        except ArchiveRefused as error:
            await self._fail(one, f"the app's archive was refused: {error}", _error("ArchiveRefused", str(error)))
            return False
        except SessionEnded:
            return False
        except AgentUnavailable:
            await self._give_back(one)
            raise
        except MoorageError as error:
            await self._give_back(one)
            if one.tries + 1 < _MOST_TRIES:
                raise
            await self._fail(one, f"the app could not be brought to its host: {error}", _error(error.code, str(error)))
            return False
        reach("control.workers.brought")
        async with self._database.transaction("control.workers") as connection:
            begun = await begin_load(connection, one, run_id, now=self._clock())
            await hold(connection, one, until=None)
        return begun

    @contextlib.asynccontextmanager
    async def _claimed(self, one: Loading) -> AsyncIterator[None]:
        """No other manager brings it meanwhile, however long that takes."""

        async def claim_on() -> None:
            while True:
                await asyncio.sleep(_CLAIM_SECONDS / 3)
                with contextlib.suppress(MoorageError):
                    async with self._database.reader() as connection:
                        await hold(connection, one, until=self._clock() + timedelta(seconds=_CLAIM_SECONDS))

        claiming = asyncio.create_task(claim_on())
        try:
            yield
        finally:
            claiming.cancel()
            await asyncio.wait({claiming})

    async def _archive(self, one: Loading) -> AsyncIterator[bytes]:
        number = 0
        while True:
            async with self._database.reader() as connection:
                chunk = await archive_chunk(connection, one.app_id, one.app_version, number)
            if chunk is None:
                return
            yield chunk
            number += 1

    async def _give_back(self, one: Loading) -> None:
        async with self._database.reader() as connection:
            await hold(connection, one, until=None)

    async def _end_unloaded(self, one: Loading) -> float:
        """Its app's own error is what its owner reads."""
        collector = CallCollector()
        with contextlib.suppress(RunNotFound):
            await self._collect(_where(one), load_run_id(one.id, one.attempt), collector)
        outcome = collector.outcome(self._clock(), worked=False)
        error = json.loads(outcome.error) if outcome.error else _error("lost", "its host does not say why")
        if one.reason == "timeout":
            error = {**error, "evalue": f"its setup took longer than {one.app.setup_timeout:g} s"}
        await self._fail(one, f"the app could not be loaded: {error['ename']}: {error['evalue']}", error)
        return 0.0

    async def _fail(self, one: Loading, reason: str, error: dict[str, Any]) -> None:
        now = self._clock()
        async with self._database.transaction("control.workers") as connection:
            if not await locked(connection, one):
                return
            moved = await transit(connection, one.id, Event.FAIL, cause=CAUSE, now=now, reason=reason[:2000])
            if moved is not None:
                await fail_open_calls(connection, one.id, json.dumps({"code": "app_not_loaded", **error}), now=now)
        if moved is not None:
            self._log.info("session %s: %s", one.id, reason)
            self._herald.announce("sessions", one.id)
            for topic in ("dispatch", "queue", "events"):
                self._herald.announce(topic)

    # -- calls -----------------------------------------------------------------------------------------------------------
    async def _see_to(self, one: Unsettled) -> float:
        if one.stale and not (one.done or (one.delivered and not one.given_up)):
            await self._settle_stale(one)
            return 0.0
        return await self._ask(one)

    async def _send(self, session_id: SessionId, queue: Sequence[Unsettled]) -> float:
        """One after another, in the order in which they were asked: none before an earlier one is at its host, whoever
        has sent that."""
        for one in queue:
            async with self._database.transaction("control.workers") as connection:
                calls = self._calls(connection)
                row = None if one.delivered else await calls.deliver(one.id)
                row = row or await calls.get(one.id)
            if not row.open:
                continue
            if not row.delivered:
                break  # the session is not ready any more
            reach("control.workers.delivered")
            assert row.agent_id is not None
            assert row.kernel_id is not None
            assert row.run_attempt is not None
            where = KernelAddress(agent_id=row.agent_id, kernel_id=row.kernel_id, attempt=row.run_attempt)
            try:
                await self._deliver(row, where)
            except (SessionEnded, AppNotLoaded) as error:  # the app has ended it meanwhile
                await self._settle(one, partial(refused_outcome, error))
                continue
            async with self._database.reader() as connection:
                await self._calls(connection).sent(one.id)
        self._herald.announce("sessions", session_id)
        self._herald.announce("workers", session_id)
        return 0.0

    async def _ask(self, one: Unsettled) -> float:
        """See what came of it; deliver it, where its host has not heard of it."""
        assert one.kernel_id is not None
        assert one.agent_id is not None
        assert one.run_attempt is not None
        where = KernelAddress(agent_id=one.agent_id, kernel_id=one.kernel_id, attempt=one.run_attempt)
        if one.agent_id not in self._agents.connected():
            return _AWAY_SECONDS
        collector = CallCollector()
        try:
            if one.cancelling and not one.done:
                await self._agents.interrupt(where, one.id)
            first = await self._first(one, where)
            if not one.done and first.status != "done":  # its end will be reported
                return _ASKED_AGAIN_SECONDS
            await self._collect(where, one.id, collector, first)
        except (RunNotFound, SessionEnded):
            if not (one.done or one.stale):
                return _ASKED_AGAIN_SECONDS
            await self._settle(one, lost_outcome)
            return 0.0
        if collector.done is None:
            return _ASKED_AGAIN_SECONDS
        await self._settle(one, collector.outcome)
        return 0.0

    async def _first(self, one: Unsettled, where: KernelAddress) -> RunRead:
        try:
            return await self._agents.read(where, one.id, from_seq=0, max_bytes=_READ_BYTES, wait_seconds=0.0)
        except RunNotFound:
            if one.done:
                raise
        async with self._database.reader() as connection:
            row = await self._calls(connection).get(one.id)
        return await self._deliver(row, where)

    async def _deliver(self, row: CallRow, where: KernelAddress) -> RunRead:
        if row.input is None:  # it is over
            raise RunNotFound(run_id=str(row.id))
        return await self._agents.execute(
            where,
            row.id,
            mode="call",
            code=call_code(row.function, row.input),
            opts={},
            timeout_seconds=row.timeout_seconds,
            wait_seconds=0.0,
            max_bytes=_READ_BYTES,
        )

    async def _collect(
        self, where: KernelAddress, run_id: RunId, collector: CallCollector, read: RunRead | None = None
    ) -> None:
        """All that there is by now."""
        next_seq = 0
        while True:
            if read is None:
                read = await self._agents.read(
                    where, run_id, from_seq=next_seq, max_bytes=_READ_BYTES, wait_seconds=0.0
                )
            collector.add(read)
            if read.done is not None or not read.records:
                return
            next_seq, read = read.next_seq, None

    async def _settle_stale(self, one: Unsettled) -> None:
        async with self._database.reader() as connection:
            sessions = AdminSessionRepository(connection, None, now=self._clock(), cause=CAUSE)
            session = await sessions.get(one.session_id)
        await self._settle(one, lambda now: ended_outcome(session, now))

    async def _settle(self, one: Unsettled, ended: Callable[[datetime], Outcome]) -> None:
        reach("control.workers.settle")
        async with self._database.reader() as connection:
            await self._calls(connection).settle(one.id, ended(self._clock()))
        self._herald.announce("sessions", one.session_id)

    def _calls(self, connection: Any) -> CallRepository:
        return CallRepository(connection, now=self._clock(), cause=CAUSE)


def _where(one: Loading) -> KernelAddress:
    return KernelAddress(agent_id=one.agent_id, kernel_id=one.kernel_id, attempt=one.attempt)


def _error(name: str, said: str) -> dict[str, Any]:
    return {"ename": name, "evalue": said, "traceback": []}
