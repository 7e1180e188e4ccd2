"""Replacing what a lost host had: never before it is certain that it has ended, and never twice."""

from __future__ import annotations

import time

import pytest

from manager import fencing
from repositories.database import Database
from tests.control.rows import assert_slots_add_up
from tests.faults.partitions import World


async def test_a_thousand_partitions_and_no_session_runs_twice(database: Database) -> None:
    started = time.monotonic()
    world = World(database, 4, hosts=125, cuts=8)
    await world.run()
    print(world.cuts, "partitions", world.replaced, "replacements", world.now, "s", time.monotonic() - started)
    assert world.violations == []
    assert world.cuts == 1000
    assert world.replaced > 100
    await assert_slots_add_up(database)


async def test_a_manager_that_is_too_fast_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the test of the test."""
    monkeypatch.setattr(fencing, "MARGIN_SECONDS", -15.0)
    world = World(database, 4, hosts=24, cuts=2)
    await world.run()
    assert world.violations
