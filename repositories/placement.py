"""The one statement by which slots are taken. It believes nobody: what a plan was made of may be true no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from domain.ids import SessionId
from domain.placement import Placement
from domain.session import Event
from repositories.database import Connection
from repositories.snapshot import snapshot
from repositories.transit import Cause, moving, parameters

__all__ = ["SCHEDULER", "Placed", "place", "snapshot"]

SCHEDULER: Final = Cause(by="scheduler")
#: Statements for one bulk: each gives those another chance that only stood behind one which found no room.
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of the placements."""

    sessions: tuple[SessionId, ...] = ()
    #: not_pending; changed: the host, its devices, the group or the constraints are not what they were; no_room; quota
    conflicts: dict[SessionId, str] = field(default_factory=dict)


#: Of a host that takes sessions `a`, and a session `q`: the host is still what the session demands.
SUITS: Final = """
    a.schedulable AND NOT a.lost AND a.uid IS NOT NULL AND a.architecture = q.architecture
    AND a.resource_group = q.resource_group AND EXISTS (SELECT FROM resource_groups g WHERE g.name = a.resource_group AND g.active)
    AND a.id = coalesce(q.constraints ->> 'agent', a.id) AND a.labels @> coalesce(q.constraints -> 'labels', '{}')
    AND (NOT q.constraints ? 'apart_from' OR NOT EXISTS (
        SELECT FROM sessions o JOIN kernels k ON k.session_id = o.id AND k.agent_id = a.id AND k.want <> 'NONE'
            AND k.observed IS DISTINCT FROM 'GONE', jsonb_each(q.constraints -> 'apart_from') f
        WHERE o.user_id = q.user_id AND o.id <> q.id AND o.ended_at IS NULL
            AND o.labels @> jsonb_build_object(f.key, f.value)))
    AND (q.labels = '{}' OR NOT EXISTS (
        SELECT FROM sessions o JOIN kernels k ON k.session_id = o.id AND k.agent_id = a.id AND k.want <> 'NONE'
            AND k.observed IS DISTINCT FROM 'GONE', jsonb_each(o.constraints -> 'apart_from') f
        WHERE o.user_id = q.user_id AND o.id <> q.id AND o.ended_at IS NULL AND o.constraints ? 'apart_from'
            AND q.labels @> jsonb_build_object(f.key, f.value)))
"""
#: $1-$4 of `moving`; by kernel $5 session, $6 kernel, $7 agent, $8 devices, $9 rank, $10 the session's row version or NULL; by
#: slot $11 kernel, $12 name, $13 amount. The CTEs lock sessions, then hosts (against removal), then quotas, then resources,
#: each in order, and see the locked rows as they are at that moment. What is counted is taken: `used` follows by the triggers
#: on allocations and quota_uses, within the same locks. Who asks for more than there is stands in nobody's way; the others
#: are served by rank. Supply and demand meet in one sorted list: PostgreSQL knows no sizes here, and would join by trying all.
_PLACE: Final = f"""
    WITH wanted AS MATERIALIZED (
        SELECT * FROM unnest($5::uuid[], $6::uuid[], $7::text[], $8::jsonb[], $9::integer[], $10::bigint[])
            AS w(session_id, kernel_id, agent_id, devices, rank, row_version)
    ), slots AS MATERIALIZED (
        SELECT w.session_id, w.kernel_id, w.agent_id, w.rank, n.name, n.amount
        FROM unnest($11::uuid[], $12::text[], $13::bigint[]) AS n(kernel_id, name, amount) JOIN wanted w USING (kernel_id)
    ), queue AS MATERIALIZED (
        SELECT s.id, s.attempt, s.architecture, s.resource_group, s.constraints, s.labels, s.user_id, s.domain,
            s.name AS session_name, s.xmin::text::bigint AS row_version, g.gpu_sharing, g.profile, g.egress
        FROM sessions s JOIN resource_groups g ON g.name = s.resource_group
        WHERE s.id IN (SELECT session_id FROM wanted) AND s.status = 'PENDING' AND s.unmet = 0
            AND (s.starts_at IS NULL OR s.starts_at <= $1) ORDER BY s.id FOR UPDATE OF s
    ), hosts AS MATERIALIZED (
        SELECT a.id, a.architecture, a.resource_group, a.labels, a.schedulable, a.lost, a.uid FROM agents a
        WHERE a.id IN (SELECT w.agent_id FROM wanted w JOIN queue q ON q.id = w.session_id)
        ORDER BY a.id FOR KEY SHARE
    ), kernels_of AS (
        SELECT k.session_id, k.attempt, count(*) AS number FROM kernels k JOIN queue q ON q.id = k.session_id GROUP BY 1, 2
    ), legal AS MATERIALIZED (
        SELECT q.id, min(w.rank) AS rank, bool_or(k.slots ? 'gpu-mem') AS shares, bool_and(q.gpu_sharing) AS gpu_sharing
        FROM queue q JOIN wanted w ON w.session_id = q.id AND coalesce(w.row_version, q.row_version) = q.row_version
        JOIN kernels_of o ON o.session_id = q.id AND o.attempt = q.attempt
        LEFT JOIN hosts a ON a.id = w.agent_id AND {SUITS}
        LEFT JOIN kernels k ON k.id = w.kernel_id AND k.session_id = q.id AND k.attempt = q.attempt AND k.want = 'NONE'
        GROUP BY q.id HAVING bool_and(a.id IS NOT NULL AND k.id IS NOT NULL) AND count(*) = min(o.number)
    ), uses AS MATERIALIZED (
        SELECT u.session_id, l.rank, u.scope, u.scope_id, u.name, u.amount
        FROM quota_uses u JOIN legal l ON l.id = u.session_id
        WHERE NOT u.placed AND u.name <> 'pending_sessions' AND NOT quota_is_ceiling(u.name)
    ), limits AS MATERIALIZED (
        SELECT t.scope, t.scope_id, t.name, t.max_amount - t.used AS free FROM quotas t
        WHERE (t.scope, t.scope_id, t.name) IN (SELECT u.scope, u.scope_id, u.name FROM uses u)
        ORDER BY t.scope, t.scope_id, t.name FOR NO KEY UPDATE
    ), room AS MATERIALIZED (
        SELECT r.agent_id, r.name, r.reported, r.reported - r.used AS free, d.out_since IS NOT NULL AS is_out,
            coalesce(d.info -> 'whole_only' = 'true', false) AS whole_only, d.info ->> 'shared_only' IS NOT NULL AS shared_only
        FROM resources r LEFT JOIN devices d ON d.agent_id = r.agent_id AND d.name = r.name
        WHERE (r.agent_id, r.name) IN (SELECT x.agent_id, x.name FROM slots x JOIN legal l ON l.id = x.session_id)
            AND (SELECT count(*) FROM limits) >= 0  -- only for the order: quotas are locked first
        ORDER BY r.agent_id, r.name FOR UPDATE OF r
    ), claims AS MATERIALIZED (
        SELECT * FROM (
            SELECT session_id, conflict, pool, name, rank, amount, shares, gpu_sharing, max(free) OVER pool AS free,
                max(reported) OVER pool AS reported, bool_or(is_out) OVER pool AS is_out,
                bool_or(whole_only) OVER pool AS whole_only, bool_or(shared_only) OVER pool AS shared_only
            FROM (
                SELECT x.session_id, 'no_room' AS conflict, x.agent_id AS pool, x.name, l.rank, sum(x.amount) AS amount, l.shares,
                    l.gpu_sharing, NULL::bigint AS free, NULL::bigint AS reported, NULL::boolean AS is_out,
                    NULL::boolean AS whole_only, NULL::boolean AS shared_only
                FROM slots x JOIN legal l ON l.id = x.session_id GROUP BY 1, 3, 4, 5, 7, 8
                UNION ALL
                SELECT NULL, 'no_room', agent_id, name, NULL, NULL, NULL, NULL, free, reported, is_out, whole_only, shared_only
                FROM room
                UNION ALL
                SELECT session_id, 'quota', scope || ' ' || scope_id, name, rank, amount, NULL, NULL, NULL, NULL, NULL, NULL, NULL
                FROM uses
                UNION ALL
                SELECT NULL, 'quota', scope || ' ' || scope_id, name, NULL, NULL, NULL, NULL, free, NULL, NULL, NULL, NULL
                FROM limits
            ) each_one WINDOW pool AS (PARTITION BY conflict, pool, name)
        ) matched WHERE session_id IS NOT NULL
    ), improper AS MATERIALIZED (
        SELECT DISTINCT session_id FROM claims WHERE conflict = 'no_room' AND name LIKE 'gpu/%' AND (
            is_out OR CASE WHEN shares THEN whole_only OR NOT gpu_sharing ELSE shared_only OR amount <> reported END)
    ), hopeless AS MATERIALIZED (
        SELECT session_id, max(conflict) AS conflict FROM claims
        WHERE (free IS NULL OR amount > free) AND session_id NOT IN (SELECT session_id FROM improper) GROUP BY 1
    ), behind AS MATERIALIZED (
        SELECT session_id, max(conflict) AS conflict FROM (
            SELECT session_id, conflict, free,
                sum(amount) OVER (PARTITION BY conflict, pool, name ORDER BY rank ROWS UNBOUNDED PRECEDING) AS running
            FROM claims WHERE session_id NOT IN (SELECT session_id FROM improper UNION ALL SELECT session_id FROM hopeless)
        ) sums WHERE running > free GROUP BY 1
    ), asked AS MATERIALIZED (
        SELECT id, NULL::text AS reason, NULL::integer AS exit_code FROM legal
        WHERE id NOT IN (SELECT session_id FROM improper UNION ALL SELECT session_id FROM hopeless
            UNION ALL SELECT session_id FROM behind)
    ), {moving(Event.SCHEDULE)}
    , taken AS (
        INSERT INTO allocations (kernel_id, agent_id, name, amount)
        SELECT x.kernel_id, x.agent_id, x.name, x.amount FROM slots x JOIN moved m ON m.id = x.session_id
    ), charged AS (
        UPDATE quota_uses u SET placed = true FROM moved m WHERE u.session_id = m.id AND NOT u.placed
    ), chosen AS (
        UPDATE kernels k SET agent_id = w.agent_id, want = 'RUN', generation = k.generation + 1, next_try_at = $1, tries = 0,
            claimed_by = NULL, claimed_until = NULL,
            spec = k.spec || jsonb_build_object('devices', w.devices, 'profile', q.profile, 'egress', q.egress)
        FROM wanted w JOIN moved m ON m.id = w.session_id JOIN queue q ON q.id = m.id WHERE k.id = w.kernel_id
    ), told_of_slots AS (
        INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
        SELECT $1, 'resources.allocated', q.id, q.user_id, q.domain, $2,
            jsonb_build_object('name', q.session_name, 'agents', jsonb_agg(DISTINCT x.agent_id), 'slots', jsonb_object_agg(x.name, x.total))
        FROM (SELECT session_id, agent_id, name, sum(amount) OVER (PARTITION BY session_id, name) AS total FROM slots) x
        JOIN moved m ON m.id = x.session_id JOIN queue q ON q.id = m.id GROUP BY q.id, q.user_id, q.domain, q.session_name
    )
    SELECT w.session_id, min(w.rank) AS rank, bool_or(b.session_id IS NOT NULL) AS behind,
        CASE WHEN bool_or(m.id IS NOT NULL) THEN NULL WHEN bool_and(q.id IS NULL) THEN 'not_pending'
             ELSE coalesce(max(h.conflict), max(b.conflict), 'changed') END AS conflict
    FROM wanted w LEFT JOIN moved m ON m.id = w.session_id LEFT JOIN queue q ON q.id = w.session_id
    LEFT JOIN hopeless h ON h.session_id = w.session_id LEFT JOIN behind b ON b.session_id = w.session_id
    GROUP BY w.session_id ORDER BY 2
"""


