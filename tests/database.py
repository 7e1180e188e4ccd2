"""Fixtures: a real PostgreSQL, migrated once into a template, one copy per test worker, emptied before each test.

A `DATABASE_URL` is used when it is given (of a superuser, in a database of its own), else the embedded one is started.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest

from manager.postgres import EmbeddedPostgres
from repositories import migrate
from repositories.database import Database

T = TypeVar("T")


class Server:
    """One PostgreSQL on which databases are made and dropped; with a loop of its own, so that any fixture may call it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._connections: dict[str, asyncpg.Connection[Any]] = {}
        self._made: list[str] = []
        self.name = f"moorage_test_{uuid.uuid4().hex[:8]}"

    def dsn_of(self, database: str) -> str:
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{quote(database)}"))

    def create(self, database: str, template: str) -> str:
        self._made.append(database)
        self.execute(self._dsn, f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.dsn_of(database)

    def drop(self, database: str) -> None:
        self._close(self.dsn_of(database))
        self.execute(self._dsn, f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        self._made.remove(database)

    def execute(self, dsn: str, sql: str) -> None:
        self._wait(self._connection(dsn).execute(sql))

    def fetch(self, dsn: str, sql: str) -> list[asyncpg.Record]:
        return self._wait(self._connection(dsn).fetch(sql))

    def close(self) -> None:
        for database in reversed(self._made.copy()):
            self.drop(database)
        for dsn in list(self._connections):
            self._close(dsn)
        self._loop.close()

    def release(self, dsn: str) -> None:
        """No connection of ours is left on it: PostgreSQL copies a template only then."""
        self._close(dsn)

    def _connection(self, dsn: str) -> asyncpg.Connection[Any]:
        if dsn not in self._connections:
            self._connections[dsn] = self._wait(asyncpg.connect(dsn))
        return self._connections[dsn]

    def _close(self, dsn: str) -> None:
        if connection := self._connections.pop(dsn, None):
            self._wait(connection.close())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for this test worker."""
    if given := os.environ.get("DATABASE_URL"):
        server = Server(given)
        yield server
        server.close()
        return
    folder = Path(tempfile.mkdtemp(prefix="moorage-test-"))
    embedded = EmbeddedPostgres(folder / "pg", durable=False)
    try:
        embedded.start()
        server = Server(embedded.dsn)
        yield server
        server.close()
    finally:
        embedded.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(postgres: Server) -> str:
    """The name of a database that holds the schema of this version, and what the migrations put in."""
    name = f"{postgres.name}_template"
    migrate.upgrade(postgres.create(name, "template1"))
    postgres.release(postgres.dsn_of(name))
    return name


class Reset:
    """Bring a database back to what the template holds, by DELETE: TRUNCATE takes eighty times as long."""

    def __init__(self, server: Server, dsn: str) -> None:
        self._server, self._dsn = server, dsn
        tables = [row["name"] for row in server.fetch(dsn, _TABLES)]
        counted = " UNION ALL ".join(f"SELECT '{name}' AS name WHERE EXISTS (SELECT FROM {name})" for name in tables)
        seeded = {row["name"] for row in server.fetch(dsn, counted)} if tables else set()
        server.execute(dsn, "CREATE SCHEMA seed; " + "; ".join(f"CREATE TABLE seed.{t} AS TABLE {t}" for t in seeded))
        # A function, whose statements are planned once for this connection. As a replica, for good: neither triggers nor
        # foreign keys have a say in what is removed or in which order, and a change of the role forgets all plans.
        steps = [_STRAGGLERS, *(f"DELETE FROM {table}" for table in tables)]
        steps += [f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM seed.{table}" for table in sorted(seeded)]
        body = "".join(f"{step}; " for step in steps)
        server.execute(dsn, f"CREATE FUNCTION seed.reset() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body}END $$")
        server.execute(dsn, "SET session_replication_role = replica; SET lock_timeout = '10s'")

    def __call__(self) -> None:
        self._server.execute(self._dsn, "SELECT seed.reset()")


#: What another process was writing when the test before ended it.
_STRAGGLERS = """
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'
"""

_TABLES = """
    SELECT quote_ident(relname) AS name FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
      AND relname <> 'alembic_version'
    ORDER BY relname
"""


@pytest.fixture(scope="session")
def worker_database(postgres: Server, template: str) -> tuple[str, Reset]:
    dsn = postgres.create(f"{postgres.name}_worker", template)
    return dsn, Reset(postgres, dsn)


@pytest.fixture
def dsn(worker_database: tuple[str, Reset]) -> str:
    """A migrated database without rows but the migrations' own, for this test alone."""
    found, reset = worker_database
    reset()
    return found


@pytest.fixture(scope="session")
async def kept(worker_database: tuple[str, Reset]) -> AsyncIterator[Database]:
    """On the loop that all tests run in."""
    opened = await Database.connect(worker_database[0])
    yield opened
    await opened.close()


@pytest.fixture
async def database(dsn: str, kept: Database) -> AsyncIterator[Database]:
    """The same, connected, as for all tests: a new connection reads the catalogues anew, which takes longer than most."""
    before = asyncio.all_tasks()
    yield kept
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    for task in left:  # requests whose clients have gone, for example: they would write into the next test
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture
def fresh_database(postgres: Server, template: str) -> Iterator[Callable[..., str]]:
    """`fresh_database()` makes one more, `fresh_database(empty=True)` one without a schema; dropped at the end."""
    made: list[str] = []

    def make(*, empty: bool = False) -> str:
        made.append(f"{postgres.name}_{uuid.uuid4().hex[:6]}")
        return postgres.create(made[-1], "template1" if empty else template)

    yield make
    for name in made:
        postgres.drop(name)
