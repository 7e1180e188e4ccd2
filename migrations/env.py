"""Alembic's entry: one connection, one lock, bounded waits."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from repositories.tables import PARTITIONED, metadata

#: Only one manager migrates at a time; the others wait and find nothing left to do.
_LOCK = 7_260_001


def _include(_object: object, name: str | None, kind: str, reflected: bool, _other: object) -> bool:
    is_partition = kind == "table" and reflected and any((name or "").startswith(f"{table}_p") for table in PARTITIONED)
    return not is_partition


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=_include,
        compare_type=True,
        compare_server_default=False,
    )
    with context.begin_transaction():
        # A migration that cannot have its locks quickly gives up, instead of stopping everybody behind it.
        patience = round(1000 * context.config.attributes.get("lock_seconds", 10.0))
        connection.execute(text(f"SET LOCAL lock_timeout = {patience}"))
        connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        context.run_migrations()


async def _main() -> None:
    dsn = context.config.attributes.get("dsn") or os.environ["DATABASE_URL"]
    # by its own driver: SQLAlchemy does not know addresses of several hosts
    engine = create_async_engine(
        "postgresql+asyncpg://", poolclass=pool.NullPool, async_creator=partial(asyncpg.connect, dsn)
    )
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(_main())
