"""Answers, or parts of them, whose fields the server's OpenAPI document does not name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from moorage._models_base import Convert, Model, when


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Model):
    """Something worth knowing about a session, such as a bootstrap script that failed."""

    kind: str
    message: str
    log_tail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry(Model):
    """One change of a session's status."""

    status: str
    source: str | None = None
    event: str | None = None
    reason: str | None = None
    by: str | None = None  #: an access key, agent:ID, scheduler, deadline, ...
    timestamp: datetime
    attempt: int = 1
    version: int = 0
    duration_seconds: float | None = None

    _convert: ClassVar[Mapping[str, Convert]] = {"timestamp": when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Model):
    """How far a background task is; `total` is unknown for some."""

    current: float | None = None
    total: float | None = None
    message: str | None = None


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
    kernels: int | None = None  #: containers of sessions that are there, or may be
    last_seen_at: datetime | None = None
    resource_group: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    cordoned_at: datetime | None = None
    cordon_reason: str | None = None
    draining: bool | None = None
    drain_moves: bool | None = None
    drain_until: datetime | None = None
    drained_at: datetime | None = None
    revoked_at: datetime | None = None  #: since then none of its certificates counts

    _convert: ClassVar[Mapping[str, Convert]] = dict.fromkeys(
        ("last_seen_at", "cordoned_at", "drain_until", "drained_at", "revoked_at"), when
    )
