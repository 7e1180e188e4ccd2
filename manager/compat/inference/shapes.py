"""Tasks and sessions as clients of inference.sh read them."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final

from domain.session import FINAL, Status


class TaskStatus(IntEnum):
    RECEIVED = 1
    QUEUED = 2
    DISPATCHED = 3
    PREPARING = 4
    SETTING_UP = 6
    RUNNING = 7
    CANCELLING = 8
    COMPLETED = 10
    FAILED = 11
    CANCELLED = 12


TERMINAL: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})
_OF_CALL: Final = {
    "running": TaskStatus.RUNNING,
    "completed": TaskStatus.COMPLETED,
    "failed": TaskStatus.FAILED,
    "cancelled": TaskStatus.CANCELLED,
}
_OF_SESSION: Final = {
    Status.PENDING: TaskStatus.QUEUED,
    Status.SCHEDULED: TaskStatus.DISPATCHED,
    Status.PREPARING: TaskStatus.PREPARING,
}
_LOG_TYPE_RUN: Final = 1


def status_of(call: Any, session: Any | None) -> TaskStatus:
    """Of a call that waits, the session says for what."""
    if (known := _OF_CALL.get(call.status)) is not None:
        return TaskStatus.CANCELLING if known is TaskStatus.RUNNING and call.cancelling else known
    if call.cancelling:
        return TaskStatus.CANCELLING
    if session is None:
        return TaskStatus.QUEUED
    waiting = _OF_SESSION.get(Status(session.status))
    if waiting is not None:
        return waiting
    return TaskStatus.SETTING_UP if session.ready_at is None else TaskStatus.QUEUED


def task(call: Any, status: TaskStatus, *, output: Any, input: Any, logs: str, now: datetime) -> dict[str, Any]:
    """`output` and `input` with addresses for files. While it goes on, each telling is newer than the one before."""
    updated_at = _iso(call.finished_at or now)
    return {
        "id": str(call.id),
        "short_id": str(call.id)[-8:],
        "status": int(status),
        "function": call.function,
        "input": input,
        "output": output,
        "error": error_text(call),
        "logs": _logs(call, logs, updated_at),
        "progress": call.progress,
        "created_at": _iso(call.created_at),
        "updated_at": updated_at,
        "session_id": str(call.session_id),
    }


def error_text(call: Any) -> str | None:
    """One line, and how it came to it."""
    if call.status not in ("failed", "cancelled"):
        return None
    error = call.error
    if not error:
        return "The task was cancelled." if call.status == "cancelled" else f"The call ended: {call.reason}."
    text = f"{error.get('ename') or 'Error'}: {error.get('evalue') or ''}".rstrip(": ")
    trace = error.get("traceback") or ()
    lines = [trace] if isinstance(trace, str) else [str(line) for line in trace]
    return "\n".join([text, *lines]) if lines else text


def _logs(call: Any, text: str, at: str | None) -> list[dict[str, Any]]:
    if not text:
        return []
    made = {"id": f"{call.id}-logs", "task_id": str(call.id), "created_at": at, "updated_at": at}
    return [{**made, "log_type": _LOG_TYPE_RUN, "content": text}]


def session(data: Any, now: datetime) -> dict[str, Any]:
    """`expires_at` is there also while a call runs: when it would expire, were the call over now."""
    app, idle = data.app, data.idle_timeout
    ended = Status(data.status) in FINAL or data.end_reason is not None
    expires_at = data.ended_at if ended else data.expires_at or now + timedelta(seconds=idle or 0.0)
    return {
        "id": str(data.id),
        "short_id": str(data.id)[-8:],
        "name": data.name,
        "worker_id": str(data.kernels[0].id) if data.kernels else str(data.id),
        "app_id": str(app.id),
        "app_version_id": f"{app.id}@{app.version}",
        "app": f"{app.name}@{app.version}",
        "status": "active" if not ended else "expired" if data.end_reason == "expired" else "ended",
        "end_reason": data.end_reason,
        "expires_at": _iso(expires_at),
        "ended_at": _iso(data.ended_at),
        "call_count": data.call_count,
        "last_call_at": _iso(data.last_call_at),
        "idle_timeout": None if idle is None else round(idle),
        "created_at": _iso(data.created_at),
        "updated_at": _iso(data.status_changed_at),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="microseconds").replace("+00:00", "Z")
