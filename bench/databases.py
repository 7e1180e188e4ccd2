"""A database of one's own on the installation's server, with the log's flushes as slow as wanted; dropped at the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from bench.installation import Installation


def server_of(installation: Installation) -> str:
    config = tomllib.loads((installation.data_dir / "manager.toml").read_text())
    return str(config["database_url"])


@asynccontextmanager
async def fresh_database(server: str, *, flush_ms: float, always: bool = True) -> AsyncIterator[str]:
    """Its DSN, migrated. `flush_ms` stands in for a slower disk: commit_delay makes each flush of the log wait so long;
    not `always`: only while others commit too, as PostgreSQL does when nothing else is said."""
    name = f"moorage_bench_{uuid4().hex[:8]}"
    dsn = urlunsplit(urlsplit(server)._replace(path=f"/{quote(name)}"))
    admin = await asyncpg.connect(server)
    await admin.execute(f'CREATE DATABASE "{name}"')
    try:
        for setting in (f"commit_delay = {int(flush_ms * 1000)}", f"commit_siblings = {0 if always else 5}"):
            await admin.execute(f'ALTER DATABASE "{name}" SET {setting}')
        # in a process of its own: Alembic runs an event loop
        command = [sys.executable, "-m", "repositories.migrate"]
        await asyncio.to_thread(
            subprocess.run, command, env={**environ, "DATABASE_URL": dsn}, check=True, capture_output=True
        )
        yield dsn
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()
