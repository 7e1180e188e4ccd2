"""`moorage login` and `moorage logout`: a sign-in by password, kept in the configuration file until it expires."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from moorage.cli import terminal
from moorage.cli.terminal import connect, json_option, print_json
from moorage.config import save_sign_in


@click.command("login")
@click.argument("email")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password, one line, from standard input.")
@json_option
@click.pass_context
def login_command(ctx: click.Context, email: str, from_stdin: bool, as_json: bool) -> None:
    """Sign in by e-mail address and password, for 12 hours.

    The server is that of --endpoint or of the configuration file, where the sign-in is kept beside the keys.
    """
    given = sys.stdin.readline().rstrip("\r\n") if from_stdin else None
    password = click.prompt("Password", hide_input=True) if given is None else given
    root = ctx.find_root().obj or {}
    file = root.get("config")
    if file is not None and not Path(file).exists():  # it is made below
        root["config"] = os.devnull
    with connect(ctx) as client:
        made = client.sign_in(email, password)
        config = client.config
    path = save_sign_in(
        config.endpoint, made.token, made.expires_at, ca=config.ca, fingerprint=config.fingerprint, config=file
    )
    if as_json:
        print_json({"user": made.user, "expires_at": made.expires_at.isoformat(), "config": str(path)})
        return
    click.echo(f"You are {made.user} at {config.endpoint} until {terminal.local_time(made.expires_at)}.")
    terminal.note(f"The sign-in is kept in {path}; 'moorage logout' ends it.")


@click.command("logout")
@json_option
@click.pass_context
def logout_command(ctx: click.Context, as_json: bool) -> None:
    """End the sign-in of the configuration file: here, and at the server."""
    from moorage.errors import Unauthenticated

    with connect(ctx) as client:
        config = client.config
        if not config.token:
            raise click.ClickException("You have not signed in; keys and tokens are removed with 'moorage admin'.")
        try:
            client.sign_out()
        except Unauthenticated:
            terminal.note("The server had ended the sign-in already.")
    save_sign_in(config.endpoint, None, config=(ctx.find_root().obj or {}).get("config"))
    print_json({"signed_out": True}) if as_json else click.echo("You have signed out.")
