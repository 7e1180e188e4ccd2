"""Files of sessions: up, down, listed and managed, always inside the container as the session's user."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, SkipValidation

from actions.base import Audit, Effect, Kernel, Remote, Result, Rules, SessionAction, action, kernel_of, owner_or_admin
from agent.client import Download, FileStat
from domain.errors import InvalidPath, InvalidRequest
from domain.principal import TokenScope
from domain.session import ANSWERING, Session

WORK_DIR = "/home/work"
#: Whole transfers may take this long; each side gives up much earlier when nothing moves.
TRANSFER_SECONDS = 86400.0
Path = Annotated[str, Field(min_length=1, max_length=4096)]


def checked_path(path: str) -> str:
    """What can be said of a path from here; the runner walks it, component by component, without following links."""
    if "\0" in path:
        raise InvalidPath("A path must not contain NUL.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidPath("A path must be valid UTF-8.") from None
    if ".." in path.split("/"):
        raise InvalidPath(f"The path '{path[:200]}' contains '..'; name the file from {WORK_DIR} on.")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUploadSpec:
    """One file to write: its name, its folder, and its bytes, whole or as they come."""

    filename: str
    content: Annotated[bytes | AsyncIterator[bytes], SkipValidation]
    path: str = WORK_DIR
    size: int | None = None  #: of a stream, when it is known
    mode: int | None = None  #: permission bits
    overwrite: bool = True
    sha256: str | None = None  #: of the content, hexadecimal: what arrives otherwise is refused

    def target(self) -> str:
        return checked_path(posixpath.join(self.path, self.filename))


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesResult(Result):
    items: list[FileStat]


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=TRANSFER_SECONDS,
        scope=TokenScope.FILES,
    )
)
class UploadFilesAction(SessionAction[Remote, FilesResult]):
    """Write files into a session: each whole or not at all, in the order given, as the session's user."""

    files: list[FileUploadSpec] = field(default_factory=list)
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> FilesResult:
        if not self.files:
            raise InvalidRequest("No file was given.", field="files")
        targets = [spec.target() for spec in self.files]
        written: list[FileStat] = []
        try:
            for spec, target in zip(self.files, targets, strict=True):
                written.append(await self._upload(call, session, spec, target))
        finally:
            if written:
                await _count(call, session, bytes_in=sum(stat.size for stat in written))
        return FilesResult(items=written)

    async def _upload(self, call: Remote, session: Session, spec: FileUploadSpec, target: str) -> FileStat:
        content: bytes | AsyncIterator[bytes] = spec.content
        size = len(content) if isinstance(content, bytes) else spec.size
        return await call.agents.upload(
            kernel_of(session, self.kernel),
            target,
            once(content) if isinstance(content, bytes) else content,
            size=size,
            mode=spec.mode,
            overwrite=spec.overwrite,
            sha256=spec.sha256,
        )


async def once(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 1 << 20):
        yield content[at : at + (1 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked(Result):
    """What has come out of an archive."""

    files: int
    folders: int
    links: int
    bytes: int


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=TRANSFER_SECONDS,
        scope=TokenScope.FILES,
    )
)
class UnpackArchiveAction(SessionAction[Remote, Unpacked]):
    """Unpack a tar or zip archive into a folder of a session, whole or not at all; hostile ones are refused."""

    content: Annotated[bytes | AsyncIterator[bytes], SkipValidation]
    path: Path = "."
    size: int | None = None  #: of a stream, when it is known
    overwrite: bool = True
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> Unpacked:
        path = checked_path(self.path)
        body = once(self.content) if isinstance(self.content, bytes) else self.content
        size = len(self.content) if isinstance(self.content, bytes) else self.size
        where = kernel_of(session, self.kernel)
        found = await call.agents.unpack(where, path, body, size=size, overwrite=self.overwrite)
        await _count(call, session, bytes_in=found["bytes"])
        return Unpacked(**found)


