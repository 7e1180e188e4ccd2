"""Events get their order, the audit its chain, and nothing grows for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.session import Event
from repositories.audit import chain_audit
from repositories.audit_proof import verify_audit
from repositories.database import Connection, Database
from repositories.record import AuditRecord, write_audit
from repositories.transit import emit
from repositories.upkeep import (
    Retention,
    ensure_partitions,
    lead,
    purge,
    stamp_events,
)
from tests.control.rows import NOW, TEST, USER, add_sessions, destroy, running

KEEP = Retention()
OLD = datetime.now(UTC)
YOUNG_ENOUGH = timedelta(hours=12)


# -- order -------------------------------------------------------------------------------------------------------------
async def test_a_reader_by_seq_misses_nothing_of_eight_writers(database: Database) -> None:
    writing = True

    async def writer(number: int) -> None:
        for at in range(40):
            async with database.transaction() as connection:
                for part in range(3):
                    await emit(connection, "test", now=OLD, cause=TEST, data={"writer": number, "at": at * 3 + part})
                    await asyncio.sleep(0)

    async def sequencer() -> None:
        while True:
            last_round = not writing
            async with database.transaction() as connection:
                stamped = await stamp_events(connection, limit=50)
            if last_round and not stamped:
                return

    async def reader() -> list[tuple[int, dict[str, Any]]]:
        seen: list[tuple[int, dict[str, Any]]] = []
        while len(seen) < 8 * 40 * 3:
            async with database.reader() as connection:
                rows = await connection.fetch(
                    "SELECT seq, data FROM events WHERE seq > $1 ORDER BY seq", seen[-1][0] if seen else 0
                )
            seen += [(row["seq"], row["data"]) for row in rows]
        return seen

    reading = [asyncio.create_task(reader()) for _ in range(2)]
    numbering = [asyncio.create_task(sequencer()) for _ in range(2)]  # a second leader does no harm
    await asyncio.gather(*(writer(number) for number in range(8)))
    writing = False
    async with asyncio.timeout(30):
        await asyncio.gather(*numbering)
        first, second = await asyncio.gather(*reading)
    assert first == second
    assert [seq for seq, _ in first] == list(range(1, 961))
    for number in range(8):
        assert [data["at"] for _, data in first if data["writer"] == number] == list(range(120))


async def test_one_leads_at_a_time(database: Database) -> None:
    async with database.transaction() as one, database.transaction() as two:
        assert await lead(one, "x")
        assert not await lead(two, "x")
        assert await lead(two, "y")
    async with database.transaction() as two:
        assert await lead(two, "x")


async def audit(connection: Connection, number: int, at: datetime = OLD) -> None:
    for n in range(number):
        record = AuditRecord(
            at=at, user_id=USER, access_key="AK", owner_access_key=None, action=f"a{n}", target="t", outcome="ok",
            request_id=None,
        )  # fmt: skip
        await write_audit(connection, record)


async def test_the_chain_verifies_across_batches(database: Database) -> None:
    async with database.transaction() as connection:
        assert (await verify_audit(connection)).broken_at is None
        for batch in (3, 1, 7):
            await audit(connection, batch)
            assert await chain_audit(connection) == batch
        assert await chain_audit(connection) == 0
        await audit(connection, 2)  # not chained yet, not wrong either
        verdict = await verify_audit(connection, page=4)
    assert (verdict.rows, verdict.broken_at) == (11, None)
    assert len(verdict.head) == 32


@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        ("UPDATE audit SET target = 'other' WHERE seq = 4", 4),
        ("DELETE FROM audit WHERE seq = 4", 4),
        ("DELETE FROM audit WHERE seq = 10", 10),
        ("DELETE FROM audit WHERE seq = 1", None),  # the oldest ones go with their partition; what is left is proved
        ("UPDATE audit SET seq = CASE seq WHEN 4 THEN 5 ELSE 4 END WHERE seq IN (4, 5)", 4),
        ("UPDATE audit SET at = at + interval '1 second' WHERE seq = 7", 7),
    ],
)
async def test_every_edit_of_the_audit_is_found(database: Database, tampering: str, broken_at: int | None) -> None:
    async with database.transaction() as connection:
        await audit(connection, 10)
        await chain_audit(connection)
        await connection.execute("SET LOCAL session_replication_role = replica")  # past the trigger, as a superuser may
        await connection.execute(tampering)
        assert (await verify_audit(connection)).broken_at == broken_at


@pytest.fixture
def own_dsn(fresh_database: Callable[[], str]) -> str:
    """A database whose partitions may be dropped."""
    return fresh_database()


# -- retention -----------------------------------------------------------------------------------------------------------
async def count(database: Database, table: str) -> int:
    async with database.reader() as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def purged(database: Database, **after: float) -> dict[str, int]:
    async with database.reader() as connection:
        return await purge(connection, now=OLD + timedelta(**after), keep=KEEP)


ROWS = {
    "idempotency_keys": (
        "INSERT INTO idempotency_keys (user_id, key, action, request_hash, created_at) VALUES ($2, 'k', 'a', '', $1)",
        KEEP.idempotency_keys_days,
    ),
    "tasks": (
        "INSERT INTO tasks (id, action, user_id, status, finished_at) VALUES ($2, 'a', $2, 'done', $1)",
        KEEP.tasks_days,
    ),
    "agent_tokens": (
        "INSERT INTO agent_tokens (secret_hash, expires_at, used_at) VALUES (uuid_send($2::uuid), $1::timestamptz + interval '1 year', $1)",
        KEEP.tokens_days,
    ),
    "run_readers": (
        "INSERT INTO run_readers (id, state, read_at) VALUES ($2, '{}', $1)",
        KEEP.run_readers_days,
    ),
    "used_signatures": (
        "INSERT INTO used_signatures (signature, good_until) VALUES (uuid_send($2::uuid), $1)",
        KEEP.used_signatures_days,
    ),
    "sign_in_debts": (
        "INSERT INTO sign_in_debts (key, until_at) VALUES (uuid_send($2::uuid), $1)",
        KEEP.sign_in_debts_days,
    ),
    "managers": ("INSERT INTO managers (id, role, seen_at) VALUES ($2, 'api', $1)", KEEP.managers_days),
    "tokens": (
        """
        WITH u AS (INSERT INTO users (id, email, username, domain) VALUES ($2, 'u', 'u', 'default') RETURNING id),
        k AS (INSERT INTO keypairs (access_key, secret_hash, user_id) SELECT 'AK', '', id FROM u RETURNING access_key)
        INSERT INTO tokens (id, token_hash, access_key, name, expires_at) SELECT $2, '', access_key, 'n', $1 FROM k
        """,
        KEEP.tokens_days,
    ),
}


@pytest.mark.parametrize("table", sorted(ROWS))
async def test_old_rows_go_and_young_ones_stay(database: Database, table: str) -> None:
    insert, days = ROWS[table]
    async with database.reader() as connection:
        await connection.execute(insert, OLD, USER)
    await purged(database, days=days, hours=-1)
    assert await count(database, table) == 1
    assert (await purged(database, days=days, hours=1))[table] == 1
    assert await count(database, table) == 0


async def test_unfinished_tasks_and_unused_tokens_stay(database: Database) -> None:
    async with database.reader() as connection:
        await connection.execute("INSERT INTO tasks (id, action, user_id) VALUES ($1, 'a', $1)", USER)
        await connection.execute(
            "INSERT INTO agent_tokens (secret_hash, expires_at) VALUES ('', $1)", OLD + timedelta(days=999)
        )
    await purged(database, days=900)
    assert await count(database, "tasks") == await count(database, "agent_tokens") == 1


async def test_an_ended_session_goes_with_all_that_is_its_own(database: Database) -> None:
    live, ended, held = await running(database, number=3)
    await destroy(database, ended, Event.FORCE)
    await destroy(database, held, Event.FORCE)  # its host has not said that it is gone
    async with database.reader() as connection:
        await connection.execute("UPDATE sessions SET ended_at = $1 WHERE ended_at IS NOT NULL", OLD)
        await connection.execute(
            "DELETE FROM allocations WHERE kernel_id IN (SELECT id FROM kernels WHERE session_id = $1)", ended
        )
    await purged(database, days=KEEP.sessions_days, hours=-1)
    assert await count(database, "sessions") == 3
    assert (await purged(database, days=KEEP.sessions_days, hours=1))["sessions"] == 1
    async with database.reader() as connection:
        assert {row["id"] for row in await connection.fetch("SELECT id FROM sessions")} == {live, held}
        for table in ("kernels", "status_history"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table} WHERE session_id = $1", ended) == 0


async def test_executions_lose_their_output_first_and_go_later(database: Database) -> None:
    [session_id] = await running(database)
    insert = """
        INSERT INTO executions (run_id, session_id, kernel_id, agent_id, user_id, request_hash, mode, status, finished_at, tail)
        VALUES ($1, $2, $1, 'a', $1, '', 'query', $3, $4, 'output')
    """
    async with database.reader() as connection:
        await connection.execute(insert, uuid4(), session_id, "done", OLD)
        await connection.execute(insert, uuid4(), session_id, "running", None)
    assert (await purged(database, days=KEEP.output_days, hours=-1))["output"] == 0
    assert (await purged(database, days=KEEP.output_days, hours=1))["output"] == 1
    assert (await purged(database, days=KEEP.executions_days, hours=-1))["executions"] == 0
    assert (await purged(database, days=KEEP.executions_days, hours=1))["executions"] == 1
    assert await count(database, "executions") == 1
    # nobody will ever report the end of a run whose session is gone
    await destroy(database, session_id, Event.FORCE)
    async with database.reader() as connection:
        await connection.execute("UPDATE sessions SET ended_at = $1", OLD)
    assert (await purged(database, minutes=50))["lost_runs"] == 0
    assert (await purged(database, minutes=70))["lost_runs"] == 1


@pytest.mark.parametrize(("table", "days"), [("events", KEEP.events_days), ("audit", KEEP.audit_days)])
async def test_events_and_audit_go_by_whole_days(own_dsn: str, table: str, days: int) -> None:
    database = await Database.connect(own_dsn)
    async with database.reader() as connection:
        await emit(connection, "test", now=OLD, cause=TEST)
        await audit(connection, 1)
    assert (await purged(database, days=days))[table] == 0
    assert await count(database, table) == 1
    assert (await purged(database, days=days + 1, hours=1))[table] >= 1
    assert await count(database, table) == 0
    await database.close()


async def test_partitions_are_made_ahead_and_rows_without_one_are_forgotten_too(own_dsn: str) -> None:
    database = await Database.connect(own_dsn)
    far = OLD + timedelta(days=60)
    async with database.reader() as connection:
        await emit(connection, "test", now=far, cause=TEST)
        await audit(connection, 1, at=far)
        assert await connection.fetchval("SELECT count(*) FROM events_p_rest") == 1
        # that day's rows keep its partition from being made; the others come
        of_days, hours = 3 * KEEP.partitions_ahead_days, 3
        assert await ensure_partitions(connection, now=far, keep=KEEP) == of_days - 2 + hours
        assert await ensure_partitions(connection, now=far, keep=KEEP) == 0
        removed = await purge(connection, now=far + timedelta(days=500), keep=KEEP)
        assert min(removed["events"], removed["audit"]) > 1
        assert await connection.fetchval("SELECT count(*) FROM events_p_rest") == 0
        assert await connection.fetchval("SELECT count(*) FROM audit_p_rest") == 0
    await database.close()


async def test_every_table_that_grows_has_a_term(database: Database) -> None:
    """A new table is either named here as one that does not grow by use, or gets a purger."""
    owned_by_sessions = {
        "kernels", "allocations", "status_history", "quota_uses", "idle_warnings", "idle_exemptions", "cluster_networks",
        "session_dependencies", "services", "service_instances", "volume_mounts",
        "workers",
    }  # fmt: skip
    administrators = {
        "agents", "alembic_version", "domains", "image_aliases", "images", "keypairs", "project_members", "projects",
        "quotas", "resource_group_access", "resource_groups", "resources", "fair_shares", "fair_usage", "sequencer",
        "policies", "policy_assignments", "policy_limits", "devices", "audit_anchors",
        "session_template_versions", "session_templates", "session_transition", "apps", "app_versions", "app_chunks",
        "users", "passwords", "watch_rules", "webhook_secrets", "registries", "ssh_keys", "volumes", "volume_shares",
    }  # fmt: skip
    async with database.reader() as connection:
        rows = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
        )
        await add_sessions(connection)
        named = set(await purge(connection, now=NOW, keep=KEEP))
    assert {row["relname"] for row in rows} <= owned_by_sessions | administrators | named
