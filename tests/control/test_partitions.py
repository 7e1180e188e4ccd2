"""Replacing what a lost host had: never before it is certain that it has ended, and never twice."""

from __future__ import annotations

import pytest

from manager import fencing
from repositories.database import Database
from tests.control.rows import assert_slots_add_up
from tests.faults.partitions import World


async def test_hundreds_of_partitions_and_no_session_runs_twice(database: Database) -> None:
    """1,000 a seed are `python -m tests.faults.engine virtual`."""
    world = World(database, 6, hosts=40, cuts=3)
    await world.run()
    assert world.violations == []
    assert world.cuts == 120
    assert world.replaced  # how many depends on the ids, and is 10 to 40
    await assert_slots_add_up(database)


async def test_a_manager_that_is_too_fast_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the test of the test."""
    monkeypatch.setattr(fencing, "MARGIN_SECONDS", -15.0)
    world = World(database, 6, hosts=20, cuts=3)
    await world.run()
    assert world.violations
