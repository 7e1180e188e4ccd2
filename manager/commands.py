"""The commands that come with the server: `moorage up`, `down`, `status`, `manager`."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from manager.config import ConfigError, ManagerConfig, default_data_dir

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept.  [default: $MOORAGE_DATA_DIR, or ~/.local/share/moorage]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.command()
@_data_dir
@click.option("--port", type=click.IntRange(0, 65535), help="Of the REST API; 0 takes a free one.  [default: 8470]")
@click.option("--detach", is_flag=True, help="Return when everything runs, and leave it running.")
@click.option("--json", "as_json", is_flag=True, help="Print endpoint and credentials as JSON.")
@click.option("--cpu", type=float, help="CPUs that this machine offers to sessions.  [default: all]")
@click.option("--mem", help="Memory that it offers, such as 16g.  [default: all]")
@click.option("--front", "fronts", multiple=True, help="Switch on a front: inference, backendai, grpc.")
@click.option("--direct", help="HOST:PORT of file transfers that pass no manager.  [default: off]")
def up(
    data_dir: Path | None,
    port: int | None,
    detach: bool,
    as_json: bool,
    cpu: float | None,
    mem: str | None,
    fronts: tuple[str, ...],
    direct: str | None,
) -> None:
    """Run everything on this machine: PostgreSQL, a manager and an agent.

    Resumes what is in the data dir, sessions included. Needs Docker, and nothing else.
    """
    from manager import up as installing

    installation = installing.Installation.at(data_dir)
    if installation.runner_pid() is None:
        given = (("--cpu", cpu), ("--mem", mem), ("--direct", direct))
        options = [word for name, value in given if value for word in (name, str(value))]
        if not detach:
            _run_installation(installation, port, fronts, options, lambda: _announce(installation, as_json))
            return
        _run_detached(installation, port, fronts, options)
    _wait_until_ready(installation)
    _announce(installation, as_json)


def _run_installation(
    installation: Any, port: int | None, fronts: tuple[str, ...], options: list[str], ready: Any
) -> None:
    from manager import up as installing

    try:
        installing.run(installation, port=port, fronts=fronts, agent_options=options, ready=ready)
    except (installing.CannotStart, ConfigError) as error:
        raise click.ClickException(str(error)) from None


def _run_detached(installation: Any, port: int | None, fronts: tuple[str, ...], options: list[str]) -> None:
    """Fork, and come back when the child says that it is ready; its refusal becomes ours."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        os.setsid()
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        code = 0
        try:
            installation.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with installation.log_file.open("ab") as log_file:
                os.dup2(log_file.fileno(), 1)
                os.dup2(log_file.fileno(), 2)

            def ready() -> None:
                os.write(writer, b"ok")
                os.close(writer)

            _run_installation(installation, port, fronts, options, ready)
        except click.ClickException as error:
            os.write(writer, error.message.encode())
            code = 1
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
            code = 1
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    if said != "ok":
        os.waitpid(pid, 0)
        raise click.ClickException(said or f"It ended before it was ready; see {installation.log_file}.")


def _wait_until_ready(installation: Any, seconds: float = 120.0) -> None:
    """Another `up` may still be on its way."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if installation.is_ready():
            return
        time.sleep(0.05)
    raise click.ClickException(f"It is running but does not become ready; see {installation.log_file}.")


def _announce(installation: Any, as_json: bool) -> None:
    from moorage.config import save_config

    summary = installation.summary()
    save_config(endpoint=summary["endpoint"], access_key=summary["access_key"], secret_key=summary["secret_key"])
    if as_json:
        click.echo(json.dumps(summary))
        sys.stdout.flush()
        return
    click.echo(f"Moorage is up at {summary['endpoint']}")
    click.echo(f"  access key  {summary['access_key']}")
    click.echo(f"  secret key  {summary['secret_key']}")
    click.echo(f"  data dir    {summary['data_dir']}")
    if "grpc_port" in summary:
        click.echo(f"  gRPC        127.0.0.1:{summary['grpc_port']}")
    click.echo("Try:  moorage run -c 'print(1 + 1)'")
    sys.stdout.flush()


@click.command()
@_data_dir
@_json
def down(data_dir: Path | None, as_json: bool) -> None:
    """Stop what `moorage up` runs. Sessions' containers go on, and the next `up` finds them again."""
    from manager import up as installing

    installation = installing.Installation.at(data_dir)
    try:
        stopped = installing.down(installation)
    except installing.CannotStart as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps({"stopped": stopped, "data_dir": str(installation.data_dir)}))
    else:
        click.echo("Stopped." if stopped else f"Nothing is running in {installation.data_dir}.")


@click.command()
@_data_dir
@_json
def status(data_dir: Path | None, as_json: bool) -> None:
    """Say whether the installation of this machine runs, and how it is."""
    from manager import up as installing

    installation = installing.Installation.at(data_dir)
    state = installation.status()
    if as_json:
        click.echo(json.dumps(state))
    elif not state["running"]:
        click.echo(f"Nothing is running in {state['data_dir']}; 'moorage up' starts it.")
    else:
        for name, value in state.items():
            shown = {True: "yes", False: "no"}.get(value, value)
            click.echo(f"{name.replace('_', ' '):<10}  {shown}")
    sys.exit(0 if state["running"] and state["ready"] else 6)


