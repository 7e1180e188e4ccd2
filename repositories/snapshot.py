"""What the scheduler looks at, read from the database: the queue, the hosts, what is held and what may be held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import (
    UNCONSTRAINED,
    Constraints,
    Group,
    Limit,
    PendingKernel,
    PendingSession,
    Scope,
    Share,
    Snapshot,
)
from domain.session import ClusterMode
from repositories.database import Connection
from repositories.fair_share import shares
from repositories.fleet import holdings_of, hosts_of

#: A session of the queue, and the row that it was made of: xmin is another one after every change.
Remembered = dict[UUID, tuple[int, PendingSession]]
#: So many are read again sooner than it is found out which of them have changed.
_FEW: Final = 100


async def snapshot(
    connection: Connection,
    *,
    now: datetime,
    holdings: bool = False,
    known: Remembered | None = None,
    also: Iterable[PendingSession] = (),
) -> Snapshot:
    """Everything that waits, and every host that takes sessions: enrolled, schedulable, and heard of within its lease.

    What others hold is read when it is asked for, or when a session keeps apart from others. `known` is what an
    earlier call has read of the queue: it is used as far as it is true, and brought up to date. `also`: as if these
    waited too.
    """
    pending = await _waiting(connection, now, {} if known is None else known)
    around = await connection.fetchrow(_AROUND, now)
    assert around is not None
    next_start_at = around["next_start_at"]
    if around["joining"]:
        pending += await _joining(connection)
    pending += also
    if not pending:
        return Snapshot(pending=(), hosts=(), next_start_at=next_start_at)
    groups = tuple(_group(one) for one in around["groups"])
    return Snapshot(
        pending=tuple(pending),
        hosts=await hosts_of(connection, now=now),
        groups=groups,
        shares=await _shares(connection, pending, groups, now),
        limits=await _limits(connection) if around["limited"] else (),
        holdings=await holdings_of(connection, now=now) if holdings or around["apart"] else (),
        next_start_at=next_start_at,
    )


#: What there is besides the queue and the hosts, in one answer: who waits for it has waited long enough.
_AROUND: Final = """
    SELECT (SELECT min(starts_at) FROM sessions WHERE status = 'PENDING' AND unmet = 0 AND starts_at > $1) AS next_start_at,
        EXISTS (SELECT FROM kernels WHERE joining AND want = 'NONE') AS joining,
        EXISTS (SELECT FROM sessions WHERE constraints ? 'apart_from' AND ended_at IS NULL) AS apart,
        EXISTS (SELECT FROM quotas WHERE queued > 0) AS limited,
        (SELECT jsonb_agg(to_jsonb(g) ORDER BY g.name) FROM resource_groups g) AS groups
"""


@asynccontextmanager
async def one_moment(connection: Connection) -> AsyncIterator[None]:
    """For a snapshot with holdings: what is free and who holds the rest are of one moment. Of two, something would seem to
    be held by nobody whose end is known, and what outlasts the one who waits longest would pass."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield


# -- the queue ---------------------------------------------------------------------------------------------------------
_QUEUED: Final = "s.status = 'PENDING' AND s.unmet = 0 AND (s.starts_at IS NULL OR s.starts_at <= $1)"
_OF_SESSION: Final = """
    s.id, s.xmin::text::bigint AS row_version, s.name, s.architecture, s.priority, s.created_at, s.cluster_mode, s.user_id,
    s.resource_group, s.constraints, s.labels, s.timeout_seconds, s.session_type, s.access_key, s.project_id, s.domain,
    k.id AS kernel_id, k.slots,
    ARRAY(SELECT m ->> 'store' FROM jsonb_array_elements(k.spec -> 'mounts') m) AS stores, i.agent_id AS image_on
"""


async def _waiting(connection: Connection, now: datetime, known: Remembered) -> list[PendingSession]:
    """What is not known yet, or not as it is, is read; the rest only counted. Snapshots' whereabouts are not remembered."""
    if len(known) < _FEW:
        known.clear()
        found = await _read(connection, now)
        known |= _lasting(found)
        return [session for _, session in found.values()]
    queued = await connection.fetch(
        f"SELECT s.id, s.xmin::text::bigint AS row_version FROM sessions s WHERE {_QUEUED}", now
    )
    versions = {row["id"]: row["row_version"] for row in queued}
    for gone in known.keys() - versions.keys():
        del known[gone]
    new = [one for one, version in versions.items() if one not in known or known[one][0] != version]
    found = await _read(connection, now, new) if new else {}
    known |= _lasting(found)
    found |= known
    return [found[session_id][1] for session_id in versions if session_id in found]


async def _read(connection: Connection, now: datetime, only: Sequence[UUID] | None = None) -> Remembered:
    among = "" if only is None else "AND s.id = ANY($2::uuid[])"
    rows = await connection.fetch(
        f"""
        SELECT {_OF_SESSION}, k.spec ->> 'cluster' IS NOT NULL AS clustered
        FROM sessions s JOIN kernels k ON k.session_id = s.id AND k.attempt = s.attempt
        LEFT JOIN images i ON i.name = k.spec ->> 'image'
        WHERE {_QUEUED} {among} ORDER BY s.id, k.id <> s.main_kernel_id, k.idx, k.id
        """,
        now,
        *([] if only is None else [only]),
    )
    found: Remembered = {}
    for session_id, kernels in groupby(rows, key=itemgetter("id")):
        gang = list(kernels)
        found[session_id] = gang[0]["row_version"], _session(gang)
    return found


