"""Commands for background tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moorage.cli import terminal
from moorage.cli.terminal import Group, connect, json_option, print_json, table

if TYPE_CHECKING:
    from moorage._models import Progress, TaskInfo
    from moorage.sync import Task


@click.group("task", cls=Group)
def task_command() -> None:
    """Background tasks."""


@task_command.command("ls")
@json_option
def task_ls(as_json: bool) -> None:
    """List background tasks."""
    with connect() as client:
        found = [task.info for task in client.tasks.list()]
    if as_json:
        print_json([info.to_json() for info in found])
        return
    rows = [
        [info.id, info.action, info.status, percent(info.progress), terminal.age(info.created_at)] for info in found
    ]
    table(["ID", "ACTION", "STATUS", "PROGRESS", "AGE"], rows, empty="No tasks.")


@task_command.command("wait")
@click.argument("task")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait no longer than that (exit code 6).")
@json_option
def task_wait(task: str, timeout: float | None, as_json: bool) -> None:
    """Wait for a task's end."""
    with connect() as client:
        watch(client.tasks.get(task), as_json=as_json, timeout=timeout)


@task_command.command("cancel")
@click.argument("task")
@json_option
def task_cancel(task: str, as_json: bool) -> None:
    """Stop a task."""
    with connect() as client:
        found = client.tasks.get(task).cancel()
    print_json(found.info.to_json()) if as_json else click.echo(found.status)


def watch(task: Task, *, as_json: bool, timeout: float | None = None, quiet: bool = False) -> None:
    """Wait with a bar; a failed task is raised. `quiet`: who calls says how it ended."""
    label = (task.info.action or "task").replace("_", " ")
    with terminal.progress(label, unit_bytes=False, shown=not as_json) as report:

        def show(info: TaskInfo) -> None:
            if info.progress is not None:
                report(info.progress.current or 0, info.progress.total or None)

        task.wait(timeout, on_progress=show)
    if as_json:
        print_json(task.info.to_json())
    elif not quiet:
        click.echo(task.status)


def percent(progress: Progress | None) -> str:
    if progress is None:
        return ""
    told = progress.message or ""
    if progress.total:
        return f"{100 * (progress.current or 0) / progress.total:.0f} % {told}".strip()
    return told
