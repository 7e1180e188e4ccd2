"""What is done to PostgreSQL and to connections, briefly; `python -m tests.faults.database` does it for longer and to all of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from repositories import fsck, migrate
from repositories.database import Database
from tests.faults.doors import Door, creation, doors
from tests.faults.pg_proxy import Cut, CuttingProxy
from tests.faults.postgres import Postgres
from tests.rest.conftest import populate

SESSIONS = "SELECT count(*) FROM sessions WHERE name = $1"


@pytest.fixture(scope="module")
def own(template: str) -> Iterator[Postgres]:
    """A server of this module's own. `template` only keeps modules in one order."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-faults-"))
    server = Postgres(folder / "pg", durable=False)
    try:
        migrate.upgrade(server.start())
        asyncio.run(_populate(server.dsn))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


async def _populate(dsn: str) -> None:
    database = await Database.connect(dsn)
    await populate(database)
    await database.close()


async def count(dsn: str, name: str) -> int:
    database = await Database.connect(dsn, max_size=1)
    try:
        async with database.reader() as connection:
            return int(await connection.fetchval(SESSIONS, name))
    finally:
        await database.close()


async def insist(door: Door, name: str, key: str) -> str:
    """Create with one key until it is answered, as a client does; the session's id."""
    async with asyncio.timeout(30):
        while True:
            status, said = await door.ask("POST", "/v1/sessions", creation(name), key=key)
            if status != 503:
                assert status == 201, said
                return str(said["id"])
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL], ids=["immediately stopped", "killed"])
async def test_a_restart_of_the_database_is_said_and_over_soon(own: Postgres, number: signal.Signals) -> None:
    async with doors(own.dsn) as (door,):
        assert (await door.ask("GET", "/v1/sessions"))[0] == 200
        await asyncio.to_thread(own.crash, number)
        name = f"over-{number.name.lower()}"
        coming = asyncio.create_task(insist(door, name, "K1-" + name))
        assert (await door.ask("GET", "/v1/sessions"))[0] == 503
        await asyncio.to_thread(own.start)
        created = await coming
        assert await insist(door, name, "K1-" + name) == created
        assert await count(own.dsn, name) == 1
        assert door.unplanned == []


async def test_connections_that_are_ended_all_the_time_lose_nothing(own: Postgres) -> None:
    async with doors(own.dsn, own.dsn) as pair:
        ending = asyncio.create_task(own.terminate_backends(per_second=40, seconds=1.0))
        made: list[tuple[str, str]] = []
        while not ending.done():
            for door in pair:
                name = f"ended-{len(made)}"
                made.append((name, await insist(door, name, name + "-key")))
        assert ending.result() > 10
        for name, created in made:
            assert await insist(pair[0], name, name + "-key") == created
            assert await count(own.dsn, name) == 1
        assert [one.unplanned for one in pair] == [[], []]


@pytest.mark.parametrize("cut", list(Cut))
async def test_the_key_settles_a_commit_that_nobody_knows_of(own: Postgres, tmp_path: Path, cut: Cut) -> None:
    proxy = CuttingProxy(own.socket_dir)
    with tempfile.TemporaryDirectory(prefix="moorage-p-") as folder:  # a socket's path is short
        async with proxy.listening(Path(folder)) as dsn, doors(dsn) as (door,):
            name = f"cut-{cut.name.lower()}"
            proxy.arm(cut)
            status, said = await door.ask("POST", "/v1/sessions", creation(name), key=name + "-key")
            assert (status, proxy.cuts) == (503, 1), said
            assert await count(own.dsn, name) == (1 if cut is Cut.AFTER else 0)
            created = await insist(door, name, name + "-key")
            assert await insist(door, name, name + "-key") == created
            assert await count(own.dsn, name) == 1
            assert door.unplanned == []


async def test_one_key_a_hundred_times_at_once_at_two_managers_is_one_session(own: Postgres) -> None:
    async with doors(own.dsn, own.dsn) as pair:
        name, key = "hundred", str(uuid4())
        told = await asyncio.gather(
            *(pair[n % 2].ask("POST", "/v1/sessions", creation(name), key=key) for n in range(100))
        )
        # 409 says that another one is at it, after 2 s
        assert Counter(status for status, _ in told).keys() <= {201, 409}
        assert len({said["id"] for status, said in told if status == 201}) == 1
        assert await count(own.dsn, name) == 1
        status, said = await pair[1].ask("POST", "/v1/sessions", creation("another"), key=key)
        assert (status, said["code"]) == (422, "idempotency_mismatch")


async def test_a_client_that_goes_in_the_middle_of_a_request_leaves_nothing_half_done(own: Postgres) -> None:
    async with doors(own.dsn) as (door,):
        for cut in range(0, 700, 70):
            name = f"gone-{cut}"
            body = json.dumps(creation(name))
            head = (
                f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer KEY-alice.{'s' * 43}\r\n"
                f"Content-Type: application/json\r\nIdempotency-Key: {name}-key\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            _, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write((head + body).encode()[:cut])
            await writer.drain()
            writer.transport.abort()
            created = await insist(door, name, name + "-key")
            assert await insist(door, name, name + "-key") == created
            assert await count(own.dsn, name) == 1
        assert door.unplanned == []


async def test_all_holds_afterwards(own: Postgres) -> None:
    database = await Database.connect(own.dsn, max_size=1)
    async with database.reader() as connection:
        found = await fsck.find(connection, now=await connection.fetchval("SELECT clock_timestamp()"))
    await database.close()
    # the sessions that `populate` wrote by hand have no deadline, and this server is not durable
    assert [
        one
        for one in found
        if one.check in ("keys_without_an_answer", "history_chain", "quota_counters", "slots_in_use")
    ] == []
