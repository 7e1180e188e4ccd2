"""Commands for who may use the installation: `moorage admin user|keypair|token|project|domain`."""

from __future__ import annotations

import sys
from typing import Any

import click

from moorage.cli import terminal
from moorage.cli.listing import Forgiving, removed, show_list, show_one
from moorage.cli.terminal import connect, details, json_option, print_json

ROLES = click.Choice(["user", "domain_admin", "monitor", "superadmin"])
SCOPES = ("read", "sessions", "files", "services", "admin")


# -- users ----------------------------------------------------------------------------------------------------------
@click.group("user", cls=Forgiving)
def user_command() -> None:
    """Those who may use this installation."""


USER_COLUMNS = {"EMAIL": "email", "USERNAME": "username", "ROLE": "role", "DOMAIN": "domain", "ACTIVE": "active"}
USER_COLUMNS |= {"PROJECTS": "projects", "ADMINISTERS": "administers"}


@user_command.command("ls")
@json_option
def user_ls(as_json: bool) -> None:
    """List users: all, or those of your domain."""
    with connect() as client:
        show_list(client.users.list(), USER_COLUMNS, as_json=as_json, empty="No users.")


@user_command.command("show")
@click.argument("user", metavar="EMAIL")
@json_option
def user_show(user: str, as_json: bool) -> None:
    """Show a user."""
    with connect() as client:
        show_one(client.users.get(user), as_json)


@user_command.command("add")
@click.argument("email")
@click.option("--username", help="[default: what stands before the @]")
@click.option("--role", default="user", show_default=True, type=ROLES, help="What it may do.")
@click.option("--domain", help="[default: yours]")
@click.option("--keypair", is_flag=True, help="Also make a keypair, and show it.")
@json_option
def user_add(email: str, username: str | None, role: str, domain: str | None, keypair: bool, as_json: bool) -> None:
    """Add a user. A password is set with 'moorage admin user password'."""
    with connect() as client:
        made = client.users.create(email, username=username, role=role, domain=domain)
        keys = client.keypairs.create(made.email) if keypair else None
    if as_json:
        print_json({**made.to_json(), **({"keypair": keys.to_json()} if keys else {})})
        return
    click.echo(made.email)
    if keys is not None:
        details({"access key": keys.access_key, "secret key": keys.secret_key})
        terminal.note("The secret key is shown only now.")


@user_command.command("edit")
@click.argument("user", metavar="EMAIL")
@click.option("--username", help="Another name.")
@click.option("--role", type=ROLES, help="What it may do from now on.")
@click.option("--active/--inactive", default=None, help="An inactive user is locked out within a second.")
@click.option("--uid", type=int, help="Of the user's containers and volumes, for homes on NFS.")
@click.option("--gid", type=int, help="The same.")
@json_option
def user_edit(user: str, as_json: bool, **changes: Any) -> None:
    """Change a user."""
    if all(value is None for value in changes.values()):
        raise click.UsageError("Say what to change: --username, --role, --active or --inactive, --uid, --gid.")
    with connect() as client:
        show_one(client.users.edit(user, **changes), as_json)


@user_command.command("password")
@click.argument("user", metavar="EMAIL")
@click.option("--clear", is_flag=True, help="Take it away: nobody signs in as this user.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the new password, one line, from standard input.")
@json_option
def user_password(user: str, clear: bool, from_stdin: bool, as_json: bool) -> None:
    """Set a password: your own, or as an administrator another's. Who has signed in as this user signs in again."""
    with connect() as client:
        me = client.whoami().user
        own = me is not None and user in (me.email, me.id)
        current = None
        if own and not from_stdin:
            current = click.prompt("Present password (empty: there is none)", default="", hide_input=True) or None
        password = None if clear else new_password(from_stdin)
        client.users.set_password(user, password, current_password=current)
    if as_json:
        print_json({"user": user, "set": not clear})
    else:
        click.echo("The password is taken away." if clear else "The password is set.")


def new_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(click.prompt("New password", hide_input=True, confirmation_prompt="Once more"))


@user_command.command("rm")
@click.argument("user", metavar="EMAIL")
@json_option
def user_rm(user: str, as_json: bool) -> None:
    """Remove a user, whose keypairs cease to work."""
    with connect() as client:
        client.users.remove(user)
    removed(user, as_json)


# -- keypairs -------------------------------------------------------------------------------------------------------
@click.group("keypair", cls=Forgiving)
def keypair_command() -> None:
    """Credentials of users."""


@keypair_command.command("ls")
@click.option("--user", metavar="EMAIL", help="Only of this user.")
@json_option
def keypair_ls(user: str | None, as_json: bool) -> None:
    """List keypairs."""
    columns = {"ACCESS KEY": "access_key", "USER": "user", "ACTIVE": "active", "CREATED": "created_at"}
    columns |= {"ROTATED": "rotated_at", "OLD SECRET UNTIL": "previous_until", "REQUESTS/S": "requests_per_second"}
    columns |= {"SIGNS SINCE": "signing_since"}
    with connect() as client:
        show_list(client.keypairs.list(user=user), columns, as_json=as_json, empty="No keypairs.")


