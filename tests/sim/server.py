"""A PostgreSQL for the simulation: emptied before each seed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manager.postgres import EmbeddedPostgres
from repositories import migrate
from tests.database import Reset, Server
from tests.sim.store import Backend

#: After so many seeds what was deleted is thrown away.
_VACUUM_EVERY = 50


class Bench:
    """`fresh()` gives the store's connection, on a database as the migrations left it."""

    def __init__(self, server: Server, dsn: str) -> None:
        self._server, self._dsn = server, dsn
        self._reset = Reset(server, dsn)
        self._used = 0
        self.backend = Backend(dsn)

    def fresh(self) -> Backend:
        self.backend.forget()
        self._reset()
        self._used += 1
        if self._used % _VACUUM_EVERY == 0:
            self._server.execute(self._dsn, "VACUUM")
        return self.backend


@contextmanager
def dsn() -> Iterator[str]:
    """Of the server of DATABASE_URL, else of one of its own."""
    if given := os.environ.get("DATABASE_URL"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="moorage-sim-"))
    embedded = EmbeddedPostgres(folder / "pg", durable=False)
    try:
        yield embedded.start()
    finally:
        embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bench() -> Iterator[Bench]:
    with dsn() as given:
        server = Server(given)
        made = server.create(f"{server.name}_sim", "template1")
        migrate.upgrade(made)
        server.release(made)
        stage = Bench(server, made)
        try:
            yield stage
        finally:
            stage.backend.close()
            server.close()
