"""The figures of one or several replays as tables: the cases stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from moorage.cli.terminal import table

from domain.durations import span
from domain.simulation.figures import Figures, Waiting
from domain.simulation.workload import SIZES, Workload

Case: TypeAlias = tuple[str, Figures]
_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("sessions", lambda f: f"{f.sessions:,}"),
    ("never start", lambda f: f"{f.sessions - f.started:,}"),
    ("waiting: mean", lambda f: wait(f.waiting.mean_seconds)),
    ("  half wait at most", lambda f: wait(f.waiting.p50_seconds)),
    ("  95 % at most", lambda f: wait(f.waiting.p95_seconds)),
    ("  99 % at most", lambda f: wait(f.waiting.p99_seconds)),
    ("  the longest", lambda f: wait(f.waiting.longest_seconds)),
    ("GPUs held", lambda f: _percent(f.utilisation["gpu"])),
    ("CPUs held", lambda f: _percent(f.utilisation["cpu"])),
    ("memory held", lambda f: _percent(f.utilisation["mem"])),
    ("until all is done", lambda f: wait(f.makespan_seconds)),
    ("somebody waited for", lambda f: wait(f.contended_seconds)),
    ("longest queue", lambda f: f"{f.most_queued:,}"),
    ("fairness (Jain)", lambda f: f"{f.fairness:.3f}"),
    ("backfilled", lambda f: f"{f.backfilled:,}"),
    ("cut short by timeout", lambda f: f"{f.cut_short:,}"),
)


def show(workload: Workload, cases: Sequence[Case], *, users: int) -> None:
    names = [name for name, _ in cases]
    table(["", *names], [[title, *(row(figures) for _, figures in cases)] for title, row in _ROWS], empty="")
    _heading("Waiting by size: mean, and what 95 % wait at most")
    _by_size(names, cases)
    if users:
        listed = f"{min(users, len(workload.users))} of {len(workload.users)} users, those who held most first"
        _heading(f"{listed}: waiting (mean), and what they held of the fleet while anybody waited over what was theirs")
        _by_user(names, cases, users)
    for name, figures in cases:
        if figures.longest and figures.longest.seconds:
            one = figures.longest
            _say(f"{name}: {one.user} waited longest, {span(one.seconds)} for {one.size}, line {one.line}.")
    for name, figures in cases:
        for never in figures.never:
            _say(f"{name}: {never.sessions:,} never start ({never.code}), such as {never.example}.")


def as_json(workload: Workload, cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "workload": {
            "source": workload.source,
            "sessions": len(workload.jobs),
            "users": len(workload.users),
            "skipped": [asdict(one) for one in workload.skipped],
            "notes": list(workload.notes),
        },
        "cases": [{"name": name, **asdict(figures)} for name, figures in cases],
    }


def wait(seconds: float) -> str:
    return "none" if seconds < 0.5 else span(seconds)


def _by_size(names: Sequence[str], cases: Sequence[Case]) -> None:
    rows = []
    for size in SIZES:
        found = [figures.by_size.get(size) for _, figures in cases]
        if any(found):
            most = max(one.sessions for one in found if one)
            rows.append([size, f"{most:,}", *map(_brief, found)])
    table(["SIZE", "SESSIONS", *names], rows, empty="Nothing has started.")


def _by_user(names: Sequence[str], cases: Sequence[Case], users: int) -> None:
    first = [one.user for one in cases[0][1].by_user[:users]]
    headers = ["USER", "SESSIONS", "GPU HOURS"]
    for name in names:
        headers += [name, "HELD / ENTITLED"]
    rows = []
    for user in first:
        row: list[str] = []
        for _, figures in cases:
            one = next((found for found in figures.by_user if found.user == user), None)
            if one is None:
                row += ["", ""]
                continue
            if not row:
                row = [user, f"{one.waiting.sessions:,}", f"{one.gpu_hours:,.0f}"]
            ratio = f" = {one.held / one.entitled:.2f}" if one.entitled > 1e-6 else ""
            row += [wait(one.waiting.mean_seconds), f"{_percent(one.held)} / {_percent(one.entitled)}{ratio}"]
        rows.append(row)
    table(headers, rows, empty="Nothing has started.")


def _brief(waiting: Waiting | None) -> str:
    return "none started" if waiting is None else f"{wait(waiting.mean_seconds)}, {wait(waiting.p95_seconds)}"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _heading(text: str) -> None:
    _say("")
    _say(text)


def _say(text: str) -> None:
    import click

    click.echo(text)
