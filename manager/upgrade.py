"""`moorage upgrade`: from the version that runs to the one that is installed, while sessions go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from manager.backup import Tell, back_up, database_of
from manager.up import Installation
from repositories import doctor, migrate, restoring
from repositories.database import connected

#: A migration that waits for a lock holds up everybody behind it, so it waits shortly, and comes again.
_LOCK_SECONDS: Final = 2.0
_TRIES: Final = 5
_PAUSE_SECONDS: Final = 2.0
_READY_SECONDS: Final = 120.0


class UpgradeFailed(Exception):
    """It was not upgraded, or not to the end; the message says what runs now and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an upgrade would do now."""

    installed: str
    schema: str | None
    newest_schema: str
    steps: list[tuple[str, str]]  #: migrations: number, what it does
    live_sessions: int
    executions: int
    managers: int  #: processes that use the database
    agents: list[dict[str, Any]]  #: {id, version, lost}
    runs_here: bool  #: `moorage up` runs in this data dir, and its processes are restarted
    free_bytes: int  #: where the backup goes

    @property
    def too_new(self) -> bool:
        """The database is of a version later than the installed one."""
        return self.schema is not None and not migrate.knows(self.schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded:
    plan: Plan
    backup: Path | None
    restarted: list[str]


def look(data_dir: Path) -> Plan:
    """Changes nothing. Blocking. Raises BackupFailed when there is no installation, or its database does not answer."""
    with database_of(data_dir) as (dsn, _):
        return asyncio.run(_look(data_dir, dsn))


async def _look(data_dir: Path, dsn: str) -> Plan:
    async with connected(dsn) as connection:
        found = await restoring.standing(connection)
        agents: list[dict[str, Any]] = []
        if found.revision is not None:
            agents = (await doctor.fleet(connection))["agents"]
    known = found.revision is None or migrate.knows(found.revision)
    return Plan(
        installed=version("moorage-server"),
        schema=found.revision,
        newest_schema=migrate.newest_revision(),
        steps=migrate.pending(found.revision) if known else [],
        live_sessions=found.live_sessions,
        executions=found.executions,
        managers=found.managers,
        agents=[{name: agent[name] for name in ("id", "version", "lost")} for agent in agents],
        runs_here=Installation.at(data_dir).runner_pid() is not None,
        free_bytes=shutil.disk_usage(data_dir).free,
    )


def upgrade(data_dir: Path, *, backup_to: Path | None, tell: Tell) -> Upgraded:
    """Backup, schema, manager, agent, each only when the one before went well. Blocking. Raises UpgradeFailed, BackupFailed."""
    plan = look(data_dir)
    if plan.too_new:
        raise UpgradeFailed(
            f"The database has schema {plan.schema}, of a later version than the installed one ({plan.installed}): "
            "install that version here too."
        )
    made = back_up(data_dir, backup_to, keys=True, tell=tell).path if backup_to is not None else None
    with database_of(data_dir) as (dsn, _):
        _migrate(dsn, plan, tell)
    restarted = []
    if plan.runs_here:
        for name in ("manager", "agent"):
            tell(f"restarting the {name}")
            _restart(Installation.at(data_dir), name)
            restarted.append(name)
    return Upgraded(plan=plan, backup=made, restarted=restarted)


def _migrate(dsn: str, plan: Plan, tell: Tell) -> None:
    """One transaction for all of it: when it fails, nothing was changed."""
    for number in range(1, _TRIES + 1):
        tell(f"bringing the schema to {plan.newest_schema}")
        try:
            migrate.upgrade(dsn, lock_seconds=_LOCK_SECONDS)
        except Exception as error:
            waits = migrate.waited_in_vain(error)
            if waits and number < _TRIES:
                tell("the schema is in use; trying again")
                time.sleep(_PAUSE_SECONDS)
                continue
            said = str(error.__cause__ or error).splitlines()[0]
            why = f"somebody holds a lock for long ({said})" if waits else said
            raise UpgradeFailed(
                f"The schema stays {plan.schema}, nothing was changed, and the version before runs on: {why}"
            ) from error
        else:
            return


def _restart(installation: Installation, name: str) -> None:
    """`moorage up` starts its processes anew when they end, from what is installed now. Containers go on meanwhile."""
    supervisor = installation.runner_pid()
    before = _child(supervisor, name) if supervisor is not None else None
    if before is not None:
        os.kill(before, signal.SIGTERM)
    until = time.monotonic() + _READY_SECONDS
    while True:
        supervisor = installation.runner_pid()
        now = _child(supervisor, name) if supervisor is not None else None
        if now not in (None, before) and installation.is_ready():
            return
        if time.monotonic() > until:
            raise UpgradeFailed(
                f"The {name} of the new version does not come up; sessions go on. {installation.log_file} says why; the "
                "version before works with this schema, too: install it again, and 'moorage upgrade' restarts it."
            )
        time.sleep(0.05)


def _child(parent: int, daemon: str) -> int | None:
    """The process of that name that `moorage up` has started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(state[1]) == parent and state[0] not in "ZX" and daemon in words:
            return int(process.name)
    return None
