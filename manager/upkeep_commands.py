"""The commands that look after an installation as a whole: `moorage backup`, `restore`, `upgrade`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manager.config import default_data_dir

if TYPE_CHECKING:
    from manager.upgrade import Plan

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The installation.  [default: $MOORAGE_DATA_DIR, or ~/.local/share/moorage]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")


class Progress:
    """One line that changes, for who watches; nothing, where nobody does."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = sys.stderr.isatty() and not quiet

    def __call__(self, what: str) -> None:
        if self._shown:
            click.echo(f"\r\x1b[K{what} ...", nl=False, err=True)

    def done(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


@click.command()
@click.argument("target", metavar="FILE|DIR", type=click.Path(path_type=Path))
@_data_dir
@click.option("--without-keys", is_flag=True, help="Leave out what makes the archive as precious as the installation.")
@_json
def backup(target: Path, data_dir: Path | None, without_keys: bool, as_json: bool) -> None:
    """Keep the whole installation in a new file: database, live sessions included, configuration and keys.

    Nothing is stopped for it. What is on hosts is not in it: containers, files of sessions, volumes, images.
    """
    from manager import backup as backing

    progress = Progress(quiet=as_json)
    try:
        made = backing.back_up(
            (data_dir or default_data_dir()).absolute(), target.absolute(), keys=not without_keys, tell=progress
        )
    except backing.BackupFailed as error:
        raise click.ClickException(str(error)) from None
    finally:
        progress.done()
    if as_json:
        click.echo(json.dumps({"path": str(made.path), "bytes": made.bytes, **asdict(made.manifest)}))
        return
    said = made.manifest
    click.echo(
        f"{made.path} ({made.bytes / 2**20:.1f} MiB): version {said.version}, schema {said.schema}, "
        f"live sessions {said.live_sessions}, executions under way {said.running_executions}."
    )
    if said.keys:
        click.echo(
            "It holds the installation's keys in clear: whoever reads it owns the installation. Only its owner can read it "
            "now (mode 0600); keep it so, or leave the keys out with --without-keys.",
            err=True,
        )


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@_data_dir
@click.option("--force", is_flag=True, help="In place of the installation that is there, which is kept beside it.")
@click.option("--database-url", help="Into this PostgreSQL.  [default: where the installation has it]")
@_json
def restore(source: Path, data_dir: Path | None, force: bool, database_url: str | None, as_json: bool) -> None:
    """Make an installation of a backup again. It must not run.

    Sessions that are still there go on; those that are not end with a reason; containers that the backup does not know are
    left alone, and named by 'moorage admin fsck'. Keys and passwords are as they were then.
    """
    from manager import restore as restoring
    from manager.archive import ArchiveRefused
    from manager.backup import BackupFailed

    folder = (data_dir or default_data_dir()).absolute()
    progress = Progress(quiet=as_json)
    try:
        done = restoring.restore(folder, source.absolute(), force=force, database_url=database_url, tell=progress)
    except (BackupFailed, ArchiveRefused) as error:
        raise click.ClickException(str(error)) from None
    finally:
        progress.done()
    if as_json:
        kept = {
            "kept_database": done.kept_database,
            "kept_files": str(done.kept_files) if done.kept_files is not None else None,
        }
        click.echo(json.dumps({"data_dir": str(folder), "epoch": done.epoch, **kept, **asdict(done.manifest)}))
        return
    click.echo(f"Restored what was there at {done.manifest.made_at}: live sessions {done.manifest.live_sessions}.")
    if done.kept_database is not None:
        click.echo(f"  the database from before  {done.kept_database} (until the next restore, or DROP DATABASE)")
    if done.kept_files is not None:
        click.echo(f"  files from before         {done.kept_files}")
    if not done.manifest.keys:
        click.echo("  keys                      not in the backup; those of this data dir are used")
    click.echo("Start it ('moorage up', or the managers), then look: moorage admin fsck")


@click.command()
@_data_dir
@click.option("--check", is_flag=True, help="Say what it would do, and change nothing.")
@click.option(
    "--backup",
    "backup_to",
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    help="Where the backup goes that is made first.  [default: backups/ in the data dir]",
)
@click.option("--no-backup", is_flag=True, help="Make none.")
@_json
def upgrade(data_dir: Path | None, check: bool, backup_to: Path | None, no_backup: bool, as_json: bool) -> None:
    """Go over to the version that is installed now, while sessions and what runs in them go on.

    In this order: a backup, the schema, the manager, the agent. When one fails, the version before runs on. Managers and
    agents on other machines are restarted there, managers first, one after the other.
    """
    from manager import upgrade as upgrading
    from manager.backup import BackupFailed

    folder = (data_dir or default_data_dir()).absolute()
    progress = Progress(quiet=as_json)
    try:
        if check:
            plan = upgrading.look(folder)
            click.echo(json.dumps(asdict(plan)) if as_json else _plan(plan))
            return
        if backup_to is None and not no_backup:
            backup_to = folder / "backups"
            backup_to.mkdir(mode=0o700, exist_ok=True)
        done = upgrading.upgrade(
            folder, backup_to=None if no_backup or backup_to is None else backup_to.absolute(), tell=progress
        )
    except (BackupFailed, upgrading.UpgradeFailed) as error:
        raise click.ClickException(str(error)) from None
    finally:
        progress.done()
    if as_json:
        backup = str(done.backup) if done.backup is not None else None
        click.echo(json.dumps({**asdict(done.plan), "backup": backup, "restarted": done.restarted}))
        return
    click.echo(f"This is version {done.plan.installed} now, with schema {done.plan.newest_schema}.")
    if done.backup is not None:
        click.echo(f"  backup     {done.backup}")
    click.echo(f"  restarted  {', '.join(done.restarted) or 'nothing: no installation runs here'}")
    elsewhere = [agent["id"] for agent in done.plan.agents if agent["version"] != done.plan.installed]
    if elsewhere and len(done.plan.agents) > 1:
        click.echo(f"  to do      agents of other versions: {', '.join(elsewhere)}")


def _plan(plan: Plan) -> str:
    steps = [f"{number} ({what.rstrip('.')})" for number, what in plan.steps]
    agents = [f"{agent['id']} {agent['version']}{' (lost)' if agent['lost'] else ''}" for agent in plan.agents]
    schema = f"{plan.schema} -> {plan.newest_schema}: {', '.join(steps)}" if steps else f"{plan.schema}, nothing to do"
    if plan.too_new:
        schema = f"{plan.schema}, which is newer than what is installed: install that version here too"
    rows = {
        "installed": plan.installed,
        "schema": schema,
        "sessions": f"{plan.live_sessions} live, {plan.executions} executions under way; they go on",
        "managers": f"{plan.managers} processes use the database",
        "hosts": ", ".join(agents) or "none",
        "backup": f"{plan.free_bytes / 2**30:.1f} GiB are free in the data dir",
        "restarts": "manager, then agent" if plan.runs_here else "nothing: no installation runs here",
    }
    return "\n".join(f"{name:<10} {said}" for name, said in rows.items())
