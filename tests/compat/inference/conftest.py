"""One installation with the front switched on, its apps, and the real client in an interpreter of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.compat.environments import client_python
from tests.installed import Installed

HERE: Final = Path(__file__).parent
APPS: Final = {
    "my-app": "my_app",
    "ml-inference": "ml_inference",
    "browser-automation": "browser",
    "chat-with-memory": "chat",
    "data-processor": "data_processor",
    "probe": "probe",
}


class Installation(Installed):
    @property
    def base_url(self) -> str:
        return f"{self.endpoint}/compat/inference"

    def user(self, name: str) -> str:
        """The key of an ordinary user."""
        self.run("admin", "user", "add", f"{name}@example.org")
        made = json.loads(self.run("admin", "keypair", "add", f"{name}@example.org", "--json").stdout)
        return f"{made['access_key']}.{made['secret_key']}"

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.endpoint, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def deploy(self, name: str, archive: bytes, **more: Any) -> dict[str, Any]:
        said = {"name": name, "image": "python", "entry": "app:App", "scope": "domain", **more}
        with self.http() as http:
            answer = http.post(
                "/v1/apps",
                files=[
                    ("app", (None, json.dumps(said).encode(), "application/json")),
                    ("archive", ("app.tar.gz", archive, "application/gzip")),
                ],
            )
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def client(self, script: str, *, key: str | None = None, **more: str) -> Any:
        """What a script beside this file prints as its last line, run with the client's interpreter."""
        environ = {**os.environ, "BASE_URL": self.base_url, "API_KEY": key or self.key, **more}
        command = [str(client_python("inference")), "-W", "error", str(HERE / script)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])


def packed(folder: Path, packages: tuple[str, ...] = ()) -> bytes:
    """An app's folder, with packages of the client's own environment beside it."""
    out = io.BytesIO()
    site = next(client_python("inference").parents[1].glob("lib/python*/site-packages")) if packages else folder
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for root, tops in ((folder, folder.iterdir()), (site, (site / name for name in packages))):
            for top in tops:
                archive.add(top, str(top.relative_to(root)), filter=_source)
    return out.getvalue()


def _source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith("__pycache__") else member


@pytest.fixture(scope="session")
def installation(everything: Installed) -> Installation:
    made = Installation(everything.folder, everything.told)
    for name, inside in APPS.items():
        made.deploy(name, packed(HERE / "apps" / inside))
    return made
