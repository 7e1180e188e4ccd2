"""Terminals over WebSocket: binary messages are the terminal's bytes, JSON text is everything else."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from actions.gateway import ProcessResult
from agent.client import Output, Process, ProcessEnd
from domain.errors import InvalidRequest, MoorageError
from manager.rest.auth import check_origin
from manager.rest.exchange import Exchange
from manager.rest.json import dumps, loads
from manager.rest.problems import document
from manager.rest.rows import action, gather
from manager.rest.streams import watched

MAX_MESSAGE_BYTES: Final = 1 << 20
_WRITE_SECONDS: Final = 120.0


async def socket(exchange: Exchange) -> web.StreamResponse:
    check_origin(exchange.request)
    ws = web.WebSocketResponse(heartbeat=30.0, max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=5.0)
    if not ws.can_prepare(exchange.request).ok:  # before anything is started
        raise InvalidRequest("Terminals are spoken with over WebSocket; ask for an upgrade.")
    values, _, _ = await gather(exchange)
    values["command"] = exchange.query.get("command", [])
    opened: ProcessResult = await exchange.run(action(exchange.route, values))
    process = opened.process
    try:
        exchange.door.stamp(ws, exchange.request_id)
        await ws.prepare(exchange.request)
    except BaseException:
        if not process.resumed:
            await process.hang_up()
        await process.close()
        raise
    return await Terminal(exchange, ws, process).serve()


class Terminal:
    """One reader of one terminal."""

    def __init__(self, exchange: Exchange, ws: web.WebSocketResponse, process: Process) -> None:
        self._exchange = exchange
        self._ws = ws
        self._process = process

    async def serve(self) -> web.WebSocketResponse:
        """Until the process ends, or the reader goes: then the terminal stays, to be resumed."""
        process = self._process
        code, reason = WSCloseCode.OK, "done"
        try:
            async with watched(self._exchange) as watch:
                await self._tell(
                    type="ready",
                    pty=process.id,
                    position=process.position,
                    resumed=process.resumed,
                    lost=process.lost,
                )
                listening = asyncio.create_task(self._listen())
                try:
                    end = await self._relay(listening)
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
                if end is not None and end.reason == "exited":
                    await self._tell(type="exit", exit_code=end.exit_code, signal=end.signal)
                elif end is not None and end.reason == "taken":
                    code, reason = WSCloseCode.POLICY_VIOLATION, "the terminal was resumed elsewhere"
                elif end is not None:
                    code, reason = WSCloseCode.GOING_AWAY, "the session's container has gone"
        except MoorageError as error:
            await self._refuse(error)
            code, reason = WSCloseCode.INTERNAL_ERROR, error.code
        finally:
            await process.close()
        if watch.reason == "closing":
            code, reason = WSCloseCode.GOING_AWAY, "this manager stops; connect again"
        elif watch.reason == "revoked":
            code, reason = WSCloseCode.POLICY_VIOLATION, "the credential is no longer valid"
        await self._ws.close(code=code, message=reason.encode()[:120])
        return self._ws

    async def _relay(self, listening: asyncio.Task[None]) -> ProcessEnd | None:
        """What the process writes, to its end; None when the reader has gone before."""
        coming = asyncio.ensure_future(self._process.read())
        try:
            while True:
                await asyncio.wait({coming, listening}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    piece = coming.result()
                    if isinstance(piece, ProcessEnd):
                        return piece
                    await self._send(piece)
                    coming = asyncio.ensure_future(self._process.read())
                elif listening.done():
                    listening.result()
                    return None
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _send(self, piece: Output) -> None:
        if self._ws.closed:
            raise ConnectionResetError("the reader has gone")
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._ws.send_bytes(piece.data)
        except TimeoutError:
            self._exchange.cut()
            raise ConnectionResetError("the reader takes nothing") from None

    async def _tell(self, **said: Any) -> None:
        if not self._ws.closed:
            await self._ws.send_str(dumps(said).decode())

    async def _refuse(self, error: MoorageError) -> None:
        await self._tell(**{**document(error, self._exchange.request_id), "type": "problem"})

    async def _listen(self) -> None:
        """What the reader types and wishes. A wish that makes no sense is refused, and the terminal goes on."""
        async for message in self._ws:
            try:
                if message.type is WSMsgType.BINARY:
                    await self._process.write(message.data)
                elif message.type is WSMsgType.TEXT:
                    await self._obey(loads(message.data.encode("utf-8", "surrogatepass")))
            except InvalidRequest as error:
                await self._refuse(error)

    async def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "input", "data": str(data)}:
                await self._process.write(data.encode("utf-8", "surrogateescape"))
            case {"type": "resize", "rows": int(rows), "cols": int(cols)} if 0 < rows < 10_000 and 0 < cols < 10_000:
                await self._process.resize(rows, cols)
            case {"type": "signal", "signal": str(name)} if name.isalnum() and len(name) <= 16:
                await self._process.signal(name)
            case {"type": "eof"}:
                await self._process.write_eof()
            case {"type": "close"}:
                await self._process.hang_up()
            case _:
                raise InvalidRequest(
                    "A message is bytes to type, or JSON with a 'type': input {data}, resize {rows, cols}, "
                    "signal {signal}, eof, close.",
                    field="type",
                )
