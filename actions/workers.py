"""Worker sessions at their creation: what an app says goes under what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

from actions.base import Work
from domain.apps import LONGEST_IDLE_SECONDS, SHORTEST_IDLE_SECONDS
from domain.errors import InvalidConfiguration, InvalidRequest, NameTaken
from domain.resources import ResourceSlot
from domain.session import OnAgentLost, Session, SessionTypes
from repositories.apps import App


class Asked(Protocol):
    """The fields of a creation of which a worker session has others."""

    @property
    def app(self) -> str | None: ...
    @property
    def image(self) -> str | None: ...
    @property
    def session_type(self) -> SessionTypes: ...
    @property
    def resource_slots(self) -> ResourceSlot | None: ...
    @property
    def environ(self) -> Mapping[str, str] | None: ...
    @property
    def idle_timeout(self) -> float | None: ...
    @property
    def cluster_size(self) -> int: ...
    @property
    def on_agent_lost(self) -> OnAgentLost: ...


A = TypeVar("A", bound=Asked)


async def employed(call: Work, asked: A) -> tuple[A, App | None]:
    """The creation with all that its app says, and the app. Raises what does not go together."""
    if asked.app is None:
        if asked.session_type is SessionTypes.WORKER:
            raise InvalidConfiguration(
                "A worker session answers calls with an app: name one with 'app', and see 'moorage app ls'.",
                field="app",
            )
        if asked.image is None:
            raise InvalidRequest("The field 'image' is required.", field="image")
        return asked, None
    if asked.session_type not in (SessionTypes.INTERACTIVE, SessionTypes.WORKER):
        raise InvalidConfiguration(
            f"A session of an app is a worker session, not a {asked.session_type} one; leave session_type out.",
            field="session_type",
        )
    if asked.cluster_size != 1 or hasattr(asked, "workers"):
        raise InvalidConfiguration("A worker session has one kernel.", field="cluster_size")
    if asked.on_agent_lost is not OnAgentLost.KEEP:
        raise InvalidConfiguration(
            "A worker session never begins anew by itself: what it holds in memory would be gone, and nobody told.",
            field="on_agent_lost",
        )
    app = await call.db.apps.get(asked.app)
    said = app.definition
    slots = asked.resource_slots
    if slots is None and said.resource_slots is not None:
        slots = ResourceSlot(said.resource_slots)
    idle_timeout = said.idle_timeout if asked.idle_timeout is None else asked.idle_timeout
    fields: dict[str, Any] = {
        "image": asked.image or said.image,
        "resource_slots": slots,
        "environ": {**said.environ, **(asked.environ or {})},
        "idle_timeout": _checked(idle_timeout),
        "session_type": SessionTypes.WORKER,
    }
    return cast(A, replace(cast(Any, asked), **fields)), app


def check_same_app(session: Session, app: App | None) -> None:
    """Of a session that is reused."""
    if app is None:
        return
    there = session.worker.app if session.worker is not None else {}
    if (there.get("id"), there.get("version")) != (str(app.id), app.version):
        has = f"{there.get('name')}@{there.get('version')}"
        raise NameTaken(
            f"The live session '{session.name}' has the app {has}, not {app.name}@{app.version}; choose another name.",
            name=session.name,
        )


def check_idle_timeout(session: Session, seconds: float) -> float:
    """What it may become of a session that is there."""
    return _checked(seconds) if session.session_type is SessionTypes.WORKER else seconds


def _checked(seconds: float) -> float:
    if not SHORTEST_IDLE_SECONDS <= seconds <= LONGEST_IDLE_SECONDS:
        raise InvalidConfiguration(
            f"The idle_timeout of a worker session is from {SHORTEST_IDLE_SECONDS:g} to {LONGEST_IDLE_SECONDS:g} seconds.",
            field="idle_timeout",
        )
    return seconds
