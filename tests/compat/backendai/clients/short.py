"""What everybody does every day: create, run code, upload, download, list, logs, end."""

import json
from pathlib import Path
from typing import Any

from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import Session

told: dict[str, Any] = {}
Path("sub").mkdir()
Path("sub/b.bin").write_bytes(bytes(range(256)) * 20)
Path("a 100%.txt").write_text("alpha")
with Session() as session:
    made = session.ComputeSession.get_or_create("python", name="daily-one", resources={"cpu": 1, "mem": "256m"})
    told["made"] = [made.status, made.created]
    told["run"] = made.execute(code="print(40 + 2)")
    told["upload"] = made.upload(["a 100%.txt", "sub/b.bin"]).status
    told["files"] = sorted(one["filename"] for one in json.loads(made.list_files(".")["files"]))
    told["download"] = sorted(made.download(["a 100%.txt", "sub/b.bin"], dest="back")["file_names"])
    told["same"] = Path("back/sub/b.bin").read_bytes() == Path("sub/b.bin").read_bytes()
    told["logs"] = made.get_logs()["result"]["logs"]
    told["info"] = dict(made.get_info())
    told["end"] = made.destroy()["stats"]["status"]
    try:
        made.get_info()
    except BackendAPIError as error:
        told["over"] = [error.status, error.data["type"], error.data["title"]]
print(json.dumps(told))
