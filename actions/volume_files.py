"""Files of volumes, without any session: up, down, listed, managed, and whole archives of them."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation

from actions.base import Audit, Effect, Remote, Rules, ScopeAction, action, any_user, anyone
from actions.files import (
    TRANSFER_SECONDS,
    WORK_DIR,
    FileList,
    FileManaged,
    FilesResult,
    FileUploadSpec,
    Path,
    Stream,
    Unpacked,
    checked_path,
    manage_arguments,
    once,
)
from actions.volumes import Name, located
from agent.client import Download, VolumeAddress
from domain.errors import InvalidRequest, PermissionDenied, VolumeReadOnly
from domain.principal import TokenScope
from repositories.record import AuditRecord, write_audit


async def _to_write(call: Remote, name: str) -> VolumeAddress:
    volume, where = await located(call, name)
    if not any_user(call.by, None):  # a monitor changes nothing, not even its own
        raise PermissionDenied
    if volume.read_only:
        raise VolumeReadOnly(volume=volume.name)
    return where


async def _to_read(call: Remote, name: str, action_name: str) -> VolumeAddress:
    """An administrator who looks into another's volume is on record; who was given a share of it is not."""
    volume, where = await located(call, name)
    if volume.user_id != call.by.user_id and call.by.sees_others:
        record = AuditRecord(
            at=call.now,
            user_id=call.by.user_id,
            access_key=call.by.access_key,
            owner_access_key=None,
            action=action_name,
            target=f"{volume.id} of {volume.owner}",
            outcome="ok",
            request_id=call.request_id,
        )
        async with call.service.work(call) as work:
            await write_audit(work.db.connection, record)
    return where


@action(Rules(allow=any_user, effect=Effect.AGENT, deadline_seconds=TRANSFER_SECONDS, scope=TokenScope.FILES))
class UploadVolumeFilesAction(ScopeAction[Remote, FilesResult]):
    """Write files into a volume: each whole or not at all, in the order given, within its quota."""

    volume: Name
    files: list[FileUploadSpec] = field(default_factory=list)

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> FilesResult:
        if not self.files:
            raise InvalidRequest("No file was given.", field="files")
        targets = [_target(spec) for spec in self.files]
        where = await _to_write(call, self.volume)
        written = []
        for spec, target in zip(self.files, targets, strict=True):
            content = spec.content
            written.append(
                await call.agents.upload(
                    where,
                    target,
                    once(content) if isinstance(content, bytes) else content,
                    size=len(content) if isinstance(content, bytes) else spec.size,
                    mode=spec.mode,
                    overwrite=spec.overwrite,
                    sha256=spec.sha256,
                )
            )
        return FilesResult(items=written)


def _target(spec: FileUploadSpec) -> str:
    return checked_path(spec.filename if spec.path == WORK_DIR else posixpath.join(spec.path, spec.filename))


@action(Rules(allow=any_user, effect=Effect.AGENT, deadline_seconds=TRANSFER_SECONDS, scope=TokenScope.FILES))
class UnpackVolumeArchiveAction(ScopeAction[Remote, Unpacked]):
    """Unpack a tar or zip archive into a folder of a volume, whole or not at all; hostile ones are refused."""

    volume: Name
    content: Annotated[bytes | AsyncIterator[bytes], SkipValidation]
    path: Path = "."
    size: int | None = None
    overwrite: bool = True

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> Unpacked:
        path = checked_path(self.path)
        where = await _to_write(call, self.volume)
        body = once(self.content) if isinstance(self.content, bytes) else self.content
        size = len(self.content) if isinstance(self.content, bytes) else self.size
        return Unpacked(**await call.agents.unpack(where, path, body, size=size, overwrite=self.overwrite))


@action(Rules(allow=anyone, effect=Effect.AGENT, deadline_seconds=60.0, audit=Audit.OTHERS, scope=TokenScope.FILES))
class DownloadVolumeFileAction(ScopeAction[Remote, Stream]):
    """Read a regular file, or a part of it, out of a volume."""

    volume: Name
    path: Path
    offset: Annotated[int, Field(ge=0)] = 0
    length: Annotated[int, Field(ge=0)] | None = None

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> Stream:
        path = checked_path(self.path)
        where = await _to_read(call, self.volume, self.action_name)
        return _stream(await call.agents.download(where, path, offset=self.offset, length=self.length))


@action(Rules(allow=anyone, effect=Effect.AGENT, deadline_seconds=60.0, audit=Audit.OTHERS, scope=TokenScope.FILES))
class DownloadVolumeFilesAction(ScopeAction[Remote, Stream]):
    """Read files and folders of a volume as one tar stream; links stay links."""

    volume: Name
    paths: Annotated[list[Path], Field(min_length=1, max_length=1000)]

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> Stream:
        paths = [checked_path(path) for path in self.paths]
        where = await _to_read(call, self.volume, self.action_name)
        return _stream(await call.agents.archive(where, paths))


def _stream(download: Download) -> Stream:
    async def counted(_sent: int) -> None:
        return

    return Stream(download=download, counted=counted)


@action(Rules(allow=anyone, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.FILES))
class ListVolumeFilesAction(ScopeAction[Remote, FileList]):
    """List a folder of a volume, page by page, sorted by name."""

    volume: Name
    path: Path = "."
    cursor: Annotated[str, Field(max_length=8192)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> FileList:
        path = checked_path(self.path)
        where = await _to_read(call, self.volume, self.action_name)
        page = await call.agents.list_files(where, path, cursor=self.cursor, limit=self.limit)
        return FileList(items=list(page.files), next_cursor=page.next_cursor)


@action(Rules(allow=anyone, effect=Effect.AGENT, scope=TokenScope.FILES))
class ManageVolumeFilesAction(ScopeAction[Remote, FileManaged]):
    """Make, move, copy, remove, look at or change the mode of a file or folder in a volume."""

    volume: Name
    op: Literal["mkdir", "move", "copy", "remove", "stat", "chmod"]
    path: Path
    to: Path | None = None  #: of move and copy
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] | None = None  #: of chmod and mkdir, octal
    recursive: bool = False  #: of remove and copy
    parents: bool = False  #: of mkdir

    def target(self) -> str:
        return self.volume

    async def run(self, call: Remote, /) -> FileManaged:
        arguments: dict[str, Any] = manage_arguments(self)
        where = (await located(call, self.volume))[1] if self.op == "stat" else await _to_write(call, self.volume)
        return FileManaged(file=await call.agents.manage_file(where, self.op, arguments, key=call.run_id))
