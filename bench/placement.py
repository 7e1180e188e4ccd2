"""Sessions placed and facts taken in per second, by what the control role itself runs: `python -m bench.placement`.

Needs `DATABASE_URL` (of a superuser; a database of its own is made and dropped). `--flush-ms 2` stands in for a slower
disk: PostgreSQL's commit_delay makes each flush of the log wait so long.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from agent.wire import Fact
from domain.ids import AgentId
from domain.placement import Placement
from domain.scheduler import plan
from repositories.database import Database
from repositories.kernels import record_facts
from repositories.migrate import upgrade
from repositories.placement import place, snapshot
from tests.control.rows import NOW, add_agent, add_sessions

BATCH = 500


async def main(*, sessions: int, hosts: int, flushes_ms: Sequence[float]) -> None:
    server = os.environ["DATABASE_URL"]
    name = f"moorage_bench_{uuid4().hex[:8]}"
    dsn = urlunsplit(urlsplit(server)._replace(path=f"/{quote(name)}"))
    admin = await asyncpg.connect(server)
    await admin.execute(f'CREATE DATABASE "{name}"')
    try:
        await asyncio.to_thread(upgrade, dsn)
        print(
            f"{sessions} sessions of 2 slots on {hosts} hosts, batches of {BATCH}; {await admin.fetchval('SHOW server_version')}"
        )
        for flush_ms in flushes_ms:
            # siblings: the delay is taken only while others commit too, so none are asked for
            for setting in (f"commit_delay = {int(flush_ms * 1000)}", "commit_siblings = 0"):
                await admin.execute(f'ALTER DATABASE "{name}" SET {setting}')
            await _measure(dsn, sessions, hosts, flush_ms)
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


async def _measure(dsn: str, sessions: int, hosts: int, flush_ms: float) -> None:
    database = await Database.connect(dsn, max_size=16)
    try:
        async with database.transaction() as connection:
            for number in range(hosts):
                each = 2 * sessions // hosts + 1
                await add_agent(connection, f"host{number:05}", cpu=each * 1000, mem=each * 1024)
            await add_sessions(connection, sessions)
        async with database.reader() as connection:
            await connection.execute("ANALYZE")
            started = time.perf_counter()
            seen = await snapshot(connection, now=NOW)
        looked = time.perf_counter()
        placements = plan(seen, NOW).placements
        planned = time.perf_counter()
        taken = 0
        for at in range(0, len(placements), BATCH):
            taken += await _place(database, placements[at : at + BATCH])
        placed = time.perf_counter()
        told = await _tell(database, "RUNNING", 1)
        running = time.perf_counter()
        print(
            f"  flush +{flush_ms:g} ms: snapshot {(looked - started) * 1000:.0f} ms, plan {(planned - looked) * 1000:.0f} ms,"
            f" {taken / (placed - planned):,.0f} placements/s, {told / (running - placed):,.0f} facts/s (each moves its session)"
        )
        await _alone(database)
    finally:
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL session_replication_role = replica")
            for table in ("allocations", "kernels", "status_history", "events", "sessions", "resources", "agents"):
                await connection.execute(f"DELETE FROM {table}")
        await database.close()


async def _place(database: Database, placements: Sequence[Placement]) -> int:
    async with database.reader() as connection:
        return len((await place(connection, placements, now=NOW)).sessions)


async def _tell(database: Database, observed: str, seq: int, *, writers: int = 2) -> int:
    async with database.reader() as connection:
        rows = await connection.fetch(
            "SELECT id, agent_id, generation FROM kernels WHERE agent_id IS NOT NULL ORDER BY id"
        )
    reports = [
        (
            AgentId(row["agent_id"]),
            Fact(
                kernel_id=row["id"].hex, attempt=1, generation=row["generation"], observed=observed, boot_no=1, seq=seq
            ),
        )
        for row in rows
    ]
    batches = [reports[at : at + BATCH] for at in range(0, len(reports), BATCH)]

    async def writer(number: int) -> None:
        for batch in batches[number::writers]:
            async with database.transaction() as connection:
                await record_facts(connection, batch, now=datetime.now(UTC))

    await asyncio.gather(*(writer(number) for number in range(writers)))
    return len(reports)


async def _alone(database: Database) -> None:
    """One session after the other, as on a quiet machine: what the database adds to the way of one session."""
    spent = {"place": 0.0, "fact": 0.0}
    rounds = 50
    for number in range(rounds):
        async with database.transaction() as connection:
            [session_id] = await add_sessions(connection)
        async with database.reader() as connection:
            started = time.perf_counter()
            placements = plan(await snapshot(connection, now=NOW), NOW).placements
            await place(connection, placements, now=NOW)
            spent["place"] += time.perf_counter() - started
            [row] = await connection.fetch("SELECT id, agent_id FROM kernels WHERE session_id = $1", session_id)
        fact = Fact(kernel_id=row["id"].hex, attempt=1, generation=1, observed="RUNNING", boot_no=1, seq=number + 1)
        started = time.perf_counter()
        async with database.transaction() as connection:
            await record_facts(connection, [(AgentId(row["agent_id"]), fact)], now=NOW)
        spent["fact"] += time.perf_counter() - started
    print("    one at a time: " + ", ".join(f"{name} {total / rounds * 1000:.2f} ms" for name, total in spent.items()))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sessions", type=int, default=5000)
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--flush-ms", type=float, nargs="*", default=[0.0, 2.0])
    given = arguments.parse_args()
    asyncio.run(main(sessions=given.sessions, hosts=given.hosts, flushes_ms=given.flush_ms))
