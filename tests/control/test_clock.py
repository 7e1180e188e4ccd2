"""Managers whose clocks differ go by the database's."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from manager.clock import DatabaseClock
from repositories.agents import list_managers, register_manager
from repositories.database import Database


async def test_the_databases_time_is_told_whatever_the_machine_says(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = DatabaseClock(database)
    assert abs(clock() - datetime.now(UTC)) < timedelta(seconds=1)  # not looked yet: the machine's own

    async def elsewhere(_connection: object) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("manager.clock.current_time", elsewhere)
    await clock.step()
    first = clock()
    assert timedelta(0) <= first - datetime(2030, 1, 1, tzinfo=UTC) < timedelta(seconds=5)
    before = time.monotonic()
    later = clock()
    assert first <= later <= first + timedelta(seconds=time.monotonic() - before + 1)
    monkeypatch.undo()
    await clock.step()
    assert abs(clock() - datetime.now(UTC)) < timedelta(seconds=5)


async def test_who_is_there_is_told_by_the_databases_clock(database: Database) -> None:
    """A manager whose own clock is two hours behind is dialled all the same, and finds the others."""
    here = uuid4()
    async with database.reader() as connection:
        await register_manager(connection, here, role="control", agent_url="https://here")
        assert [one.id for one in await list_managers(connection)] == [here]
        await connection.execute("UPDATE managers SET seen_at = seen_at - interval '31 s'")
        assert await list_managers(connection) == []
