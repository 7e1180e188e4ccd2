"""One installation with the front switched on, people whose keypairs sign, and the real client in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.compat.environments import client_python
from tests.installed import Installed

HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Keys:
    access_key: str
    secret_key: str  #: what requests are signed with


@dataclass(frozen=True)
class Installation(Installed):
    admin: Keys = Keys("", "")

    @property
    def base_url(self) -> str:
        return f"{self.endpoint}/compat/backendai"

    def signing(self, access_key: str) -> Keys:
        """Let this keypair sign, with a new secret."""
        done = self.run("admin", "keypair", "signing", access_key, "on", "--json")
        assert done.returncode == 0, done.stderr
        return Keys(access_key, json.loads(done.stdout)["signing_secret"])

    def user(self, name: str) -> Keys:
        """An ordinary user."""
        self.run("admin", "user", "add", f"{name}@example.org")
        made = json.loads(self.run("admin", "keypair", "add", f"{name}@example.org", "--json").stdout)
        return self.signing(made["access_key"])

    def environ(self, keys: Keys | None = None) -> dict[str, str]:
        """What a user of the client sets, and nothing else."""
        keys = keys or self.admin
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("BACKEND")},
            "HOME": str(home),
            "BACKEND_ENDPOINT": self.base_url,
            "BACKEND_ENDPOINT_TYPE": "api",
            "BACKEND_ACCESS_KEY": keys.access_key,
            "BACKEND_SECRET_KEY": keys.secret_key,
        }

    def command(
        self, *words: str, keys: Keys | None = None, cwd: Path | None = None, stdin: str = "", seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The real `backend.ai` command."""
        program = client_python("backendai").parent / "backend.ai"
        return subprocess.run(
            [str(program), *words],
            capture_output=True,
            text=True,
            env=self.environ(keys),
            cwd=cwd or self.folder,
            input=stdin,
            timeout=seconds,
            check=False,
        )

    def client(self, script: str, *words: str, keys: Keys | None = None, **more: str) -> Any:
        """What a script beside this file prints as its last line, run with the client's interpreter."""
        command = [str(client_python("backendai")), str(HERE / "clients" / script), *words]
        environ = {**self.environ(keys), **more}
        with tempfile.TemporaryDirectory(prefix="moorage-backendai-client-") as folder:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environ, cwd=folder, timeout=240, check=False
            )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def installation(everything: Installed) -> Installation:
    made = Installation(everything.folder, everything.told)
    return Installation(everything.folder, everything.told, made.signing(made.access_key))
