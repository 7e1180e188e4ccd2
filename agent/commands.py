"""The commands of an agent's host: `moorage agent`, `moorage agent join`."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
import uvloop

from agent.config import AgentConfig, ConfigError

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept.  [default: $MOORAGE_AGENT_DIR, or ~/.local/share/moorage/agent]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _default_data_dir() -> Path:
    if given := os.environ.get("MOORAGE_AGENT_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "moorage" / "agent"


@click.group(invoke_without_command=True)
@_data_dir
@click.option("--log-level", help="DEBUG, INFO, WARNING or ERROR.  [default: agent.toml, or INFO]")
@click.pass_context
def agent(context: click.Context, data_dir: Path | None, log_level: str | None) -> None:
    """Run the agent of this host, which has joined before; or let it join."""
    if context.invoked_subcommand is not None:
        context.obj = data_dir
        return
    gc.disable()  # of what is imported nothing is garbage, and to look for it takes a seventh of the start
    from agent.daemon import run_agent

    gc.enable()
    try:
        config = AgentConfig.load((data_dir or _default_data_dir()).absolute())
        logging.basicConfig(
            level=(log_level or config.log_level).upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        uvloop.run(run_agent(config))
    except (ConfigError, ValueError) as error:
        raise click.ClickException(str(error)) from None


@agent.command()
@_data_dir
@_json
@click.pass_obj
def doctor(data_dir_before: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Look at this host: its engine, disks, limits and files. Changes nothing. Exit code 1: something is bad."""
    from agent.doctor import examine
    from domain.doctor import show

    found = asyncio.run(examine((data_dir or data_dir_before or _default_data_dir()).absolute()))
    click.echo(json.dumps([asdict(one) for one in found]) if as_json else show(found))
    sys.exit(1 if any(one.level == "bad" for one in found) else 0)


@agent.command()
@click.argument("token")
@_data_dir
@click.option("--name", help="What this host is called.  [default: its host name]")
@click.option("--cpu", type=float, help="CPUs to offer to sessions.  [default: all]")
@click.option("--mem", help="Memory to offer, such as 16g.  [default: all]")
@click.option("--reserve", default="", help="What to keep of that for others, such as cpu=1,mem=2g.")
@click.option("--engine", default="", help="Docker's address.  [default: $DOCKER_HOST, or the local socket]")
@click.option(
    "--volumes", default="", help="The folder that keeps volumes, the same NFS folder on all hosts that share them."
)
@click.option("--direct", default="", help="HOST:PORT of transfers that pass no manager.  [default: off]")
@_json
@click.pass_obj
def join(
    data_dir_before: Path | None,
    token: str,
    data_dir: Path | None,
    name: str | None,
    cpu: float | None,
    mem: str | None,
    reserve: str,
    engine: str,
    volumes: str,
    direct: str,
    as_json: bool,
) -> None:
    """Let this host join an installation. TOKEN is good for one time; '-' reads it from standard input."""
    from agent.join import join as joining

    folder = (data_dir or data_dir_before or _default_data_dir()).absolute()
    if token == "-":  # noqa: S105 - the word for standard input
        token = sys.stdin.read().strip()
    try:
        settings = {"cpu": cpu, "mem": mem, "reserve": reserve, "engine": engine, "volumes": volumes, "direct": direct}
        config = asyncio.run(joining(token, folder, name, **settings))
        AgentConfig.load(folder)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps({"agent_id": config.agent_id, "data_dir": str(folder)}))
    else:
        click.echo(f"Joined as {config.agent_id}. Start it with: moorage agent --data-dir {folder}")
