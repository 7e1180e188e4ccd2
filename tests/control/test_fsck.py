"""Every check of fsck finds the violation that is planted for it, and nothing on a system that is well."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from domain.fsck import Expected, compare
from domain.session import Event
from repositories.audit import chain_audit
from repositories.database import Connection, Database
from repositories.fsck import BY_NAME, CHECKS, find, repair
from repositories.record import AuditRecord, write_audit
from repositories.transit import transit
from repositories.upkeep import stamp_events
from tests.control.rows import NOW, TEST, USER, add_sessions, destroy, fact_of, running, tell

#: What somebody does to the rows by hand, with every guard switched off; $1 is a running session.
PLANTED: Final = {
    "slots_in_use": "UPDATE resources SET used = used + 1000 WHERE name = 'cpu' AND $1::uuid IS NOT NULL",
    "slots_of_the_living": """
        WITH less AS (UPDATE resources SET used = used - 1 WHERE name = 'mem')
        UPDATE allocations SET amount = amount - 1 WHERE name = 'mem'
            AND kernel_id = (SELECT main_kernel_id FROM sessions WHERE id = $1)""",
    "slots_of_the_gone": "UPDATE kernels SET observed = 'GONE' WHERE session_id = $1",
    "devices_in_two_hands": """
        WITH device AS (INSERT INTO resources VALUES ('a', 'gpu/1', 10, 10, 10)),
        whole AS (UPDATE kernels SET slots = slots || '{"gpu": 1}' WHERE session_id = $1 RETURNING id),
        other AS (SELECT id FROM kernels WHERE session_id <> $1 AND want = 'RUN' AND observed = 'RUNNING' LIMIT 1)
        INSERT INTO allocations SELECT id, 'a', 'gpu/1', 6 FROM whole UNION ALL SELECT id, 'a', 'gpu/1', 4 FROM other""",
    "quota_counters": """
        INSERT INTO quotas (scope, scope_id, name, max_amount, used) SELECT 'user', user_id::text, 'cpu', 9, 1
        FROM sessions WHERE id = $1""",
    "two_attempts": "UPDATE kernels SET attempt = 2 WHERE session_id = $1",
    "ends_without_a_reason": "UPDATE sessions SET status_reason = NULL WHERE ended_at IS NOT NULL AND $1::uuid IS NOT NULL",
    "no_deadline": "UPDATE sessions SET deadline_at = NULL WHERE status = 'TERMINATING' AND $1::uuid IS NOT NULL",
    "no_kernels": "DELETE FROM kernels WHERE session_id IN (SELECT id FROM sessions WHERE status = 'PENDING') AND $1::uuid IS NOT NULL",
    "unmet_dependencies": "UPDATE sessions SET unmet = 2 WHERE status = 'PENDING' AND $1::uuid IS NOT NULL",
    "history_head": "UPDATE sessions SET status = 'RUNNING_DEGRADED' WHERE id = $1",
    "history_chain": "DELETE FROM status_history WHERE session_id = $1 AND version = 2",
    "keys_without_an_answer": """
        INSERT INTO idempotency_keys (user_id, key, action, request_hash, created_at)
        SELECT user_id, 'k', 'execute_session', '', created_at - interval '1 day' FROM sessions WHERE id = $1""",
    "left_behind": """
        WITH quota AS (INSERT INTO quotas (scope, scope_id, name, max_amount, used, queued) VALUES ('user', 'u', 'cpu', 9, 0, 1))
        INSERT INTO quota_uses (session_id, scope, scope_id, name, amount)
        SELECT id, 'user', 'u', 'cpu', 1 FROM sessions WHERE ended_at IS NOT NULL AND $1::uuid IS NOT NULL""",
    "overdue": "UPDATE sessions SET deadline_at = created_at - interval '1 hour' WHERE status = 'TERMINATING' AND $1::uuid IS NOT NULL",
    "audit_chain": "UPDATE audit SET outcome = 'never was' WHERE seq = 2 AND $1::uuid IS NOT NULL",
}
#: Of the server, not of rows.
NOT_PLANTED: Final = {"durability", "held_transactions"}


async def a_system_that_is_well(database: Database) -> UUID:
    """Two sessions that run, one that waits, one that ends and one that has ended; with audit rows and numbered events."""
    sessions = await running(database, number=4)
    async with database.transaction() as connection:
        for one in sessions[2:]:
            await transit(connection, one, Event.DESTROY, cause=TEST, now=NOW, reason="as it was asked")
        fact = await fact_of(connection, sessions[3], "GONE", 11)
    await tell(database, "a", fact)
    async with database.transaction() as connection:
        await add_sessions(connection, cpu=10**12)
        for number in range(3):
            record = AuditRecord(
                at=NOW, user_id=USER, access_key="AK", owner_access_key=None, action=f"test{number}", target=None, outcome="ok",
                request_id=None,
            )  # fmt: skip
            await write_audit(connection, record)
        await chain_audit(connection)
        await stamp_events(connection)
    return sessions[0]


async def found(database: Database) -> dict[str, list[str]]:
    """But for the test server's own settings: it does not wait for the disk."""
    async with database.reader() as connection:
        findings = [one for one in await find(connection, now=NOW) if one.check != "durability"]
    return {one.check: [each.subject for each in findings if each.check == one.check] for one in findings}


