"""Commands for apps and calls: `moorage app ...`, `moorage call ...`, `moorage keepalive`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.options import Label
from moorage.cli.sessions import find
from moorage.cli.terminal import Group, connect, details, json_option, note, print_json, session_argument, table

if TYPE_CHECKING:
    from moorage._models import AppInfo, CallInfo
    from moorage.results import Record
    from moorage.sync.calls import Call

_INPUT_HELP = "JSON; @FILE reads it from a file, - from standard input. [default: null]"


def read_input(text: str | None) -> Any:
    """What --input says."""
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as problem:
            raise click.UsageError(f"The input cannot be read: {problem}.") from None
    try:
        return json.loads(text)
    except ValueError as problem:
        raise click.UsageError(f"The input is no JSON: {problem}.") from None


# -- apps ----------------------------------------------------------------------------------------------------------------
@click.group("app", cls=Group)
def app_command() -> None:
    """Apps, which worker sessions load to answer calls: deploy, ls, show, rm, call."""


@app_command.command("deploy")
@click.argument("source", required=False, metavar="[DIR]")
@click.option("--entry", required=True, metavar="MODULE:CLASS", help="What is loaded.")
@click.option("--name", help="[default: the folder's name]")
@click.option("--image", default="python", show_default=True, help="Image or alias.")
@click.option("--adapter", help="How it is called: class, algorithm. [default: class]")
@click.option("--path", metavar="FOLDER", help="Of the code in the image, instead of DIR.")
@click.option("--option", "options", type=Label(), multiple=True, help="For the adapter (repeatable).")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Calls at once. [default: 1]")
@click.option("--function", "functions", multiple=True, metavar="NAME", help="That may be called. [default: all]")
@click.option("--cpu", type=float, metavar="N", help="CPUs of its sessions. [default: 1]")
@click.option("--mem", metavar="SIZE", help="Their memory: 4g, or MiB. [default: 1g]")
@click.option("--gpu", type=int, metavar="N", help="Their GPUs.")
@click.option("-e", "--env", type=Label(), multiple=True, help="An environment variable (repeatable).")
@click.option(
    "--idle-timeout", type=float, metavar="SECONDS", help="They end so long after the last call. [default: 60]"
)
@click.option("--setup-timeout", type=float, metavar="SECONDS", help="It is loaded within. [default: 600]")
@click.option("--call-timeout", type=float, metavar="SECONDS", help="Of calls that name none.")
@click.option("--description", help="What it is for.")
@click.option("--project", help="For the members of this project.")
@click.option("--domain", is_flag=True, help="For everybody in the domain; for administrators.")
@json_option
def app_deploy(
    source: str | None,
    name: str | None,
    domain: bool,
    options: tuple[tuple[str, str | None], ...],
    env: tuple[tuple[str, str | None], ...],
    functions: tuple[str, ...],
    as_json: bool,
    **fields: Any,
) -> None:
    """Keep the code in DIR (or a tar or zip file of it) as an app; of a name that is there, as its next version."""
    if (source is None) == (fields["path"] is None):
        raise click.UsageError("Name the folder of the code, or where it is in the image with --path.")
    if name is None:
        name = Path(source or fields["path"]).resolve().name
    if source is not None and not Path(source).exists():
        raise click.UsageError(f"There is no folder or archive '{source}'.")
    given = {key: True if value is None else value for key, value in options}
    with connect() as client:
        try:
            made = client.apps.deploy(
                source,
                name=name,
                options=given or None,
                functions=functions or None,
                environ={key: value or "" for key, value in env} or None,
                scope="domain" if domain else None,
                **fields,
            )
        except ValueError as problem:  # it is too large to be sent
            raise click.ClickException(f"{problem}.") from None
    print_json(made.to_json()) if as_json else click.echo(f"{made.name}@{made.version}")


@app_command.command("ls")
@json_option
def app_ls(as_json: bool) -> None:
    """List the apps that you may use."""
    with connect() as client:
        found = client.apps.list()
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        [one.name, _whose(one), one.version, one.entry, one.image, f"{one.idle_timeout:g} s", one.description]
        for one in found
    ]
    headers = ["NAME", "OF", "VERSION", "ENTRY", "IMAGE", "IDLE", "DESCRIPTION"]
    table(headers, rows, empty="No apps; 'moorage app deploy DIR --entry MODULE:CLASS' keeps one.")


@app_command.command("show")
@click.argument("app", metavar="APP[@VERSION]")
@json_option
def app_show(app: str, as_json: bool) -> None:
    """Show an app, and its versions."""
    with connect() as client:
        found = client.apps.get(app)
    if as_json:
        print_json(found.to_json())
        return
    history = [f"{v.version}  {terminal.local_time(v.at)}  {v.by}" for v in found.versions or ()]
    slots = [f"{name}={amount}" for name, amount in (found.resource_slots or {}).items()]
    details(
        {
            "name": found.name,
            "id": found.id,
            "of": _whose(found),
            "version": f"{found.version} of {found.latest}",
            "description": found.description,
            "image": found.image,
            "entry": f"{found.entry} ({found.adapter})",
            "code": found.path or f"{found.archive_bytes} bytes, {found.archive_sha256}",
            "functions": ", ".join(found.functions or ()) or "all",
            "concurrency": found.concurrency,
            "resources": ", ".join(slots),
            "idle timeout": f"{found.idle_timeout:g} s",
            "versions": "\n".join(history),
        }
    )


@app_command.command("rm")
@click.argument("apps", nargs=-1, required=True, metavar="APP[@VERSION]...")
@json_option
def app_rm(apps: tuple[str, ...], as_json: bool) -> None:
    """Forget apps, or one version of them; not while sessions are made of them."""
    with connect() as client:
        for app in apps:
            client.apps.remove(app)
    if as_json:
        print_json({"removed": list(apps)})


@app_command.command("call")
@click.argument("app", metavar="APP[@VERSION]")
@click.argument("function", default="run")
@click.option("--input", "given", metavar="JSON", help=_INPUT_HELP)
@click.option("--timeout", type=float, metavar="SECONDS", help="End the call after so long.")
@click.option("--project", help="The project its session counts for.")
@json_option
def app_call(
    app: str, function: str, given: str | None, timeout: float | None, project: str | None, as_json: bool
) -> int:
    """Call an app without a session, and print its output as JSON: one is made for the call, and ends with it."""
    value = read_input(given)
    with connect() as client:
        call = client.apps.start(app, function, value, timeout=timeout, project=project)
        return _finish(call, as_json=as_json)


def _whose(app: AppInfo) -> str:
    return "you" if app.scope == "user" else f"{app.scope} {app.of}"


# -- calls ---------------------------------------------------------------------------------------------------------------
@click.group("call", cls=Group)
def call_command() -> None:
    """Calls of worker sessions: start, ls, show, output, cancel, rm."""


@call_command.command("start")
@session_argument
@click.argument("function", default="run")
@click.option("--input", "given", metavar="JSON", help=_INPUT_HELP)
@click.option("--timeout", type=float, metavar="SECONDS", help="End the call after so long.")
@click.option("--detach", is_flag=True, help="Print its id, and do not wait for it.")
@json_option
def call_start(
    session: str, function: str, given: str | None, timeout: float | None, detach: bool, as_json: bool
) -> int:
    """Call a function of a session's app, and print its output as JSON; what it prints goes to standard error."""
    value = read_input(given)
    with connect() as client:
        call = client.sessions.get(session).calls.start(function, value, timeout=timeout)
        if detach:
            print_json(call.info.to_json()) if as_json else click.echo(call.id)
            return 0
        return _finish(call, as_json=as_json)


