"""The queue and the free slots as they are now, and the one statement by which slots are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import Host, PendingKernel, PendingSession, Placement, Snapshot
from domain.session import ClusterMode, Event
from repositories.database import Connection
from repositories.transit import Cause, moving, parameters

SCHEDULER: Final = Cause(by="scheduler")


async def snapshot(connection: Connection, *, now: datetime) -> Snapshot:
    """Everything that waits, and every host that takes sessions: enrolled, schedulable, and heard of within its lease."""
    kernels = await connection.fetch(
        """
        SELECT s.id, s.architecture, s.priority, s.created_at, s.cluster_mode, k.id AS kernel_id, k.slots,
            k.spec ->> 'cluster' IS NOT NULL AS clustered, false AS joins, NULL::text[] AS hosts,
            ARRAY(SELECT m ->> 'store' FROM jsonb_array_elements(k.spec -> 'mounts') m) AS stores, i.agent_id AS image_on
        FROM sessions s JOIN kernels k ON k.session_id = s.id AND k.attempt = s.attempt
        LEFT JOIN images i ON i.name = k.spec ->> 'image'
        WHERE s.status = 'PENDING' AND s.unmet = 0 AND (s.starts_at IS NULL OR s.starts_at <= $1)
        ORDER BY s.priority DESC, s.created_at, s.id, k.id <> s.main_kernel_id, k.idx, k.id
        """,
        now,
    )
    next_start_at = await connection.fetchval(
        "SELECT min(starts_at) FROM sessions WHERE status = 'PENDING' AND unmet = 0 AND starts_at > $1", now
    )
    kernels += await connection.fetch(_JOINING)
    if not kernels:
        return Snapshot(pending=(), hosts=(), next_start_at=next_start_at)
    resources = await connection.fetch(
        """
        SELECT a.id, a.architecture, a.info ->> 'address' AS address, a.info ->> 'volumes' AS store,
            r.name, r.reported - r.used AS free, r.reported
        FROM agents a JOIN resources r ON r.agent_id = a.id
        WHERE a.schedulable AND NOT a.lost AND a.uid IS NOT NULL AND a.lease_until > $1 ORDER BY a.id, r.name
        """,
        now,
    )
    pending = [(rows[0], rows) for rows in (list(rows) for _, rows in groupby(kernels, key=_gang))]
    hosts = [(rows[0], rows) for rows in (list(rows) for _, rows in groupby(resources, key=itemgetter("id")))]
    return Snapshot(
        pending=tuple(
            PendingSession(
                id=SessionId(one["id"]),
                architecture=one["architecture"],
                priority=one["priority"],
                created_at=one["created_at"],
                cluster_mode=ClusterMode(one["cluster_mode"]),
                clustered=one["clustered"],
                joins=one["joins"],
                hosts=frozenset(AgentId(host) for host in one["hosts"] or ()),
                stores=frozenset(one["stores"]),
                images_on=frozenset(AgentId(row["image_on"]) for row in rows if row["image_on"]),
                kernels=tuple(PendingKernel(id=KernelId(row["kernel_id"]), slots=row["slots"]) for row in rows),
            )
            for one, rows in pending
        ),
        hosts=tuple(
            Host(
                id=AgentId(one["id"]),
                architecture=one["architecture"],
                free={row["name"]: row["free"] for row in rows},
                capacity={row["name"]: row["reported"] for row in rows},
                address=one["address"],
                store=one["store"],
            )
            for one, rows in hosts
        ),
        next_start_at=next_start_at,
    )


def _gang(kernel: Mapping[str, Any]) -> tuple[UUID, UUID | None]:
    """What is placed together: all kernels of a session that waits, but each one that joins by itself."""
    return kernel["id"], kernel["kernel_id"] if kernel["joins"] else None


#: Kernels by which running sessions grow, and the hosts that hold the others.
_JOINING: Final = """
    SELECT s.id, s.architecture, s.priority, s.created_at, s.cluster_mode, k.id AS kernel_id, k.slots, true AS clustered,
        true AS joins, (
            SELECT array_agg(DISTINCT o.agent_id) FROM kernels o
            WHERE o.session_id = s.id AND o.attempt = s.attempt AND o.left_at IS NULL AND o.want = 'RUN') AS hosts,
        ARRAY(SELECT m ->> 'store' FROM jsonb_array_elements(k.spec -> 'mounts') m) AS stores, i.agent_id AS image_on
    FROM kernels k JOIN sessions s ON s.id = k.session_id AND s.attempt = k.attempt
    LEFT JOIN images i ON i.name = k.spec ->> 'image'
    WHERE k.joining AND k.want = 'NONE' AND k.left_at IS NULL AND s.status IN ('RUNNING', 'RUNNING_DEGRADED')
    ORDER BY s.priority DESC, s.created_at, s.id, k.idx, k.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of the placements."""

    sessions: tuple[SessionId, ...]
    conflicts: dict[SessionId, str]  #: not_pending, changed, no_room


#: $1-$4 of `moving`; by kernel $5 session, $6 kernel, $7 agent, $8 devices, $9 rank; by slot $10 kernel, $11 name, $12 amount.
#: The CTEs lock sessions, then hosts (against removal), then resources, each in order, and see the locked rows as they
#: are at that moment. What is counted is taken: `used` follows by the trigger on allocations, within the same locks.
_PLACE: Final = f"""
    WITH wanted AS MATERIALIZED (
        SELECT * FROM unnest($5::uuid[], $6::uuid[], $7::text[], $8::jsonb[], $9::integer[])
            AS w(session_id, kernel_id, agent_id, devices, rank)
    ), slots AS MATERIALIZED (
        SELECT w.session_id, w.kernel_id, w.agent_id, w.rank, n.name, n.amount
        FROM unnest($10::uuid[], $11::text[], $12::bigint[]) AS n(kernel_id, name, amount) JOIN wanted w USING (kernel_id)
    ), queue AS MATERIALIZED (
        SELECT s.id, s.attempt, s.architecture, s.user_id, s.domain, s.name AS session_name FROM sessions s
        WHERE s.id IN (SELECT session_id FROM wanted) AND s.status = 'PENDING' AND s.unmet = 0
            AND (s.starts_at IS NULL OR s.starts_at <= $1) ORDER BY s.id FOR UPDATE
    ), hosts AS MATERIALIZED (
        SELECT a.id, a.architecture FROM agents a
        WHERE a.id IN (SELECT w.agent_id FROM wanted w JOIN queue q ON q.id = w.session_id)
            AND a.schedulable AND NOT a.lost AND a.uid IS NOT NULL
        ORDER BY a.id FOR KEY SHARE
    ), kernels_of AS (
        SELECT k.session_id, k.attempt, count(*) AS number FROM kernels k JOIN queue q ON q.id = k.session_id GROUP BY 1, 2
    ), legal AS MATERIALIZED (
        SELECT q.id FROM queue q JOIN wanted w ON w.session_id = q.id
        JOIN kernels_of o ON o.session_id = q.id AND o.attempt = q.attempt
        LEFT JOIN hosts h ON h.id = w.agent_id AND h.architecture = q.architecture
        LEFT JOIN kernels k ON k.id = w.kernel_id AND k.session_id = q.id AND k.attempt = q.attempt AND k.want = 'NONE'
        GROUP BY q.id HAVING bool_and(h.id IS NOT NULL AND k.id IS NOT NULL) AND count(*) = min(o.number)
    ), room AS MATERIALIZED (
        SELECT r.agent_id, r.name, r.reported - r.used AS free FROM resources r
        WHERE (r.agent_id, r.name) IN (SELECT x.agent_id, x.name FROM slots x JOIN legal l ON l.id = x.session_id)
        ORDER BY r.agent_id, r.name FOR UPDATE
    ), own AS MATERIALIZED (
        SELECT x.session_id, x.agent_id, x.name, min(x.rank) AS rank, sum(x.amount) AS amount
        FROM slots x JOIN legal l ON l.id = x.session_id GROUP BY 1, 2, 3
    ), hopeless AS MATERIALIZED (
        SELECT DISTINCT o.session_id FROM own o LEFT JOIN room r USING (agent_id, name)
        WHERE r.free IS NULL OR o.amount > r.free
    ), too_much AS MATERIALIZED (
        SELECT session_id FROM hopeless UNION
        SELECT session_id FROM (
            SELECT o.session_id, r.free,
                sum(o.amount) OVER (PARTITION BY agent_id, name ORDER BY o.rank ROWS UNBOUNDED PRECEDING) AS running
            FROM own o JOIN room r USING (agent_id, name) WHERE o.session_id NOT IN (SELECT session_id FROM hopeless)
        ) sums WHERE running > free
    ), asked AS MATERIALIZED (
        SELECT id, NULL::text AS reason, NULL::integer AS exit_code FROM legal
        WHERE id NOT IN (SELECT session_id FROM too_much)
    ), {moving(Event.SCHEDULE)}
    , taken AS (
        INSERT INTO allocations (kernel_id, agent_id, name, amount)
        SELECT x.kernel_id, x.agent_id, x.name, x.amount FROM slots x JOIN moved m ON m.id = x.session_id
    ), chosen AS (
        UPDATE kernels k SET agent_id = w.agent_id, want = 'RUN', generation = k.generation + 1, next_try_at = $1, tries = 0,
            claimed_by = NULL, claimed_until = NULL, spec = k.spec || jsonb_build_object('devices', w.devices)
        FROM wanted w JOIN moved m ON m.id = w.session_id WHERE k.id = w.kernel_id
    ), told_of_slots AS (
        INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
        SELECT $1, 'resources.allocated', q.id, q.user_id, q.domain, $2,
            jsonb_build_object('name', q.session_name, 'agents', jsonb_agg(DISTINCT x.agent_id), 'slots', jsonb_object_agg(x.name, x.total))
        FROM (SELECT session_id, agent_id, name, sum(amount) OVER (PARTITION BY session_id, name) AS total FROM slots) x
        JOIN moved m ON m.id = x.session_id JOIN queue q ON q.id = m.id GROUP BY q.id, q.user_id, q.domain, q.session_name
    )
    SELECT DISTINCT w.session_id,
        CASE WHEN m.id IS NOT NULL THEN NULL WHEN q.id IS NULL THEN 'not_pending'
             WHEN l.id IS NULL THEN 'changed' ELSE 'no_room' END AS conflict, min(w.rank) AS rank
    FROM wanted w LEFT JOIN moved m ON m.id = w.session_id LEFT JOIN queue q ON q.id = w.session_id
    LEFT JOIN legal l ON l.id = w.session_id GROUP BY 1, 2 ORDER BY rank
