"""Charts of what a session has used, in the terminal and as pictures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from moorage._models import KernelMetrics, Metrics, Point
from moorage.cli import charts

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def kernel(name: str, *, points: int = 60, every: float = 5.0, **figures: Any) -> KernelMetrics:
    used = [
        Point(at=BEGIN + timedelta(seconds=number * every), cpu=number / points, mem=100.0, **figures)
        for number in range(points)
    ]
    return KernelMetrics(kernel_id=name, name=name, held={"cpu": 1, "mem": 256}, now=None, points=used)


def metrics(*kernels: KernelMetrics) -> Metrics:
    return Metrics(
        name="train", since=BEGIN, until=BEGIN + timedelta(minutes=5), step_seconds=5.0, kernels=list(kernels)
    )


def test_only_what_there_is_has_a_panel() -> None:
    assert [panel.title for panel in charts.panels(metrics(kernel("main1")))] == ["CPU", "Memory"]
    rich = metrics(kernel("main1", gpu=0.5, gpu_mem=900.0, net_tx=2e6))
    assert [panel.title for panel in charts.panels(rich)] == ["CPU", "Memory", "GPU", "GPU memory", "Network sent"]


def test_a_line_rises_in_the_terminal() -> None:
    drawn = charts.draw_text(metrics(kernel("main1")), width=72).split("\n\n")[0].splitlines()
    assert drawn[0] == "CPU (CPUs of 1.00): now main1 0.98"
    rows = [line.partition("│")[2] for line in drawn[1:9]]
    assert all(len(line) <= 72 for line in drawn)
    firsts = [len(row) - len(row.lstrip(chr(0x2800))) for row in rows if row]
    assert firsts == sorted(firsts, reverse=True)  # the higher, the later


def test_a_young_session_is_drawn_from_its_beginning() -> None:
    young = metrics(kernel("main1", points=12))
    late = Metrics(
        name="t", since=BEGIN - timedelta(hours=1), until=young.until, step_seconds=5.0, kernels=young.kernels
    )
    begin = (BEGIN - timedelta(seconds=5)).astimezone().strftime("%H:%M:%S")
    assert begin in charts.draw_text(late)


def test_nothing_at_all_is_drawn_empty() -> None:
    assert "CPU (CPUs" in charts.draw_text(metrics(KernelMetrics(kernel_id="x", name="main1")))


@pytest.mark.parametrize(("name", "magic"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml"), ("plot.pdf", b"%PDF")])
def test_pictures(tmp_path: Path, name: str, magic: bytes) -> None:
    charts.draw_file(metrics(kernel("main1"), kernel("worker1", gpu=0.4)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
