"""Commands for resource groups: `moorage resource-group`, `moorage share`, and `moorage admin resource-group`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.terminal import F, Group, NumberParameter, connect, details, json_option, print_json, table

if TYPE_CHECKING:
    from moorage._models import ResourceGroup, Share, ShareReport

_UNITS: Mapping[str, float] = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(NumberParameter):
    """90, 90s, 15m, 12h, 7d, 2w"""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        number, unit = (value[:-1], value[-1:]) if value[-1:] in _UNITS else (value, "s")
        try:
            return float(number) * _UNITS[unit]
        except ValueError:
            self.fail(f"'{value}' is no span of time; write 90s, 15m, 12h, 7d or 2w.", param, ctx)


def policy_options(function: F) -> F:
    options: list[Callable[[F], F]] = [
        click.option("--description", metavar="TEXT", help="For people."),
        click.option(
            "--ordering", type=click.Choice(["fair_share", "fifo"]), help="Whose turn it is, within a priority."
        ),
        click.option("--fit", type=click.Choice(["pack", "spread"]), help="Onto few hosts, or over many."),
        click.option("--backfill/--no-backfill", default=None, help="Small ones may pass one that waits for room."),
        click.option("--gpu-sharing/--no-gpu-sharing", default=None, help="Devices may be shared by their memory."),
        click.option(
            "--half-life", "half_life_seconds", type=Duration(), help="After which what was held counts half: 7d."
        ),
        click.option("--open/--closed", "open_", default=None, help="To everybody, or to those who are allowed."),
        click.option("--active/--inactive", default=None, help="Whether it takes sessions."),
        click.option(
            "--profile",
            type=click.Choice(["hardened", "standard"]),
            help="Of new containers: nobody becomes root inside, or sudo and apt work.",
        ),
        click.option(
            "--egress", type=click.Choice(["none", "open"]), help="Of new containers: no network, or networks outside."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def scope_options(function: F) -> F:
    options: list[Callable[[F], F]] = [
        click.option("--user", "users", multiple=True, metavar="EMAIL", help="A user (repeatable)."),
        click.option("--project", "projects", multiple=True, metavar="NAME", help="A project (repeatable)."),
        click.option("--domain", "domains", multiple=True, metavar="NAME", help="A domain (repeatable)."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


# -- for everybody -------------------------------------------------------------------------------------------------------
@click.group("resource-group", cls=Group)
def resource_group_command() -> None:
    """Resource groups: hosts that are shared by one policy. 'create --resource-group NAME' chooses one."""


@click.command("ls")
@json_option
def group_ls(as_json: bool) -> None:
    """List the resource groups that you may use."""
    with connect() as client:
        found = client.resource_groups.list()
    if as_json:
        print_json([group.to_json() for group in found])
        return
    rows = [[g.name, _hosts(g), g.sessions, g.pending, _ordering(g), g.fit, _who(g), g.description] for g in found]
    table(
        ["NAME", "HOSTS", "SESSIONS", "WAITING", "ORDER", "FIT", "WHO", "DESCRIPTION"],
        rows,
        empty="There is no resource group that you may use; ask an administrator.",
    )


@click.command("show")
@click.argument("name")
@json_option
def group_show(name: str, as_json: bool) -> None:
    """Show a resource group's policy."""
    with connect() as client:
        _show(client.resource_groups.get(name), as_json)


@click.command("share")
@click.argument("group", required=False)
@json_option
def share_command(group: str | None, as_json: bool) -> None:
    """Show how much of the resource groups you have, and whose turn that makes it."""
    with connect() as client:
        report = client.resource_groups.shares(group)
    if as_json:
        print_json(report.to_json())
    else:
        _show_shares(report)


resource_group_command.add_command(group_ls)
resource_group_command.add_command(group_show)


# -- for administrators --------------------------------------------------------------------------------------------------
@click.group("resource-group", cls=Group)
def admin_resource_group() -> None:
    """Hosts that are shared by one policy: who may use them, who comes first, and where sessions go."""


@admin_resource_group.command("create")
@click.argument("name")
@policy_options
@json_option
def group_create(name: str, open_: bool | None, as_json: bool, **policy: Any) -> None:
    """Add a resource group. 'assign' gives it hosts, 'allow' or --open lets people use it."""
    with connect() as client:
        _show(client.resource_groups.create(name, open=open_, **policy), as_json)


@admin_resource_group.command("modify")
@click.argument("name")
@policy_options
@json_option
def group_modify(name: str, open_: bool | None, as_json: bool, **policy: Any) -> None:
    """Change a resource group's policy; what is not given stays."""
    with connect() as client:
        _show(client.resource_groups.modify(name, open=open_, **policy), as_json)


