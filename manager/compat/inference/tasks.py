"""Tasks: a call of an app, in a session or without one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from aiohttp import web

from actions import (
    CancelCallAction,
    CreateFromParamsAction,
    DeleteCallAction,
    DestroySessionAction,
    GetCallAction,
    GetSessionInfoAction,
    StartCallAction,
)
from domain.errors import CallNotFound, Conflict, InvalidRequest, MoorageError, SessionNotFound
from domain.names import as_uuid
from domain.session import FINAL, Status
from domain.volumes import Mount
from manager.compat.inference import files, sessions, shapes
from manager.compat.inference.ask import Ask
from manager.compat.inference.following import follow
from manager.compat.inference.logs import logs_of
from manager.compat.inference.names import AppReference, parse_reference
from manager.rest.streams import permitted

#: A new session's idle time, in seconds.
DEFAULT_TIMEOUT: Final = 60
LONGEST_TIMEOUT: Final = 3600
#: Of a session that is made for one call: time to take out what it has written.
_ONCE_SECONDS: Final = 15
#: A client that waits in its request gives up after 30 s.
_HELD_SECONDS: Final = 20.0
#: What a warm session answers at once need not be asked for again.
_SHORT_SECONDS: Final = 0.05
#: How long a call with files waits for its session to run.
_BRING_SECONDS: Final = 20.0
#: Read and let be: where it runs, and what it costs, is decided here.
_IGNORED: Final = frozenset({"infra", "workers", "stream", "metadata"})
_KNOWN: Final = frozenset({"app", "input", "function", "session", "session_timeout", "setup", "wait"}) | _IGNORED


async def run(ask: Ask) -> web.StreamResponse:
    body = await ask.body()
    if unknown := sorted(name for name in body.keys() - _KNOWN if body[name] is not None):
        raise InvalidRequest(f"'{unknown[0][:80]}' is not supported here; leave it out.", field=unknown[0][:80])
    if body.get("setup"):
        raise InvalidRequest(
            "'setup' is not given with a call here: deploy the app with these 'options'.", field="setup"
        )
    reference = parse_reference(body.get("app"))
    function = _function(body, reference)
    asked = body.get("session")
    timeout = _timeout(body, new=asked == "new")
    given = await files.taken(ask, body.get("input"))
    seconds = _HELD_SECONDS if body.get("wait") is True else 0.0
    if not asked:
        call = await _once(ask, reference, function, given, seconds)
    elif asked == "new":
        call = await _in_new(ask, reference, function, given, timeout, seconds)
    else:
        call = await _in(ask, asked, reference, function, given, max(seconds, _SHORT_SECONDS))
    return ask.data(await told(ask, call) | ({"session_timeout": timeout} if asked == "new" else {}))


def _function(body: dict[str, Any], reference: AppReference) -> str:
    function = body.get("function") or reference.function or "run"
    if not isinstance(function, str):
        raise InvalidRequest("'function' is the name of one of the app's functions.", field="function")
    if body.get("function") and reference.function not in (None, function):
        raise InvalidRequest("'app' and 'function' name two functions; leave one out.", field="function")
    return function


def _timeout(body: dict[str, Any], *, new: bool) -> int | None:
    timeout = body.get("session_timeout")
    if timeout is None:
        return DEFAULT_TIMEOUT if new else None
    if not new:
        raise InvalidRequest("'session_timeout' is set with session='new', and stays.", field="session_timeout")
    if not isinstance(timeout, int) or isinstance(timeout, bool) or not 1 <= timeout <= LONGEST_TIMEOUT:
        raise InvalidRequest(f"'session_timeout' is from 1 to {LONGEST_TIMEOUT} seconds.", field="session_timeout")
    return timeout


def _named(reference: AppReference) -> str:
    return reference.name if reference.version is None else f"{reference.name}@{reference.version}"


def _mounts(given: files.Taken) -> tuple[Mount, ...]:
    return (Mount(volume=files.VOLUME, path=files.ROOT, read_only=True),) if given.paths else ()


async def _once(ask: Ask, reference: AppReference, function: str, given: files.Taken, seconds: float) -> Any:
    """In a session of its own, which ends when the finished task has been told."""
    call = await _in_new(ask, reference, function, given, _ONCE_SECONDS, seconds)
    ask.sessions.only_for(call.session_id)
    return call


async def _in_new(
    ask: Ask, reference: AppReference, function: str, given: files.Taken, idle: int | None, seconds: float
) -> Any:
    asked = CreateFromParamsAction(app=_named(reference), idle_timeout=idle, mounts=_mounts(given))
    session_id = str((await ask.run(asked)).session_data.id)
    try:
        return await _call(ask, session_id, function, given.value, seconds)
    except MoorageError:  # nobody has been told of the session
        await ask.run(DestroySessionAction(session_name=session_id))
        raise


async def _in(
    ask: Ask, session_id: object, reference: AppReference, function: str, given: files.Taken, seconds: float
) -> Any:
    facts = await ask.sessions.of(ask, session_id)
    if facts is not None:
        _check_app(facts, reference)
        if given.paths and not facts.has_files:
            await _wait_running(ask, facts.session_id)
            await files.bring(ask, facts.session_id, given.paths)
    return await _call(ask, str(session_id), function, given.value, seconds)


def _check_app(facts: sessions.Facts, reference: AppReference) -> None:
    if reference.name not in (facts.app_name, facts.app_id):
        raise Conflict(f"The session runs the app {facts.app_name}, not {reference.name}.", said="APP_MISMATCH")
    if reference.version not in (None, facts.version):
        message = f"The session runs version {facts.version} of {facts.app_name}, not {reference.version}."
        raise Conflict(message, said="VERSION_MISMATCH")


async def _wait_running(ask: Ask, session_id: Any) -> None:
    async with permitted(ask):
        await ask.door.world.service.wait_for_session(
            session_id, lambda session: session.status in FINAL | {Status.RUNNING}, _BRING_SECONDS
        )


async def _call(ask: Ask, session_id: str, function: str, value: Any, seconds: float) -> Any:
    asked = StartCallAction(session_name=session_id, function=function, input=value, wait=seconds)
    async with permitted(ask):
        return (await ask.run(asked)).call


# -- what became of it -------------------------------------------------------------------------------------------------------
async def told(ask: Ask, call: Any, *, logs: str = "", session: Any = None) -> dict[str, Any]:
    """The task, its files as addresses; those of a finished call are taken out of its session before."""
    status = shapes.status_of(call, session)
    output = call.output
    if status is shapes.TaskStatus.COMPLETED:
        output = await files.collected(ask, call.session_id, call.id, output)
    if status in shapes.TERMINAL and ask.sessions.is_done_with(call.session_id):
        with suppress(MoorageError):  # it ends by itself, a little later
            await ask.run(DestroySessionAction(session_name=str(call.session_id)))
    return shapes.task(
        call,
        status,
        output=files.told(ask, output),
        input=files.told(ask, call.input),
        logs=logs,
        now=ask.door.world.service.now(),
    )


async def known(ask: Ask, task_id: str) -> Any:
    call_id = as_uuid(task_id)
    if call_id is None:
        raise CallNotFound(f"There is no task '{task_id[:80]}'.")
    return (await ask.run(GetCallAction(call_id=call_id))).call


async def get(ask: Ask, task_id: str) -> web.StreamResponse:
    call = await known(ask, task_id)
    if call.status == "queued":
        return ask.data(await told(ask, call, session=await _session_of(ask, call)))
    return ask.data(await told(ask, call, logs=await logs_of(ask, call)))


async def _session_of(ask: Ask, call: Any) -> Any:
    try:
        return (await ask.run(GetSessionInfoAction(session_name=str(call.session_id)))).session_info
    except SessionNotFound:
        return None


async def stream(ask: Ask, task_id: str) -> web.StreamResponse:
    return await follow(ask, await known(ask, task_id), told, _session_of)


async def cancel(ask: Ask, task_id: str) -> web.StreamResponse:
    call = await known(ask, task_id)
    return ask.data(await told(ask, (await ask.run(CancelCallAction(call_id=call.id))).call))


async def delete(ask: Ask, task_id: str) -> web.StreamResponse:
    """With its files, when they are asked to go as well."""
    with_files = ask.flag("files")
    call = await _finished(ask, task_id)
    if with_files:
        await _remove(ask, call, None)
    await ask.run(DeleteCallAction(call_id=call.id))
    return ask.nothing()


# -- its files ---------------------------------------------------------------------------------------------------------------
async def list_files(ask: Ask, task_id: str) -> web.StreamResponse:
    role = ask.role()
    call = await known(ask, task_id)
    found = await _files_of(ask, call, role)
    return ask.data([{**files.described(ask, path), "role": side} for side, path in found])


async def delete_files(ask: Ask, task_id: str) -> web.StreamResponse:
    role = ask.role()
    return ask.data(await _remove(ask, await _finished(ask, task_id), role))


async def _finished(ask: Ask, task_id: str) -> Any:
    call = await known(ask, task_id)
    if shapes.status_of(call, None) not in shapes.TERMINAL:
        raise InvalidRequest("The task is not finished; cancel it first.", field="task")
    return call


async def _files_of(ask: Ask, call: Any, role: str | None) -> list[tuple[str, str]]:
    output = call.output
    if call.status == "completed" and role != "input":
        output = await files.collected(ask, call.session_id, call.id, output)
    sides = (("input", call.input), ("output", output))
    return [(side, path) for side, value in sides if role in (None, side) for path in files.named(value)]


async def _remove(ask: Ask, call: Any, role: str | None) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {"deleted": [], "skipped": []}
    for _, path in await _files_of(ask, call, role):
        gone = await files.remove(ask, path)
        result["deleted" if gone else "skipped"].append(path.partition("/")[0])
    return result
