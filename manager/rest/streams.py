"""Answers that go on: how they are begun, watched and ended; events of sessions and tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web

from actions import GetSessionInfoAction, GetTaskAction, ReadEventsAction
from domain.errors import InvalidRequest, MoorageError, Unauthenticated
from manager.rest import answers
from manager.rest.exchange import Exchange
from manager.rest.json import dumps
from manager.rest.rows import action
from repositories.event import StampedEvent

T = TypeVar("T")
#: Credentials are looked at again so often while a stream is open, and so is whether anybody still listens.
WATCH_SECONDS: Final = 0.5
#: What is answered sooner than this is not watched over.
_UNWATCHED_SECONDS: Final = 0.5
HEARTBEAT_SECONDS: Final = 15.0
HEARTBEAT: Final = b":\n\n"
SSE_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
CLOSING: Final = b"event: closing\ndata: {}\n\n"
#: Bursts of events are read together.
_QUIET_SECONDS: Final = 0.02
_FLOOR_SECONDS: Final = 1.0


@dataclass(slots=True)
class Watch:
    """Why a stream was ended from this side: `gone` (nobody listens), `revoked`, `closing`; None while it goes on."""

    reason: str | None = None


@asynccontextmanager
async def watched(exchange: Exchange) -> AsyncIterator[Watch]:
    """Leave the block when its reader is gone, may no longer read, or this manager stops. Look at `reason` afterwards."""
    watch = Watch()
    door = exchange.door
    try:
        async with asyncio.timeout(None) as scope:
            watching = asyncio.create_task(_watch(exchange, watch, scope))
            door.streams.add(watching)
            try:
                yield watch
            finally:
                watching.cancel()
                door.streams.discard(watching)
    except TimeoutError:
        if watch.reason is None:
            raise


async def _watch(exchange: Exchange, watch: Watch, scope: asyncio.Timeout) -> None:
    door = exchange.door
    closing = asyncio.create_task(door.closing.wait())
    reading = asyncio.create_task(watch_reader(exchange, watch, scope))
    try:
        await asyncio.wait({closing, reading}, return_when=asyncio.FIRST_COMPLETED)
        if watch.reason is None:
            watch.reason = "closing"
            scope.reschedule(asyncio.get_running_loop().time())
    finally:
        closing.cancel()
        reading.cancel()


@asynccontextmanager
async def permitted(exchange: Exchange) -> AsyncIterator[None]:
    """For what ends by itself and may take long: it is given up when its reader goes, or may no longer ask.

    When this manager stops, it finishes what it has begun within its time of grace.
    """
    watch, watching = Watch(), []
    try:
        async with asyncio.timeout(None) as scope:

            def begin() -> None:
                watching.append(asyncio.create_task(watch_reader(exchange, watch, scope)))

            timer = asyncio.get_running_loop().call_later(_UNWATCHED_SECONDS, begin)
            try:
                yield
            finally:
                timer.cancel()
                for task in watching:
                    task.cancel()
    except TimeoutError:
        if watch.reason == "revoked":  # an answer that has begun is broken off
            raise Unauthenticated("Your access has been revoked.") from None
        if watch.reason == "gone":
            raise ConnectionResetError("the reader has gone") from None
        raise


async def watch_reader(exchange: Exchange, watch: Watch, scope: asyncio.Timeout) -> None:
    """End the scope when nobody reads any more, or may not: looked at each half second, and when anybody's rights change."""
    changed = asyncio.Event()
    unsubscribe = exchange.door.world.herald.subscribe("identity", lambda _ids: changed.set())
    try:
        while watch.reason is None:
            transport = exchange.request.transport
            if transport is None or transport.is_closing():
                watch.reason = "gone"
            elif not await _still(exchange):
                watch.reason = "revoked"
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), WATCH_SECONDS)
                changed.clear()
    finally:
        unsubscribe()
    scope.reschedule(asyncio.get_running_loop().time())


async def _still(exchange: Exchange) -> bool:
    """A blind control plane cuts nobody off: while the database does not answer, nothing is known to have changed."""
    try:
        return await exchange.still()
    except MoorageError:
        return True


async def with_heartbeats(source: AsyncGenerator[T], seconds: float = HEARTBEAT_SECONDS) -> AsyncGenerator[T | None]:
    """What `source` yields, and None whenever it has been silent for a while."""
    async with aclosing(source):
        coming = asyncio.ensure_future(anext(source, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=seconds)
                if not done:
                    yield None
                    continue
                if (item := coming.result()) is None:
                    return
                coming = asyncio.ensure_future(anext(source, None))
                yield item
        finally:
            coming.cancel()
            await asyncio.wait({coming})


def sse(name: str, data: Any, event_id: str | int | None = None) -> bytes:
    head = b"" if event_id is None else b"id: %s\n" % str(event_id).encode()
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), dumps(data))


