"""A whole installation for the benchmarks: `moorage up` in a folder of its own, gone at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MOORAGE = str(Path(sys.executable).parent / "moorage")


@dataclass(frozen=True)
class Installation:
    endpoint: str
    bearer: str
    data_dir: Path

    @property
    def host(self) -> str:
        return self.endpoint.removeprefix("http://").partition(":")[0]

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def processes(self, daemon: str) -> list[int]:
        return processes(daemon, self.data_dir)


def processes(daemon: str, data_dir: Path) -> list[int]:
    """Process ids of the `manager` or the `agent` of the installation with this data dir."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if daemon in words and "up" not in words and any(word.startswith(str(data_dir)) for word in words):
            found.append(int(process.name))
    return found


@contextmanager
def installation() -> Iterator[Installation]:
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
        os.environ["MOORAGE_CONFIG"] = f"{folder}/config.toml"
        data_dir = Path(folder) / "data"
        words = ["up", "--data-dir", str(data_dir), "--port", "0", "--detach", "--json", "--cpu", "64"]
        words += ["--front", "inference"]
        try:
            said = json.loads(subprocess.run([MOORAGE, *words], stdout=subprocess.PIPE, check=True).stdout)
            yield Installation(said["endpoint"], f"{said['access_key']}.{said['secret_key']}", data_dir)
        finally:
            subprocess.run([MOORAGE, "down", "--data-dir", str(data_dir)], stdout=subprocess.DEVNULL, check=False)
