"""The examples of inference.sh's reference of sessions, as they are written there; only the line that makes the client is ours."""

import asyncio
import json
import os

import inferencesh

URL, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
told = {}


def inference(api_key):
    return inferencesh.inference(api_key=KEY, base_url=URL)


def async_inference(api_key):
    return inferencesh.async_inference(api_key=KEY, base_url=URL)


# -- Creating a session, using it, its timeout ------------------------------------------------------------------------
client = inference(api_key="inf_...")
result = client.run({"app": "my-app", "input": {"action": "initialize"}, "session": "new"})
session_id = result["session_id"]
print(f"Session: {session_id}")
result = client.run({"app": "my-app", "input": {"action": "process", "data": "..."}, "session": session_id})
told["process"] = result["output"]
result = client.run({"app": "my-app", "input": {"action": "init"}, "session": "new", "session_timeout": 300})
told["timeout"] = client.sessions.get(result["session_id"])["idle_timeout"]

# -- Model loading ------------------------------------------------------------------------------------------------------
data_batch = [1, 2, 3]
result = client.run(
    {
        "app": "ml-inference",
        "input": {"action": "load_model", "model": "large-model-v2"},
        "session": "new",
        "session_timeout": 600,
    }
)
session_id = result["session_id"]
for item in data_batch:
    result = client.run({"app": "ml-inference", "input": {"action": "predict", "data": item}, "session": session_id})
    print(result["output"])
    told.setdefault("predictions", []).append(result["output"])

# -- Browser automation ---------------------------------------------------------------------------------------------------
result = client.run(
    {
        "app": "browser-automation",
        "input": {"action": "start", "url": "https://example.com"},
        "session": "new",
        "session_timeout": 300,
    }
)
session_id = result["session_id"]
client.run({"app": "browser-automation", "input": {"action": "click", "selector": "#login-btn"}, "session": session_id})
client.run(
    {
        "app": "browser-automation",
        "input": {"action": "type", "selector": "#username", "text": "user@example.com"},
        "session": session_id,
    }
)
result = client.run({"app": "browser-automation", "input": {"action": "screenshot"}, "session": session_id})
told["browser"] = result["output"]

# -- Stateful conversations -------------------------------------------------------------------------------------------------
result = client.run(
    {
        "app": "chat-with-memory",
        "input": {"action": "init", "system": "You are a helpful assistant."},
        "session": "new",
        "session_timeout": 1800,
    }
)
session_id = result["session_id"]
messages = [
    "What is quantum computing?",
    "Can you give me a simple example?",
    "How is it different from classical computing?",
]
for msg in messages:
    result = client.run({"app": "chat-with-memory", "input": {"message": msg}, "session": session_id})
    print(f"Assistant: {result['output']['response']}")
    told.setdefault("chat", []).append(result["output"]["response"])

# -- Data processing pipeline -----------------------------------------------------------------------------------------------
result = client.run(
    {
        "app": "data-processor",
        "input": {"action": "load", "dataset": "large_dataset.parquet"},
        "session": "new",
        "session_timeout": 900,
    }
)
session_id = result["session_id"]
analyses = ["summary", "correlations", "outliers", "trends"]
for analysis in analyses:
    result = client.run(
        {"app": "data-processor", "input": {"action": "analyze", "type": analysis}, "session": session_id}
    )
    print(f"{analysis}: {result['output']}")
    told.setdefault("analyses", []).append(result["output"])

# -- Check session status, and explicit session close -----------------------------------------------------------------------
session_id = client.run({"app": "my-app", "input": {"action": "init"}, "session": "new", "session_timeout": 1})[
    "session_id"
]
while client.sessions.get(session_id)["status"] == "active":
    pass
try:
    result = client.run({"app": "my-app", "input": {"action": "check"}, "session": session_id})
except Exception as e:
    if "session not found" in str(e).lower():
        print("Session expired, creating new one")
        told["expired"] = True

session_id = client.run({"app": "my-app", "input": {"action": "init"}, "session": "new"})["session_id"]
# Close session to free resources
client.run({"app": "my-app", "input": {"action": "cleanup"}, "session": session_id})
# Session will terminate after this call
try:
    client.run({"app": "my-app", "input": {"action": "check"}, "session": session_id})
except Exception as e:
    told["closed"] = str(e)


# -- Session recovery pattern -------------------------------------------------------------------------------------------------
class SessionManager:
    def __init__(self, client, app, timeout=300):
        self.client = client
        self.app = app
        self.timeout = timeout
        self.session_id = None

    def ensure_session(self):
        if self.session_id is None:
            result = self.client.run(
                {
                    "app": self.app,
                    "input": {"action": "init"},
                    "session": "new",
                    "session_timeout": self.timeout,
                }
            )
            self.session_id = result["session_id"]
        return self.session_id

    def run(self, input_data):
        try:
            return self.client.run({"app": self.app, "input": input_data, "session": self.ensure_session()})
        except Exception as e:
            if "session" in str(e).lower():
                # Session expired, create new one
                self.session_id = None
                return self.client.run({"app": self.app, "input": input_data, "session": self.ensure_session()})
            raise


manager = SessionManager(client, "my-app", timeout=600)
result = manager.run({"action": "process", "data": "..."})
first = manager.session_id
client.sessions.end(first)
told["recovered"] = [
    manager.run({"action": "process", "data": "again"})["output"]["items"],
    manager.session_id != first,
]


# -- Async sessions -----------------------------------------------------------------------------------------------------------
async def session_workflow():
    client = async_inference(api_key="inf_...")
    # Create session
    result = await client.run({"app": "my-app", "input": {"action": "init"}, "session": "new", "session_timeout": 300})
    session_id = result["session_id"]
    # Run operations
    tasks = [
        client.run({"app": "my-app", "input": {"action": "process", "id": i}, "session": session_id}) for i in range(10)
    ]
    # Note: These run sequentially on the same worker
    results = []
    for task in tasks:
        results.append(await task)
    return results


results = asyncio.run(session_workflow())
told["workflow"] = results[-1]["output"]["items"]
for one in client.sessions.list():
    if one["status"] == "active":
        client.sessions.end(one["id"])
print(json.dumps(told))
