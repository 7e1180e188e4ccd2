"""Commands for snapshots, images and registries."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.sessions import find
from moorage.cli.tasks import percent, watch
from moorage.cli.terminal import Group, connect, details, json_option, print_json, session_argument, table

if TYPE_CHECKING:
    from moorage._models import Image
    from moorage.sync import Task

_NO_WAIT = "Do not wait; print the task's id."


def wait_option(function: Any) -> Any:
    return click.option("--no-wait", is_flag=True, help=_NO_WAIT)(function)


@click.command("commit")
@session_argument
@click.argument("name", metavar="[AS]", required=False)
@click.option("--share", is_flag=True, help="Let the session's project see it.")
@click.option("--kernel", metavar="NAME", help="Of a cluster, this kernel. [default: main1]")
@wait_option
@json_option
def commit_command(
    session: str, name: str | None, share: bool, kernel: str | None, no_wait: bool, as_json: bool
) -> None:
    """Make a snapshot of a session: what has changed in it, and its files.

    \b
    moorage commit train trained           a snapshot called trained,
    moorage create again --image trained   and a session that begins with it
    """
    with connect() as client:
        task = find(client, session).commit(name, visibility="project" if share else None, kernel=kernel)
        _made(task, no_wait, as_json)


@click.command("imagify")
@session_argument
@click.argument("image", metavar="HOST/REPOSITORY:TAG")
@click.option("--share", metavar="PROJECT", help="Let this project see it.")
@click.option("--public", is_flag=True, help="Let everybody see it (administrators).")
@click.option("--kernel", metavar="NAME", help="Of a cluster, this kernel. [default: main1]")
@wait_option
@json_option
def imagify_command(
    session: str, image: str, share: str | None, public: bool, kernel: str | None, no_wait: bool, as_json: bool
) -> None:
    """Make an image of a session, and push it to a registry.

    Credentials for the registry are set with 'moorage registry login HOST'.
    """
    if share and public:
        raise click.UsageError("--share and --public exclude each other.")
    visibility = "public" if public else "project" if share else None
    with connect() as client:
        task = find(client, session).to_image(image, visibility=visibility, project=share, kernel=kernel)
        _made(task, no_wait, as_json)


def _made(task: Task, no_wait: bool, as_json: bool) -> None:
    if no_wait:
        print_json(task.info.to_json()) if as_json else click.echo(task.id)
        return
    watch(task, as_json=as_json, quiet=True)
    made = task.info.result
    if not as_json and isinstance(made, dict):
        still = (
            f", the session stood still for {terminal.span(made['frozen_seconds'])}"
            if made.get("frozen_seconds")
            else ""
        )
        terminal.note(f"{terminal.size(made.get('size_bytes'))}{still}")
        click.echo(made["image"])


@click.command("commit-status")
@session_argument
@json_option
def commit_status_command(session: str, as_json: bool) -> None:
    """Show how far a session's last commit is."""
    with connect() as client:
        found = find(client, session).commit_status()
    if as_json:
        print_json(found.to_json())
        return
    result, error = found.result or {}, found.error or {}
    details(
        {
            "status": found.status,
            "image": found.image,
            "progress": percent(found.progress) if found.status == "running" else None,
            "size": terminal.size(result.get("size_bytes")),
            "digest": result.get("digest"),
            "error": error.get("message"),
            "task": found.task_id,
            "begun": terminal.local_time(found.created_at),
            "ended": terminal.local_time(found.finished_at),
        }
    )


# -- images --------------------------------------------------------------------------------------------------------------
@click.group("image", cls=Group)
def image_command() -> None:
    """Images that sessions can be made of, yours and others'."""


@image_command.command("ls")
@click.option("--mine", is_flag=True, help="Only your own.")
@json_option
def image_ls(mine: bool, as_json: bool) -> None:
    """List images."""
    with connect() as client:
        me = client.whoami().user if mine else None
        found = [one for one in client.images.list() if me is None or one.owner == me.email]
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        [
            shown_name(one),
            one.kind,
            one.owner,
            one.project or one.visibility,
            terminal.size(one.size_bytes),
            state(one),
            age(one),
        ]
        for one in found
    ]
    table(["NAME", "KIND", "OWNER", "SEEN BY", "SIZE", "STATE", "AGE"], rows, empty="No images.")


def shown_name(image: Image) -> str:
    names = [image.title or image.name, *(alias for alias in image.aliases if alias != image.title)]
    return ", ".join(names)


def state(image: Image) -> str:
    return image.status if image.status != "ready" or image.agent is None else f"on {image.agent}"


def age(image: Image) -> str:
    return terminal.age(image.created_at)


@image_command.command("rm")
@click.argument("name")
@json_option
def image_rm(name: str, as_json: bool) -> None:
    """Remove an image of yours; a snapshot goes from its host as well."""
    with connect() as client:
        client.images.remove(name)
    print_json({"removed": name}) if as_json else click.echo(name)


@image_command.command("share")
@click.argument("name")
@click.option("--project", metavar="PROJECT", help="With this project.")
@click.option("--public", is_flag=True, help="With everybody (administrators).")
@click.option("--nobody", is_flag=True, help="With nobody any more.")
@json_option
def image_share(name: str, project: str | None, public: bool, nobody: bool, as_json: bool) -> None:
    """Let others see an image of yours."""
    if (project is not None) + public + nobody != 1:
        raise click.UsageError("Give one of --project, --public and --nobody.")
    with connect() as client:
        shared = client.images.share(name, "project" if project else "public" if public else "user", project=project)
    print_json(shared.to_json()) if as_json else click.echo(f"{name}: {shared.project or shared.visibility}")


# -- registries ----------------------------------------------------------------------------------------------------------
@click.group("registry", cls=Group)
def registry_command() -> None:
    """Registries that images come from and go to."""


@registry_command.command("ls")
@json_option
def registry_ls(as_json: bool) -> None:
    """List registries with credentials; passwords are shown to nobody."""
    with connect() as client:
        found = client.registries.list()
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        [one.host, one.username, "everybody" if one.common else "you", terminal.age(one.changed_at)] for one in found
    ]
    table(["HOST", "USERNAME", "FOR", "AGE"], rows, empty="No credentials; 'moorage registry login HOST' sets some.")


@registry_command.command("login")
@click.argument("host")
@click.option("-u", "--username", prompt=True, help="There. [default: asks for it]")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--common", is_flag=True, help="For everybody's images (administrators).")
@json_option
def registry_login(host: str, username: str, password_stdin: bool, common: bool, as_json: bool) -> None:
    """Keep credentials for a registry."""
    password = (
        sys.stdin.readline().rstrip("\n") if password_stdin else click.prompt("Password", hide_input=True, err=True)
    )
    with connect() as client:
        kept = client.registries.set(host, username, password, common=common)
    print_json(kept.to_json()) if as_json else click.echo(f"{kept.host}: {kept.username}")


@registry_command.command("logout")
@click.argument("host")
@click.option("--common", is_flag=True, help="Those for everybody (administrators).")
@json_option
def registry_logout(host: str, common: bool, as_json: bool) -> None:
    """Forget credentials for a registry."""
    with connect() as client:
        client.registries.remove(host, common=common)
    print_json({"removed": host}) if as_json else click.echo(host)
