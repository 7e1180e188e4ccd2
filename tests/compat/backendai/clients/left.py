"""What the SDK has no functions for, asked through its own requests, and its functions that nobody uses every day."""

import asyncio
import json
import sys
from typing import Any

from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.request import Request
from ai.backend.client.session import AsyncSession

month = sys.argv[1]
told: dict[str, Any] = {}


async def ask(method: str, path: str, body: Any = None, **params: str) -> Any:
    request = Request(method, path, params=params)
    if body is not None:
        request.set_json(body)
    async with request.fetch() as response:
        data = await response.read()
        return json.loads(data) if response.content_type == "application/json" else [response.status, data.decode()]


async def refused(path: str, **params: str) -> list[Any]:
    try:
        await ask("GET", path, **params)
    except BackendAPIError as error:
        return [error.status, error.data["title"]]
    return ["taken"]


async def log_of(session: Any, task: str) -> str:
    return b"".join([chunk async for chunk in session.ComputeSession.get_task_logs(task)]).decode()


async def main() -> None:
    async with AsyncSession() as session:
        size = {"cpu": 1, "mem": "256m"}
        made = await session.ComputeSession.get_or_create("python", name="left-over", resources=size)
        await made.execute(code="open('a.txt', 'w').write('alpha'); print('in the log')")
        kernel = (await made.get_info())["containerId"]
        told["match"] = [
            (one["name"], one["status"]) for one in (await ask("GET", "/session/_/match", id="left-o"))["matches"]
        ]
        told["direct"] = await ask("GET", "/session/left-over/direct-access-info")
        told["single"] = await ask("GET", "/session/left-over/download_single", file="a.txt")
        told["logs"] = [await log_of(session, str(made.id)), await log_of(session, kernel)]
        told["no task"] = await refused("/session/_/logs", taskId="11111111-0000-7000-8000-00000000ffff")
        told["which task"] = await refused("/session/_/logs")
        server = "import subprocess; subprocess.Popen(['python3', '-m', 'http.server', '8200']); None"
        await made.execute(code=server)
        await made.start_service("http", port=8200)
        told["stopped"] = await ask("POST", "/session/left-over/shutdown-service", {"service_name": "http"})
        commit = await made.commit()
        states = [await ask("GET", "/session/left-over/commit")]
        async with session.BackgroundTask(commit["bgtask_id"]).listen_events() as events:
            told["task"] = [event.event async for event in events][-2:]
        states.append(await ask("GET", "/session/left-over/commit"))
        told["commit"] = [[one["status"] for one in states], {one["kernel"] for one in states} == {commit["kernel"]}]
        group = (await session.Group.from_name("default"))[0]["id"]
        used = await session.Resource.usage_per_period(group, f"{month}01", f"{month}28")
        told["used"] = "left-over" in [one["name"] for one in used["c_infos"]]
        await session.Manager.unfreeze()
        await made.destroy()
        told["kept"] = await log_of(session, str(made.id))


asyncio.run(main())
print(json.dumps(told))
