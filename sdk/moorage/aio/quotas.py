"""Limits of what users, projects, domains and keypairs hold at once, and policies that set them for many."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeAlias

from moorage import _wire
from moorage._models import Policy, Quota
from moorage.aio._transport import Transport, decoded

#: 8, "32g", "8h"; None lifts; {"max": "32g", "waits": True}: sessions beyond it wait in the queue
Limit: TypeAlias = "float | str | Mapping[str, Any] | None"
QuotaList = list[Quota]
PolicyList = list[Policy]


class Quotas:
    """`client.quotas`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(
        self, *, of: str | None = None, everybody: bool = False, limit: int | None = None
    ) -> AsyncGenerator[Quota]:
        """Those that bind the caller, with what is in use; for administrators `of="user:ada@example.org"`, or all."""
        return self._transport.items(
            Quota.from_json, _wire.path("quota"), limit=limit, of=of, everybody=everybody or None
        )

    async def list(self, *, of: str | None = None, everybody: bool = False, limit: int | None = None) -> QuotaList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(of=of, everybody=everybody, limit=limit)]

    async def set(self, scope: str, of: str, limits: Mapping[str, Limit]) -> QuotaList:
        """Limit a "user", "project", "domain" or "keypair": {"cpu": 8, "mem": "32g", "sessions": 4}; None lifts."""
        answer = decoded(await self._transport.request("PUT", _wire.path("quota", scope, of), json=_limits(limits)))
        return [Quota.from_json(item) for item in answer["items"]]


class Policies:
    """`client.policies`: named sets of limits. What is set for somebody with `client.quotas.set` goes before them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[Policy]:
        """All, with their limits and who has them. Fetched as they are looked at."""
        return self._transport.items(Policy.from_json, _wire.path("policies"), limit=limit)

    async def list(self, *, limit: int | None = None) -> PolicyList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, name: str) -> Policy:
        return Policy.from_json(decoded(await self._transport.request("GET", _wire.path("policies", name))))

    async def create(
        self, name: str, limits: Mapping[str, Limit], *, description: str = "", domain: str | None = None
    ) -> Policy:
        """{"cpu": 8, "mem": {"max": "32g", "waits": True}, "lifetime": "8h"}; it binds nobody until it is assigned.

        `domain`: whose administrators keep it.
        """
        fields = {**_limits(limits), "name": name, "description": description, **_wire.body(domain=domain)}
        return Policy.from_json(decoded(await self._transport.request("POST", _wire.path("policies"), json=fields)))

    async def modify(
        self, name: str, limits: Mapping[str, Limit] | None = None, *, description: str | None = None
    ) -> Policy:
        """For everybody who has it, at once; None takes a limit out, those that are not named stay."""
        fields = {**(_limits(limits) if limits else {}), **_wire.body(description=description)}
        address = _wire.path("policies", name)
        return Policy.from_json(decoded(await self._transport.request("PATCH", address, json=fields)))

    async def remove(self, name: str) -> None:
        """One that nobody has any more."""
        await self._transport.request("DELETE", _wire.path("policies", name))

    async def assign(self, name: str, scope: str, of: str) -> Policy:
        """To a "user", "project", "domain" or "keypair", instead of the one it had."""
        address = _wire.path("policies", name, "assignments", scope, of)
        return Policy.from_json(decoded(await self._transport.request("PUT", address)))

    async def unassign(self, name: str, scope: str, of: str) -> Policy:
        address = _wire.path("policies", name, "assignments", scope, of)
        return Policy.from_json(decoded(await self._transport.request("DELETE", address)))


def _limits(limits: Mapping[str, Limit]) -> dict[str, Any]:
    return {"limits": {name: dict(most) if isinstance(most, Mapping) else most for name, most in limits.items()}}
