"""Commands that make, show, change and end sessions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.batch import (
    batch_fields,
    batch_options,
    dependency_options,
    rewire,
    serving_fields,
    serving_options,
    waits,
)
from moorage.cli.explain import reason, show_dry_run
from moorage.cli.gpus import show_session
from moorage.cli.options import (
    Gpus,
    Label,
    carried_fields,
    carried_options,
    constraints_text,
    only_given,
    template_options,
)
from moorage.cli.terminal import (
    F,
    PairParameter,
    connect,
    details,
    json_option,
    note,
    print_json,
    session_argument,
    table,
)
from moorage.cli.volumes import parse_mount
from moorage.errors import PreconditionFailed, SessionNotFound

if TYPE_CHECKING:
    from moorage._models import HistoryEntry, SessionInfo
    from moorage.sync import Client, Session

LIVE = (
    "PENDING",
    "SCHEDULED",
    "PREPARING",
    "PULLING",
    "RUNNING",
    "RUNNING_DEGRADED",
    "RESTARTING",
    "TERMINATING",
)
FINAL = frozenset({"TERMINATED", "CANCELLED", "ERROR"})


class Pairs(PairParameter):
    """NAME=VALUE"""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, found, text = str(value).partition("=")
        if not found or not name:
            self.fail(f"'{value}' is not of the form NAME=VALUE.", param, ctx)
        return name, text


def creation_options(function: F) -> F:
    """What a session may be asked to be; the same for `create` and `run`."""
    options: list[Callable[[F], F]] = [
        click.option("--image", type=terminal.IMAGE, default="python", show_default=True, help="Image or alias."),
        click.option("--cpu", type=float, default=1, show_default=True, metavar="N", help="CPUs, also fractions."),
        click.option("--mem", default="1g", show_default=True, metavar="SIZE", help="Memory: 4g, or MiB."),
        click.option("--gpu", type=Gpus(), help="Whole GPUs, also of a model: 2, h100:1, h100."),
        click.option("--gpu-mem", metavar="SIZE", help="A share of one GPU, by its memory: 20g."),
        click.option("--slot", "slots", type=Pairs(), multiple=True, help="Another resource (repeatable)."),
        click.option("-e", "--env", type=Pairs(), multiple=True, help="An environment variable (repeatable)."),
        click.option("--shm-size", metavar="SIZE", help="Shared memory. [default: half of memory]"),
        click.option("--bootstrap", type=click.File("r"), metavar="FILE", help="A script to run before anything else."),
        click.option("--bootstrap-required", is_flag=True, help="No session if that script fails."),
        click.option("--lifetime", type=float, metavar="SECONDS", help="End the session so long after it runs."),
        click.option("--max-wait", type=float, metavar="SECONDS", help="Queue no longer than that."),
        click.option("--priority", type=int, metavar="N", help="Higher goes first."),
        click.option("--tag", help="A word of yours to find it by."),
        click.option("--project", help="The project it counts for."),
        carried_options,
        click.option(
            "-v",
            "--volume",
            "mounts",
            multiple=True,
            metavar="NAME[:subpath][:/PATH][:ro]",
            help="A volume, at PATH, or below /home/work (repeatable).",
        ),
    ]
    function = batch_options(function)
    for option in reversed(options):
        function = option(function)
    return function


def creation_fields(
    image: str,
    cpu: float,
    mem: str,
    gpu: str | None,
    gpu_mem: str | None,
    slots: Iterable[tuple[str, str]],
    env: Iterable[tuple[str, str]],
    shm_size: str | None,
    bootstrap: Any,
    bootstrap_required: bool,
    lifetime: float | None,
    max_wait: float | None,
    priority: int | None,
    tag: str | None,
    project: str | None,
    mounts: tuple[str, ...],
    labels: Iterable[tuple[str, str | None]],
    ports: tuple[int, ...],
    callback_url: str | None,
    idle_timeout: float | None,
    resource_group: str | None,
    host_labels: Iterable[tuple[str, str | None]],
    apart_from: Iterable[tuple[str, str | None]],
    agent: str | None,
    on_agent_lost: str | None,
    agent_lease: float | None,
    **batch: Any,
) -> dict[str, Any]:
    return {
        "on_agent_lost": on_agent_lost,
        "agent_lease": agent_lease,
        **carried_fields(labels, ports, callback_url, idle_timeout, resource_group, host_labels, apart_from, agent),
        "mounts": [parse_mount(text) for text in mounts] or None,
        **batch_fields(**batch),
        "image": image,
        "cpu": cpu,
        "mem": mem,
        "gpu": gpu,
        "gpu_mem": gpu_mem,
        "resources": dict(slots),
        "environ": dict(env) or None,
        "shm_size": shm_size,
        "bootstrap_script": bootstrap.read() if bootstrap else None,
        "bootstrap_required": bootstrap_required or None,
        "timeout": lifetime,
        "max_wait": max_wait,
        "priority": priority,
        "tag": tag,
        "project": project,
    }


def find(client: Client, name: str) -> Session:
    """A session by id or name; if none of this name lives, the last one that had it, for commands that look back."""
    try:
        return client.sessions.get(name)
    except SessionNotFound:
        ended = client.sessions.iterate(status=sorted(FINAL), name=name)
        if (found := next((session for session in ended if session.name == name), None)) is None:
            raise
        return found


def wait_for_running(session: Session, *, quiet: bool = False) -> None:
    """Until it runs, with a spinner; notices (a bootstrap script that failed) are told."""
    with terminal.waiting(f"{session.name}: {session.status}", shown=not quiet):
        session.wait_ready()
    for notice in session.info.notices:
        note(f"moorage: {notice.message}")


@click.command("create")
@click.argument("name", required=False)
@click.option("--name", "name_option", metavar="NAME", help="The same as the argument.")
@creation_options
@template_options
@serving_options
@click.option("--type", "session_type", default=None, help="interactive, batch, ... [default: interactive]")
@click.option("--command", "startup_command", metavar="CMD", help="The main work of a batch session.")
@click.option("--app", metavar="APP[@VERSION]", help="It answers calls with this app ('moorage app ls').")
@click.option("--reuse", is_flag=True, help="If you have a live session of this name, take that one.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it runs.")
@click.option("--dry-run", is_flag=True, help="Create nothing: say whether it would start now, and if not, why.")
@json_option
def create_command(
    name: str | None,
    name_option: str | None,
    session_type: str | None,
    startup_command: str | None,
    app: str | None,
    reuse: bool,
    no_wait: bool,
    dry_run: bool,
    as_json: bool,
    template: str | None,
    template_version: int | None,
    parameters: tuple[tuple[str, str | None], ...],
    **fields: Any,
) -> None:
    """Create a session and wait until it runs. Prints its name."""
    if template is None and (parameters or template_version is not None):
        raise click.UsageError("Parameters and versions are a template's: name it with --template.")
    if name is not None and name_option is not None:
        raise click.UsageError("Give the name once: as the argument, or with --name.")
    name = name or name_option
    serving = serving_fields(fields)
    fields = creation_fields(**fields) | serving
    with connect() as client:
        create: Callable[..., Session] = client.sessions.create
        if template is not None:
            given = {key: "true" if value is None else value for key, value in parameters}
            create = partial(client.sessions.create_from_template, template, given, version=template_version)
            fields = only_given(fields)
        if app is not None:
            fields = {**only_given(fields), "app": app}
        session = create(
            name=name,
            session_type=session_type or ("batch" if startup_command else "inference" if serving else None),
            startup_command=startup_command,
            reuse=reuse,
            wait=False,
            dry_run=dry_run,
            **fields,
        )
        if dry_run:
            show_dry_run(session, as_json=as_json)
            return
        if waits(fields) and not no_wait and session.info.status_reason:
            note(f"moorage: {session.name} {session.info.status_reason}; 'moorage wait {session.name}' waits as well.")
        elif not no_wait:
            try:
                wait_for_running(session, quiet=as_json)
            except KeyboardInterrupt:
                note(f"moorage: {session.name} goes on; 'moorage wait {session.name}' waits, 'moorage rm' ends it.")
                raise
        if as_json:
            print_json(session.info.to_json())
        else:
            click.echo(session.name)


@click.command("ps")
@click.option("-a", "--all", "ended_too", is_flag=True, help="Also those that have ended.")
@click.option("--status", multiple=True, help="Only of this status (repeatable).")
@click.option("--tag", help="Only with this tag.")
@click.option("--project", help="Only of this project.")
@click.option(
    "--label", "labels", type=Label(), multiple=True, help="Only with this label: NAME, or NAME=VALUE (repeatable)."
)
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option("-n", "--limit", type=click.IntRange(1), help="At most so many.")
@json_option
def ps_command(
    ended_too: bool,
    status: tuple[str, ...],
    tag: str | None,
    project: str | None,
    labels: tuple[tuple[str, str | None], ...],
    quiet: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List your sessions that have not ended, newest first."""
    with connect() as client:
        statuses = [word.upper() for word in status] or ("all" if ended_too else None)
        found = client.sessions.list(status=statuses, tag=tag, project=project, labels=dict(labels), limit=limit)
    empty = "No sessions." if ended_too else "No live sessions; 'moorage ps -a' also lists those that have ended."
    show_sessions([session.info for session in found], quiet=quiet, as_json=as_json, empty=empty)