@keypair_command.command("show")
@click.argument("access_key")
@json_option
def keypair_show(access_key: str, as_json: bool) -> None:
    """Show a keypair."""
    with connect() as client:
        found = next((one for one in client.keypairs.list() if one.access_key == access_key), None)
    if found is None:
        raise click.ClickException(f"There is no keypair {access_key} that you may see.")
    show_one(found, as_json)


@keypair_command.command("add")
@click.argument("user", metavar="[EMAIL]", required=False)
@json_option
def keypair_add(user: str | None, as_json: bool) -> None:
    """Make a keypair, for yourself or as an administrator for a user. Its secret key is shown once."""
    with connect() as client:
        _show_secret(client.keypairs.create(user), as_json)


def _show_secret(made: Any, as_json: bool) -> None:
    if as_json:
        print_json(made.to_json())
        return
    details({"access key": made.access_key, "secret key": made.secret_key})
    terminal.note("The secret key is shown only now.")
    if made.previous_until is not None:
        terminal.note(f"The old one is good until {terminal.local_time(made.previous_until)}.")


@keypair_command.command("rotate")
@click.argument("access_key")
@click.option(
    "--grace", type=float, default=0.0, metavar="SECONDS", help="How long the old secret stays good. [default: 0]"
)
@json_option
def keypair_rotate(access_key: str, grace: float, as_json: bool) -> None:
    """Give a keypair a new secret key, which is shown once."""
    with connect() as client:
        _show_secret(client.keypairs.rotate(access_key, grace_seconds=grace), as_json)


@keypair_command.command("signing")
@click.argument("access_key")
@click.argument("on", metavar="on|off", type=click.Choice(["on", "off"]))
@json_option
def keypair_signing(access_key: str, on: str, as_json: bool) -> None:
    """Let a keypair sign requests, as clients of Backend.AI do, with a secret of its own, shown once; or no longer."""
    with connect() as client:
        made = client.keypairs.set_signing(access_key, on == "on")
    if as_json:
        print_json(made.to_json())
    elif made.signing_secret is None:
        terminal.note(f"{access_key} signs no requests any more.")
    else:
        details({"access key": made.access_key, "signing secret": made.signing_secret})
        terminal.note("It is shown only now. Clients of Backend.AI take it as BACKEND_SECRET_KEY.")


@keypair_command.command("edit")
@click.argument("access_key")
@click.option("--active/--inactive", default=None, help="Whether it works.")
@click.option(
    "--requests", type=float, metavar="PER_SECOND", help="How often it may ask, at each manager; 0: as it likes."
)
@json_option
def keypair_edit(access_key: str, active: bool | None, requests: float | None, as_json: bool) -> None:
    """Switch a keypair on or off, or limit how often it may ask."""
    if active is None and requests is None:
        raise click.UsageError("Say what to change: --active or --inactive, --requests.")
    with connect() as client:
        show_one(client.keypairs.edit(access_key, active=active, requests_per_second=requests), as_json)


@keypair_command.command("rm")
@click.argument("access_key")
@json_option
def keypair_rm(access_key: str, as_json: bool) -> None:
    """Remove a keypair, with its tokens."""
    with connect() as client:
        client.keypairs.remove(access_key)
    removed(access_key, as_json)


# -- tokens ---------------------------------------------------------------------------------------------------------
@click.group("token", cls=Forgiving)
def token_command() -> None:
    """Tokens that stand for keypairs, as far as their scopes reach, until they expire."""


@token_command.command("ls")
@click.option("--user", metavar="EMAIL", help="For administrators: of this user.")
@click.option("--all", "everybody", is_flag=True, help="For administrators: of everybody you see.")
@json_option
def token_ls(user: str | None, everybody: bool, as_json: bool) -> None:
    """List tokens, your own by default."""
    columns = {"ID": "id", "NAME": "name", "USER": "user", "ACCESS KEY": "access_key", "KIND": "kind"}
    columns |= {"SCOPES": "scopes", "EXPIRES": "expires_at"}
    with connect() as client:
        found = client.tokens.list(user=user, everybody=everybody)
        show_list(found, columns, as_json=as_json, empty="No tokens.")


@token_command.command("show")
@click.argument("token_id", metavar="ID")
@json_option
def token_show(token_id: str, as_json: bool) -> None:
    """Show a token, as far as anybody may see it again: its name, scopes and end."""
    with connect() as client:
        role = client.whoami().role
        found = next((t for t in client.tokens.list(everybody=role != "user") if t.id == token_id), None)
    if found is None:
        raise click.ClickException(f"There is no token {token_id} that you may see.")
    show_one(found, as_json)


