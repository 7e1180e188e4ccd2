"""An app on the package's own base class, with a file in and a file out."""

import json
import os
import tempfile
import urllib.request

from inferencesh import inference

client = inference(api_key=os.environ["API_KEY"], base_url=os.environ["BASE_URL"])
told = {}
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "image.txt")
    with open(path, "w") as file:
        file.write("pixels")
    with client.session("typed", input={"prompt": "hello"}) as session:
        told["first"] = session.info()["call_count"]
        result = session.call("run", {"prompt": "again", "image": path})
        told["output"] = {name: result["output"][name] for name in ("text", "calls")}
        with urllib.request.urlopen(result["output"]["report"]) as answer:
            told["report"] = answer.read().decode()
        told["count"] = session.call("count", {"prompt": ""})["output"]["calls"]
        try:
            session.call("run", {"image": path})
        except RuntimeError as error:
            told["invalid"] = "prompt" in str(error)
print(json.dumps(told))
