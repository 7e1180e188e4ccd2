"""What the chain of the audit finds, and what only an exported head finds, against somebody who can write to the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from manager.coalescing import Coalesced
from manager.vault import AuditSeal
from repositories.audit import chain_audit, link
from repositories.audit_proof import Head, Verdict, verify_audit
from repositories.audit_reading import head_of
from repositories.database import Connection, Database
from repositories.record import AuditRecord, write_audit
from repositories.upkeep import Retention, ensure_partitions, purge

NOW = datetime.now(UTC)
KEY = b"k" * 32
ROW = AuditRecord(
    at=NOW,
    user_id=None,
    access_key="AK",
    owner_access_key=None,
    action="rename_session",
    target="t",
    outcome="ok",
    request_id=None,
)


async def rows(connection: Connection, number: int, at: datetime = NOW) -> None:
    for one in range(number):
        await write_audit(connection, replace(ROW, at=at, target=f"{one}"))


@pytest.fixture
async def seal(tmp_path: Path) -> AuditSeal:
    return AuditSeal(KEY, tmp_path / "audit.json")


@pytest.fixture
def own_dsn(fresh_database: Callable[[], str]) -> str:
    """A database whose partitions may be dropped."""
    return fresh_database()


async def chained(database: Database, seal: AuditSeal, number: int = 9) -> None:
    """As a control process does it."""
    async with database.transaction() as connection:
        begun = await seal.begin(connection, now=NOW)
        await rows(connection, number)
        await chain_audit(connection, key=seal.key)
    if begun is not None:
        seal.note(begun)


async def verify(database: Database, seal: AuditSeal, head: Head | None = None) -> Verdict:
    async with database.reader() as connection:
        return await verify_audit(connection, key=seal.key, kept=seal.kept, head=head, page=4)


Attack = Callable[[Connection], Awaitable[object]]


async def with_all_rights(database: Database, attack: Attack) -> None:
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await attack(connection)


async def made_anew(connection: Connection, key: bytes | None = None) -> None:
    """All links, as whoever has no key, or a wrong one, can make them; and the head with them."""
    before, last = b"", 0
    for row in await connection.fetch("SELECT * FROM audit WHERE seq IS NOT NULL ORDER BY seq"):
        last += 1
        before = link(key, before, last, row)
        await connection.execute("UPDATE audit SET seq = $2, chain = $3 WHERE id = $1", row["id"], last, before)
    await connection.execute("UPDATE sequencer SET last_seq = $1, head = $2 WHERE name = 'audit_chain'", last, before)


async def edit(connection: Connection) -> None:
    await connection.execute("UPDATE audit SET outcome = 'permission_denied' WHERE seq = 5")


async def remove(connection: Connection) -> None:
    await connection.execute("DELETE FROM audit WHERE seq = 5")


async def remove_and_close_the_gap(connection: Connection) -> None:
    await connection.execute("DELETE FROM audit WHERE seq = 5")
    await connection.execute("UPDATE audit SET seq = seq - 1 WHERE seq > 5")
    await connection.execute("UPDATE sequencer SET last_seq = last_seq - 1 WHERE name = 'audit_chain'")


async def swap(connection: Connection) -> None:
    await connection.execute("UPDATE audit SET seq = 11 - seq WHERE seq IN (5, 6)")


async def add(connection: Connection) -> None:
    await connection.execute("UPDATE audit SET seq = seq + 1 WHERE seq >= 5")
    await rows(connection, 1)
    await connection.execute("UPDATE audit SET seq = 5, chain = 'x' WHERE seq IS NULL")
    await connection.execute("UPDATE sequencer SET last_seq = last_seq + 1 WHERE name = 'audit_chain'")


async def remove_the_beginning(connection: Connection) -> None:
    await connection.execute("DELETE FROM audit WHERE seq < 4")


async def remove_the_beginning_and_say_it_was_old(connection: Connection) -> None:
    chain = await connection.fetchval("SELECT chain FROM audit WHERE seq = 3")
    await connection.execute("DELETE FROM audit WHERE seq < 4")
    await connection.execute(
        "INSERT INTO audit_anchors (kind, seq, chain, at, mac) VALUES ('forgotten', 3, $1, now(), $1)", chain
    )


async def remove_all(connection: Connection) -> None:
    await connection.execute("DELETE FROM audit")


async def edit_and_make_links_anew(connection: Connection) -> None:
    await edit(connection)
    await made_anew(connection)


async def edit_and_make_links_with_another_key(connection: Connection) -> None:
    await edit(connection)
    await made_anew(connection, b"another")


async def edit_and_say_that_no_link_needs_a_key(connection: Connection) -> None:
    await edit_and_make_links_anew(connection)
    await connection.execute("DELETE FROM audit_anchors")


async def edit_and_say_that_keyed_links_begin_later(connection: Connection) -> None:
    await edit_and_make_links_anew(connection)
    await connection.execute("UPDATE audit_anchors SET seq = 9, chain = (SELECT chain FROM audit WHERE seq = 9)")


ATTACKS: tuple[Attack, ...] = (
    edit, remove, remove_and_close_the_gap, swap, add, remove_the_beginning, remove_the_beginning_and_say_it_was_old, remove_all,
    edit_and_make_links_anew, edit_and_make_links_with_another_key, edit_and_say_that_no_link_needs_a_key,
    edit_and_say_that_keyed_links_begin_later,
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_every_edit_removal_and_reordering_is_found(database: Database, seal: AuditSeal, attack: Attack) -> None:
    await chained(database, seal)
    whole = await verify(database, seal)
    assert (whole.broken_at, whole.rows, whole.keyed_since) == (None, 9, 0)
    await with_all_rights(database, attack)
    broken = await verify(database, seal)
    assert broken.broken_at is not None
    assert broken.why


async def test_what_was_taken_away_from_the_beginning_of_keyed_links_is_never_vouched_for_anew(
    database: Database, seal: AuditSeal
) -> None:
    await chained(database, seal)
    await with_all_rights(database, edit_and_say_that_no_link_needs_a_key)
    await chained(database, AuditSeal(KEY, seal._note), 3)  # a manager that is started anew
    broken = await verify(database, seal)
    assert broken.why is not None
    assert "written down" in broken.why


async def test_a_cut_end_is_found_by_an_exported_head_and_by_nothing_else(database: Database, seal: AuditSeal) -> None:
    await chained(database, seal)
    async with database.reader() as connection:
        head = await head_of(connection)

    async def cut(connection: Connection) -> None:
        await connection.execute("DELETE FROM audit WHERE seq > 6")
        await connection.execute(
            "UPDATE sequencer SET last_seq = 6, head = (SELECT chain FROM audit WHERE seq = 6) WHERE name = 'audit_chain'"
        )

    await with_all_rights(database, cut)
    assert (await verify(database, seal)).broken_at is None
    found = await verify(database, seal, head)
    assert (found.broken_at, found.why) == (7, "the exported head is row 9: what came after row 6 was cut off")
    await chained(database, seal, 5)  # and what comes after does not hide it
    found = await verify(database, seal, head)
    assert found.broken_at == 9


async def test_links_of_an_older_version_are_vouched_for_as_they_were(database: Database, seal: AuditSeal) -> None:
    async with database.transaction() as connection:
        await rows(connection, 4)
        await chain_audit(connection)
    await chained(database, seal, 4)
    whole = await verify(database, seal)
    assert (whole.broken_at, whole.rows, whole.keyed_since) == (None, 8, 4)

    async def edit_and_fit(connection: Connection) -> None:
        await connection.execute("UPDATE audit SET target = 'x' WHERE seq = 2")
        before = b""
        for row in await connection.fetch("SELECT * FROM audit WHERE seq <= 4 ORDER BY seq"):
            before = link(None, before, row["seq"], row)
            await connection.execute("UPDATE audit SET chain = $2 WHERE id = $1", row["id"], before)

    await with_all_rights(database, edit_and_fit)
    assert (await verify(database, seal)).broken_at is not None


async def test_what_is_forgotten_by_age_leaves_the_rest_proved(own_dsn: str, seal: AuditSeal) -> None:
    database = await Database.connect(own_dsn)
    try:
        old, keep = NOW - timedelta(days=3), Retention(audit_days=2)
        async with database.reader() as connection:
            await ensure_partitions(connection, now=old, keep=keep)
        async with database.transaction() as connection:
            await rows(connection, 5, old)
            await chain_audit(connection, key=seal.key)
        await chained(database, seal, 4)
        async with database.reader() as connection:
            head = await head_of(connection)
            removed = await purge(connection, now=NOW, keep=keep, audit_key=seal.key)
            assert removed["audit"] == 1
            assert await connection.fetchval("SELECT min(seq) FROM audit") == 6
        kept = await verify(database, seal, head)
        assert (kept.broken_at, kept.rows, kept.since) == (None, 4, 5)

        async def more(connection: Connection) -> None:
            await connection.execute("DELETE FROM audit WHERE seq = 6")

        await with_all_rights(database, more)
        assert (await verify(database, seal)).broken_at == 6
    finally:
        await database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET outcome = 'ok'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "UPDATE audit SET seq = 99 WHERE seq = 2",
    ],
)
async def test_the_database_itself_refuses_to_change_rows(database: Database, seal: AuditSeal, statement: str) -> None:
    await chained(database, seal)
    async with database.reader() as connection:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(statement)


async def test_a_refusal_again_and_again_is_two_rows() -> None:
    written: list[AuditRecord] = []
    twice = asyncio.Event()

    async def write(record: AuditRecord) -> None:
        written.append(record)
        if len(written) == 2:
            twice.set()

    kept = Coalesced(write, window_seconds=0.01, most_kinds=2)
    assert [await kept.record("kind", ROW) for _ in range(40)] == [True, *[False] * 39]
    await asyncio.wait_for(twice.wait(), 10)
    assert [record.repeats for record in written] == [1, 39]
    kept = Coalesced(write, window_seconds=60, most_kinds=2)
    assert [await kept.record(number, ROW) for number in range(5)] == [True, True, True, False, False]
