"""The schema that migrations make is the declared one, and every migration goes down and up again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from domain.session import TRANSITIONS
from repositories import migrate
from repositories.database import sqlalchemy_url
from repositories.tables import metadata
from tests.database import Server

#: What a table is made of, in PostgreSQL's own words; partitions are of their parents.
_CATALOG = {
    "columns": """
        SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
            || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END || a.attidentity::text
            || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '') AS line
        FROM pg_attribute a JOIN tables c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE a.attnum > 0 AND NOT a.attisdropped
    """,
    "constraints": """
        SELECT c.relname || ' ' || k.conname || ' ' || pg_get_constraintdef(k.oid) AS line
        FROM pg_constraint k JOIN tables c ON c.oid = k.conrelid WHERE k.contype IN ('c', 'f', 'p', 'u', 'x')
    """,
    "indexes": "SELECT pg_get_indexdef(i.indexrelid) AS line FROM pg_index i JOIN tables c ON c.oid = i.indrelid",
}
_TABLES = """
    WITH tables AS (SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'alembic_version')
"""
#: Everything that a migration could leave behind.
_LEFT = """
    SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1
"""


def catalog(postgres: Server, dsn: str) -> dict[str, list[str]]:
    return {
        kind: sorted(row["line"] for row in postgres.fetch(dsn, f"{_TABLES} {query}"))
        for kind, query in _CATALOG.items()
    }


def declare(dsn: str) -> None:
    async def create() -> None:
        engine = create_async_engine(sqlalchemy_url(dsn), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await engine.dispose()

    asyncio.run(create())


def revisions() -> list[str]:
    script = ScriptDirectory.from_config(migrate.config("postgresql://"))
    return [revision.revision for revision in reversed(list(script.walk_revisions()))]


def test_alembic_finds_no_difference(fresh_database: Callable[..., str]) -> None:
    command.check(migrate.config(fresh_database()))


@pytest.mark.parametrize("kind", sorted(_CATALOG))
def test_the_migrated_schema_is_the_declared_one(
    postgres: Server, fresh_database: Callable[..., str], kind: str
) -> None:
    """To the letter, checks and conditions of indexes included, which Alembic does not compare."""
    declared = fresh_database(empty=True)
    declare(declared)
    lines = catalog(postgres, fresh_database())[kind]
    assert len(lines) > 20
    assert lines == catalog(postgres, declared)[kind]


def test_every_migration_goes_down_and_up_again(postgres: Server, fresh_database: Callable[..., str]) -> None:
    dsn = fresh_database(empty=True)
    for revision in revisions():
        migrate.upgrade(dsn, revision)
        there = catalog(postgres, dsn)
        migrate.downgrade(dsn, "-1")
        migrate.upgrade(dsn, revision)
        assert catalog(postgres, dsn) == there, revision
    migrate.downgrade(dsn, "base")
    assert [row["name"] for row in postgres.fetch(dsn, _LEFT)] == ["alembic_version", "alembic_version_pkc"]
    migrate.upgrade(dsn)
    assert catalog(postgres, dsn) == catalog(postgres, fresh_database())


def test_upgrading_again_changes_nothing(postgres: Server, fresh_database: Callable[..., str]) -> None:
    dsn = fresh_database()
    before = catalog(postgres, dsn)
    migrate.upgrade(dsn)
    assert catalog(postgres, dsn) == before


def test_the_rows_of_legal_transitions_are_the_declared_table(
    postgres: Server, fresh_database: Callable[..., str]
) -> None:
    rows = postgres.fetch(fresh_database(), "SELECT source, event, target FROM session_transition")
    assert {tuple(row) for row in rows} == {(str(t.source), str(t.event), str(t.target)) for t in TRANSITIONS}
