"""One installation over two hosts, each with an engine of its own in a network namespace; torch where it can be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import docker
import moorage
import pytest

from bench.installation import MOORAGE
from tests.clusters.hosts import CannotMakeHosts, Host, Hosts, quiet

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
        shutil.rmtree(folder, ignore_errors=True)


class Fleet:
    """A manager of this machine's network, and an agent on each host."""

    def __init__(self, hosts: Hosts, engine_host: str, mounts: dict[Path, str]) -> None:
        self.hosts = hosts
        self.data_dir = hosts.folder / "data"
        self.environ = {
            **os.environ,
            "MOORAGE_CONFIG": str(hosts.folder / "config.toml"),
            "DOCKER_HOST": engine_host,
        }
        self._mounts = mounts
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self.client: moorage.Client

    def moorage(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """The command, as the administrator types it."""
        return quiet([MOORAGE, *words], env=self.environ, **options)

    def up(self) -> None:
        self.data_dir.mkdir(mode=0o700)
        (self.data_dir / "manager.toml").write_text(f'agent_host = "{self.hosts.address}"\n')
        done = self.moorage(
            "up", "--data-dir", str(self.data_dir), "--port", "0", "--detach", "--json", "--cpu", "0.01"
        )
        log = self.data_dir / "log/moorage.log"
        assert done.returncode == 0, done.stderr + (log.read_text()[-3000:] if log.exists() else "")
        self.client = moorage.Client(config=self.environ["MOORAGE_CONFIG"])
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._join, self.hosts.hosts, count(1)))
        self.hosts.wait_for_images()
        self._wait_for_agents(len(self.hosts.hosts) + 1)

    def _wait_for_agents(self, number: int, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while sum(agent.last_seen_at is not None for agent in self.client.agents.list()) < number:
            if time.monotonic() > deadline:
                logs = [(host.folder / "agent.log").read_text()[-1000:] for host in self.hosts.hosts]
                pytest.fail("the agents do not come up:\n" + "\n".join(logs))
            time.sleep(0.05)  # processes outside this one have no event to wait for

    def _join(self, host: Host, number: int) -> None:
        """The first has 4 CPUs, the second 8."""
        token = json.loads(self.moorage("admin", "agent", "token", "--json").stdout)["token"]
        folder = host.folder / "agent"
        # what it would make anew from this machine's Python, in some seconds
        shutil.copytree(self.data_dir / "agent/runtime", folder / "runtime", copy_function=os.link, symlinks=True)
        options = [
            "--data-dir",
            str(folder),
            "--name",
            f"host-{number}",
            "--cpu",
            str(4 * number),
            "--mem",
            "8g",
            "--engine",
            host.engine,
        ]
        done = quiet(host.inside(MOORAGE, "agent", "join", "-", *options), input=token)
        assert done.returncode == 0, done.stderr
        with (folder / "agent.toml").open("a") as config:
            for source, target in self._mounts.items():
                config.write(f'\n[[mounts]]\nsource = "{source}"\ntarget = "{target}"\n')
        self.start_agent(host)

    def start_agent(self, host: Host) -> None:
        self._agents[host.name] = host.start("agent", MOORAGE, "agent", "--data-dir", str(host.folder / "agent"))

    def kill_agent(self, host: Host) -> None:
        self._agents[host.name].kill()
        self._agents[host.name].wait()

    def down(self) -> None:
        for agent in self._agents.values():
            agent.terminate()
            agent.wait()
        if hasattr(self, "client"):
            self.client.close()
        self.moorage("down", "--data-dir", str(self.data_dir))


@pytest.fixture(scope="session")
def torch_folder() -> Path | NoTorch:
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
def fleet(hosts: Hosts, engine_host: str, torch_folder: Path | NoTorch) -> Iterator[Fleet]:
    made = Fleet(hosts, engine_host, {torch_folder: TORCH_IN_CONTAINER} if isinstance(torch_folder, Path) else {})
    try:
        made.up()
        yield made
    finally:
        made.down()
