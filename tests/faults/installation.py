"""A real installation to do harm to: `moorage up` in a folder of its own, its processes by name, and whether it is well.

    with Installation.up(folder) as installation:
        async with installation.client() as client:             # patient: retries for two minutes
            ...                                                 # workload.py has a driver with a model
            pid = installation.pids()["control"]                # api, control, proxy, ssh, manager, agent, up
            killed = installation.kill("control")
            await installation.recovered(killed)                # seconds until it is ready again
            assert await installation.check(client) == []       # fsck, and what can be seen from outside

Crash points: `installation.arm("control.facts.commit.before")`, drive, `await installation.fired()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from moorage import aio

from bench.installation import MOORAGE
from domain import crash
from tests.faults.outside import Outside

#: The roles of the manager, as the processes call themselves.
ROLES = ("api", "control", "proxy", "ssh")
PROCESSES = frozenset({*ROLES, "manager", "agent", "up"})


@dataclass(frozen=True, slots=True)
class Killed:
    """A process's death, by a crash point that it has passed or by a signal."""

    process: str
    pid: int
    at: float  #: of time.monotonic()
    name: str = ""  #: of the crash point


@dataclass
class Installation:
    """Made by `up`."""

    folder: Path
    endpoint: str
    access_key: str
    secret_key: str
    environ: Mapping[str, str]
    seen_fired: int = 0
    outside: Outside = field(init=False)

    def __post_init__(self) -> None:
        self.outside = Outside(self.data_dir, self.environ["DOCKER_HOST"])

    # -- its life ----------------------------------------------------------------------------------------------------
    @classmethod
    @contextmanager
    def up(cls, folder: Path, *words: str, environ: Mapping[str, str] | None = None) -> Iterator[Installation]:
        """With `words` for `moorage up`. All sessions, containers and processes are gone at the end."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "crash").mkdir(parents=True)
        given = {"MOORAGE_CONFIG": str(folder / "config.toml"), crash.DIR: str(folder / "crash")}
        whole = {**os.environ, **given, **(environ or {})}
        up = [MOORAGE, "up", "--data-dir", str(folder / "data"), "--port", "0", "--detach", "--json", "--cpu", "64"]
        done = subprocess.run([*up, *words], stdout=subprocess.PIPE, text=True, env=whole, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"moorage up failed; see {folder}/data/log/moorage.log")
        said = json.loads(done.stdout)
        made = cls(folder, said["endpoint"], said["access_key"], said["secret_key"], whole)
        try:
            yield made
        finally:
            made.run("down", "--data-dir", str(made.data_dir))
            made.outside.remove_all()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The `moorage` command, as the administrator."""
        return subprocess.run([MOORAGE, *words], capture_output=True, text=True, env=dict(self.environ), check=False)

    def client(self, *, retry_for: float = 120.0) -> aio.Client:
        return aio.Client(self.endpoint, self.access_key, self.secret_key, retry_for=retry_for, timeout=30.0)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.data_dir / "log" / "moorage.log"

    @property
    def dsn(self) -> str:
        """Of its PostgreSQL."""
        from manager.postgres import EmbeddedPostgres

        return EmbeddedPostgres(self.data_dir / "postgres").dsn

    # -- its processes -----------------------------------------------------------------------------------------------
    def pids(self) -> dict[str, int]:
        """`up`, `manager` (the roles' supervisor), `api`, `control`, `proxy`, `ssh`, `agent`: those that are alive."""
        found: dict[str, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            if not any(word == str(self.data_dir) or word == str(self.data_dir / "agent") for word in words):
                continue
            daemon = next((daemon for daemon in ("up", "manager", "agent") if daemon in words), None)
            role = name.removeprefix("moorage-")
            if role in ROLES:
                found[role] = int(process.name)
            elif daemon is not None:
                found[daemon] = int(process.name)
        return found

    def kill(self, process: str, number: signal.Signals = signal.SIGKILL) -> Killed:
        pid = self.pids()[process]
        os.kill(pid, number)
        return Killed(process, pid, time.monotonic())

    async def recovered(self, killed: Killed, *, seconds: float = 60.0) -> float:
        """Seconds from the death until its successor works: the API answers, the agent has said hello again."""
        since = datetime.now(UTC) - timedelta(seconds=time.monotonic() - killed.at)
        while time.monotonic() - killed.at < seconds:
            pids = self.pids()
            if pids.keys() >= PROCESSES and pids[killed.process] != killed.pid:
                seen = await asyncio.to_thread(self._agent_seen)
                if seen is not None and (seen > since or killed.process not in ("agent", "control", "manager", "up")):
                    return time.monotonic() - killed.at
            await asyncio.sleep(0.02)
        raise TimeoutError(
            f"not ready {seconds:g} s after the death of {killed.process}: {sorted(self.pids())} are there"
        )

    def _agent_seen(self) -> datetime | None:
        """When the agent was last heard of; None while the API is not ready."""
        bearer = {"Authorization": f"Bearer {self.access_key}.{self.secret_key}"}
        try:
            with urllib.request.urlopen(f"{self.endpoint}/readyz", timeout=5):
                pass
            request = urllib.request.Request(f"{self.endpoint}/v1/agents", headers=bearer)
            with urllib.request.urlopen(request, timeout=5) as answer:
                seen = [one["last_seen_at"] for one in json.load(answer)["items"] if not one["lost"]]
        except (OSError, ValueError):
            return None
        return max(map(datetime.fromisoformat, seen), default=None)

    # -- crash points ------------------------------------------------------------------------------------------------
    def arm(self, name: str, hit: int = 1) -> None:
        """Whoever passes this point for the `hit`th time from now on is killed."""
        fresh = self.folder / "crash" / "fresh"
        fresh.write_text(f"{name}:{hit}")
        fresh.rename(self.folder / "crash" / "armed")

    def disarm(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "crash" / "armed").unlink()

    def last_fired(self) -> Killed | None:
        """The newest death that was not asked for before."""
        try:
            lines = (self.folder / "crash" / "fired").read_text().splitlines()
        except FileNotFoundError:
            return None
        if len(lines) <= self.seen_fired:
            return None
        self.seen_fired = len(lines)
        name, process, pid, at = lines[-1].split()
        return Killed(process, int(pid), float(at), name)

    async def fired(self, *, seconds: float = 30.0) -> Killed | None:
        """The armed point's death; None when it was not reached within so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (fired := self.last_fired()) is not None:
                return fired
            await asyncio.sleep(0.005)
        return None

    def reached(self) -> Counter[str]:
        """How often each point was passed, by all processes."""
        counted: Counter[str] = Counter()
        for file in (self.folder / "crash").glob("reached.*"):
            with file.open() as lines:
                counted.update(line.rstrip("\n") for line in lines)
        return counted

    # -- whether all is well -----------------------------------------------------------------------------------------
    async def check(self, client: aio.Client, *, outside: bool = True, hosts: bool = True) -> list[str]:
        """What is wrong, as fsck finds it and (`outside`) as it shows from outside. Empty when all is well."""
        report = await client.fsck(hosts=hosts)
        found = [f"{one.invariant} {one.check}: {one.subject}: {one.detail}" for one in report.findings]
        found += [f"I9 {host} was not reached by fsck" for host in report.not_reached]
        if outside:
            sessions = [session.info async for session in client.sessions.iterate()]
            kernels = {kernel.id for session in sessions for kernel in session.kernels}
            found += await asyncio.to_thread(self.outside.compare, kernels, {session.id for session in sessions})
        return found