async def _count(call: Remote, session: Session, **moved: int) -> None:
    async with call.service.work(call) as work:
        await work.db.sessions_of(session).add_transfer(session.id, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Result):
    """Bytes on their way out of a session; close it in any case. What was read is counted at the end."""

    download: Download
    counted: Callable[[int], Awaitable[None]]

    @property
    def stat(self) -> FileStat | None:
        return self.download.stat

    async def chunks(self) -> AsyncIterator[bytes]:
        sent = 0
        try:
            async for chunk in self.download:
                sent += len(chunk)
                yield chunk
        finally:
            await self.aclose()
            if sent:
                await self.counted(sent)

    async def aclose(self) -> None:
        await self.download.aclose()

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])


def counted_stream(call: Remote, session: Session, download: Download) -> Stream:
    async def counted(sent: int) -> None:
        await _count(call, session, bytes_out=sent)

    return Stream(download=download, counted=counted)


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=60.0,
        audit=Audit.OTHERS,
        scope=TokenScope.FILES,
    )
)
class DownloadFileAction(SessionAction[Remote, Stream]):
    """Read a regular file, or a part of it, out of a session."""

    path: Path
    offset: Annotated[int, Field(ge=0)] = 0
    length: Annotated[int, Field(ge=0)] | None = None
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> Stream:
        download = await call.agents.download(
            kernel_of(session, self.kernel), checked_path(self.path), offset=self.offset, length=self.length
        )
        return counted_stream(call, session, download)


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=60.0,
        audit=Audit.OTHERS,
        scope=TokenScope.FILES,
    )
)
class DownloadFilesAction(SessionAction[Remote, Stream]):
    """Read files and folders as one tar stream; links stay links."""

    paths: Annotated[list[Path], Field(min_length=1, max_length=1000)]
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> Stream:
        paths = [checked_path(path) for path in self.paths]
        return counted_stream(call, session, await call.agents.archive(kernel_of(session, self.kernel), paths))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileList(Result):
    items: list[FileStat]
    next_cursor: str | None


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.FILES))
class ListFilesAction(SessionAction[Remote, FileList]):
    """List a folder of a session, page by page, sorted by name."""

    path: Path = "."
    cursor: Annotated[str, Field(max_length=8192)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> FileList:
        page = await call.agents.list_files(
            kernel_of(session, self.kernel), checked_path(self.path), cursor=self.cursor, limit=self.limit
        )
        return FileList(items=list(page.files), next_cursor=page.next_cursor)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileManaged(Result):
    file: FileStat | None  #: as it is now; None after its removal


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.FILES))
class ManageFilesAction(SessionAction[Remote, FileManaged]):
    """Make, move, copy, remove, look at or change the mode of a file or folder in a session."""

    op: Literal["mkdir", "move", "copy", "remove", "stat", "chmod"]
    path: Path
    to: Path | None = None  #: of move and copy
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] | None = None  #: of chmod and mkdir, octal
    recursive: bool = False  #: of remove and copy
    parents: bool = False  #: of mkdir
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> FileManaged:
        arguments, where = manage_arguments(self), kernel_of(session, self.kernel)
        return FileManaged(file=await call.agents.manage_file(where, self.op, arguments, key=call.run_id))


class Managing(Protocol):
    """What is asked of the files of a session or a volume."""

    @property
    def op(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def to(self) -> str | None: ...
    @property
    def mode(self) -> str | None: ...
    @property
    def recursive(self) -> bool: ...
    @property
    def parents(self) -> bool: ...


def manage_arguments(asked: Managing) -> dict[str, Any]:
    """As the runner takes them. Raises InvalidRequest for what does not belong together."""
    arguments: dict[str, Any] = {"path": checked_path(asked.path)}
    if (asked.to is None) is (asked.op in ("move", "copy")):
        raise InvalidRequest("'to' belongs to move and copy, and to nothing else.", field="to")
    if asked.to is not None:
        arguments["to"] = checked_path(asked.to)
    if asked.op == "chmod" and asked.mode is None:
        raise InvalidRequest("chmod needs a mode, such as '0644'.", field="mode")
    if asked.mode is not None:
        arguments["mode"] = int(asked.mode, 8)
    if asked.op in ("remove", "copy"):
        arguments["recursive"] = asked.recursive
    if asked.op == "mkdir":
        arguments["parents"] = asked.parents
    return arguments
