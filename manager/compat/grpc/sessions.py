"""Sessions as clients of the gRPC front know them: made of a template, with a service that nobody starts a second time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from actions.information import GetSessionInfoAction, SearchSessionsAction
from actions.lifecycle import DestroySessionAction
from actions.services import ListServicesAction, StartServiceAction
from actions.templates import CreateFromTemplateAction, GetTemplateAction
from agent.client import KernelAddress
from domain.errors import InvalidTemplate, MoorageError, ResourceUnavailable, SessionNotFound, WrongStatus
from domain.ids import KernelId, SessionId
from domain.principal import Principal
from domain.session import ANSWERING, FINAL
from repositories.service import route_of

if TYPE_CHECKING:
    from manager.world import World

#: After so long without a call a session ends, unless its template says otherwise.
IDLE_SECONDS: Final = 3600.0
#: How long the front waits for room and for the service, when the client sets no deadline.
PATIENCE_SECONDS: Final = 600.0
_LABEL: Final = "moorage.front"
_KNOWN_SECONDS: Final = 1.0
_MOST_KNOWN: Final = 10_000
#: A start of a service leaves so much of the client's time for its own call.
_READY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the service of a session is."""

    session_id: SessionId
    where: KernelAddress
    port: int


def shown(session_id: UUID) -> str:
    """An id as these clients have it: of version 4 by its looks; all else of it stays."""
    return str(UUID(int=session_id.int & ~(0xF << 76) | 4 << 76))


def meant(text: str | None) -> SessionId:
    """Raises SessionNotFound."""
    try:
        given = UUID(text or "")
    except ValueError:
        given = UUID(int=0)
    if given.version != 4:
        raise _unknown(text or "")
    return SessionId(UUID(int=given.int & ~(0xF << 76) | 7 << 76))


