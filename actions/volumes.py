"""Volumes: folders that outlive sessions; made, shared, cloned and removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from actions.base import Effect, Reading, Remote, Result, Rules, ScopeAction, Work, action, any_user, anyone
from actions.cursor import decode_cursor, encode_cursor
from actions.information import TaskData, TaskResult
from agent.client import VolumeAddress
from domain.errors import InvalidRequest, NoVolumeStore, SharedWithNobody, VolumeNotReady
from domain.ids import AgentId
from domain.principal import TokenScope
from domain.resources import parse_memory_mib
from domain.volumes import EVERYBODY, Share, Volume, check_volume_name
from repositories.volumes import chosen_store, hosts_with

Name = Annotated[str, Field(min_length=1, max_length=128)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=320)], ...], Field(max_length=200)]
Size = int | str | None
Files = Annotated[int, Field(ge=0, lt=2**40)] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeData:
    """A volume as the one who asks may use it. Sizes are in bytes."""

    id: UUID
    name: str
    status: str  #: ready, or making
    owner: str
    owned: bool
    read_only: bool
    quota_bytes: int | None
    quota_files: int | None
    sessions: int  #: that have it mounted and have not ended
    created_at: datetime
    shares: tuple[Share, ...] = ()
    used_bytes: int | None = None  #: None: not looked at, or no host could
    used_files: int | None = None

    @classmethod
    def of(cls, volume: Volume, **more: Any) -> VolumeData:
        names = [name for name in cls.__slots__ if name not in ("used_bytes", "used_files")]
        return cls(**{name: getattr(volume, name) for name in names}, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeResult(Result):
    volume: VolumeData


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePage(Result):
    items: list[VolumeData]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLeft(Result):
    pass


def _size(size: Size) -> int | None:
    """Bytes: of a number, or of words such as '10g'."""
    if size is None:
        return None
    if isinstance(size, int):
        if not 0 <= size < 2**60:
            raise InvalidRequest("A size in bytes is a number from 0 on.", field="quota_bytes")
        return size
    return parse_memory_mib(size) << 20


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.FILES))
class CreateVolumeAction(ScopeAction[Work, VolumeResult]):
    """Make an empty volume, on the store that most hosts have unless another is named."""

    name: Name
    quota_bytes: Size = None  #: bytes, or words such as '10g'
    quota_files: Files = None
    store: Annotated[str, Field(max_length=64)] | None = None

    def target(self) -> str:
        return self.name

    async def run(self, call: Work, /) -> VolumeResult:
        name = check_volume_name(self.name)
        store = await chosen_store(call.db.connection, self.store)
        volume = await call.db.volumes.create(
            call.new_id(),
            name,
            store=store,
            quota_bytes=_size(self.quota_bytes),
            quota_files=self.quota_files,
            uid=call.owner.uid or EVERYBODY,
            gid=call.owner.gid or EVERYBODY,
        )
        return VolumeResult(volume=VolumeData.of(volume))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListVolumesAction(ScopeAction[Reading, VolumePage]):
    """Volumes of one's own and those that are shared with one; for administrators with `all` everybody's."""

    all: bool = False
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, /) -> VolumePage:
        found = await call.db.volumes.all(everybodys=self.all, limit=self.limit, after=decode_cursor(self.cursor))
        last = found[-1] if len(found) == self.limit else None
        return VolumePage(
            items=[VolumeData.of(volume) for volume in found],
            next_cursor=encode_cursor(last.created_at, last.id) if last else None,
        )


async def located(call: Remote, name: str) -> tuple[Volume, VolumeAddress]:
    """A volume that the asker may use, and a host that has its store and is connected."""
    async with call.service.reading(call) as reading:
        volume = await reading.db.volumes.get(name)
        hosts = await hosts_with(reading.db.connection, volume.store)
    if volume.status != "ready":
        raise VolumeNotReady(volume=volume.name)
    return volume, VolumeAddress(
        agent_id=_connected(call, hosts),
        volume_id=volume.id,
        store=volume.store,
        uid=volume.uid,
        gid=volume.gid,
        quota_bytes=volume.quota_bytes,
        quota_files=volume.quota_files,
    )


def _connected(call: Remote, hosts: Sequence[AgentId]) -> AgentId:
    for host in hosts:
        if call.agents.is_connected(host):
            return host
    raise NoVolumeStore


@action(Rules(allow=anyone, effect=Effect.AGENT, scope=TokenScope.FILES))
class GetVolumeAction(ScopeAction[Remote, VolumeResult]):
    """Everything about a volume: with whom it is shared, and how much of its quota is used."""

    volume: Name

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> VolumeResult:
        try:
            volume, where = await located(call, self.volume)
            used = await call.agents.volume_usage(where)
        except (NoVolumeStore, VolumeNotReady):
            async with call.service.reading(call) as reading:
                return VolumeResult(volume=VolumeData.of(await reading.db.volumes.get(self.volume)))
        return VolumeResult(volume=VolumeData.of(volume, used_bytes=used["bytes"], used_files=used["files"]))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.FILES))
class ModifyVolumeAction(ScopeAction[Work, VolumeResult]):
    """Rename a volume, or change its quota; -1 lifts one. Sessions that have it mounted keep it where it is."""

    volume: Name
    name: Name | None = None
    quota_bytes: Size = None
    quota_files: Annotated[int, Field(ge=-1, lt=2**40)] | None = None

    def target(self) -> str:
        return self.volume

    async def run(self, call: Work, /) -> VolumeResult:
        changes: dict[str, Any] = {}
        if self.name is not None:
            changes["name"] = check_volume_name(self.name)
        if self.quota_bytes is not None:
            changes["quota_bytes"] = None if self.quota_bytes in (-1, "-1") else _size(self.quota_bytes)
        if self.quota_files is not None:
            changes["quota_files"] = None if self.quota_files == -1 else self.quota_files
        if not changes:
            raise InvalidRequest("Nothing to change was given; name one of name, quota_bytes, quota_files.")
        volume = await call.db.volumes.owned(self.volume)
        return VolumeResult(volume=VolumeData.of(await call.db.volumes.change(volume, changes)))


async def _people(call: Work, users: Sequence[str], projects: Sequence[str]) -> tuple[list[UUID], list[UUID]]:
    member = None if call.by.is_admin else call.owner.user_id
    return (
        [(await call.db.identity.user(user))["id"] for user in dict.fromkeys(users)],
        [
            await call.db.identity.project_id(project, domain=call.owner.domain, member=member)
            for project in dict.fromkeys(projects)
        ],
    )


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.FILES))
class ShareVolumeAction(ScopeAction[Work, VolumeResult]):
    """Let users, or everybody in projects of one's own, use a volume: for reading, or for writing as well."""

    volume: Name
    users: Names = ()  #: e-mail addresses
    projects: Names = ()
    read_only: bool = True

    def target(self) -> str:
        return self.volume

    async def run(self, call: Work, /) -> VolumeResult:
        volume = await call.db.volumes.owned(self.volume)
        users, projects = await _people(call, self.users, self.projects)
        users = [user for user in users if user != volume.user_id]
        if not users and not projects:
            raise SharedWithNobody(volume=volume.name)
        ids = [call.new_id() for _ in (*users, *projects)]
        shared = await call.db.volumes.share(volume, ids, users=users, projects=projects, read_only=self.read_only)
        return VolumeResult(volume=VolumeData.of(shared))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.FILES))
