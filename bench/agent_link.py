"""The connection between manager and agent alone: round trips, and bytes in bulk. `python -m bench.agent_link`.

The agent's end is a process of its own, over TLS on loopback. The references, in the same run: an echo of a byte over
a bare TCP connection of asyncio's, and `sendfile` into a blocking socket that another process reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import uvloop

from agent import pki, wire
from agent.client import FileStat, KernelAddress
from agent.hub import AgentHub
from agent.link import Links, open_channel
from agent.streams import Channel, chunks, send_file
from agent.wire import AgentHello, DeviceCheck, DeviceList, Fact, RunDone, RunRead, Sample, ServiceFact
from domain.ids import AgentId, KernelId, RunId

MIB: Final = 1 << 20
HOST: Final = AgentId("bench")
KERNEL: Final = KernelAddress(agent_id=HOST, kernel_id=KernelId(UUID(int=1)), attempt=1)
RUN: Final = RunId(UUID(int=2))


async def main(calls: int, mib: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-link-", dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "file").write_bytes(os.urandom(MIB) * mib)  # and so in the page cache
        await _references(folder / "file", calls)
        for kind, host in (("plain bulk", "127.0.0.1"), ("TLS bulk", "0.0.0.0")):
            async with _connected(folder, host) as hub:
                print(f"{kind}:")
                if kind == "plain bulk":
                    await _round_trips(hub, calls)
                await _bulk(hub, mib)


# -- the manager's end -------------------------------------------------------------------------------------------------
class Trusting:
    """The hub's callbacks, of a manager that believes everybody."""

    async def is_known(self, agent_id: AgentId, fingerprint: str) -> bool:
        return True

    async def trusted(self, shown: Sequence[tuple[AgentId, str]]) -> Sequence[tuple[AgentId, str]]:
        return shown

    async def renewing(self, agent_id: AgentId, fingerprint: str) -> None: ...

    async def refused(self, agent_id: AgentId, action: str, target: str) -> None: ...

    async def enrol(self, secret: str, agent_id: AgentId, fingerprint: str) -> None: ...

    async def managers(self) -> list[dict[str, Any]]:
        return []

    async def on_hello(self, said: AgentHello) -> None: ...
    async def on_heartbeat(self, agent_id: AgentId) -> None: ...
    async def on_facts(self, agent_id: AgentId, facts: Sequence[Fact]) -> None: ...
    async def on_runs_done(self, agent_id: AgentId, runs: Sequence[RunDone]) -> None: ...
    async def on_progress(self, agent_id: AgentId, said: dict[str, Any]) -> None: ...
    async def on_services(self, agent_id: AgentId, facts: Sequence[ServiceFact]) -> None: ...
    async def on_samples(self, agent_id: AgentId, samples: Sequence[Sample]) -> None: ...
    async def on_devices(self, agent_id: AgentId, said: DeviceList) -> None: ...
    async def on_device_checks(self, agent_id: AgentId, checks: Sequence[DeviceCheck]) -> None: ...
    async def credentials(self, agent_id: AgentId, kernel_id: str, image: str) -> dict[str, str] | None: ...


@contextlib.asynccontextmanager
async def _connected(folder: Path, host: str) -> AsyncIterator[AgentHub]:
    ca = folder / "ca"
    pki.ensure_authority(ca)
    certificate, _ = pki.sign_request(ca, pki.make_request(folder, HOST), HOST)
    pki.keep_certificate(folder, certificate)
    (folder / "ca.pem").write_bytes((ca / "ca.pem").read_bytes())
    hub = AgentHub(
        uuid4(),
        "api",
        tls=pki.server_context(ca),
        ca_dir=ca,
        host=host,
        port=0,
        callbacks=Trusting(),
        advertised_host="127.0.0.1",
    )
    await hub.start()
    same = [word for word in sys.argv[1:] if word == "--asyncio"]
    command = [sys.executable, "-m", "bench.agent_link", "--agent", hub.url, str(folder), *same]
    agent = await asyncio.create_subprocess_exec(*command)
    try:
        await hub.wait_until_connected({HOST}, 20)
        yield hub
    finally:
        agent.kill()
        await agent.wait()
        await hub.close()


