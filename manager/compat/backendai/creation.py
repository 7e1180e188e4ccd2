"""`POST /session`: the client's description of a session as an action, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from actions import CreateFromParamsAction, CreateFromTemplateAction, GetSessionInfoAction, ListImagesAction
from actions.lifecycle import DEFAULT_SLOTS, CreatedSession
from actions.views import SessionData
from domain.errors import (
    DependencyFailed,
    InvalidRequest,
    MoorageError,
    NameTaken,
    PermissionDenied,
    ResourceUnavailable,
    SessionNotFound,
    StartFailed,
)
from domain.session import ANSWERING, FINAL, SessionTypes
from domain.volumes import Mount
from manager.compat.backendai import shapes
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route
from manager.rest.exchange import OWNER
from manager.rest.streams import permitted
from manager.world import adapter, invalid

_ARCHITECTURES: Final = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_KINDS: Final = (SessionTypes.INTERACTIVE, SessionTypes.BATCH, SessionTypes.INFERENCE)
_RELATIVE: Final = re.compile(r"\+?(\d{1,9})\s*(s|m|h|d|w)", re.IGNORECASE)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_WAIT_SECONDS: Final = 30 * 86400.0


async def create(ask: Ask) -> web.StreamResponse:
    body = await ask.body(max_bytes=4 * 1024 * 1024, required=True)
    owner = owner_of(ask, body)
    check_domain(ask, body, owner)
    asked = asked_of(fields_of(body, ask.door.world.service.now()), owner)
    return await made(ask, asked, body, owner)


async def made(
    ask: Ask,
    asked: CreateFromParamsAction | CreateFromTemplateAction,
    body: Mapping[str, Any],
    owner: Mapping[str, Any],
) -> web.StreamResponse:
    """Wait for it as the client wants it, and tell how it stands."""
    enqueue, wait = bool(body.get("enqueueOnly")), _number(body, "maxWaitSeconds")
    try:
        async with permitted(ask):
            answer: CreatedSession = await ask.run(asked, settle_seconds=0.0 if enqueue else wait or None)
    except NameTaken as error:
        raise await _existing(ask, error, body.get("name"), owner) from None
    except (StartFailed, ResourceUnavailable, DependencyFailed) as error:
        return await _failed(ask, error, owner)
    session = answer.session_data
    status = shapes.status(session)
    if not enqueue and session.status not in ANSWERING | FINAL:
        status = "TIMEOUT"
    ports = shapes.service_ports(await labels_of(ask, session.image), session.preopen_ports)
    return ask.answer(_told(session, status, ports, created=answer.created), 201)


def _told(session: SessionData, status: str, ports: list[dict[str, Any]], *, created: bool) -> dict[str, Any]:
    return {
        "sessionId": str(session.id),
        "sessionName": session.name,
        "status": status,
        "servicePorts": ports,
        "created": created,
        "statusInfo": session.status_reason or "",
    }


async def labels_of(ask: Ask, image: str) -> Mapping[str, str]:
    page = await ask.run(ListImagesAction())
    return next((one.labels for one in page.items if one.name == image), {})


async def _existing(ask: Ask, error: NameTaken, name: str | None, owner: Mapping[str, Any]) -> MoorageError:
    """The same, with the id of the session that has the name."""
    try:
        there = await ask.run(GetSessionInfoAction(session_name=name or "", **owner))
    except SessionNotFound:  # it has ended just now
        return error
    return NameTaken(error.message, existingSessionId=str(there.session_info.id))


async def _failed(ask: Ask, error: MoorageError, owner: Mapping[str, Any]) -> web.StreamResponse:
    """The client wants to hear of a session that could not start as of one that there is."""
    session_id = error.facts.get("session_id")
    if session_id is None:
        raise error
    there = await ask.run(GetSessionInfoAction(session_name=str(session_id), **owner))
    return ask.answer(_told(there.session_info, shapes.status(there.session_info), [], created=True), 201)


# -- what is asked -------------------------------------------------------------------------------------------------------
def owner_of(ask: Ask, body: Mapping[str, Any]) -> dict[str, Any]:
    owner = body.get(OWNER)
    if owner is not None and not isinstance(owner, str):
        raise InvalidRequest(f"'{OWNER}' is an access key.", field=OWNER)
    return {} if owner in (None, "", ask.by.access_key) else {OWNER: str(owner)}


def check_domain(ask: Ask, body: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
    domain = body.get("domain")
    if domain is not None and not owner and domain != ask.by.domain:
        raise PermissionDenied(f"You are of the domain '{ask.by.domain}'; set BACKEND_DOMAIN to it.")


def asked_of(fields: dict[str, Any], owner: Mapping[str, Any]) -> CreateFromParamsAction:
    from pydantic import ValidationError

    try:
        return adapter(CreateFromParamsAction).validate_python({**fields, **owner})  # type: ignore[no-any-return]
    except ValidationError as error:
        raise invalid(error) from None


def fields_of(body: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The fields of the creation; what was not said is left out."""
    config = _object(body, "config")
    fields: dict[str, Any] = {
        "image": shapes.image_name(body.get("image") or body.get("lang")),
        "name": body.get("name") or body.get("clientSessionToken"),
        "session_type": kind_of(body.get("type")),
        "architecture": _ARCHITECTURES.get(str(body.get("architecture")), body.get("architecture")),
        "project": body.get("group") or body.get("groupName"),
        "tag": body.get("tag"),
        "cluster_size": body.get("clusterSize") or config.get("clusterSize"),
        "cluster_mode": body.get("clusterMode"),
        "reuse_if_exists": body.get("reuseIfExists", body.get("reuse", True)),
        "startup_command": body.get("startupCommand") or None,
        "bootstrap_script": body.get("bootstrap_script") or None,
        "starts_at": starts_at(body.get("starts_at") or body.get("startsAt"), now),
        "depends_on": [str(one) for one in _list(body, "dependencies")] or None,
        "callback_url": body.get("callback_url") or body.get("callbackURL") or None,
        **config_fields(config),
    }
    return {name: value for name, value in fields.items() if value is not None}