class UnshareVolumeAction(ScopeAction[Work, VolumeResult]):
    """Take a volume back from users or projects. Sessions of theirs that run keep it until they end or restart."""

    volume: Name
    users: Names = ()
    projects: Names = ()

    def target(self) -> str:
        return self.volume

    async def run(self, call: Work, /) -> VolumeResult:
        volume = await call.db.volumes.owned(self.volume)
        users, projects = await _people(call, self.users, self.projects)
        if not users and not projects:
            raise SharedWithNobody("Nobody was named to take the volume back from; name users or projects.")
        return VolumeResult(volume=VolumeData.of(await call.db.volumes.unshare(volume, users=users, projects=projects)))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.FILES))
class LeaveVolumeAction(ScopeAction[Work, VolumeLeft]):
    """Give up a volume that another user has shared with one."""

    volume: Name

    def target(self) -> str:
        return self.volume

    async def run(self, call: Work, /) -> VolumeLeft:
        await call.db.volumes.leave(await call.db.volumes.get(self.volume))
        return VolumeLeft()


@action(Rules(allow=any_user, effect=Effect.DATABASE, background=True, scope=TokenScope.FILES))
class CloneVolumeAction(ScopeAction[Work, TaskResult]):
    """Copy a volume that one may read into a new one of one's own, in the background; the task tells the progress."""

    volume: Name
    name: Name  #: of the copy

    def target(self) -> str:
        return self.volume

    async def run(self, call: Work, /) -> TaskResult:
        source = await call.db.volumes.get(self.volume)
        if source.status != "ready":
            raise VolumeNotReady(volume=source.name)
        task_id = call.new_id()
        made = await call.db.volumes.create(
            call.new_id(),
            check_volume_name(self.name),
            store=source.store,
            quota_bytes=source.quota_bytes,
            quota_files=source.quota_files,
            uid=call.owner.uid or EVERYBODY,
            gid=call.owner.gid or EVERYBODY,
            task_id=task_id,
        )
        arguments = {"source": str(source.id), "volume": str(made.id), "name": made.name}
        return await _task(call, task_id, "clone_volume", arguments)


@action(Rules(allow=any_user, effect=Effect.DATABASE, background=True, scope=TokenScope.FILES))
class DeleteVolumeAction(ScopeAction[Work, TaskResult]):
    """Remove a volume with everything in it, unless a session has it mounted. It is gone at once, its files soon."""

    volume: Name

    def target(self) -> str:
        return self.volume

    async def run(self, call: Work, /) -> TaskResult:
        volume = await call.db.volumes.owned(self.volume)
        task_id = call.new_id()
        await call.db.volumes.doom(volume, task_id)
        return await _task(call, task_id, "delete_volume", {"volume": str(volume.id), "name": volume.name})


async def _task(call: Work, task_id: UUID, name: str, arguments: dict[str, str]) -> TaskResult:
    task = await call.db.tasks.add(task_id, action=name, arguments=arguments, user_id=call.by.user_id, session_id=None)
    call.announce("tasks")
    return TaskResult(task=TaskData.of(task))
