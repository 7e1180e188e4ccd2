"""What an agent must remember over its own death: one SQLite file, written before anything is done."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from agent.wire import Fact, KernelSpec, RunDone
from domain.crash import reach

T = TypeVar("T")

#: Starts of runs of so long are synced together.
_SYNC_SECONDS: Final = 0.01
#: A client repeats a request within minutes.
_REQUEST_SECONDS: Final = 86400.0
#: After so many transactions the write-ahead log is written back to the file, by the thread that nobody waits for.
_WRITE_BACK: Final = 500

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kernels (
    kernel_id TEXT PRIMARY KEY,
    attempt INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    want TEXT NOT NULL CHECK (want IN ('RUN', 'GONE')),
    grace_seconds REAL NOT NULL,
    spec TEXT,
    fact TEXT NOT NULL,       -- what was last observed, without boot_no and seq
    changed_at REAL NOT NULL, -- when that was
    told INTEGER NOT NULL     -- whether a manager has written it down
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    kernel_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    done TEXT,                -- how it ended
    told INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS services (
    kernel_id TEXT NOT NULL,
    name TEXT NOT NULL,
    row TEXT NOT NULL,
    PRIMARY KEY (kernel_id, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    key TEXT PRIMARY KEY,
    at REAL NOT NULL,
    answer TEXT               -- NULL: begun
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_at ON requests (at);
CREATE INDEX IF NOT EXISTS runs_of_kernels ON runs (kernel_id);
CREATE INDEX IF NOT EXISTS runs_to_tell ON runs (run_id) WHERE told = 0;
"""


@dataclass(slots=True, kw_only=True)
class StoredKernel:
    """The highest intent that was taken on, and what was last observed."""

    kernel_id: str
    attempt: int
    generation: int
    want: str
    grace_seconds: float = 10.0
    spec: KernelSpec | None = None
    observed: str
    exit: dict[str, Any] | None = None
    started_at: float | None = None
    notices: list[dict[str, Any]] = field(default_factory=list)
    container_id: str | None = None
    changed_at: float = 0.0
    told: bool = False

    def fact(self, boot_no: int, seq: int) -> Fact:
        return Fact(
            kernel_id=self.kernel_id,
            attempt=self.attempt,
            generation=self.generation,
            observed=self.observed,
            exit=self.exit,
            started_at=self.started_at,
            notices=list(self.notices),
            container_id=self.container_id,
            boot_no=boot_no,
            seq=seq,
        )


