"""One request on its way through this front: what it asks, who asks, how it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiohttp import web

from domain.crash import reach
from manager.rest.exchange import OWNER, Exchange
from manager.rest.json import MAX_BODY_BYTES, dumps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest

    from actions.base import Action
    from domain.principal import Principal
    from manager.compat.backendai.table import Route
    from manager.rest.app import RestDoor

R = TypeVar("R")
#: The client puts a null where nothing was said.
_NOTHING: Final = ("", "null", "undefined", "None")


class Ask(Exchange):
    """`ask.run(action)` runs it as whoever has signed; `ask.session` and `ask.owner` are what most actions are made of."""

    __slots__ = ("_derived", "_still")

    def __init__(
        self,
        door: RestDoor,
        request: BaseRequest,
        request_id: str,
        route: Route,
        path: dict[str, str],
        by: Principal,
        still: Callable[[], Awaitable[bool]],
        derived: Callable[[str], Awaitable[bytes]],
    ) -> None:
        super().__init__(door, request, request_id, route, path, by)  # type: ignore[arg-type]  # no row of /v1
        self._still = still
        self._derived = derived

    async def still(self) -> bool:
        return await self._still()

    async def derived(self, about: str) -> bytes:
        """32 bytes that follow from the secret of the keypair that has signed, and say nothing of it."""
        return await self._derived(about)

    @property
    def session(self) -> dict[str, Any]:
        """The session that the address names, by name or id, and whose it is."""
        return {"session_name": self.path["session"], **self.owner}

    @property
    def owner(self) -> dict[str, Any]:
        """`owner_access_key`, when it is another's session that is meant."""
        value = self.query_value(OWNER)
        return {} if value is None or value in _NOTHING or value == self.by.access_key else {OWNER: value}

    async def run(self, action: Action[Any, R], *, settle_seconds: float | None = 0.0, key: str | None = None) -> R:
        """`key`: the same one never does it twice."""
        answer = await self.door.world.processor.run(
            action, by=self.by, key=key, request_id=self.request_id, settle_seconds=settle_seconds
        )
        reach("api.answer.before")
        return answer

    async def body(self, *, max_bytes: int = MAX_BODY_BYTES, required: bool = False) -> dict[str, Any]:
        """The JSON object that was sent; GET has one too here."""
        return await self.json(max_bytes=max_bytes, required=required)

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        response = web.Response(status=status, body=dumps(value), headers=headers)
        response.headers["Content-Type"] = "application/json; charset=utf-8"
        return response

    def nothing(self) -> web.Response:
        return web.Response(status=204)
