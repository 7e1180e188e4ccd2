"""grpc.health.v1.Health, for load balancers and probes: nobody need say who he is, so little is read at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from manager.compat.grpc.methods import SERVICE
from manager.compat.grpc.wire import Malformed, text_field

_SERVING, _NOT_SERVING, _UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
_READ_SECONDS: Final = 5.0
#: Who sends nothing keeps the place for reading; so nobody else waits for it any longer than this.
_PLACE_SECONDS: Final = 0.5
_MOST_WATCHERS: Final = 100
_reading = asyncio.Semaphore(1)
_watchers: set[object] = set()


def health_handler(path: str, closing: asyncio.Event) -> Any:
    """None for what is no method of it."""
    if path == "/grpc.health.v1.Health/Check":

        async def check(messages: AsyncIterator[bytes], context: Any) -> None:
            if not await _is_ours(messages, context):
                await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
            await context.write(_NOT_SERVING if closing.is_set() else _SERVING)

        return grpc.stream_stream_rpc_method_handler(check)
    if path == "/grpc.health.v1.Health/Watch":

        async def watch(messages: AsyncIterator[bytes], context: Any) -> None:
            if len(_watchers) >= _MOST_WATCHERS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watch already; use Check.")
            mark = object()
            _watchers.add(mark)
            try:
                if not await _is_ours(messages, context):
                    await context.write(_UNKNOWN)
                else:
                    await context.write(_NOT_SERVING if closing.is_set() else _SERVING)
                await closing.wait()
                await context.write(_NOT_SERVING)
            finally:
                _watchers.discard(mark)

        return grpc.stream_stream_rpc_method_handler(watch)
    return None


async def _is_ours(messages: AsyncIterator[bytes], context: Any) -> bool:
    """Whether the service that is asked about is this one; it is taken for it when there is no place to read its name."""
    try:
        async with asyncio.timeout(_PLACE_SECONDS):
            await _reading.acquire()
    except TimeoutError:
        return True
    try:
        async with asyncio.timeout(_READ_SECONDS):
            message = await anext(aiter(messages), b"")
        return (text_field(message, 1) or SERVICE) == SERVICE
    except (Malformed, TimeoutError):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "This is no request of the health service.")
        raise AssertionError("abort raises") from None
    finally:
        _reading.release()
