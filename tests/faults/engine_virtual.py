"""1,000 partitions a seed on a clock turned by hand, over a PostgreSQL of their own: nothing runs twice."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from manager.postgres import EmbeddedPostgres
from repositories import migrate
from repositories.database import Database
from tests.faults.book import Book
from tests.faults.partitions import World


async def virtual(folder: Path, book: Book, *, seeds: int = 3) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    postgres = EmbeddedPostgres(folder / "pg", durable=False)
    try:
        for seed in range(book.seed, book.seed + seeds):
            await _one(postgres, book, seed)
    finally:
        await asyncio.to_thread(postgres.stop)
        shutil.rmtree(folder, ignore_errors=True)


async def _one(postgres: EmbeddedPostgres, book: Book, seed: int) -> None:
    dsn = await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(migrate.upgrade, dsn)
    database = await Database.connect(dsn)
    try:
        world = World(database, seed, hosts=125, cuts=8)
        await world.run()
    finally:
        await database.close()
    await asyncio.to_thread(postgres.stop)
    shutil.rmtree(postgres.data_dir)
    name = f"{world.cuts} partitions in virtual time, {world.replaced} replacements (seed {seed})"
    book.fault(name, world.violations)
