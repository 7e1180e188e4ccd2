"""`moorage backup`: the database as it is at one moment, live sessions included, with what the manager cannot do without."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from domain.errors import MoorageError
from manager import archive, pg_tools
from manager.archive import DUMP, FILES, Manifest
from manager.config import FILE_NAME, ConfigError, ManagerConfig
from manager.postgres import EmbeddedPostgres, PostgresFailed
from manager.up import Installation
from repositories import restoring
from repositories.database import connected
from repositories.restoring import Standing
from repositories.upkeep import current_time

#: Below the data dir. With these, whoever has the archive owns the installation.
_KEYS: Final = ("admin.json", "pki/*", "agent/pki/*")
_SETTINGS: Final = (FILE_NAME, "agent/agent.toml")

Tell = Callable[[str], None]


class BackupFailed(Exception):
    """No backup was made, or none restored; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    path: Path
    bytes: int
    manifest: Manifest


def back_up(data_dir: Path, target: Path, *, keys: bool, tell: Tell) -> Made:
    """Into `target`, a new file; or a new file in it, when it is a folder. Blocking. Raises BackupFailed."""
    with database_of(data_dir) as (dsn, embedded):
        found, now = asyncio.run(_look(dsn))
        if found.is_empty:
            raise BackupFailed("There is nothing to back up: the database is empty, or not one of Moorage's.")
        path = target / f"moorage-{now:%Y%m%dT%H%M%SZ}.tar" if target.is_dir() else target
        if path.exists() or path.is_symlink():
            raise BackupFailed(f"{path} is there already, and a backup never replaces anything: choose another name.")
        if not path.parent.is_dir():
            raise BackupFailed(f"There is no folder {path.parent}: make it, or choose another one.")
        return _write(data_dir, dsn, path, found, now=now, embedded=embedded, keys=keys, tell=tell)


def _write(
    data_dir: Path, dsn: str, path: Path, found: Standing, *, now: datetime, embedded: bool, keys: bool, tell: Tell
) -> Made:
    patterns = (*_SETTINGS, *_KEYS) if keys else _SETTINGS
    try:
        # beside the target, which has the room
        with tempfile.TemporaryDirectory(prefix=".moorage-backup-", dir=path.parent) as folder:
            dump = Path(folder) / DUMP
            pg_tools.dump(dsn, dump, server=found.server, progress=lambda table: tell(f"dumping {table}"))
            files = {
                f"{FILES}{one.relative_to(data_dir)}": one
                for pattern in patterns
                for one in sorted(data_dir.glob(pattern))
                if one.is_file()
            }
            tell("writing the archive")
            manifest: dict[str, Any] = {
                "version": version("moorage-server"),
                "schema": found.revision,
                "made_at": now.isoformat(),
                "postgres": found.server,
                "embedded": embedded,
                "epoch": found.epoch,
                "live_sessions": found.live_sessions,
                "running_executions": found.executions,
                "keys": keys,
            }
            made = archive.write(path, manifest, {DUMP: dump, **files})
    except pg_tools.ToolFailed as error:
        raise BackupFailed(str(error)) from None
    except FileExistsError:
        raise BackupFailed(f"{path} has come up meanwhile, and a backup never replaces anything.") from None
    except OSError as error:
        raise BackupFailed(f"The backup cannot be written to {path.parent}: {error.strerror or error}.") from None
    return Made(path=path, bytes=path.stat().st_size, manifest=made)


async def _look(dsn: str) -> tuple[Standing, datetime]:
    async with connected(dsn) as connection:
        return await restoring.standing(connection), await current_time(connection)


@contextmanager
def database_of(data_dir: Path, database_url: str | None = None) -> Iterator[tuple[str, bool]]:
    """The DSN of an installation's database, which answers; and whether it is the embedded one, started for so long if need be."""
    try:
        config = ManagerConfig.load(data_dir, database_url=database_url)
    except ConfigError as error:
        raise BackupFailed(str(error)) from None
    postgres = EmbeddedPostgres(data_dir / "postgres")
    embedded = database_url is None and (data_dir / "postgres").exists()
    if not embedded and not config.database_url:
        raise BackupFailed(f"No installation is in {data_dir}: name its folder with --data-dir, or set DATABASE_URL.")
    ran = embedded and postgres.pid is not None
    try:
        yield postgres.start() if embedded else config.database_url, embedded
    except (PostgresFailed, MoorageError) as error:
        raise BackupFailed(f"The database does not answer: {error}") from None
    finally:
        if embedded and not ran and Installation.at(data_dir).runner_pid() is None:
            postgres.stop()
