"""Samples are stored once, whoever tells them how often, and summed into minutes; usage follows allocations."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from agent.wire import Sample
from domain.ids import AgentId
from repositories.database import Connection, Database
from repositories.samples import store_samples
from tests.control.rows import NOW, add_sessions, fact_of, kernels_of, running, tell

HOST = AgentId("a")


async def sample_of(database: Database, **changes: Any) -> Sample:
    (session_id,) = await running(database)
    async with database.reader() as connection:
        kernel = (await kernels_of(connection, session_id))[0]
    given = Sample(
        kernel_id=str(kernel["id"]), attempt=1, at=NOW.timestamp() + 5, seconds=5.0, cpu_seconds=2.0, mem_bytes=1000
    )
    return replace(given, **changes)


async def store(database: Database, *samples: Sample, agent: AgentId = HOST) -> int:
    async with database.transaction() as connection:
        return await store_samples(connection, [(agent, sample) for sample in samples], now=NOW + timedelta(minutes=5))


async def minutes(connection: Connection) -> list[tuple[float, float, float, int]]:
    rows = await connection.fetch("SELECT * FROM sample_minutes ORDER BY at")
    return [(row["seconds"], row["cpu_seconds"], row["mem_byte_seconds"], row["mem_max_bytes"]) for row in rows]


async def test_told_again_nothing_is_summed_again(database: Database) -> None:
    first = await sample_of(database)
    second = replace(first, at=first.at + 5, cpu_seconds=1.0, mem_bytes=3000)
    third = replace(first, at=first.at + 60)
    assert await store(database, first, second, first) == 2
    assert await store(database, second, first, third) == 1
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM samples") == 3
        assert await minutes(connection) == [(10.0, 3.0, 20000.0, 3000), (5.0, 2.0, 5000.0, 1000)]


async def test_an_agent_tells_of_its_own_kernels_only(database: Database) -> None:
    assert await store(database, await sample_of(database), agent=AgentId("b")) == 0


async def test_what_makes_no_sense_is_left_out(database: Database) -> None:
    good = await sample_of(database)
    wrong: list[dict[str, Any]] = [
        {"kernel_id": "x"},
        {"at": float("nan")},
        {"at": good.at + 3600},
        {"at": good.at - 3 * 3600},
        {"seconds": 0.0},
        {"seconds": -5.0},
        {"seconds": 1e9},
        {"cpu_seconds": float("inf")},
        {"cpu_seconds": "much"},
        {"mem_bytes": -1},
        {"mem_bytes": 2**70},
        {"pids": True},
        {"disk_bytes": -1},
    ]
    assert await store(database, *(replace(good, **one) for one in wrong)) == 0
    assert await store(database, good) == 1


async def test_usage_follows_allocations(database: Database) -> None:
    """From the moment that slots are taken to the moment that the host gives them back."""
    (session_id,) = await running(database)
    async with database.reader() as connection:
        held = await connection.fetch("SELECT name, amount, since_at, until_at FROM usage ORDER BY name")
        assert [(row["name"], row["amount"], row["until_at"]) for row in held] == [
            ("cpu", 1000, None),
            ("mem", 1024, None),
        ]
        gone = await fact_of(connection, session_id, "GONE", 11)
    await tell(database, HOST, gone)
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT * FROM usage")
        assert await connection.fetchval("SELECT count(*) FROM allocations") == 0
        assert {row["session_id"] for row in rows} == {session_id}
        assert all(row["until_at"] > row["since_at"] for row in rows)
        await connection.execute("DELETE FROM sessions WHERE id = $1", session_id)
        assert await connection.fetchval("SELECT count(*) FROM usage") == 2  # it outlives its session


async def test_what_waits_holds_nothing(database: Database) -> None:
    async with database.transaction() as connection:
        await add_sessions(connection, 3)
        assert await connection.fetchval("SELECT count(*) FROM usage") == 0