async def _round_trips(hub: AgentHub, calls: int) -> None:
    async def execute() -> float:
        began = time.perf_counter()
        await hub.execute(
            KERNEL, RUN, mode="query", code="print(1)", opts={}, timeout_seconds=None, wait_seconds=1, max_bytes=65536
        )
        return (time.perf_counter() - began) * 1000

    _say("execute, one after the other, ms", [await execute() for _ in range(calls)])
    began = time.perf_counter()
    times: list[float] = []

    async def several(count: int) -> None:
        times.extend([await execute() for _ in range(count)])

    await asyncio.gather(*(several(calls // 32) for _ in range(32)))
    _say("execute, 32 at a time, ms", times)
    print(f"  {'':42} {len(times) / (time.perf_counter() - began):,.0f} a second")
    stop = asyncio.Event()

    async def flood() -> None:
        while not stop.is_set():
            await hub.read(KERNEL, "log", from_seq=0, max_bytes=MIB, wait_seconds=0)

    flooding = [asyncio.create_task(flood()) for _ in range(2)]
    _say("execute, beside two readers of 1 MiB, ms", [await execute() for _ in range(calls // 10)])
    stop.set()
    await asyncio.gather(*flooding)


async def _bulk(hub: AgentHub, mib: int) -> None:
    piece = os.urandom(MIB)

    async def body(pieces: int) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    times = []
    for _ in range(100):
        began = time.perf_counter()
        await hub.upload(KERNEL, "small", body(1), size=MIB)
        times.append((time.perf_counter() - began) * 1000)
    _say("upload of 1 MiB, ms", times)
    for turn in (1, 2):
        began = time.perf_counter()
        await hub.upload(KERNEL, "big", body(mib), size=mib * MIB)
        print(f"  {f'upload of {mib} MiB, MB/s, turn {turn}':42} {_rate(mib * MIB, began):,}")
        began, got = time.perf_counter(), 0
        async for chunk in await hub.download(KERNEL, "big"):
            got += len(chunk)
        print(f"  {f'download of {mib} MiB, MB/s, turn {turn}':42} {_rate(got, began):,}")


# -- the references ----------------------------------------------------------------------------------------------------
async def _references(path: Path, calls: int) -> None:
    print("references:")
    script = (
        "import socket\nwith socket.create_server(('127.0.0.1', 0)) as s:\n print(s.getsockname()[1], flush=True)\n"
        " c, _ = s.accept()\n while d := c.recv(1 << 20):\n  if len(d) == 1: c.sendall(d)\n"
    )
    with _reader(script) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            writer.write(b"x")
            await reader.readexactly(1)
            times.append((time.perf_counter() - began) * 1000)
        writer.close()
        await writer.wait_closed()
    _say("echo of a byte over bare TCP, ms", times)
    script = (
        "import socket\nwith socket.create_server(('127.0.0.1', 0)) as s:\n print(s.getsockname()[1], flush=True)\n"
        " c, _ = s.accept()\n b = bytearray(1 << 20)\n while c.recv_into(b): pass\n"
    )
    with _reader(script) as port, socket.create_connection(("127.0.0.1", port)) as sock, path.open("rb") as file:
        began = time.perf_counter()
        size = sock.sendfile(file)
        print(f"  {'sendfile between two processes, MB/s':42} {_rate(size, began):,}")


@contextlib.contextmanager
def _reader(script: str) -> Any:
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def _say(what: str, times: list[float]) -> None:
    ordered = sorted(times)
    p50, p95, p99 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.95, 0.99))
    print(f"  {what:42} p50 {p50:.3f}  p95 {p95:.3f}  p99 {p99:.3f}  mean {statistics.mean(times):.3f}")


def _rate(size: int, began: float) -> int:
    return round(size / (time.perf_counter() - began) / 1e6)


# -- the agent's end ---------------------------------------------------------------------------------------------------
class Silent:
    """An agent that has nothing to say of itself."""

    sample_seconds = 60.0

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.device_news = asyncio.Event()

    async def hello(self) -> AgentHello:
        return AgentHello(
            agent_id=HOST, uid="u", boot_no=1, version="0", hostname="h", architecture="x86_64", resources={}
        )

    async def epoch_is(self, epoch: int) -> None: ...

    def inventory(self) -> Sequence[Fact]:
        return ()

    def pending_facts(self) -> Sequence[Fact]:
        return ()

    def facts_acknowledged(self, facts: Iterable[Fact]) -> None: ...

    def pending_runs(self) -> Sequence[RunDone]:
        return ()

    def runs_acknowledged(self, runs: Iterable[RunDone]) -> None: ...

    def pending_samples(self) -> Sequence[Sample]:
        return ()

    def samples_acknowledged(self, samples: Sequence[Sample]) -> None: ...

    def pending_services(self) -> Sequence[ServiceFact]:
        return ()

    def services_acknowledged(self, facts: Iterable[ServiceFact]) -> None: ...

    def pending_devices(self) -> DeviceList | None:
        return None

    def devices_acknowledged(self, said: DeviceList) -> None: ...

    def pending_checks(self) -> Sequence[DeviceCheck]:
        return ()

    def checks_acknowledged(self, checks: Iterable[DeviceCheck]) -> None: ...


async def agent(url: str, folder: Path) -> None:
    tls = pki.client_context(folder)
    giving: set[asyncio.Task[None]] = set()

    async def execute(asked: dict[str, Any]) -> Any:
        return RunRead(run_id=asked["run_id"], records=bytes(100), next_seq=3, status="done", done={}).pack()

    async def read(asked: dict[str, Any]) -> Any:
        return RunRead(run_id=asked["run_id"], records=bytes(asked["max_bytes"]), next_seq=3).pack()

    async def open_stream(asked: dict[str, Any]) -> Any:
        size = (folder / "file").stat().st_size
        stat = FileStat(name="f", type="file", size=size, mtime=0, mode=0o644, owner=0, group=0)
        channel = await open_channel(asked["stream"], tls)
        if asked["op"] == "upload":
            async for _ in chunks(channel):
                pass
            await channel.close()
            return asdict(stat)
        task = asyncio.create_task(give(channel, size))
        giving.add(task)
        task.add_done_callback(giving.discard)
        return {"stat": asdict(stat)}

    async def give(channel: Channel, size: int) -> None:
        with (folder / "file").open("rb") as file:
            await send_file(channel, file.fileno(), 0, size)
        await channel.close()

    handlers = {wire.EXECUTE: execute, wire.READ: read, wire.OPEN_STREAM: open_stream}
    await Links([url], tls, Silent(), handlers).run()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=2000)
    options.add_argument("--file-mib", type=int, default=1024)
    options.add_argument("--asyncio", action="store_true", help="with asyncio's own loop in place of uvloop")
    options.add_argument("--agent", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    args = options.parse_args()
    work = agent(args.agent[0], Path(args.agent[1])) if args.agent else main(args.calls, args.file_mib)
    (asyncio.run if args.asyncio else uvloop.run)(work)
