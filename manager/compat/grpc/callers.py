"""Who calls: a bearer credential in the metadata, or the one user that a listener on loopback was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from domain.errors import Unauthenticated
from domain.principal import Principal
from manager.rest.auth import Authenticator, Rates

if TYPE_CHECKING:
    from manager.world import World

_HINT = (
    "Send your key in the metadata: authorization: Bearer ACCESS_KEY.SECRET_KEY. For clients that send none an "
    "administrator opens a port of a user's own on loopback (grpc_users)."
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call, as far as the authenticator looks at a request."""

    headers: CIMultiDict[str]
    remote: str


class Callers:
    def __init__(self, world: World) -> None:
        self._world = world
        self._authenticator = Authenticator(world.authenticate)
        self._rates = Rates()

    async def principal(self, context: Any, known: str | None) -> Principal:
        """`known`: the access key that this listener is for. Raises what is wrong with the one who calls."""
        found = await self._of(context, known)
        self._rates.take(found)
        return found

    async def still(self, context: Any, known: str | None, by: Principal) -> None:
        """Raises when the one who calls is not any more who he was when he began."""
        if (await self._of(context, known)).lost(by):
            raise Unauthenticated("Your rights have changed since the call began; begin it again.")

    async def _of(self, context: Any, known: str | None) -> Principal:
        given = [text(value) for name, value in context.invocation_metadata() or () if name == "authorization"]
        if given or known is None:
            if not given:
                raise Unauthenticated(_HINT)
            headers = CIMultiDict(("Authorization", value) for value in given)
            asked = cast(BaseRequest, _Asked(headers, _address(context.peer())))
            return await self._authenticator.principal(asked)
        one = await self._world.identities.of_access_key(known)
        if one is None:
            raise Unauthenticated("The key that this port is for is not valid any more; tell your administrator.")
        return one


def text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _address(peer: str) -> str:
    """Of `ipv4:10.0.0.7:50432`."""
    return peer.rpartition(":")[0] or peer
