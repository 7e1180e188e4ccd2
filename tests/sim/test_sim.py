"""A few seeds of the simulation on each run, each that is replayed the same as before; and whether planted bugs still fit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.database import Server
from tests.sim.planted import BUGS, ROOT, Bug


def test_fifty_seeds_hold_and_replay(postgres: Server) -> None:
    """In a process of its own: the simulation puts itself in the place of time, network and engine."""
    places = {
        "DATABASE_URL": postgres.dsn_of("postgres"),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}",
    }
    said = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seeds", "50", "--twice", "2", "--seconds", "18"],
        cwd=ROOT, env={**os.environ, **places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    assert " 0 violated" in said.stdout


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_still_applies(bug: Bug) -> None:
    assert bug.applies(), f"{bug.path} has changed; give the patch its new text"
    assert bug.new != bug.old


def test_there_are_at_least_twenty() -> None:
    assert len(BUGS) >= 20
    assert len({bug.name for bug in BUGS}) == len(BUGS)
