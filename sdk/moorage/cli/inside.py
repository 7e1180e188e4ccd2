"""Commands for what is in a session: its executions, and what can be done with its files where they are."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from moorage.cli import terminal
from moorage.cli.files import show_files, split
from moorage.cli.sessions import find
from moorage.cli.terminal import Group, connect, json_option, print_json, session_argument, table

if TYPE_CHECKING:
    from moorage.results import Record
    from moorage.sync import Client, Files


# -- executions ----------------------------------------------------------------------------------------------------------
@click.group("execution", cls=Group)
def execution_command() -> None:
    """A session's executions, also those of others and of before: ls, output, kill."""


@execution_command.command("ls")
@session_argument
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@json_option
def execution_ls(session: str, limit: int, as_json: bool) -> None:
    """List a session's executions, the newest first."""
    with connect() as client:
        found = find(client, session).executions.list(limit=limit)
    if as_json:
        print_json([run.to_json() for run in found])
        return
    rows = [
        [
            run.run_id,
            run.mode,
            run.status,
            run.exit_code,
            terminal.local_time(run.started_at),
            terminal.size(run.output_bytes),
        ]
        for run in found
    ]
    table(["RUN", "MODE", "STATUS", "EXIT CODE", "STARTED", "OUTPUT"], rows, empty="Nothing has run in it yet.")


@execution_command.command("output")
@session_argument
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on to its end.")
@click.option("--from-seq", type=click.IntRange(0), default=0, metavar="N", help="Only from this record on.")
@json_option
def execution_output(session: str, run_id: str, follow: bool, from_seq: int, as_json: bool) -> None:
    """Print what an execution has written, at any time, from its beginning."""
    with connect() as client:
        for record in find(client, session).executions.get(run_id).output(from_seq, follow=follow):
            if as_json:
                said = {"text": record.text} if record.text else {"data": dict(record.data)}
                terminal.print_line({"seq": record.seq, "kind": record.kind, **said})
            else:
                _print(record)


@execution_command.command("kill")
@session_argument
@click.argument("run_id", metavar="RUN")
@click.option(
    "--grace", type=click.FloatRange(0, 600), metavar="SECONDS", help="Ask it by SIGTERM; kill it after so long."
)
@json_option
def execution_kill(session: str, run_id: str, grace: float | None, as_json: bool) -> None:
    """End an execution at once."""
    with connect() as client:
        killed = client.sessions.get(session).executions.get(run_id).kill(grace=grace)
    if as_json:
        print_json({"run_id": run_id, "killed": killed})
    else:
        click.echo("killed" if killed else "It had ended already.")


def _print(record: Record) -> None:
    if record.kind in ("stdout", "stderr"):
        click.echo(record.text, nl=False, err=record.kind == "stderr")
    elif record.kind == "result":
        click.echo(str(record.data.get("text/plain") or json.dumps(dict(record.data))))
    elif record.kind == "error":
        click.echo("\n".join(record.data.get("traceback") or [str(record.data.get("evalue"))]), err=True)
    elif record.kind == "gap":
        click.echo("moorage: output is missing here: it was longer than is kept", err=True)
    sys.stdout.flush()


# -- files ---------------------------------------------------------------------------------------------------------------
@click.group("file", cls=Group)
def file_command() -> None:
    """Files where they are, in a session: stat, mkdir, mv, cp, rm, chmod. 'moorage cp' copies in and out."""


class Place(terminal.TextParameter):
    """SESSION:PATH"""

    name = "SESSION:PATH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if split(str(value)) is None or not str(value).partition(":")[2]:
            self.fail(f"'{value}' is not of the form SESSION:PATH.", param, ctx)
        return str(value)


_place = click.argument("place", type=Place())
_recursive = click.option("-r", "--recursive", is_flag=True, help="A folder with everything in it.")
_kernel = click.option("--kernel", metavar="NAME", help="Of a cluster, the kernel that is meant, such as worker1.")


def _at(client: Client, place: str, kernel: str | None) -> tuple[Files, str]:
    session, _, path = place.partition(":")
    found = client.sessions.get(session)
    return (found.kernel(kernel).files if kernel else found.files), path


def _done(place: str, as_json: bool) -> None:
    print_json({"path": place}) if as_json else click.echo(place)


@file_command.command("stat")
@_place
@_kernel
@json_option
def file_stat(place: str, kernel: str | None, as_json: bool) -> None:
    """Show type, size, times and owner of a file or folder."""
    with connect() as client:
        files, path = _at(client, place, kernel)
        show_files([files.stat(path)], long=True, as_json=as_json)


@file_command.command("mkdir")
@_place
@click.option("-p", "--parents", is_flag=True, help="Also those above it; one that is there is no error.")
@_kernel
@json_option
def file_mkdir(place: str, parents: bool, kernel: str | None, as_json: bool) -> None:
    """Make a folder."""
    with connect() as client:
        files, path = _at(client, place, kernel)
        files.mkdir(path, parents=parents)
    _done(place, as_json)


@file_command.command("mv")
@_place
@click.argument("to", metavar="PATH")
@_kernel
@json_option
def file_mv(place: str, to: str, kernel: str | None, as_json: bool) -> None:
    """Move or rename within the session."""
    with connect() as client:
        files, path = _at(client, place, kernel)
        files.move(path, to)
    _done(f"{place.partition(':')[0]}:{to}", as_json)


@file_command.command("cp")
@_place
@click.argument("to", metavar="PATH")
@_recursive
@_kernel
@json_option
def file_cp(place: str, to: str, recursive: bool, kernel: str | None, as_json: bool) -> None:
    """Copy within the session."""
    with connect() as client:
        files, path = _at(client, place, kernel)
        files.copy(path, to, recursive=recursive)
    _done(f"{place.partition(':')[0]}:{to}", as_json)


@file_command.command("rm")
@_place
@_recursive
@_kernel
@json_option
def file_rm(place: str, recursive: bool, kernel: str | None, as_json: bool) -> None:
    """Remove a file, or with -r a folder."""
    with connect() as client:
        files, path = _at(client, place, kernel)
        files.remove(path, recursive=recursive)
    _done(place, as_json)


@file_command.command("chmod")
@click.argument("mode", metavar="MODE")
@_place
@_kernel
@json_option
def file_chmod(mode: str, place: str, kernel: str | None, as_json: bool) -> None:
    """Set permissions, in octal: 755."""
    if not all(digit in "01234567" for digit in mode) or not 3 <= len(mode) <= 4:
        raise click.UsageError(f"'{mode}' is no mode such as 755.")
    with connect() as client:
        files, path = _at(client, place, kernel)
        files.chmod(path, int(mode, 8))
    _done(place, as_json)
