"""`moorage simulate`: what would change with another policy, or with more GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from moorage._errors import MoorageError as ClientError
from moorage.cli.terminal import note, print_json

from domain.errors import MoorageError
from domain.simulation.fleet import Fleet
from domain.simulation.policy import Policy
from domain.simulation.workload import Workload

P = ParamSpec("P")
T = TypeVar("T")
_MOST_CASES = 6


class _RunByDefault(click.Group):
    """`simulate TRACE` is `simulate run TRACE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _told(function: Callable[P, T]) -> Callable[P, T]:
    """Errors of the domain in the words and with the exit codes of the client."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except MoorageError as error:
            raise ClientError(
                error.message, code=error.code, http_status=error.http_status, facts=dict(error.facts)
            ) from None

    return run


@click.group(cls=_RunByDefault)
def simulate() -> None:
    """Replay a workload through the scheduler in virtual time, and compare policies and fleets.

    \b
    moorage simulate --generate week --sessions 5000 --compare fifo fair-share --plot week.png
    moorage simulate trace.csv --fleet today.toml --fleet with-8-more.toml
    moorage simulate record --out trace.csv         what this installation has really done
    """


_trace_options: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--generate", "period", type=click.Choice(["day", "week", "month"]), help="Make a workload up instead of reading one."
    ),
    click.option("--sessions", default=5000, show_default=True, help="Of a generated workload."),
    click.option("--users", default=40, show_default=True, help="Of a generated workload."),
    click.option("--load", default=0.85, show_default=True, help="What it asks for over what the (first) fleet has."),
    click.option("--seed", default=1, show_default=True, help="The same seed makes the same workload."),
    click.option(
        "--format", "form", type=click.Choice(["auto", "moorage", "slurm", "philly"]), default="auto", show_default=True,
        help="Of the trace; by its fields.",
    ),
    click.option("--from-sacct", is_flag=True, help="The same as --format slurm."),
    click.option("--skip-bad", is_flag=True, help="Leave lines with holes out, and count them, instead of refusing the trace."),
)  # fmt: skip


@simulate.command("run")
@click.argument("trace", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--fleet", "fleets", multiple=True, metavar="FILE|live",
    help="Hosts: TOML or JSON, or those of this installation; several are compared.  [default: an example]",
)  # fmt: skip
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="POLICY",
    help="A known name, FILE.toml, or ordering=fifo,backfill=no.",
)
@click.option("--compare", nargs=2, metavar="A B", help="Two policies side by side.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw a picture: .png, .svg or .pdf.")
@click.option("--by-user", "by_user", default=10, show_default=True, help="How many users are listed.")
@click.option(
    "--save-trace", type=click.Path(dir_okay=False, path_type=Path), help="Write the workload down (.csv, .jsonl)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_told
def run(
    trace: Path | None,
    fleets: tuple[str, ...],
    policies: tuple[str, ...],
    compare: tuple[str, str] | None,
    plot: Path | None,
    by_user: int,
    save_trace: Path | None,
    as_json: bool,
    **workload_options: Any,
) -> None:
    """Replay TRACE (- is standard input) or a generated workload.

    Policies: default (fair share with backfill), fifo, fifo-backfill, no-backfill, spread; a file; or settings
    between commas. docs/simulation.md describes traces, fleets and policies.
    """
    from domain.simulation.figures import figures
    from domain.simulation.replay import replay
    from manager.simulation import plots, report

    if plot is not None:
        plots.check(plot)
    chosen = _fleets(fleets)
    ruled = [_policy(said) for said in (*policies, *(compare or ()))] or [_policy("default")]
    cases = [(fleet, policy) for fleet in chosen for policy in ruled]
    if len(cases) > _MOST_CASES:
        raise click.UsageError(f"At most {_MOST_CASES} combinations of fleets and policies are compared at once.")
    workload = _workload(trace, chosen, workload_options)
    if save_trace is not None:
        _save(workload, save_trace)
    names = _names(cases)
    replayed = []
    for name, (fleet, policy) in zip(names, cases, strict=True):
        note(f"simulating {name} ...") if len(cases) > 1 else None
        replayed.append(replay(workload, fleet, policy))
    told = [(name, figures(one)) for name, one in zip(names, replayed, strict=True)]
    if plot is not None:
        plots.draw(plot, workload, list(zip(names, replayed, [one for _, one in told], strict=True)))
    if as_json:
        print_json(report.as_json(workload, told))
        return
    click.echo(_headline(workload, chosen))
    report.show(workload, told, users=by_user)
    if plot is not None:
        note(f"drawn into {plot}")


for _option in _trace_options:
    run = _option(run)


@simulate.command("record")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file: .csv, or .jsonl.  [default: CSV to the terminal]",
)
@click.option("--since", help="Submitted since: a time, or how long ago (30d).  [default: 30 days ago]")
@click.option("--until", help="Submitted before.  [default: now]")
@click.option("--anonymous", is_flag=True, help="Number users and projects instead of naming them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines; with --out, what was written there.")
@_told
def record(out: Path | None, since: str | None, until: str | None, anonymous: bool, as_json: bool) -> None:
    """Write down what has really run here, as a trace to be replayed. For administrators and monitors."""
    from domain.simulation.native import as_csv, as_json_lines
    from manager.simulation.live import live_workload

    workload = live_workload(since, until, anonymous=anonymous)
    if out is None:
        for line in (as_json_lines if as_json else as_csv)(workload.jobs):
            click.echo(line, nl=False)
    else:
        _save(workload, out)
        if as_json:
            print_json({"out": str(out), "jobs": len(workload.jobs), "notes": list(workload.notes)})
    for told in (workload.source + (f" written to {out}" if out else ""), *workload.notes):
        note(told)


def _policy(said: str) -> Policy:
    if said == "live" or said.startswith("live:"):
        from manager.simulation.live import live_policy

        return live_policy(said.partition(":")[2])
    from manager.simulation.inputs import read_policy

    return read_policy(said)


def _fleets(said: Iterable[str]) -> list[Fleet]:
    from manager.simulation import inputs

    found = []
    for one in said:
        if one == "live":
            from manager.simulation.live import live_fleet

            found.append(live_fleet())
        else:
            found.append(inputs.read_fleet(Path(one)))
    return found or [inputs.example_fleet()]


def _workload(trace: Path | None, fleets: Sequence[Fleet], options: dict[str, Any]) -> Workload:
    from domain.simulation.generate import generate
    from domain.simulation.trace import read

    if (trace is None) == (options["period"] is None):
        raise click.UsageError("Say what to replay: a TRACE, or --generate week.")
    if trace is None:
        keys = ("period", "sessions", "users", "load", "seed")
        return generate(fleets[0], **{key: options[key] for key in keys})
    groups = frozenset.intersection(*(fleet.groups for fleet in fleets))
    form = "slurm" if options["from_sacct"] else options["form"]
    with click.open_file(str(trace), encoding="utf-8", errors="replace") as lines:
        return read(lines, name=trace.name, form=form, skip_bad=options["skip_bad"], groups=groups)


def _save(workload: Workload, path: Path) -> None:
    from domain.simulation.native import as_csv, as_json_lines

    lines = as_json_lines(workload.jobs) if path.suffix in (".jsonl", ".ndjson") else as_csv(workload.jobs)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def _names(cases: Sequence[tuple[Fleet, Policy]]) -> list[str]:
    """Of each, what tells it from the others."""
    fleets, policies = {fleet.name for fleet, _ in cases}, {policy.name for _, policy in cases}
    if len(fleets) == 1:
        names = [policy.name for _, policy in cases]
    elif len(policies) == 1:
        names = [fleet.name for fleet, _ in cases]
    else:
        names = [f"{fleet.name}, {policy.name}" for fleet, policy in cases]
    return [
        f"{name} ({names[:at].count(name) + 1})" if names.count(name) > 1 else name for at, name in enumerate(names)
    ]


def _headline(workload: Workload, fleets: Sequence[Fleet]) -> str:
    from domain.simulation.fleet import totals

    lines = [workload.source]
    for fleet in fleets:
        has = totals(fleet)
        gpus = ", ".join(f"{count} {model or 'GPUs'}" for model, count in has.gpus.items()) or "no GPUs"
        hosts = "1 host" if has.hosts == 1 else f"{has.hosts:,} hosts"
        lines.append(f"on {fleet.name}: {hosts}, {has.cpus:g} CPUs, {has.mem_gib:,.0f} GiB, {gpus}")
    if workload.skipped:
        first = workload.skipped[0]
        lines.append(f"{len(workload.skipped):,} left out for their holes, such as line {first.line}: {first.reason}")
    return "\n".join([*lines, *workload.notes, ""])
