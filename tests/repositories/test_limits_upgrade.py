"""An installation that is upgraded while sessions run and wait: what they are charged is told apart, and no amount is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from domain.session import Status
from repositories import migrate
from repositories.database import Database
from tests.database import Server
from tests.scenario import ALICE, ID, OTHER_ID, a_row, a_session, insert, people_and_a_host


async def _charge_two_sessions(dsn: str) -> None:
    database = await Database.connect(dsn)
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await a_session().put(connection)
        await a_session(Status.PENDING, id=OTHER_ID, name="waits").put(connection)
        mine = {"scope": "user", "scope_id": str(ALICE.user_id), "name": "cpu"}
        await a_row("quotas", max_amount=8000, **mine).put(connection)
        await insert(connection, "quota_uses", {"session_id": ID, "amount": 3000, **mine})
        await insert(connection, "quota_uses", {"session_id": OTHER_ID, "amount": 2000, **mine})
    await database.close()


def test_what_runs_and_what_waits_is_told_apart_and_put_together_again(
    postgres: Server, fresh_database: Callable[..., str]
) -> None:
    dsn = fresh_database(empty=True)
    migrate.upgrade(dsn, "0011")
    asyncio.run(_charge_two_sessions(dsn))
    assert postgres.fetch(dsn, "SELECT used FROM quotas")[0]["used"] == 5000
    migrate.upgrade(dsn)
    row = postgres.fetch(dsn, "SELECT used, queued FROM quotas")[0]
    assert (row["used"], row["queued"]) == (3000, 2000)
    postgres.execute(dsn, "DELETE FROM quota_uses WHERE placed")
    postgres.execute(dsn, "UPDATE quota_uses SET placed = true")
    row = postgres.fetch(dsn, "SELECT used, queued FROM quotas")[0]
    assert (row["used"], row["queued"]) == (2000, 0)
    migrate.downgrade(dsn, "0011")
    assert postgres.fetch(dsn, "SELECT used FROM quotas")[0]["used"] == 2000
    postgres.execute(dsn, "DELETE FROM quota_uses")
    assert postgres.fetch(dsn, "SELECT used FROM quotas")[0]["used"] == 0
