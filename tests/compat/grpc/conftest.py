"""One installation with the gRPC front, a template whose sessions run the stand-in, and a project on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import moorage
import pytest

from bench.grpc_front import front_process
from tests.compat.conftest import SECRET
from tests.compat.environments import ROOT, client_python
from tests.installed import Installed

HERE: Final = Path(__file__).parent
_CONFIGS: Final = {
    "trainrun/first.yaml": "# @package _global_\nepochs: 2\npipeline: {nodes: [{factor: 3}]}\n",
    "trainrun/leak.yaml": f"# @package _global_\nseen: ${{oc.env:{SECRET},nothing}}\nhome: ${{oc.env:HOME}}\n",
    "pipeline/README": "",
    "data/README": "",
    "training/README": "",
}


@dataclass(frozen=True)
class Front(Installed):
    environ: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.told["grpc_port"])

    @property
    def project(self) -> Path:
        """On the client's machine."""
        return self.folder / "project"

    @property
    def configs(self) -> Path:
        """Of the client: the sessions see the volume at this path."""
        return self.project / "configs"

    def connect(self) -> moorage.Client:
        return moorage.Client(endpoint=self.endpoint, access_key=self.access_key, secret_key=self.secret_key)

    def begin(self, script: Path | str, *words: str, port: int = 0, key: str | None = None) -> subprocess.Popen[str]:
        """A script with the client's interpreter."""
        environ = {
            **os.environ,
            "ADDRESS": f"127.0.0.1:{port or self.port}",
            "KEY": self.key if key is None else key,
            "PYTHONPATH": str(HERE / "clients"),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.environ,
        }
        command = [str(client_python("cuvis")), str(HERE / "clients" / script), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)

    def client(
        self, script: Path | str, *words: str, port: int = 0, key: str | None = None, seconds: float = 150
    ) -> str:
        """What it prints."""
        with self.begin(script, *words, port=port, key=key) as process:
            out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, f"{out}\n{err}"
        return out

    def said(self, script: str, *words: str, **more: Any) -> Any:
        """What it prints last, as JSON."""
        return json.loads(self.client(script, *words, **more).splitlines()[-1])

    def another(self, **settings: str | int) -> AbstractContextManager[int]:
        """A further process of the front, set otherwise; its port."""
        return front_process(self.data_dir, **settings)


@pytest.fixture(scope="session")
def front(everything: Installed) -> Iterator[Front]:
    made = Front(everything.folder, everything.told)
    _write_project(made.project)
    _furnish(made, made.folder)
    yield made
    with made.connect() as client:
        for session in client.sessions.list():
            session.destroy(wait=30)


def _write_project(project: Path) -> None:
    for name, text in _CONFIGS.items():
        path = project / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (project / "examples").mkdir()
    shutil.copy(HERE / "clients" / "seed.py", project / "examples")


def _furnish(front: Front, folder: Path) -> None:
    """The server's packages in one volume, the project's configurations in another, and the template."""
    packages = client_python("cuvis").parent.parent / "lib" / "python3.11" / "site-packages"
    archive = folder / "server.tar"
    with tarfile.open(archive, "w") as tar:
        for path in [*packages.iterdir(), ROOT / "images/cuvis/moorage_cuvis.py", HERE / "standin.py"]:
            if path.name not in ("cuvis_ai", "cuvis_ai_core"):
                tar.add(path, path.name, filter=lambda one: None if "__pycache__" in one.name else one)
    with front.connect() as client:
        client.volumes.create("cuvis-server").files.unpack(archive)
        client.volumes.create("configs").files.upload_folder(front.configs, ".")
        client.templates.create("cuvis", _template(front))


def _template(front: Front) -> dict[str, Any]:
    command = ["python3", "-m", "moorage_cuvis", "--port", "{port}", "--service", "standin:Service"]
    return {
        "session": {
            "image": "python",
            "resource_slots": {"cpu": 1, "mem": "2g"},
            "environ": {"PYTHONPATH": "/home/work/cuvis-server"},
            "mounts": [
                {"volume": "cuvis-server", "read_only": True},
                {"volume": "configs", "path": str(front.configs), "read_only": True},
            ],
            "session_type": "inference",
            "serves": {"name": "cuvis", "port": 50051, "command": command},
        }
    }
