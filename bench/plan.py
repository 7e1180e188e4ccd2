"""Placements per second of the pure plan, beside a plain scan of all hosts for every session: `python -m bench plan`.

Times are of this process, at 1,000 agents and 10,000 pending sessions: alike ones; and hosts of several shapes and GPU
models with many users, gangs, shares of GPUs and quotas. What does not fit has to be said quickly too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import TypeVar

from bench.report import Row
from bench.workload import NOW, alike, full, mixed
from domain.placement import Host, PendingSession, Snapshot
from domain.scheduler import plan
from domain.scheduler.devices import Site
from domain.scheduler.room import fit

TRIES = 3
BOUND = 20_000


def run(_: object = None) -> Iterator[Row]:
    yield _row("plan: 10,000 alike on 1,000 hosts, placed", alike(), f">= {BOUND:,}")
    yield _row("plan: 10,000 mixed, 1,000 unlike hosts, placed", mixed(), f">= {BOUND:,}")
    yield _row("plan: 10,000 mixed, spread, placed", mixed(spread=True), f">= {BOUND:,}")
    yield _row("plan: 10,000 mixed, no two alike, placed", mixed(unlike=True))
    yield _row("plan: 10,000 that fit nowhere, decided", full(), fits=False)
    yield _row("plan: 10,000 unlike that fit nowhere, decided", full(unlike=True), fits=False)


def _row(name: str, snapshot: Snapshot, bound: str = "", *, fits: bool = True) -> Row:
    with _undisturbed():
        seconds, planned = min((_timed(lambda: plan(snapshot, NOW)) for _ in range(TRIES)), key=itemgetter(0))
        sample = snapshot.pending if fits else snapshot.pending[: len(snapshot.pending) // 10]
        scanned, found = _timed(lambda: scan(sample, snapshot.hosts))
    placed = len(planned.placements)
    kernels = sum(len(placement.kernels) for placement in planned.placements)
    return Row(
        name=name,
        ours=(placed if fits else len(snapshot.pending)) / seconds,
        reference=(found if fits else len(sample)) / scanned,
        unit="/s",
        reference_is="a first fit that scans the hosts",
        bound=bound,
        note=f"{placed:,} sessions with {kernels:,} kernels placed, {len(planned.blocked):,} not,"
        f" room kept for {len(planned.reservations)}, in {seconds * 1000:.0f} ms",
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # the snapshot lives on: the collector need not look at it again and again
    try:
        yield
    finally:
        gc.unfreeze()


T = TypeVar("T")


def _timed(do: Callable[[], T]) -> tuple[float, T]:
    started = time.process_time()
    made = do()
    return time.process_time() - started, made


def scan(pending: Iterable[PendingSession], hosts: Iterable[Host]) -> int:
    """How many sessions a simple scheduler places: hosts one by one, the first with enough free for each kernel."""
    left = [(host, dict(host.free)) for host in hosts]
    return sum(_scan_one(session, left) for session in pending)


def _scan_one(session: PendingSession, left: list[tuple[Host, dict[str, int]]]) -> bool:
    model = session.constraints.gpu_model
    chosen = []
    for kernel in session.kernels:
        for host, free in left:
            if host.architecture != session.architecture or any(
                amount > free.get(name, 0) for name, amount in kernel.slots.items() if not name.startswith("gpu")
            ):
                continue
            if (taken := fit(Site(host, model), free, [kernel.slots])) is not None:
                for name, amount in taken[0].items():
                    free[name] -= amount
                chosen.append((free, taken[0]))
                break
        else:
            for free, amounts in chosen:
                for name, amount in amounts.items():
                    free[name] += amount
            return False
    return True
