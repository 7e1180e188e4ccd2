"""How the manager is, and logs of tasks; what Backend.AI's manager does otherwise is refused with the way it is done here."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from actions import GetContainerLogsAction
from actions.information import LogStream
from domain.errors import InvalidRequest, SessionNotFound
from domain.names import as_uuid
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.gql_lists import Lists
from manager.compat.backendai.negotiation import MANAGER, VERSION
from manager.compat.backendai.table import Route
from manager.rest.streams import permitted


async def status(ask: Ask) -> web.StreamResponse:
    """`active_sessions`: those that the asker sees, one's own or everybody's."""
    lists = Lists(ask, ask.door.world.service.now(), "")
    active = sum((await lists.live_by_key()).values())
    version, day = VERSION.removeprefix("v").split(".")
    node: dict[str, Any] = {
        "id": "moorage",
        "num_proc": 1,
        "service_addr": ask.request.host,
        "heartbeat_timeout": 40.0,
        "ssl_enabled": ask.request.secure,
        "active_sessions": active,
        "status": "running",
        "version": MANAGER,
        "api_version": [int(version), day],
    }
    return ask.answer({"nodes": [node], "status": "running", "active_sessions": active})


async def set_status(ask: Ask) -> web.StreamResponse:
    if (await ask.body()).get("status") == "running":
        return ask.nothing()  # it does
    raise InvalidRequest(
        "Managers are not frozen here: 'moorage admin agent drain' empties hosts, and several managers are upgraded one "
        "after the other while sessions go on."
    )


async def announce(ask: Ask) -> web.StreamResponse:
    if not (await ask.body()).get("enabled"):
        return ask.nothing()  # there is none
    raise InvalidRequest("Announcements are not kept here.")


async def task_logs(ask: Ask) -> web.StreamResponse:
    """Of a session by id, or by the id of one of its containers, also after its end; as it is printed."""
    task = ask.query_value("taskId") or ask.query_value("task_id")
    if not task:
        raise InvalidRequest("Say which task: ?taskId=ID.", field="taskId")
    async with permitted(ask):
        chunks = (await _log(ask, task)).chunks()
        first = await anext(chunks, b"")  # a host that does not answer is told as a failure, before an answer begins
        response = await ask.begin(200, {"Content-Type": "text/plain; charset=utf-8"})
        await ask.write(response, first)
        async for chunk in chunks:
            await ask.write(response, chunk)
    await response.write_eof()
    return response


async def _log(ask: Ask, task: str) -> LogStream:
    try:
        return await ask.run(GetContainerLogsAction(session_name=task))
    except SessionNotFound:
        if (kernel_id := as_uuid(task)) is None:
            raise
        for session in await Lists(ask, ask.door.world.service.now(), "").sessions(("all",), None, None):
            if kernel_id in [kernel.id for kernel in session.kernels]:
                return await ask.run(GetContainerLogsAction(session_name=str(session.id), kernel=str(kernel_id)))
        raise


ROUTES: Final = (
    Route("GET", "/manager/status", status),
    Route("PUT", "/manager/status", set_status),
    Route("POST", "/manager/announcement", announce),
    Route("GET", "/session/_/logs", task_logs),
)
