"""What happens to sessions and background tasks, as server-sent events in the client's words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from actions import GetSessionInfoAction, GetTaskAction, ReadEventsAction
from actions.views import KernelData, SessionData
from domain.errors import InvalidRequest, SessionNotFound
from domain.session import FINAL, SessionTypes, Status
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route
from manager.rest.streams import event_pages, send_sse, sse, task_states
from repositories.event import StampedEvent

_SCOPES: Final = ("*", "session", "kernel")
#: By the status that a session has got; those that begin with kernel_ are told for each of its kernels.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    Status.SCHEDULED: ("session_scheduled",),
    Status.PREPARING: ("kernel_preparing", "kernel_creating"),
    Status.PULLING: ("kernel_pulling",),
    Status.RUNNING: ("kernel_started", "session_started"),
    Status.TERMINATING: ("session_terminating", "kernel_terminating"),
    Status.TERMINATED: ("kernel_terminated", "session_terminated"),
    Status.ERROR: ("kernel_terminated", "session_terminated"),
    Status.CANCELLED: ("kernel_cancelled", "session_terminated"),
}
#: The client comes again by itself after any other end.
_CLOSE: Final = sse("server_close", {})


async def session_events(ask: Ask) -> web.StreamResponse:
    """What has happened to a live session in its present attempt, and what happens from now on, to its end."""
    scope = ask.query_value("scope") or "*"
    if scope not in _SCOPES:
        raise InvalidRequest(f"'scope' is one of {', '.join(_SCOPES)}.", field="scope")
    name = ask.query_value("sessionId") or ask.query_value("sessionName") or ask.query_value("name") or "*"
    values: dict[str, Any] = {"after": None, "epoch": None, **ask.owner}
    session = None
    if name != "*":
        session = (await ask.run(GetSessionInfoAction(session_name=name, **ask.owner))).session_info
        values.update(session=str(session.id), after=0)
    first = await ask.run(ReadEventsAction(**values))
    return await send_sse(ask, _lines(ask, values, first, session, scope))


async def _lines(
    ask: Ask, values: dict[str, Any], first: Any, session: SessionData | None, scope: str
) -> AsyncGenerator[bytes]:
    yield b":\n\n"  # so that the client knows at once that it is connected
    attempt = 0 if session is None else session.attempt
    async with aclosing(event_pages(ask, values, first, follow=True)) as pages:
        async for items in pages:
            for event in items:
                if event.data.get("status") is None or event.data.get("attempt", attempt) < attempt:
                    continue
                about = await _about(ask, event, session)
                yield b"".join(_told(event, about, scope))
                if session is not None and event.data["status"] in FINAL and not await _goes_on(ask, session):
                    yield _CLOSE
                    return


async def _about(ask: Ask, event: StampedEvent, session: SessionData | None) -> SessionData | None:
    """The session with its kernels as they are now; it may have got them since the stream began."""
    if event.session_id is None:
        return session
    try:
        found = await ask.run(GetSessionInfoAction(session_name=str(event.session_id), **ask.owner))
    except SessionNotFound:  # it has been purged since
        return session
    return found.session_info


async def _goes_on(ask: Ask, session: SessionData) -> bool:
    """A batch session that is tried again, or one that was restarted meanwhile, has not come to its end."""
    try:
        now = (await ask.run(GetSessionInfoAction(session_name=str(session.id), **ask.owner))).session_info
    except SessionNotFound:
        return False
    return now.status not in FINAL


def _told(event: StampedEvent, session: SessionData | None, scope: str) -> Iterator[bytes]:
    status = Status(event.data["status"])
    names = _NAMES.get(status, ())
    if status is Status.RUNNING and event.data.get("from") == Status.RUNNING_DEGRADED:
        return
    if status in FINAL and session is not None and session.session_type is SessionTypes.BATCH:
        names = (_outcome(event, session), *names)
    for name in names:
        if name.startswith("kernel_"):
            if scope != "session":
                yield from (sse(name, _data(event, session, kernel)) for kernel in _kernels(session))
        elif scope != "kernel":
            yield sse(name, _data(event, session, None))


def _outcome(event: StampedEvent, session: SessionData) -> str:
    return "session_success" if session.result == "SUCCESS" else "session_failure"


def _kernels(session: SessionData | None) -> Sequence[KernelData | None]:
    return session.kernels if session is not None and session.kernels else (None,)


def _data(event: StampedEvent, session: SessionData | None, kernel: KernelData | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "reason": event.data.get("reason") or "",
        "sessionName": event.data.get("name") or event.name,
        "ownerAccessKey": None if session is None else session.access_key,
        "sessionId": None if event.session_id is None else str(event.session_id),
        "exitCode": event.data.get("exit_code"),
    }
    if kernel is not None:
        told |= {"kernelId": str(kernel.id), "clusterRole": kernel.role, "clusterIdx": kernel.index}
    elif session is not None and session.kernels:
        told["kernelId"] = str(session.kernels[0].id)
    return told


# -- background tasks ----------------------------------------------------------------------------------------------------
async def task_events(ask: Ask) -> web.StreamResponse:
    given = ask.query_value("task_id") or ask.query_value("taskId") or ""
    try:
        asked = GetTaskAction(task_id=UUID(given))
    except ValueError:
        raise InvalidRequest("Which task is meant is missing: ?task_id=UUID.", field="task_id") from None
    first = (await ask.run(asked)).task
    return await send_sse(ask, _task_lines(ask, asked, first))


async def _task_lines(ask: Ask, asked: GetTaskAction, first: Any) -> AsyncGenerator[bytes]:
    async with aclosing(task_states(ask, asked, first)) as states:
        async for task in states:
            yield sse(_TASKS.get(task.status, "bgtask_updated"), _task_data(task))
    yield _CLOSE


_TASKS: Final = {"done": "bgtask_done", "failed": "bgtask_failed", "cancelled": "bgtask_cancelled"}


def _task_data(task: Any) -> dict[str, Any]:
    progress = task.progress or {}
    message = (task.error or {}).get("message") or progress.get("message") or task.status
    return {
        "task_id": str(task.id),
        "message": message,
        "current_progress": progress.get("current", 0),
        "total_progress": progress.get("total", 0),
    }


ROUTES: Final = (
    Route("GET", "/events/session", session_events),
    Route("GET", "/events/background-task", task_events),
)
