"""A call that says nothing for longer than the client listens to heartbeats alone."""

import json
import os
import time

from inferencesh import inference

client = inference(api_key=os.environ["API_KEY"], base_url=os.environ["BASE_URL"])
task = client.run({"app": "probe:slow", "input": {"seconds": float(os.environ["SECONDS"])}}, wait=False)
at, silences = None, []
for update in client.stream_task(task["id"], auto_reconnect=False):
    now = time.monotonic()
    if at is not None:
        silences.append(now - at)
    at = now
print(json.dumps({"output": update["output"], "longest": max(silences)}))
