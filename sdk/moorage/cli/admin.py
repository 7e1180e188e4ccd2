"""Commands of administrators."""

from __future__ import annotations

import click

from moorage.cli import terminal
from moorage.cli.audit import audit_command
from moorage.cli.batch import transit_command
from moorage.cli.gpus import admin_gpu
from moorage.cli.groups import admin_resource_group
from moorage.cli.hosts import (
    agent_cordon,
    agent_drain,
    agent_modify,
    agent_revoke,
    agent_uncordon,
    show_agent,
    state_of,
)
from moorage.cli.listing import Forgiving, removed, show_list, show_one
from moorage.cli.people import domain_command, keypair_command, project_command, token_command, user_command
from moorage.cli.quotas import policy_command, quota_command
from moorage.cli.reports import usage_command, watch_command
from moorage.cli.sessions import FINAL, Pairs, remove, show_sessions
from moorage.cli.tasks import watch
from moorage.cli.terminal import connect, json_option, print_json, table
from moorage.cli.upkeep import fsck_command
from moorage.errors import SessionNotFound


@click.group("admin", cls=Forgiving)
def admin_command() -> None:
    """Users, keypairs, projects, images, agents, and everybody's sessions."""


admin_command.add_command(admin_resource_group)
admin_command.add_command(admin_gpu)
admin_command.add_command(transit_command)
admin_command.add_command(usage_command)
admin_command.add_command(fsck_command)
admin_command.add_command(audit_command)
admin_command.add_command(watch_command)
for group in (user_command, keypair_command, token_command, project_command, domain_command):
    admin_command.add_command(group)
admin_command.add_command(quota_command)
admin_command.add_command(policy_command)


# -- images ---------------------------------------------------------------------------------------------------------
@admin_command.group("image")
def image() -> None:
    """Images that sessions may be made from."""


@image.command("ls")
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that are switched off.")
@json_option
def image_ls(all_: bool, as_json: bool) -> None:
    """List images."""
    columns = {"NAME": "name", "KIND": "kind", "OWNER": "owner", "SEEN BY": "visibility", "HOST": "agent"}
    columns |= {"ARCHITECTURE": "architecture", "ALIASES": "aliases"}
    empty = "No images; 'moorage admin image register NAME' adds one."
    with connect() as client:
        show_list(client.images.list(all=all_), columns, as_json=as_json, empty=empty)


