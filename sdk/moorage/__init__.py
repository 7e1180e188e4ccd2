"""Moorage: ask for GPU and CPU sessions, run code in them, move files.

with moorage.Client() as client, client.sessions.create(image="python") as session:
    print(session.run_code("1 + 1").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moorage._version import __version__

if TYPE_CHECKING:
    from moorage import aio, errors
    from moorage._models import AppInfo, CallInfo, Completions, Event, FileStat, HistoryEntry, RunInfo, SessionInfo
    from moorage.errors import CallCancelled, CallFailed, MoorageError
    from moorage.results import ErrorInfo, InputRequest, Record, RunResult
    from moorage.sync import (
        Call,
        Client,
        Commands,
        Execution,
        Executions,
        Files,
        Mapped,
        Session,
        Sessions,
        Task,
        Volume,
    )

__all__ = [
    "AppInfo",
    "Call",
    "CallCancelled",
    "CallFailed",
    "CallInfo",
    "Client",
    "Commands",
    "Completions",
    "ErrorInfo",
    "Event",
    "Execution",
    "Executions",
    "FileStat",
    "Files",
    "HistoryEntry",
    "InputRequest",
    "Mapped",
    "MoorageError",
    "Record",
    "RunInfo",
    "RunResult",
    "Session",
    "SessionInfo",
    "Sessions",
    "Task",
    "Volume",
    "__version__",
    "aio",
    "errors",
]

_HOMES = {
    "moorage.sync": (
        *(
            "Call",
            "Client",
            "Commands",
            "Execution",
            "Executions",
            "Files",
            "Mapped",
            "Session",
            "Sessions",
            "Task",
            "Volume",
        ),
    ),
    "moorage._models": (
        "AppInfo",
        "CallInfo",
        "Completions",
        "Event",
        "FileStat",
        "HistoryEntry",
        "RunInfo",
        "SessionInfo",
    ),
    "moorage.results": ("ErrorInfo", "InputRequest", "Record", "RunResult"),
    "moorage.errors": ("CallCancelled", "CallFailed", "MoorageError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import on first use: `moorage --help` needs no HTTP."""
    if name in ("aio", "errors"):
        return import_module(f"moorage.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'moorage' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
