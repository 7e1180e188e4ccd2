"""Resource groups: hosts that are shared by one policy, who may use them, and who has how much."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from moorage import _wire
from moorage._models import ResourceGroup, ShareReport
from moorage.aio._transport import Transport, decoded

ResourceGroupList = list[ResourceGroup]


class ResourceGroups:
    """`client.resource_groups`; all but looking is for administrators."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[ResourceGroup]:
        """Those that the caller may use; for administrators all. Fetched as they are looked at."""
        return self._transport.items(ResourceGroup.from_json, _wire.path("resource-groups"), limit=limit)

    async def list(self, *, limit: int | None = None) -> ResourceGroupList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, name: str) -> ResourceGroup:
        """One of them."""
        return ResourceGroup.from_json(await self._transport.get(_wire.path("resource-groups", name)))

    async def create(self, name: str, **policy: Any) -> ResourceGroup:
        """Add one. `policy`: description, ordering (fair_share, fifo), fit (pack, spread), backfill, gpu_sharing,
        half_life_seconds, open (to everybody), active, profile (hardened, standard), egress (none, open)."""
        fields = _wire.body(name=name, **policy)
        return _group(await self._transport.request("POST", _wire.path("resource-groups"), json=fields))

    async def modify(self, name: str, **policy: Any) -> ResourceGroup:
        """Change its policy; what is left out stays."""
        fields = _wire.body(**policy)
        return _group(await self._transport.request("PATCH", _wire.path("resource-groups", name), json=fields))

    async def remove(self, name: str) -> None:
        """Forget one that has no hosts and no live sessions."""
        await self._transport.request("DELETE", _wire.path("resource-groups", name))

    async def allow(
        self, name: str, *, users: Iterable[str] = (), projects: Iterable[str] = (), domains: Iterable[str] = ()
    ) -> ResourceGroup:
        """Let them use it."""
        return await self._access(name, True, users, projects, domains)

    async def deny(
        self, name: str, *, users: Iterable[str] = (), projects: Iterable[str] = (), domains: Iterable[str] = ()
    ) -> ResourceGroup:
        """No longer; their live sessions stay."""
        return await self._access(name, False, users, projects, domains)

    async def set_weight(self, name: str, user: str, weight: float | None) -> ResourceGroup:
        """With 2 a user is entitled to twice as much as others; None is the usual 1."""
        address = _wire.path("resource-groups", name, "weights", user)
        return _group(await self._transport.request("PUT", address, json={"weight": weight}))

    async def shares(self, name: str | None = None) -> ShareReport:
        """What the caller holds and held, of one group or all; for administrators everybody."""
        return ShareReport.from_json(await self._transport.get(_wire.path("shares"), resource_group=name))

    async def _access(
        self, name: str, allowed: bool, users: Iterable[str], projects: Iterable[str], domains: Iterable[str]
    ) -> ResourceGroup:
        fields = {"allowed": allowed, "users": [*users], "projects": [*projects], "domains": [*domains]}
        address = _wire.path("resource-groups", name, "access")
        return _group(await self._transport.request("POST", address, json=fields))


def _group(answer: Any) -> ResourceGroup:
    return ResourceGroup.from_json(decoded(answer))
