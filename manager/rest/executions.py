"""Running code over HTTP: held answers, streams of records, and the WebSocket."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from actions import (
    ExecuteSessionAction,
    FollowExecutionAction,
    InterruptAction,
    KillExecutionAction,
    ReadExecutionAction,
)
from actions.execution import RunFollower
from agent.wire import Record, RunRead, decode_records
from domain.errors import InvalidRequest, MoorageError
from domain.ids import RunId
from manager.rest import answers
from manager.rest.answers import iso
from manager.rest.auth import check_origin
from manager.rest.exchange import Exchange
from manager.rest.json import dumps, loads
from manager.rest.problems import document
from manager.rest.rows import action, finish, gather
from manager.rest.streams import CLOSING, HEARTBEAT, SSE_HEADERS, permitted, watched, with_heartbeats

NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
MAX_MESSAGE_BYTES: Final = 1024 * 1024


async def execute(exchange: Exchange) -> web.StreamResponse:
    exchange.idempotency_key  # noqa: B018 - refused before the body is read
    values, _, _ = await gather(exchange)
    asked: ExecuteSessionAction = action(exchange.route, values)
    kind = exchange.accepts(NDJSON, SSE)
    if kind is None:
        return finish(exchange, await _held(exchange, asked))
    started = await exchange.run(replace(asked, wait=0.0))
    follow = FollowExecutionAction(
        session_name=asked.session_name,
        owner_access_key=asked.owner_access_key,
        run_id=started.run_id,
        from_seq=asked.from_seq,
    )
    follower = await exchange.run(follow)
    return await _send(exchange, follower, kind, _records(follower, binary=exchange.flag("binary")))


async def _held(exchange: Exchange, asked: Any) -> Any:
    """The answer, unless its reader has gone or may no longer ask: the execution goes on by itself."""
    async with permitted(exchange):
        return await exchange.run(asked)


async def read(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    asked: ReadExecutionAction = action(exchange.route, values)
    follow = exchange.flag("follow")
    kind = exchange.accepts(NDJSON, SSE) or (NDJSON if follow else None)
    if kind is None:
        return finish(exchange, await exchange.run(asked))
    last = exchange.request.headers.get("Last-Event-ID", "")
    if kind == SSE and last.isascii() and last.isdecimal() and len(last) <= 18:
        asked = replace(asked, from_seq=max(asked.from_seq, int(last) + 1))
    following = FollowExecutionAction(
        session_name=asked.session_name,
        owner_access_key=asked.owner_access_key,
        run_id=asked.run_id,
        from_seq=asked.from_seq,
    )
    follower = await exchange.run(following)
    if follow:
        return await _send(exchange, follower, kind, _records(follower, binary=asked.binary))
    return await _send(exchange, follower, kind, _kept(exchange, asked))


# -- records as they come ------------------------------------------------------------------------------------------------
async def _send(
    exchange: Exchange, follower: RunFollower, kind: str, source: AsyncGenerator[list[dict[str, Any]]]
) -> web.StreamResponse:
    return await send_records(exchange, follower.run_id, kind, source)


async def send_records(
    exchange: Exchange, run_id: RunId, kind: str, source: AsyncGenerator[list[dict[str, Any]]]
) -> web.StreamResponse:
    encode = _sse_line if kind == SSE else _line
    headers = SSE_HEADERS if kind == SSE else {"Content-Type": NDJSON, "Cache-Control": "no-store"}
    response = await exchange.begin(200, {**headers, "X-Run-Id": str(run_id)})
    async with watched(exchange) as watch:
        await exchange.write(response, encode({"run_id": run_id, "kind": "run"}))
        try:
            # Lines of JSON have no heartbeat; only server-sent events know comments.
            beats = with_heartbeats(source, 15.0 if kind == SSE else 3600.0)
            async with aclosing(beats):
                async for piece in beats:
                    if piece is not None:
                        await exchange.write(response, b"".join(map(encode, piece)))
                    elif kind == SSE:
                        await exchange.write(response, HEARTBEAT)
        except MoorageError as error:  # the answer has begun, so a failure can only be a record
            await exchange.write(response, encode(document(error, exchange.request_id)))
        await response.write_eof()
    if watch.reason == "closing":
        if kind == SSE:
            await exchange.write(response, CLOSING)
        await response.write_eof()
    elif watch.reason is not None:
        exchange.cut()
    return response


def _records(follower: RunFollower, *, binary: bool) -> AsyncGenerator[list[dict[str, Any]]]:
    return follow_run(follower.reads(), binary=binary)


async def follow_run(source: AsyncIterator[RunRead], *, binary: bool) -> AsyncGenerator[list[dict[str, Any]]]:
    """Records as JSON, a list for each read; the last one is of kind `done` when the run is."""
    async with aclosing(source) as reads:  # type: ignore[type-var]
        async for piece in reads:
            found = [record_json(record, binary=binary) for record in decode_records(piece.records)]
            if piece.gap is not None:
                found.insert(0, _gap(piece.gap))
            if piece.done is not None and not (found and found[-1]["kind"] == "done"):
                found.append({"seq": piece.next_seq, "kind": "done", "time": None, "data": answers.in_iso(piece.done)})
            if found:
                yield found


async def _kept(exchange: Exchange, asked: ReadExecutionAction) -> AsyncGenerator[list[dict[str, Any]]]:
    """What there is by now, and no more."""
    while True:
        piece = await exchange.run(asked)
        if not piece.records:
            return
        yield ([_gap(piece.gap)] if piece.gap else []) + [answers.record(data) for data in piece.records]
        asked = replace(asked, from_seq=piece.next_seq)


def _gap(gap: tuple[int, int]) -> dict[str, Any]:
    first, last = gap
    return {"seq": first, "kind": "gap", "time": None, "data": {"first": first, "last": last}}


def record_json(record: Record, *, binary: bool) -> dict[str, Any]:
    """`text` for output, or `base64` to the byte; `data` for everything else."""
    head: dict[str, Any] = {"seq": record.seq, "kind": record.kind, "time": iso(record.time)}
    if record.kind not in ("stdout", "stderr"):
        data = record.data
        return {**head, "data": answers.in_iso(data) if record.kind == "done" else data}
    if binary:
        return {**head, "base64": b64encode(record.payload).decode()}
    return {**head, "text": record.payload.decode("utf-8", "replace")}


def _line(data: dict[str, Any]) -> bytes:
    return dumps(data) + b"\n"


def _sse_line(data: dict[str, Any]) -> bytes:
    head = b"id: %d\n" % data["seq"] if "seq" in data else b""
    return b"%sevent: %s\ndata: %s\n\n" % (head, str(data.get("kind", "problem")).encode(), dumps(data))


# -- WebSocket ---------------------------------------------------------------------------------------------------------------
async def socket(exchange: Exchange) -> web.StreamResponse:
    check_origin(exchange.request)
    values, _, _ = await gather(exchange)
    follower: RunFollower = await exchange.run(action(exchange.route, values))
    ws = web.WebSocketResponse(
        heartbeat=30.0, max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=5.0, autoclose=True
    )
    exchange.door.stamp(ws, exchange.request_id)
    await ws.prepare(exchange.request)
    binary = exchange.flag("binary")
    code, reason = WSCloseCode.OK, "done"
    async with watched(exchange) as watch:
        listening = asyncio.create_task(_listen(exchange, follower, ws))
        try:
            async with aclosing(_records(follower, binary=binary)) as pieces:
                async for piece in pieces:
                    for data in piece:
                        await _tell(exchange, ws, data)
        except MoorageError as error:
            await _tell(exchange, ws, {"kind": "problem", **document(error, exchange.request_id)})
            code, reason = WSCloseCode.INTERNAL_ERROR, error.code
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    if watch.reason == "closing":
        code, reason = WSCloseCode.GOING_AWAY, "this manager stops; connect again"
    elif watch.reason == "revoked":
        code, reason = WSCloseCode.POLICY_VIOLATION, "the credential is no longer valid"
    await ws.close(code=code, message=reason.encode()[:120])
    return ws


async def _tell(exchange: Exchange, ws: web.WebSocketResponse, data: dict[str, Any]) -> None:
    if ws.closed:
        raise ConnectionResetError("the reader has gone")
    try:
        async with asyncio.timeout(120.0):
            await ws.send_str(dumps(data).decode())
    except TimeoutError:
        exchange.cut()
        raise ConnectionResetError("the reader takes nothing") from None


async def _listen(exchange: Exchange, follower: RunFollower, ws: web.WebSocketResponse) -> None:
    """What the client says: input, interrupt, kill. A refusal is told, and the stream goes on."""
    async for message in ws:
        try:
            if message.type is not WSMsgType.TEXT:
                raise InvalidRequest("Messages are JSON text.")
            await exchange.run(_asked(follower, loads(message.data.encode("utf-8", "surrogatepass"))))
        except MoorageError as error:
            await _tell(exchange, ws, {"kind": "problem", **document(error, exchange.request_id)})


def _asked(follower: RunFollower, message: dict[str, Any]) -> Any:
    known: dict[str, Any] = {"session_name": str(follower.session.id), "run_id": follower.run_id}
    match message:
        case {"type": "input"}:
            data, eof = message.get("data", ""), message.get("eof", False)
            if not isinstance(data, str) or not isinstance(eof, bool):
                raise InvalidRequest("'data' is text and 'eof' true or false.")
            return ExecuteSessionAction(mode="input", code=data, opts={"eof": eof}, wait=0.0, **known)
        case {"type": "interrupt"}:
            return InterruptAction(**known)
        case {"type": "kill"}:
            return KillExecutionAction(**known)
        case _:
            raise InvalidRequest("A message's 'type' is input, interrupt or kill.", field="type")