def test_each_check_has_its_violation() -> None:
    assert PLANTED.keys() | NOT_PLANTED == {*BY_NAME, "audit_chain"}
    assert {check.invariant for check in CHECKS} >= {"I1", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I11"}


@pytest.mark.parametrize("check", PLANTED)
async def test_what_is_planted_is_found_and_put_right(check: str, database: Database) -> None:
    session_id = await a_system_that_is_well(database)
    assert await found(database) == {}
    await plant(database, PLANTED[check], session_id)
    assert check in await found(database)
    if check in BY_NAME and BY_NAME[check].repair is not None:
        async with database.transaction() as connection:
            rows = await repair(connection, [check], now=NOW, cause=TEST)
            await stamp_events(connection)
        assert rows[check] > 0 or check == "left_behind"
        assert await found(database) == {}


async def plant(database: Database, statement: str, session_id: UUID) -> None:
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(statement, session_id)


async def test_a_server_that_forgets_is_named(database: Database) -> None:
    async with database.reader() as connection:
        await connection.execute("SET synchronous_commit = off")
        try:
            findings = await find(connection, now=NOW)
        finally:
            await connection.execute("RESET synchronous_commit")
    assert ("durability", "synchronous_commit") in [(one.check, one.subject) for one in findings]


async def test_very_many_are_counted_and_not_all_told(database: Database) -> None:
    async with database.transaction() as connection:
        await add_sessions(connection, 150)
        await connection.execute("UPDATE sessions SET unmet = 1")
        findings = [one for one in await _found(connection) if one.check == "unmet_dependencies"]
    assert (len(findings), findings[0].of) == (100, 150)


async def _found(connection: Connection) -> list[Any]:
    from repositories.fsck import _find

    return await _find(connection, NOW)


# -- hosts ---------------------------------------------------------------------------------------------------------------
KERNEL, SESSION = uuid4(), uuid4()
ROW = Expected(
    kernel_id=KERNEL, session_id=SESSION, agent_id="a", attempt=2, runs=True, slots={"cpu": 1500, "mem": 512}
)
CONTAINER = {
    "name": "moorage-x", "kernel_id": KERNEL.hex, "attempt": "2", "status": "running", "cpu_milli": 1500,
    "memory_mib": 512, "pids": 4096, "confined": True,
}  # fmt: skip


def checks_of(
    *containers: dict[str, Any], rows: tuple[Expected, ...] = (ROW,), networks: tuple[str, ...] = ()
) -> list[str]:
    census = {"containers": list(containers), "networks": list(networks)}
    return [one.check for one in compare("a", census, rows, {KERNEL})]


def test_a_host_that_is_well() -> None:
    assert checks_of(CONTAINER, networks=(str(SESSION),)) == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"kernel_id": uuid4().hex}, ["stray_container", "missing_container"]),
        ({"kernel_id": None}, ["stray_container", "missing_container"]),
        ({"attempt": "1"}, ["another_attempt", "missing_container"]),
        ({"status": "exited"}, ["dead_container"]),
        ({"status": "paused"}, ["frozen_container"]),
        ({"memory_mib": 0}, ["limits"]),
        ({"cpu_milli": 8000}, ["limits"]),
        ({"confined": False}, ["confinement"]),
        ({"pids": 0}, ["confinement"]),
    ],
)
def test_a_host_that_is_not(change: dict[str, Any], check: list[str]) -> None:
    assert checks_of({**CONTAINER, **change}) == check


def test_what_is_missing_or_left_behind() -> None:
    assert checks_of() == ["missing_container"]
    assert checks_of(CONTAINER, networks=(str(uuid4()),)) == ["network_left_behind"]
    assert checks_of(CONTAINER, rows=()) == ["stray_container"]


async def test_what_is_expected_of_a_host(database: Database) -> None:
    from repositories.fsck import expected

    session_id = await a_system_that_is_well(database)
    async with database.reader() as connection:
        rows = await expected(connection, ["a"])
    assert sorted(row.runs for row in rows) == [False, True, True]  # the one that ends may be there, and need not be
    assert session_id in {row.session_id for row in rows}
    await destroy(database, session_id, Event.DESTROY)  # type: ignore[arg-type]
    async with database.reader() as connection:
        assert sorted(row.runs for row in await expected(connection, ["a"])) == [False, False, True]
