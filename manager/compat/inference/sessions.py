"""Worker sessions as clients of inference.sh see them."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from actions import DestroySessionAction, GetSessionInfoAction, KeepaliveSessionAction, SearchSessionsAction
from domain.errors import SessionNotFound
from domain.names import as_uuid
from domain.session import SessionTypes
from manager.compat.inference import shapes
from manager.compat.inference.ask import Ask

_MOST_LISTED: Final = 1000


async def info(ask: Ask, session_id: object) -> Any:
    """What is known of a worker session of the asker's. Anything else is not there."""
    found = as_uuid(session_id) if isinstance(session_id, str) else None
    if found is None:
        raise SessionNotFound(f"There is no session '{str(session_id)[:80]}'; start one with session='new'.")
    data = (await ask.run(GetSessionInfoAction(session_name=str(found)))).session_info
    if data.session_type is not SessionTypes.WORKER:
        raise SessionNotFound(f"The session {found} answers no calls; start one with session='new'.")
    return data


async def get(ask: Ask, session_id: str) -> web.StreamResponse:
    return _told(ask, await info(ask, session_id))


async def list_all(ask: Ask) -> web.StreamResponse:
    """The newest; those that have ended are among them."""
    page = await ask.run(SearchSessionsAction(status=("all",), limit=_MOST_LISTED))
    now = ask.door.world.service.now()
    workers = [data for data in page.items if data.session_type is SessionTypes.WORKER]
    return ask.data([shapes.session(data, now) for data in workers])


async def keepalive(ask: Ask, session_id: str) -> web.StreamResponse:
    data = await info(ask, session_id)
    await ask.run(KeepaliveSessionAction(session_name=str(data.id)))
    return _told(ask, await info(ask, session_id))


async def end(ask: Ask, session_id: str) -> web.StreamResponse:
    data = await info(ask, session_id)
    await ask.run(DestroySessionAction(session_name=str(data.id)))
    return ask.nothing()


def _told(ask: Ask, data: Any) -> web.StreamResponse:
    return ask.data(shapes.session(data, ask.door.world.service.now()))
