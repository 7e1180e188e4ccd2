"""Seconds for a generated week of 5,000 sessions on the example fleet, under two policies: `python -m bench simulate`.

The reference is the same week planned with the whole queue at every event, which has to come to the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.report import Row
from domain.simulation.figures import figures
from domain.simulation.generate import generate
from domain.simulation.policy import KNOWN
from domain.simulation.replay import Replayed, replay
from manager.simulation.inputs import example_fleet

SESSIONS = 5000
BOUND_SECONDS = 60


def run(_: object = None) -> Iterator[Row]:
    fleet = example_fleet()
    workload = generate(fleet, sessions=SESSIONS)
    for name in ("default", "fifo"):
        began = time.perf_counter()
        spared = replay(workload, fleet, KNOWN[name])
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        whole = replay(workload, fleet, KNOWN[name], always=True)
        told = figures(spared)
        yield Row(
            name=f"simulate: a week of {SESSIONS:,}, {name}",
            ours=seconds,
            reference=time.perf_counter() - began,
            unit="s",
            reference_is="the whole queue at every event",
            bound=f"<= {BOUND_SECONDS} s",
            note=f"{spared.plans:,} plans instead of {whole.plans:,}, {_same(spared, whole)}; "
            f"at most {told.most_queued:,} waited, GPUs {told.utilisation['gpu']:.0%} held",
        )


def _same(one: Replayed, other: Replayed) -> str:
    courses = [[(each.started_at, each.hosts) for each in replayed.outcomes] for replayed in (one, other)]
    return "the same course" if courses[0] == courses[1] else "ANOTHER COURSE"
