"""Apps: code that answers calls, deployed once and kept in every version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Annotated, Any, Final
from uuid import UUID

from pydantic import Field, WithJsonSchema

from actions.base import Effect, Reading, Result, Rules, ScopeAction, Work, action, any_user, anyone
from actions.lifecycle import check_slots, checked_environ
from actions.scopes import TemplateScope as AppScope
from actions.scopes import check_may_change, scope_of
from actions.views import Done
from domain.apps import (
    DEFAULT_IDLE_SECONDS,
    LONGEST_IDLE_SECONDS,
    MOST_ARCHIVE_BYTES,
    SHORTEST_IDLE_SECONDS,
    AppDefinition,
    parse_app,
)
from domain.errors import InvalidApp, InvalidName, RequestTooLarge
from domain.names import as_uuid
from domain.principal import Principal, TokenScope
from domain.resources import ResourceSlot
from repositories.apps import App
from repositories.scope import Scope

_WORD: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_ENTRY: Final = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
_CHUNK_BYTES: Final = 1024 * 1024
_MAGIC: Final = (b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06", b"BZh", b"\xfd7zXZ\x00", b"(\xb5/\xfd")

AppRef = Annotated[str, Field(min_length=1, max_length=160)]  #: its name or id, with or without `@VERSION`
FunctionName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
IdleSeconds = Annotated[float, Field(ge=SHORTEST_IDLE_SECONDS, le=LONGEST_IDLE_SECONDS)]


class Archive:
    """A tar or zip file of an app's code, on this machine; whoever made it closes it."""

    def __init__(self, file: IO[bytes], *, size: int, sha256: str) -> None:
        self._file = file
        self.size = size
        self.sha256 = sha256

    def chunks(self) -> Iterator[bytes]:
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            yield chunk

    @property
    def looks_packed(self) -> bool:
        """By its first bytes; what is in it is looked at where it is unpacked."""
        self._file.seek(0)
        head = self._file.read(512)
        return head.startswith(_MAGIC) or head[257:262] == b"ustar"

    def to_json(self) -> str:
        return self.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class AppVersion:
    version: int
    by: str  #: an access key
    at: datetime
    archive_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppData:
    """An app, in its newest version or the one that was asked for."""

    id: UUID
    name: str
    scope: AppScope
    of: str  #: the user, project or domain that has it
    version: int
    latest: int
    description: str
    image: str
    adapter: str
    entry: str  #: module:Class
    path: str | None  #: of the code in the image; none: it is unpacked from the archive
    options: Mapping[str, Any]
    concurrency: int  #: calls at once
    functions: tuple[str, ...]  #: that may be called; none are named: all
    resource_slots: Mapping[str, Any] | None
    environ: Mapping[str, str]
    idle_timeout: float
    setup_timeout: float
    call_timeout: float | None
    archive_bytes: int
    archive_sha256: str | None
    created_at: datetime
    changed_at: datetime
    versions: tuple[AppVersion, ...] = ()  #: where one app is asked for

    @classmethod
    def of_row(cls, app: App, versions: tuple[AppVersion, ...] = ()) -> AppData:
        d = app.definition
        said = {name: getattr(d, name) for name in AppDefinition.__slots__}
        own = {name: getattr(app, name) for name in _SAME}
        return cls(**said, **own, scope=AppScope(app.scope), versions=versions)