@click.command("match")
@click.argument("pattern")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@json_option
def match_command(pattern: str, quiet: bool, as_json: bool) -> None:
    """Find sessions by a pattern ('train-*'), or the beginning of their name or id."""
    with connect() as client:
        found = client.sessions.match(pattern)
    show_sessions([s.info for s in found], quiet=quiet, as_json=as_json, empty=f"Nothing matches '{pattern}'.")


def show_sessions(found: list[SessionInfo], *, quiet: bool, as_json: bool, empty: str, owners: bool = False) -> None:
    if as_json:
        print_json([info.to_json() for info in found])
    elif quiet:
        for info in found:
            click.echo(info.name)
    else:
        headers = ["NAME", "STATUS", "IMAGE", "CPU", "MEM", "GPU", "AGE", "NOTE"]
        rows = [session_row(info) for info in found]
        if owners:
            headers.insert(1, "OWNER")
            rows = [[row[0], info.access_key, *row[1:]] for row, info in zip(rows, found, strict=True)]
        table(headers, rows, empty=empty)


def session_row(info: SessionInfo) -> list[object]:
    slots = info.occupied_slots or info.requested_slots
    remark = info.status_reason or ""
    if info.agent_lost:
        remark = "its host does not answer"
    elif info.idle_warning is not None:
        remark = f"ends {terminal.due_in(info.idle_warning.due_at)}: {info.idle_warning.reason}"
    elif info.status in FINAL and info.exit_code not in (None, 0):
        remark = f"exit code {info.exit_code}" + (f", {remark}" if remark else "")
    gpus = slots.get("gpu") or (terminal.memory(slots["gpu-mem"]) if slots.get("gpu-mem") else None)
    cells = [slots.get("cpu"), terminal.memory(slots.get("mem")), gpus]
    image = info.image or ""
    if image.startswith("moorage/snapshot-"):  # by the name that its owner gave it
        image = image.partition(":")[2]
    return [info.name, info.status, image, *cells, terminal.age(info.created_at), remark]


