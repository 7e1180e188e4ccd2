"""What the database refuses, whoever writes: tried with plain SQL, past every repository."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from domain.session import FINAL, TRANSITIONS, Event, Status
from repositories.database import Connection, Database
from tests.scenario import ALICE, HOST, ID, NOW, OTHER_ID, a_row, a_session, insert, kernel_of, stage

_EDGES = {(edge.source, edge.target) for edge in TRANSITIONS}
_QUOTA = a_row("quotas", scope="user", scope_id=str(ALICE.user_id), name="sessions", max_amount=1)


@asynccontextmanager
async def refused(connection: Connection, constraint: str | None = None) -> AsyncIterator[None]:
    """A statement that is refused, in a savepoint so that the next can be tried."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
        async with connection.transaction():
            yield
    if constraint is not None:
        assert caught.value.constraint_name == constraint


@pytest.mark.parametrize("source", list(Status))
async def test_a_status_moves_along_the_table_or_not_at_all(database: Database, source: Status) -> None:
    await stage(database, a_session(source))
    moved = set()
    async with database.transaction() as connection:
        for target in Status:
            if target is source:
                continue
            ended = NOW if target in FINAL else None
            update = "UPDATE sessions SET status = $1, ended_at = $2"
            if (source, target) not in _EDGES:
                async with refused(connection, "sessions_transition_check"):
                    await connection.execute(update, target, ended)
                continue
            undone = connection.transaction()
            await undone.start()
            await connection.execute(update, target, ended)
            await undone.rollback()
            moved.add(target)
    assert moved == {target for one, target in _EDGES if one is source and target is not source}


async def test_a_final_status_is_left_by_a_restart_only(database: Database) -> None:
    async with database.reader() as connection:
        rows = await connection.fetch(
            "SELECT event, target FROM session_transition WHERE source = ANY($1)", [str(s) for s in FINAL]
        )
    assert {(row["event"], row["target"]) for row in rows} == {(Event.RESTART, Status.PENDING)}


@pytest.mark.parametrize(
    "row",
    [
        {"source": "PENDING", "event": "start", "target": "RUNNING"},
        {"source": "RUNNING", "event": "destroy", "target": "TERMINATED"},
        {"source": "TERMINATED", "event": "start", "target": "RUNNING"},
        {"source": "PENDING", "event": None, "target": "SCHEDULED"},
        {"source": None, "event": None, "target": "RUNNING"},
    ],
)
async def test_history_along_an_edge_that_does_not_exist(database: Database, row: dict[str, Any]) -> None:
    await stage(database, a_session())
    async with database.transaction() as connection, refused(connection):
        await insert(connection, "status_history", {"session_id": ID, "version": 2, "at": NOW, **row})


async def test_history_is_numbered_once(database: Database) -> None:
    await stage(database, a_session())
    async with database.transaction() as connection, refused(connection, "status_history_pkey"):
        await insert(connection, "status_history", {"session_id": ID, "version": 1, "target": "PENDING", "at": NOW})


async def test_live_names_are_unique_for_their_owner(database: Database) -> None:
    await stage(database, a_session(), a_session(Status.TERMINATED, id=OTHER_ID))
    third = UUID(int=OTHER_ID.int + 1)
    async with database.transaction() as connection:
        async with refused(connection, "sessions_live_name_key"):
            await a_session(Status.PENDING, id=third).put(connection)  # type: ignore[arg-type]
        async with refused(connection, "sessions_live_name_key"):
            await connection.execute("UPDATE sessions SET status = 'PENDING', ended_at = NULL WHERE id = $1", OTHER_ID)
        await a_session(Status.CANCELLED, id=third).put(connection)  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "ended_at"), [("RUNNING", NOW), ("TERMINATED", None)])
async def test_an_end_has_a_time_and_only_an_end(database: Database, status: str, ended_at: object) -> None:
    await stage(database, a_session(Status.TERMINATED if ended_at is None else Status.RUNNING))
    async with database.transaction() as connection, refused(connection, "sessions_ended_at_check"):
        await connection.execute("UPDATE sessions SET ended_at = $1 WHERE status = $2", ended_at, status)


