"""One more process of the gRPC front beside an installation, set as a test or a benchmark needs it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.installation import MOORAGE


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def front_process(data_dir: Path, **settings: str | int) -> Iterator[int]:
    """Its port. `settings` are those of manager.toml."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="moorage-grpc-front-") as name:
        folder = Path(name)
        (folder / "pki").symlink_to(data_dir / "pki")
        shutil.copy(data_dir / "admin.json", folder)
        settings |= {"grpc_port": port, "fronts": "grpc"}
        kept = [
            line
            for line in (data_dir / "manager.toml").read_text().splitlines()
            if line.partition(" = ")[0] not in settings
        ]
        added = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        (folder / "manager.toml").write_text("\n".join([*kept, *added, ""]))
        command = [MOORAGE, "manager", "--data-dir", str(folder), "--role", "grpc"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                _wait(process, "without a credential" if "grpc_users" in settings else "front listens")
                yield port
            finally:
                process.terminate()
                process.stderr.close()


def _wait(process: subprocess.Popen[str], ready: str) -> None:
    told = []
    assert process.stderr is not None
    for line in process.stderr:
        told.append(line)
        if ready in line:
            return
    raise RuntimeError("".join(told))