@click.command("info")
@session_argument
@click.option(
    "--gpu", "gpus", is_flag=True, help="Its GPUs: what they are, their checks, and what is enforced of them."
)
@json_option
def info_command(session: str, gpus: bool, as_json: bool) -> None:
    """Show everything about a session."""
    with connect() as client:
        found = find(client, session)
        if gpus:
            devices = found.gpus()
            print_json(devices.to_json()) if as_json else show_session(devices)
            return
        info = found.info
        why = reason(found) if info.status == "PENDING" and not as_json else None
    if as_json:
        print_json(info.to_json())
        return
    shown = terminal.local_time
    status = info.status + (f" ({info.status_reason})" if info.status_reason else "")
    details(
        {
            "name": info.name,
            "id": info.id,
            "status": status,
            "why": why and f"{why}\n'moorage explain {info.name}' says more.",
            "result": None if info.result in (None, "UNDEFINED") else info.result,
            "exit code": info.exit_code,
            "type": info.session_type,
            "app": info.app and f"{info.app.name}@{info.app.version}",
            "ready since": shown(info.ready_at),
            "calls": info.app and f"{info.call_count} over, {info.open_calls} open",
            "ended as": info.end_reason,
            "image": f"{info.image} ({info.architecture})" if info.architecture else info.image,
            "asked for": terminal.slots_text(info.requested_slots),
            "holds": terminal.slots_text(info.occupied_slots),
            "kernels": kernels_text(info),
            "host": (info.agent or "") + (" (does not answer)" if info.agent_lost else ""),
            "host silent": None
            if info.on_agent_lost != "replace"
            else f"begins anew elsewhere after {terminal.span(info.agent_lease or 0)} and a moment",
            "resource group": info.resource_group or None,
            "host has to be": constraints_text(info.constraints),
            "isolation": f"{info.profile}, egress {info.egress}" if info.profile else None,
            "project": f"{info.domain}/{info.project}" if info.domain else info.project,
            "owner": info.access_key,
            "tag": info.tag,
            "labels": "\n".join(f"{name}={value}" for name, value in info.labels.items()),
            "callback": info.callback_url,
            "idle timeout": None if info.idle_timeout is None else terminal.span(info.idle_timeout),
            "version": info.version,
            "environment": "\n".join(f"{name}={value}" for name, value in info.environ.items()),
            "priority": info.priority,
            "attempt": info.attempt if info.attempt > 1 else None,
            "retries": f"{info.retries} of {info.max_retries}" if info.max_retries else None,
            "work ends": f"{terminal.span(info.batch_timeout)} after it began" if info.batch_timeout else None,
            "volumes": ", ".join(
                f"{m.volume}{':' + m.subpath if m.subpath else ''} at {m.path}{' (read-only)' if m.read_only else ''}"
                for m in info.mounts
            )
            or None,
            "waits for": ", ".join(info.waits_for),
            "starts": f"not before {shown(info.starts_at)}" if info.starts_at and info.status == "PENDING" else None,
            "created": shown(info.created_at),
            "started": shown(info.started_at),
            "ended": shown(info.ended_at),
            "ends": shown(info.expires_at) if info.status not in FINAL else None,
            "warning": info.idle_warning
            and f"ends {terminal.due_in(info.idle_warning.due_at)} unless it is used: {info.idle_warning.reason}",
            "last used": shown(info.last_activity_at),
            "executions": info.execution_count,
            "bytes in": terminal.size(info.bytes_in),
            "bytes out": terminal.size(info.bytes_out),
            "notices": "\n".join(
                notice.message + (f"\n{notice.log_tail}" if notice.log_tail else "") for notice in info.notices
            ),
        }
    )


