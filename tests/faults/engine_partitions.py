"""Hosts in networks of their own, cut off for real: both ways, one way, with loss; and agents that are stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker
import moorage

from images.build import ensure_image
from manager.postgres import EmbeddedPostgres
from repositories import migrate
from tests.clusters.conftest import Fleet
from tests.clusters.hosts import Host, Hosts
from tests.faults.book import Book

SMALL: Final[dict[str, Any]] = {"cpu": 0.2, "mem": "128m"}
LEASE: Final = 20.0
#: Leaves a line a second for as long as it runs, in a folder that both hosts have.
_WITNESS: Final = "import time, os\nwhile True:\n    print(time.time(), flush=True)\n    time.sleep(0.2)"
_ENDED: Final = ("TERMINATED", "ERROR", "CANCELLED")


@dataclass
class Country:
    """Two hosts and a manager; what is cut is the road between them."""

    fleet: Fleet
    hosts: Hosts
    book: Book
    number: int = 0

    @property
    def client(self) -> moorage.Client:
        return self.fleet.client

    def session(self, **settings: Any) -> moorage.Session:
        self.number += 1
        return self.client.sessions.create(f"cut-{self.number}", **{**SMALL, **settings})

    def host_of(self, session: moorage.Session) -> Host:
        return self.hosts.hosts[int(str(session.refresh().info.agent).removeprefix("host-")) - 1]

    # -- roads -----------------------------------------------------------------------------------------------------------
    @contextmanager
    def cut(self, host: Host, kind: str) -> Iterator[None]:
        rules = {
            "to the host": [["-A", "INPUT", "-i", "eth0", "-j", "DROP"]],
            "from the host": [["-A", "OUTPUT", "-o", "eth0", "-j", "DROP"]],
            "20 % loss": [
                ["-A", chain, *way, "-m", "statistic", "--mode", "random", "--probability", "0.2", "-j", "DROP"]
                for chain, way in (("INPUT", ["-i", "eth0"]), ("OUTPUT", ["-o", "eth0"]))
            ],
        }.get(kind)
        if rules is None:
            self._ip(host, "link", "set", "eth0", "down")
        for rule in rules or []:
            subprocess.run(host.inside("iptables", *rule), check=True)
        try:
            yield
        finally:
            if rules is None:
                self._ip(host, "link", "set", "eth0", "up")
            for rule in rules or []:
                subprocess.run(host.inside("iptables", "-D", *rule[1:]), check=True)

    def _ip(self, host: Host, *words: str) -> None:
        subprocess.run(host.inside("ip", *words), check=True)

    def wait_for(self, host: Host, *, lost: bool, seconds: float) -> None:
        """Until the manager knows."""
        name = f"host-{self.hosts.hosts.index(host) + 1}"
        until = time.monotonic() + seconds
        while self.client.agents.get(name).lost is not lost:
            if time.monotonic() > until:
                raise TimeoutError(f"{name} is {'not ' if lost else ''}lost after {seconds:g} s")
            time.sleep(0.1)

    def works(self, session: moorage.Session) -> bool:
        return session.run_code("print(6 * 7)", timeout=30).stdout == "42\n"

    def until_it_works(self, session: moorage.Session, seconds: float = 60.0) -> float:
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            try:
                if self.works(session):
                    return time.monotonic() - begun
            except moorage.MoorageError:
                time.sleep(0.1)
        raise TimeoutError(f"{session.name} does not answer {seconds:g} s after the road is open again")

    # -- stories ---------------------------------------------------------------------------------------------------------
    def short(self, kind: str, seconds: float) -> None:
        """The session goes on, and is there again soon after."""
        with self.session() as session:
            run = session.executions.start("import time\nfor i in range(10000): print(i, flush=True); time.sleep(0.05)")
            host = self.host_of(session)
            with self.cut(host, kind):
                time.sleep(seconds)
            healed = self.until_it_works_beside(session)
            self.book.took(f"partition healed ({kind})", healed)
            found = [] if session.refresh().status == "RUNNING" else [f"it is {session.status}"]
            said = "".join(record.text or "" for record in run.output(follow=False)).split("\n")[:-1]
            if said != [str(n) for n in range(len(said))] or len(said) < seconds * 10:
                found.append(f"I3 it counted to {said[-1:]}")
            self.wait_for(host, lost=False, seconds=30)
        self._judge(f"partition, {kind}, {seconds:g} s", found)

    def until_it_works_beside(self, session: moorage.Session) -> float:
        """By a call that needs its host, while something else runs there."""
        begun = time.monotonic()
        while time.monotonic() - begun < 60:
            try:
                session.files.list()
                return time.monotonic() - begun
            except moorage.MoorageError:
                time.sleep(0.05)
        raise TimeoutError("its host does not answer")

    def replaced(self, kind: str) -> None:
        """Ended there by itself, begun anew here; and on return one attempt survives."""
        session = self.session(on_agent_lost="replace", agent_lease=LEASE)
        host = self.host_of(session)
        pid = self._agent_pid(host)
        first = self._containers(host, session)
        run = session.executions.start(_WITNESS)
        begun, found = time.monotonic(), []
        ended_at = anew_at = 0.0
        if kind == "stopped":
            os.kill(pid, signal.SIGSTOP)
        with self.cut(host, kind) if kind != "stopped" else _nothing():
            while not anew_at and time.monotonic() - begun < 120:
                if not ended_at and not self._running(host, first):
                    ended_at = time.monotonic() - begun
                session.refresh()
                if session.info.attempt > 1 and session.status == "RUNNING":
                    anew_at = time.monotonic() - begun
                time.sleep(0.05)
            if not ended_at and not self._running(host, first):
                ended_at = time.monotonic() - begun
            if not ended_at or not anew_at or ended_at > anew_at:
                found.append(f"I3 ended there after {ended_at:.1f} s, begun anew after {anew_at:.1f} s")
            if not self.works(session):
                found.append("the second attempt does not work")
        if kind == "stopped":
            os.kill(pid, signal.SIGCONT)
        back = time.monotonic()
        self.wait_for(host, lost=False, seconds=60)
        self.book.took("lost host: its session has ended there", ended_at)
        self.book.took("lost host: its session runs elsewhere", anew_at)
        while self._containers(host, session) and self.host_of(session) is not host:
            if time.monotonic() - back > 30:
                found.append("I2 what it had is still there")
                break
            time.sleep(0.1)
        self.book.took("lost host is back: what it had is gone", time.monotonic() - back)
        if session.refresh().status != "RUNNING" or session.info.attempt != 2:
            found.append(f"it is {session.status}, attempt {session.info.attempt}")
        if (lost := run.info()).reason not in ("agent_lost", "worker_lost"):  # as is written here, or there
            found.append(f"I4 what ran ended as {lost.reason}")
        session.destroy(wait=60)
        self._judge(f"replaced, {kind}", found)

    def destroyed(self) -> None:
        """By its owner while its host is away."""
        session = self.session(on_agent_lost="keep")
        host = self.host_of(session)
        with self.cut(host, "both ways"):
            session.destroy(wait=False)
            session.destroy(forced=True, wait=10)
            found = [] if session.refresh().status == "TERMINATED" else [f"it is {session.status}"]
        back = time.monotonic()
        while self._containers(host, session):
            if time.monotonic() - back > 40:
                found.append("I2 its container is still there")
                break
            time.sleep(0.1)
        self.book.took("destroyed while its host was away: gone there after its return", time.monotonic() - back)
        self._judge("destroyed while its host is away", found)

    # -- pieces ------------------------------------------------------------------------------------------------------------
    def _agent_pid(self, host: Host) -> int:
        folder = str(host.folder / "agent").encode()
        for process in Path("/proc").glob("[0-9]*"):
            words = (process / "cmdline").read_bytes().split(b"\0") if (process / "cmdline").exists() else []
            if b"agent" in words and folder in words:
                return int(process.name)
        raise LookupError(host.name)

    def _containers(self, host: Host, session: moorage.Session) -> list[str]:
        client = docker.APIClient(base_url=host.engine, version="auto")
        try:
            return [one["Id"] for one in client.containers(filters={"label": f"moorage.session={session.id}"})]
        finally:
            client.close()

    def _running(self, host: Host, ids: list[str]) -> bool:
        client = docker.APIClient(base_url=host.engine, version="auto")
        try:
            return bool({one["Id"] for one in client.containers()} & set(ids))
        finally:
            client.close()

    def _judge(self, name: str, found: list[str]) -> None:
        report = self.client.fsck()
        found += [f"{one.invariant} {one.check}: {one.subject}: {one.detail}" for one in report.findings]
        self.book.fault(name, found)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def country(folder: Path, book: Book) -> Iterator[Country]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engine = docker.DockerClient(base_url=os.environ["DOCKER_HOST"], timeout=120)
    image = ensure_image(engine)
    postgres = EmbeddedPostgres(folder / "pg")
    hosts = Hosts(folder / "hosts")
    (folder / "hosts").mkdir()
    fleet: Fleet | None = None
    try:
        hosts.open()
        with hosts.image.open("wb") as file:
            for chunk in engine.images.get(image).save(named=True):
                file.write(chunk)
        hosts.start_loading()
        dsn = postgres.start()
        migrate.upgrade(dsn)
        fleet = Fleet(hosts, dsn, image, {})
        fleet.up()
        yield Country(fleet, hosts, book)
    finally:
        if fleet is not None:
            fleet.down()
        hosts.close()
        postgres.stop()
        engine.close()
        subprocess.run(["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', str(folder)], check=False)


def _all(folder: Path, book: Book, rounds: int) -> None:
    with country(folder, book) as here:
        for _ in range(rounds):
            for kind in ("both ways", "to the host", "from the host", "20 % loss"):
                here.short(kind, 6.0)
            here.short("both ways", 35.0)
            here.destroyed()
            for kind in ("both ways", "stopped", "to the host", "from the host"):
                here.replaced(kind)


async def partitions(folder: Path, book: Book, *, rounds: int = 1) -> None:
    await asyncio.to_thread(_all, folder, book, rounds)