@call_command.command("ls")
@session_argument
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="At most so many.")
@json_option
def call_ls(session: str, limit: int, as_json: bool) -> None:
    """List a session's calls, the newest first."""
    with connect() as client:
        found = find(client, session).calls.list(limit=limit)
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [[one.id, one.function, one.status, terminal.local_time(one.created_at), _error(one)] for one in found]
    table(["CALL", "FUNCTION", "STATUS", "ASKED", "ERROR"], rows, empty="It has not been called.")


@call_command.command("show")
@click.argument("call")
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Until it is over, at most so long.")
@json_option
def call_show(call: str, wait: float, as_json: bool) -> None:
    """Show how a call stands, or stood when it ended."""
    with connect() as client:
        found = client.calls.get(call)
        info = found.refresh(wait=wait) if wait else found.info
    if as_json:
        print_json(info.to_json())
        return
    shown = {name: getattr(info, name) for name in ("id", "session_id", "function", "status", "reason")}
    asked = {
        "asked": terminal.local_time(info.created_at),
        "progress": _json(info.progress),
        "input": _json(info.input),
    }
    details({**shown, **asked, "output": _json(info.output), "error": _error(info)})


@call_command.command("output")
@click.argument("call")
@json_option
def call_output(call: str, as_json: bool) -> int:
    """Follow a call to its end: logs to standard error, partial outputs and the output as lines of JSON."""
    with connect() as client:
        return _finish(client.calls.get(call), as_json=as_json)


@call_command.command("cancel")
@click.argument("call")
@json_option
def call_cancel(call: str, as_json: bool) -> None:
    """Cancel a call: one that waits never runs, one that runs is interrupted."""
    with connect() as client:
        info = client.calls.get(call).cancel()
    print_json(info.to_json()) if as_json else click.echo("cancelling" if info.cancelling else info.status)


@call_command.command("rm")
@click.argument("calls", nargs=-1, required=True, metavar="CALL...")
@json_option
def call_rm(calls: tuple[str, ...], as_json: bool) -> None:
    """Forget calls that are over, with their inputs, outputs and errors."""
    with connect() as client:
        for call in calls:
            client.calls.get(call).delete()
    if as_json:
        print_json({"removed": list(calls)})


@click.command("keepalive")
@session_argument
@json_option
def keepalive_command(session: str, as_json: bool) -> None:
    """Let a session's idle time begin anew, as if it had been used."""
    with connect() as client:
        info = client.sessions.get(session).keep_alive().info
    if as_json:
        print_json(info.to_json())
    elif info.expires_at is not None:
        click.echo(f"{info.name} lives until {terminal.local_time(info.expires_at)}")


def _finish(call: Call, *, as_json: bool) -> int:
    """Show it to its end. Its exit code: 0, or 1 when it failed or was cancelled."""
    try:
        if not as_json:
            for record in call.records():
                _show(record)
        info = call.wait()
    except KeyboardInterrupt:
        note(f"moorage: the call goes on; 'moorage call cancel {call.id}' cancels it.")
        raise
    if as_json:
        print_json(info.to_json())
    elif info.status != "completed":
        note(f"moorage: {_error(info) or info.status}")
    elif info.output_kept is not False:
        click.echo(json.dumps(info.output, ensure_ascii=False))
    return 0 if info.status == "completed" else 1


def _show(record: Record) -> None:
    if record.kind in ("stdout", "stderr"):
        click.echo(record.text, nl=False, err=True)
    elif record.kind == "result" and "partial" in record.data:
        click.echo(json.dumps(record.data["partial"], ensure_ascii=False))


def _error(info: CallInfo) -> str:
    error = info.error or {}
    return f"{error.get('ename')}: {error.get('evalue')}".rstrip(": ") if error else ""


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
