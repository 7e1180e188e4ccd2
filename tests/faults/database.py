"""`python -m tests.faults.database`: everything that can happen to PostgreSQL, to managers side by side, and to clients."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path

from tests.faults import clients, outages, restored, several, standby
from tests.faults.book import Book
from tests.faults.installation import Installation
from tests.faults.managers import managers
from tests.faults.workload import Town

PARTS = ("outages", "measured", "several", "rolling", "clients", "restored", "disk", "failover")


async def with_hosts(folder: Path, book: Book, parts: set[str], *, rounds: int, seconds: float) -> None:
    """On a whole installation with real containers."""
    with Installation.up(folder / "up") as installation:
        words = ("--drain-seconds", "2")
        with managers(
            2, folder, installation.data_dir, installation.dsn, *words, environ=installation.environ
        ) as group:
            for manager in group:
                await manager.ready()
            async with Town.founded(installation, book.seed) as town:
                for number in range(rounds):
                    if "outages" in parts:
                        length = seconds if number == 0 else 3.0
                        for name, fault in outages.outages(length).items():
                            await outages.inject(name, fault, town, book)
                    if "several" in parts:
                        await several.one_key(town, book, group)
                        await several.commits_cut(town, book, times=6)
                        await several.one_hangs(town, book, group, seconds=30.0 if number == 0 else 5.0)
                    if "clients" in parts:
                        await clients.gone(town, book, cuts=8)
                if "measured" in parts:
                    await outages.measured(town, book, times=20 * rounds)
                if "rolling" in parts:
                    await several.rolled(town, book, group, rounds=max(1, rounds // 2))


async def campaign(folder: Path, book: Book, parts: set[str], *, rounds: int, seconds: float) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if parts & {"outages", "measured", "several", "rolling", "clients"}:
        await with_hosts(folder, book, parts, rounds=rounds, seconds=seconds)
    if "restored" in parts:
        with Installation.up(folder / "again") as installation:
            await restored.restored(installation, book)
    if "disk" in parts and standby.is_root():
        await standby.full_disk(folder / "full", book, times=rounds)
    if "failover" in parts:
        await standby.failover(folder, book, times=rounds)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.database")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "1")))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="connections are ended for so long, the first time")
    parser.add_argument("--only", action="append", choices=PARTS, default=[])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/moorage-faults-database"))
    parser.add_argument("--json", type=Path, help="the results, for the ledger")
    given = parser.parse_args()
    book = Book(given.seed)
    parts = set(given.only or PARTS)
    asyncio.run(campaign(given.folder, book, parts, rounds=given.rounds, seconds=given.seconds))
    return book.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
