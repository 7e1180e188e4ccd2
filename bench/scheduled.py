"""POST of a session to the commit that gives it a host, by a manager of its own: REST, database, wake-up, plan, write.

`python -m bench.scheduled` runs it alone, on the server of `DATABASE_URL`. The hosts are rows: nothing is started on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg

from bench.databases import fresh_database, server_of
from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile, show
from manager.bootstrap import Credentials, bootstrap
from manager.config import ManagerConfig
from repositories.database import Database
from tests.control.rows import add_agent

#: A manager that has worked before: each of its connections has seen every statement often enough to have planned it.
WARM_UP = 40
ROUNDS, CLIENTS, AT_ONCE = 60, 50, 400
HOSTS = 16
#: A name; by how many ms a flush of the log waits; whether it always does, or only while others commit.
Disk = tuple[str, float, bool]
DISKS: tuple[Disk, ...] = (
    ("", 0.0, False),
    (", commit_delay 2000", 2.0, False),
    (", every flush 2 ms later", 2.0, True),
)
BODY = {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}}


def run(installation: Installation) -> Iterator[Row]:
    yield from asyncio.run(measure(server_of(installation), DISKS))


async def measure(server: str, disks: Sequence[Disk]) -> list[Row]:
    rows = []
    for slow, flush_ms, always in disks:
        fresh = fresh_database(server, flush_ms=flush_ms, always=always)
        async with fresh as dsn, _manager(dsn) as (config, bearer):
            await _alone(config, bearer, dsn, WARM_UP)
            alone = await _alone(config, bearer, dsn, ROUNDS)
            many, seconds = await _together(config, bearer, dsn)
        rows += [
            Row(
                name=f"create to SCHEDULED, p50, idle{slow}",
                ours=p50([done for _, done in alone]),
                reference=None,
                unit="ms",
                bound="" if always else "<= 10 ms",
                note=f"fastest {min(done for _, done in alone):.1f}, p95 {percentile([done for _, done in alone], 0.95):.1f} ms;"
                f" of it the answer to the POST {p50([answered for answered, _ in alone]):.1f} ms;"
                f" {ROUNDS} sessions one after the other, {HOSTS} hosts",
            ),
            Row(
                name=f"create to SCHEDULED, p50, {CLIENTS} clients{slow}",
                ours=p50([done for _, done in many]),
                reference=p50([answered for answered, _ in many]),
                unit="ms",
                reference_is="the answers to the POSTs alone",
                note=f"p95 {percentile([done for _, done in many], 0.95):.0f} ms; {AT_ONCE / seconds:,.0f} sessions/s",
            ),
        ]
    return rows


@contextlib.asynccontextmanager
async def _manager(dsn: str) -> AsyncIterator[tuple[ManagerConfig, str]]:
    """All roles of one manager on this database, with hosts that have joined and are not there."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
        data_dir = Path(folder)
        config = ManagerConfig(data_dir=data_dir, database_url=dsn, port=_free_port(), proxy_port=_free_port())
        config.save()
        await bootstrap(config, image="bench/python:1", now=datetime.now(UTC))
        await _add_hosts(dsn)
        log_file = (data_dir / "manager.log").open("wb")
        command = [str(Path(sys.executable).parent / "moorage"), "manager", "--data-dir", folder]
        manager = await asyncio.create_subprocess_exec(*command, stdout=log_file, stderr=subprocess.STDOUT)
        try:
            await asyncio.to_thread(_wait_until_ready, config)
            credentials = Credentials.load(data_dir)
            yield config, f"{credentials.access_key}.{credentials.secret_key}"
        finally:
            manager.send_signal(signal.SIGTERM)
            await manager.wait()
            log_file.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _add_hosts(dsn: str) -> None:
    database = await Database.connect(dsn, max_size=2)
    try:
        async with database.transaction() as connection:
            for number in range(HOSTS):
                await add_agent(
                    connection,
                    f"host{number:03}",
                    architecture=os.uname().machine,
                    now=datetime.now(UTC),
                    cpu=64_000,
                    mem=2**19,
                )
    finally:
        await database.close()


def _wait_until_ready(config: ManagerConfig, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            client = Client("127.0.0.1", config.port)
            try:
                if client.send(client.request("GET", "/readyz"))[0] == 200:
                    return
            finally:
                client.close()
        if time.monotonic() > until:
            raise RuntimeError((config.data_dir / "manager.log").read_text()[-2000:])
        time.sleep(0.05)


# -- how long it takes -------------------------------------------------------------------------------------------------
class Watch:
    """Sees when sessions have left the queue: what is committed is looked at whenever a manager says that something has
    changed, which takes a little longer than the commit, and no time from those who work."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self._waiting: dict[UUID, asyncio.Future[float]] = {}
        self._news = asyncio.Event()

    def until_scheduled(self, session_id: UUID) -> asyncio.Future[float]:
        """The time at which it was first seen with a host."""
        self._waiting[session_id] = asyncio.get_running_loop().create_future()
        self._news.set()
        return self._waiting[session_id]

    async def look(self) -> None:
        await self._connection.add_listener("moorage", lambda *_: self._news.set())
        look = await self._connection.prepare(
            "SELECT id FROM sessions WHERE id = ANY($1::uuid[]) AND status = 'SCHEDULED'"
        )
        while True:
            await self._news.wait()
            self._news.clear()
            if self._waiting:
                for row in await look.fetch(list(self._waiting)):
                    self._waiting.pop(row["id"]).set_result(time.perf_counter())


@contextlib.asynccontextmanager
async def _watching(dsn: str) -> AsyncIterator[Watch]:
    connection = await asyncpg.connect(dsn)
    watch = Watch(connection)
    looking = asyncio.create_task(watch.look())
    try:
        yield watch
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await connection.close()


async def _alone(config: ManagerConfig, bearer: str, dsn: str, rounds: int) -> list[tuple[float, float]]:
    """(milliseconds to the answer, milliseconds to the host) of sessions one after the other."""
    samples = []
    async with _watching(dsn) as watch:
        client = Client("127.0.0.1", config.port, bearer)
        for _ in range(rounds):
            await asyncio.sleep(0.05)  # idle again
            samples.append(await _create(client, watch))
        client.close()
    return samples


async def _together(config: ManagerConfig, bearer: str, dsn: str) -> tuple[list[tuple[float, float]], float]:
    """The same by many clients, each of which asks for the next session when the one before has a host."""
    left = list(range(AT_ONCE))

    async def client(watch: Watch) -> list[tuple[float, float]]:
        connection, samples = Client("127.0.0.1", config.port, bearer), []
        while left:
            left.pop()
            samples.append(await _create(connection, watch))
        connection.close()
        return samples

    async with _watching(dsn) as watch:
        started = time.perf_counter()
        found = await asyncio.gather(*(client(watch) for _ in range(CLIENTS)))
        return [sample for samples in found for sample in samples], time.perf_counter() - started


async def _create(client: Client, watch: Watch) -> tuple[float, float]:
    started = time.perf_counter()
    session = await asyncio.to_thread(client.ask, "POST", "/v1/sessions", BODY)
    answered = time.perf_counter()
    done = await watch.until_scheduled(UUID(session["id"]))
    return (answered - started) * 1000, (done - started) * 1000


if __name__ == "__main__":
    show(asyncio.run(measure(os.environ["DATABASE_URL"], DISKS)))
