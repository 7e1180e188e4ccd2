"""What the server's answers hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from moorage._models_base import Convert, Model, many, when


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Model):
    """Something worth knowing about a session, such as a bootstrap script that failed."""

    kind: str
    message: str
    log_tail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo(Model):
    """A session as it was when the server answered."""

    id: str
    name: str
    status: str
    status_reason: str | None = None
    session_type: str = "interactive"
    image: str = ""
    architecture: str | None = None
    cluster_mode: str | None = None
    cluster_size: int = 1
    domain: str | None = None
    project: str | None = None
    access_key: str | None = None
    requested_slots: dict[str, Any] = field(default_factory=dict)
    occupied_slots: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    environ: dict[str, str] = field(default_factory=dict)
    priority: int | None = None
    timeout: float | None = None
    max_wait: float | None = None
    bootstrap_script: str | None = None
    bootstrap_required: bool = False
    startup_command: str | None = None
    shm_size: int | None = None
    result: str | None = None
    exit_code: int | None = None
    agent: str | None = None
    agent_lost: bool = False
    attempt: int = 1
    version: int = 0
    created_at: datetime | None = None
    status_changed_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    last_activity_at: datetime | None = None
    execution_count: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    notices: list[Notice] = field(default_factory=list)

    _convert: ClassVar[Mapping[str, Convert]] = {
        "created_at": when,
        "status_changed_at": when,
        "started_at": when,
        "ended_at": when,
        "expires_at": when,
        "last_activity_at": when,
        "notices": many(Notice.from_json),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry(Model):
    """One change of a session's status."""

    status: str
    source: str | None = None
    event: str | None = None
    reason: str | None = None
    timestamp: datetime
    attempt: int = 1
    version: int = 0
    duration_seconds: float | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"timestamp": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo(Model):
    """An execution, without its output."""

    run_id: str
    status: str
    mode: str | None = None
    exit_code: int | None = None
    signal: int | str | None = None
    reason: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    output_bytes: int | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"started_at": when, "finished_at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat(Model):
    """A file of a session. `type` is file, directory, link or other; `mode` octal digits."""

    name: str
    type: str
    size: int = 0
    mtime: datetime | None = None
    mode: str | None = None
    owner: str | int | None = None
    group: str | int | None = None
    link_target: str | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"mtime": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions(Model):
    """What could stand at the cursor: `suggestions` replace the text between `start` and `end`."""

    suggestions: list[str] = field(default_factory=list)
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitOutcome(Model):
    """What checking one session's status against its hosts came to."""

    session_id: str
    before: str | None = None
    after: str | None = None
    events: list[str] = field(default_factory=list)
    error: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Model):
    """Something that happened: `type` such as session.running, `cause` why."""

    id: str
    type: str
    session_id: str | None = None
    name: str | None = None
    at: datetime | None = None
    cause: Any = None
    data: dict[str, Any] | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Model):
    """How far a background task is; `total` is unknown for some."""

    current: float | None = None
    total: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo(Model):
    """A background task as it was when the server answered."""

    id: str
    status: str
    action: str | None = None
    progress: Progress | None = None
    result: Any = None
    error: Any = None
    created_at: datetime | None = None
    finished_at: datetime | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {
        "progress": Progress.from_json,
        "created_at": when,
        "finished_at": when,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Model):
    """Somebody who may use this installation."""

    id: str
    email: str
    username: str | None = None
    role: str | None = None
    domain: str | None = None
    active: bool | None = None
    created_at: datetime | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"created_at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keypair(Model):
    """A user's credential. `secret_key` is there once, in the answer that made it."""

    access_key: str
    secret_key: str | None = None
    user: str | None = None
    active: bool | None = None
    created_at: datetime | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"created_at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Project(Model):
    """Users who share."""

    id: str | None = None
    name: str
    domain: str | None = None
    members: list[str] = field(default_factory=list)
    created_at: datetime | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"created_at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Model):
    """An image that sessions may be made from."""

    name: str
    architecture: str | None = None
    aliases: list[str] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"created_at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent(Model):
    """A host that runs sessions."""

    id: str
    hostname: str | None = None
    architecture: str | None = None
    version: str | None = None
    schedulable: bool | None = None
    lost: bool | None = None
    capacity: dict[str, Any] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    last_seen_at: datetime | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"last_seen_at": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoAmI(Model):
    """Who the server takes the caller for."""

    user: Any
    access_key: str | None = None
    role: str | None = None
    domain: str | None = None
    projects: list[str] = field(default_factory=list)
