"""The front for clients of inference.sh (`inferencesh`), under /compat/inference: tasks, sessions and files over our actions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from domain.errors import (
    AgentUnavailable,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    MoorageError,
    PermissionDenied,
    RouteNotFound,
)
from manager.compat.inference import files, sessions, tasks
from manager.compat.inference.ask import Ask
from manager.compat.inference.links import Links
from manager.compat.inference.problems import problem
from manager.rest.exchange import decode_segment

if TYPE_CHECKING:
    from domain.principal import Principal
    from manager.config import ManagerConfig
    from manager.rest.app import RestDoor

log = logging.getLogger("moorage.inference")
Handler = Callable[..., Awaitable[web.StreamResponse]]
#: By method and the parts of a path; `*` is a value, which the handler is given.
_ROUTES: Final[dict[tuple[str, ...], dict[str, Handler]]] = {
    ("apps", "run"): {"POST": tasks.run},
    ("run",): {"POST": tasks.run},
    ("tasks", "*"): {"GET": tasks.get, "DELETE": tasks.delete},
    ("tasks", "*", "stream"): {"GET": tasks.stream},
    ("tasks", "*", "cancel"): {"POST": tasks.cancel},
    ("tasks", "*", "files"): {"GET": tasks.list_files, "DELETE": tasks.delete_files},
    ("sessions",): {"GET": sessions.list_all},
    ("sessions", "*"): {"GET": sessions.get, "DELETE": sessions.end},
    ("sessions", "*", "keepalive"): {"POST": sessions.keepalive},
    ("files",): {"POST": files.create},
}


def front(door: RestDoor, config: ManagerConfig) -> InferenceFront:
    return InferenceFront(door, Links.of(config.data_dir))


class InferenceFront:
    def __init__(self, door: RestDoor, links: Links) -> None:
        self._door = door
        self._links = links
        self._sessions = sessions.Known()
        self._sweeper = files.Sweeper()
        self._sweeping: set[asyncio.Task[int]] = set()

    async def answer(self, request: BaseRequest, path: str, request_id: str) -> web.StreamResponse:
        try:
            parts = [decode_segment(part) for part in path.strip("/").split("/")]
            match request.method, parts:
                case "PUT", ["files", "upload", token]:
                    return await files.store(self._links, self._asks_as(request, request_id), request, token)
                case "GET", ["files", token, _name]:
                    return await files.fetch(self._links, self._asks_as(request, request_id), token)
            ask = self._ask(request, request_id, await self._principal(request))
            handler, values = _find(request.method, parts)
            if handler is files.create:
                self._sweep(ask)
            return await handler(ask, *values)
        except MoorageError as error:
            return self._refused(request, error, request_id)
        except ConnectionError:
            raise
        except TimeoutError:
            late = AgentUnavailable("It took too long, and it is not known whether it happened; ask again shortly.")
            return self._refused(request, late, request_id)
        except Exception as error:
            log.error("request %s: %s failed", request_id, request.method, exc_info=error)
            return self._refused(request, Internal(), request_id)

    def _ask(self, request: BaseRequest, request_id: str, by: Principal) -> Ask:
        return Ask(self._door, request, request_id, by, self._links, self._sessions)

    async def _principal(self, request: BaseRequest) -> Principal:
        by = await self._door.authenticator.principal(request)
        self._door.rates.take(by)
        return by

    def _asks_as(self, request: BaseRequest, request_id: str) -> Callable[[str], Awaitable[Ask]]:
        """For addresses that were given: whoever has one asks as the one who gave it, while that one may ask at all."""

        async def make(access_key: str) -> Ask:
            by = await self._door.world.identities.of_access_key(access_key)
            if by is None:
                raise PermissionDenied("The keypair that this address was given to is no more.")
            self._door.rates.take(by)
            return self._ask(request, request_id, by)

        return make

    def _refused(self, request: BaseRequest, error: MoorageError, request_id: str) -> web.StreamResponse:
        if request.writer.output_size > 0:
            log.warning("request %s broke off: %s", request_id, error)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer broke off")
        return problem(error, request_id, close=request.body_exists and not request.content.is_eof())

    def _sweep(self, ask: Ask) -> None:
        if self._sweeper.due(ask):
            sweeping = asyncio.create_task(self._sweeper.sweep(ask))
            self._sweeping.add(sweeping)
            sweeping.add_done_callback(self._sweeping.discard)


def _find(method: str, parts: list[str]) -> tuple[Handler, list[Any]]:
    for pattern, methods in _ROUTES.items():
        if len(pattern) != len(parts) or any(p not in ("*", part) for p, part in zip(pattern, parts, strict=True)):
            continue
        values = [part for p, part in zip(pattern, parts, strict=True) if p == "*"]
        if not all(values):
            raise InvalidRequest("The address has an empty part.")
        if method not in methods:
            raise MethodNotAllowed(allow=", ".join(sorted(methods)))
        return methods[method], values
    raise RouteNotFound
