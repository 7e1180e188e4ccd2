"""Terminals as Backend.AI's client speaks with them: JSON in, `{"type": "out", "data": base64}` out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from actions import OpenProcessAction, RestartSessionAction
from actions.gateway import ProcessResult
from agent.client import Process, ProcessEnd
from domain.errors import InvalidRequest, MoorageError
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route
from manager.rest.auth import check_origin
from manager.rest.json import dumps, loads
from manager.rest.streams import watched

MAX_MESSAGE_BYTES: Final = 1 << 20
_WRITE_SECONDS: Final = 120.0
#: A session that is restarted is waited for so long.
_RESTART_SECONDS: Final = 120.0
#: Of what is typed meanwhile.
_KEPT_BYTES: Final = 64 * 1024


def websocket(ask: Ask, *, most_bytes: int = MAX_MESSAGE_BYTES) -> web.WebSocketResponse:
    """Raises InvalidRequest for what is no handshake, before anything is opened."""
    check_origin(ask.request)
    ws = web.WebSocketResponse(heartbeat=30.0, max_msg_size=most_bytes, compress=False, timeout=5.0)
    if not ws.can_prepare(ask.request).ok:
        raise InvalidRequest("This is spoken over WebSocket; ask for an upgrade.")
    return ws


async def pty(ask: Ask) -> web.StreamResponse:
    ws = websocket(ask)
    terminal = Terminal(ask, ws)
    process = await terminal.open()
    try:
        ask.door.stamp(ws, ask.request_id)
        await ws.prepare(ask.request)
    except BaseException:
        await process.hang_up()
        await process.close()
        raise
    return await terminal.serve(process)


class Terminal:
    """A shell that ends with its connection: this client has no words to come back to one."""

    def __init__(self, ask: Ask, ws: web.WebSocketResponse) -> None:
        self._ask = ask
        self._ws = ws
        self._rows, self._cols = 24, 80
        self._process: Process
        self._restarting: asyncio.Task[Process] | None = None
        self._typed = bytearray()  #: while it restarts

    async def open(self) -> Process:
        opened: ProcessResult = await self._ask.run(
            OpenProcessAction(**self._ask.session, rows=self._rows, cols=self._cols)
        )
        return opened.process

    async def serve(self, process: Process) -> web.WebSocketResponse:
        self._process = process
        code, reason = WSCloseCode.OK, "done"
        try:
            async with watched(self._ask) as watch:
                listening = asyncio.create_task(self._listen())
                try:
                    await self._relay(listening)
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
        except MoorageError as error:
            code, reason = WSCloseCode.INTERNAL_ERROR, error.message
        finally:
            await self._leave()
        if watch.reason in ("closing", "revoked"):
            code = WSCloseCode.GOING_AWAY if watch.reason == "closing" else WSCloseCode.POLICY_VIOLATION
            reason = "this manager stops" if watch.reason == "closing" else "the credential is no longer valid"
        await self._ws.close(code=code, message=reason.encode()[:120])
        return self._ws

    async def _leave(self) -> None:
        """No shell stays behind, not even one that a restart has just opened."""
        shells = [self._process]
        if self._restarting is not None:
            self._restarting.cancel()
            (opened,) = await asyncio.gather(self._restarting, return_exceptions=True)
            if not isinstance(opened, BaseException):
                shells.append(opened)
        for shell in shells:
            with contextlib.suppress(MoorageError, ConnectionError):
                await shell.hang_up()
            await shell.close()

    async def _relay(self, listening: asyncio.Task[None]) -> None:
        """What the shell writes, to its end, or to the one's of whoever reads; on to the next one after a restart."""
        coming = asyncio.ensure_future(self._process.read())
        try:
            while True:
                await asyncio.wait({coming, listening}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    listening.result()
                    return
                piece = await self._piece(coming)
                if piece is None:
                    if self._restarting is None:
                        return
                    await self._process.close()
                    self._process, self._restarting = await self._restarting, None
                    if self._typed:
                        await self._process.write(bytes(self._typed))
                        self._typed.clear()
                else:
                    await self._send(piece)
                coming = asyncio.ensure_future(self._process.read())
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _piece(self, coming: asyncio.Future[Any]) -> bytes | None:
        """None at the shell's end, however that comes while the session is restarted."""
        try:
            found = coming.result()
        except (MoorageError, ConnectionError):
            if self._restarting is None:
                raise
            return None
        return None if isinstance(found, ProcessEnd) else found.data

    async def _send(self, data: bytes) -> None:
        if self._ws.closed:
            raise ConnectionResetError("the reader has gone")
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._ws.send_str(dumps({"type": "out", "data": base64.b64encode(data).decode()}).decode())
        except TimeoutError:
            self._ask.cut()
            raise ConnectionResetError("the reader takes nothing") from None

    async def _listen(self) -> None:
        """A message that makes no sense is told, and the terminal goes on."""
        async for message in self._ws:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                await self._obey(loads(message.data.encode("utf-8", "surrogatepass")))
            except InvalidRequest as error:
                if not self._ws.closed:
                    await self._ws.send_str(dumps({"type": "error", "reason": error.message}).decode())

    async def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "stdin", "chars": str(chars)}:
                typed = _decoded(chars)
                if self._restarting is None:
                    await self._process.write(typed)
                elif len(self._typed) + len(typed) <= _KEPT_BYTES:
                    self._typed += typed
            case {"type": "resize", "rows": int(rows), "cols": int(cols)} if 0 < rows < 10_000 and 0 < cols < 10_000:
                self._rows, self._cols = rows, cols
                if self._restarting is None:
                    await self._process.resize(rows, cols)
            case {"type": "ping"}:
                pass  # the connection lives; nothing is answered
            case {"type": "restart"}:
                if self._restarting is None:
                    self._restarting = asyncio.create_task(self._restarted())
                    await self._process.hang_up()
            case _:
                raise InvalidRequest("A message is stdin {chars}, resize {rows, cols}, ping or restart.", field="type")

    async def _restarted(self) -> Process:
        """A new attempt of the session, and a shell in it."""
        await self._ask.run(RestartSessionAction(**self._ask.session), settle_seconds=_RESTART_SECONDS)
        return await self.open()


def _decoded(chars: str) -> bytes:
    try:
        return base64.b64decode(chars, validate=True)
    except binascii.Error:
        raise InvalidRequest("What is typed is sent as base64.", field="chars") from None


ROUTES: Final = (Route("GET", "/stream/session/{session}/pty", pty, once=True),)
