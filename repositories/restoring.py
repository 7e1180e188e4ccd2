"""A database that is restored: into a place beside the present one, made to follow on what has happened since, put in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg

from repositories.database import Connection, connected
from repositories.transit import Cause, emit

#: Agents get so long to be heard of, before they are called lost, and what was under way to go on.
_GRACE: Final = timedelta(minutes=5)
_RENAME_TRIES: Final = 50


class NotAllowed(Exception):
    """The database's user may not make databases here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What there is in a database, for a manifest and for the question whether it may be replaced."""

    server: int  #: PostgreSQL's major version
    revision: str | None  #: None: not one of ours, or empty
    epoch: int
    live_sessions: int
    executions: int  #: that run
    managers: int  #: processes seen within half a minute

    @property
    def is_empty(self) -> bool:
        return self.revision is None


async def standing(connection: Connection) -> Standing:
    server = int(await connection.fetchval("SELECT current_setting('server_version_num')::int / 10000"))
    if not await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
        return Standing(server=server, revision=None, epoch=0, live_sessions=0, executions=0, managers=0)
    row = await connection.fetchrow(
        """
        SELECT (SELECT version_num FROM alembic_version) AS revision,
            (SELECT epoch FROM sequencer WHERE name = 'events') AS epoch,
            (SELECT count(*) FROM sessions WHERE ended_at IS NULL) AS live_sessions,
            (SELECT count(*) FROM executions WHERE status = 'running') AS executions,
            (SELECT count(*) FROM managers WHERE seen_at > clock_timestamp() - interval '30 s') AS managers
        """
    )
    assert row is not None
    return Standing(server=server, **dict(row))


# -- databases beside each other ---------------------------------------------------------------------------------------
def name_of(dsn: str) -> str:
    return unquote(urlsplit(dsn).path.lstrip("/")) or "postgres"


def beside(dsn: str, database: str) -> str:
    """The same server and user, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{quote(database)}"))


async def make(dsn: str, database: str) -> None:
    """An empty one; what a restore that was cut short has left by that name goes. Raises NotAllowed."""
    async with connected(beside(dsn, "postgres")) as connection:
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
            await connection.execute(f'CREATE DATABASE "{database}" TEMPLATE template0')
        except asyncpg.InsufficientPrivilegeError as error:
            raise NotAllowed(str(error)) from error


async def drop(dsn: str, database: str) -> None:
    async with connected(beside(dsn, "postgres")) as connection:
        await connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


async def kept_ones(dsn: str) -> list[str]:
    """Databases that earlier restores have kept, oldest first."""
    async with connected(beside(dsn, "postgres")) as connection:
        rows = await connection.fetch(
            "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", kept_name(dsn, "")
        )
    return sorted(row["datname"] for row in rows)


def kept_name(dsn: str, when: str) -> str:
    return f"{name_of(dsn)}_before_{when}"


async def put_in_place(dsn: str, restored: str, *, kept_as: str) -> None:
    """The restored database gets the name of the DSN's, which is kept under another one: both or neither."""
    name = name_of(dsn)
    async with connected(beside(dsn, "postgres")) as connection:
        for tries in range(_RENAME_TRIES, 0, -1):
            await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY($1) AND pid <> pg_backend_pid()",
                [name, restored],
            )
            try:
                await _rename(connection, {name: kept_as, restored: name})
                return
            except asyncpg.ObjectInUseError:  # somebody who watches it was back at once
                if tries == 1:
                    raise
                await asyncio.sleep(0.1)


async def _rename(connection: Connection, names: Mapping[str, str]) -> None:
    async with connection.transaction():
        for old, new in names.items():
            if await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", old):
                await connection.execute(f'ALTER DATABASE "{old}" RENAME TO "{new}"')


# -- what must not go backwards ------------------------------------------------------------------------------------------
async def follow_on(connection: Connection, *, after_epoch: int, now: datetime, made_at: datetime) -> int:
    """Make an older state fit to go on from. Inside a transaction; returns the new epoch.

    Readers of events and agents tell by the epoch that this is another course of things: readers begin anew, agents tell
    everything again. Agents may have seen later intents than are known here: every kernel is asked about, and intents are
    numbered on from what is answered. What is good for one time only may have been used since, and is void.
    """
    epoch: int = await connection.fetchval(
        """
        UPDATE sequencer SET epoch = greatest(epoch + 1, $1::bigint + 1, extract(epoch FROM $2::timestamptz)::bigint)
        WHERE name = 'events' RETURNING epoch
        """,
        after_epoch,
        now,
    )
    for statement in _FORGET:
        await connection.execute(statement)
    await connection.execute("UPDATE agents SET lease_until = $1 WHERE lease_until IS NOT NULL", now + _GRACE)
    await connection.execute("UPDATE agent_tokens SET used_at = $1 WHERE used_at IS NULL", now)
    await connection.execute(
        """
        UPDATE sessions SET deadline_at = greatest(deadline_at, $1)
        WHERE deadline_at IS NOT NULL AND ended_at IS NULL
        """,
        now + _GRACE,
    )
    await connection.execute(
        """
        UPDATE kernels SET seen_generation = least(seen_generation, generation - 1), tries = 0, next_try_at = $1,
            claimed_by = NULL, claimed_until = NULL
        WHERE agent_id IS NOT NULL AND want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'
        """,
        now,
    )
    data = {"epoch": epoch, "made_at": made_at.isoformat()}
    await emit(connection, "database.restored", now=now, cause=Cause(by="moorage restore"), data=data)
    return epoch


_FORGET: Final = ("DELETE FROM managers", "DELETE FROM service_tickets")