def config_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of `config`: resources, environment, mounts, and where it is to run."""
    slots = shapes.resources(_object(config, "resources"), otherwise=DEFAULT_SLOTS)
    shm = _object(config, "resource_opts").get("shmem")
    agents = _list(config, "agentList") or _list(config, "agent_list")
    if len(agents) > 1:
        raise InvalidRequest("One host is named for a session, and Moorage finds those of its other containers.")
    environ = _object(config, "environ")
    return {
        "resource_slots": slots,
        "shm_size": None if shm is None else shapes.memory_mib(shm, "shmem"),
        "environ": {str(name): str(value) for name, value in environ.items()} or None,
        "mounts": mounts_of(config) or None,
        "preopen_ports": [_port(port) for port in _list(config, "preopen_ports")] or None,
        "resource_group": config.get("scalingGroup") or config.get("scaling_group"),
        "agent": agents[0] if agents else None,
    }


def kind_of(text: Any) -> SessionTypes | None:
    if text is None:
        return None
    if text not in _KINDS:
        raise InvalidRequest(
            f"Input validation error: '{str(text)[:40]}' is no type; a session is {', '.join(_KINDS)}.",
            type="value is not a valid member of SessionTypes",
        )
    return SessionTypes(text)


def mounts_of(config: Mapping[str, Any]) -> list[Mount]:
    places = {str(name): str(path) for name, path in _object(config, "mount_map").items()}
    return [Mount(volume=name, path=places.get(name)) for name in dict.fromkeys(map(str, _list(config, "mounts")))]


def starts_at(text: Any, now: datetime) -> datetime | None:
    """A time in ISO 8601 (UTC where it names no zone), or `+5m` from now."""
    if text in (None, ""):
        return None
    try:
        if match := _RELATIVE.fullmatch(str(text).strip()):
            return now + timedelta(seconds=int(match[1]) * _SECONDS[match[2].lower()])
        at = datetime.fromisoformat(str(text).strip())
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"'{str(text)[:40]}' is no time; write 2026-01-31T08:00:00Z, or +30m.", field="starts_at"
        ) from None


def _port(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"'{str(value)[:40]}' is no port.", field="preopen_ports") from None


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"'{name}' is an object.", field=name)
    return value


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(f"'{name}' is a list.", field=name)
    return value


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_WAIT_SECONDS:
        raise InvalidRequest(f"'{name}' is a number of seconds.", field=name)
    return float(value)


ROUTES: Final = (Route("POST", "/session", create),)
