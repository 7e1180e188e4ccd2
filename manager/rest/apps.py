"""Apps over HTTP: what is deployed with an archive, and what a call says as it comes."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO, Any, Final

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from actions import FollowCallAction, GetCallAction, StartCallAction
from actions.apps import Archive
from actions.calls import CallFollower
from domain.apps import MOST_ARCHIVE_BYTES
from domain.errors import InvalidRequest, MoorageError, RequestTooLarge
from manager.rest.exchange import BODY_SILENCE_SECONDS, Exchange, refuse_encoding
from manager.rest.executions import NDJSON, SSE, follow_run, send_records
from manager.rest.json import MAX_BODY_BYTES, loads
from manager.rest.rows import action, finish, gather
from manager.rest.streams import permitted

_CHUNK_BYTES: Final = 2**18
_IN_MEMORY_BYTES: Final = 1024 * 1024
_MALFORMED: Final = (ValueError, AssertionError, HttpProcessingError, web.RequestPayloadError)


# -- deploy --------------------------------------------------------------------------------------------------------------
async def deploy(exchange: Exchange) -> web.StreamResponse:
    """JSON, or a form of the part `app`, which is the same JSON, and the part `archive`, which is the code."""
    if not exchange.request.content_type.startswith("multipart/"):
        values, _, _ = await gather(exchange)
        return finish(exchange, await exchange.run(action(exchange.route, values)))
    exchange.only_query()
    refuse_encoding(exchange.request)
    await exchange.invite_body()
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
        try:
            values, archive = await _read_form(exchange, file)
        except (*_MALFORMED, TimeoutError, ConnectionError) as error:
            raise InvalidRequest("The form is malformed or broke off.") from error
        for name in values:
            if name not in exchange.route.told:
                raise InvalidRequest(
                    f"There is no field '{name[:80]}'; check the spelling against /docs.", field=name[:80]
                )
        asked = action(exchange.route, {**values, "archive": archive})
        async with permitted(exchange):
            return finish(exchange, await exchange.run(asked))


async def _read_form(exchange: Exchange, file: IO[bytes]) -> tuple[dict[str, Any], Archive | None]:
    reader = MultipartReader(exchange.request.headers, exchange.request.content)
    values: dict[str, Any] | None = None
    archive: Archive | None = None
    while True:
        async with asyncio.timeout(BODY_SILENCE_SECONDS):
            part = await reader.next()
        if part is None:
            break
        if not isinstance(part, BodyPartReader) or part.headers.get(hdrs.CONTENT_ENCODING) is not None:
            raise InvalidRequest("The parts of the form are 'app' and 'archive', as they are.")
        if part.name == "app" and values is None:
            values = loads(await _whole(part), max_bytes=MAX_BODY_BYTES)
        elif part.name == "archive" and archive is None:
            archive = await _spool(part, file)
        else:
            raise InvalidRequest("The form has one part 'app' and one part 'archive', and no other.", field="app")
    if values is None:
        raise InvalidRequest("The form lacks its part 'app', the JSON that says what is deployed.", field="app")
    return values, archive


async def _whole(part: BodyPartReader) -> bytes:
    body = bytearray()
    while chunk := await _chunk(part):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLarge(f"The part 'app' is larger than {MAX_BODY_BYTES} bytes.")
    return bytes(body)


async def _spool(part: BodyPartReader, file: IO[bytes]) -> Archive:
    size, digest = 0, hashlib.sha256()
    while chunk := await _chunk(part):
        size += len(chunk)
        if size > MOST_ARCHIVE_BYTES:
            raise RequestTooLarge(f"An app's archive has at most {MOST_ARCHIVE_BYTES >> 20} MiB.")
        digest.update(chunk)
        await asyncio.to_thread(file.write, bytes(chunk))
    return Archive(file, size=size, sha256=digest.hexdigest())


async def _chunk(part: BodyPartReader) -> bytes:
    async with asyncio.timeout(BODY_SILENCE_SECONDS):
        return await part.read_chunk(_CHUNK_BYTES)


# -- calls ---------------------------------------------------------------------------------------------------------------
async def start_call(exchange: Exchange) -> web.StreamResponse:
    """The answer, unless its reader has gone or may no longer ask: the call goes on by itself."""
    exchange.idempotency_key  # noqa: B018 - refused before the body is read
    values, _, _ = await gather(exchange)
    asked: StartCallAction = action(exchange.route, values)
    async with permitted(exchange):
        return finish(exchange, await exchange.run(asked))


async def get_call(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    asked: GetCallAction = action(exchange.route, values)
    async with permitted(exchange):
        return finish(exchange, await exchange.run(asked))


async def follow_call(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    asked: FollowCallAction = action(exchange.route, values)
    follower: CallFollower = await exchange.run(asked)
    kind = exchange.accepts(NDJSON, SSE) or NDJSON
    source = _records(follower, binary=exchange.flag("binary"))
    return await send_records(exchange, follower.call_id, kind, source)


async def _records(follower: CallFollower, *, binary: bool) -> AsyncGenerator[list[dict[str, Any]]]:
    """Those of its run, with an end also when it never ran, and at last one of kind `call`."""
    done, next_seq = False, max(1, follower.from_seq)
    async with aclosing(follow_run(follower.reads(), binary=binary)) as pieces:
        try:
            async for piece in pieces:
                done, next_seq = piece[-1]["kind"] == "done", piece[-1]["seq"] + 1
                yield piece
        except MoorageError as error:
            if error.code != "run_not_found":  # it is not kept any more; how it ended is
                raise
    call = await follower.result()
    if not done:
        exit_code = 0 if call.status == "completed" else None
        data = {"exit_code": exit_code, "signal": None, "reason": call.reason}
        yield [{"seq": next_seq, "kind": "done", "time": None, "data": data}]
    yield [{"kind": "call", "data": call}]