class Store:
    """All methods are coroutines. Intents are on disk when they return.

    Starts of runs are written when they return, which outlives this process, and synced some milliseconds later: the
    container that a run is for does not outlive this machine either. SQLite runs in one thread of its own; only starts
    of runs spare themselves the way there.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor, uid: str, boot_no: int
    ) -> None:
        self._connection = connection
        self._thread = thread
        self._lock = threading.Lock()  #: whoever uses the connection: one transaction at a time
        self._log = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        self._unwritten = 0
        self._syncing: asyncio.Task[None] | None = None
        self.uid = uid  #: of the data dir
        self.boot_no = boot_no

    @classmethod
    async def open(cls, path: Path) -> Store:
        """Counts as a start of the daemon: `boot_no` is one more than the last time."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="agent-store")

        def connect() -> tuple[sqlite3.Connection, str, int]:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            with _transaction(connection):
                connection.execute("INSERT OR IGNORE INTO meta VALUES ('uid', ?), ('boot_no', '0')", (uuid4().hex,))
                connection.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'boot_no'")
            reach("agent.store.boot.after")
            meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
            return connection, meta["uid"], int(meta["boot_no"])

        connection, uid, boot_no = await asyncio.get_running_loop().run_in_executor(thread, connect)
        return cls(path, connection, thread, uid, boot_no)

    async def close(self) -> None:
        if self._syncing is not None:
            await asyncio.wait({self._syncing})
        await self._call(self._connection.close)
        self._thread.shutdown()
        os.close(self._log)

    async def epoch(self) -> int:
        """Of the managers' database, as last heard; 0: never."""
        statement = "SELECT value FROM meta WHERE key = 'epoch'"
        row = await self._call(lambda: self._connection.execute(statement).fetchone())
        return int(row[0]) if row is not None else 0

    async def keep_epoch(self, epoch: int) -> None:
        statement = "INSERT OR REPLACE INTO meta VALUES ('epoch', ?)"
        await self._call(lambda: self._connection.execute(statement, (str(epoch),)))

    async def kernels(self) -> list[StoredKernel]:
        def select() -> list[StoredKernel]:
            rows = self._connection.execute(
                "SELECT kernel_id, attempt, generation, want, grace_seconds, spec, fact, changed_at, told FROM kernels"
            )
            return [_stored(row) for row in rows]

        return await self._call(select)

    async def save(self, kernel: StoredKernel) -> None:
        row = (
            kernel.kernel_id,
            kernel.attempt,
            kernel.generation,
            kernel.want,
            kernel.grace_seconds,
            json.dumps(kernel.spec.pack()) if kernel.spec else None,
            json.dumps({name: getattr(kernel, name) for name in _OBSERVATION}),
            kernel.changed_at,
            kernel.told,
        )
        # an older thought that comes late must not overwrite a newer intent
        await self._call(
            lambda: self._connection.execute(
                "INSERT INTO kernels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kernel_id) DO UPDATE SET"
                " attempt = excluded.attempt, generation = excluded.generation, want = excluded.want,"
                " grace_seconds = excluded.grace_seconds, spec = excluded.spec, fact = excluded.fact,"
                " changed_at = excluded.changed_at, told = excluded.told"
                " WHERE (excluded.attempt, excluded.generation) >= (kernels.attempt, kernels.generation)",
                row,
            ),
            "save",
        )

    async def forget(self, kernel_ids: Iterable[str]) -> None:
        rows = [(kernel_id,) for kernel_id in kernel_ids]

        def delete() -> None:
            with _transaction(self._connection):
                self._connection.executemany("DELETE FROM kernels WHERE kernel_id = ?", rows)
                self._connection.executemany("DELETE FROM runs WHERE kernel_id = ? AND told = 1", rows)

        await self._call(delete, "forget")

    async def begin_run(self, run_id: str, kernel_id: str, attempt: int) -> bool:
        """Exactly one caller gets True, and may deliver the code; False: it was delivered, or is being so."""

        def insert() -> bool:
            statement = "INSERT OR IGNORE INTO runs (run_id, kernel_id, attempt) VALUES (?, ?, ?)"
            reach("agent.store.begin_run.before")
            with self._lazily():
                begun = self._connection.execute(statement, (run_id, kernel_id, attempt)).rowcount == 1
            reach("agent.store.begin_run.after")
            return begun

        if self._lock.acquire(blocking=False):
            try:
                inserted = insert()
                self._unwritten += 1
            finally:
                self._lock.release()
        else:
            inserted = await self._call(insert)
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync(), name="sync runs")
        return inserted

    async def _sync(self) -> None:
        await asyncio.sleep(_SYNC_SECONDS)
        self._syncing = None
        await asyncio.get_running_loop().run_in_executor(self._thread, self._sync_log)

    def _sync_log(self) -> None:
        os.fdatasync(self._log)
        with self._lock:
            self._write_back()

    def _write_back(self) -> None:
        if self._unwritten >= _WRITE_BACK:
            self._unwritten = 0
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    async def refuse_run(self, run_id: str) -> None:
        """Its code was refused, so it never ran."""
        await self._call(
            lambda: self._connection.execute("DELETE FROM runs WHERE run_id = ? AND done IS NULL", (run_id,)),
            "refuse_run",
        )

    async def finish_runs(self, runs: Sequence[RunDone]) -> list[RunDone]:
        """Keep how runs ended, until it was told. Those whose end was not known."""
        statement = (
            "INSERT INTO runs (run_id, kernel_id, attempt, done) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (run_id) DO UPDATE SET done = excluded.done, told = 0"
            " WHERE runs.done IS NULL OR runs.attempt < excluded.attempt"
        )

        def write() -> list[RunDone]:
            with self._lazily(), _transaction(self._connection):
                return [run for run in runs if self._connection.execute(statement, _row(run)).rowcount == 1]

        return await self._call(write, "finish_runs")

    async def unfinished_runs(self) -> list[tuple[str, str, int]]:
        """(run id, kernel id, attempt)"""
        statement = "SELECT run_id, kernel_id, attempt FROM runs WHERE told = 0 AND done IS NULL"
        return await self._call(lambda: self._connection.execute(statement).fetchall())

    async def untold_runs(self) -> list[RunDone]:
        """Finished runs that no manager has acknowledged."""
        statement = "SELECT done FROM runs WHERE told = 0 AND done IS NOT NULL ORDER BY run_id"
        rows = await self._call(lambda: self._connection.execute(statement).fetchall())
        return [RunDone.unpack(json.loads(done)) for (done,) in rows]

    async def tell_runs_again(self) -> None:
        """All that have ended and are kept."""
        await self._call(lambda: self._connection.execute("UPDATE runs SET told = 0 WHERE done IS NOT NULL"))

    async def runs_told(self, run_ids: Iterable[str]) -> None:
        rows = [(run_id,) for run_id in run_ids]

        def update() -> None:
            with self._lazily(), _transaction(self._connection):
                self._connection.executemany("UPDATE runs SET told = 1 WHERE run_id = ? AND done IS NOT NULL", rows)

        await self._call(update, "runs_told")

    async def services(self) -> list[dict[str, Any]]:
        rows = await self._call(lambda: self._connection.execute("SELECT row FROM services").fetchall())
        return [json.loads(row) for (row,) in rows]

    async def save_service(self, row: dict[str, Any]) -> None:
        values = (row["kernel_id"], row["name"], json.dumps(row))
        await self._call(
            lambda: self._connection.execute("INSERT OR REPLACE INTO services VALUES (?, ?, ?)", values), "save_service"
        )

    async def forget_service(self, kernel_id: str, name: str) -> None:
        statement = "DELETE FROM services WHERE kernel_id = ? AND name = ?"
        await self._call(lambda: self._connection.execute(statement, (kernel_id, name)), "forget_service")

    async def begin_request(self, key: str, *, now: float) -> tuple[bool, dict[str, Any] | None]:
        """Whether it was begun before, and the answer that it has got."""

        def begin() -> tuple[bool, dict[str, Any] | None]:
            with self._lazily(), _transaction(self._connection):
                self._connection.execute("DELETE FROM requests WHERE at < ?", (now - _REQUEST_SECONDS,))
                found = self._connection.execute("SELECT answer FROM requests WHERE key = ?", (key,)).fetchone()
                if found is None:
                    self._connection.execute("INSERT INTO requests (key, at) VALUES (?, ?)", (key, now))
            return found is not None, json.loads(found[0]) if found and found[0] else None

        return await self._call(begin, "begin_request")

    async def finish_request(self, key: str, answer: dict[str, Any]) -> None:
        values = (json.dumps(answer), key)

        def finish() -> None:
            with self._lazily():
                self._connection.execute("UPDATE requests SET answer = ? WHERE key = ?", values)

        await self._call(finish, "finish_request")

    async def forget_request(self, key: str) -> None:
        """It was refused: nothing was done."""
        await self._call(lambda: self._connection.execute("DELETE FROM requests WHERE key = ?", (key,)))

    @contextmanager
    def _lazily(self) -> Iterator[None]:
        """Without waiting for the disk: how a run ended is in its ring as well, and found there again."""
        self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._connection.execute("PRAGMA synchronous = FULL")

    async def _call(self, function: Callable[[], T], what: str = "") -> T:
        def alone() -> T:
            with self._lock:
                if what:
                    reach("agent.store", what, "before")
                result = function()
                if what:
                    reach("agent.store", what, "after")
                self._unwritten += 1
                self._write_back()
                return result

        return await asyncio.get_running_loop().run_in_executor(self._thread, alone)


def _row(run: RunDone) -> tuple[str, str, int, str]:
    return run.run_id, run.kernel_id, run.attempt, json.dumps(run.pack())


_OBSERVATION: Final = ("observed", "exit", "started_at", "notices", "container_id")


def _stored(row: tuple[Any, ...]) -> StoredKernel:
    kernel_id, attempt, generation, want, grace_seconds, spec, fact, changed_at, told = row
    return StoredKernel(
        kernel_id=kernel_id,
        attempt=attempt,
        generation=generation,
        want=want,
        grace_seconds=grace_seconds,
        spec=KernelSpec.unpack(json.loads(spec)) if spec else None,
        changed_at=changed_at,
        told=bool(told),
        **json.loads(fact),
    )


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
