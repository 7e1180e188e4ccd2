"""Connections to ports of a session over WebSocket, binary both ways: what `backend.ai app`, `ssh` and `scp` are made of."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, web

from actions import GetSessionInfoAction, ListServicesAction, OpenPortAction, StartServiceAction
from actions.services import ServiceData
from actions.views import SessionData
from agent.client import KernelAddress
from domain.errors import InvalidRequest, MoorageError, SessionNotReady
from domain.session import ENDED
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.pty import websocket
from manager.compat.backendai.services import arguments_of, environment_of, port_of
from manager.compat.backendai.table import Route
from manager.rest.streams import watched
from manager.world import validated

#: The client sends 16 MiB at once.
MAX_MESSAGE_BYTES: Final = 20 << 20
_CHUNK_BYTES: Final = 256 << 10
_WRITE_SECONDS: Final = 120.0
#: Answered by the front itself: no image has an SSH server.
SSHD: Final = "sshd"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def tcpproxy(ask: Ask) -> web.StreamResponse:
    ws = websocket(ask, most_bytes=MAX_MESSAGE_BYTES)
    app = ask.query_value("app")
    if not app:
        raise InvalidRequest("Say which app is meant: app=jupyter.", field="app")
    if app == SSHD:
        from manager.compat.backendai.sshd import login

        reader, writer = await login(ask)
    else:
        reader, writer = await _connect(ask, app)
    try:
        ask.door.stamp(ws, ask.request_id)
        await ws.prepare(ask.request)
        return await _pump(ask, ws, reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _connect(ask: Ask, app: str) -> Streams:
    """The app is started when it does not run yet; an opened port is connected to whatever listens there."""
    services = {one.name: one for one in (await ask.run(ListServicesAction(**ask.session))).items}
    session: SessionData = (await ask.run(GetSessionInfoAction(**ask.session))).session_info
    port = port_of(ask.query_value("port"))
    if app in map(str, session.preopen_ports):
        return await dial(ask, str(session.id), int(app))
    service = services.get(app)
    if service is None:
        started = await ask.run(
            validated(
                StartServiceAction(
                    **ask.session,
                    service=app,
                    port=port,
                    arguments=arguments_of(ask.query_value("arguments")),
                    environ=environment_of(ask.query_value("envs")),
                )
            )
        )
        service = started.service
    return await dial(ask, str(session.id), port or service.port, _kernel(service))


def _kernel(service: ServiceData) -> str | None:
    return None if service.kernels in ("main", "all") else service.kernels


async def dial(ask: Ask, session_id: str, port: int, kernel: str | None = None) -> Streams:
    """A connection to a port, for whoever may have one: the action asks who, and writes it down. Its pass lapses unused."""
    about = {**ask.owner, "session_name": session_id}
    await ask.run(validated(OpenPortAction(**about, port=port, kernel=kernel)))
    session: SessionData = (await ask.run(GetSessionInfoAction(**about))).session_info
    for one in session.kernels:
        if kernel in (None, one.name, str(one.id)) and one.agent is not None and one.status not in ENDED:
            where = KernelAddress(agent_id=one.agent, kernel_id=one.id, attempt=session.attempt)
            return await ask.door.world.service.agents.open_tunnel(where, port)
    raise SessionNotReady(f"The session '{session.name}' has no container that could answer.", status=session.status)


async def _pump(
    ask: Ask, ws: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> web.WebSocketResponse:
    """Until both directions have ended, or the one that the client can end: its connection."""
    code, reason = WSCloseCode.OK, ""
    watch = None
    try:
        async with watched(ask) as watch:
            up = asyncio.create_task(_up(ws, writer))
            down = asyncio.create_task(_down(ask, ws, reader))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                for task in (up, down):
                    if task.done():
                        task.result()
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
    except MoorageError as error:
        code, reason = WSCloseCode.INTERNAL_ERROR, error.message
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        code, reason = WSCloseCode.INTERNAL_ERROR, "the connection broke off"
    if watch is not None and watch.reason in ("closing", "revoked"):
        code, reason = WSCloseCode.GOING_AWAY, watch.reason
    await ws.close(code=code, message=reason.encode()[:120])
    return ws


async def _up(ws: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            writer.write(message.data)
            await writer.drain()
        elif message.type is WSMsgType.ERROR:
            return


async def _down(ask: Ask, ws: web.WebSocketResponse, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        if ws.closed:
            return
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                await ws.send_bytes(data)
        except TimeoutError:
            ask.cut()
            raise ConnectionResetError("the reader takes nothing") from None


ROUTES: Final = (Route("GET", "/stream/session/{session}/tcpproxy", tcpproxy, once=True),)
