"""What has to be done now and then: number the events, forget what is old. The audit's chain is in `repositories.audit`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

import asyncpg

from repositories.audit import anchor_forgotten
from repositories.clusters import free
from repositories.database import Connection
from repositories.runs_done import end_lost_runs


async def current_time(connection: Connection) -> datetime:
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now


async def lead(connection: Connection, what: str) -> bool:
    """Whether this transaction does `what` now; nobody else does, until it ends. Spares work, and guards nothing."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_xact_lock(hashtext('moorage ' || $1))", what))


async def alone(connection: Connection, what: str) -> None:
    """Until the end of this transaction nobody else does `what`; who does it now is waited for."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('moorage ' || $1))", what)


# -- order -------------------------------------------------------------------------------------------------------------
async def stamp_events(connection: Connection, *, limit: int = 2000) -> int:
    """Give committed events their `seq`, without holes. Inside a transaction; returns how many were stamped.

    Ids come from a sequence and commit out of order, so readers follow `seq`. The head row is locked first, so that any
    number of sequencers is safe, and a reader that has seen `seq` n will never find a smaller one that is new.
    """
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM events WHERE seq IS NULL)"):
        return 0
    await connection.execute("SELECT FROM sequencer WHERE name = 'events' FOR UPDATE")
    stamped = await connection.fetchval(
        """
        WITH head AS (SELECT last_seq FROM sequencer WHERE name = 'events'),
        batch AS (
            SELECT id, at, row_number() OVER (ORDER BY id) AS number
            FROM (SELECT id, at FROM events WHERE seq IS NULL ORDER BY id LIMIT $1) unstamped
        ), stamped AS (
            UPDATE events e SET seq = head.last_seq + batch.number FROM batch, head
            WHERE e.id = batch.id AND e.at = batch.at RETURNING e.id
        )
        UPDATE sequencer SET last_seq = last_seq + (SELECT count(*) FROM stamped) WHERE name = 'events'
        RETURNING (SELECT count(*) FROM stamped)
        """,
        limit,
    )
    return int(stamped)


# -- retention ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what is kept; every table that grows is named here."""

    events_days: int = 30
    audit_days: int = 400
    sessions_days: int = 90  #: after their end, with their kernels, status history and executions
    executions_days: int = 30  #: after they finished
    calls_days: int = 30  #: of worker sessions, after they finished
    output_days: int = 7  #: of finished executions: the kept tail of their output
    idempotency_keys_days: int = 2
    tasks_days: int = 7  #: after they finished
    tokens_days: int = 7  #: users' access tokens and agents' join tokens, after they expired or were used
    sign_in_debts_days: int = 1  #: of wrong passwords, after they are paid for
    run_readers_days: int = 1  #: of runs whose output is fetched piece by piece, after the last piece
    used_signatures_days: int = 1  #: after they would be refused anyway
    managers_days: int = 1  #: processes without a sign of life
    samples_hours: int = 6  #: of what sessions use, as agents told it
    sample_minutes_days: int = 14  #: the same, summed by the minute
    service_tickets_days: int = 1  #: after they expired
    usage_days: int = 400  #: after it was given back
    deliveries_days: int = 7  #: of webhooks, after the receiver had them or they were given up
    device_checks_days: int = 90
    missing_devices_days: int = 30  #: since their hosts have not named them any more
    kernel_logs_days: int = 7  #: the kept end of a container's log
    partitions_ahead_days: int = 8


_HOURS_AHEAD: Final = 3
#: Rows deleted by one statement, so that no transaction holds many locks for long.
PURGE_BATCH: Final = 2000
#: table: (condition on $1, the name of its term in Retention). Deleted in batches by ctid.
_BY_AGE: Final = {
    "idempotency_keys": ("created_at < $1", "idempotency_keys_days"),
    "executions": ("finished_at < $1", "executions_days"),
    "calls": ("finished_at < $1", "calls_days"),
    "tasks": ("finished_at < $1", "tasks_days"),
    "tokens": ("expires_at < $1", "tokens_days"),
    "sign_in_debts": ("until_at < $1", "sign_in_debts_days"),
    "agent_tokens": ("expires_at < $1 OR used_at < $1", "tokens_days"),
    "run_readers": ("read_at < $1", "run_readers_days"),
    "used_signatures": ("good_until < $1", "used_signatures_days"),
    "managers": ("seen_at < $1", "managers_days"),
    "usage": ("until_at < $1", "usage_days"),
    "service_tickets": ("expires_at < $1", "service_tickets_days"),
    "device_checks": ("at < $1", "device_checks_days"),
    # what an administrator has taken out stays known, so that it stays out should it come back
    "devices": ("missing_since < $1 AND out_by = 'health'", "missing_devices_days"),
    "kernel_logs": ("kept_at < $1", "kernel_logs_days"),
    "webhook_deliveries": ("finished_at < $1", "deliveries_days"),
    "sessions": (
        # one whose host never said that it is gone still holds slots there
        """ended_at < $1 AND NOT EXISTS (
            SELECT FROM kernels k JOIN allocations a ON a.kernel_id = k.id WHERE k.session_id = sessions.id)""",
        "sessions_days",
    ),
}


