"""An installation that is upgraded while sessions run: what they hold counts from when they started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from repositories import migrate
from repositories.database import Database
from tests.database import Server
from tests.scenario import ID, NOW, a_session, kernel_of, people_and_a_host

BEGIN = NOW - timedelta(hours=3)


async def _run_a_session(dsn: str) -> None:
    database = await Database.connect(dsn)
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await a_session().put(connection)
        await connection.execute("UPDATE kernels SET started_at = $1 WHERE id = $2", BEGIN, kernel_of(ID))
    await database.close()


def test_what_is_held_already_is_written_down(postgres: Server, fresh_database: Callable[..., str]) -> None:
    dsn = fresh_database(empty=True)
    migrate.upgrade(dsn, "0009")
    asyncio.run(_run_a_session(dsn))
    migrate.upgrade(dsn)
    rows = postgres.fetch(dsn, "SELECT name, amount, since_at, until_at, share FROM usage ORDER BY name")
    assert [(row["name"], row["amount"], row["until_at"]) for row in rows] == [("cpu", 1000, None), ("mem", 512, None)]
    assert {row["since_at"] for row in rows} == {BEGIN}
    assert rows[0]["share"] == 0.125
    postgres.execute(dsn, "DELETE FROM allocations")
    assert postgres.fetch(dsn, "SELECT count(*) AS open FROM usage WHERE until_at IS NULL")[0]["open"] == 0
