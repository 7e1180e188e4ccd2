"""One installation over two hosts, each with an engine of its own in a network namespace; torch where it can be had."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import httpx
import moorage
import pytest

from agent.join import join
from agent.runtime import ensure_runtime
from bench.installation import MOORAGE
from manager.bootstrap import Credentials, bootstrap, new_join_token
from manager.config import ManagerConfig
from tests.clusters.hosts import CannotMakeHosts, Host, Hosts, quiet
from tests.database import Server

ROOT = Path(__file__).resolve().parent.parent.parent
TORCH_IN_CONTAINER = "/opt/torch"


class NoTorch(Exception):
    """The message says why."""


def install_torch() -> Path:
    """torch for CPUs, installed once beside everything else that tests keep; into the containers it is mounted."""
    needs = [ROOT / "requirements/torch-needs.txt", ROOT / "requirements/torch.txt"]
    pinned = "".join(path.read_text() for path in needs)
    folder = ROOT / "var/torch"
    if (stamp := folder / "pinned").exists() and stamp.read_text() == pinned:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    for path in needs:
        words = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--require-hashes"]
        done = quiet([sys.executable, "-m", "pip", "install", *words, "--target", str(folder), "-r", str(path)])
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            shutil.rmtree(folder, ignore_errors=True)
            raise NoTorch(f"torch for CPUs cannot be installed here: {said[0]}")
    stamp.write_text(pinned)
    return folder


@pytest.fixture(scope="session")
def hosts(engine: docker.DockerClient, kernel_image: str) -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="moorage-hosts-", dir="/var/tmp"))
    made = Hosts(folder)
    try:
        made.open()
        with made.image.open("wb") as file:
            for chunk in engine.images.get(kernel_image).save(named=True):
                file.write(chunk)
        made.start_loading()
        yield made
    except CannotMakeHosts as reason:
        pytest.skip(str(reason))
    finally:
        made.close()
        # nobody waits for the engines' images to be deleted
        subprocess.run(["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', str(folder)], check=False)


class Fleet:
    """A manager of this machine's network, and an agent on each host."""

    def __init__(self, hosts: Hosts, dsn: str, image: str, mounts: Mapping[Path, str]) -> None:
        self.hosts = hosts
        self.config = ManagerConfig(
            data_dir=hosts.folder / "data",
            database_url=dsn,
            agent_host=hosts.address,
            port=_free_port(),
            agent_api_port=_free_port(),
            agent_control_port=_free_port(),
            proxy_port=_free_port(),
        )
        self._image = image
        self._mounts = mounts
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> None:
        self.config.save()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(bootstrap(self.config, image=self._image, now=datetime.now(UTC)))
        self.start_manager()
        ensure_runtime(self.hosts.hosts[0].folder / "agent")
        self._wait_for_manager()
        for number, host in enumerate(self.hosts.hosts, 1):
            loop.run_until_complete(self._join(host, number))
            self.start_agent(host)
        loop.close()
        keys = Credentials.load(self.config.data_dir)
        self.environ = {
            **os.environ,
            "MOORAGE_ENDPOINT": self.config.endpoint,
            "MOORAGE_ACCESS_KEY": keys.access_key,
            "MOORAGE_SECRET_KEY": keys.secret_key,
        }
        self.client = moorage.Client(
            endpoint=self.config.endpoint, access_key=keys.access_key, secret_key=keys.secret_key
        )
        self.hosts.wait_for_images()
        self._wait_for_agents(len(self.hosts.hosts))

    async def _join(self, host: Host, number: int) -> None:
        """The first has 4 CPUs, the second 8."""
        token = await new_join_token(self.config, expires_at=datetime.now(UTC) + timedelta(minutes=5))
        folder = host.folder / "agent"
        if number > 1:  # what it would make anew from this machine's Python, in some seconds
            first = self.hosts.hosts[0].folder / "agent/runtime"
            shutil.copytree(first, folder / "runtime", copy_function=os.link, symlinks=True)
        mounts = tuple(self._mounts.items())
        await join(token, folder, f"host-{number}", cpu=4.0 * number, mem="8g", engine=host.engine, mounts=mounts)

    def _wait_for_manager(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"{self.config.endpoint}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline or self._daemons["manager"].poll() is not None:
                pytest.fail(f"the manager does not come up: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)  # processes outside this one have no event to wait for

    def _wait_for_agents(self, number: int, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while sum(agent.last_seen_at is not None for agent in self.client.agents.list()) < number:
            if time.monotonic() > deadline:
                logs = [(host.folder / "agent.log").read_text()[-1000:] for host in self.hosts.hosts]
                pytest.fail("the agents do not come up:\n" + "\n".join(logs))
            time.sleep(0.05)

    def moorage(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """The command, as the administrator types it."""
        return quiet([MOORAGE, *words], env=self.environ, **options)

    @property
    def _log(self) -> Path:
        return self.hosts.folder / "manager.log"

    def start_manager(self) -> None:
        command = [MOORAGE, "manager", "--data-dir", str(self.config.data_dir)]
        with self._log.open("ab") as log:
            self._daemons["manager"] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_agent(self, host: Host) -> None:
        self._daemons[host.name] = host.start("agent", MOORAGE, "agent", "--data-dir", str(host.folder / "agent"))

    def kill_agent(self, host: Host) -> None:
        self._daemons[host.name].kill()
        self._daemons[host.name].wait()

    def down(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            daemon.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def torch_folder(kernel_image: str) -> Path | NoTorch:
    if not kernel_image.endswith(":3.11"):
        return NoTorch(f"torch is pinned for Python 3.11, and the kernel image here is {kernel_image}")
    try:
        return install_torch()
    except NoTorch as reason:
        return reason


@pytest.fixture
def torch(torch_folder: Path | NoTorch) -> None:
    """Its containers have torch under TORCH_IN_CONTAINER."""
    if isinstance(torch_folder, NoTorch):
        pytest.skip(str(torch_folder))


@pytest.fixture(scope="session")
def fleet(
    hosts: Hosts, postgres: Server, template: str, kernel_image: str, torch_folder: Path | NoTorch
) -> Iterator[Fleet]:
    mounts = {torch_folder: TORCH_IN_CONTAINER} if isinstance(torch_folder, Path) else {}
    made = Fleet(hosts, postgres.create(f"{postgres.name}_fleet", template), kernel_image, mounts)
    try:
        made.up()
        yield made
    finally:
        made.down()
