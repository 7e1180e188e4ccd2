"""WebSockets, events of sessions and of background tasks, with the asynchronous SDK."""

import asyncio
import json
from typing import Any

from ai.backend.client.session import AsyncSession

told: dict[str, Any] = {}
TWO = "import sys\nprint('one', flush=True)\nn = input()\nprint('two' + n)"
SLOW = "for i in 1 2; do echo $i; sleep 1; done; exit 3"


async def followed(stream: Any, *lines: str) -> list[dict[str, Any]]:
    found, typed = [], list(lines)
    async for message in stream:
        found.append(json.loads(message.data))
        if found[-1]["status"] == "waiting-input":
            await stream.send_str(typed.pop(0))
    return found


async def main() -> None:
    async with AsyncSession() as session:
        create = session.ComputeSession.get_or_create
        made = await create("python", name="stream-one", resources={"cpu": 1, "mem": "256m"}, enqueue_only=True)
        started, names = asyncio.Event(), []

        async def listen() -> None:
            async with made.listen_events() as events:
                async for event in events:
                    names.append([event.event, json.loads(event.data).get("sessionName")])
                    if event.event == "session_started":
                        started.set()

        listening = asyncio.create_task(listen())
        await asyncio.wait_for(started.wait(), 60)
        async with made.stream_execute(TWO) as stream:
            told["asked"] = await followed(stream, "zed")
        async with made.stream_execute(mode="batch", opts={"build": "echo built", "exec": SLOW}) as stream:
            told["batch"] = await followed(stream)
        async with made.stream_execute("1/0") as stream:
            told["raised"] = await followed(stream)
        commit = await made.commit()
        async with session.BackgroundTask(commit["bgtask_id"]).listen_events() as events:
            told["task"] = [event.event async for event in events]
        await made.destroy()
        await asyncio.wait_for(listening, 60)
        told["events"] = names
        batch = await create(
            "python", name="stream-two", type_="batch", startup_command="echo hi; exit 4", resources={"mem": "256m"}
        )
        async with batch.listen_events(scope="session") as events:
            told["ended"] = [[event.event, json.loads(event.data).get("exitCode")] async for event in events]


asyncio.run(main())
print(json.dumps(told))
