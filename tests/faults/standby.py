"""Managers on a PostgreSQL whose disk is full, or which is lost and replaced by its standby. No hosts: what the database decides."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import moorage
from moorage import aio

from agent import pki
from tests.faults.book import Book
from tests.faults.managers import Manager, managers
from tests.faults.outages import BACK, Watch
from tests.faults.postgres import Postgres

_IMAGE = "moorage/python:3.11"
_DISK_MIB = 220
_FOLLOWED = {
    "wal_level": "replica",
    "max_wal_senders": "5",
    "hot_standby": "on",
    "synchronous_standby_names": "standby",
}


@dataclass
class Site:
    """Managers on one database."""

    group: list[Manager]
    access_key: str
    secret_key: str

    def client(self, number: int = 0, *, retry_for: float = 90.0) -> aio.Client:
        return aio.Client(
            self.group[number].endpoint, self.access_key, self.secret_key, retry_for=retry_for, timeout=40.0
        )

    def watch(self, number: int = 0) -> Watch:
        return Watch(self.group[number].endpoint, f"{self.access_key}.{self.secret_key}")


@asynccontextmanager
async def site(folder: Path, dsn: str, *, count: int = 2) -> AsyncIterator[Site]:
    """The first manager makes the database ready, and the administrator."""
    pki.ensure_authority(folder / "pki")
    with managers(count, folder, folder, dsn, "--drain-seconds", "0") as group:
        for manager in group:
            await manager.ready()
        said = next(json.loads(path.read_text()) for path in folder.glob("manager-*/admin.json"))
        made = Site(group, said["access_key"], said["secret_key"])
        async with made.client() as client:
            await client.images.register(_IMAGE, architecture="x86_64", aliases=["python"])
        yield made


async def create(client: aio.Client, made: dict[str, tuple[str, str]], name: str) -> None:
    """What is acknowledged is remembered: id and key by name."""
    key = str(uuid4())
    session = await client.sessions.create(name, cpu=1, mem="64m", wait=False, idempotency_key=key)
    made[name] = session.id, key


async def lost(client: aio.Client, made: dict[str, tuple[str, str]]) -> list[str]:
    """What was acknowledged and is not there, or there twice."""
    found = []
    there: dict[str, list[str]] = {}
    async for session in client.sessions.iterate():
        there.setdefault(session.name, []).append(session.id)
    for name, (session_id, _) in made.items():
        if there.get(name) != [session_id]:
            found.append(f"I7 {name} is {there.get(name)} and not {session_id}")
    report = await client.fsck(hosts=False)
    return found + [f"{one.invariant} {one.check}: {one.subject}: {one.detail}" for one in report.findings]


# -- a full disk -----------------------------------------------------------------------------------------------------------
@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m,mode=0700", "moorage-faults", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


async def full_disk(folder: Path, book: Book, *, times: int) -> None:
    """The disk of the database fills up until nothing can be written; then there is room again."""
    found: list[str] = []
    with small_disk(folder / "disk") as disk:
        postgres = Postgres(disk / "pg", settings={"max_wal_size": "64MB", "min_wal_size": "32MB"})
        postgres.start()
        try:
            async with site(folder, postgres.dsn) as place, place.client() as client:
                made: dict[str, tuple[str, str]] = {}
                for number in range(times):
                    found += await _fill(place, client, postgres, disk, book, made, number)
                found += await lost(client, made)
        finally:
            postgres.stop()
    book.fault(f"the database's disk was full {times} times", found)


async def _fill(
    place: Site,
    client: aio.Client,
    postgres: Postgres,
    disk: Path,
    book: Book,
    made: dict[str, tuple[str, str]],
    number: int,
) -> list[str]:
    watch, filler, refused = place.watch(), disk / "filler", 0
    await create(client, made, f"before-{number}")
    _take_all(filler)
    async with place.client(1, retry_for=0.0) as impatient:
        until = time.monotonic() + 60
        while not refused and time.monotonic() < until:
            try:
                await create(impatient, made, f"full-{number}-{len(made)}")
            except moorage.MoorageError as error:
                refused += 1
                if error.code not in ("storage_full", "database_unavailable", "unreachable"):
                    return [f"I9 a full disk is told as {error.code}: {error}"]
    keeper = asyncio.create_task(_keep(postgres))
    await asyncio.sleep(1.0)
    filler.unlink()
    try:
        book.took(f"{BACK} (after a full disk)", await watch.back_after(postgres._is_ready))
        await create(client, made, f"after-{number}")
    finally:
        keeper.cancel()
    return watch.unplanned if refused else ["I9 the full disk was not felt"]


def _take_all(filler: Path) -> None:
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            return


async def _keep(postgres: Postgres) -> None:
    """As `moorage up`, or systemd: a server that has ended is started again."""
    while True:
        if postgres.pid is None:
            try:
                await asyncio.to_thread(postgres.start, timeout_seconds=5)
            except Exception as error:  # there is no room yet
                print(f"PostgreSQL does not start: {str(error)[:120]}")
        await asyncio.sleep(0.2)


# -- failover ------------------------------------------------------------------------------------------------------------
async def failover(folder: Path, book: Book, *, times: int) -> None:
    """The primary is killed and the standby, which has all that was acknowledged, takes its place."""
    found: list[str] = []
    for number in range(times):
        here = folder / f"failover-{number}"
        primary, standby = (
            Postgres(here / "one", settings=_FOLLOWED | {"synchronous_standby_names": ""}),
            Postgres(here / "two", settings=_FOLLOWED | {"synchronous_standby_names": ""}),
        )
        primary.start()
        primary.copy_to(standby)
        standby.start()
        await _follow(primary)
        hosts = quote(f"{primary.socket_dir},{standby.socket_dir}", safe="")
        dsn = f"postgresql://moorage@/moorage?host={hosts}&target_session_attrs=read-write"
        try:
            async with site(here, dsn) as place, place.client() as client:
                made: dict[str, tuple[str, str]] = {}
                working = asyncio.create_task(_work(client, made))
                await asyncio.sleep(1.0)
                await asyncio.to_thread(primary.crash)
                standby.promote()
                book.took("standby promoted -> API", await place.watch().back_after(standby._is_ready))
                await asyncio.sleep(0.5)
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                found += await lost(client, made)
        finally:
            primary.stop()
            standby.stop()
            shutil.rmtree(here, ignore_errors=True)
    book.fault(f"{times} failovers to a synchronous standby", found)


async def _work(client: aio.Client, made: dict[str, tuple[str, str]]) -> None:
    while True:
        await create(client, made, f"work-{len(made)}")


async def _follow(primary: Postgres) -> None:
    """Until the standby follows; from then on nothing is acknowledged that it has not got."""
    import asyncpg

    connection = await asyncpg.connect(primary.dsn_of("postgres"))
    try:
        while not await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"):
            await asyncio.sleep(0.05)
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        await connection.fetchval("SELECT pg_reload_conf()")
    finally:
        await connection.close()


def is_root() -> bool:
    """Only root mounts a small disk."""
    return os.geteuid() == 0
