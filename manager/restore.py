"""`moorage restore`: an archive becomes the installation again. What is there now is kept beside it until all is well."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from domain.errors import MoorageError
from manager import archive, pg_tools
from manager.archive import DUMP, FILES, ArchiveRefused, Manifest
from manager.backup import BackupFailed, Tell, database_of
from manager.config import FILE_NAME, ManagerConfig
from manager.up import Installation
from repositories import restoring
from repositories.database import Database, connected
from repositories.migrate import knows
from repositories.restoring import NotAllowed, Standing
from repositories.upkeep import current_time

#: Of what is kept, to the microsecond: two restores may follow each other within a second.
_STAMP: Final = "%Y%m%d%H%M%S%f"
#: Of a host, not of the database: an agent that is there knows better than any archive.
_AGENTS: Final = "agent/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    manifest: Manifest
    epoch: int
    kept_database: str | None  #: the name under which the database from before still is there
    kept_files: Path | None


def restore(data_dir: Path, source: Path, *, force: bool, database_url: str | None, tell: Tell) -> Restored:
    """Blocking. All or nothing: until the last step, what is there is not touched. Raises BackupFailed, ArchiveRefused."""
    if Installation.at(data_dir).runner_pid() is not None:
        raise BackupFailed(f"The installation in {data_dir} runs: stop it with 'moorage down', then restore.")
    if not force and (data_dir / FILE_NAME).exists():
        raise BackupFailed(f"There is an installation in {data_dir} already; --force puts the backup in its place.")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=data_dir) as folder:
        tell("checking the archive")
        manifest = archive.unpack(source, Path(folder))
        if not knows(manifest.schema):
            raise ArchiveRefused(
                f"The backup was made by version {manifest.version} (schema {manifest.schema}), which is newer than this "
                "one: install that version here first."
            )
        if manifest.embedded and database_url is None:
            (data_dir / "postgres").mkdir(mode=0o700, exist_ok=True)  # from here on it has an embedded one
        elif database_url is None and not (data_dir / FILE_NAME).exists():
            database_url = ManagerConfig.load(Path(folder) / FILES).database_url or None  # where it was
        with database_of(data_dir, database_url) as (dsn, embedded):
            try:
                return asyncio.run(_restore(data_dir, Path(folder), manifest, dsn, embedded, force=force, tell=tell))
            except NotAllowed as error:
                raise BackupFailed(
                    f"A restore makes a database beside the one in use, which this user may not ({error}): "
                    "ALTER ROLE ... CREATEDB, or name another user with --database-url."
                ) from None
            except (pg_tools.ToolFailed, MoorageError) as error:
                raise BackupFailed(f"Nothing was changed: {error}") from None


async def _restore(
    data_dir: Path, unpacked: Path, manifest: Manifest, dsn: str, embedded: bool, *, force: bool, tell: Tell
) -> Restored:
    found, now = await _present(dsn)
    if found.managers:
        raise BackupFailed("Managers use this database: stop them all, wait half a minute, then restore.")
    if not found.is_empty and not force:
        raise BackupFailed(
            f"The database holds an installation ({found.live_sessions} live sessions); --force puts the backup in its place."
        )
    name = restoring.name_of(dsn)
    made = f"{name}_restored"
    earlier, kept = await restoring.kept_ones(dsn), restoring.kept_name(dsn, f"{now:{_STAMP}}")
    await restoring.make(dsn, made)
    try:
        into = restoring.beside(dsn, made)
        await asyncio.to_thread(
            pg_tools.restore,
            into,
            unpacked / DUMP,
            server=found.server,
            progress=lambda table: tell(f"restoring {table}"),
        )
        tell("numbering on")
        epoch = await _follow_on(into, manifest, found.epoch, now)
        await restoring.put_in_place(dsn, made, kept_as=kept)
    except BaseException:
        await restoring.drop(dsn, made)
        raise
    files = _place_files(data_dir, unpacked, now, external="" if embedded else dsn)
    # one from before is enough, and an empty one is nothing to keep
    for old in [*earlier, kept] if found.is_empty else earlier:
        await restoring.drop(dsn, old)
    return Restored(manifest=manifest, epoch=epoch, kept_database=None if found.is_empty else kept, kept_files=files)


async def _present(dsn: str) -> tuple[Standing, datetime]:
    """A database that cannot be read any more is not in the way of restoring one."""
    async with connected(dsn) as connection:
        return await restoring.standing(connection), await current_time(connection)


async def _follow_on(dsn: str, manifest: Manifest, epoch: int, now: datetime) -> int:
    database = await Database.connect(dsn, max_size=1)
    try:
        async with database.transaction() as connection:
            return await restoring.follow_on(
                connection,
                after_epoch=max(epoch, manifest.epoch),
                now=now,
                made_at=datetime.fromisoformat(manifest.made_at),
            )
    finally:
        await database.close()


def _place_files(data_dir: Path, unpacked: Path, now: datetime, *, external: str) -> Path | None:
    """The archive's files into the data dir; those that were there into a folder beside them."""
    there = unpacked / FILES
    kept = data_dir / f"before-{now:{_STAMP}}"
    for file in sorted(there.rglob("*")):
        name = str(file.relative_to(there))
        target = data_dir / name
        if not file.is_file() or (name.startswith(_AGENTS) and target.exists()):
            continue
        if target.exists():
            if target.read_bytes() == file.read_bytes():
                continue
            (kept / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy2(target, kept / name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.replace(target)
    if external and (data_dir / FILE_NAME).exists():
        replace(ManagerConfig.load(data_dir), database_url=external).save()
    return kept if kept.exists() else None
