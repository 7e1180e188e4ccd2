"""A runner where it lives: PID 1 of a hardened container."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import sysconfig
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from agent.rings import RingReader
from agent.runner_link import RunnerConfig, RunnerLink, prepare_link
from agent.runtime import LINK_IN_CONTAINER, RUNTIME_IN_CONTAINER, command, ensure_runtime

from .conftest import Kernel

DATA = Path(tempfile.mkdtemp(prefix="runner-tests-", dir="/var/tmp"))
atexit.register(shutil.rmtree, DATA, ignore_errors=True)
PACKAGES = sysconfig.get_path("purelib")
ENVIRON = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "/packages"}


@contextlib.asynccontextmanager
async def container(
    engine: docker.DockerClient,
    image: str,
    folder: Path,
    config: RunnerConfig | None = None,
    *,
    more: dict[str, dict[str, str]] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Kernel, Container]]:
    """A started container and its runner; removed at the end. `more`: of the host's folders, as the engine has them."""
    runtime = await asyncio.to_thread(ensure_runtime, DATA)
    link_dir, work = folder / "link", folder / "work"
    work.mkdir(exist_ok=True)
    os.chown(work, 1000, 1000)
    ready = prepare_link(link_dir, config or RunnerConfig(environ=ENVIRON))
    host: dict[str, Any] = {
        "user": "1000:1000",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "network_mode": "none",
        "tmpfs": {"/tmp": "size=64m,mode=1777"},
        "mem_limit": "256m",
        "memswap_limit": "256m",
        "pids_limit": 64,
        "entrypoint": command(runtime),
        "name": f"moorage-runner-test-{uuid.uuid4().hex[:12]}",
        "volumes": {
            str(runtime): {"bind": RUNTIME_IN_CONTAINER, "mode": "ro"},
            str(link_dir): {"bind": LINK_IN_CONTAINER, "mode": "rw"},
            str(work): {"bind": "/home/work", "mode": "rw"},
            PACKAGES: {"bind": "/packages", "mode": "ro"},
            **(more or {}),
        },
        **options,
    }
    made = await asyncio.to_thread(engine.containers.create, image, [], **host)
    try:
        await asyncio.to_thread(made.start)
        try:
            await ready.wait(20)
        except BaseException:
            print(made.logs().decode())
            raise
        await asyncio.to_thread(made.reload)
        pid = made.attrs["State"]["Pid"]
        link = await RunnerLink.connect(link_dir, folder / "private", pid)
        reader = RingReader(link_dir)
        try:
            yield Kernel(link, link_dir, work, pid, reader), made
        finally:
            reader.close()
            await link.close()
    finally:
        ready.close()
        await asyncio.to_thread(made.remove, force=True)