def kernels_text(info: SessionInfo) -> str | None:
    """Of a cluster: each kernel with its host and how it is."""
    if len(info.kernels) < 2:
        return None
    width = max(len(kernel.name) for kernel in info.kernels)
    return "\n".join(
        f"{kernel.name.ljust(width)}  {kernel.status or 'waits for a host'}"
        + (f" on {kernel.agent}" if kernel.agent else "")
        for kernel in info.kernels
    )


@click.command("history")
@session_argument
@json_option
def history_command(session: str, as_json: bool) -> None:
    """Show every change of a session's status."""
    with connect() as client:
        entries = find(client, session).history()
    if as_json:
        print_json([entry.to_json() for entry in entries])
        return
    table(
        ["TIME", "STATUS", "EVENT", "STAYED", "BY", "REASON"],
        [
            [
                terminal.local_time(entry.timestamp),
                entry.status,
                entry.event or "create",
                _stayed(entry),
                entry.by,
                entry.reason,
            ]
            for entry in entries
        ],
        empty="Nothing has happened yet.",
    )


def _stayed(entry: HistoryEntry) -> str:
    if entry.duration_seconds is None and entry.status not in FINAL:
        return f"{terminal.age(entry.timestamp)} so far"
    return terminal.span(entry.duration_seconds)


