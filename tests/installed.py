"""`moorage up` in a folder of its own, for as long as a test needs it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.installation import MOORAGE


@dataclass(frozen=True)
class Installed:
    folder: Path
    told: dict[str, Any]  #: by `up --json`

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def endpoint(self) -> str:
        return str(self.told["endpoint"])

    @property
    def access_key(self) -> str:
        return str(self.told["access_key"])

    @property
    def secret_key(self) -> str:
        return str(self.told["secret_key"])

    @property
    def key(self) -> str:
        return f"{self.access_key}.{self.secret_key}"

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The `moorage` command, as this installation's administrator."""
        environ = {**os.environ, "MOORAGE_CONFIG": str(self.config)}
        return subprocess.run([MOORAGE, *words], capture_output=True, text=True, env=environ, check=False, **options)


@contextmanager
def installed(
    engine_host: str, *, fronts: Sequence[str] = (), environ: dict[str, str] | None = None
) -> Iterator[Installed]:
    """The test fails when it does not come up. What runs on it at the end goes with it."""
    with tempfile.TemporaryDirectory(prefix="moorage-installed-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        around = {
            **os.environ,
            "MOORAGE_CONFIG": str(folder / "config.toml"),
            "DOCKER_HOST": engine_host,
            **(environ or {}),
        }
        words = ["--data-dir", str(folder / "data")]
        up = [MOORAGE, "up", *words, "--port", "0", "--detach", "--json", "--cpu", "64"]
        for front in fronts:
            up += ["--front", front]
        done = subprocess.run(up, capture_output=True, text=True, env=around, check=False)
        if done.returncode != 0:
            log = folder / "data" / "log" / "moorage.log"
            pytest.fail(f"moorage up: {done.stderr}\n{log.read_text()[-4000:] if log.exists() else ''}")
        try:
            yield Installed(folder, json.loads(done.stdout))
        finally:
            subprocess.run([MOORAGE, "down", *words], capture_output=True, env=around, check=True)
