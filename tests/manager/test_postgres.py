"""The embedded PostgreSQL: started, adopted, recovered, stopped; its content is somebody else's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from manager.postgres import EmbeddedPostgres, PostgresFailed

Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[EmbeddedPostgres] = []

    def new(name: str = "pg") -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(tmp_path / name, durable=False))
        return made[-1]

    yield new
    for server in made:
        server.stop()


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_starting_twice_adopts_the_running_server(make: Make) -> None:
    first, second = make(), make()
    assert first.start() == second.start()
    assert first.pid == second.pid
    assert await ask(first.dsn, "SELECT lower('ÄÖ')") == "äö"


async def test_a_killed_server_comes_back_with_what_was_committed(make: Make) -> None:
    server = make()
    server.start()
    await ask(server.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.start()
    assert await ask(server.dsn, "SELECT n FROM kept") == 7


def test_four_starts_at_once_leave_one_server(make: Make) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda server: server.start(), [make() for _ in range(4)]))) == 1


def test_a_pid_file_whose_number_belongs_to_another_process_is_stale(make: Make) -> None:
    server = make()
    server.start()
    server.stop()
    (server.data_dir / "data/postmaster.pid").write_text(f"{os.getpid()}\n{server.data_dir}/data\n")
    assert server.pid is None
    server.start()
    assert server.pid not in (None, os.getpid())


def test_stopping_twice_changes_nothing_and_leaves_no_socket(make: Make) -> None:
    server = make()
    server.start()
    server.stop()
    server.stop()
    assert server.pid is None
    assert not list(server.data_dir.rglob(".s.PGSQL*"))


def test_a_long_path_gets_a_short_socket(make: Make) -> None:
    server = make("x" * 120)
    server.start()
    assert not list(server.data_dir.rglob(".s.PGSQL*"))


def test_a_cluster_of_another_version_is_refused_untouched(make: Make) -> None:
    server = make()
    server.start()
    server.stop()
    (server.data_dir / "data/PG_VERSION").write_text("12\n")
    with pytest.raises(PostgresFailed, match="written by PostgreSQL 12"):
        server.start()


def test_a_half_made_cluster_is_made_anew(make: Make) -> None:
    server = make()
    (server.data_dir / "data.new").mkdir(parents=True)
    (server.data_dir / "data").mkdir()
    server.start()
    assert server.pid is not None


def test_a_bad_setting_is_told_in_one_sentence(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, durable=False, settings={"shared_buffers": "much"})
    with pytest.raises(PostgresFailed, match="shared_buffers"):
        server.start()


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for number in range(9):
        (tmp_path / f"log/postgresql-2026010{number}-000000.log").touch()
    EmbeddedPostgres(tmp_path).prune_logs()
    assert sorted(log.name[18] for log in (tmp_path / "log").iterdir()) == list("45678")
