"""What administrators look after: images, agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from moorage import _wire
from moorage._models import Agent, Image, TaskInfo
from moorage.aio._transport import Transport, decoded
from moorage.aio.tasks import Task

ImageList = list[Image]
AgentList = list[Agent]


class Images:
    """`client.images`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, all: bool = False, limit: int | None = None) -> AsyncGenerator[Image]:
        """Images that sessions may be made from; `all` with those that are switched off. Fetched as they are looked at."""
        return self._transport.items(Image.from_json, _wire.path("images"), limit=limit, all=all or None)

    async def list(self, *, all: bool = False, limit: int | None = None) -> ImageList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(all=all, limit=limit)]

    async def register(
        self,
        name: str,
        *,
        architecture: str | None = None,
        aliases: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> Image:
        """Let sessions be made from the image `name`."""
        fields = _wire.body(
            name=name, architecture=architecture, aliases=[*aliases] or None, labels=labels and dict(labels)
        )
        return Image.from_json(decoded(await self._transport.request("POST", _wire.path("images"), json=fields)))

    async def alias(self, name: str, alias: str) -> Image:
        """Give the image a further, shorter name."""
        address = _wire.path("images", name, "alias")
        return Image.from_json(decoded(await self._transport.request("POST", address, json={"alias": alias})))

    async def remove(self, name: str) -> None:
        """Let no more sessions be made from it. A snapshot goes from its host too; of others, hosts keep their copies."""
        await self._transport.request("DELETE", _wire.path("images", name))

    async def share(self, name: str, visibility: str, *, project: str | None = None) -> Image:
        """Let one's own image be seen by oneself ("user"), by a project, or by everybody ("public", administrators)."""
        address, fields = _wire.path("images", name), _wire.body(visibility=visibility, project=project)
        return Image.from_json(decoded(await self._transport.request("PATCH", address, json=fields)))

    async def rescan(self, *, registry: str | None = None, register: bool = False) -> Task:
        """Compare the list with what hosts, or a registry, have; with `register`, add what is new."""
        fields = _wire.body(registry=registry, register=register or None)
        answer = await self._transport.request("POST", _wire.path("images", "rescan"), json=fields)
        return Task(self._transport, TaskInfo.from_json(decoded(answer)))

    async def collect(self, *, older_than_days: float = 30, dry_run: bool = False) -> Task:
        """Remove snapshots that nobody used for so long, and what hosts have of images that are not listed any more."""
        fields = {"older_than_days": older_than_days, "dry_run": dry_run}
        answer = await self._transport.request("POST", _wire.path("images", "collect"), json=fields)
        return Task(self._transport, TaskInfo.from_json(decoded(answer)))

    async def pull(self, name: str, *, agent: str | None = None) -> Task:
        """Fetch the image to the hosts, or to one; a task with progress."""
        address = _wire.path("images", "pull")
        answer = await self._transport.request("POST", address, json=_wire.body(name=name, agent=agent))
        return Task(self._transport, TaskInfo.from_json(decoded(answer)))


class Agents:
    """`client.agents`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[Agent]:
        """The hosts that run sessions. Fetched as they are looked at."""
        return self._transport.items(Agent.from_json, _wire.path("agents"), limit=limit)

    async def list(self, *, limit: int | None = None) -> AgentList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, agent: str) -> Agent:
        """One host."""
        return Agent.from_json(await self._transport.get(_wire.path("agents", agent)))

    async def cordon(self, agent: str, *, reason: str | None = None) -> Agent:
        """Place no new sessions there; those that run go on."""
        return await self._told(agent, "cordon", reason=reason)

    async def drain(
        self, agent: str, *, move_batch: bool = False, force_after: float | None = None, reason: str | None = None
    ) -> Agent:
        """Cordon it and tell who is there. `move_batch`: batch sessions begin again elsewhere; `force_after`: the rest is
        ended so many seconds later. Its `kernels` are those that are left."""
        return await self._told(agent, "drain", move_batch=move_batch or None, force_after=force_after, reason=reason)

    async def uncordon(self, agent: str) -> Agent:
        """Place sessions there again; a drain is called off."""
        return await self._told(agent, "uncordon")

    async def modify(
        self,
        agent: str,
        *,
        schedulable: bool | None = None,
        resource_group: str | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> Agent:
        """Another resource group, while nothing is there; labels that sessions may ask for, where None takes one away."""
        fields = _wire.body(schedulable=schedulable, resource_group=resource_group, labels=labels and dict(labels))
        answer = await self._transport.request("PATCH", _wire.path("agents", agent), json=fields)
        return Agent.from_json(decoded(answer))

    async def revoke(self, agent: str, *, reason: str | None = None) -> Agent:
        """Believe a host no more: its certificates count no longer, and its connections end at once."""
        return await self._told(agent, "revoke", reason=reason)

    async def remove(self, agent: str, *, lost_for_good: bool = False) -> None:
        """Forget a host. `lost_for_good`: it will never come back with its containers, so what they hold is free."""
        params = _wire.query(lost_for_good=lost_for_good or None)
        await self._transport.request("DELETE", _wire.path("agents", agent), params=params)

    async def create_token(self, *, ttl_seconds: float = 3600) -> str:
        """A one-time token for `moorage agent join TOKEN` on a new host."""
        address = _wire.path("agents", "tokens")
        answer = await self._transport.request("POST", address, json={"ttl_seconds": ttl_seconds})
        return str(decoded(answer)["token"])

    async def _told(self, agent: str, what: str, **fields: Any) -> Agent:
        answer = await self._transport.request("POST", _wire.path("agents", agent, what), json=_wire.body(**fields))
        return Agent.from_json(decoded(answer))