@admin_resource_group.command("rm")
@click.argument("name")
@json_option
def group_rm(name: str, as_json: bool) -> None:
    """Remove a resource group that has no hosts and no live sessions."""
    with connect() as client:
        client.resource_groups.remove(name)
    print_json({"removed": name}) if as_json else click.echo(name)


@admin_resource_group.command("allow")
@click.argument("name")
@scope_options
@json_option
def group_allow(name: str, as_json: bool, **who: Iterable[str]) -> None:
    """Let users, projects or domains use a resource group."""
    with connect() as client:
        _show(client.resource_groups.allow(name, **who), as_json)


@admin_resource_group.command("deny")
@click.argument("name")
@scope_options
@json_option
def group_deny(name: str, as_json: bool, **who: Iterable[str]) -> None:
    """Let them no longer use it; their live sessions stay."""
    with connect() as client:
        _show(client.resource_groups.deny(name, **who), as_json)


@admin_resource_group.command("share")
@click.argument("name")
@click.argument("user")
@click.argument("weight", type=float, required=False)
@click.option("--usual", is_flag=True, help="1 again, as everybody.")
@json_option
def group_share(name: str, user: str, weight: float | None, usual: bool, as_json: bool) -> None:
    """Say how much a user is entitled to: with a WEIGHT of 2 to twice as much as others."""
    if (weight is None) is not usual:
        raise click.UsageError("Give a WEIGHT, or --usual.")
    with connect() as client:
        _show(client.resource_groups.set_weight(name, user, weight), as_json)


@admin_resource_group.command("assign")
@click.argument("name")
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...")
@json_option
def group_assign(name: str, agents: tuple[str, ...], as_json: bool) -> None:
    """Give hosts to a resource group; nothing may run there meanwhile."""
    with connect() as client:
        for agent in agents:
            client.agents.modify(agent, resource_group=name)
        _show(client.resource_groups.get(name), as_json)


@admin_resource_group.command("usage")
@click.argument("name", required=False)
@json_option
def group_usage(name: str | None, as_json: bool) -> None:
    """Show everybody's share of a resource group, in the order in which it is their turn."""
    with connect() as client:
        report = client.resource_groups.shares(name)
    if as_json:
        print_json(report.to_json())
    else:
        _show_shares(report)


admin_resource_group.add_command(group_ls)
admin_resource_group.add_command(group_show)


# -- how they look -------------------------------------------------------------------------------------------------------
def _show(group: ResourceGroup, as_json: bool) -> None:
    if as_json:
        print_json(group.to_json())
        return
    details(
        {
            "name": group.name,
            "description": group.description or None,
            "hosts": _hosts(group),
            "sessions": f"{group.sessions} with a host, {group.pending} waiting",
            "order": _ordering(group),
            "fit": group.fit,
            "backfill": "yes" if group.backfill else "no",
            "GPU sharing": "yes" if group.gpu_sharing else "no",
            "profile": group.profile,
            "egress": group.egress,
            "who": _who(group),
            "weights": ", ".join(f"{one.user} {one.weight:g}" for one in group.weights) or None,
        }
    )


def _hosts(group: ResourceGroup) -> str:
    if not group.agents:
        return "none"
    return f"{group.agents}" if group.agents == group.agents_ready else f"{group.agents_ready} of {group.agents} ready"


def _ordering(group: ResourceGroup) -> str:
    return "fifo" if group.ordering == "fifo" else f"fair share, half-life {terminal.span(group.half_life_seconds)}"


def _who(group: ResourceGroup) -> str:
    if not group.active:
        return "nobody: inactive"
    if group.open:
        return "everybody"
    return ", ".join(f"{one.scope} {one.of}" for one in group.access) or "who is allowed"


def _show_shares(report: ShareReport) -> None:
    for group in report.groups or []:
        mine = [share for share in report.items if share.resource_group == group.resource_group]
        click.echo(f"{group.resource_group}: of {_amounts(group.capacity) or 'no hosts at the moment'}")
        rows = [_share_row(share) for share in mine]
        table(["PLACE", "USER", "SHARE", "WEIGHT", "HOLDS", "HELD BEFORE (MEAN)"], rows, empty="Nobody held anything.")
        click.echo(group.explanation)
        if group is not (report.groups or [])[-1]:
            click.echo()


def _share_row(share: Share) -> list[object]:
    return [
        f"{share.place} of {share.users}",
        share.user,
        f"{100 * share.share:.3g} %",
        f"{share.weight:g}",
        _amounts(share.held) or "nothing",
        _amounts(share.past) or "nothing",
    ]


def _amounts(amounts: Mapping[str, float]) -> str:
    kinds = (("cpu", "CPUs"), ("gpu", "GPUs"))
    said = [f"{amounts[name]:.3g} {what}" for name, what in kinds if amounts.get(name, 0) >= 0.001]
    if memory := round(amounts.get("mem", 0)):
        said.insert(1, terminal.memory(memory))
    return ", ".join(said)
