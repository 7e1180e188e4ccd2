"""What a task has printed: the end of it, as text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

from actions import ReadExecutionAction
from domain.errors import MoorageError
from manager.compat.inference.ask import Ask

MAX_LOG_CHARACTERS: Final = 64 * 1024
_READ_BYTES: Final = 1024 * 1024
_MOST_READS: Final = 64


class Printed:
    """The last of it; what came before is let go."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, records: Iterable[Mapping[str, Any]]) -> bool:
        """Whether there was anything."""
        new = "".join(record["text"] for record in records if record["kind"] in ("stdout", "stderr"))
        self.text = (self.text + new)[-MAX_LOG_CHARACTERS:]
        return bool(new)


async def logs_of(ask: Ask, call: Any) -> str:
    """Empty where they are not kept any more."""
    printed = Printed()
    async with aclosing(kept_records(ask, call)) as pieces:
        async for records in pieces:
            printed.add(records)
    return printed.text


async def kept_records(ask: Ask, call: Any) -> AsyncGenerator[list[dict[str, Any]]]:
    """What a call has said by now, in pieces; nothing, where it has not begun or its host does not answer."""
    from_seq = 0
    with suppress(MoorageError):
        for _ in range(_MOST_READS):
            asked = ReadExecutionAction(
                session_name=str(call.session_id), run_id=call.id, from_seq=from_seq, max_bytes=_READ_BYTES
            )
            piece = await ask.run(asked)
            if not piece.records:
                return
            yield piece.records
            if piece.status == "done" and piece.records[-1]["kind"] == "done":
                return
            from_seq = piece.next_seq
