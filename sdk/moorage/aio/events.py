"""Server-sent events, resumed after the last one seen."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from moorage import _wire
from moorage._errors import StreamBroken, StreamSilent, UnexpectedAnswer, Unreachable
from moorage.aio import _io
from moorage.aio._transport import STREAM_SILENCE_SECONDS, Transport

MAX_FRUITLESS = 8


async def server_sent(
    transport: Transport, path: str, params: Mapping[str, str], *, after: str | None = None, once: bool = False
) -> AsyncGenerator[tuple[str | None, str | None, Any]]:
    """Id, name and data of each event; `once` ends with the server's stream, otherwise it is opened again."""
    last, fruitless = after, 0
    while True:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        fruitless += 1
        try:
            async with transport.stream(
                "GET", path, params=params, headers=headers, read_seconds=STREAM_SILENCE_SECONDS
            ) as response:
                lines: list[str] = []
                async for line in response.aiter_lines():
                    fruitless = 0
                    if line:
                        lines.append(line)
                        continue
                    event_id, name, data = _wire.sse_events(lines)
                    lines = []
                    last = event_id or last
                    if name == "closing":
                        break  # the server stops, or is replaced
                    if data:
                        yield event_id, name, _decoded(data)
            if once:
                return
        except StreamSilent:
            fruitless = 0
        except StreamBroken:
            pass
        if fruitless > MAX_FRUITLESS:
            raise Unreachable("The server ends the stream of events again and again without sending anything.")
        await _io.sleep(_wire.pause_seconds(max(1, fruitless)))


def _decoded(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise UnexpectedAnswer("The server sent an event that is not JSON.") from None
