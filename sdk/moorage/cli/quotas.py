"""Commands for limits: `moorage quota`, and `moorage admin policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from moorage.cli.listing import Forgiving
from moorage.cli.terminal import F, Group, PairParameter, connect, details, json_option, print_json, span, table

if TYPE_CHECKING:
    from moorage._models import Policy, Quota

SCOPES = click.Choice(["user", "project", "domain", "keypair"])
_BAR = 10


class Limits(PairParameter):
    """NAME=AMOUNT, NAME=AMOUNT:wait, NAME=none"""

    name = "LIMIT=AMOUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, found, text = str(value).partition("=")
        amount, _, beyond = text.partition(":")
        if not name or not found or not amount or beyond not in ("", "wait", "refuse"):
            self.fail(f"'{value}' is not of the form LIMIT=AMOUNT, LIMIT=AMOUNT:wait or LIMIT=none.", param, ctx)
        if amount == "none":
            return name, None
        return name, {"max": _amount(amount), "waits": beyond == "wait"}


def limits_argument(required: bool) -> Callable[[F], F]:
    return click.argument("limits", nargs=-1, required=required, type=Limits(), metavar="LIMIT=AMOUNT...")


def _amount(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


# -- what binds oneself --------------------------------------------------------------------------------------------------
@click.group("quota", cls=Group, invoke_without_command=True)
@click.option("--of", metavar="SCOPE:NAME", help="For administrators: what binds user:EMAIL, project:NAME, ...")
@click.option("--all", "everybody", is_flag=True, help="For administrators: every limit there is.")
@json_option
@click.pass_context
def quota_command(ctx: click.Context, of: str | None, everybody: bool, as_json: bool) -> None:
    """Show the limits that bind you, and how much of them is in use; administrators see and set all."""
    if ctx.invoked_subcommand is None:
        with connect() as client:
            show_quotas(client.quotas.list(of=of, everybody=everybody), as_json)


@quota_command.command("set")
@click.argument("scope", type=SCOPES)
@click.argument("of", metavar="NAME")
@limits_argument(required=True)
@json_option
def quota_set(scope: str, of: str, limits: tuple[tuple[str, Any], ...], as_json: bool) -> None:
    """Limit what a user, project, domain or keypair holds at once; 'none' lifts a limit.

    Beyond a limit, requests are refused; with ':wait' sessions wait in the queue. What is set here goes before what
    a policy says.

    \b
    moorage quota set user alice@example.org cpu=8 mem=32g:wait sessions=4
    moorage quota set project vision gpu=4:wait session.gpu=2 lifetime=12h
    """
    with connect() as client:
        show_quotas(client.quotas.set(scope, of, dict(limits)), as_json)


def show_quotas(found: list[Quota], as_json: bool) -> None:
    if as_json:
        print_json([quota.to_json() for quota in found])
        return
    headers = ["LIMIT", "OF", "MOST", "", "RUNNING", "QUEUED", "FREE", "BEYOND IT", "SET BY"]
    table(headers, [_row(quota) for quota in found], empty="No limits bind you.")


def _row(quota: Quota) -> list[object]:
    each = quota.free is None
    used, queued, free = (
        "" if each or amount is None else _words(quota.name, amount)
        for amount in (quota.used, quota.queued, quota.free)
    )
    return [
        quota.name,
        f"{quota.scope} {quota.of}",
        _words(quota.name, quota.max),
        "each session" if each else _bar(quota),
        used,
        queued if quota.queued else "",
        free,
        "waits" if quota.waits else "ended" if quota.name == "idle" else "refused",
        f"policy {quota.policy}" if quota.policy else "own setting",
    ]


def _bar(quota: Quota) -> str:
    """What runs, and what is queued: ███▒░░░░░░"""
    most = max(quota.max, quota.used + quota.queued, 1)
    running = round(_BAR * quota.used / most) or int(quota.used > 0)
    queued = min(_BAR - running, round(_BAR * quota.queued / most) or int(quota.queued > 0))
    return "█" * running + "▒" * queued + "░" * (_BAR - running - queued)


def _words(name: str, amount: int) -> str:
    """2 CPUs, 1.5 GiB, 12h; a bare number for what has no unit."""
    kind = name.removeprefix("session.")
    if not amount:
        return "0"
    if kind in ("mem", "gpu-mem"):
        return f"{amount / 1024:.4g} GiB" if amount >= 1024 else f"{amount} MiB"
    if kind in ("lifetime", "idle"):
        return span(amount)
    if kind in ("cpu", "gpu"):
        number = f"{amount / 1000:g}" if kind == "cpu" else str(amount)
        return f"{number} {kind.upper()}{'' if number == '1' else 's'}"
    return str(amount)


# -- policies ------------------------------------------------------------------------------------------------------------
@click.group("policy", cls=Forgiving)
def policy_command() -> None:
    """Named sets of limits, for many users, projects, domains or keypairs at once.

    \b
    Limits in total:     cpu, mem, gpu, gpu-mem, sessions, pending_sessions
    Of each session:     session.cpu, session.mem, session.gpu, session.gpu-mem, lifetime, idle, priority
    Of what users keep:  volumes, images

    Beyond a limit, requests are refused; 'cpu=8:wait' lets sessions wait in the queue instead.
    """


@policy_command.command("ls")
@json_option
def policy_ls(as_json: bool) -> None:
    """List policies."""
    with connect() as client:
        found = client.policies.list()
    if as_json:
        print_json([policy.to_json() for policy in found])
        return
    rows = [[one.name, _limits_text(one), len(one.assigned), one.description] for one in found]
    table(["NAME", "LIMITS", "ASSIGNED", "DESCRIPTION"], rows, empty="No policies.")


@policy_command.command("show")
@click.argument("name")
@json_option
def policy_show(name: str, as_json: bool) -> None:
    """Show one policy, and who has it."""
    with connect() as client:
        show_policy(client.policies.get(name), as_json)


@policy_command.command("create")
@click.argument("name")
@limits_argument(required=True)
@click.option("--description", default="", metavar="TEXT", help="For people.")
@click.option("--domain", help="Whose administrators keep it.")
@json_option
def policy_create(
    name: str, limits: tuple[tuple[str, Any], ...], description: str, domain: str | None, as_json: bool
) -> None:
    """Make a policy.

    \b
    moorage admin policy create students cpu=8 mem=32g:wait sessions=4 session.gpu=1 lifetime=12h
    """
    with connect() as client:
        show_policy(client.policies.create(name, dict(limits), description=description, domain=domain), as_json)


@policy_command.command("modify")
@click.argument("name")
@limits_argument(required=False)
@click.option("--description", metavar="TEXT", help="For people.")
@json_option
def policy_modify(name: str, limits: tuple[tuple[str, Any], ...], description: str | None, as_json: bool) -> None:
    """Change limits for everybody who has the policy, at once; LIMIT=none takes one out."""
    with connect() as client:
        show_policy(client.policies.modify(name, dict(limits), description=description), as_json)


@policy_command.command("rm")
@click.argument("name")
@json_option
def policy_rm(name: str, as_json: bool) -> None:
    """Remove a policy that nobody has any more."""
    with connect() as client:
        client.policies.remove(name)
    print_json({"removed": name}) if as_json else click.echo(name)


@policy_command.command("assign")
@click.argument("name")
@click.argument("scope", type=SCOPES)
@click.argument("of", metavar="WHOM")
@json_option
def policy_assign(name: str, scope: str, of: str, as_json: bool) -> None:
    """Let a policy bind a user, project, domain or keypair, instead of the one that did before."""
    with connect() as client:
        show_policy(client.policies.assign(name, scope, of), as_json)


@policy_command.command("unassign")
@click.argument("name")
@click.argument("scope", type=SCOPES)
@click.argument("of", metavar="WHOM")
@json_option
def policy_unassign(name: str, scope: str, of: str, as_json: bool) -> None:
    """Take a policy from a user, project, domain or keypair."""
    with connect() as client:
        show_policy(client.policies.unassign(name, scope, of), as_json)


def show_policy(policy: Policy, as_json: bool) -> None:
    if as_json:
        print_json(policy.to_json())
        return
    width = max((len(one.name) for one in policy.limits), default=0)
    limits = "\n".join(
        f"{one.name.ljust(width)}  {_words(one.name, one.max)}{', beyond it sessions wait' if one.waits else ''}"
        for one in policy.limits
    )
    assigned = "\n".join(f"{one.scope} {one.of}" for one in policy.assigned)
    details(
        {
            "name": policy.name,
            "description": policy.description,
            "limits": limits or "none",
            "assigned to": assigned or "nobody",
        }
    )


def _limits_text(policy: Policy) -> str:
    parts: Iterable[str] = (
        f"{one.name} {_words(one.name, one.max)}{' (waits)' if one.waits else ''}" for one in policy.limits
    )
    return ", ".join(parts)
