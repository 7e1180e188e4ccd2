"""What a call says as it runs, and how it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from actions import FollowCallAction
from agent.wire import decode_records
from manager.compat.inference.ask import Ask
from manager.rest.executions import record_json


async def call_records(ask: Ask, call: Any) -> AsyncGenerator[list[dict[str, Any]]]:
    """Records in pieces as they come; the last one is of kind `call` and holds the call that is over."""
    follower = await ask.run(FollowCallAction(call_id=call.id))
    async with aclosing(follower.reads()) as reads:  # type: ignore[type-var]
        async for read in reads:
            yield [record_json(record, binary=False) for record in decode_records(read.records)]
    yield [{"kind": "call", "data": await follower.result()}]