async def send_sse(exchange: Exchange, source: AsyncGenerator[bytes]) -> web.StreamResponse:
    """Server-sent events to their end, or to that of the connection, the permission or this manager."""
    response = await exchange.begin(200, SSE_HEADERS)
    async with watched(exchange) as watch:
        async with aclosing(with_heartbeats(source)) as events:
            async for data in events:
                await exchange.write(response, HEARTBEAT if data is None else data)
        await response.write_eof()
    if watch.reason == "closing":
        await exchange.write(response, CLOSING)
        await response.write_eof()
    elif watch.reason is not None:
        exchange.cut()
    return response


# -- events ------------------------------------------------------------------------------------------------------------
async def events(exchange: Exchange) -> web.StreamResponse:
    exchange.only_query("session", "follow", "owner_access_key")
    follow = exchange.flag("follow") or "follow" not in exchange.query
    epoch, after = _last_event(exchange, default=None if follow else 0)
    values: dict[str, Any] = {"after": after, "epoch": epoch, **exchange.owner}
    if (session := exchange.query_value("session")) is not None:
        asked = GetSessionInfoAction(session_name=session, **exchange.owner)  # type: ignore[arg-type]
        values["session"] = str((await exchange.run(asked)).session_info.id)
    first = await exchange.run(action(exchange.route, values))
    return await send_sse(exchange, _events(exchange, values, first, follow=follow))


async def _events(exchange: Exchange, values: dict[str, Any], page: Any, *, follow: bool) -> AsyncGenerator[bytes]:
    # Where the reader is, before anything has happened: a connection that breaks now is taken up here.
    at = page.next_seq if not page.items else values["after"] or 0
    yield b"id: %s\n\n" % answers.event_id(page.epoch, at).encode()
    async with aclosing(event_pages(exchange, values, page, follow=follow)) as pages:
        async for items in pages:
            yield b"".join(sse(e.type, answers.event(e), answers.event_id(e.epoch, e.seq)) for e in items)


async def event_pages(
    exchange: Exchange, values: dict[str, Any], page: Any, *, follow: bool
) -> AsyncGenerator[list[StampedEvent]]:
    """Events from `page` on, the answer to ReadEventsAction(**values), as they come."""
    changed = asyncio.Event()
    unsubscribe = exchange.door.world.herald.subscribe("stamped", lambda _ids: changed.set())
    try:
        patience = _QUIET_SECONDS
        while True:
            if page.items:
                yield page.items
                patience = _QUIET_SECONDS
            elif not follow:
                return
            else:
                # Woken when rows wait for their number, so the first looks may come a little early.
                woken = await _wait(changed, patience)
                patience = _QUIET_SECONDS if woken else min(_FLOOR_SECONDS, patience * 2)
            changed.clear()
            values.update(after=page.next_seq, epoch=page.epoch)
            page = await exchange.run(ReadEventsAction(**values))
    finally:
        unsubscribe()


async def _wait(changed: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(changed.wait(), seconds)
    except TimeoutError:
        return False
    await asyncio.sleep(_QUIET_SECONDS)
    return True


def _last_event(exchange: Exchange, *, default: int | None) -> tuple[int | None, int | None]:
    header = exchange.request.headers.get("Last-Event-ID")
    if header is None:
        return None, default
    epoch, dot, seq = header.strip().partition(".")
    if not (dot and epoch.isdecimal() and seq.isdecimal() and header.isascii() and max(len(epoch), len(seq)) <= 18):
        raise InvalidRequest("Last-Event-ID is not the id of an event, such as 1.42.", field="Last-Event-ID")
    return int(epoch), int(seq)


# -- one task ----------------------------------------------------------------------------------------------------------
async def task_events(exchange: Exchange) -> web.StreamResponse:
    exchange.only_query()
    asked = action(exchange.route, exchange.path)
    first = (await exchange.run(asked)).task
    return await send_sse(exchange, _task_events(exchange, asked, first))


async def _task_events(exchange: Exchange, asked: GetTaskAction, task: Any) -> AsyncGenerator[bytes]:
    async with aclosing(task_states(exchange, asked, task)) as states:
        async for state in states:
            yield b"event: task.%s\ndata: %s\n\n" % (state.status.encode(), dumps(state))


async def task_states(exchange: Exchange, asked: GetTaskAction, task: Any) -> AsyncGenerator[Any]:
    """A task each time that it looks different, to its end."""
    changed = asyncio.Event()
    unsubscribe = exchange.door.world.herald.subscribe("tasks", lambda _ids: changed.set())
    told: bytes | None = None
    try:
        while True:
            data = dumps(task)
            if data != told:
                told = data
                yield task
            if task.status in ("done", "failed", "cancelled"):
                return
            await _wait(changed, _FLOOR_SECONDS)
            changed.clear()
            task = (await exchange.run(asked)).task
    finally:
        unsubscribe()
