"""A change of a volume's files is made once, whoever dies before it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.client import FileStat
from agent.once import manage_once
from agent.rings import RunnerError
from agent.store import Store

MOVE = {"path": "a", "to": "b"}


class Files:
    """`a` is moved to `b`; dies after it, when it is told to."""

    def __init__(self) -> None:
        self.there = {"a"}
        self.dies = False
        self.asked = 0

    async def manage(self, op: str, arguments: dict[str, Any]) -> FileStat | None:
        self.asked += 1
        if op == "stat":
            return FileStat(name=arguments["path"], type="file", size=0, mtime=0.0, mode=0o600, owner=0, group=0)
        if arguments["path"] not in self.there:
            raise RunnerError("file_not_found", "It is not there.")
        self.there = {"b"}
        if self.dies:
            raise KeyboardInterrupt
        return FileStat(name="b", type="file", size=0, mtime=0.0, mode=0o600, owner=0, group=0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "agent.db")
    yield opened
    await opened.close()


async def test_the_answer_is_given_again(store: Store) -> None:
    files = Files()
    first = await manage_once(store, "key", "move", MOVE, files.manage, now=1.0)
    assert await manage_once(store, "key", "move", MOVE, files.manage, now=2.0) == first
    assert files.asked == 1


async def test_what_was_done_before_a_death_is_found_done(store: Store) -> None:
    files = Files()
    files.dies = True
    with pytest.raises(KeyboardInterrupt):
        await manage_once(store, "key", "move", MOVE, files.manage, now=1.0)
    moved = await manage_once(store, "key", "move", MOVE, files.manage, now=2.0)
    assert moved is not None
    assert moved["name"] == "b"


async def test_a_mistake_is_refused_each_time(store: Store) -> None:
    files = Files()
    for _ in range(2):
        with pytest.raises(RunnerError):
            await manage_once(store, "key", "move", {"path": "x", "to": "b"}, files.manage, now=1.0)


async def test_keys_are_forgotten_after_a_day(store: Store) -> None:
    files = Files()
    await manage_once(store, "key", "move", MOVE, files.manage, now=1.0)
    with pytest.raises(RunnerError):
        await manage_once(store, "key", "move", MOVE, files.manage, now=200_000.0)