# -- slots -------------------------------------------------------------------------------------------------------------
async def test_a_host_is_never_overcommitted(database: Database) -> None:
    await stage(database, a_session(), a_session(Status.PENDING, id=OTHER_ID, name="other"))
    take = {"kernel_id": kernel_of(OTHER_ID), "agent_id": HOST, "name": "cpu"}
    async with database.transaction() as connection:
        async with refused(connection, "resources_used_check"):
            await insert(connection, "allocations", {**take, "amount": 7001})
        await insert(connection, "allocations", {**take, "amount": 7000})
        assert await connection.fetchval("SELECT used FROM resources WHERE name = 'cpu'") == 8000
        await connection.execute("DELETE FROM allocations WHERE kernel_id = $1", kernel_of(OTHER_ID))
        assert await connection.fetchval("SELECT used FROM resources WHERE name = 'cpu'") == 1000


async def test_slots_that_no_host_has_cannot_be_taken(database: Database) -> None:
    await stage(database, a_session())
    row = {"kernel_id": kernel_of(ID), "agent_id": HOST, "name": "gpu/1", "amount": 1}
    async with database.transaction() as connection, refused(connection):
        await insert(connection, "allocations", row)


async def test_allocations_and_quota_uses_are_not_edited(database: Database) -> None:
    await stage(database, _QUOTA, a_session())
    async with database.transaction() as connection:
        async with refused(connection):
            await connection.execute("UPDATE allocations SET amount = 1")
        async with refused(connection):
            await connection.execute("UPDATE quota_uses SET scope_id = 'x'")


async def test_a_host_that_shrinks_below_its_use_keeps_it_until_it_is_given_back(database: Database) -> None:
    await stage(database, a_session())
    capacity = "SELECT capacity FROM resources WHERE name = 'cpu'"
    async with database.transaction() as connection:
        await connection.execute("UPDATE resources SET reported = 500, capacity = 1000 WHERE name = 'cpu'")
        async with refused(connection, "resources_used_check"):
            await connection.execute("UPDATE resources SET capacity = 500 WHERE name = 'cpu'")
        await connection.execute("DELETE FROM allocations")
        assert await connection.fetchval(capacity) == 500


async def test_a_quota_is_not_exceeded_and_is_given_back(database: Database) -> None:
    await stage(database, _QUOTA, a_session(), a_session(id=OTHER_ID, name="other"))
    use = {"scope": "user", "scope_id": str(ALICE.user_id), "name": "sessions", "amount": 1}
    async with database.transaction() as connection:
        await insert(connection, "quota_uses", {"session_id": ID, **use})
        async with refused(connection, "quotas_limit_check"):
            await insert(connection, "quota_uses", {"session_id": OTHER_ID, **use})
        await connection.execute("DELETE FROM quota_uses")
        await insert(connection, "quota_uses", {"session_id": OTHER_ID, **use})
        assert await connection.fetchval("SELECT queued FROM quotas") == 1


# -- intents and the audit ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("want = 'NONE'", "kernels_agent_check"),
        ("agent_id = NULL", "kernels_agent_check"),
        ("seen_generation = generation + 1", "kernels_seen_generation_check"),
        ("observed = 'HAPPY'", "kernels_observed_check"),
    ],
)
async def test_an_intent_makes_sense(database: Database, change: str, constraint: str) -> None:
    await stage(database, a_session())
    async with database.transaction() as connection, refused(connection, constraint):
        await connection.execute(f"UPDATE kernels SET {change}")


async def test_the_audit_is_written_once_and_stamped_once(database: Database) -> None:
    await stage(database, a_row("audit", action="rename_session", outcome="ok", at=NOW))
    async with database.transaction() as connection:
        async with refused(connection):
            await connection.execute("UPDATE audit SET outcome = 'denied'")
        async with refused(connection):
            await connection.execute("UPDATE audit SET seq = 1, action = 'destroy_session'")
        async with refused(connection):
            await connection.execute("DELETE FROM audit")
        await connection.execute("UPDATE audit SET seq = 1, chain = 'x'")
        async with refused(connection):
            await connection.execute("UPDATE audit SET seq = 2")
        async with refused(connection):
            await connection.execute("UPDATE audit SET chain = 'y'")
