"""Worker sessions as clients of inference.sh see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from actions import DestroySessionAction, GetSessionInfoAction, KeepaliveSessionAction, SearchSessionsAction
from domain.errors import SessionNotFound
from domain.names import as_uuid
from domain.session import SessionTypes
from manager.compat.inference import shapes
from manager.compat.inference.ask import Ask
from manager.compat.inference.files import ROOT

_MOST_LISTED: Final = 1000
_MOST_KNOWN: Final = 10_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What a session never changes, and is known of each that was called a moment ago. Whether it may be called, the call says."""

    session_id: UUID
    app_id: str
    app_name: str
    version: str
    has_files: bool  #: the volume of files is mounted


class Known:
    def __init__(self) -> None:
        self._facts: dict[tuple[UUID, UUID], Facts] = {}
        self._only: set[UUID] = set()

    def only_for(self, session_id: UUID) -> None:
        """It was made for one call."""
        if len(self._only) >= _MOST_KNOWN:
            self._only.clear()
        self._only.add(session_id)

    def is_done_with(self, session_id: UUID) -> bool:
        """Once, of a session that was made for the call that is over."""
        there = session_id in self._only
        self._only.discard(session_id)
        return there

    async def of(self, ask: Ask, session_id: object) -> Facts | None:
        """None of one that has ended."""
        found = as_uuid(session_id) if isinstance(session_id, str) else None
        if found is not None and (known := self._facts.get((ask.by.user_id, found))) is not None:
            return known
        data = await info(ask, session_id)
        if data.end_reason is not None:
            return None
        has_files = any(mount.path == ROOT for mount in data.mounts)
        facts = Facts(data.id, str(data.app.id), data.app.name, str(data.app.version), has_files)
        if len(self._facts) >= _MOST_KNOWN:
            self._facts.clear()
        self._facts[ask.by.user_id, data.id] = facts
        return facts


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
