"""Charts of what a session has used: in the terminal, or as a picture where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage._models import KernelMetrics, Metrics, Point

_COLOURS = ("#1f6feb", "#d1242f", "#2da44e", "#9a6700", "#8250df", "#bf3989", "#1b7c83", "#6e7781")
#: Dots of a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800
MIB = 1024.0 * 1024.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity over time: a line for each container, and the limit that they share."""

    title: str
    unit: str
    lines: dict[str, list[tuple[datetime, float | None]]]
    limit: float | None = None

    @property
    def top(self) -> float:
        values = [value for line in self.lines.values() for _, value in line if value is not None]
        highest = max(values, default=0.0)
        if self.limit and highest > self.limit * 0.4:
            return max(self.limit, highest) * 1.05
        return highest * 1.15 or 1.0


def panels(metrics: Metrics) -> list[Panel]:
    """CPU and memory always; disk, network and GPU where there is something to show."""
    kernels = metrics.kernels

    def panel(title: str, unit: str, field: str, *, scale: float = 1.0, limit: str | None = None) -> Panel:
        lines = {kernel.name: _line(kernel, field, scale) for kernel in kernels}
        held = {kernel.held.get(limit or "") for kernel in kernels}
        bound = held.pop() if len(held) == 1 else None
        return Panel(title, unit, lines, None if bound is None else float(bound))

    found = [
        panel("CPU", "CPUs", "cpu", limit="cpu"),
        panel("Memory", "MiB", "mem", limit="mem"),
        panel("GPU", "GPUs", "gpu", limit="gpu"),
        panel("GPU memory", "MiB", "gpu_mem"),
        panel("GPU power", "W", "gpu_power"),
        panel("Network received", "MiB/s", "net_rx", scale=MIB),
        panel("Network sent", "MiB/s", "net_tx", scale=MIB),
        panel("Disk", "MiB", "disk"),
    ]
    return [one for one in found if one.title in ("CPU", "Memory") or _worth_showing(one)]


def _line(kernel: KernelMetrics, field: str, scale: float) -> list[tuple[datetime, float | None]]:
    return [(point.at, _scaled(point, field, scale)) for point in kernel.points]


def _scaled(point: Point, field: str, scale: float) -> float | None:
    value = getattr(point, field)
    return None if value is None else float(value) / scale


def _worth_showing(panel: Panel) -> bool:
    return any((value or 0.0) > 0.001 for line in panel.lines.values() for _, value in line)


# -- in the terminal -----------------------------------------------------------------------------------------------------
def draw_text(metrics: Metrics, *, width: int = 80, height: int = 8) -> str:
    """Braille lines, one block for each quantity; containers share a block, each with its own mark at the side."""
    begin = _begin(metrics)
    blocks = [_block(panel, begin, metrics.until, max(20, width - 12), height) for panel in panels(metrics)]
    return "\n\n".join(blocks)


def _begin(metrics: Metrics) -> datetime:
    """A session that is younger than the range is drawn from its own beginning."""
    first = min((kernel.points[0].at for kernel in metrics.kernels if kernel.points), default=metrics.since)
    return max(metrics.since, first - timedelta(seconds=metrics.step_seconds))


def _block(panel: Panel, since: datetime, until: datetime, columns: int, rows: int) -> str:
    dots = [[0] * columns for _ in range(rows)]
    length = max((until - since).total_seconds(), 1.0)
    for line in panel.lines.values():
        _trace(dots, line, since, length, panel.top)
    text = [_title(panel)]
    for row, cells in enumerate(dots):
        value = panel.top * (1 - row / max(rows - 1, 1))
        label = _amount(value) if row in (0, rows // 2, rows - 1) else ""
        text.append(f"{label:>9} \u2502" + "".join(chr(_BLANK + cell) for cell in cells).rstrip(chr(_BLANK)))
    begin, end = since.astimezone().strftime("%H:%M:%S"), until.astimezone().strftime("%H:%M:%S")
    text.append(" " * 10 + "\u2514" + "\u2500" * columns)
    text.append(" " * 11 + begin + end.rjust(columns - len(begin)))
    return "\n".join(text)


def _title(panel: Panel) -> str:
    last = {name: next((v for _, v in reversed(line) if v is not None), None) for name, line in panel.lines.items()}
    now = ", ".join(f"{name} {_amount(value)}" for name, value in last.items() if value is not None)
    limit = f" of {_amount(panel.limit)}" if panel.limit else ""
    return f"{panel.title} ({panel.unit}{limit})" + (f": now {now}" if now else "")


def _trace(
    dots: list[list[int]], line: Sequence[tuple[datetime, float | None]], since: datetime, length: float, top: float
) -> None:
    high, wide = len(dots) * 4, len(dots[0]) * 2
    before: tuple[int, int] | None = None
    for at, value in line:
        if value is None:
            before = None
            continue
        x = min(wide - 1, max(0, int((at - since).total_seconds() / length * wide)))
        y = min(high - 1, max(0, round((1 - value / top) * (high - 1))))
        for px, py in _between(before, (x, y), wide // 10):
            dots[py // 4][px // 2] |= _DOTS[py % 4][px % 2]
        before = x, y


def _between(before: tuple[int, int] | None, now: tuple[int, int], most: int) -> list[tuple[int, int]]:
    """The dots of a straight line; a gap of samples stays one."""
    if before is None or now[0] - before[0] > most:
        return [now]
    (x0, y0), (x1, y1) = before, now
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(round(x0 + (x1 - x0) * n / steps), round(y0 + (y1 - y0) * n / steps)) for n in range(steps + 1)]


def _amount(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# -- as a picture --------------------------------------------------------------------------------------------------------
def can_draw() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw_file(metrics: Metrics, path: Path) -> None:
    """PNG, SVG or PDF, by the name's ending."""
    from matplotlib import dates as matplotlib_dates
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(metrics)
    figure = Figure(figsize=(9.0, 1.0 + 1.9 * len(shown)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, shown, strict=True):
        _draw_panel(axis, panel)
    dates: Any = matplotlib_dates  # its stubs say little
    locator = dates.AutoDateLocator(minticks=4, maxticks=9)
    zone = datetime.now().astimezone().tzinfo
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=zone))
    axes[-1].set_xlim(_begin(metrics), metrics.until)
    figure.suptitle(f"{metrics.name}", fontsize=13, fontweight="bold", x=0.01, ha="left")
    if len(metrics.kernels) > 1:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=6, frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def _draw_panel(axis: Any, panel: Panel) -> None:
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        times = [at for at, _ in line]
        values = [float("nan") if value is None else value for _, value in line]
        axis.plot(times, values, color=colour, linewidth=1.6, label=name, solid_capstyle="round")
        if len(panel.lines) == 1:
            axis.fill_between(times, values, color=colour, alpha=0.12, linewidth=0)
    top = panel.top
    if panel.limit and panel.limit <= top:
        axis.axhline(panel.limit, color="#6e7781", linewidth=0.9, linestyle=(0, (4, 3)))
        axis.annotate(
            f"holds {panel.limit:g}", (1.0, panel.limit), xycoords=("axes fraction", "data"), fontsize=7.5,
            xytext=(-4, -3), textcoords="offset points", ha="right", va="top", color="#6e7781",
        )  # fmt: skip
    axis.set_ylim(0, top)
    axis.set_title(f"{panel.title} ({panel.unit})", loc="left", fontsize=9.5, color="#24292f")
    axis.grid(True, axis="y", color="#d0d7de", linewidth=0.6)
    axis.tick_params(labelsize=8, colors="#57606a", length=0)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#d0d7de")
