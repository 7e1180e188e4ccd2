"""What bounds a user and stands for one: quotas, tokens, the secret of webhooks."""

from __future__ import annotations

from collections.abc import Mapping

from moorage import _wire
from moorage._models import Quota, Token
from moorage.aio._transport import Transport, decoded

QuotaList = list[Quota]
TokenList = list[Token]


class Quotas:
    """`client.quotas`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> QuotaList:
        """Those that bind the caller, with what is used; for administrators all."""
        return [Quota.from_json(item) async for item in self._transport.pages(_wire.path("quota"))]

    async def set(self, scope: str, of: str, limits: Mapping[str, float | str | None]) -> QuotaList:
        """Limit what a "user", "project" or "domain" holds at once: {"cpu": 8, "mem": "32g", "sessions": 4}; None lifts."""
        address = _wire.path("quota", scope, of)
        answer = decoded(await self._transport.request("PUT", address, json={"limits": dict(limits)}))
        return [Quota.from_json(item) for item in answer["items"]]


class Tokens:
    """`client.tokens`: each stands for the keypair that made it, until it expires."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> TokenList:
        """The caller's own."""
        return [Token.from_json(item) async for item in self._transport.pages(_wire.path("tokens"))]

    async def create(self, name: str = "token", *, ttl_seconds: float | None = None) -> Token:
        """A new one; its `token` is in this answer and nowhere else."""
        fields = _wire.body(name=name, ttl_seconds=ttl_seconds)
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
