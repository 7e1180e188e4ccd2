"""An installation that is upgraded while sessions run: what they hold counts from when they started."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta

import pytest

from repositories import migrate
from repositories.database import Database
from tests.database import Server
from tests.scenario import ALICE, ID, NOW, PROJECT, a_session, kernel_of, people_and_a_host

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


async def _hold_before(dsn: str) -> None:
    database = await Database.connect(dsn)
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        for name, amount, share, days in (
            ("cpu", 4000, 0.5, 7),
            ("gpu/GPU-1", 8192, 0.25, 7),
            ("disk", 1, 1.0, 7),
            ("cpu", 1, 1.0, 0),
        ):
            await connection.execute(
                """
                INSERT INTO usage (kernel_id, session_id, session_name, user_id, project_id, domain, agent_id, name, amount,
                    share, since_at, until_at)
                VALUES (gen_random_uuid(), $1, 's', $2, $3, 'default', 'h', $4, $5, $6, now() - make_interval(days => 14),
                    CASE WHEN $7 > 0 THEN now() - make_interval(days => $7::integer) END)
                """,
                ID, ALICE.user_id, PROJECT, name, amount, share, days,
            )  # fmt: skip
    await database.close()


def test_what_was_held_before_counts_in_fair_shares(postgres: Server, fresh_database: Callable[..., str]) -> None:
    """From two half-lives ago to one: a quarter of the amount; what is held still is not in the sum."""
    dsn = fresh_database(empty=True)
    migrate.upgrade(dsn, "0012")
    asyncio.run(_hold_before(dsn))
    migrate.upgrade(dsn)
    week = 7 * 86400 / math.log(2)
    rows = postgres.fetch(dsn, "SELECT name, amount FROM fair_usage ORDER BY name")
    assert {row["name"]: row["amount"] / week for row in rows} == pytest.approx({"cpu": 1000, "gpu": 0.0625}, rel=1e-4)
    assert postgres.fetch(dsn, "SELECT count(*) AS number FROM usage WHERE NOT counted")[0]["number"] == 1
