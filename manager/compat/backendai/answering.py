"""Takes this front's requests: finds the row, checks the signature, and answers every failure as its client expects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web

from domain.errors import AgentUnavailable, Internal, InvalidRequest, MoorageError
from domain.principal import Principal
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.errors import response_of
from manager.compat.backendai.guard import Guard
from manager.compat.backendai.table import whole_table
from manager.rest.auth import NOBODY

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from manager.rest.app import RestDoor
    from manager.vault import Vault

log = logging.getLogger("moorage.compat.backendai")
_WINDOW_SECONDS: Final = 2


class BackendAiFront:
    """Implements `manager.compat.Front`."""

    def __init__(self, door: RestDoor, vault: Callable[[], Vault]) -> None:
        self._door = door
        self._guard = Guard(door, vault)
        self._table = whole_table()

    async def answer(self, request: BaseRequest, path: str, request_id: str) -> web.StreamResponse:
        by = NOBODY
        try:
            route, values = self._table.find("GET" if request.method == "HEAD" else request.method, path)
            signed = None
            if not route.public:
                by, signed = await self._guard.admit(request)
                self._door.rates.take(by)
                if route.uses_signature:
                    await self._guard.use(signed)
            still = partial(self._guard.still, by, signed)
            derived = partial(self._guard.derived, by)
            response = await route.handler(Ask(self._door, request, request_id, route, values, by, still, derived))
        except ConnectionError:
            raise
        except MoorageError as error:
            response = self._refused(request, error, request_id)
        except Exception as error:
            response = self._refused(request, self._unexpected(error, request, request_id), request_id)
        if not response.prepared:
            self._limits(response, by)
        return response

    def _refused(self, request: BaseRequest, error: MoorageError, request_id: str) -> web.StreamResponse:
        if request.writer.output_size > 0:
            # an answer has begun; all that can be said now is that it is not whole
            log.warning("request %s broke off: %s", request_id, error)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer broke off")
        return response_of(error, request_id, close=request.body_exists and not request.content.is_eof())

    def _unexpected(self, error: Exception, request: BaseRequest, request_id: str) -> MoorageError:
        if isinstance(error, TimeoutError):
            log.warning("request %s: %s %s took too long", request_id, request.method, request.raw_path[:200])
            return AgentUnavailable("It took too long, and it is not known whether it happened; ask again shortly.")
        if isinstance(error, web.HTTPException) and error.status < 500:  # aiohttp's own, of a WebSocket handshake
            return InvalidRequest((error.text or error.reason).splitlines()[0][:200])
        log.error("request %s: %s %s failed", request_id, request.method, request.raw_path[:200], exc_info=error)
        return Internal()

    def _limits(self, response: web.StreamResponse, by: Principal) -> None:
        """What a keypair may ask, where there is a limit: so many requests at once, and as many again within the window."""
        if (left := self._door.rates.left(by)) is not None:
            limit, remaining = left
            response.headers["X-RateLimit-Limit"] = str(limit)
            response.headers["X-RateLimit-Remaining"] = str(remaining)
            response.headers["X-RateLimit-Window"] = str(_WINDOW_SECONDS)