_SAME: Final = (
    "id", "name", "of", "version", "latest", "archive_bytes", "archive_sha256", "created_at", "changed_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AppResult(Result):
    app: AppData


@dataclass(frozen=True, slots=True, kw_only=True)
class Apps(Result):
    items: list[AppData]
    next_cursor: str | None = None


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class DeployAppAction(ScopeAction[Work, AppResult]):
    """Keep an app for one's own sessions, for a project or a domain; one of this name gets its next version."""

    name: Annotated[str, Field(min_length=1, max_length=130)]
    image: Annotated[str, Field(min_length=1, max_length=512)]
    entry: Annotated[str, Field(max_length=256, pattern=_ENTRY)]  #: module:Class
    adapter: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "class"
    path: Annotated[str, Field(max_length=1024, pattern=r"^/[^\x00]*$")] | None = None  #: of the code, in the image
    options: Mapping[str, Any] = field(default_factory=dict)  #: for the adapter
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 1  #: calls at once
    functions: Annotated[tuple[FunctionName, ...], Field(max_length=100)] = ()  #: that may be called; left out: all
    resource_slots: ResourceSlot | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    idle_timeout: IdleSeconds = DEFAULT_IDLE_SECONDS
    setup_timeout: Annotated[float, Field(gt=0, le=86400)] = 600.0
    call_timeout: Annotated[float, Field(gt=0, le=30 * 86400)] | None = None  #: of a call that names none
    description: Annotated[str, Field(max_length=2000)] = ""
    scope: AppScope = AppScope.USER
    project: str | None = None  #: with scope project
    #: of the code; it is unpacked into /home/work/app. In JSON there is none: it is a part of its own
    archive: Annotated[Archive | None, WithJsonSchema({"type": "null"})] = None

    def target(self) -> str | None:
        return self.name

    async def run(self, call: Work, /) -> AppResult:
        name, definition = _checked_name(self.name), await self._definition(call)
        scope = await scope_of(call, "an app", self.scope, self.project)
        archive = self.archive
        made = await call.db.apps.add_version(
            await _app(call, name, scope),
            scope,
            definition,
            archive_bytes=archive.size if archive else 0,
            archive_sha256=archive.sha256 if archive else None,
            chunks=archive.chunks() if archive else (),
        )
        return AppResult(app=AppData.of_row(made, await _versions(call, made.id)))

    async def _definition(self, call: Work) -> AppDefinition:
        if (self.archive is None) == (self.path is None):
            raise InvalidApp(
                "An app's code comes from an archive, or is at 'path' in the image; give one of them.", field="path"
            )
        if self.archive is not None and not 0 < self.archive.size <= MOST_ARCHIVE_BYTES:
            raise RequestTooLarge(f"An app's archive has at most {MOST_ARCHIVE_BYTES >> 20} MiB, and is not empty.")
        if self.archive is not None and not self.archive.looks_packed:
            raise InvalidApp("The archive is no tar, tar.gz or zip file.", field="archive")
        if self.resource_slots is not None:
            check_slots(self.resource_slots)
        checked_environ(self.environ)
        await call.db.images.resolve(self.image)
        return AppDefinition(
            image=self.image,
            entry=self.entry,
            adapter=self.adapter,
            path=self.path,
            options=dict(self.options),
            concurrency=self.concurrency,
            functions=self.functions,
            resource_slots=None if self.resource_slots is None else self.resource_slots.to_json(),
            environ=dict(self.environ),
            idle_timeout=self.idle_timeout,
            setup_timeout=self.setup_timeout,
            call_timeout=self.call_timeout,
            description=self.description,
        )


@action(Rules(allow=anyone, effect=Effect.READ))
class ListAppsAction(ScopeAction[Reading, Apps]):
    """Apps that one may use: one's own, those of one's projects and of the domain."""

    async def run(self, call: Reading, /) -> Apps:
        return Apps(items=[AppData.of_row(app) for app in await call.db.apps.all()])


@action(Rules(allow=anyone, effect=Effect.READ))
class GetAppAction(ScopeAction[Reading, AppResult]):
    """An app by name or id, in its newest version, or with `@VERSION` in another, and all its versions."""

    app: AppRef

    async def run(self, call: Reading, /) -> AppResult:
        found = await call.db.apps.get(self.app)
        return AppResult(app=AppData.of_row(found, await _versions(call, found.id)))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class DeleteAppAction(ScopeAction[Work, Done]):
    """Forget an app with all its versions, or with `@VERSION` that one; not while live sessions are made of it."""

    app: AppRef

    def target(self) -> str | None:
        return self.app

    async def run(self, call: Work, /) -> Done:
        found = await call.db.apps.get(self.app)
        _check_may_change(call.by, found)
        _, version = parse_app(self.app)
        await call.db.apps.remove(found, version=version)
        return Done()


async def _app(call: Work, name: str, scope: Scope) -> UUID:
    """A new one, or the one that is there, which not everybody may give a version."""
    there = await call.db.apps.of_scope(name, scope)
    if there is None:
        if await call.db.apps.create(app_id := call.new_id(), name, scope):
            return app_id
        there = await call.db.apps.of_scope(name, scope)  # somebody else was faster
    found = await call.db.apps.get(str(there))
    _check_may_change(call.by, found)
    return found.id


async def _versions(call: Reading, app_id: UUID) -> tuple[AppVersion, ...]:
    return tuple(AppVersion(**row) for row in await call.db.apps.versions(app_id))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or as_uuid(name) is not None:
        raise InvalidName(
            f"'{name[:64]}' cannot name an app: use up to 64 letters, digits, '_', '-' and '.', beginning and ending with a "
            "letter, digit or '_'; or two such words with '/' between them.",
            field="name",
        )
    return name


def _check_may_change(by: Principal, app: App) -> None:
    said = f"The app '{app.name}' belongs to the {app.scope} {app.of}: use it, or deploy your own."
    check_may_change(by, app, said)