"""


async def place(connection: Connection, placements: Sequence[Placement], *, now: datetime) -> Placed:
    """Take the slots of every session that still waits and still fits, in this order; the others are told why not.

    One statement, safe beside any number of other schedulers: status, hosts and room are checked again on locked rows.
    """
    if not placements:
        return Placed(sessions=(), conflicts={})
    kernels = [(p.session_id, k, rank) for rank, p in enumerate(placements) for k in p.kernels]
    slots = [(k.kernel_id, name, amount) for _, k, _ in kernels for name, amount in k.amounts.items() if amount > 0]
    rows = await connection.fetch(
        _PLACE,
        *parameters(cause=SCHEDULER, now=now),
        [session_id for session_id, _, _ in kernels],
        [kernel.kernel_id for _, kernel, _ in kernels],
        [kernel.agent_id for _, kernel, _ in kernels],
        [dict(kernel.devices) for _, kernel, _ in kernels],
        [rank for _, _, rank in kernels],
        [kernel_id for kernel_id, _, _ in slots],
        [name for _, name, _ in slots],
        [amount for _, _, amount in slots],
    )
    return Placed(
        sessions=tuple(SessionId(row["session_id"]) for row in rows if row["conflict"] is None),
        conflicts={SessionId(row["session_id"]): row["conflict"] for row in rows if row["conflict"]},
    )
