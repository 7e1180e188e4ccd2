"""Commands that show what sessions use and have used."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage.cli import terminal
from moorage.cli.sessions import find
from moorage.cli.terminal import connect, json_option, note, print_json, session_argument, table

if TYPE_CHECKING:
    from moorage._models import KernelMetrics, Metrics, Top, TopSession
    from moorage.sync import Session

_HEADERS = ["KERNEL", "CPU", "MEM", "DISK", "NET IN/s", "NET OUT/s", "READ/s", "WRITE/s", "PIDS", "GPU", "GPU MEM"]
_MIB = 1024 * 1024


@click.command("stats")
@session_argument
@click.option("--kernel", metavar="NAME", help="Only of this container: main1, worker1, ...")
@click.option("-w", "--watch", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(0.5), default=2.0, show_default=True, help="Seconds, with --watch.")
@click.option("--range", "span", default="15m", show_default=True, help="How far a plot, or the JSON, goes back.")
@click.option("--step", help="The time between two points. [default: about 120 points]")
@click.option(
    "--plot", is_flag=False, flag_value="", metavar="[FILE]",
    help="A chart: to FILE.png or FILE.svg, else NAME.png; in the terminal with '-' or without matplotlib.",
)  # fmt: skip
@json_option
def stats_command(
    session: str,
    kernel: str | None,
    watch: bool,
    every: float,
    span: str,
    step: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Show what a session uses: CPU, memory, disk, network, GPU, of each of its containers."""
    with connect() as client:
        found = find(client, session)
        while True:
            metrics = found.metrics(span, step, kernel=kernel)
            if plot is not None:
                _plot(metrics, plot, as_json)
            elif as_json:
                terminal.print_line(metrics.to_json()) if watch else print_json(metrics.to_json())
            else:
                if watch and sys.stdout.isatty():
                    click.clear()
                _show(found, metrics)
            if not watch:
                return
            time.sleep(every)


def _show(session: Session, metrics: Metrics) -> None:
    rows = [_row(kernel) for kernel in metrics.kernels if kernel.now is not None]
    if rows:
        gpus = any(kernel.now.gpu is not None for kernel in metrics.kernels if kernel.now is not None)
        width = len(_HEADERS) if gpus else len(_HEADERS) - 2
        table(_HEADERS[:width], [row[:width] for row in rows], empty="")
        return
    last = max((point.at for kernel in metrics.kernels for point in kernel.points), default=None)
    if session.status in ("RUNNING", "RUNNING_DEGRADED") and last is None:
        note("moorage: no figures yet: they are taken every few seconds.")
    else:
        shown = f", the last figures are of {terminal.local_time(last)}" if last else " and there are no figures"
        note(f"moorage: {session.name} is {session.status}{shown}; 'moorage stats {session.name} --plot' draws them.")


def _row(kernel: KernelMetrics) -> list[object]:
    now = kernel.now
    assert now is not None
    return [
        kernel.name,
        _of(f"{now.cpu:.2f}", now.cpu, kernel.held.get("cpu")),
        _of(f"{now.mem:.0f} MiB", now.mem, kernel.held.get("mem")),
        "" if now.disk is None else terminal.size(now.disk * _MIB),
        terminal.size(now.net_rx),
        terminal.size(now.net_tx),
        terminal.size(now.io_read),
        terminal.size(now.io_write),
        now.pids,
        "" if now.gpu is None else _of(f"{now.gpu:.2f}", now.gpu, kernel.held.get("gpu")),
        "" if now.gpu_mem is None else f"{now.gpu_mem:.0f} MiB",
    ]


def _of(text: str, used: float, held: float | None) -> str:
    return f"{text} ({100 * used / held:.0f} % of {held:g})" if held else text


def _plot(metrics: Metrics, target: str, as_json: bool) -> None:
    from moorage.cli import charts

    if not any(kernel.points for kernel in metrics.kernels):
        raise click.ClickException(f"{metrics.name} has no figures of this time; take a longer --range.")
    if target == "-" or (not target and not charts.can_draw()):
        click.echo(charts.draw_text(metrics, width=min(120, shutil.get_terminal_size().columns)))
        return
    if not charts.can_draw():
        raise click.ClickException("Pictures need matplotlib: pip install 'moorage[plot]'; --plot - draws here.")
    path = Path(target or f"{metrics.name}.png")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"'{path}' does not say what to draw: let it end in .png, .svg or .pdf.")
    charts.draw_file(metrics, path)
    print_json({"file": str(path)}) if as_json else click.echo(str(path))


# -- everybody's ---------------------------------------------------------------------------------------------------------
@click.command("top")
@click.option("-a", "--all", "everybodys", is_flag=True, help="Everybody's, and the hosts; for administrators.")
@click.option("--sort", type=click.Choice(["cpu", "mem", "gpu", "held"]), default="cpu", show_default=True)
@click.option("-n", "--limit", type=click.IntRange(1), help="At most so many.")
@click.option("-w", "--watch", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(0.5), default=2.0, show_default=True, help="Seconds, with --watch.")
@json_option
def top_command(everybodys: bool, sort: str, limit: int | None, watch: bool, every: float, as_json: bool) -> None:
    """Show who holds and who uses which CPU, memory and GPU."""
    with connect() as client:
        while True:
            top = client.top(all=everybodys, sort=sort)
            if as_json:
                terminal.print_line(top.to_json()) if watch else print_json(top.to_json())
            else:
                if watch and sys.stdout.isatty():
                    click.clear()
                _show_top(top, limit, everybodys)
            if not watch:
                return
            time.sleep(every)


def _show_top(top: Top, limit: int | None, everybodys: bool) -> None:
    if top.hosts:
        rows = [[host.agent + (" (lost)" if host.lost else ""), *_host_cells(host)] for host in top.hosts]
        table(["HOST", "CPU HELD", "MEM HELD", "GPU HELD"], rows, empty="")
        click.echo()
    headers = ["SESSION", "HOST", "CPU", "MEM", "GPU", "GPU MEM", "PIDS", "AGE"]
    rows = [_top_row(row) for row in top.sessions[:limit]]
    if everybodys:
        headers.insert(1, "OWNER")
        rows = [[row[0], one.owner, *row[1:]] for row, one in zip(rows, top.sessions, strict=False)]
    table(headers, rows, empty="No session holds anything.")


def _host_cells(host: object) -> list[object]:
    capacity: dict[str, float] = getattr(host, "capacity", {})
    held: dict[str, float] = getattr(host, "held", {})
    gpus = [name for name in capacity if name == "gpu" or name.startswith("gpu/")]
    taken = sum(1 for name in gpus if held.get(name))
    return [
        f"{held.get('cpu', 0):g} of {capacity.get('cpu', 0):g}",
        f"{terminal.memory(held.get('mem', 0))} of {terminal.memory(capacity.get('mem', 0))}",
        f"{taken} of {len(gpus)}" if gpus else "",
    ]


def _top_row(row: TopSession) -> list[object]:
    return [
        row.name,
        ", ".join(row.agents),
        _used(row.cpu, row.held.get("cpu"), "{:.2f}"),
        _used(row.mem, row.held.get("mem"), "{:.0f}") + (" MiB" if row.held.get("mem") else ""),
        _used(row.gpu, row.held.get("gpu"), "{:.2f}") if row.held.get("gpu") else "",
        "" if row.gpu_mem is None else f"{row.gpu_mem:.0f} MiB",
        row.pids,
        terminal.age(row.started_at),
    ]


def _used(used: float | None, held: float | None, form: str) -> str:
    return f"{'-' if used is None else form.format(used)} of {held or 0:g}"
