"""Sessions that wait for others, start later, are tried again, and leave results; and pictures of what waits for what."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.terminal import F, connect, json_option, note, print_json, session_argument
from moorage.errors import SessionNotFound

if TYPE_CHECKING:
    from moorage._models import DependencyGraph, GraphEdge, GraphNode
    from moorage.sync import Session

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DELAY = re.compile(r"\+(\d+(?:\.\d+)?)([smhd]?)")
#: Services that the server knows how to start, of which `--serve` gives the arguments.
_KNOWN = frozenset({"tensor-stream"})
_FINAL = frozenset({"TERMINATED", "CANCELLED", "ERROR"})
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")


class Moment(terminal.TextParameter):
    """A point in time; answered in ISO 8601."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        now = datetime.now().astimezone()
        try:
            if delay := _DELAY.fullmatch(text):
                at = now + timedelta(seconds=float(delay[1]) * _UNITS[delay[2]])
            elif clock := _CLOCK.fullmatch(text):
                at = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
                at = at if at > now else at + timedelta(days=1)
            else:
                at = datetime.fromisoformat(text).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"'{value}' is no time; write 2026-03-01T18:00, 18:00, or +90m.", param, ctx)
        return at.astimezone(UTC).isoformat()


def batch_options(function: F) -> F:
    """When a session may run, and how often."""
    options: list[Callable[[F], F]] = [
        click.option("--depends-on", multiple=True, type=terminal.SESSION, metavar="SESSION",
                     help="Not before that one has succeeded (repeatable)."),
        click.option("--depends-on-any", multiple=True, type=terminal.SESSION, metavar="SESSION",
                     help="Not before that one has ended, no matter how (repeatable)."),
        click.option("--starts-at", type=Moment(), metavar="TIME", help="Not before: 2026-03-01T18:00, 18:00, or +90m."),
        click.option("--batch-timeout", type=float, metavar="SECONDS", help="A command that takes longer has failed."),
        click.option("--retries", type=click.IntRange(0, 100), metavar="N", help="Try a failing command so often again."),
        click.option("--retry-delay", type=float, metavar="SECONDS",
                     help="Before the first retry; then twice as long each time. [default: 5]"),
        click.option("--keep", multiple=True, metavar="GLOB",
                     help="Files to keep of a command, for 'moorage results' (repeatable). [default: outputs]"),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def batch_fields(
    depends_on: Sequence[str] = (),
    depends_on_any: Sequence[str] = (),
    starts_at: str | None = None,
    batch_timeout: float | None = None,
    retries: int | None = None,
    retry_delay: float | None = None,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """As `client.sessions.create` takes them; only what was given."""
    fields: dict[str, Any] = {
        "depends_on": list(depends_on),
        "depends_on_any": list(depends_on_any),
        "starts_at": starts_at,
        "batch_timeout": batch_timeout,
        "max_retries": retries,
        "retry_delay": retry_delay,
        "outputs": list(keep),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def serving_options(function: F) -> F:
    """Of an inference session."""
    options: list[Callable[[F], F]] = [
        click.option("--serve", metavar="CMD",
                     help="Keep this service running: an inference session. {port} is its port. 'tensor-stream app:Model' serves "
                     "a generator of tensors."),
        click.option("--serve-name", metavar="NAME", help="What that service is called. [default: api; of a known kind, as it]"),
        click.option("--serve-port", type=click.IntRange(1, 65535),
                     help="Where it listens. [default: 8000; of a known kind, its own]"),
        click.option("--serve-path", metavar="PATH", help="What it answers when it is ready. [default: a connection]"),
        click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Kernels that serve it."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def serving_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Takes what `serving_options` gave out of `fields`; as `client.sessions.create` takes it."""
    names = ("serve", "serve_name", "serve_port", "serve_path", "replicas")
    command, name, port, path, replicas = (fields.pop(one) for one in names)
    if command is None:
        return {}
    try:
        kind, *arguments = shlex.split(command) or [""]
    except ValueError:  # the shell's to judge
        kind, arguments = "", []
    if kind in _KNOWN:
        serves: dict[str, Any] = {
            "name": name or kind,
            "kind": kind,
            "arguments": arguments,
            "port": port,
            "path": path,
        }
    else:
        argv = ["/bin/sh", "-c", f"exec {command}"]
        serves = {"name": name or "api", "command": argv, "port": port or 8000, "path": path}
    return {"serves": {key: value for key, value in serves.items() if value is not None}, "cluster_size": replicas}


def waits(fields: dict[str, Any]) -> bool:
    """Whether such a session may not run for a long time."""
    return any(name in fields for name in ("depends_on", "depends_on_any", "starts_at"))


def is_batch(fields: dict[str, Any]) -> bool:
    return any(name in fields for name in ("batch_timeout", "max_retries", "retry_delay", "outputs"))


def follow_batch(session: Session, show: Callable[[str], object]) -> int:
    """Show the output of each attempt as it comes, to the last; the exit code of the work, 124 when it took too long."""
    shown: list[str] = []
    while True:
        pause = 0.05
        with terminal.waiting(f"{session.name}: {session.info.status_reason or session.status}"):
            while not (runs := _new_runs(session, shown)) and session.refresh().status not in _FINAL:
                time.sleep(pause)
                pause = min(0.5, pause * 1.5)
        for run_id in runs:
            shown.append(run_id)
            show(run_id)
        if session.refresh().status in _FINAL and not _new_runs(session, shown):
            return _code(session)
        if session.status == "PENDING" and session.info.status_reason:
            note(f"moorage: {session.info.status_reason}")


def _new_runs(session: Session, shown: Sequence[str]) -> list[str]:
    """The work itself, oldest attempt first."""
    runs = [run.run_id for run in session.executions.list() if run.run_id == run.kernel_id]
    return [run_id for run_id in reversed(runs) if run_id not in shown]


def _code(session: Session) -> int:
    info = session.info
    if info.result == "SUCCESS":
        return terminal.OK
    if info.status_reason:
        note(f"moorage: {info.status_reason}")
    if (info.status_reason or "").startswith("batch_timeout"):
        return 124
    return info.exit_code if info.exit_code and 0 < info.exit_code < 256 else terminal.FAILED


def dependency_options(function: F) -> F:
    """Of a session that is still PENDING."""
    texts = (
        ("--depends-on", "Wait also until that one has succeeded (repeatable)."),
        ("--depends-on-any", "Wait also until that one has ended (repeatable)."),
        ("--no-depends-on", "Wait for that one no longer (repeatable)."),
    )
    for name, text in reversed(texts):
        function = click.option(name, multiple=True, type=terminal.SESSION, metavar="SESSION", help=text)(function)
    function = click.option("--retries", type=click.IntRange(0, 100), metavar="N", help="Of a failing command.")(
        function
    )
    function = click.option("--batch-timeout", type=float, metavar="SECONDS", help="Of a command.")(function)
    return click.option("--starts-at", type=Moment(), metavar="TIME", help="Not before, while it is PENDING.")(function)


def rewire(
    session: Session,
    depends_on: Sequence[str],
    depends_on_any: Sequence[str],
    no_depends_on: Sequence[str],
    starts_at: str | None,
    batch_timeout: float | None,
    retries: int | None,
) -> None:
    if starts_at is not None or batch_timeout is not None or retries is not None:
        session.reschedule(starts_at=starts_at, batch_timeout=batch_timeout, max_retries=retries)
    if no_depends_on:
        session.remove_dependencies(list(no_depends_on))
    if depends_on or depends_on_any:
        session.add_dependencies(list(depends_on), on_any_end=list(depends_on_any))


# -- results -------------------------------------------------------------------------------------------------------------
@click.command("results")
@session_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder, or FILE.tar. [default: NAME-results]")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of that attempt. [default: the last]")
@json_option
def results_command(session: str, output: Path | None, attempt: int | None, as_json: bool) -> None:
    """Fetch the files that a batch session has left, after its end. They are kept for 7 days."""
    from moorage.cli.sessions import find

    with connect() as client:
        found = find(client, session)
        with terminal.progress(f"{found.name}: its results", shown=not as_json) as report:
            path = found.download_results(output or f"{found.name}-results", attempt=attempt, on_progress=report)
    if as_json:
        print_json({"session": found.name, "path": str(path)})
    else:
        click.echo(path)


# -- statuses ------------------------------------------------------------------------------------------------------------
@click.command("transit")
@click.argument("sessions", nargs=-1, metavar="[SESSION]...")
@json_option
def transit_command(sessions: tuple[str, ...], as_json: bool) -> None:
    """Compare sessions' statuses with what their hosts say, and correct them: those named, or all that live."""
    with connect() as client:
        live = [session.info for session in client.sessions.list(all=True)]
        names = {info.id: info.name for info in live}
        by_name = {info.name: info.id for info in live}
        if unknown := [name for name in sessions if name not in names and name not in by_name]:
            raise SessionNotFound(f"There is no live session '{unknown[0]}'; 'moorage admin session ls' lists them.")
        wanted = [by_name.get(name, name) for name in sessions] if sessions else list(names)
        outcomes = client.sessions.check_status(wanted) if wanted else []
    if as_json:
        print_json([outcome.to_json() for outcome in outcomes])
        return
    rows = [
        [names.get(one.session_id, one.session_id), one.before, one.after if one.path else "", one.error or one.reason]
        for one in outcomes
    ]
    terminal.table(["NAME", "WAS", "IS NOW", "BECAUSE"], rows, empty="No live sessions.")


# -- graphs --------------------------------------------------------------------------------------------------------------
@click.command("graph")
@session_argument
@click.option("--format", "form", type=click.Choice(["svg", "dot"]), help="A picture, or a text for Graphviz.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Into this file, not to stdout.")
@json_option
def graph_command(session: str, form: str | None, output: Path | None, as_json: bool) -> None:
    """Show what a session waits for and what waits for it: as a tree, or drawn.

    \b
    moorage graph train
    moorage graph train -o pipeline.svg
    """
    from moorage.cli.sessions import find

    if form is None and output is not None and not as_json:
        form = "dot" if output.suffix in (".dot", ".gv") else "svg"
    with connect() as client:
        found = find(client, session)
        if form is not None:
            text = found.draw_dependencies(form)
        else:
            graph = found.dependency_graph()
            text = (
                _json(graph)
                if as_json
                else "\n".join(tree(graph, colours=output is None and sys.stdout.isatty())) + "\n"
            )
    if output is not None:
        output.write_text(text, encoding="utf-8")
        click.echo(output)
    else:
        click.echo(text, nl=False)


def _json(graph: DependencyGraph) -> str:
    import json

    return json.dumps(graph.to_json(), indent=2, ensure_ascii=False) + "\n"


_MARKS = {"waiting": "…", "running": "▶", "succeeded": "✓", "failed": "✗", "skipped": "⊘", "ended": "■"}
_COLOURS = {
    "waiting": "cyan", "running": "blue", "succeeded": "green", "failed": "red", "skipped": "yellow", "ended": "white",
}  # fmt: skip


def tree(graph: DependencyGraph, *, colours: bool = False) -> Iterable[str]:
    """One line for each session; it hangs below the first that it waits for, and names the others."""
    nodes = {node.id: node for node in graph.nodes}
    before: dict[str, list[GraphEdge]] = {}
    after: dict[str, list[str]] = {}
    for edge in graph.edges:
        before.setdefault(edge.target, []).append(edge)
    for target, edges in before.items():
        after.setdefault(edges[0].source, []).append(target)

    def line(node: GraphNode) -> str:
        mark = f"{_MARKS.get(node.look, '?')} {node.look}"
        text = f"{terminal.printable(node.name)}  {click.style(mark, fg=_COLOURS.get(node.look)) if colours else mark}"
        if node.look == "failed" and node.exit_code:
            text += f", exit code {node.exit_code}"
        elif node.look in ("failed", "skipped", "waiting") and node.reason:
            text += f" ({terminal.printable(node.reason.removeprefix('dependency_failed: '))})"
        if node.retries:
            text += f", try {node.retries + 1}"
        edges = before.get(node.id, [])
        others = [_named(nodes[edge.source], edge) for edge in edges[1:]]
        if edges and edges[0].condition == "end":
            text += ", on any end"
        return text + (f"  ← also {', '.join(others)}" if others else "")

    def below(node_id: str, indent: str) -> Iterable[str]:
        children = after.get(node_id, [])
        for child in children:
            last = child == children[-1]
            yield f"{indent}{'└─' if last else '├─'} {line(nodes[child])}"
            yield from below(child, indent + ("   " if last else "│  "))

    for node in graph.nodes:
        if node.id not in before:
            yield line(node)
            yield from below(node.id, "")
    if graph.truncated:
        yield "… and more than are shown here"


def _named(node: GraphNode, edge: GraphEdge) -> str:
    return terminal.printable(node.name) + (" (any end)" if edge.condition == "end" else "")
