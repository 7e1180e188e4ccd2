"""One request of a client of inference.sh, and the envelope of what it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import NAMESPACE_URL, uuid5

from aiohttp import web
from aiohttp.web_request import BaseRequest

from actions.base import Action, Effect
from domain.crash import reach
from domain.errors import InvalidRequest
from domain.principal import Principal
from manager.rest.exchange import Exchange, Row

if TYPE_CHECKING:
    from manager.compat.inference.links import Links
    from manager.compat.inference.sessions import Known
    from manager.rest.app import RestDoor

R = TypeVar("R")
PREFIX: Final = "/compat/inference"
#: Of one call's body. How long its input may be, the call says: a client writes it longer than it is.
MAX_BODY_BYTES: Final = 16 * 1024 * 1024


class Ask(Exchange):
    """Routing is the front's own, so there is no row of the REST door; nothing that is used here looks at one."""

    __slots__ = ("links", "sessions")

    def __init__(
        self, door: RestDoor, request: BaseRequest, request_id: str, by: Principal, links: Links, sessions: Known
    ) -> None:
        super().__init__(door, request, request_id, cast(Row, None), {}, by)
        self.links = links
        self.sessions = sessions

    async def run(self, action: Action[Any, R], *, settle_seconds: float | None = 0.0) -> R:
        """One request may run several actions, each with a key of its own."""
        key = None if action.rules.effect is Effect.READ else self.idempotency_key
        if key is not None:
            key = f"inference-{uuid5(NAMESPACE_URL, key)}-{action.action_name}"
        answer = await self.door.world.processor.run(
            action, by=self.by, key=key, request_id=self.request_id, settle_seconds=settle_seconds
        )
        reach("api.answer.before")
        return answer

    async def body(self, *, required: bool = True) -> dict[str, Any]:
        return await self.json(max_bytes=MAX_BODY_BYTES, required=required)

    def role(self) -> str | None:
        """Which side of a task's files is meant: input, output, or both."""
        role = self.query_value("role")
        if role not in (None, "input", "output"):
            raise InvalidRequest("'role' is input or output.", field="role")
        return role

    def data(self, value: Any) -> web.Response:
        """The envelope: `data` as clients unwrap it, `success` as older ones do."""
        return self.answer({"data": value, "success": True})

    def nothing(self) -> web.Response:
        return web.Response(status=204)

    @property
    def base(self) -> str:
        """Where this client reaches the front, by its own word: addresses that it is given lead there."""
        return base_of(self.request)


def base_of(request: BaseRequest) -> str:
    scheme = request.headers.get("X-Forwarded-Proto", "")
    if scheme not in ("http", "https"):
        scheme = "https" if request.secure else "http"
    host = request.headers.get("Host", "")
    if not host or not host.isascii() or any(c in host for c in '/\\@?# \t"<>'):
        raise InvalidRequest("The request names no host.", field="Host")
    return f"{scheme}://{host}{PREFIX}"
