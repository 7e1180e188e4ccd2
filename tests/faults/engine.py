"""Faults of engines, containers, networks and clocks, one after the other, each judged by fsck and from outside.

python -m tests.faults.engine [--seed N] [--most N] [--folder DIR] [STORY...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.faults.book import Book
from tests.faults.engine_agent import agent
from tests.faults.engine_containers import containers
from tests.faults.engine_daemon import daemon
from tests.faults.engine_output import output
from tests.faults.engine_partitions import partitions
from tests.faults.engine_replies import replies
from tests.faults.engine_virtual import virtual

ROOT = Path(__file__).resolve().parents[2]


async def _replies(folder: Path, book: Book, most: int | None) -> None:
    await replies(folder, book, most=most)


async def _daemon(folder: Path, book: Book, most: int | None) -> None:
    await daemon(folder, book)


async def _containers(folder: Path, book: Book, most: int | None) -> None:
    await containers(folder, book, rounds=1 if most is not None else 5)


async def _partitions(folder: Path, book: Book, most: int | None) -> None:
    await partitions(folder, book)


async def _agent(folder: Path, book: Book, most: int | None) -> None:
    await agent(folder, book, number=200 if most is None else most)


async def _virtual(folder: Path, book: Book, most: int | None) -> None:
    await virtual(folder, book, seeds=3 if most is None else 1)


async def _output(folder: Path, book: Book, most: int | None) -> None:
    await output(folder, book, mebibytes=3072 if most is None else 256)


STORIES: dict[str, Callable[[Path, Book, int | None], Coroutine[Any, Any, None]]] = {
    "virtual": _virtual,
    "replies": _replies,
    "daemon": _daemon,
    "containers": _containers,
    "agent": _agent,
    "partitions": _partitions,
    "output": _output,
}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.engine", description=__doc__)
    parser.add_argument("stories", nargs="*", metavar="STORY", help=", ".join(STORIES))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--most", type=int, help="so many faults of each story")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="write everything that was seen here")
    asked = parser.parse_args(words)
    unknown = set(asked.stories) - set(STORIES)
    if unknown:
        parser.error(f"no story is called {', '.join(sorted(unknown))}")
    _find_engine()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="moorage-faults-", dir="/var/tmp"))
    book = Book(asked.seed)
    for name in asked.stories or STORIES:
        asyncio.run(STORIES[name](folder / name, book, asked.most))
    return book.finish(asked.json)


def _find_engine() -> None:
    subprocess.run([ROOT / "scripts/engine", "up"], check=True)
    told = subprocess.run([ROOT / "scripts/engine", "env"], capture_output=True, text=True, check=True)
    os.environ["DOCKER_HOST"] = told.stdout.strip().partition("=")[2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
