"""Several managers on one database: one that hangs and goes on, commits that nobody hears of, restarts one after the other."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import moorage
from moorage import aio

from tests.faults.book import Book
from tests.faults.managers import Manager, managers
from tests.faults.outages import at_work, postgres_of
from tests.faults.pg_proxy import Cut, CuttingProxy
from tests.faults.rolling import Balancer, Caller, Done
from tests.faults.workload import SMALL, Town


def client_of(town: Town, manager: Manager, *, retry_for: float = 60.0) -> aio.Client:
    installation = town.installation
    return aio.Client(
        manager.endpoint, installation.access_key, installation.secret_key, retry_for=retry_for, timeout=60.0
    )


async def one_hangs(town: Town, book: Book, group: list[Manager], *, seconds: float) -> None:
    """All processes of one are stopped; what it had claimed is taken over; then it goes on, and its writes come late."""
    found: list[str] = []
    victim = town.rng.choice(group)
    began = time.monotonic()
    async with at_work(town, found), client_of(town, victim) as through:
        mutations = [asyncio.create_task(_renamed(through, town)) for _ in range(3)]
        await asyncio.sleep(0.02)
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        victim.signal(signal.SIGCONT)
        await asyncio.gather(*mutations, return_exceptions=True)
        await victim.ready()
    book.took("stopped manager goes on -> ready", time.monotonic() - began - seconds)
    found += await town.model.verify()
    found += await town.installation.check(town.client)
    book.fault(f"one of {len(group) + 1} managers stopped for {seconds:g} s", found)


async def _renamed(client: aio.Client, town: Town) -> None:
    session = await client.sessions.create(town.name("late"), **SMALL, wait=False)
    await session.destroy(wait=60)


async def commits_cut(town: Town, book: Book, *, times: int) -> None:
    """A manager whose connections break between COMMIT and its answer, or just before: the key settles what happened."""
    found: list[str] = []
    postgres = postgres_of(town.installation)
    proxy = CuttingProxy(postgres.socket_dir)
    with tempfile.TemporaryDirectory(prefix="moorage-p-") as near, tempfile.TemporaryDirectory() as folder:
        async with proxy.listening(Path(near)) as dsn:
            words = ("--drain-seconds", "0", "--role", "api")  # who plans and dispatches has other connections
            with managers(1, Path(folder), town.installation.data_dir, dsn, *words) as (manager,):
                await manager.ready()
                async with client_of(town, manager) as client:
                    for number in range(times):
                        proxy.arm(Cut.AFTER if number % 2 else Cut.BEFORE)
                        found += await _once(town, client)
    found += await town.installation.check(town.client)
    book.fault(f"{proxy.cuts} commits cut off before or after they were done", found)


async def _once(town: Town, client: aio.Client) -> list[str]:
    name, key = town.name("unknown"), str(uuid4())
    made = await client.sessions.create(name, **SMALL, idempotency_key=key, wait=False)
    again = await client.sessions.create(name, **SMALL, idempotency_key=key, wait=False)
    named = [one.id async for one in town.client.sessions.iterate() if one.name == name]
    await made.destroy(wait=60)
    return [] if named == [made.id] and again.id == made.id else [f"I6 {name}: {named}, {made.id}, {again.id}"]


async def one_key(town: Town, book: Book, group: list[Manager], *, times: int = 100) -> None:
    """The same request at once at several managers, again and again."""
    found: list[str] = []
    name, key = town.name("hundred"), str(uuid4())
    endpoints = [town.client, *(client_of(town, manager) for manager in group)]

    async def ask(client: aio.Client) -> str:
        return (await client.sessions.create(name, **SMALL, idempotency_key=key, wait=False)).id

    answers = await asyncio.gather(*(ask(endpoints[n % len(endpoints)]) for n in range(times)), return_exceptions=True)
    ids = {one for one in answers if isinstance(one, str)}
    refused = [one for one in answers if not isinstance(one, str)]
    found += [f"I6 {one!r}" for one in refused if not isinstance(one, moorage.MoorageError)]
    if len(ids) != 1:
        found.append(f"I6 {len(ids)} sessions of one key")
    named = [one async for one in town.client.sessions.iterate() if one.name == name]
    found += [f"I6 {len(named)} sessions are there"] if len(named) != 1 else []
    for session in named:
        await session.destroy(wait=60)
    for client in endpoints[1:]:
        await client.close()
    found += await town.installation.check(town.client)
    book.fault(f"one key {times} times at once at {len(endpoints)} managers", found)


async def rolled(town: Town, book: Book, group: list[Manager], *, rounds: int) -> None:
    """Requests that are never sent twice, while every manager is restarted."""
    installation, done, stop = town.installation, Done(), asyncio.Event()
    balancer = Balancer(group, f"{installation.access_key}.{installation.secret_key}")
    looking = asyncio.create_task(balancer.look())
    session = town.home().id

    async def ask(method: str, path: str, body: object, pause: float) -> None:
        caller = Caller(balancer, done)
        while not stop.is_set():
            await caller.ask(method, f"/v1/sessions{path}", body)
            await asyncio.sleep(pause)
        caller.leave()

    asking = [
        asyncio.create_task(ask(*one))
        for one in (
            ("GET", "", None, 0.02),
            ("GET", f"/{session}", None, 0.02),
            ("POST", f"/{session}/execute", {"mode": "query", "code": "print(1)"}, 0.05),
            ("POST", f"/{session}/rename", {"new_name": "rolled"}, 0.1),
            (
                "POST",
                f"/{session}/execute",
                {"mode": "batch", "code": "", "opts": {"exec": "sleep 6"}, "wait": 10},
                0.1,
            ),
        )
    ]
    for _ in range(rounds):
        for manager in group:
            with book.timed("manager restarted in turn (SIGTERM -> ready)"):
                await manager.restart()
    stop.set()
    await asyncio.gather(*asking)
    looking.cancel()
    found = [f"I9 {one}" for one in done.failed]
    found += [f"I9 answers {dict(done.answers)}"] if set(done.answers) - {200, 201} else []
    found += await installation.check(town.client)
    book.fault(f"{rounds * len(group)} restarts of {len(group)} managers, {sum(done.answers.values())} requests", found)
