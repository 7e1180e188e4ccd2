"""Sessions as images, and the registries that images come from and go to."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator

from moorage import _wire
from moorage._models import CommitStatus, Registry, TaskInfo
from moorage.aio._transport import Transport, decoded
from moorage.aio.tasks import Task


class SessionSnapshots:
    """Of one session; part of `Session`."""

    _transport: Transport
    _base: str
    _owner: dict[str, str]

    async def commit(
        self, name: str | None = None, *, visibility: str | None = None, kernel: str | None = None
    ) -> Task:
        """Make a snapshot of it, from which sessions can be created by that name; a task with progress.

        In it are the image, what has changed, and the files in /home/work; volumes are not. While the files are packed
        the session stands still. `visibility` is "user" or "project".
        """
        fields = _wire.body(name=name, visibility=visibility, kernel=kernel)
        return await self._task("commit", fields)

    async def commit_status(self) -> CommitStatus:
        """How far its last commit, or its last image, is."""
        return CommitStatus.from_json(await self._transport.get(f"{self._base}/commit", **self._owner))

    async def to_image(
        self, image: str, *, visibility: str | None = None, project: str | None = None, kernel: str | None = None
    ) -> Task:
        """Make an image of it and push it to HOST/REPOSITORY:TAG; a task with progress."""
        fields = _wire.body(image=image, visibility=visibility, project=project, kernel=kernel)
        return await self._task("image", fields)

    async def _task(self, verb: str, fields: dict[str, object]) -> Task:
        answer = await self._transport.request("POST", f"{self._base}/{verb}", params=self._owner, json=fields)
        return Task(self._transport, TaskInfo.from_json(decoded(answer)))


class Registries:
    """`client.registries`; passwords go in and never come out."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[Registry]:
        """Registries with credentials: the caller's own, and those for everybody. Fetched as they are looked at."""
        return self._transport.items(Registry.from_json, _wire.path("registries"), limit=limit)

    async def list(self, *, limit: int | None = None) -> builtins.list[Registry]:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def set(self, host: str, username: str, password: str, *, common: bool = False) -> Registry:
        """Keep credentials for a registry; `common` (administrators): for everybody's images."""
        fields = _wire.body(username=username, password=password, common=common or None)
        answer = await self._transport.request("PUT", _wire.path("registries", host), json=fields)
        return Registry.from_json(decoded(answer))

    async def remove(self, host: str, *, common: bool = False) -> None:
        """Forget them."""
        params = _wire.query(common=common or None)
        await self._transport.request("DELETE", _wire.path("registries", host), params=params)