@click.group(invoke_without_command=True)
@_data_dir
@click.option(
    "--role",
    type=click.Choice(["api", "control", "proxy", "ssh", "grpc"]),
    help="Run one role only.  [default: one of each]",
)
@click.option("--database-url", help="PostgreSQL >= 15.  [default: manager.toml, or $DATABASE_URL]")
@click.option("--host", help="Where the REST API listens.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535))
@click.option("--agent-host", help="Where agents connect.")
@click.option("--agent-api-port", type=click.IntRange(1, 65535))
@click.option("--agent-control-port", type=click.IntRange(1, 65535))
@click.option("--agent-proxy-port", type=click.IntRange(1, 65535))
@click.option("--agent-data-port", type=click.IntRange(1, 65535))
@click.option("--advertised-agent-host", help="The address that agents are told.")
@click.option("--proxy-port", type=click.IntRange(1, 65535))
@click.option("--proxy-url", help="Where browsers reach the proxy; '*' stands for a session's own host name.")
@click.option("--ssh-port", type=click.IntRange(1, 65535), help="Of the SSH gateway.  [default: none]")
@click.option("--ssh-host", help="Where the SSH gateway listens.  [default: where the REST API does]")
@click.option("--advertised-ssh-host", help="The address of the SSH gateway that clients are told.")
@click.option("--agent-ssh-port", type=click.IntRange(1, 65535))
@click.option("--fronts", help="Of other systems' protocols, between commas: inference, backendai, grpc.")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Of the gRPC front.")
@click.option("--tls-cert", help="Certificate chain of the REST API (PEM).")
@click.option("--tls-key")
@click.option(
    "--drain-seconds",
    type=click.IntRange(0, 300),
    help="After SIGTERM the API says for so long that it goes, before it does.  [default: 5]",
)
@click.option("--log-level")
@click.pass_context
def manager(context: click.Context, /, data_dir: Path | None, role: str | None, **given: Any) -> None:
    """Run a manager: its API, its control loops and its proxy, each a process. Or change its certificate authority."""
    if context.invoked_subcommand is not None:
        context.obj = data_dir
        return
    gc.disable()  # of what is imported nothing is garbage, and to look for it takes a fifth of the start
    from manager import daemon

    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if given["database_url"] and urlsplit(given["database_url"]).password:
            raise ConfigError(
                "a password in --database-url could be read by everybody on this machine: put database_url into "
                "manager.toml, or its file's name into DATABASE_URL_FILE"
            )
        config = ManagerConfig.load((data_dir or default_data_dir()).absolute(), **given)
        os.environ.pop("DATABASE_URL", None)  # of no use to what this process starts
        daemon.run(config, role)
    except (ConfigError, daemon.CannotServe) as error:
        raise click.ClickException(str(error)) from None


@manager.command("authority")
@click.argument("step", type=click.Choice(["show", "begin", "switch", "finish"]), default="show")
@_data_dir
@_json
@click.pass_obj
def manager_authority(data_dir_before: Path | None, step: str, data_dir: Path | None, as_json: bool) -> None:
    """Change the authority that signs managers and agents, in three steps; docs/trust.md tells how.

    After each, copy the folder pki to the other managers, and start all of them anew one by one.
    """
    from agent import authority
    from domain.errors import MoorageError

    folder = (data_dir or data_dir_before or default_data_dir()).absolute() / "pki"
    if not (folder / "ca.key").exists():
        raise click.ClickException(f"No authority is in {folder}; name the manager's folder with --data-dir.")
    try:
        if step != "show":
            {"begin": authority.begin, "switch": authority.switch, "finish": authority.finish}[step](folder)
    except MoorageError as error:
        raise click.ClickException(error.message) from None
    reached, meaning = authority.state(folder)
    click.echo(json.dumps({"state": reached, "meaning": meaning}) if as_json else f"{reached}: {meaning}")


@click.command()
@_data_dir
@_json
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Look at this machine's installation: database, files, engine, disks, clock. Changes nothing.

    On a host that has nothing but an agent: 'moorage agent doctor'. Exit code 1: something is bad.
    """
    from datetime import UTC, datetime

    from domain.doctor import Diagnosis, show
    from manager import up as installing

    installation = installing.Installation.at(data_dir)
    found: list[Diagnosis] = []
    if (installation.data_dir / "manager.toml").exists():
        from manager.doctor import examine

        found += asyncio.run(examine(installation.data_dir, now=datetime.now(UTC)))
    if (installation.agent_dir / "agent.toml").exists():
        found += installing.examine_agent(installation)
    if not found:
        raise click.ClickException(
            f"No manager is installed in {installation.data_dir}; name its folder with --data-dir."
        )
    click.echo(json.dumps([asdict(one) for one in found]) if as_json else show(found))
    sys.exit(1 if any(one.level == "bad" for one in found) else 0)
