"""A real agent under test: the hub in this process, the daemon in one of its own, containers on a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agent import pki
from agent.client import AgentClient
from agent.hub import AgentHub
from agent.join import join
from agent.wire import AgentHello, DeviceCheck, DeviceList, Fact, RunDone, Sample, ServiceFact
from domain.errors import DatabaseUnavailable, Unauthenticated
from domain.ids import AgentId

ROOT = Path(__file__).resolve().parents[2]


class Heard:
    """A manager's ears, without a database: the newest fact of each kernel, every run's end, and who may connect."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.secrets: set[str] = set()
        self.facts: dict[str, Fact] = {}
        self.history: list[Fact] = []
        self.runs: dict[str, list[RunDone]] = {}
        self.hellos: list[AgentHello] = []
        self.services: list[ServiceFact] = []
        self.devices: list[DeviceList] = []
        self.checks: list[DeviceCheck] = []
        self.deaf = False  #: as without its database: nothing is acknowledged
        self.hubs: list[AgentHub] = []
        self._changed = asyncio.Condition()

    async def until(self, true: Callable[[], bool], seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(true)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -- agent.hub.Callbacks -----------------------------------------------------------------------------------------
    async def is_known(self, agent_id: AgentId, fingerprint: str) -> bool:
        return self.known.get(agent_id) == fingerprint

    async def trusted(self, shown: Sequence[tuple[AgentId, str]]) -> Sequence[tuple[AgentId, str]]:
        return shown

    async def renewing(self, agent_id: AgentId, fingerprint: str) -> None: ...

    async def refused(self, agent_id: AgentId, action: str, target: str) -> None: ...

    async def enrol(self, secret: str, agent_id: AgentId, fingerprint: str) -> None:
        if secret not in self.secrets:
            raise Unauthenticated
        self.secrets.discard(secret)
        self.known[agent_id] = fingerprint

    async def managers(self) -> list[dict[str, Any]]:
        return [{"id": str(hub.manager_id), "role": "control", "url": hub.url} for hub in self.hubs]

    async def on_hello(self, said: AgentHello) -> None:
        self.hellos.append(said)
        await self.on_facts(AgentId(said.agent_id), [Fact.unpack(fact) for fact in said.facts])

    async def on_heartbeat(self, agent_id: AgentId) -> None:
        pass

    async def on_facts(self, agent_id: AgentId, facts: Sequence[Fact]) -> None:
        if self.deaf:
            raise DatabaseUnavailable
        await self.take(facts)

    async def take(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            before = self.facts.get(fact.kernel_id)
            if before is None or (before.boot_no, before.seq) < (fact.boot_no, fact.seq):
                self.facts[fact.kernel_id] = fact
                self.history.append(fact)
        await self._tell()

    async def on_runs_done(self, agent_id: AgentId, runs: Sequence[RunDone]) -> None:
        if self.deaf:
            raise DatabaseUnavailable
        for run in runs:
            self.runs.setdefault(run.run_id, []).append(run)
        await self._tell()

    async def on_progress(self, agent_id: AgentId, said: dict[str, Any]) -> None:
        pass

    async def credentials(self, agent_id: AgentId, kernel_id: str, image: str) -> dict[str, str] | None:
        return None

    async def on_samples(self, agent_id: AgentId, samples: Sequence[Sample]) -> None:
        pass

    async def on_services(self, agent_id: AgentId, facts: Sequence[ServiceFact]) -> None:
        if self.deaf:
            raise DatabaseUnavailable
        self.services += facts
        await self._tell()

    async def on_devices(self, agent_id: AgentId, said: DeviceList) -> None:
        if self.deaf:
            raise DatabaseUnavailable
        self.devices.append(said)
        await self._tell()

    async def on_device_checks(self, agent_id: AgentId, checks: Sequence[DeviceCheck]) -> None:
        if self.deaf:
            raise DatabaseUnavailable
        self.checks += checks
        await self._tell()


class RealBed:
    """`open` and `close`. Everything of it has a name of its own, so that beds do not meet."""

    agent_id = AgentId("bed")

    def __init__(self, engine_host: str, image: str) -> None:
        self.image = image
        self.engine_host = engine_host
        self.network = f"moorage-t{uuid4().hex[:6]}"
        self.folder = Path(tempfile.mkdtemp(prefix="moorage-bed-", dir="/var/tmp"))
        self.data_dir = self.folder / "agent"
        self.heard = Heard()
        self.hub: AgentHub
        self.process: asyncio.subprocess.Process | None = None

    @property
    def agent(self) -> AgentClient:
        return self.hub

    async def open(self, **settings: Any) -> None:
        authority = self.folder / "pki"
        pki.ensure_authority(authority)
        self.hub = AgentHub(
            uuid4(),
            "control",
            tls=pki.server_context(authority),
            ca_dir=authority,
            host="127.0.0.1",
            port=0,
            callbacks=self.heard,
        )
        await self.hub.start()
        self.heard.hubs.append(self.hub)
        self.heard.secrets.add("secret")
        token = pki.join_token(self.hub.url, (authority / "ca.pem").read_bytes(), "secret")
        chosen = {"cpu": 64.0, "mem": "64g", "network": self.network, "engine": self.engine_host, **settings}
        await join(token, self.data_dir, self.agent_id, **chosen)
        await self.start()

    async def start(self) -> None:
        command = [sys.executable, "-m", "agent", "--data-dir", str(self.data_dir)]
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        await self.connected()

    async def connected(self) -> None:
        async with asyncio.timeout(60):
            while not self.hub.is_connected(self.agent_id):
                await self.hub.wait_until_connected([self.agent_id], 1.0)
                if self.process is not None and self.process.returncode is not None:
                    raise AssertionError(f"the agent has ended:\n{self.log()}")

    async def kill(self) -> None:
        """kill -9, and wait until the hub has noticed."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        async with asyncio.timeout(30):
            while self.hub.is_connected(self.agent_id):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        try:
            if self.process is not None and self.process.returncode is None:
                self.process.terminate()
                async with asyncio.timeout(20):
                    await self.process.wait()
            await self.hub.close()
        finally:
            await asyncio.to_thread(self._clean)

    def _clean(self) -> None:
        import docker

        client = docker.DockerClient(base_url=self.engine_host, timeout=60)
        try:
            for container in client.containers.list(all=True, filters={"network": self.network}):
                container.remove(force=True)
            for network in client.networks.list(names=[self.network]):
                network.remove()
        finally:
            client.close()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def log(self) -> str:
        return (self.folder / "log").read_text()[-8000:]

    # -- tests.agent.contract.Bed ------------------------------------------------------------------------------------
    async def answered(self, fact: Fact) -> None:
        await self.heard.take([fact])

    async def fact(self, kernel_id: UUID, *states: str, attempt: int = 1) -> Fact:
        def there() -> bool:
            fact = self.heard.facts.get(str(kernel_id))
            return fact is not None and fact.attempt == attempt and fact.observed in states

        try:
            await self.heard.until(there)
        except TimeoutError:
            raise AssertionError(f"{self.heard.facts.get(str(kernel_id))} is not {states}:\n{self.log()}") from None
        return self.heard.facts[str(kernel_id)]

    def will_ask(self, prompt: str) -> None:
        """It will by itself."""

    def will_sleep(self) -> None:
        """It will by itself."""
