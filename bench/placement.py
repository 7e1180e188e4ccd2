"""10,000 queued sessions planned and durably placed by the scheduler itself, against one session per transaction.

`python -m bench.placement` runs it alone, on the server of `DATABASE_URL` (of a superuser; databases are made and dropped).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from agent.wire import Fact
from bench.databases import fresh_database, server_of
from bench.installation import Installation
from bench.report import Row, show
from domain.ids import AgentId, SessionId
from domain.session import Event
from manager.herald import Herald
from manager.scheduling import Scheduler
from repositories.agents import set_resources
from repositories.database import Connection, Database
from repositories.kernels import record_facts
from repositories.placement import SCHEDULER
from repositories.transit import transit
from tests.control.rows import NOW, add_agent, add_sessions

SESSIONS, HOSTS, USERS = 10_000, 1_000, 20
BATCH = 500
#: Sessions of the reference, which takes its time.
SINGLY = 200
#: As the manager's processes have it.
GC_THRESHOLD = (20_000, 20, 20)


def run(installation: Installation) -> Iterator[Row]:
    yield from asyncio.run(measure(server_of(installation), SESSIONS, HOSTS, (0.0, 2.0)))


async def measure(server: str, sessions: int, hosts: int, flushes_ms: Sequence[float]) -> list[Row]:
    gc.set_threshold(*GC_THRESHOLD)
    rows = []
    for flush_ms in flushes_ms:
        async with fresh_database(server, flush_ms=flush_ms) as dsn:
            database = await Database.connect(dsn)
            try:
                await _fill(database, sessions + SINGLY, hosts)
                singly = await _singly(database)
                taken, seconds = await _by_the_scheduler(database, sessions)
                told, telling = await _tell(database)
            finally:
                await database.close()
        slow = f", commit_delay {flush_ms * 1000:.0f}" if flush_ms else ""
        rows.append(
            Row(
                name=f"queued sessions placed{slow}",
                ours=taken / seconds,
                reference=singly,
                unit="/s",
                bound=">= 3750 /s",
                reference_is="one session per transaction, first host that fits",
                note=f"{taken:,} sessions of {USERS} users with quotas, GPUs among them, on {hosts:,} hosts: looked at, planned"
                f" with fair share and committed in {seconds:.2f} s; then {told / telling:,.0f} facts/s, each moving its session",
            )
        )
    return rows


# -- what is there -----------------------------------------------------------------------------------------------------
async def _fill(database: Database, sessions: int, hosts: int) -> None:
    users = [UUID(int=1000 + number) for number in range(USERS)]
    async with database.transaction() as connection:
        for number in range(hosts):
            agent_id = await add_agent(connection, f"host{number:05}")
            devices = {f"gpu/{number:05}-{at}": 80_000 for at in range(8)}
            await set_resources(connection, agent_id, {"cpu": 64_000, "mem": 512 * 1024, **devices})
        for cpu, gpus in ((1000, 0), (2000, 0), (4000, 0), (2000, 0), (4000, 1)):
            await add_sessions(connection, sessions // 5, cpu=cpu, mem=8192, gpu=gpus)
        await connection.execute(
            """
            INSERT INTO users (id, email, username, domain)
            SELECT id, id || '@example.org', id, 'default' FROM unnest($1::uuid[]) id
            """,
            users,
        )
        await connection.execute(
            "UPDATE sessions s SET user_id = ($1::uuid[])[1 + n % $2] FROM"
            " (SELECT id, row_number() OVER (ORDER BY id) AS n FROM sessions) o WHERE o.id = s.id",
            users,
            USERS,
        )
        await _limit(connection)
    async with database.reader() as connection:
        await connection.execute("ANALYZE")


async def _limit(connection: Connection) -> None:
    """Of every user's sessions, and of everybody's CPUs together; large enough for all."""
    await connection.execute(
        """
        INSERT INTO quotas (scope, scope_id, name, max_amount, waits)
        SELECT 'user', id::text, 'sessions', 100000, true FROM users UNION ALL
        SELECT 'domain', 'default', 'cpu', 1000000000, true
        """
    )
    await connection.execute(
        """
        INSERT INTO quota_uses (session_id, scope, scope_id, name, amount)
        SELECT id, 'user', user_id::text, 'sessions', 1 FROM sessions UNION ALL
        SELECT session_id, 'domain', 'default', 'cpu', (slots ->> 'cpu')::bigint FROM kernels
        """
    )


# -- ours --------------------------------------------------------------------------------------------------------------
async def _by_the_scheduler(database: Database, sessions: int) -> tuple[int, float]:
    """One step of the loop that the manager runs, from the look at the queue to the last commit."""
    herald = Herald(database.dsn)
    await herald.start()
    try:
        scheduler = Scheduler(database, herald, clock=lambda: NOW)
        scheduler.rest_factor = 0.0  # what it leaves to others afterwards is no part of it
        started = time.perf_counter()
        await scheduler.step()
        seconds = time.perf_counter() - started
    finally:
        await herald.close()
    async with database.reader() as connection:
        taken = await connection.fetchval("SELECT count(*) FROM sessions WHERE status = 'SCHEDULED'") - SINGLY
    assert taken == sessions, taken
    return taken, seconds


async def _tell(database: Database, *, writers: int = 2) -> tuple[int, float]:
    """What agents say of the sessions that were placed, taken in."""
    async with database.reader() as connection:
        rows = await connection.fetch(
            "SELECT id, agent_id, generation FROM kernels WHERE agent_id IS NOT NULL ORDER BY id"
        )
    reports = [
        (
            AgentId(row["agent_id"]),
            Fact(
                kernel_id=row["id"].hex, attempt=1, generation=row["generation"], observed="RUNNING", boot_no=1, seq=1
            ),
        )
        for row in rows
    ]
    batches = [reports[at : at + BATCH] for at in range(0, len(reports), BATCH)]

    async def writer(number: int) -> None:
        for batch in batches[number::writers]:
            async with database.transaction() as connection:
                await record_facts(connection, batch, now=datetime.now(UTC))

    started = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(writers)))
    return len(reports), time.perf_counter() - started


# -- the reference -----------------------------------------------------------------------------------------------------
async def _singly(database: Database) -> float:
    """Sessions per second of the loop that one writes first: take the next, find a host, commit, again."""
    started = time.perf_counter()
    for _ in range(SINGLY):
        async with database.transaction() as connection:
            await _place_next(connection)
    return SINGLY / (time.perf_counter() - started)


async def _place_next(connection: Connection) -> None:
    session = await connection.fetchrow(
        """
        SELECT s.id, k.id AS kernel_id, k.slots FROM sessions s JOIN kernels k ON k.id = s.main_kernel_id
        WHERE s.status = 'PENDING' AND (k.slots ->> 'gpu')::bigint = 0
        ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1 FOR UPDATE OF s SKIP LOCKED
        """
    )
    assert session is not None
    host = await connection.fetchval(
        """
        SELECT a.id FROM agents a JOIN resources c ON c.agent_id = a.id AND c.name = 'cpu'
        JOIN resources m ON m.agent_id = a.id AND m.name = 'mem'
        WHERE a.schedulable AND NOT a.lost AND c.reported - c.used >= $1 AND m.reported - m.used >= $2
        ORDER BY a.id LIMIT 1 FOR UPDATE OF c, m
        """,
        session["slots"]["cpu"],
        session["slots"]["mem"],
    )
    await transit(connection, SessionId(session["id"]), Event.SCHEDULE, cause=SCHEDULER, now=NOW)
    await connection.execute(
        "INSERT INTO allocations (kernel_id, agent_id, name, amount) SELECT $1, $2, * FROM unnest($3::text[], $4::bigint[])",
        session["kernel_id"],
        host,
        ["cpu", "mem"],
        [session["slots"]["cpu"], session["slots"]["mem"]],
    )
    await connection.execute("UPDATE quota_uses SET placed = true WHERE session_id = $1", session["id"])
    await connection.execute(
        "UPDATE kernels SET agent_id = $2, want = 'RUN', generation = generation + 1, next_try_at = $3 WHERE id = $1",
        session["kernel_id"],
        host,
        NOW,
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sessions", type=int, default=SESSIONS)
    arguments.add_argument("--hosts", type=int, default=HOSTS)
    arguments.add_argument("--flush-ms", type=float, nargs="*", default=[0.0, 2.0])
    given = arguments.parse_args()
    show(asyncio.run(measure(os.environ["DATABASE_URL"], given.sessions, given.hosts, given.flush_ms)))
