"""What stands for a user: tokens, the secret of webhooks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from moorage import _wire
from moorage._models import Token
from moorage.aio._transport import Transport, decoded

TokenList = list[Token]


class Tokens:
    """`client.tokens`: each stands for the keypair that made it, until it expires."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(
        self, *, user: str | None = None, everybody: bool = False, limit: int | None = None
    ) -> AsyncGenerator[Token]:
        """The caller's own; for administrators those of a user, or of everybody they see. Fetched as they are looked at."""
        return self._transport.items(
            Token.from_json, _wire.path("tokens"), limit=limit, user=user, everybody=everybody or None
        )

    async def list(self, *, user: str | None = None, everybody: bool = False, limit: int | None = None) -> TokenList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(user=user, everybody=everybody, limit=limit)]

    async def create(
        self,
        name: str = "token",
        *,
        ttl_seconds: float | None = None,
        scopes: Iterable[str] | None = None,
        keypair: str | None = None,
    ) -> Token:
        """A new one; its `token` is in this answer and nowhere else.

        `scopes`: read, sessions, files, services, admin; all by default. `keypair`: for administrators, of another user.
        """
        fields = _wire.body(
            name=name, ttl_seconds=ttl_seconds, scopes=None if scopes is None else [*scopes], keypair=keypair
        )
        return Token.from_json(decoded(await self._transport.request("POST", _wire.path("tokens"), json=fields)))

    async def remove(self, token_id: str) -> None:
        """Revoke it; it is refused within a second."""
        await self._transport.request("DELETE", _wire.path("tokens", token_id))


class Webhooks:
    """`client.webhooks`: what sessions' callback_url is sent is signed. `Session.deliveries` tells what became of it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create_secret(self) -> str:
        """The secret that the caller's webhooks are signed with from now on; it is in this answer and nowhere else."""
        answer = await self._transport.request("POST", _wire.path("webhooks", "secret"), json={})
        return str(decoded(answer)["secret"])