async def purge(
    connection: Connection, *, now: datetime, keep: Retention, audit_key: bytes | None = None
) -> dict[str, int]:
    """Forget what is older than it has to be kept: rows by table (partitions, for events and audit). Commits as it goes,
    so not inside a transaction; to be called again when any count is as large as a batch. With the key, what is left of the
    audit's chain can be proved."""
    removed = {}
    for table, (condition, term) in _BY_AGE.items():
        removed[table] = await _delete(connection, table, condition, now - timedelta(days=getattr(keep, term)))
    removed["networks"] = await free(connection)
    removed["output"] = await _forget_output(connection, now - timedelta(days=keep.output_days))
    removed["lost_runs"] = await end_lost_runs(connection, ended_before=now - timedelta(hours=1), now=now)
    days_of = {"events": keep.events_days, "audit": keep.audit_days, "sample_minutes": keep.sample_minutes_days}
    for table, days in days_of.items():
        key = audit_key if table == "audit" else None
        removed[table] = await _drop_partitions(connection, table, now - timedelta(days=days), audit_key=key)
    removed["samples"] = await _drop_hours(connection, "samples", now - timedelta(hours=keep.samples_hours))
    return removed


async def ensure_partitions(connection: Connection, *, now: datetime, keep: Retention) -> int:
    """Make the partitions of the days to come. A day whose rows are in the default partition already stays there."""
    made = 0
    today = now.astimezone(UTC).date()
    for table in ("events", "audit", "sample_minutes"):
        for ahead in range(keep.partitions_ahead_days):
            day = today + timedelta(days=ahead)
            made += await _make(connection, "SELECT ensure_partitions($1, $2, 1)", table, day)
    for ahead in range(_HOURS_AHEAD):
        made += await _make(connection, "SELECT ensure_hours($1, $2, 1)", "samples", now + timedelta(hours=ahead))
    return made


async def _make(connection: Connection, statement: str, table: str, begin: object) -> int:
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '2s'")
            return int(await connection.fetchval(statement, table, begin))
    except (asyncpg.CheckViolationError, asyncpg.DuplicateTableError, asyncpg.LockNotAvailableError):
        return 0


async def _delete(connection: Connection, table: str, condition: str, before: datetime) -> int:
    status = await connection.execute(
        f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {condition} LIMIT {PURGE_BATCH}))",
        before,
    )
    return _rows(status)


async def _forget_output(connection: Connection, before: datetime) -> int:
    status = await connection.execute(
        f"""
        UPDATE executions SET tail = NULL WHERE run_id IN (
            SELECT run_id FROM executions WHERE finished_at < $1 AND tail IS NOT NULL LIMIT {PURGE_BATCH})
        """,
        before,
    )
    return _rows(status)


async def _drop_partitions(
    connection: Connection, table: str, before: datetime, *, audit_key: bytes | None = None
) -> int:
    day = datetime.combine(before.astimezone(UTC), time(), UTC)

    async def vouch() -> None:
        if audit_key is not None:
            await anchor_forgotten(connection, audit_key, before=before, day=day, now=before)

    return await _drop(connection, "drop_partitions($1, $2)", table, before, day.date(), first=vouch)


async def _drop_hours(connection: Connection, table: str, before: datetime) -> int:
    return await _drop(connection, "drop_hours($1, $2)", table, before, before)


async def _drop(
    connection: Connection,
    function: str,
    table: str,
    before: datetime,
    end: object,
    *,
    first: Callable[[], Awaitable[None]] | None = None,
) -> int:
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '2s'")
            if first is not None:
                await first()
            dropped = await connection.fetchval(f"SELECT {function}", table, end)
            dropped += await _empty_rest(connection, f"{table}_p_rest", before)
    except asyncpg.LockNotAvailableError:  # a long reader; the next time
        return 0
    return int(dropped)


async def _empty_rest(connection: Connection, table: str, before: datetime) -> int:
    """The default partition takes rows only while no other fits; it goes as a whole, once all of it is old."""
    newest = await connection.fetchval(f"SELECT max(at) FROM {table}")
    if newest is None or newest >= before:
        return 0
    await connection.execute(f"TRUNCATE {table}")
    return 1


def _rows(status: str) -> int:
    return int(status.rsplit(" ", 1)[-1])
