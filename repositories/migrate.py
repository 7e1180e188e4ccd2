"""Bring a database to this version's schema, and back."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from domain.errors import DatabaseUnavailable
from repositories.database import Database

_PATIENCE_SECONDS: Final = 60.0


def config(dsn: str) -> Config:
    """Alembic's configuration for one database, wherever this is installed."""
    made = Config()
    made.set_main_option("script_location", str(Path(migrations.__file__).parent))
    made.attributes["dsn"] = dsn
    return made


def newest_revision() -> str:
    """Of this version."""
    revision = ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head()
    assert revision is not None
    return revision


def knows(revision: str) -> bool:
    """Whether this version can go on from a database of that revision."""
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    return revision in {script.revision for script in scripts.walk_revisions()}


def pending(revision: str | None) -> list[tuple[str, str]]:
    """(revision, what it does) of everything between that and this version, in order."""
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    steps = scripts.iterate_revisions(newest_revision(), revision or "base")
    return [(step.revision, (step.doc or "").splitlines()[0]) for step in steps][::-1]


def upgrade(dsn: str, revision: str = "head", *, lock_seconds: float = 10.0) -> None:
    """Blocking; runs its own event loop. Safe to call from several managers at once. All of it, or nothing."""
    made = config(dsn)
    made.attributes["lock_seconds"] = lock_seconds
    command.upgrade(made, revision)


def waited_in_vain(error: BaseException | None) -> bool:
    """Whether this is a lock that did not come free in time."""
    while error is not None:
        if getattr(error, "sqlstate", None) == "55P03" or isinstance(error, asyncpg.LockNotAvailableError):
            return True
        error = error.__cause__
    return False


async def revision_of(dsn: str) -> str | None:
    """Of the schema in this database; None when there is none. Raises DatabaseUnavailable."""
    database = await Database.connect(dsn, max_size=1)
    try:
        async with database.reader() as connection:
            if not await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
                return None
            revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
            return revision
    finally:
        await database.close()


def downgrade(dsn: str, revision: str) -> None:
    command.downgrade(config(dsn), revision)


async def _patiently(dsn: str) -> str | None:
    """After a reboot the database may come later than the managers."""
    until = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while True:
        try:
            return await revision_of(dsn)
        except DatabaseUnavailable:
            if asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(0.5)


def start(dsn: str) -> None:
    """At the start of a manager. In the middle of an upgrade, one of the version before finds a schema that it does not know
    and that was made to fit it, too: migrations add first, and take away a release later."""
    revision = asyncio.run(_patiently(dsn))
    if revision is not None and not knows(revision):
        print(f"the database's schema is {revision}, of a newer version; going on with it", file=sys.stderr)
        return
    upgrade(dsn)


if __name__ == "__main__":
    # from standard input by the manager: what is in the environment of a process can be read for as long as it runs
    start(os.environ.get("DATABASE_URL") or sys.stdin.read().strip())
