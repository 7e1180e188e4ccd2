"""The way of every day, sync and async: a new session, warm calls, a stream, the end."""

import asyncio
import json
import os

from inferencesh import APIError, async_inference, inference

URL, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]


def sync():
    client = inference(api_key=KEY, base_url=URL)
    first = client.run({"app": "probe", "input": {"n": 1}, "session": "new", "session_timeout": 60})
    session = first["session_id"]
    second = client.run({"app": "acme/probe@1", "input": {"n": 2}, "session": session})
    steps = list(client.run({"app": "probe:stream", "input": {"to": 2}, "session": session}, stream=True))
    info = client.sessions.get(session)
    return session, {
        "first": first["output"],
        "second": second["output"],
        "steps": [step["output"] for step in steps if step.get("output")],
        "last": steps[-1]["status"],
        "logs": "".join(log["content"] for log in steps[-1]["logs"]),
        "info": {name: info[name] for name in ("id", "status", "call_count", "idle_timeout")},
    }


async def from_elsewhere(session):
    client = async_inference(api_key=KEY, base_url=URL)
    third = await client.run({"app": "probe", "input": {"n": 3}, "session": session})
    await client.sessions.end(session)
    try:
        await client.run({"app": "probe", "input": {}, "session": session})
    except APIError as error:
        return {"third": third["output"], "over": [error.status_code, error.code, error.message]}


session, told = sync()
told |= asyncio.run(from_elsewhere(session))
told["session"] = session
print(json.dumps(told))
