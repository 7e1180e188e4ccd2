"""`POST /session/NAME`: run code and read on; the place up to which was read is kept between the requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from actions import CompleteAction, GetSessionInfoAction
from domain.errors import InvalidRequest, RunNotFound
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.run_loop import RunLoop
from manager.compat.backendai.table import Route
from manager.processor import run_id_of
from manager.rest.json import MAX_CODE_BODY_BYTES
from manager.rest.streams import permitted
from repositories.run_reader import forget, recall, remember

_MODES: Final = ("query", "batch", "continue", "input")


async def execute(ask: Ask) -> web.StreamResponse:
    body = await ask.body(max_bytes=MAX_CODE_BODY_BYTES, required=True)
    mode = body.get("mode")
    if mode in (None, "complete"):
        return await _completed(ask, body)
    if mode not in _MODES:
        raise InvalidRequest(f"'mode' is one of {', '.join(_MODES)}, complete.", field="mode")
    code, name = body.get("code") or "", body.get("runId") or secrets.token_hex(8)
    if not isinstance(code, str) or not isinstance(name, str):
        raise InvalidRequest("'code' and 'runId' are text.", field="code")
    session_id = str((await ask.run(GetSessionInfoAction(**ask.session))).session_info.id)
    async with permitted(ask):
        if mode in ("query", "batch"):
            loop = RunLoop.new(session_id, name, mode, object_of(body, "options"))
            result = await loop.step(ask, code=code)
        else:
            loop = await _known(ask, session_id, name)
            if mode == "input":
                await loop.feed(ask, code)
            result = await loop.step(ask)
    await _keep(ask, loop)
    return ask.answer({"result": result})


def _reader(ask: Ask, session_id: str, name: str) -> UUID:
    return run_id_of(ask.by, f"backendai {session_id} {name}")


async def _known(ask: Ask, session_id: str, name: str) -> RunLoop:
    async with ask.door.world.database.reader() as connection:
        state = await recall(connection, _reader(ask, session_id, name))
    if state is None:
        raise RunNotFound(f"There is no run '{name[:64]}' that goes on in this session.", run_id=name[:64])
    return RunLoop.of_state(state)


async def _keep(ask: Ask, loop: RunLoop) -> None:
    """A run that ended in its first answer leaves nothing behind, and costs nothing here."""
    if loop.finished and not loop.kept:
        return
    reader = _reader(ask, loop.session_id, loop.name)
    async with ask.door.world.database.reader() as connection:
        if loop.finished:
            await forget(connection, reader)
        else:
            await remember(connection, reader, loop.state, now=ask.door.world.service.now())


async def complete(ask: Ask) -> web.StreamResponse:
    return await _completed(ask, await ask.body(required=True))


async def _completed(ask: Ask, body: Mapping[str, Any]) -> web.StreamResponse:
    options, code = object_of(body, "options"), body.get("code")
    if not isinstance(code, str):
        raise InvalidRequest("'code' is the text that is being typed.", field="code")
    row, col = (options.get(name, 0) for name in ("row", "col"))
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in (row, col)):
        raise InvalidRequest("'row' and 'col' are numbers from 0 on.", field="options")
    line, post = str(options.get("line") or ""), str(options.get("post") or "")
    found = await ask.run(CompleteAction(**ask.session, code=code, row=row, col=col, line=line, post=post))
    words = found.suggestions
    told = {"status": "finished", "completions": words, "suggestions": words, "start": found.start, "end": found.end}
    return ask.answer({"result": told})


def object_of(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"'{name}' is an object.", field=name)
    return value


ROUTES: Final = (
    Route("POST", "/session/{session}", execute),
    Route("POST", "/session/{session}/complete", complete),
)
