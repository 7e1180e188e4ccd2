"""Apps and the sessions that answer calls with them: their words, limits and names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from domain.errors import AppNotFound
from domain.ids import RunId, SessionId

MOST_ARCHIVE_BYTES: Final = 64 * 1024 * 1024
#: Of a call's input as JSON.
MOST_INPUT_BYTES: Final = 4 * 1024 * 1024
#: Of a call's output as JSON, kept with the call; more is read from its run for as long as its host keeps that.
MOST_OUTPUT_BYTES: Final = 4 * 1024 * 1024
#: Of a finished call's input; a longer one is only kept until it was delivered.
KEPT_INPUT_BYTES: Final = 64 * 1024
SHORTEST_IDLE_SECONDS: Final = 1.0
LONGEST_IDLE_SECONDS: Final = 3600.0
DEFAULT_IDLE_SECONDS: Final = 60.0
#: Where the archive of an app is unpacked in its sessions.
APP_FOLDER: Final = "/home/work/app"
_RUNS: Final = uuid5(NAMESPACE_URL, "moorage:load")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")


class EndReason(StrEnum):
    ENDED = "ended"  #: as its owner or its app asked, or because its work was done
    EXPIRED = "expired"  #: its time was over: nobody called it any more, or it had lived as long as it may
    LOST = "lost"  #: it broke, and what it held in memory is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What only a worker session has."""

    app: Mapping[str, Any]  #: {id, name, version} and its definition
    ready_at: datetime | None = None  #: since when it takes calls; None: not yet
    idle_until_at: datetime | None = None  #: when it ends unless it is called
    open_calls: int = 0  #: that wait or run
    call_count: int = 0  #: that have ended, and were not cancelled
    last_call_at: datetime | None = None
    waiting_since: datetime | None = None  #: the first call was asked that its host does not have yet


@dataclass(frozen=True, slots=True, kw_only=True)
class AppDefinition:
    """One version of an app."""

    image: str
    entry: str  #: module:Class
    adapter: str = "class"
    path: str | None = None  #: of the code in the image; None: the archive is unpacked
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 1
    functions: tuple[str, ...] = ()  #: that may be called; none are named: all
    resource_slots: Mapping[str, Any] | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    idle_timeout: float = DEFAULT_IDLE_SECONDS
    setup_timeout: float = 600.0
    call_timeout: float | None = None
    description: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"functions": list(self.functions)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> AppDefinition:
        known = {name: value for name, value in stored.items() if name in cls.__slots__}
        return cls(**{**known, "functions": tuple(known.get("functions", ()))})

    def load_code(self) -> dict[str, Any]:
        """What the runner is told to load."""
        return {
            "adapter": self.adapter,
            "entry": self.entry,
            "path": self.path or APP_FOLDER,
            "options": dict(self.options),
            "concurrency": self.concurrency,
        }


def parse_app(text: str) -> tuple[str, int | None]:
    """`name`, or `name@VERSION`."""
    name, at, version = text.partition("@")
    if not at:
        return name, None
    if not _VERSION.fullmatch(version):
        raise AppNotFound(f"'{text[:80]}' names no version of an app; write NAME@2, or NAME for the newest.")
    return name, int(version)


def load_run_id(session_id: SessionId, attempt: int) -> RunId:
    """The run that loads the app: one for each attempt of a session, whoever starts it."""
    return RunId(uuid5(_RUNS, f"{session_id} {attempt}"))
