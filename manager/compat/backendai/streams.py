"""WebSockets of the client: running code with its output as it comes and input as it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from actions import GetSessionInfoAction
from domain.errors import InvalidRequest, MoorageError
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.errors import prob_of
from manager.compat.backendai.run_loop import RunLoop
from manager.compat.backendai.runs import object_of
from manager.compat.backendai.table import Route
from manager.rest.auth import check_origin
from manager.rest.json import MAX_CODE_BODY_BYTES, dumps, loads
from manager.rest.streams import watched

#: The code to run has to come within so many seconds.
_FIRST_SECONDS: Final = 30.0
_SEND_SECONDS: Final = 120.0
#: What nobody has asked for yet, in lines and in characters.
_MOST_TYPED: Final = 1000
_MOST_CHARACTERS: Final = 1024 * 1024


@asynccontextmanager
async def websocket(ask: Ask, *, max_bytes: int = MAX_CODE_BODY_BYTES) -> AsyncIterator[web.WebSocketResponse]:
    """Open until the block ends, the reader goes or may no longer ask, or this manager stops."""
    check_origin(ask.request)
    ws = web.WebSocketResponse(heartbeat=30.0, max_msg_size=max_bytes, compress=False, timeout=5.0, autoclose=True)
    ask.door.stamp(ws, ask.request_id)
    await ws.prepare(ask.request)
    async with watched(ask) as watch:
        yield ws
    code, reason = WSCloseCode.OK, b"done"
    if watch.reason == "closing":
        code, reason = WSCloseCode.GOING_AWAY, b"this manager stops; connect again"
    elif watch.reason == "revoked":
        code, reason = WSCloseCode.POLICY_VIOLATION, b"the credential is no longer valid"
    await ws.close(code=code, message=reason)


async def tell(ask: Ask, ws: web.WebSocketResponse, value: Mapping[str, Any]) -> None:
    if ws.closed:
        raise ConnectionResetError("the reader has gone")
    try:
        async with asyncio.timeout(_SEND_SECONDS):
            await ws.send_str(dumps(value).decode())
    except TimeoutError:
        ask.cut()
        raise ConnectionResetError("the reader takes nothing") from None


async def execute(ask: Ask) -> web.StreamResponse:
    session_id = str((await ask.run(GetSessionInfoAction(**ask.session))).session_info.id)
    async with websocket(ask) as ws:
        try:
            loop, code = await _first(ws, session_id)
            await _run(ask, ws, loop, code)
        except MoorageError as error:  # the client knows no other way to hear of it
            await tell(ask, ws, _failure(error))
    return ws


async def _first(ws: web.WebSocketResponse, session_id: str) -> tuple[RunLoop, str]:
    """Raises InvalidRequest."""
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            message = await ws.receive()
    except TimeoutError:
        raise InvalidRequest(f"No code came within {_FIRST_SECONDS:g} seconds.") from None
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
        raise ConnectionResetError("the client has gone")
    if message.type is not WSMsgType.TEXT:
        raise InvalidRequest("The first message is JSON: {code, mode, options}.")
    body = loads(message.data.encode("utf-8", "surrogatepass"), max_bytes=MAX_CODE_BODY_BYTES)
    mode, code = body.get("mode"), body.get("code") or ""
    if mode not in ("query", "batch"):
        raise InvalidRequest("'mode' is query or batch.", field="mode")
    if not isinstance(code, str):
        raise InvalidRequest("'code' is text.", field="code")
    return RunLoop.new(session_id, secrets.token_hex(16), mode, object_of(body, "options")), code


async def _run(ask: Ask, ws: web.WebSocketResponse, loop: RunLoop, code: str) -> None:
    typed = Typed()
    listening = asyncio.create_task(_listen(ws, typed))
    try:
        while not loop.finished:
            result = await loop.step(ask, code=code, eager=True)
            if result["status"] != "continued" or result["console"]:
                await tell(ask, ws, {name: value for name, value in result.items() if name != "runId"})
            if loop.waiting:
                if (line := await typed.line()) is None:
                    return
                await loop.feed(ask, line)
            elif ws.closed:
                return
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


class Typed:
    """Lines, also ahead of the question; what is more than anybody types is dropped."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._characters = 0

    def add(self, line: str) -> None:
        if self._lines.qsize() < _MOST_TYPED and self._characters + len(line) <= _MOST_CHARACTERS:
            self._characters += len(line)
            self._lines.put_nowait(line)

    def end(self) -> None:
        self._lines.put_nowait(None)

    async def line(self) -> str | None:
        """None when the client has gone. The run goes on by itself then."""
        line = await self._lines.get()
        self._characters -= len(line or "")
        return line


async def _listen(ws: web.WebSocketResponse, typed: Typed) -> None:
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            typed.add(message.data)
    typed.end()


def _failure(error: MoorageError) -> dict[str, Any]:
    return {
        "status": "finished",
        "console": [["stderr", f"{prob_of(error).title} {error.message}\n"]],
        "exitCode": 1,
        "options": None,
        "files": [],
        "error": error.code,
    }


ROUTES: Final = (Route("GET", "/stream/session/{session}/execute", execute, once=True),)
