"""Every way that an explanation offers is true: thousands of them; `EXPLAINED=20000` looks at 100,000 snapshots."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest

from domain.explain import explain
from tests.domain.explained import NOW, Case, comes_true, draw, explained, generated

#: Snapshots of each of the five parts.
NUMBER = int(os.environ.get("EXPLAINED", "100"))
KINDS = {"fewer", "kernels", "without", "group", "quota", "ends", "time", "priority"}


@pytest.mark.parametrize("part", range(4))
def test_every_way_that_is_offered_is_true(part: int) -> None:
    offered: Counter[str] = Counter()
    for seed in range(part * NUMBER, (part + 1) * NUMBER):
        offered += _all_true(draw(seed), f"draw({seed})")
    assert offered.keys() >= KINDS, f"never offered: {KINDS - offered.keys()}"


def test_so_they_are_in_the_snapshots_with_which_plans_are_tested() -> None:
    offered: Counter[str] = Counter()
    for seed in range(NUMBER):
        offered += _all_true(generated(seed), f"generated({seed})")
    assert sum(offered.values()) > NUMBER / 2


def _all_true(case: Case, name: str) -> Counter[str]:
    offered: Counter[str] = Counter()
    for session_id, explanation in explained(case):
        for way in explanation.ways:
            offered[way.kind] += 1
            assert comes_true(case, session_id, way), f"{name}: {session_id}: {way}"
        assert not explanation.cut_off
        assert not (explanation.never and any(way.kind in ("ends", "time") for way in explanation.ways))
    return offered


def test_the_same_is_said_again() -> None:
    for seed in range(50):
        assert explained(draw(seed)) == explained(draw(seed))


def test_what_was_found_is_told_when_the_search_is_cut_off() -> None:
    cut = 0
    for seed in range(60):
        case = draw(seed)
        around = replace(case.around, most_plans=6)
        for session_id, whole in explained(case):
            found = explain(case.snapshot, session_id, NOW, around)
            assert found.plans <= 6
            assert (found.code, found.text) == (whole.code, whole.text)
            assert all(comes_true(case, session_id, way) for way in found.ways)
            cut += found.cut_off
    assert cut > 10
