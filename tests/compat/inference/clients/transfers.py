"""Files: a path, a data URI, what looks like base64, bytes; into new and running sessions; and out of them."""

import base64
import json
import os
import tempfile
import urllib.request

import requests
from inferencesh import APIError, UploadFileOptions, inference

URL, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
client = inference(api_key=KEY, base_url=URL)
told = {}


def read(value, **more):
    return client.run({"app": "probe:read", "input": {"file": value}, **more})


with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "words and more.txt")
    with open(path, "w") as file:
        file.write("from a file")
    first = read(path, session="new", session_timeout=60)
    told["path"] = first["output"]["content"]
    session = first["session_id"]
    told["input"] = [first["input"]["file"].startswith(URL), first["output"]["path"].startswith(URL)]
    with urllib.request.urlopen(first["input"]["file"]) as answer:  # as apps and people read them, without a key
        told["by_address"] = answer.read().decode()

told["data"] = read("data:text/plain;base64," + base64.b64encode(b"from a data URI").decode(), session=session)[
    "output"
]["content"]
told["base64"] = read(base64.b64encode(b"looks like base64").decode(), session=session)["output"]["content"]
plain = client.run({"app": "probe", "input": {}, "session": "new"})["session_id"]  # had no file when it began
uploaded = client.files.upload(b"bytes", UploadFileOptions(filename="b.bin", content_type="application/x-b"))
told["uploaded"] = [uploaded["filename"], uploaded["size"], uploaded["content_type"]]
told["brought"] = read(uploaded["uri"], session=plain)["output"]["content"]
told["once"] = read(uploaded["uri"])["output"]["content"]

result = client.run({"app": "probe:write", "input": {"text": "a report"}, "session": session})
with urllib.request.urlopen(result["output"]["report"]) as answer:
    told["report"] = answer.read().decode()
once = client.run({"app": "probe:write", "input": {"text": "of a run of its own"}})
with urllib.request.urlopen(once["output"]["report"]) as answer:
    told["report_of_once"] = answer.read().decode()
told["once_ended"] = client.sessions.get(once["session_id"])["status"]
told["files"] = [[one["role"], one["filename"]] for one in client.tasks.files(result["id"]).data]
told["input_files"] = [one["role"] for one in client.tasks.files(first["id"], role="input").data]
told["deleted"] = len(client.tasks.delete_files(result["id"], role="output").data["deleted"])

answer = requests.put(uploaded["upload_url"], data=b"twice", timeout=30)
told["twice"] = answer.status_code
created = client._request("post", "/files", data={"files": [{"uri": "", "filename": "../../x", "size": 3}]}).data[0]
told["outside"] = created["filename"]
told["longer"] = requests.put(created["upload_url"], data=b"four", timeout=30).status_code
told["sealed"] = requests.put(URL + "/files/upload/" + "A" * 80, data=b"abc", timeout=30).status_code
told["as_download"] = requests.get(created["upload_url"].replace("/upload/", "/") + "/x", timeout=30).status_code
try:
    client._request("post", "/files", data={"files": [{"uri": "", "filename": "x", "size": 1 << 40}]})
except APIError as error:
    told["too_large"] = [error.status_code, error.code]
for one in (session, plain):
    client.sessions.end(one)
print(json.dumps(told))
