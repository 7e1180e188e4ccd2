"""One-shot runs, tasks by id, cancelling, functions, parallel calls, outputs that are large, slow calls."""

import asyncio
import json
import os
import time

from inferencesh import APIError, async_inference, inference

URL, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
client = inference(api_key=KEY, base_url=URL)
told = {}

# without a session
once = client.run({"app": "probe", "input": {"n": 1}})
again = client.run({"app": "probe", "input": {"n": 1}})
told["once"] = [once["output"]["count"], again["output"]["count"], once["session_id"] != again["session_id"]]

# by its id, and cancelled while it runs
with client.session("probe") as handle:
    task = client.run(
        {"app": "probe", "function": "slow", "input": {"seconds": 600}, "session": handle.session_id}, wait=False
    )
    for update in client.stream_task(task["id"]):
        if update["logs"]:
            break
    told["running"] = client.tasks.get(task["id"]).data["status"]
    client.tasks.cancel(task["id"])
    try:
        client.wait_for_completion(task["id"])
    except RuntimeError as error:
        told["cancelled"] = [str(error), client.tasks.get(task["id"]).data["status"]]
    told["after"] = handle.call("run", {"n": 2})["output"]["count"]
    told["handle"] = [handle.info()["status"], handle.keepalive()["status"]]
    try:
        handle.call("fail")
    except RuntimeError as error:
        told["failed"] = str(error).splitlines()[0]
    told["deleted"] = client.tasks.delete(task["id"])
try:
    handle.call("run")
except RuntimeError as error:
    told["ended_here"] = str(error)
told["listed"] = {one["id"]: one["status"] for one in client.sessions.list()}[handle.session_id]


async def others():
    client = async_inference(api_key=KEY, base_url=URL)
    async with await client.session("probe") as handle:
        calls = [handle.call("serial", {"at": at}) for at in range(10)]
        done = await asyncio.gather(*calls)
        large = await handle.call("large", {"characters": 300_000})
        steps = []
        async for update in await handle.call("stream", {"to": 3}, stream=True):
            steps.append(update["output"])
        return {
            "serial": sorted(one["output"]["at"] for one in done),
            "most": max(one["output"]["most"] for one in done),
            "counts": sorted(one["output"]["count"] for one in done),
            "large": len(large["output"]["text"]),
            "steps": [step for step in steps if step],
        }


told["async"] = asyncio.run(others())

# the default of a session, and one that expires
task = client.run({"app": "probe", "input": {}, "session": "new"}, wait=False)
told["default_timeout"] = client.sessions.get(task["session_id"])["idle_timeout"]
short = client.run({"app": "probe", "input": {}, "session": "new", "session_timeout": 1})["session_id"]
while client.sessions.get(short)["status"] == "active":
    time.sleep(0.05)
told["expired"] = client.sessions.get(short)["status"]
for what in (
    lambda: client.run({"app": "probe", "input": {}, "session": short}),
    lambda: client.sessions.keepalive(short),
):
    try:
        what()
    except APIError as error:
        told.setdefault("expired_calls", []).append(
            [error.status_code, error.code, "session not found" in str(error).lower()]
        )
print(json.dumps(told))