def _lasting(found: Remembered) -> Remembered:
    return {one: entry for one, entry in found.items() if not entry[1].images_on}


async def as_pending(connection: Connection, session_id: SessionId) -> PendingSession | None:
    """A session as the scheduler would see it, whatever its status, and whether its time has come or not."""
    rows = await connection.fetch(
        f"""
        SELECT {_OF_SESSION}, k.spec ->> 'cluster' IS NOT NULL AS clustered
        FROM sessions s JOIN kernels k ON k.session_id = s.id AND k.attempt = s.attempt AND k.left_at IS NULL
        LEFT JOIN images i ON i.name = k.spec ->> 'image'
        WHERE s.id = $1 ORDER BY k.id <> s.main_kernel_id, k.idx, k.id
        """,
        session_id,
    )
    return _session(rows) if rows else None


async def _joining(connection: Connection) -> list[PendingSession]:
    """Kernels by which running sessions grow, each by itself, and the hosts that hold the others."""
    rows = await connection.fetch(
        f"""
        SELECT {_OF_SESSION}, true AS clustered, (
            SELECT array_agg(DISTINCT o.agent_id) FROM kernels o
            WHERE o.session_id = s.id AND o.attempt = s.attempt AND o.left_at IS NULL AND o.want = 'RUN') AS hosts
        FROM kernels k JOIN sessions s ON s.id = k.session_id AND s.attempt = k.attempt
        LEFT JOIN images i ON i.name = k.spec ->> 'image'
        WHERE k.joining AND k.want = 'NONE' AND k.left_at IS NULL AND s.status IN ('RUNNING', 'RUNNING_DEGRADED')
        ORDER BY s.id, k.idx, k.id
        """
    )
    return [_session([row], hosts=row["hosts"] or ()) for row in rows]


def _session(kernels: Sequence[Mapping[str, Any]], *, hosts: Iterable[str] | None = None) -> PendingSession:
    one = kernels[0]
    return PendingSession(
        id=SessionId(one["id"]),
        name=one["name"],
        user_id=one["user_id"],
        architecture=one["architecture"],
        priority=one["priority"],
        created_at=one["created_at"],
        resource_group=one["resource_group"],
        constraints=_constraints(one["constraints"]),
        labels=one["labels"],
        lifetime_seconds=one["timeout_seconds"],
        scopes=_scopes(one) if hosts is None else (),  # what joins has been charged when it was asked for
        cluster_mode=ClusterMode(one["cluster_mode"]),
        clustered=one["clustered"],
        joins=hosts is not None,
        hosts=frozenset(AgentId(host) for host in hosts or ()),
        stores=frozenset(one["stores"]),
        images_on=frozenset(AgentId(row["image_on"]) for row in kernels if row["image_on"]),
        kernels=tuple(PendingKernel(id=KernelId(row["kernel_id"]), slots=row["slots"]) for row in kernels),
    )


def _constraints(said: Mapping[str, Any]) -> Constraints:
    return Constraints(**said) if said else UNCONSTRAINED


def _scopes(session: Mapping[str, Any]) -> tuple[Scope, ...]:
    """Whose limits bind it: nobody's, when it is an administrator's system session."""
    if session["session_type"] == "system":
        return ()
    return (
        ("keypair", session["access_key"]),
        ("user", str(session["user_id"])),
        ("project", str(session["project_id"])),
        ("domain", session["domain"]),
    )


# -- policy ------------------------------------------------------------------------------------------------------------
def _group(row: Mapping[str, Any]) -> Group:
    return Group(
        name=row["name"],
        fair_share=row["ordering"] == "fair_share",
        spread=row["fit"] == "spread",
        backfill=row["backfill"],
        gpu_sharing=row["gpu_sharing"],
        half_life_seconds=row["half_life_seconds"],
        active=row["active"],
    )


async def _shares(
    connection: Connection, pending: Sequence[PendingSession], groups: Sequence[Group], now: datetime
) -> tuple[Share, ...]:
    """Of the groups in which they decide: several users wait there."""
    asking: dict[str, set[UUID]] = defaultdict(set)
    for session in pending:
        asking[session.resource_group].add(session.user_id)
    contested = [group.name for group in groups if group.fair_share and len(asking[group.name]) > 1]
    return await shares(connection, now, contested) if contested else ()


async def _limits(connection: Connection) -> tuple[Limit, ...]:
    """Those of which somebody who waits has asked for something."""
    rows = await connection.fetch(
        """
        SELECT q.scope, q.scope_id, q.name, q.max_amount, q.used,
            coalesce(u.email, p.name, q.scope_id) AS of
        FROM quotas q LEFT JOIN users u ON q.scope = 'user' AND u.id::text = q.scope_id
        LEFT JOIN projects p ON q.scope = 'project' AND p.id::text = q.scope_id
        WHERE q.queued > 0 AND q.name <> 'pending_sessions' ORDER BY q.scope, q.scope_id, q.name
        """
    )
    return tuple(
        Limit(
            scope=(row["scope"], row["scope_id"]),
            name=row["name"],
            max_amount=row["max_amount"],
            held=row["used"],
            of=row["of"],
        )
        for row in rows
    )
