"""One row per figure: what was measured, its reference in the same run, their ratio, and the bound that was set."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    ours: float
    reference: float | None
    unit: str
    reference_is: str = ""
    bound: str = ""  #: such as "ratio <= 1.3"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None


def p50(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def percentile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(rows: Sequence[Row]) -> None:
    print(f"{'what':<44}{'moorage':>11}{'reference':>11}{'ratio':>8}  {'unit':<7}{'bound':<16}reference is")
    for row in rows:
        reference = f"{row.reference:>11.2f}" if row.reference is not None else f"{'':>11}"
        ratio = f"{row.ratio:>8.2f}" if row.ratio is not None else f"{'':>8}"
        print(f"{row.name:<44}{row.ours:>11.2f}{reference}{ratio}  {row.unit:<7}{row.bound:<16}{row.reference_is}")
        if row.note:
            print(f"    {row.note}")


def save(rows: Sequence[Row]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    path = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    measured = [{**asdict(row), "ratio": row.ratio} for row in rows]
    path.write_text(json.dumps({"machine": machine, "rows": measured}, indent=2))
    return path
