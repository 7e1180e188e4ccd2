"""Commands that show what sessions use and have used."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.gpus import show_top, watts
from moorage.cli.sessions import find
from moorage.cli.terminal import Group, connect, json_option, note, print_json, session_argument, table

if TYPE_CHECKING:
    from moorage._models import (
        AbuseReport,
        KernelMetrics,
        Metrics,
        Top,
        TopSession,
        Usage,
        UsageRow,
        WatchRules,
    )
    from moorage.sync import Session

_HEADERS = ["KERNEL", "CPU", "MEM", "DISK", "NET IN/s", "NET OUT/s", "READ/s", "WRITE/s", "PIDS"]
_GPU_HEADERS = ["GPU", "GPU MEM", "POWER"]
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
        headers = _HEADERS + (_GPU_HEADERS if gpus else [])
        table(headers, [row[: len(headers)] for row in rows], empty="")
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
        watts(now.gpu_power),
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
@click.option("--gpu", "gpus", is_flag=True, help="Device by device: who uses how much of it; for administrators.")
@click.option(
    "--sort", type=click.Choice(["cpu", "mem", "gpu", "held"]), default="cpu", show_default=True, help="By what."
)
@click.option("-n", "--limit", type=click.IntRange(1), help="At most so many.")
@click.option("-w", "--watch", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(0.5), default=2.0, show_default=True, help="Seconds, with --watch.")
@json_option
def top_command(
    everybodys: bool, gpus: bool, sort: str, limit: int | None, watch: bool, every: float, as_json: bool
) -> None:
    """Show who holds and who uses which CPU, memory and GPU."""
    with connect() as client:
        found: Any
        show: Callable[[], None]
        while True:
            if gpus:
                devices = client.devices.list()
                found, show = [device.to_json() for device in devices], partial(show_top, devices)
            else:
                top = client.top(all=everybodys, sort=sort)
                found, show = top.to_json(), partial(_show_top, top, limit, everybodys)
            if as_json:
                terminal.print_line(found) if watch else print_json(found)
            else:
                if watch and sys.stdout.isatty():
                    click.clear()
                show()
            if not watch:
                return
            time.sleep(every)


def _show_top(top: Top, limit: int | None, everybodys: bool) -> None:
    if top.hosts:
        rows = [[host.agent + (" (lost)" if host.lost else ""), *_host_cells(host)] for host in top.hosts]
        table(["HOST", "CPU HELD", "MEM HELD", "GPU HELD"], rows, empty="")
        click.echo()
    headers = ["SESSION", "HOST", "CPU", "MEM", "GPU", "GPU MEM", "POWER", "PIDS", "AGE"]
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
        _gpus(row),
        "" if row.gpu_mem is None else f"{row.gpu_mem:.0f} MiB",
        watts(row.gpu_power),
        row.pids,
        terminal.age(row.started_at),
    ]


def _gpus(row: TopSession) -> str:
    """Busy devices of those that are held, or of a share."""
    if row.held.get("gpu"):
        return _used(row.gpu, row.held.get("gpu"), "{:.2f}")
    share = row.held.get("gpu-mem")
    return f"{'-' if row.gpu is None else f'{row.gpu:.2f}'} of {terminal.memory(share)}" if share else ""


def _used(used: float | None, held: float | None, form: str) -> str:
    return f"{'-' if used is None else form.format(used)} of {held or 0:g}"


# -- abuse ---------------------------------------------------------------------------------------------------------------
@click.command("abuse-report")
@click.argument("session", type=terminal.SESSION, required=False)
@click.option("-a", "--all", "everybodys", is_flag=True, help="Everybody's running sessions; for administrators.")
@click.option("--project", help="Only of this project.")
@click.option("-v", "--verbose", is_flag=True, help="Also the rules that found nothing.")
@json_option
def abuse_report_command(
    session: str | None, everybodys: bool, project: str | None, verbose: bool, as_json: bool
) -> None:
    """Say whether sessions waste or harm what is shared, rule by rule, with the figures: yours, one, or everybody's.

    Of one session, the exit code is 1 if a rule has fired.
    """
    if session is not None and everybodys:
        raise click.UsageError("Name a session, or say --all, not both.")
    with connect() as client:
        if everybodys:
            reports = client.abuse_reports(project=project, quiet=verbose)
        else:
            sessions = client.sessions.list(project=project) if session is None else [find(client, session)]
            reports = [found.abuse_report() for found in sessions]
    if as_json:
        found = [report.to_json() for report in reports]
        print_json(found if session is None else found[0])
    else:
        _show_reports(reports, verbose=verbose, alone=session is not None)
    if session is not None and reports[0].abusive:
        raise click.exceptions.Exit(1)


def _show_reports(reports: Sequence[AbuseReport], *, verbose: bool, alone: bool) -> None:
    rows = [
        [report.name, report.owner, "FIRED" if check.fired else "silent", check.rule, check.explanation]
        for report in reports
        for check in report.checks
        if check.fired or verbose
    ]
    if alone:
        rows = [row[2:] for row in rows]
    headers = ["", "RULE", "WHY"] if alone else ["SESSION", "OWNER", "", "RULE", "WHY"]
    empty = f"{reports[0].name}: no rule has fired ('-v' shows what they say)." if alone else "No rule has fired."
    table(headers, rows, empty=empty)


# -- for administrators --------------------------------------------------------------------------------------------------
@click.command("usage")
@click.option(
    "--by",
    type=click.Choice(["user", "project", "session", "host", "day", "total"]),
    default="user",
    show_default=True,
    help="A row for each.",
)
@click.option("--since", metavar="TIME", help="From then on: 2026-03-01, with a time, or 7d ago. [default: 30d]")
@click.option("--until", metavar="TIME", help="Up to then. [default: now]")
@click.option("--user", metavar="EMAIL", help="Only of this user.")
@click.option("--project", help="Only of this project.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
def usage_command(
    by: str, since: str | None, until: str | None, user: str | None, project: str | None, as_csv: bool, as_json: bool
) -> None:
    """Show CPU-, memory- and GPU-hours that were held: exactly, whether they were used or not."""
    begin, end = (None if text is None else terminal.moment(text) for text in (since, until))
    with connect() as client:
        found = client.usage(by=by, since=begin, until=end, user=user, project=project)
    if as_json:
        print_json(found.to_json())
    elif as_csv:
        _print_csv(found)
    else:
        headers = [by.upper(), "SESSIONS", "CPU HOURS", "MEM GiB HOURS", "GPU HOURS"]
        rows = [_usage_row(row) for row in found.rows]
        if rows and found.total is not None and by != "total":
            rows += [[""] * 5, _usage_row(found.total)]
        table(headers, rows, empty="Nothing was held in this time.")
        note(f"{terminal.local_time(found.since)} to {terminal.local_time(found.until)}")


def _usage_row(row: UsageRow) -> list[object]:
    hours = (f"{value:,.2f}" for value in (row.cpu_hours, row.mem_gib_hours, row.gpu_hours))
    return [row.name, row.sessions, *hours]


def _print_csv(usage: Usage) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["name", "sessions", "cpu_hours", "mem_gib_hours", "gpu_hours"])
    for row in usage.rows:
        name = f"'{row.name}" if row.name.startswith(("=", "+", "-", "@", "\t", "\r")) else row.name
        hours = (f"{value:.6f}" for value in (row.cpu_hours, row.mem_gib_hours, row.gpu_hours))
        writer.writerow([name, row.sessions, *hours])


@click.group("watch", cls=Group)
def watch_command() -> None:
    """Thresholds of abuse rules and idle checkers, and sessions that are left in peace."""


@watch_command.command("show")
@click.option("--project", help="As they hold for this project.")
@json_option
def watch_show(project: str | None, as_json: bool) -> None:
    """Show every rule with its settings; * marks what was changed."""
    with connect() as client:
        _show_rules(client.watch_rules(project=project), as_json)


@watch_command.command("set")
@click.argument("settings", nargs=-1, metavar="RULE.SETTING=VALUE...")
@click.option("--project", help="For this project only.")
@click.option("--reset", is_flag=True, help="First take back what was set here.")
@json_option
def watch_set(settings: tuple[str, ...], project: str | None, reset: bool, as_json: bool) -> None:
    """Change settings: 'cpu_idle.max_share=0.05', 'idle_no_call.enabled=1', 'gpu_idle.window_seconds=900'."""
    rules: dict[str, dict[str, float]] = {}
    for setting in settings:
        name, found, value = setting.partition("=")
        rule, dot, key = name.partition(".")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (found and dot and key) or number != number:
            raise click.UsageError(
                f"'{setting}' is not of the form RULE.SETTING=VALUE, such as cpu_idle.max_share=0.05."
            )
        rules.setdefault(rule, {})[key] = number
    with connect() as client:
        _show_rules(client.set_watch_rules(rules, project=project, reset=reset), as_json)


def _show_rules(found: WatchRules, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    rows = [
        [rule, name, f"{value:.12g}" + (" *" if name in found.changed.get(rule, {}) else "")]
        for rule, values in found.rules.items()
        for name, value in values.items()
    ]
    table(["RULE", "SETTING", "VALUE"], rows, empty="")


@watch_command.command("exempt")
@session_argument
@click.option("--reason", default="", help="Why.")
@click.option("--no", "again", is_flag=True, help="Let idle checkers end it again.")
@json_option
def watch_exempt(session: str, reason: str, again: bool, as_json: bool) -> None:
    """Keep idle checkers from ending a session."""
    with connect() as client:
        info = client.sessions.get(session).exempt(not again, reason=reason)
    print_json(info.to_json()) if as_json else click.echo(info.name)
