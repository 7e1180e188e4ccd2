"""The test database itself: clean for each test, seeded rows included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest

from repositories import migrate
from repositories.database import Database
from tests.database import Reset


@pytest.mark.parametrize("time", ["first", "again"])
async def test_each_test_starts_clean(database: Database, time: str) -> None:
    async with database.transaction() as connection:
        assert await connection.fetchval("SELECT count(*) FROM domains WHERE name = 'left'") == 0, time
        await connection.execute("INSERT INTO domains (name) VALUES ('left')")


async def test_what_a_migration_put_in_comes_back(worker_database: tuple[str, Reset]) -> None:
    dsn, reset = worker_database
    database = await Database.connect(dsn)
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        before = await connection.fetchval("SELECT count(*) FROM session_transition")
        await connection.execute("DELETE FROM session_transition")
    await database.close()
    assert before > 10
    _in_a_thread(reset)
    database = await Database.connect(dsn)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM session_transition") == before
    await database.close()


_left: list[asyncio.Task[None]] = []


@pytest.mark.parametrize("time", ["first", "again"])
async def test_what_a_test_leaves_running_ends_with_it(database: Database, time: str) -> None:
    async def writes_for_ever() -> None:
        while True:
            async with database.reader() as connection:
                await connection.execute("INSERT INTO domains (name) VALUES ('left') ON CONFLICT DO NOTHING")

    if time == "first":
        _left.append(asyncio.create_task(writes_for_ever()))
        await asyncio.sleep(0.01)
    else:
        assert _left.pop().cancelled()


async def test_what_another_process_still_writes_does_not_come(worker_database: tuple[str, Reset]) -> None:
    dsn, reset = worker_database
    other = await asyncpg.connect(dsn)
    await other.execute("BEGIN; INSERT INTO domains (name) VALUES ('late')")
    _in_a_thread(reset)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError)):
        await other.execute("COMMIT")
    await other.close()
    database = await Database.connect(dsn)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM domains WHERE name = 'late'") == 0
    await database.close()


def test_a_fresh_database_is_migrated_or_empty(fresh_database: Callable[..., str]) -> None:
    assert fresh_database() != fresh_database()
    migrate.upgrade(fresh_database(empty=True))


def _in_a_thread(work: Callable[[], None]) -> None:
    """The reset has an event loop of its own, and one thread runs one loop at a time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        threads.submit(work).result()
