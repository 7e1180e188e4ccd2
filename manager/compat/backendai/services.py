"""Services of sessions in Backend.AI's words: start, stop, and ways in that do not go through the API."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from actions import GetDirectAccessInfoAction, GetSessionInfoAction, ShutdownServiceAction, StartServiceAction
from actions.services import DirectAccess, ServiceStarted
from domain.errors import InvalidRequest
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route
from manager.rest.json import check_text
from manager.world import validated


async def start(ask: Ask) -> web.StreamResponse:
    """`wsproxy_addr` is the whole address, ready to be opened; `token` is the ticket in it, good for one use."""
    body = await ask.body(required=True)
    app = body.get("app")
    if not isinstance(app, str):
        raise InvalidRequest("Say which app is meant: 'app'.", field="app")
    started: ServiceStarted = await ask.run(
        validated(
            StartServiceAction(
                **ask.session,
                service=app,
                port=port_of(body.get("port")),
                arguments=arguments_of(body.get("arguments")),
                environ=environment_of(body.get("envs")),
                login_session_token=_text(body.get("login_session_token")),
            )
        )
    )
    ticket = started.wsproxy_addr.partition("/proxy/")[2].partition("/")[0]
    return ask.answer({"token": ticket, "wsproxy_addr": started.wsproxy_addr})


async def shutdown(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    name = body.get("service_name")
    if not isinstance(name, str):
        raise InvalidRequest("Say which service is meant: 'service_name'.", field="service_name")
    await ask.run(validated(ShutdownServiceAction(**ask.session, service=name)))
    return ask.nothing()


async def direct_access(ask: Ask) -> web.StreamResponse:
    """Where the SSH gateway lets one in; empty where there is none."""
    access: DirectAccess = await ask.run(GetDirectAccessInfoAction(**ask.session))
    session = (await ask.run(GetSessionInfoAction(**ask.session))).session_info
    told: dict[str, Any] = {}
    if (ssh := access.ssh) is not None:
        told = {
            "kernel_role": "main",
            "session_type": session.session_type.upper(),
            "public_host": ssh.host or _without_port(ask.request.host),
            "sshd_ports": [ssh.port],
            "ssh_user": ssh.user,
        }
    return ask.answer(told)


def _without_port(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # its sender may have signed anything
        return None


def port_of(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdecimal():
        port = int(str(value)[:9])
        if 1 <= port <= 65535:
            return port
    raise InvalidRequest("A port is a number from 1 to 65535.", field="port")


def arguments_of(value: Any) -> list[str]:
    """`{"--option": "value", "--flag": null, "--many": ["a", "b"]}`, as JSON text, to words of a command."""
    words: list[str] = []
    for name, given in _object(value, "arguments").items():
        words.append(name)
        if given is not None:
            words += [str(one) for one in (given if isinstance(given, list) else [given])]
    return words


def environment_of(value: Any) -> dict[str, str]:
    return {name: "" if given is None else str(given) for name, given in _object(value, "envs").items()}


def _object(value: Any, field: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        check_text(value)
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise InvalidRequest(f"'{field}' is a JSON object, as text.", field=field) from None
    if not isinstance(value, dict) or len(value) > 200:
        raise InvalidRequest(f"'{field}' is a JSON object of at most 200 names.", field=field)
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


ROUTES: Final = (
    Route("POST", "/session/{session}/start-service", start),
    Route("POST", "/session/{session}/shutdown-service", shutdown),
    Route("GET", "/session/{session}/direct-access-info", direct_access),
)
