"""Commands for the audit: `moorage admin audit ls|export|verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from moorage.cli.terminal import F, Group, connect, json_option, local_time, moment, note, print_json, table

_FILTERS = (
    click.option("--who", metavar="WHO", help="An e-mail address, an access key, or agent:NAME."),
    click.option(
        "--owner", metavar="WHOSE", help="On whose behalf, or whose session: an e-mail address or access key."
    ),
    click.option("--action", metavar="NAME", help="Such as create_from_params, destroy_session."),
    click.option("--target", metavar="ID", help="A session's id, or what else was acted on."),
    click.option("--outcome", metavar="CODE", help="ok, or the code of a refusal, such as permission_denied."),
    click.option("--since", metavar="TIME", help="30m, 2d, or 2026-03-01T12:00."),
    click.option("--until", metavar="TIME", help="The same."),
)


def _filters(function: F) -> F:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


@click.group("audit", cls=Group)
def audit_command() -> None:
    """What was done and refused, by whom, to whose: ls, export, verify."""


@audit_command.command("ls")
@_filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@json_option
def audit_ls(limit: int, as_json: bool, **asked: str | None) -> None:
    """Show what was done and refused, newest first. Looking at it is on record, too."""
    with connect() as client:
        found = list(client.audit.list(limit=limit, **_times(asked)))
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        [
            local_time(one.at),
            one.user or one.access_key,
            one.owner or one.owner_access_key,
            one.action,
            one.target,
            one.outcome + (f" x{one.repeats}" if one.repeats > 1 else ""),
        ]
        for one in found
    ]
    table(["WHEN", "WHO", "WHOSE", "ACTION", "TARGET", "OUTCOME"], rows, empty="Nothing of the kind is on record.")


@audit_command.command("export")
@_filters
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file.  [default: standard output]"
)
@click.option(
    "--head", "head_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the head also to this file."
)
@json_option
def audit_export(output: Path | None, head_file: Path | None, as_json: bool, **asked: str | None) -> None:
    """Write the audit as JSON lines, oldest first; the last one is its head.

    Keep the head where nobody who can write to the database can write: 'moorage admin audit verify --head FILE' finds by
    it whether the end was cut off.
    """
    with connect() as client:
        lines = client.audit.export(**_times(asked))
        if output is None:
            rows, head = _write(lines, lambda text: click.echo(text, nl=False))
        else:
            partial = output.with_name(f"{output.name}.part")
            with partial.open("w", encoding="utf-8") as file:
                rows, head = _write(lines, file.write)
            partial.replace(output)
    if head_file is not None:
        head_file.write_text(json.dumps({"head": head}) + "\n", encoding="utf-8")
    if as_json and output is not None:  # what goes to standard output is JSON anyway
        print_json({"output": str(output), "rows": rows, "head": head})
    else:
        note(f"{rows} rows; the head is row {head.get('seq')}")


def _write(lines: Iterable[dict[str, Any]], write: Callable[[str], object]) -> tuple[int, dict[str, Any]]:
    rows = -1
    head: dict[str, Any] = {}
    for line in lines:
        write(json.dumps(line, ensure_ascii=False) + "\n")
        rows, head = rows + 1, line.get("head") or {}
    return rows, head


@audit_command.command("verify")
@click.option(
    "--head",
    "head_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A head, or a whole export: finds whether the end was cut off since.",
)
@json_option
def audit_verify(head_file: Path | None, as_json: bool) -> None:
    """Prove that no row was changed, moved or removed by somebody without the key. Exit code 1: one was."""
    head = None if head_file is None else _head_in(head_file)
    with connect() as client:
        found = client.audit.verify(head)
    if as_json:
        print_json(found.to_json())
    elif found.whole:
        since = f" (those up to {found.since} were forgotten by age)" if found.since else ""
        note(
            f"The audit is whole: {found.rows} rows proved{since}; its head is row {found.seq}, {found.head or 'empty'}."
        )
        if not found.keyed:
            note("Its links were made without a key: whoever can write to the database could have made them anew.")
        if head is None:
            note("Whether its end was cut off is not known without a head: 'moorage admin audit export --head FILE'.")
        elif not found.head_checked:
            note("The head is older than what is kept: it proves nothing any more; export a new one.")
    else:
        note(f"The audit is NOT whole: row {found.broken_at}: {found.why}.")
    sys.exit(0 if found.whole else 1)


def _head_in(path: Path) -> dict[str, Any]:
    """The last line that is one."""
    head = None
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                said = json.loads(line)
                found = said.get("head") if isinstance(said, dict) else None
            except ValueError:
                break
            if isinstance(found, dict) and isinstance(found.get("seq"), int) and isinstance(found.get("chain"), str):
                head = found
    if head is None:
        raise click.ClickException(f"{path} holds no head; 'moorage admin audit export --head FILE' writes one.")
    return head


def _times(asked: dict[str, str | None]) -> dict[str, Any]:
    times = {name: moment(text) for name in ("since", "until") if (text := asked.get(name))}
    return {**asked, **times}
