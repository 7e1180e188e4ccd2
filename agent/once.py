"""Changes of a volume's files are made once for each key, also when the agent dies before it can answer.

That something was begun is on disk before it is done. Whoever asks again after a death finds either the answer, or that
it was begun: then what is there already is what was asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

from agent.client import FileStat
from agent.rings import RunnerError
from agent.store import Store

Manage = Callable[[str, dict[str, Any]], Awaitable[FileStat | None]]
#: What an operation is refused with when it has been done before.
_DONE_BEFORE: Final = {"mkdir": "file_exists", "move": "file_not_found", "remove": "file_not_found"}


async def manage_once(
    store: Store, key: str, op: str, arguments: dict[str, Any], manage: Manage, *, now: float
) -> dict[str, Any] | None:
    """The answer, as it is sent."""
    if op in ("stat", "chmod"):
        return _packed(await manage(op, arguments))
    before, answer = await store.begin_request(key, now=now)
    if answer is not None:
        told: dict[str, Any] | None = answer["file"]
        return told
    try:
        file = _packed(await manage(op, arguments))
    except RunnerError as error:
        if not before or error.code != _DONE_BEFORE.get(op):
            await store.forget_request(key)
            raise
        file = None
        if op != "remove":
            file = _packed(await manage("stat", {"path": arguments["to"] if op == "move" else arguments["path"]}))
    await store.finish_request(key, {"file": file})
    return file


def _packed(file: FileStat | None) -> dict[str, Any] | None:
    return asdict(file) if file is not None else None
