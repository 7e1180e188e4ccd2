"""Of any snapshot: nothing is overcommitted, every constraint holds, nobody is delayed who comes first."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.placement import Plan, Snapshot
from domain.scheduler import plan
from tests.domain.naive import check
from tests.domain.snapshots import NOW, seeded, snapshots

#: `python -m tests.domain.long_plan` takes 100,000.
EXAMPLES = int(os.environ.get("MOORAGE_PLAN_EXAMPLES", "2500"))


@given(snapshots())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_plan_is_right(snapshot: Snapshot) -> None:
    assert_right(snapshot)


@given(st.integers(0, 2**63))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_plan_is_right_for_many_more(seed: int) -> None:
    assert_right(seeded(seed))


@given(st.integers(0, 2**63))
@settings(max_examples=max(100, EXAMPLES // 25), deadline=None)
def test_a_plan_of_a_longer_queue_is_right(seed: int) -> None:
    assert_right(seeded(seed, hosts=8, pending=40))


def assert_right(snapshot: Snapshot) -> Plan:
    made = plan(snapshot, NOW)
    check(snapshot, NOW, made)
    assert plan(shuffled(snapshot), NOW) == made
    return made


def shuffled(snapshot: Snapshot) -> Snapshot:
    chance = random.Random(len(snapshot.pending))
    mixed: dict[str, Any] = {
        name: tuple(chance.sample(many, len(many)))
        for name in ("pending", "hosts", "groups", "shares", "limits", "holdings")
        if (many := getattr(snapshot, name))
    }
    return replace(snapshot, **mixed)
