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
        self._reset()
        self._used += 1
        if self._used % _VACUUM_EVERY == 0:
            self._server.execute(self._dsn, "VACUUM")
        return self.backend


@contextmanager
def bench() -> Iterator[Bench]:
    """On the server of DATABASE_URL, else on one of its own."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-sim-"))
    given = os.environ.get("DATABASE_URL")
    embedded = None if given else EmbeddedPostgres(folder / "pg", durable=False)
    try:
        server = Server(given or (embedded.start() if embedded else ""))
        dsn = server.create(f"{server.name}_sim", "template1")
        migrate.upgrade(dsn)
        server.release(dsn)
        made = Bench(server, dsn)
        try:
            yield made
        finally:
            made.backend.close()
            server.close()
    finally:
        if embedded is not None:
            embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)
