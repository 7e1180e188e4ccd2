"""Volumes: folders that outlive sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Self

from moorage import _wire
from moorage._models import TaskInfo, VolumeInfo
from moorage.aio._transport import Transport, decoded
from moorage.aio.files import Files
from moorage.aio.tasks import Task


class Volume:
    """One volume; `info` is what the server said last, `files` is what is in it."""

    def __init__(self, transport: Transport, info: VolumeInfo) -> None:
        self._transport = transport
        self._path = _wire.path("volumes", info.id)
        self.info = info
        self.files = Files(transport, self._path, {})

    def __repr__(self) -> str:
        return f"<Volume {self.name} {self.id}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    async def refresh(self) -> Self:
        """Ask the server, also for how much of its quota is used."""
        return self._is(await self._transport.get(self._path))

    async def modify(
        self, *, name: str | None = None, quota: int | str | None = None, quota_files: int | None = None
    ) -> Self:
        """Another name or quota: bytes or words such as '10g'; -1 lifts it."""
        fields = _wire.body(name=name, quota_bytes=quota, quota_files=quota_files)
        return self._is(decoded(await self._transport.request("PATCH", self._path, json=fields)))

    async def rename(self, name: str) -> Self:
        """Another name; sessions that have it mounted keep it where it is."""
        return await self.modify(name=name)

    async def share(self, *, users: Sequence[str] = (), projects: Sequence[str] = (), read_only: bool = True) -> Self:
        """Let users (by e-mail address) and everybody in projects use it."""
        fields = {"users": list(users), "projects": list(projects), "read_only": read_only}
        return self._is(decoded(await self._transport.request("POST", f"{self._path}/share", json=fields)))

    async def unshare(self, *, users: Sequence[str] = (), projects: Sequence[str] = ()) -> Self:
        """Take it back; running sessions keep it until they end."""
        fields = {"users": list(users), "projects": list(projects)}
        return self._is(decoded(await self._transport.request("POST", f"{self._path}/unshare", json=fields)))

    async def leave(self) -> None:
        """Give up what another user has shared."""
        await self._transport.request("POST", f"{self._path}/leave")

    async def clone(self, name: str) -> Task:
        """Copy it, in the background, into a new volume of one's own."""
        answer = await self._transport.request("POST", f"{self._path}/clone", json={"name": name})
        return Task(self._transport, TaskInfo.from_json(decoded(answer)))

    async def delete(self) -> Task:
        """Remove it with everything in it; refused while a session has it mounted."""
        answer = await self._transport.request("DELETE", self._path)
        return Task(self._transport, TaskInfo.from_json(decoded(answer)))

    def _is(self, said: object) -> Self:
        self.info = VolumeInfo.from_json(said)
        return self


class Volumes:
    """`client.volumes`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(
        self, name: str, *, quota: int | str | None = None, quota_files: int | None = None, store: str | None = None
    ) -> Volume:
        """An empty volume. `quota`: bytes, or words such as '10g'."""
        fields = _wire.body(name=name, quota_bytes=quota, quota_files=quota_files, store=store)
        answer = await self._transport.request("POST", _wire.path("volumes"), json=fields)
        return Volume(self._transport, VolumeInfo.from_json(decoded(answer)))

    async def get(self, name: str) -> Volume:
        """By name or id."""
        return Volume(self._transport, VolumeInfo.from_json(await self._transport.get(_wire.path("volumes", name))))

    def iterate(self, *, all: bool = False, limit: int | None = None) -> AsyncGenerator[Volume]:
        """One's own and those that are shared with one; `all`: everybody's, for administrators. Fetched as they are looked at."""
        make = partial(_volume, self._transport)
        return self._transport.items(make, _wire.path("volumes"), limit=limit, all=all or None)

    async def list(self, *, all: bool = False, limit: int | None = None) -> VolumeList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(all=all, limit=limit)]


VolumeList = list[Volume]


def _volume(transport: Transport, said: object) -> Volume:
    return Volume(transport, VolumeInfo.from_json(said))
