"""Commands for what a session keeps: `moorage state get|set|ls|rm`."""

from __future__ import annotations

import json

import click

from moorage.cli.terminal import Group, connect, json_option, note, print_json, session_argument, table


@click.group("state", cls=Group)
def state_command() -> None:
    """Small JSON values that a session keeps, also for its own programs: get, set, ls, rm."""


@state_command.command("ls")
@session_argument
@json_option
def state_ls(session: str, as_json: bool) -> None:
    """Show what a session keeps, and how large it is."""
    with connect() as client:
        sizes = client.sessions.get(session).state.sizes()
    if as_json:
        print_json(sizes)
    else:
        table(["KEY", "BYTES"], list(sizes.items()), empty="Nothing is kept.")


@state_command.command("get")
@session_argument
@click.argument("key")
@json_option
def state_get(session: str, key: str, as_json: bool) -> None:
    """Print one value: a text as it stands, everything else as JSON."""
    with connect() as client:
        state = client.sessions.get(session).state
        try:
            value = state[key]
        except KeyError:
            raise click.ClickException(
                f"There is no '{key}'; 'moorage state ls {session}' shows what is kept."
            ) from None
    if isinstance(value, str) and not as_json:
        click.echo(value)
    else:
        print_json(value)


@state_command.command("set")
@session_argument
@click.argument("key")
@click.argument("value")
@click.option("--text", is_flag=True, help="The value is a text as it stands, not JSON.")
@json_option
def state_set(session: str, key: str, value: str, text: bool, as_json: bool) -> None:
    """Keep a value: JSON such as 0.93, '"a text"', '{"of": [1, 2]}'."""
    parsed: object = value
    if not text:
        try:
            parsed = json.loads(value)
        except ValueError:
            raise click.UsageError("The value is not JSON; pass --text to keep it as a text.") from None
    with connect() as client:
        client.sessions.get(session).state.set(key, parsed)
    if as_json:
        print_json({"key": key, "value": parsed})


@state_command.command("rm")
@session_argument
@click.argument("key")
@json_option
def state_rm(session: str, key: str, as_json: bool) -> None:
    """Forget one value."""
    with connect() as client:
        deleted = client.sessions.get(session).state.delete(key)
    if as_json:
        print_json({"deleted": deleted})
    elif not deleted:
        note(f"There was no '{key}'.")
