"""An installation is kept in a file and made of it again, on a real PostgreSQL; hosts are in tests/faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from manager.archive import ArchiveRefused
from manager.backup import BackupFailed, back_up
from manager.config import ManagerConfig
from manager.restore import Restored, restore
from manager.upgrade import look
from repositories import migrate, restoring
from repositories.database import Database
from tests.database import Server
from tests.rest.conftest import RUNNING, populate


class Place:
    """A data dir, with a database that is not the embedded one."""

    def __init__(self, data_dir: Path, dsn: str, server: Server) -> None:
        self.data_dir, self.dsn, self._server = data_dir, dsn, server
        ManagerConfig(data_dir=data_dir, database_url=dsn).save()
        (data_dir / "pki").mkdir()
        (data_dir / "pki" / "ca.key").write_text("the key")

    def back_up(self, target: Path, *, keys: bool = True) -> Path:
        return back_up(self.data_dir, target, keys=keys, tell=lambda _: None).path

    def restore(self, source: Path, *, force: bool = True) -> Restored:
        return restore(self.data_dir, source, force=force, database_url=None, tell=lambda _: None)

    def fetch(self, query: str) -> list[dict[str, Any]]:
        async def ask() -> list[Any]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return list(await connection.fetch(query))
            finally:
                await connection.close()

        return [dict(row) for row in asyncio.run(ask())]


@pytest.fixture
def place(tmp_path: Path, fresh_database: Callable[..., str], postgres: Server) -> Place:
    dsn = fresh_database()

    async def fill() -> None:
        database = await Database.connect(dsn)
        await populate(database)
        async with database.transaction() as connection:
            await connection.execute("UPDATE sequencer SET last_seq = 41 WHERE name = 'events'")
            await connection.execute("UPDATE kernels SET seen_generation = 1, generation = 1 WHERE want = 'RUN'")
            await connection.execute(
                "INSERT INTO agent_tokens (secret_hash, expires_at) VALUES ('h', now() + interval '1 h')"
            )
            await connection.execute(
                "INSERT INTO managers (id, role, seen_at) VALUES (gen_random_uuid(), 'api', now() - interval '1 h')"
            )
        await database.close()

    asyncio.run(fill())
    return Place(tmp_path / "data", dsn, postgres)


@pytest.fixture
def kept(postgres: Server, place: Place) -> Any:
    """Databases from before are dropped at the end."""
    made: list[str] = []
    yield made
    for name in made:
        postgres.execute(postgres.dsn_of("postgres"), f'DROP DATABASE "{name}" WITH (FORCE)')


def test_what_has_changed_since_is_undone_and_numbers_go_on(place: Place, tmp_path: Path, kept: list[str]) -> None:
    archive = place.back_up(tmp_path)
    place.fetch(f"UPDATE sessions SET name = 'renamed' WHERE id = '{RUNNING}' RETURNING id")
    place.fetch("UPDATE sequencer SET epoch = 7 WHERE name = 'events' RETURNING epoch")
    (place.data_dir / "pki" / "ca.key").write_text("another key")
    done = place.restore(archive)
    assert done.kept_database is not None
    kept.append(done.kept_database)
    (session,) = place.fetch(f"SELECT name FROM sessions WHERE id = '{RUNNING}'")
    (sequencer,) = place.fetch("SELECT epoch, last_seq FROM sequencer WHERE name = 'events'")
    (kernel,) = place.fetch("SELECT seen_generation < generation AS asked FROM kernels WHERE want = 'RUN'")
    assert session == {"name": "train"}
    assert sequencer == {"epoch": done.epoch, "last_seq": 41}
    assert done.epoch > 7
    assert kernel == {"asked": True}
    assert place.fetch("SELECT FROM managers") == []
    assert place.fetch("SELECT FROM agent_tokens WHERE used_at IS NULL") == []
    assert [row["type"] for row in place.fetch("SELECT type FROM events")] == ["database.restored"]
    assert (place.data_dir / "pki" / "ca.key").read_text() == "the key"
    assert done.kept_files is not None
    assert (done.kept_files / "pki" / "ca.key").read_text() == "another key"


def test_a_second_restore_has_a_later_epoch(place: Place, tmp_path: Path, kept: list[str]) -> None:
    archive = place.back_up(tmp_path)
    first = place.restore(archive)
    second = place.restore(archive)
    assert second.kept_database is not None
    kept.append(second.kept_database)
    assert second.epoch > first.epoch
    assert place.fetch(f"SELECT FROM pg_database WHERE datname = '{first.kept_database}'") == []


def test_an_installation_is_only_replaced_by_force(place: Place, tmp_path: Path) -> None:
    archive = place.back_up(tmp_path)
    with pytest.raises(BackupFailed, match="--force"):
        place.restore(archive, force=False)


def test_a_database_that_managers_use_is_not_replaced(place: Place, tmp_path: Path) -> None:
    archive = place.back_up(tmp_path)
    place.fetch("UPDATE managers SET seen_at = now() RETURNING id")
    with pytest.raises(BackupFailed, match="stop them all"):
        place.restore(archive)
    assert len(place.fetch("SELECT FROM managers")) == 1


def test_a_restore_that_fails_changes_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Server
) -> None:
    archive = place.back_up(tmp_path)
    place.fetch(f"UPDATE sessions SET name = 'renamed' WHERE id = '{RUNNING}' RETURNING id")

    async def fail(*_words: object, **_named: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(restoring, "follow_on", fail)
    with pytest.raises(ZeroDivisionError):
        place.restore(archive)
    assert place.fetch(f"SELECT name FROM sessions WHERE id = '{RUNNING}'") == [{"name": "renamed"}]
    left = postgres.fetch(
        postgres.dsn_of("postgres"), "SELECT datname FROM pg_database WHERE datname LIKE '%_restored'"
    )
    assert left == []


def test_without_keys_none_are_in_it(place: Place, tmp_path: Path, kept: list[str]) -> None:
    archive = place.back_up(tmp_path / "small.tar", keys=False)
    assert b"the key" not in archive.read_bytes()
    (place.data_dir / "pki" / "ca.key").write_text("another key")
    done = place.restore(archive)
    assert done.kept_database is not None
    kept.append(done.kept_database)
    assert (place.data_dir / "pki" / "ca.key").read_text() == "another key"


def test_a_backup_of_a_later_version_is_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = place.back_up(tmp_path)
    monkeypatch.setattr("manager.restore.knows", lambda _revision: False)
    with pytest.raises(ArchiveRefused, match="newer than this one"):
        place.restore(archive)


def test_an_empty_database_is_no_installation(
    tmp_path: Path, fresh_database: Callable[..., str], postgres: Server
) -> None:
    empty = Place(tmp_path / "data", fresh_database(empty=True), postgres)
    with pytest.raises(BackupFailed, match="nothing to back up"):
        empty.back_up(tmp_path)


def test_a_folder_without_an_installation_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(BackupFailed, match="No installation"):
        back_up(tmp_path, tmp_path, keys=True, tell=lambda _: None)


def test_nothing_is_written_over(place: Place, tmp_path: Path) -> None:
    (tmp_path / "there.tar").write_text("precious")
    with pytest.raises(BackupFailed, match="never replaces"):
        place.back_up(tmp_path / "there.tar")
    with pytest.raises(BackupFailed, match="no folder"):
        place.back_up(tmp_path / "no" / "where.tar")
    assert (tmp_path / "there.tar").read_text() == "precious"


# -- upgrades ------------------------------------------------------------------------------------------------------------
def test_a_plan_names_what_is_to_do(place: Place) -> None:
    migrate.downgrade(place.dsn, "0016")
    plan = look(place.data_dir)
    assert (plan.schema, plan.steps[0][0], plan.steps[-1][0]) == (
        "0016",
        "0017",
        plan.newest_schema,
    )
    assert all(what for _, what in plan.steps)
    migrate.upgrade(place.dsn)
    assert look(place.data_dir).steps == []


def test_a_migration_that_waits_in_vain_leaves_the_schema_as_it_was(place: Place) -> None:
    migrate.downgrade(place.dsn, "0016")

    async def hold() -> None:
        connection = await asyncpg.connect(place.dsn)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE sessions, agents, kernels IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(Exception, match="lock timeout") as caught:
                    await asyncio.to_thread(migrate.upgrade, place.dsn, lock_seconds=0.1)
                assert migrate.waited_in_vain(caught.value)
        finally:
            await connection.close()

    asyncio.run(hold())
    assert asyncio.run(migrate.revision_of(place.dsn)) == "0016"
    migrate.upgrade(place.dsn)


def test_a_manager_goes_on_with_the_schema_of_the_next_version(place: Place) -> None:
    place.fetch("UPDATE alembic_version SET version_num = '9999' RETURNING version_num")
    migrate.start(place.dsn)
    assert json.dumps(asyncio.run(migrate.revision_of(place.dsn))) == '"9999"'
    assert look(place.data_dir).too_new
