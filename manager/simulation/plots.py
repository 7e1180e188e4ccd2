"""Replays as a picture: GPUs held and queue over time, waiting times, and what users held over what was theirs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

from domain.errors import InvalidSimulation
from domain.simulation.figures import Figures, held, waits
from domain.simulation.replay import Replayed
from domain.simulation.workload import Workload

Drawn: TypeAlias = tuple[str, Replayed, Figures]
_COLOURS: Final = ("#1f6feb", "#d1242f", "#2da44e", "#9a6700", "#8250df", "#1b7c83")
_INK, _PALE, _GRID = "#24292f", "#57606a", "#d8dee4"
_ENDINGS: Final = (".png", ".svg", ".pdf")
_USERS: Final = 10
_TICKS: Final = (
    (30, "at once"),
    (60, "1 min"),
    (600, "10 min"),
    (3600, "1 h"),
    (6 * 3600, "6 h"),
    (86400, "1 d"),
    (4 * 86400, "4 d"),
    (14 * 86400, "14 d"),
)


def check(path: Path) -> None:
    """Said before anything is replayed."""
    if path.suffix.lower() not in _ENDINGS:
        raise InvalidSimulation(f"A picture's name ends in {', '.join(_ENDINGS)}, and that of {path} does not.")
    if find_spec("matplotlib") is None:
        raise InvalidSimulation(
            "Pictures need matplotlib: pip install 'moorage-server[plots]'. The tables come without it."
        )


def draw(path: Path, workload: Workload, cases: Sequence[Drawn]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 7.8), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 2, gridspec_kw={
        "left": 0.06, "right": 0.985, "top": 0.83, "bottom": 0.075, "hspace": 0.36, "wspace": 0.16,
    })  # fmt: skip
    _over_time(grid[0][0], cases)
    _queue(grid[1][0], cases)
    _waiting(grid[0][1], cases)
    _users(grid[1][1], cases)
    for axis in grid.flat:
        _plain(axis)
    figure.text(
        0.015,
        0.965,
        "Simulated: " + " and ".join(name for name, _, _ in cases),
        fontsize=15,
        fontweight="bold",
        color=_INK,
        va="center",
    )
    figure.text(0.015, 0.93, workload.source, fontsize=9.5, color=_PALE, va="center")
    handles, labels = grid[0][1].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.006, 0.92),
        ncols=min(len(cases), 3),
        frameon=False,
        fontsize=9.5,
        labelcolor=_INK,
    )
    figure.savefig(path, dpi=130)


def _over_time(axis: Any, cases: Sequence[Drawn]) -> None:
    kind, what = (
        ("gpu", "GPUs") if all(replayed.fleet.capacity()["gpu"] for _, replayed, _ in cases) else ("cpu", "CPUs")
    )
    for number, (_, replayed, _) in enumerate(cases):
        most = replayed.fleet.capacity()[kind] or 1
        times, values = _hourly(replayed, [held(moment, kind) / most * 100 for moment in replayed.moments])
        axis.plot(times, values, color=_COLOURS[number], linewidth=1.5, alpha=0.9)
    axis.set_ylim(0, 104)
    axis.set_yticks((0, 25, 50, 75, 100), ("0", "25", "50", "75", "100 %"))
    _title(axis, f"{what} held", "hourly means")
    _days(axis, cases)


def _queue(axis: Any, cases: Sequence[Drawn]) -> None:
    for number, (_, replayed, _) in enumerate(cases):
        times, values = _hourly(replayed, [float(moment.queued) for moment in replayed.moments])
        axis.plot(times, values, color=_COLOURS[number], linewidth=1.5, alpha=0.9)
        axis.fill_between(times, values, color=_COLOURS[number], alpha=0.08, linewidth=0)
    axis.set_ylim(bottom=0)
    _title(axis, "Sessions waiting", "hourly means")
    _days(axis, cases)


def _waiting(axis: Any, cases: Sequence[Drawn]) -> None:
    longest = 3600.0
    for number, (name, replayed, figures) in enumerate(cases):
        ordered = waits(replayed.outcomes)
        longest = max(longest, figures.waiting.longest_seconds)
        shares = [(at + 1) / figures.sessions * 100 for at in range(len(ordered))] if ordered else []
        xs = [max(wait, 30.0) for wait in ordered]
        axis.step([30.0, *xs], [0.0, *shares], where="post", color=_COLOURS[number], linewidth=1.8, label=name)
    axis.set_xscale("log")
    axis.set_xlim(30, longest * 1.15)
    ticks = [(at, text) for at, text in _TICKS if at <= longest * 1.15]
    axis.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 102)
    axis.set_yticks((0, 25, 50, 75, 100), ("0", "25", "50", "75", "100 %"))
    axis.grid(True, axis="x", color=_GRID, linewidth=0.6)
    _title(axis, "Sessions that waited at most ...", "of all; logarithmic")


def _users(axis: Any, cases: Sequence[Drawn]) -> None:
    users = [one.user for one in cases[0][2].by_user[:_USERS]]
    width = 0.8 / len(cases)
    for number, (_, _, figures) in enumerate(cases):
        theirs = {one.user: one for one in figures.by_user}
        for at, user in enumerate(users):
            if user not in theirs:
                continue
            x = at + (number - (len(cases) - 1) / 2) * width
            axis.bar(x, theirs[user].held * 100, width * 0.86, color=_COLOURS[number], alpha=0.85, linewidth=0)
            entitled = theirs[user].entitled * 100
            axis.plot(
                (x - width * 0.46, x + width * 0.46),
                (entitled, entitled),
                color=_INK,
                linewidth=2,
                solid_capstyle="butt",
            )
    axis.set_xticks(range(len(users)), [user if len(user) <= 9 else f"{user[:8]}\u2026" for user in users])
    axis.set_xlim(-0.6, max(len(users), 1) - 0.4)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    _title(axis, "Held of the fleet while others waited", "a black line: what was theirs")


def _hourly(replayed: Replayed, values: Sequence[float]) -> tuple[list[datetime], list[float]]:
    """Means over steps of an hour (longer for long traces), at the middle of each."""
    moments = replayed.moments
    if not moments:
        return [], []
    times = [moment.at for moment in moments]
    sums = [0.0]
    for before, after, value in zip(times, times[1:], values, strict=False):
        sums.append(sums[-1] + value * (after - before).total_seconds())

    def area(at: datetime) -> float:
        index = bisect_right(times, at) - 1
        return sums[index] + values[index] * (at - times[index]).total_seconds()

    span = times[-1] - times[0]
    step = max(span / 200, timedelta(hours=1) if span > timedelta(days=2) else span / 100)
    if not step:
        return times[:1], list(values[:1])
    count = span // step
    edges = [times[0] + step * number for number in range(count + 1)]
    means = [(area(b) - area(a)) / step.total_seconds() for a, b in pairwise(edges)]
    return [edge + step / 2 for edge in edges[:-1]], means


def _days(axis: Any, cases: Sequence[Drawn]) -> None:
    from matplotlib import dates as matplotlib_dates

    dates: Any = matplotlib_dates  # its stubs say little
    begins = [replayed.moments[0].at for _, replayed, _ in cases if replayed.moments]
    ends = [replayed.moments[-1].at for _, replayed, _ in cases if replayed.moments]
    if begins and max(ends) > min(begins):
        axis.set_xlim(min(begins), max(ends))
    locator = dates.AutoDateLocator(minticks=4, maxticks=9)
    axis.xaxis.set_major_locator(locator)
    if begins and max(ends) - min(begins) > timedelta(days=2):
        axis.xaxis.set_major_formatter(dates.DateFormatter("%a %d"))
    else:
        axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _title(axis: Any, text: str, more: str) -> None:
    axis.set_title(text, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=9)
    axis.set_title(more, loc="right", fontsize=8.5, color=_PALE, pad=9)


def _plain(axis: Any) -> None:
    axis.grid(True, axis="y", color=_GRID, linewidth=0.6)
    axis.tick_params(labelsize=8.5, colors=_PALE, length=0)
    axis.xaxis.get_offset_text().set_fontsize(8)
    axis.xaxis.get_offset_text().set_color(_PALE)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
