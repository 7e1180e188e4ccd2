"""Connections are used again without going back to the pool, and nobody waits for one that lies idle."""

from __future__ import annotations

import asyncio

import pytest

from domain.errors import DatabaseUnavailable, MoorageError
from repositories.database import Database

PID = "SELECT pg_backend_pid()"


async def pid(database: Database) -> int:
    async with database.reader() as connection:
        return int(await connection.fetchval(PID))


@pytest.fixture
async def small(dsn: str) -> Database:
    return await Database.connect(dsn, max_size=2)


async def test_a_connection_is_used_again(small: Database) -> None:
    assert await pid(small) == await pid(small)
    await small.close()


async def test_one_that_has_broken_is_replaced(small: Database, database: Database) -> None:
    broken = await pid(small)
    async with database.reader() as connection:
        await connection.execute("SELECT pg_terminate_backend($1)", broken)
    for _ in range(3):
        try:
            assert await pid(small) != broken
            break
        except MoorageError:  # it may be noticed only when it is used
            continue
    assert await pid(small) != broken
    await small.close()


async def test_more_users_than_connections_are_all_served(small: Database) -> None:
    async def work(number: int) -> int:
        async with small.transaction() as connection:
            return int(await connection.fetchval("SELECT $1::int FROM pg_sleep(0.001)", number))

    async with asyncio.timeout(20):
        assert await asyncio.gather(*map(work, range(200))) == list(range(200))
    await small.close()


async def test_who_is_cancelled_leaves_a_connection_that_works(small: Database) -> None:
    async def sleep() -> None:
        async with small.reader() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    async with asyncio.timeout(20):
        for _ in range(3):
            sleeping = asyncio.create_task(sleep())
            await asyncio.sleep(0.01)
            sleeping.cancel()
            await asyncio.wait({sleeping})
        assert await pid(small)
    await small.close()


async def test_a_cancellation_that_was_meant_for_the_statement_before_is_no_fault_of_this_one(
    small: Database, database: Database
) -> None:
    async def work() -> None:
        async with small.reader() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    victim = await pid(small)
    working = asyncio.create_task(work())
    async with asyncio.timeout(20), database.reader() as connection:
        while not working.done():
            await connection.execute("SELECT pg_cancel_backend($1)", victim)
            await asyncio.wait({working}, timeout=0.01)
    with pytest.raises(DatabaseUnavailable):
        await working
    assert await pid(small)
    await small.close()