@click.command("logs")
@session_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--since", metavar="TIME", help="Only what was written since: 10m ago, or ISO 8601.")
@click.option("--kernel", metavar="NAME", help="Of a cluster, the kernel that is meant, such as worker1.")
@json_option
def logs_command(
    session: str, follow: bool, tail: int | None, since: str | None, kernel: str | None, as_json: bool
) -> None:
    """Show what a session's container wrote."""
    moment = None if since is None else terminal.moment(since)
    with connect() as client:
        found = find(client, session)
        if follow:
            for text in found.follow_logs(kernel=kernel, tail=tail, since=moment):
                if as_json:
                    terminal.print_line({"text": text})
                else:
                    click.echo(text, nl=False)
            return
        text = found.logs(kernel=kernel, tail=tail, since=moment)
    if as_json:
        print_json({"session": found.name, "text": text})
    else:
        click.echo(text, nl=False)


@click.command("wait")
@session_argument
@click.argument("statuses", nargs=-1, metavar="[STATUS]...")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait no longer than that (exit code 6).")
@json_option
def wait_command(session: str, statuses: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Wait until a session has one of the statuses (by default RUNNING). Prints the one it has.

    'end' stands for all statuses that are an end.
    """
    wanted = [status.upper() for status in statuses]
    if "END" in wanted:
        wanted = [*(status for status in wanted if status != "END"), *sorted(FINAL)]
    if unknown := [status for status in wanted if status not in {*LIVE, *FINAL}]:
        raise click.UsageError(f"There is no status {unknown[0]}; there are {', '.join([*LIVE, *sorted(FINAL)])}.")
    with connect() as client:
        found = find(client, session)
        with terminal.waiting(f"{found.name}: waiting for {' or '.join(wanted) or 'RUNNING'}", shown=not as_json):
            found.wait_until(*wanted, timeout=timeout)
    if as_json:
        print_json(found.info.to_json())
    else:
        click.echo(found.status)


@click.command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--session", "session", type=terminal.SESSION, help="Only of this session.")
@click.option("--after", metavar="ID", help="Only what happened after this event.")
@json_option
def events_command(follow: bool, session: str | None, after: str | None, as_json: bool) -> None:
    """Show what has happened, and with -f what happens."""
    with connect() as client:
        session_id = find(client, session).id if session else None
        for event in client.events(session=session_id, follow=follow, after=after):
            if as_json:
                terminal.print_line(event.to_json())
                continue
            facts = [f"{name}={_fact(value)}" for name, value in event.data.items() if value not in (None, event.name)]
            parts = [terminal.local_time(event.at), event.type.ljust(22), event.name or event.session_id, *facts]
            click.echo(terminal.printable("  ".join(part for part in parts if part)))


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command("rename")
@session_argument
@click.argument("new_name")
@json_option
def rename_command(session: str, new_name: str, as_json: bool) -> None:
    """Give a session another name."""
    with connect() as client:
        _changed(client.sessions.get(session).rename(new_name), as_json)


@click.command("modify")
@session_argument
@click.option("--name", help="Another name.")
@click.option("--priority", type=int, help="Higher goes first.")
@click.option(
    "--lifetime",
    "--timeout",
    "lifetime",
    type=float,
    metavar="SECONDS",
    help="How long it may live, from when it began to run.",
)
@click.option("--tag", help="Another tag.")
@click.option(
    "--cluster-size",
    type=click.IntRange(1),
    metavar="N",
    help="Kernels of a running cluster, the main one included; those that have ended are replaced.",
)
@click.option(
    "--label", "labels", type=Label(), multiple=True, help="NAME=VALUE; NAME alone takes it away (repeatable)."
)
@click.option("--callback-url", metavar="URL", help="Another one; '' for none.")
@click.option("--idle-timeout", type=float, metavar="SECONDS", help="Another one; 0 for none.")
@click.option("--cpu", type=float, metavar="N", help="CPUs, also while it runs.")
@click.option("--mem", metavar="SIZE", help="Memory, also while it runs: 4g, or MiB.")
@click.option("--gpu", type=click.IntRange(1), metavar="N", help="Whole GPUs, while it waits in the queue.")
@click.option("--gpu-mem", metavar="SIZE", help="A share of one GPU instead, while it waits in the queue.")
@click.option("--if-version", type=click.IntRange(1), metavar="N", help="Only while it has this version (see 'info').")
@dependency_options
@json_option
def modify_command(
    session: str,
    labels: tuple[tuple[str, str | None], ...],
    lifetime: float | None,
    if_version: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Change a session's settings."""
    plain = ("name", "priority", "tag", "cluster_size", "callback_url", "idle_timeout", "cpu", "mem", "gpu", "gpu_mem")
    asked = {name: given.pop(name) for name in plain} | {"timeout": lifetime, "labels": dict(labels) or None}
    changes = {name: value for name, value in asked.items() if value is not None}
    cluster_size, wiring = changes.get("cluster_size"), given
    if not changes and all(change in (None, ()) for change in wiring.values()):
        raise click.UsageError(
            "Say what to change, such as --name, --priority, --label or --mem; --help lists all of it."
        )
    with connect() as client:
        found = client.sessions.get(session)
        if if_version is not None and found.info.version != if_version:
            raise PreconditionFailed(
                f"The session '{found.name}' has version {found.info.version} by now; look at it again."
            )
        rewire(found, **wiring)
        if changes:
            found.modify(**changes, if_unchanged=if_version is not None)
        if cluster_size is not None:
            with terminal.waiting(f"{found.name}: waiting for {cluster_size} kernels", shown=not as_json):
                found.wait_for_kernels()
        _changed(found, as_json)


@click.command("restart")
@session_argument
@click.option("--no-wait", is_flag=True, help="Do not wait until it runs again.")
@json_option
def restart_command(session: str, no_wait: bool, as_json: bool) -> None:
    """Give a session new containers; its files stay. One that has ended is tried once more."""
    with connect() as client:
        found = find(client, session)
        with terminal.waiting(f"{found.name}: restarting", shown=not as_json):
            _changed(found.restart(wait=not no_wait), as_json)


def _changed(session: Session, as_json: bool) -> None:
    if as_json:
        print_json(session.info.to_json())
    else:
        click.echo(session.name)


@click.command("rm")
@click.argument("sessions", nargs=-1, required=True, type=terminal.SESSION, metavar="SESSION...")
@click.option("-f", "--force", is_flag=True, help="Do not wait for the session's host to confirm.")
@click.option("-r", "--recursive", is_flag=True, help="Also the sessions that depend on it.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is over.")
@json_option
def rm_command(sessions: tuple[str, ...], force: bool, recursive: bool, no_wait: bool, as_json: bool) -> None:
    """End sessions and free what they hold. Their files are lost."""
    with connect() as client:
        remove(client, [(name, None) for name in sessions], force, recursive, not no_wait, as_json)


def remove(
    client: Client,
    sessions: list[tuple[str, str | None]],
    force: bool,
    recursive: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """All that can be removed are; the first failure is raised at the end, the others are told."""
    from moorage._errors import MoorageError

    ended, failures = [], []
    for name, owner in sessions:
        try:
            # what depends on one that has ended may live
            found = find(client, name) if recursive and owner is None else client.sessions.get(name, owner=owner)
            with terminal.waiting(f"{found.name}: ending", shown=not as_json):
                found.destroy(forced=force, recursive=recursive, wait=wait)
        except MoorageError as problem:
            failures.append((name, problem))
            continue
        ended.append(found.info)
        if not as_json:
            click.echo(found.name)
    if as_json:
        print_json([info.to_json() for info in ended])
    for name, failure in failures[1:]:
        note(f"moorage: {name}: {failure}")
    if failures:
        name, failure = failures[0]
        if len(sessions) > 1:
            failure.message = f"{name}: {failure.message}"
        raise failure
