"""More managers beside the one of an installation: processes of their own on the same database, with the same authority."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.installation import MOORAGE


@dataclass
class Manager:
    """Made by `managers`."""

    data_dir: Path
    port: int
    words: tuple[str, ...]
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.data_dir / "manager.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [MOORAGE, "manager", "--data-dir", str(self.data_dir), "--port", str(self.port), *self.words]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environ),
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    async def ready(self, seconds: float = 90.0) -> float:
        """Seconds until it is."""
        began = time.monotonic()
        while not await asyncio.to_thread(self.is_ready):
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() - began > seconds:
                raise TimeoutError(f"the manager is not ready: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    async def restart(self) -> None:
        """As systemd does it: SIGTERM to the main process, wait for its end, start."""
        assert self.process is not None
        self.process.terminate()
        await asyncio.to_thread(self.process.wait)
        self.start()
        await self.ready()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def managers(
    count: int, folder: Path, of: Path, dsn: str, *words: str, environ: Mapping[str, str] | None = None
) -> Iterator[list[Manager]]:
    """Started, not yet ready. `of` is the data dir of the installation whose authority they share."""
    made = []
    try:
        for number in range(count):
            data_dir = folder / f"manager-{number}"
            data_dir.mkdir(mode=0o700, parents=True)
            shutil.copytree(of / "pki", data_dir / "pki")
            manager = Manager(data_dir, free_port(), ("--database-url", dsn, *words), environ or os.environ)
            manager.start()
            made.append(manager)
        yield made
    finally:
        for manager in made:
            if manager.process is not None and manager.process.poll() is None:
                manager.signal(signal.SIGCONT)
                manager.signal(signal.SIGKILL)
                manager.process.wait()