@image.command("register")
@click.argument("name")
@click.option("--architecture", help="[default: that of the hosts]")
@click.option("--alias", "aliases", multiple=True, help="A further, shorter name (repeatable).")
@click.option("--label", "labels", type=Pairs(), multiple=True, help="About it (repeatable).")
@json_option
def image_register(
    name: str,
    architecture: str | None,
    aliases: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Let sessions be made from an image."""
    with connect() as client:
        made = client.images.register(name, architecture=architecture, aliases=aliases, labels=dict(labels) or None)
    show_one(made, as_json)


@image.command("alias")
@click.argument("name")
@click.argument("alias")
@json_option
def image_alias(name: str, alias: str, as_json: bool) -> None:
    """Give an image a further, shorter name."""
    with connect() as client:
        show_one(client.images.alias(name, alias), as_json)


@image.command("rm")
@click.argument("name")
@json_option
def image_rm(name: str, as_json: bool) -> None:
    """Let no more sessions be made from an image; the image itself stays on the hosts."""
    with connect() as client:
        client.images.remove(name)
    removed(name, as_json)


@image.command("rescan")
@click.option("--registry", metavar="HOST", help="Look in this registry instead of on the hosts.")
@click.option("--register", is_flag=True, help="Add what is new to the list.")
@json_option
def image_rescan(registry: str | None, register: bool, as_json: bool) -> None:
    """Compare the list of images with what hosts, or a registry, have."""
    with connect() as client:
        task = client.images.rescan(registry=registry, register=register)
        watch(task, as_json=as_json, quiet=True)
    if as_json:
        return
    told = task.info.result or {}
    rows = [[name, "registered" if name in told.get("registered", ()) else "new"] for name in told.get("new", ())]
    rows += [[name, "gone from its host"] for name in told.get("missing", ())]
    table(["IMAGE", "STATE"], rows, empty=f"Nothing new; images found: {told.get('found', 0)}.")


@image.command("gc")
@click.option("--older-than", type=float, default=30.0, show_default=True, metavar="DAYS", help="Since their last use.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def image_gc(older_than: float, dry_run: bool, as_json: bool) -> None:
    """Remove snapshots that nobody uses, and what hosts have of images that are not listed any more."""
    with connect() as client:
        task = client.images.collect(older_than_days=older_than, dry_run=dry_run)
        watch(task, as_json=as_json, quiet=True)
    if as_json:
        return
    told = task.info.result or {}
    rows = [
        [one["image"], one.get("owner"), one["agent"], terminal.size(one["size_bytes"]), one["why"]]
        for one in told.get("removed", ())
    ]
    table(["IMAGE", "OWNER", "HOST", "SIZE", "WHY"], rows, empty="Nothing to remove.")
    for skipped in told.get("skipped", ()):
        terminal.note(f"kept: {skipped}")
    if dry_run and rows:
        terminal.note("Nothing was removed; leave out --dry-run to do it.")


@image.command("pull")
@click.argument("name")
@click.option("--agent", help="Only to this host. [default: all]")
@click.option("--no-wait", is_flag=True, help="Do not wait; print the task's id.")
@json_option
def image_pull(name: str, agent: str | None, no_wait: bool, as_json: bool) -> None:
    """Fetch an image to the hosts."""
    with connect() as client:
        task = client.images.pull(name, agent=agent)
        if no_wait:
            print_json(task.info.to_json()) if as_json else click.echo(task.id)
        else:
            watch(task, as_json=as_json)


# -- agents ---------------------------------------------------------------------------------------------------------
@admin_command.group("agent")
def agent() -> None:
    """Hosts that run sessions."""


@agent.command("ls")
@json_option
def agent_ls(as_json: bool) -> None:
    """List hosts."""
    with connect() as client:
        found = client.agents.list()
    if as_json:
        print_json([agent.to_json() for agent in found])
        return
    rows = [
        [
            a.id,
            a.resource_group,
            state_of(a),
            *map(terminal.slots_text, (a.capacity, a.used)),
            terminal.age(a.last_seen_at),
        ]
        for a in found
    ]
    empty = "No hosts; 'moorage admin agent token' shows how to add one."
    table(["ID", "GROUP", "STATE", "CAPACITY", "USED", "LAST SEEN"], rows, empty=empty)
    for a in found:
        for trouble in (a.info.get("gpus") or {}).get("trouble") or []:
            terminal.note(f"moorage: {a.id}: {trouble}")


@agent.command("show")
@click.argument("agent")
@json_option
def agent_show(agent: str, as_json: bool) -> None:
    """Show a host."""
    with connect() as client:
        show_agent(client.agents.get(agent), as_json)


@agent.command("token")
@click.option(
    "--ttl", type=float, default=3600.0, show_default=True, metavar="SECONDS", help="How long it is good for."
)
@json_option
def agent_token(ttl: float, as_json: bool) -> None:
    """Make a one-time token, with which a new host joins."""
    with connect() as client:
        token = client.agents.create_token(ttl_seconds=ttl)
    if as_json:
        print_json({"token": token, "ttl_seconds": ttl})
        return
    click.echo(token)
    terminal.note("On the new host, once: moorage agent join TOKEN")


for command in (agent_modify, agent_cordon, agent_drain, agent_uncordon, agent_revoke):
    agent.add_command(command)


@agent.command("rm")
@click.argument("agent")
@click.option("--lost-for-good", is_flag=True, help="It will never come back: free what its containers hold.")
@json_option
def agent_rm(agent: str, lost_for_good: bool, as_json: bool) -> None:
    """Forget a host, on which nothing runs any more."""
    with connect() as client:
        client.agents.remove(agent, lost_for_good=lost_for_good)
    removed(agent, as_json)


# -- everybody's sessions -------------------------------------------------------------------------------------------
@admin_command.group("session")
def session() -> None:
    """Everybody's sessions."""


@session.command("ls")
@click.option("-a", "--all", "ended_too", is_flag=True, help="Also those that have ended.")
@click.option("--project", help="Only of this project.")
@click.option("-n", "--limit", type=click.IntRange(1), help="At most so many.")
@json_option
def session_ls(ended_too: bool, project: str | None, limit: int | None, as_json: bool) -> None:
    """List everybody's sessions."""
    with connect() as client:
        found = client.sessions.list(status="all" if ended_too else None, project=project, limit=limit, all=True)
    show_sessions([s.info for s in found], quiet=False, as_json=as_json, empty="No sessions.", owners=True)


@session.command("rm")
@click.argument("sessions", nargs=-1, required=True, metavar="SESSION...")
@click.option("-f", "--force", is_flag=True, help="Do not wait for the session's host to confirm.")
@click.option("-r", "--recursive", is_flag=True, help="Also the sessions that depend on it.")
@click.option("--owner", metavar="ACCESS_KEY", help="Whose, when several have one of this name.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is over.")
@json_option
def session_rm(
    sessions: tuple[str, ...], force: bool, recursive: bool, owner: str | None, no_wait: bool, as_json: bool
) -> None:
    """End anybody's sessions."""
    with connect() as client:
        targets: list[tuple[str, str | None]] = [(name, owner) for name in sessions]
        if owner is None:
            live = [s.info for s in client.sessions.list(all=True)]
            targets = []
            for name in sessions:
                found = [info for info in live if name in (info.name, info.id) and info.status not in FINAL]
                if not found:
                    raise SessionNotFound(f"There is no live session '{name}'; 'moorage admin session ls' lists them.")
                if len(found) > 1:
                    owners = ", ".join(str(info.access_key) for info in found)
                    raise click.UsageError(f"Several have a session '{name}'; say whose with --owner: {owners}.")
                targets.append((found[0].id, found[0].access_key))
        remove(client, targets, force, recursive, not no_wait, as_json)
