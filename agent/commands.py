"""The commands of a host: `moorage agent`, `moorage agent join TOKEN`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from agent.config import AgentConfig, ConfigError, default_agent_dir, default_agent_id

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept.  [default: $MOORAGE_AGENT_DIR, or ~/.local/share/moorage-agent]",
)
_cpu = click.option("--cpu", type=click.FloatRange(min=0, min_open=True), help="CPUs to offer.  [default: all]")
_mem = click.option("--mem", help="Memory to offer, such as 16g.  [default: all]")
_docker_host = click.option("--docker-host", help="Where the engine answers.  [default: $DOCKER_HOST]")


@click.group(invoke_without_command=True)
@_data_dir
@_cpu
@_mem
@_docker_host
@click.option("--log-level")
@click.pass_context
def agent(ctx: click.Context, /, data_dir: Path | None, **given: Any) -> None:
    """Run the agent of this host, which must have joined before."""
    ctx.obj = data_dir
    if ctx.invoked_subcommand is not None:
        return
    from agent import daemon

    try:
        daemon.run(AgentConfig.load((data_dir or default_agent_dir()).absolute(), **given))
    except (ConfigError, daemon.CannotRun) as error:
        raise click.ClickException(str(error)) from None


@agent.command()
@click.argument("token")
@_data_dir
@click.option("--name", help="What this host is called.  [default: its host name]")
@click.option("--manager", "managers", multiple=True, help="An address to dial beside the token's own.")
@_cpu
@_mem
@_docker_host
@click.option("--reserve", multiple=True, metavar="NAME=AMOUNT", help="What stays with the host: cpu=1, mem=2g.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE")
@click.pass_context
def join(
    ctx: click.Context,
    /,
    token: str,
    data_dir: Path | None,
    name: str | None,
    managers: tuple[str, ...],
    reserve: tuple[str, ...],
    labels: tuple[str, ...],
    **given: Any,
) -> None:
    """Let this host take sessions for the manager that made TOKEN; '-' reads it from standard input.

    A token is good for one host and one time: 'moorage admin agent token' makes one.
    """
    from agent.joining import JoinRefused, join_installation

    folder = (data_dir or ctx.obj or default_agent_dir()).absolute()
    settings = {key: value for key, value in given.items() if value is not None}
    settings |= {"agent_id": name or default_agent_id(), "managers": list(managers)}
    settings |= {"reserve": _pairs(reserve), "labels": _pairs(labels)}
    try:
        config = AgentConfig.checked(folder, settings)
        joined = join_installation(config, sys.stdin.read() if token == "-" else token)  # noqa: S105
    except (ConfigError, JoinRefused) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"This host has joined as {joined.agent_id}. Start it with:  moorage agent --data-dir {folder}")


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in given)
    if wrong := next((name for name, value in pairs.items() if not name or not value), None):
        raise click.BadParameter(f"'{wrong}' is not of the form NAME=VALUE")
    return pairs
