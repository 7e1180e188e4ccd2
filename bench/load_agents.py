"""Many agents in one process, as managers see them: certificates, links, heartbeats, intents and facts are real; containers are not.

Told on its standard input: `{"agents": [[id, join token], ...], "cpu": milli, "mem": MiB}`; says `ready` when all have joined.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop

from agent import pki, wire
from agent.intent import Intent, Step, Stored, decide
from agent.join import join
from agent.link import Links
from agent.wire import AgentHello, Fact
from bench.agent_link import Silent
from domain.session import KernelState, Want


@dataclass
class Kernel:
    intent: Intent
    observed: KernelState
    seq: int
    told: int = 0


@dataclass
class Host(Silent):
    """Tells of its kernels only. A kernel runs, or is gone, the moment that it is asked for."""

    agent_id: str
    cpu: int
    mem: int
    uid: str = field(default_factory=lambda: uuid4().hex)
    seq: int = 0
    kernels: dict[str, Kernel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    async def ensure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        key = str(arguments["kernel_id"])
        known = self.kernels.get(key)
        asked = Intent(int(arguments["attempt"]), int(arguments["generation"]), Want(arguments["want"]))
        step = decide(Stored(known.intent, known.observed) if known else None, asked)
        if step not in (Step.STALE, Step.SAME):
            self.seq += 1
            observed = KernelState.RUNNING if asked.want is Want.RUN else KernelState.GONE
            known = self.kernels[key] = Kernel(asked, observed, self.seq)
        assert known is not None
        known.told = known.seq  # its answer tells it; should that be lost, it is asked again
        fact = self._fact(key, known).pack()
        if known.observed is KernelState.GONE:
            asyncio.get_running_loop().call_later(60.0, self._forget, key, known)
        return fact

    def _forget(self, key: str, kernel: Kernel) -> None:
        if self.kernels.get(key) is kernel:
            del self.kernels[key]

    def _fact(self, key: str, kernel: Kernel) -> Fact:
        return Fact(
            kernel_id=key, attempt=kernel.intent.attempt, generation=kernel.intent.generation, observed=kernel.observed,
            boot_no=1, seq=kernel.seq,
        )  # fmt: skip

    async def ping(self, _arguments: dict[str, Any]) -> None: ...

    async def hello(self) -> AgentHello:
        return AgentHello(
            agent_id=self.agent_id, uid=self.uid, boot_no=1, version="load", hostname=self.agent_id,
            architecture="x86_64", resources={"cpu": self.cpu, "mem": self.mem}, images=["load"],
            facts=[fact.pack() for fact in self.inventory()],
        )  # fmt: skip

    def inventory(self) -> Sequence[Fact]:
        return [self._fact(key, one) for key, one in self.kernels.items() if one.observed is not KernelState.GONE]

    def pending_facts(self) -> Sequence[Fact]:
        return [self._fact(key, one) for key, one in self.kernels.items() if one.told < one.seq]

    def facts_acknowledged(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if (kernel := self.kernels.get(fact.kernel_id)) is not None:
                kernel.told = max(kernel.told, fact.seq)


async def serve(told: dict[str, Any], folder: Path) -> None:
    async with asyncio.TaskGroup() as group:
        for name, token in told["agents"]:
            config = await join(token, folder / name, name)
            host = Host(name, told["cpu"], told["mem"])
            handlers = {wire.ENSURE: host.ensure, wire.PING: host.ping}
            tls = pki.client_context(config.data_dir / "pki")
            group.create_task(Links(config.known_managers(), tls, host, handlers).run())
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started us ends
        raise SystemExit


def main() -> None:
    told = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="moorage-load-") as folder:
        uvloop.run(serve(told, Path(folder)))


if __name__ == "__main__":
    main()
