"""Commands for hosts that change: `moorage admin agent modify|cordon|drain|uncordon`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from moorage.cli import terminal
from moorage.cli.groups import Duration
from moorage.cli.options import Label
from moorage.cli.terminal import connect, details, json_option, print_json

if TYPE_CHECKING:
    from moorage._models import Agent
    from moorage.sync import Client

_reason_option = click.option("--reason", metavar="TEXT", help="That people are told.")


@click.command("modify")
@click.argument("agent")
@click.option("--resource-group", metavar="NAME", help="Give it to this group; nothing may run there meanwhile.")
@click.option(
    "--label", "labels", type=Label(), multiple=True, help="NAME=VALUE; NAME alone takes it away (repeatable)."
)
@json_option
def agent_modify(
    agent: str, resource_group: str | None, labels: tuple[tuple[str, str | None], ...], as_json: bool
) -> None:
    """Change a host's resource group, or labels that sessions may ask for with --host-label."""
    with connect() as client:
        show_agent(client.agents.modify(agent, resource_group=resource_group, labels=dict(labels) or None), as_json)


@click.command("cordon")
@click.argument("agent")
@_reason_option
@json_option
def agent_cordon(agent: str, reason: str | None, as_json: bool) -> None:
    """Place no new sessions on a host; those that run go on."""
    with connect() as client:
        show_agent(client.agents.cordon(agent, reason=reason), as_json)


@click.command("uncordon")
@click.argument("agent")
@json_option
def agent_uncordon(agent: str, as_json: bool) -> None:
    """Place sessions on a host again, at once; a drain is called off."""
    with connect() as client:
        show_agent(client.agents.uncordon(agent), as_json)


@click.command("drain")
@click.argument("agent")
@click.option("--move-batch", is_flag=True, help="Batch sessions begin again elsewhere; it costs them no retry.")
@click.option("--force", "force_after", type=Duration(), metavar="DURATION", help="End the rest after so long: 1h.")
@click.option("--wait", is_flag=True, help="Until nothing is there any more.")
@_reason_option
@json_option
def agent_drain(
    agent: str, move_batch: bool, force_after: float | None, wait: bool, reason: str | None, as_json: bool
) -> None:
    """Empty a host: nothing new comes, and who is there is told to save and go."""
    with connect() as client:
        found = client.agents.drain(agent, move_batch=move_batch, force_after=force_after, reason=reason)
        if wait:
            found = _wait_until_empty(client, found, as_json)
        show_agent(found, as_json)


@click.command("revoke")
@click.argument("agent")
@click.option("--reason", metavar="TEXT", help="For the record.")
@click.option("-y", "--yes", is_flag=True, help="Without asking.")
@json_option
def agent_revoke(agent: str, reason: str | None, yes: bool, as_json: bool) -> None:
    """Believe a host no more: its certificates count no longer, and its connections end at once.

    What runs there goes on unseen, and is shown as lost. Only a token that is made afterwards brings the host back:
    'moorage admin agent token', then 'moorage agent join TOKEN' there.
    """
    if not (yes or as_json):
        click.confirm(f"Cut {agent} off from all managers?", abort=True)
    with connect() as client:
        show_agent(client.agents.revoke(agent, reason=reason), as_json)


def _wait_until_empty(client: Client, found: Agent, as_json: bool) -> Agent:
    with terminal.waiting(_left(found), shown=not as_json) as say:
        while found.kernels and found.draining:
            time.sleep(1)
            found = client.agents.get(found.id)
            say(_left(found))
    if not found.draining:
        terminal.note(f"moorage: the drain of {found.id} was called off")
    return found


def _left(agent: Agent) -> str:
    return f"{agent.id}: {agent.kernels} {'container is' if agent.kernels == 1 else 'containers are'} left"


def show_agent(agent: Agent, as_json: bool) -> None:
    if as_json:
        print_json(agent.to_json())
        return
    details(
        {
            "id": agent.id,
            "host": agent.hostname,
            "state": state_of(agent),
            "resource group": agent.resource_group,
            "labels": ", ".join(f"{name}={value}" for name, value in agent.labels.items()) or None,
            "containers": agent.kernels,
            "capacity": terminal.slots_text(agent.capacity),
            "used": terminal.slots_text(agent.used),
            "GPU driver": _driver(agent),
            "warnings": "\n".join(agent.info.get("warnings") or []),
            "quarantined": "\n".join(_quarantined(agent)) or None,
            "last seen": terminal.local_time(agent.last_seen_at),
        }
    )


def _quarantined(agent: Agent) -> list[str]:
    """Containers that carry its name and of which nothing is known: left alone, for they may be somebody's work."""
    names = [str(name) for name in agent.info.get("quarantined") or []]
    return [*names, f"look into each, then on the host: docker rm -f {names[0]}"] if names else []


def _driver(agent: Agent) -> str | None:
    gpus = agent.info.get("gpus") or {}
    return f"{gpus['driver']}, CUDA up to {gpus.get('cuda')}" if gpus.get("driver") else None


def state_of(agent: Agent) -> str:
    """What a host is doing, in words: in use, cordoned since when and why, draining with what is left, lost."""
    said = []
    if agent.revoked_at:
        said.append(f"revoked {terminal.age(agent.revoked_at)} ago")
    elif agent.lost:
        said.append("lost")
    if agent.schedulable:
        return said[0] if said else "in use"
    if agent.drained_at:
        said.append(f"drained {terminal.age(agent.drained_at)} ago")
    elif agent.draining:
        until = f" until {terminal.local_time(agent.drain_until)}" if agent.drain_until else ""
        said.append(f"draining{until}, {agent.kernels} left")
    else:
        said.append(f"cordoned {terminal.age(agent.cordoned_at)} ago" if agent.cordoned_at else "cordoned")
    return "; ".join(said) + (f" ({agent.cordon_reason})" if agent.cordon_reason else "")
