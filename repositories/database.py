"""The pool, transactions, and the border where PostgreSQL's errors become the domain's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import orjson

from domain.crash import reach
from domain.errors import (
    AlreadyExists,
    Conflict,
    DatabaseUnavailable,
    ImageNameTaken,
    InvalidRequest,
    MoorageError,
    NameTaken,
    PortConflict,
    QuotaExceeded,
    RequestInProgress,
    SshKeyTaken,
    StillInUse,
    StorageFull,
)
from domain.limits import facts, refusal

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"

_BY_CONSTRAINT: Final[dict[str, type[MoorageError]]] = {
    "sessions_live_name_key": NameTaken,
    "services_session_id_port_key": PortConflict,
    "quotas_limit_check": QuotaExceeded,
    "users_email_key": AlreadyExists,
    "ssh_keys_fingerprint_key": SshKeyTaken,
    "projects_domain_name_key": AlreadyExists,
    "images_pkey": AlreadyExists,
    "images_title_key": ImageNameTaken,
    "image_aliases_pkey": AlreadyExists,
    "keypairs_pkey": AlreadyExists,
}
_UNREACHABLE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    # of a request that was given up on the same connection just before: a cancellation can reach the next statement
    asyncpg.QueryCanceledError,
    ConnectionError,
    TimeoutError,
)


_MOST_IDLE: Final = 4


class Database:
    """Connections to one PostgreSQL. Open with `await Database.connect(dsn)`, close with `await close()`."""

    def __init__(self, pool: asyncpg.Pool[Any], dsn: str) -> None:
        self._pool = pool
        self.dsn = dsn
        #: taken from the pool and used again without going back in between, which costs as much as a short statement
        self._idle: list[asyncpg.pool.PoolConnectionProxy[Any]] = []
        self._waiting = 0  #: for a connection of the pool

    @classmethod
    async def connect(cls, dsn: str, *, min_size: int = 1, max_size: int = 16) -> Database:
        with translated(), _reachable():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                init=_prepare,
                reset=_no_reset,
                timeout=10,
                command_timeout=30,
                server_settings={"application_name": "moorage", "jit": "off"},
            )
        return cls(pool, dsn)

    async def close(self) -> None:
        if self._pool.is_closing():
            self._pool.terminate()
            return
        while self._idle:
            await self._pool.release(self._idle.pop())
        await self._pool.close()

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Connection]:
        """A connection on which every statement is its own transaction."""
        with translated():
            connection = await self._take()
            try:
                yield connection
            except BaseException:
                await self._pool.release(connection)
                raise
            await self._give(connection)

    @asynccontextmanager
    async def transaction(self, unit: str = "") -> AsyncIterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises. `unit` names its crash points."""
        async with self.reader() as connection:
            async with connection.transaction():
                yield connection
                if unit:
                    reach(unit, "commit.before")
            if unit:
                reach(unit, "commit.after")

    async def _take(self) -> asyncpg.pool.PoolConnectionProxy[Any]:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            await self._pool.release(connection)
        self._waiting += 1
        try:
            with _reachable():
                return await self._pool.acquire(timeout=10)
        finally:
            self._waiting -= 1

    async def _give(self, connection: asyncpg.pool.PoolConnectionProxy[Any]) -> None:
        """To the next user, by way of the pool when somebody waits there, or when it has broken."""
        if self._waiting or len(self._idle) >= _MOST_IDLE or connection.is_closed() or self._pool.is_closing():
            await self._pool.release(connection)
        else:
            self._idle.append(connection)


@contextmanager
def _reachable() -> Iterator[None]:
    """No socket file, no route, no such host: there are many ways not to reach a server that is just starting."""
    try:
        yield
    except OSError as error:
        raise DatabaseUnavailable from error


async def _prepare(connection: asyncpg.Connection[Any]) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", format="binary", encoder=_encode, decoder=_decode)


async def _no_reset(_connection: asyncpg.Connection[Any]) -> None:
    """Nothing here sets session state, so there is none to reset (a fifth of a short statement's time)."""


def _encode(value: Any) -> bytes:
    return b"\x01" + orjson.dumps(value, default=_default)


def _decode(data: bytes) -> Any:
    return orjson.loads(data[1:])


def _default(value: object) -> object:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class translated:
    """`with translated(): ...` raises PostgreSQL's refusals as domain errors, by constraint name and SQLSTATE."""

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None or isinstance(error, MoorageError):
            return
        if isinstance(error, asyncpg.CharacterNotInRepertoireError | asyncpg.UntranslatableCharacterError):
            raise InvalidRequest("Text must not contain NUL characters.") from error
        if isinstance(error, asyncpg.DiskFullError):
            raise StorageFull from error
        if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.DeadlockDetectedError):
            raise RequestInProgress from error
        if isinstance(error, asyncpg.IntegrityConstraintViolationError):
            name = error.constraint_name or ""
            if kind := _BY_CONSTRAINT.get(name):
                raise (_quota_exceeded(error.detail) if kind is QuotaExceeded else kind()) from error
            if isinstance(error, asyncpg.ForeignKeyViolationError):
                raise StillInUse(constraint=name) from error
            if isinstance(error, asyncpg.UniqueViolationError):
                raise Conflict(constraint=name) from error
        if isinstance(error, _UNREACHABLE):
            raise DatabaseUnavailable from error


def _quota_exceeded(detail: str | None) -> QuotaExceeded:
    full = orjson.loads(detail or "{}")
    return QuotaExceeded(refusal(full), **facts(full)) if full else QuotaExceeded()


def sqlalchemy_url(dsn: str) -> str:
    """asyncpg's DSN as SQLAlchemy wants it."""
    parts = urlsplit(dsn)
    query = urlencode(parse_qsl(parts.query))
    return urlunsplit(("postgresql+asyncpg", parts.netloc, parts.path, query, ""))


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """One connection, on which every statement is its own transaction. Raises DatabaseUnavailable."""
    database = await Database.connect(dsn, max_size=1)
    try:
        async with database.reader() as connection:
            yield connection
    finally:
        await database.close()