@token_command.command("add")
@click.argument("name", default="token")
@click.option("--ttl", type=float, metavar="SECONDS", help="How long it is good for. [default: 30 days]")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it may change (repeatable). [default: all]",
)
@click.option("--keypair", metavar="ACCESS_KEY", help="That it stands for. [default: yours]")
@json_option
def token_add(name: str, ttl: float | None, scopes: tuple[str, ...], keypair: str | None, as_json: bool) -> None:
    """Make a token. It is shown once.

    Every token may look; --scope sessions, files, services or admin lets it change something.
    """
    with connect() as client:
        made = client.tokens.create(name, ttl_seconds=ttl, scopes=scopes or None, keypair=keypair)
    if as_json:
        print_json(made.to_json())
        return
    details(
        {
            "id": made.id,
            "token": made.token,
            "scopes": ", ".join(made.scopes),
            "expires": terminal.local_time(made.expires_at),
        }
    )
    terminal.note("The token is shown only now; MOORAGE_TOKEN uses it.")


@token_command.command("rm")
@click.argument("token_id", metavar="ID")
@json_option
def token_rm(token_id: str, as_json: bool) -> None:
    """Revoke a token: it is refused within a second, and what it opened is closed."""
    with connect() as client:
        client.tokens.remove(token_id)
    removed(token_id, as_json)


# -- projects -------------------------------------------------------------------------------------------------------
@click.group("project", cls=Forgiving)
def project_command() -> None:
    """Users who work together, with limits and administrators of their own."""


@project_command.command("ls")
@json_option
def project_ls(as_json: bool) -> None:
    """List projects."""
    columns = {"NAME": "name", "DOMAIN": "domain", "MEMBERS": "members", "ADMINS": "admins"}
    with connect() as client:
        show_list(client.projects.list(), columns, as_json=as_json, empty="No projects.")


@project_command.command("show")
@click.argument("name")
@click.option("--domain", help="[default: yours]")
@json_option
def project_show(name: str, domain: str | None, as_json: bool) -> None:
    """Show a project."""
    with connect() as client:
        show_one(client.projects.get(name, domain=domain), as_json)


@project_command.command("add")
@click.argument("name")
@click.option("--domain", help="[default: yours]")
@click.option("--member", "members", multiple=True, metavar="EMAIL", help="A member (repeatable).")
@click.option("--admin", "admins", multiple=True, metavar="EMAIL", help="A member who administers it (repeatable).")
@json_option
def project_add(
    name: str, domain: str | None, members: tuple[str, ...], admins: tuple[str, ...], as_json: bool
) -> None:
    """Add a project."""
    with connect() as client:
        show_one(client.projects.create(name, domain=domain, members=members, admins=admins), as_json)


@project_command.command("edit")
@click.argument("name")
@click.option("--domain", help="[default: yours]")
@click.option("--add-member", "add_members", multiple=True, metavar="EMAIL", help="Who joins (repeatable).")
@click.option("--remove-member", "remove_members", multiple=True, metavar="EMAIL", help="Who leaves (repeatable).")
@click.option("--add-admin", "add_admins", multiple=True, metavar="EMAIL", help="Who administers it (repeatable).")
@click.option("--remove-admin", "remove_admins", multiple=True, metavar="EMAIL", help="Who stays a member.")
@json_option
def project_edit(name: str, domain: str | None, as_json: bool, **changes: tuple[str, ...]) -> None:
    """Let members in and out, and say who of them administers it."""
    if not any(changes.values()):
        raise click.UsageError("Say whom to --add-member, --remove-member, --add-admin or --remove-admin.")
    with connect() as client:
        show_one(client.projects.edit(name, domain=domain, **changes), as_json)


@project_command.command("rm")
@click.argument("name")
@click.option("--domain", help="[default: yours]")
@json_option
def project_rm(name: str, domain: str | None, as_json: bool) -> None:
    """Remove a project that holds nothing any more."""
    with connect() as client:
        client.projects.remove(name, domain=domain)
    removed(name, as_json)


# -- domains --------------------------------------------------------------------------------------------------------
@click.group("domain", cls=Forgiving)
def domain_command() -> None:
    """What users, projects and their administrators belong to."""


@domain_command.command("ls")
@json_option
def domain_ls(as_json: bool) -> None:
    """List domains."""
    columns = {"NAME": "name", "ACTIVE": "active", "USERS": "users", "PROJECTS": "projects", "CREATED": "created_at"}
    with connect() as client:
        show_list(client.domains.list(), columns, as_json=as_json, empty="No domains.")


@domain_command.command("show")
@click.argument("name")
@json_option
def domain_show(name: str, as_json: bool) -> None:
    """Show a domain."""
    with connect() as client:
        show_one(client.domains.get(name), as_json)


@domain_command.command("create")
@click.argument("name")
@json_option
def domain_create(name: str, as_json: bool) -> None:
    """Add a domain, with a project 'default'."""
    with connect() as client:
        show_one(client.domains.create(name), as_json)


@domain_command.command("modify")
@click.argument("name")
@click.option("--active/--inactive", default=None, required=True, help="Whether its users may come in.")
@json_option
def domain_modify(name: str, active: bool, as_json: bool) -> None:
    """Close a domain, which locks out everybody of it within a second, or open it again."""
    with connect() as client:
        show_one(client.domains.modify(name, active=active), as_json)


@domain_command.command("rm")
@click.argument("name")
@json_option
def domain_rm(name: str, as_json: bool) -> None:
    """Remove a domain of which nobody and nothing is left."""
    with connect() as client:
        client.domains.remove(name)
    removed(name, as_json)
