"""Commands for services and ports of sessions."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli.terminal import Group, connect, json_option, print_json, table

if TYPE_CHECKING:
    from moorage._models import ServiceInfo
    from moorage.sync.services import Service


@click.group("service", cls=Group)
def service_command() -> None:
    """Programs that listen in a session: Jupyter, TensorBoard, one of the image's, or any command or port."""


@service_command.command("start", context_settings={"ignore_unknown_options": True})
@click.argument("session")
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--kind", help="What it is, when its name does not say so: jupyter, tensorboard, ttyd, http, tcp.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where it listens in the session.")
@click.option("--arg", "arguments", multiple=True, metavar="WORD", help="One more word for its command; repeatable.")
@click.option("-e", "--env", "environ", multiple=True, metavar="NAME=VALUE", help="A variable for it (repeatable).")
@click.option("--path", help="Answers to GET when the service is ready.")
@click.option("--kernels", default="main", show_default=True, help="That run it: main, all, or one by name.")
@click.option(
    "--ready-timeout", type=float, metavar="SECONDS", help="How long to wait for its first answer. [default: 60]"
)
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@json_option
def service_start(
    session: str,
    name: str,
    command: tuple[str, ...],
    arguments: tuple[str, ...],
    environ: tuple[str, ...],
    open_it: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Start a service and print its address.

    \b
    moorage service start demo jupyter
    moorage service start demo api --port 8000 --path /health -- python app.py
    moorage service start demo docs --port 8000 -- 'python -m http.server --directory $HOME'
    moorage service start demo mine --port 9000       a program that you have started yourself
    """
    for pair in environ:
        if "=" not in pair:
            raise click.BadParameter(f"'{pair}' is not NAME=VALUE", param_hint="--env")
    given["environ"] = dict(pair.split("=", 1) for pair in environ)
    if command:
        # one word is for a shell, as in `moorage exec`
        given["command"] = ["sh", "-c", command[0]] if len(command) == 1 else list(command)
    with connect() as client:
        service = client.sessions.get(session).services.start(name, arguments=list(arguments), **given)
    _show(service, open_it=open_it, as_json=as_json)


@service_command.command("url")
@click.argument("session")
@click.argument("name")
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@json_option
def service_url(session: str, name: str, open_it: bool, as_json: bool) -> None:
    """Print a new address of a service: good for one use, within five minutes."""
    with connect() as client:
        service = client.sessions.get(session).services.open(name)
    _show(service, open_it=open_it, as_json=as_json)


@service_command.command("stop")
@click.argument("session")
@click.argument("name")
@click.option("--drain", type=click.FloatRange(0, 60), default=0.0, help="Seconds for what is under way.")
@json_option
def service_stop(session: str, name: str, drain: float, as_json: bool) -> None:
    """Shut a service down."""
    with connect() as client:
        client.sessions.get(session).services.stop(name, drain=drain)
    print_json({"name": name}) if as_json else click.echo(f"{name} is shut down")


@service_command.command("ls")
@click.argument("session")
@json_option
def service_ls(session: str, as_json: bool) -> None:
    """List a session's services with their health."""
    with connect() as client:
        found = client.sessions.get(session).services.list()
    if as_json:
        print_json([service.to_json() for service in found])
        return
    rows = [(s.name, s.kind, str(s.port), s.kernels, s.health, _restarts(s), _trouble(s)) for s in found]
    empty = f"no services; 'moorage service start {session} jupyter' starts one"
    table(("NAME", "KIND", "PORT", "KERNELS", "HEALTH", "RESTARTS", "MESSAGE"), rows, empty=empty)


@service_command.command("access")
@click.argument("session")
@click.option("--kernel", help="Whose files, of a cluster.  [default: the main one's]")
@click.option("--read-only", is_flag=True, help="The ticket for files is not to write any.")
@click.option(
    "--certificate",
    "certificate",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the certificate of the direct address here, for 'curl --cacert'.",
)
@json_option
def service_access(session: str, kernel: str | None, read_only: bool, certificate: Path | None, as_json: bool) -> None:
    """Show the ways into a session: addresses of its services, of its SSH access, and of its files on the host itself.

    The ticket for files is good for five minutes; it is shown, so print it only where nobody else reads.
    """
    with connect() as client:
        found = client.sessions.get(session).services.direct_access(kernel=kernel, read_only=read_only)
    if certificate is not None and found["direct"]:
        certificate.write_text(found["direct"]["certificate"])
    if as_json:
        print_json(found)
        return
    rows = [(s["name"], s["protocol"], str(s["port"]), s["url"]) for s in found["services"]]
    table(("SERVICE", "PROTOCOL", "PORT", "ADDRESS"), rows, empty="no services")
    click.echo(f"ssh: {found['ssh']['command'] if found['ssh'] else 'this installation has no SSH gateway'}")
    if (direct := found["direct"]) is None:
        click.echo(f"direct: {found['no_direct']}")
        return
    trust = f"--cacert {certificate}" if certificate is not None else "--cacert FILE"
    click.echo(f"direct: curl {trust} -H 'Authorization: Bearer {direct['token']}' {direct['url']}/files/PATH")


def _restarts(service: ServiceInfo) -> str:
    return str(sum(instance.restarts for instance in service.instances))


def _trouble(service: ServiceInfo) -> str:
    return next((instance.message for instance in service.instances if instance.message), None) or ""


def _show(service: Service, *, open_it: bool, as_json: bool) -> None:
    if as_json:
        print_json({"service": service.info.to_json(), "wsproxy_addr": service.url})
    else:
        click.echo(service.url)
    if open_it:
        webbrowser.open(service.url)


@click.command("port-forward")
@click.argument("session")
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
@click.option("--kernel", help="Of a cluster: worker1. [default: the main one]")
@click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen here.")
@json_option
def port_forward_command(session: str, ports: tuple[str, ...], kernel: str | None, bind: str, as_json: bool) -> None:
    """Listen here, and connect to ports of a session, until Ctrl-C. LOCAL may be 0: any free port."""
    pairs = [_ports(text) for text in ports]
    from moorage import forwarding

    with connect() as client:
        passes = client.sessions.get(session).services
        opened = [(local, remote, passes.port_pass(remote, kernel=kernel)) for local, remote in pairs]

        def told(local: int, remote: int) -> None:
            said = {"bind": bind, "local": local, "session": session, "remote": remote}
            print_json(said) if as_json else click.echo(f"{bind}:{local} -> {session}:{remote}")
            sys.stdout.flush()

        try:
            work = forwarding.forward(
                bind, opened, told, config=client.config, renew=lambda port: passes.port_pass(port, kernel=kernel)
            )
            asyncio.run(work)
        except OSError as problem:
            raise click.ClickException(f"Cannot listen on {bind}: {problem.strerror or problem}.") from None


def _ports(text: str) -> tuple[int, int]:
    local, _, remote = text.rpartition(":")
    try:
        pair = int(local or remote), int(remote)
        if 0 <= pair[0] < 65536 and 0 < pair[1] < 65536:
            return pair
    except ValueError:
        pass
    raise click.BadParameter(f"'{text}' is not [LOCAL:]REMOTE, such as 8080:80", param_hint="PORTS")
