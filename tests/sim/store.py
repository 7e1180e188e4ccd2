"""One PostgreSQL connection as a serial store: production's SQL, one transaction at a time, in virtual time.

There is no twin of the repositories that could lie: the statements, triggers and constraints are the real ones. What cannot
happen here is two transactions at once; for that there are the races on real connections, and tests/machine.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from repositories.database import Connection, Database, _prepare, translated
from tests.sim.virtual import PROCESS, Process, for_ever


class Backend:
    """The real connection, driven by hand: a call returns when PostgreSQL has answered, and takes no virtual time.

    An event loop inside another one costs three times as much as a short statement. asyncpg needs none between sending and
    receiving: its coroutine waits for one future, which its protocol fulfils once it is given what the socket has received.
    """

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.SelectorEventLoop()
        settings = {"jit": "off", "application_name": "moorage sim", "timezone": "UTC"}
        self._connection: asyncpg.Connection[Any] = self._loop.run_until_complete(
            asyncpg.connect(  # a lifetime would be a timer in the context of a world, which would outlive that
                dsn, server_settings=settings, statement_cache_size=2000, max_cached_statement_lifetime=0
            )
        )
        self._loop.run_until_complete(_prepare(self._connection))
        transport: Any = self._connection._transport  # type: ignore[attr-defined]  # it is on no other shelf
        self._socket = transport._sock
        self._protocol: Any = self._connection._protocol  # type: ignore[attr-defined]
        self._ready = select.poll()
        self._ready.register(self._socket, select.POLLIN)

    def call(self, method: str, *args: Any) -> Any:
        work = getattr(self._connection, method)(*args)
        try:
            while True:
                waiting = work.send(None)
                while not waiting.done():
                    self._receive()
        except StopIteration as done:
            return done.value

    def _receive(self) -> None:
        if not self._ready.poll(60_000):
            raise TimeoutError("PostgreSQL does not answer")
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("PostgreSQL has closed the connection")
        self._protocol.data_received(data)

    def forget(self) -> None:
        """Between two worlds: the loop never runs, and would keep what each statement of the last one has left on it."""
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()

    def close(self) -> None:
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()


#: (process or None, label): what may go wrong here; it may kill the process, or raise.
Point = Callable[[str], Awaitable[None]]


class SerialStore:
    """The database of one world. `pause` lets virtual time pass, `point` is where faults come in, `committed` is told."""

    def __init__(
        self,
        backend: Backend,
        *,
        pause: Callable[[], Awaitable[None]],
        point: Point,
        committed: Callable[[Sequence[str]], None],
    ) -> None:
        self.backend = backend
        self.pause = pause
        self.point = point
        self.committed = committed
        self._owner: SerialConnection | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self, connection: SerialConnection) -> None:
        while self._owner is not None:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._owner = connection
        if (process := PROCESS.get()) is not None and process not in connection.watched:
            connection.watched.add(process)
            process.on_death.append(lambda: self._abandoned(connection))

    def release(self, connection: SerialConnection) -> None:
        if self._owner is connection:
            self._owner = None
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def _abandoned(self, connection: SerialConnection) -> None:
        """Its client has died: PostgreSQL rolls back, and others go on."""
        if self._owner is connection:
            if connection.open:
                self.backend.call("execute", "ROLLBACK")
            connection.open = False
            self.release(connection)


class SerialDatabase(Database):
    """What repositories are given instead of a pool."""

    def __init__(self, store: SerialStore) -> None:
        super().__init__(None, "postgresql:///sim")  # type: ignore[arg-type]  # there is no pool
        self._store = store

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Connection]:
        with translated():
            yield SerialConnection(self._store)  # type: ignore[misc]  # as much of one as repositories use

    @asynccontextmanager
    async def transaction(self, _what: str = "") -> AsyncIterator[Connection]:
        async with self.reader() as connection, connection.transaction():
            yield connection

    async def close(self) -> None:
        """There is nothing to close."""


class SerialConnection:
    def __init__(self, store: SerialStore) -> None:
        self._store = store
        self.open = False
        self.depth = 0
        self.wrote: list[str] = []
        self.watched: set[Process] = set()

    def is_in_transaction(self) -> bool:
        return self.depth > 0

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[None]:
        if self.depth:
            async with self._savepoint():
                yield
            return
        await self._begin(options)
        try:
            yield
        except BaseException:
            self._rollback()
            raise
        await self._commit()

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[None]:
        self.depth += 1
        name = f"s{self.depth}"
        self._store.backend.call("execute", f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            self._store.backend.call("execute", f"ROLLBACK TO {name}")
            raise
        finally:
            self.depth -= 1

    async def _begin(self, options: dict[str, Any]) -> None:
        await self._store.point("database.begin")
        await self._store.acquire(self)
        said = " ISOLATION LEVEL REPEATABLE READ" if options.get("isolation") == "repeatable_read" else ""
        self._store.backend.call("execute", f"BEGIN{said}")
        self.open, self.depth, self.wrote = True, 1, []

    def _rollback(self) -> None:
        if self.open:
            self._store.backend.call("execute", "ROLLBACK")
        self._end()

    def _end(self) -> None:
        self.open, self.depth = False, 0
        self._store.release(self)

    async def _commit(self) -> None:
        wrote, self.wrote = self.wrote, []
        try:
            if wrote:
                await self._store.point("database.commit.before")
            self._store.backend.call("execute", "COMMIT")
        except BaseException:
            self._rollback()
            raise
        self._end()
        if wrote:
            self._store.committed(wrote)
            await self._store.point("database.commit.after")

    # -- statements --------------------------------------------------------------------------------------------------
    async def fetch(self, sql: str, *args: Any, **_options: Any) -> list[Any]:
        rows = await self._run("fetch", sql, args)
        return rows if len(rows) < 2 or _is_ordered(sql) else sorted(rows, key=_by_content)

    async def fetchrow(self, sql: str, *args: Any, **_options: Any) -> Any:
        return await self._run("fetchrow", sql, args)

    async def fetchval(self, sql: str, *args: Any, **_options: Any) -> Any:
        return await self._run("fetchval", sql, args)

    async def execute(self, sql: str, *args: Any, **_options: Any) -> Any:
        return await self._run("execute", sql, args)

    async def executemany(self, sql: str, many: Sequence[Any], **_options: Any) -> Any:
        return await self._run("executemany", sql, (list(many),))

    async def _run(self, method: str, sql: str, args: tuple[Any, ...]) -> Any:
        await self._store.pause()
        if self.open:
            answer = self._call(method, sql, args)
            if _wrote(sql, answer):
                self.wrote.append(sql)
            return answer
        if self.depth:
            await for_ever()  # its transaction was taken from it: its process is dead
        await self._store.point("database.statement.before")
        await self._store.acquire(self)
        try:
            answer = self._call(method, sql, args)
        finally:
            self._store.release(self)
        if _wrote(sql, answer):
            self._store.committed([sql])
            await self._store.point("database.statement.after")
        return answer

    def _call(self, method: str, sql: str, args: tuple[Any, ...]) -> Any:
        return self._store.backend.call(method, sql, *args)


_KINDS: dict[str, tuple[bool, bool]] = {}


def _kind(sql: str) -> tuple[bool, bool]:
    """(only reads, its rows come in an order)"""
    if (known := _KINDS.get(sql)) is None:
        upper = sql.upper()
        writes = any(word in upper for word in ("INSERT ", "UPDATE ", "DELETE ", "SET_CONFIG"))
        locks = upper.replace("FOR UPDATE", "").replace("FOR NO KEY UPDATE", "")
        if writes and not any(word in locks for word in ("INSERT ", "UPDATE ", "DELETE ")):
            writes = False
        known = _KINDS[sql] = (
            not writes,
            upper.rfind("ORDER BY") > max(upper.rfind("RETURNING"), upper.rfind("UNION")),
        )
    return known


def _wrote(sql: str, answer: Any) -> bool:
    """What returns the rows that it wrote, and returns none, wrote none."""
    reads, _ = _kind(sql)
    return not (reads or (answer == [] and sql.lstrip().startswith("UPDATE")))


def _is_ordered(sql: str) -> bool:
    return _kind(sql)[1]


def _by_content(row: Any) -> str:
    """Where PostgreSQL promises no order, a fixed one: how rows lie on disk must not decide how a seed goes."""
    return repr(tuple(row.values()))
