"""Small fleets and workloads, whose replays can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from domain.simulation.fleet import Fleet, described
from domain.simulation.policy import Policy
from domain.simulation.replay import Replayed, replay
from domain.simulation.workload import Job, Workload

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
FIFO = Policy(name="fifo", fair_share=False, backfill=False)
FIFO_BACKFILL = Policy(name="fifo-backfill", fair_share=False)
FAIR = Policy(name="fair", backfill=True)
MIXED: dict[str, Any] = {
    "hosts": [
        {"name": "a", "count": 2, "cpu": 16, "mem": "64g", "gpus": {"model": "NVIDIA A100", "count": 4, "mem": "40g"}},
        {"name": "h", "cpu": 32, "mem": "128g", "gpus": [{"model": "NVIDIA H100", "count": 2, "mem": "80g"}]},
        {"name": "c", "cpu": 32, "mem": "64g"},
    ]
}


def hosts(*cpus: int, gpus: int = 0) -> Fleet:
    """One host for each number of CPUs."""
    entries = []
    for number, each in enumerate(cpus):
        entry: dict[str, Any] = {"name": f"host{number}", "cpu": each, "mem": "100g"}
        if gpus:
            entry["gpus"] = {"model": "A100", "count": gpus, "mem": "40g"}
        entries.append(entry)
    return described({"hosts": entries}, "test")


def job(at: float, user: str, seconds: float, cpus: float = 1, **more: Any) -> Job:
    """Submitted `at` seconds from the beginning."""
    return Job(
        submitted_at=NOW + timedelta(seconds=at),
        user=user,
        duration_seconds=seconds,
        cpu=int(cpus * 1000),
        mem=more.pop("mem", 1024),
        **more,
    )


def starts(jobs: Sequence[Job], fleet: Fleet, policy: Policy) -> list[float | None]:
    """Seconds from the beginning, of each."""
    return [
        None if outcome.started_at is None else (outcome.started_at - NOW).total_seconds()
        for outcome in played(jobs, fleet, policy).outcomes
    ]


def played(jobs: Sequence[Job], fleet: Fleet, policy: Policy) -> Replayed:
    return replay(Workload(jobs=tuple(jobs)), fleet, policy)
