"""Commands for who one is, and for webhooks."""

from __future__ import annotations

import click

from moorage.cli import terminal
from moorage.cli.sessions import find
from moorage.cli.terminal import Group, connect, details, json_option, print_json, session_argument, table


@click.command("whoami")
@json_option
def whoami_command(as_json: bool) -> None:
    """Show who the server takes you for."""
    with connect() as client:
        found = client.whoami()
    if as_json:
        print_json(found.to_json())
        return
    user = found.user.email if found.user else None
    details(
        {
            "user": user,
            "access key": found.access_key,
            "role": found.role,
            "domain": found.domain,
            "projects": ", ".join(found.projects),
            "administers": ", ".join(found.administers) or None,
            "by": found.credential if found.credential != "token" else f"token: {', '.join(found.scopes)}",
        }
    )


# -- webhooks ------------------------------------------------------------------------------------------------------------
@click.group("webhook", cls=Group)
def webhook_command() -> None:
    """What sessions' --callback-url is told: its secret, and what became of it."""


@webhook_command.command("secret")
@json_option
def webhook_secret(as_json: bool) -> None:
    """Make the secret that your webhooks are signed with, in place of the one before. It is shown once."""
    with connect() as client:
        secret = client.webhooks.create_secret()
    if as_json:
        print_json({"secret": secret})
        return
    click.echo(secret)
    terminal.note("The secret is shown only now; what is sent from now on is signed with it.")


@webhook_command.command("ls")
@session_argument
@click.option("-n", "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@json_option
def webhook_ls(session: str, limit: int, as_json: bool) -> None:
    """Show what a session's callback was sent, the newest first."""
    with connect() as client:
        found = find(client, session).deliveries(limit=limit)
    if as_json:
        print_json([delivery.to_json() for delivery in found])
        return
    rows = [[terminal.local_time(d.created_at), d.type, d.status, d.tries, d.http_status, d.error or ""] for d in found]
    table(["TIME", "EVENT", "STATUS", "TRIES", "ANSWER", "ERROR"], rows, empty="Nothing was sent.")