async def place(
    connection: Connection,
    placements: Sequence[Placement],
    *,
    now: datetime,
    versions: Mapping[SessionId, int] | None = None,
) -> Placed:
    """Take the slots of every session that still waits and still fits, in this order; the others are told why not.

    One statement, safe beside any number of other schedulers: status, hosts, devices, room and quotas are checked again on
    locked rows. Where it was not enough for all, those that stood only behind others are tried again without them.
    `versions` are of the sessions' rows when they were looked at; one that is another one by now has changed.
    """
    sessions: list[SessionId] = []
    conflicts: dict[SessionId, str] = {}
    for _ in range(_ROUNDS):
        if not placements:
            break
        rows = await connection.fetch(_PLACE, *_arguments(placements, now, versions or {}))
        taken = {SessionId(row["session_id"]) for row in rows if row["conflict"] is None}
        sessions += [placement.session_id for placement in placements if placement.session_id in taken]
        conflicts |= {SessionId(row["session_id"]): row["conflict"] for row in rows if row["conflict"]}
        behind = {row["session_id"] for row in rows if row["behind"]} if taken else set()
        placements = [placement for placement in placements if placement.session_id in behind]
    placed = set(sessions)
    return Placed(sessions=tuple(sessions), conflicts={one: why for one, why in conflicts.items() if one not in placed})


def _arguments(placements: Sequence[Placement], now: datetime, versions: Mapping[SessionId, int]) -> tuple[object, ...]:
    kernels = [(p.session_id, k, rank) for rank, p in enumerate(placements) for k in p.kernels]
    slots = [(k.kernel_id, name, amount) for _, k, _ in kernels for name, amount in k.amounts.items() if amount > 0]
    return (
        *parameters(cause=SCHEDULER, now=now),
        [session_id for session_id, _, _ in kernels],
        [kernel.kernel_id for _, kernel, _ in kernels],
        [kernel.agent_id for _, kernel, _ in kernels],
        [dict(kernel.devices) for _, kernel, _ in kernels],
        [rank for _, _, rank in kernels],
        [versions.get(session_id) for session_id, _, _ in kernels],
        [kernel_id for kernel_id, _, _ in slots],
        [name for _, name, _ in slots],
        [amount for _, _, amount in slots],
    )
