"""One request on its way through this front: what it asks, who asks, how it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from manager.rest.exchange import OWNER, Exchange
from manager.rest.json import MAX_BODY_BYTES, dumps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest

    from domain.principal import Principal
    from manager.compat.backendai.table import Route
    from manager.rest.app import RestDoor

#: The client puts a null where nothing was said.
_NOTHING: Final = ("", "null", "undefined", "None")


class Ask(Exchange):
    """`ask.run(action)` runs it as whoever has signed; `ask.session` and `ask.owner` are what most actions are made of."""

    __slots__ = ("_still",)

    def __init__(
        self,
        door: RestDoor,
        request: BaseRequest,
        request_id: str,
        route: Route,
        path: dict[str, str],
        by: Principal,
        still: Callable[[], Awaitable[bool]],
    ) -> None:
        super().__init__(door, request, request_id, route, path, by)  # type: ignore[arg-type]  # no row of /v1
        self._still = still

    async def still(self) -> bool:
        return await self._still()

    @property
    def session(self) -> dict[str, str]:
        """The session that the address names, by name or id, and whose it is."""
        return {"session_name": self.path["session"], **self.owner}

    @property
    def owner(self) -> dict[str, str]:
        """`owner_access_key`, when it is another's session that is meant."""
        value = self.query_value(OWNER)
        return {} if value is None or value in _NOTHING or value == self.by.access_key else {OWNER: value}

    async def body(self, *, max_bytes: int = MAX_BODY_BYTES, required: bool = False) -> dict[str, Any]:
        """The JSON object that was sent; GET has one too here."""
        return await self.json(max_bytes=max_bytes, required=required)

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        response = web.Response(status=status, body=dumps(value), headers=headers)
        response.headers["Content-Type"] = "application/json; charset=utf-8"
        return response

    def nothing(self) -> web.Response:
        return web.Response(status=204)