class Sessions:
    def __init__(self, world: World, *, template: str) -> None:
        self._world = world
        self._template = template
        self._known: dict[tuple[str, UUID | None, UUID], tuple[float, Place]] = {}
        for topic in ("services", "sessions", "identity"):
            world.herald.subscribe(topic, self._forget)

    async def create(self, by: Principal, request_id: str, seconds: float | None) -> SessionId:
        """A session whose service answers. What fails, or nobody waits for any more, leaves nothing behind."""
        until = time.monotonic() + (PATIENCE_SECONDS if seconds is None else seconds)
        serves, template, overrides = await self._recipe(by, request_id)
        asked = CreateFromTemplateAction(
            template=str(template.id), template_version=template.version, overrides=overrides
        )
        session_id = await self._made(asked, by, request_id)
        try:
            left = until - time.monotonic()
            session = await self._world.service.wait_for_session(
                session_id, lambda s: s.status in ANSWERING | FINAL, max(left, 0.1)
            )
            if session.status not in ANSWERING:
                raise ResourceUnavailable(f"No session could be had: {session.status_reason or 'no room in time'}")
            await self._run(
                StartServiceAction(
                    session_name=str(session_id),
                    service=serves.get("name", "api"),
                    kind="tcp",
                    protocol="tcp",
                    port=serves["port"],
                    command=list(serves["command"]),
                    environ=dict(serves.get("environ", {})),
                    ready_timeout=min(float(serves.get("ready_timeout", _READY_SECONDS)), 600.0),
                    most_restarts=0,
                ),
                by, request_id,
            )  # fmt: skip
        except BaseException:
            await asyncio.shield(self._give_up(by, session_id, request_id))
            raise
        return session_id

    async def close(self, by: Principal, session_id: SessionId, request_id: str) -> bool:
        """False when there is no such session any more. Waits a little until its resources are free."""
        asked = DestroySessionAction(session_name=str(session_id))
        try:
            session = await self._run(GetSessionInfoAction(session_name=str(session_id)), by, request_id)
            if session.session_info.ended_at is not None or session.session_info.labels.get(_LABEL) != "grpc":
                return False
            await self._run(asked, by, request_id, settle=10.0)
        except SessionNotFound:
            return False
        return True

    async def place(self, by: Principal, session_id: SessionId, request_id: str) -> Place:
        """Raises SessionNotFound, also for a session that has ended, or whose server has."""
        key = (by.access_key, by.token_id, session_id)
        until, place = self._known.get(key, (0.0, None))
        if place is not None and until > time.monotonic():
            return place
        session = (await self._run(GetSessionInfoAction(session_name=str(session_id)), by, request_id)).session_info
        if session.labels.get(_LABEL) != "grpc":
            raise _unknown(shown(session_id))
        if session.ended_at is not None or session.status not in ANSWERING:
            if session.ended_at is None and session.started_at is None:
                raise WrongStatus("The session is not ready yet; ask again when CreateSession has answered.")
            raise _unknown(shown(session_id))
        services = (await self._run(ListServicesAction(session_name=str(session_id)), by, request_id)).items
        service = next((one for one in services if one.protocol == "tcp"), None)
        if service is None:
            raise _unknown(shown(session_id))
        if service.health == "failed" or any(i.restarts for i in service.instances):
            await self._give_up(by, session_id, request_id)
            why = next((i.message for i in service.instances if i.message), None)
            raise SessionNotFound(
                f"Session {shown(session_id)} is lost, because its server has ended ({why or 'no reason is known'}); "
                "create a new one."
            )
        async with self._world.database.reader() as connection:
            route = await route_of(connection, session_id, service.name)
        if route is None:
            raise WrongStatus("The session's server is not ready at the moment; ask again.")
        backend = route.backends[0]
        where = KernelAddress(agent_id=backend.agent_id, kernel_id=KernelId(backend.kernel_id), attempt=backend.attempt)
        place = Place(session_id, where, route.port)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = (time.monotonic() + _KNOWN_SECONDS, place)
        return place

    async def newest(self, by: Principal, request_id: str) -> SessionId | None:
        """Of the caller's sessions that were made here: it answers what is about no session in particular."""
        found = await self._run(SearchSessionsAction(label=(f"{_LABEL}=grpc",), limit=20), by, request_id)
        return next((SessionId(one.id) for one in found.items if one.status in ANSWERING), None)

    def forget(self, session_id: SessionId) -> None:
        self._forget(frozenset({session_id}))

    # -- pieces ----------------------------------------------------------------------------------------------------------
    async def _recipe(self, by: Principal, request_id: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """What is to serve in it, the template, and what goes over that."""
        try:
            template = (await self._run(GetTemplateAction(template=self._template), by, request_id)).template
        except MoorageError as error:
            if error.http_status != 404:
                raise
            raise InvalidTemplate(
                f"There is no template '{self._template}' that you may use, and sessions are made of it; "
                f"'moorage template create {self._template}' makes one (docs/coming-from-cuvis.md)."
            ) from None
        serves = template.session.get("serves")
        if not isinstance(serves, dict) or not serves.get("port") or not serves.get("command"):
            raise InvalidTemplate(
                f"The template '{self._template}' does not say what serves in its sessions; give it 'session_type: inference' "
                "and 'serves' with a port and a command (docs/coming-from-cuvis.md)."
            )
        # Its state is in its memory: a server that was started again would be an empty one under the old name.
        over: dict[str, Any] = {"session_type": "interactive", "serves": None, "labels": {_LABEL: "grpc"}}
        if template.session.get("idle_timeout") is None:
            over["idle_timeout"] = IDLE_SECONDS
        return serves, template, over

    async def _made(self, asked: CreateFromTemplateAction, by: Principal, request_id: str) -> SessionId:
        """A client that vanishes meanwhile does not leave behind what only then turns out to have been made."""
        making = asyncio.ensure_future(self._run(asked, by, request_id))
        try:
            return SessionId((await asyncio.shield(making)).session_data.id)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # then nothing was made, or nobody knows
                await self._give_up(by, SessionId((await making).session_data.id), request_id)
            raise

    async def _give_up(self, by: Principal, session_id: SessionId, request_id: str) -> None:
        self.forget(session_id)
        with contextlib.suppress(MoorageError):
            await self._run(DestroySessionAction(session_name=str(session_id)), by, request_id)

    async def _run(self, action: Any, by: Principal, request_id: str, *, settle: float | None = 0.0) -> Any:
        return await self._world.processor.run(action, by=by, request_id=request_id, settle_seconds=settle)

    def _forget(self, session_ids: Collection[SessionId] | None) -> None:
        if session_ids is None:
            self._known.clear()
            return
        for key in [key for key in self._known if key[2] in session_ids]:
            del self._known[key]


def _unknown(name: str) -> SessionNotFound:
    return SessionNotFound(f"Session {name[:80]} not found")
