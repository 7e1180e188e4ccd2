"""Placing one by one: clusters with their network, one more kernel of a session that runs, and who keeps apart from others."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from ipaddress import IPv4Network
from typing import Final

from domain.ids import SessionId
from domain.placement import KernelPlacement, Placement
from repositories.clusters import reserve, weave
from repositories.database import Connection
from repositories.placement import SCHEDULER, SUITS, place
from repositories.transit import emit

#: Of a row of the host's resources `r` of which a kernel `k` gets `x.amount`: it is no device, or one that may be handed out
#: so: it is not taken out; it goes whole to who asked for whole ones; it is shared where the group `g` shares devices.
_HANDED_OUT: Final = """
    (x.name NOT LIKE 'gpu/%' OR NOT EXISTS (
        SELECT FROM devices d WHERE d.agent_id = r.agent_id AND d.name = r.name AND (d.out_since IS NOT NULL
            OR CASE WHEN k.slots ? 'gpu-mem' THEN d.info -> 'whole_only' = 'true' ELSE d.info ->> 'shared_only' IS NOT NULL END)
    ) AND CASE WHEN k.slots ? 'gpu-mem' THEN g.gpu_sharing ELSE x.amount = r.reported END)
"""


async def place_apart(
    connection: Connection, placement: Placement, *, now: datetime, versions: Mapping[SessionId, int] | None = None
) -> str | None:
    """A session that is to have a host without certain others of its owner; or why not: the conflicts of `place`.

    Inside the caller's transaction. The others are locked first, also those that wait: whoever is placing one of them has
    done so when `place` looks where they are.
    """
    await _keep_still(connection, placement.session_id)
    placed = await place(connection, [placement], now=now, versions=versions)
    return placed.conflicts.get(placement.session_id)


async def place_cluster(
    connection: Connection,
    placement: Placement,
    *,
    pool: IPv4Network,
    now: datetime,
    versions: Mapping[SessionId, int] | None = None,
) -> str | None:
    """All kernels and their network, or nothing of it and why not: not_pending, changed, no_room, quota, no_network.

    Inside the caller's transaction, which holds nothing else.
    """
    session_id = placement.session_id
    await _keep_still(connection, session_id)
    if not await _lock(connection, session_id, "PENDING"):
        return "not_pending"
    had_one = await connection.fetchval("SELECT true FROM cluster_networks WHERE session_id = $1", session_id)
    agents = {kernel.agent_id for kernel in placement.kernels}
    if not await reserve(connection, session_id, agents, pool=pool, now=now):
        return "no_network"
    placed = await place(connection, [placement], now=now, versions=versions)
    if placed.conflicts:
        if not had_one:
            await connection.execute("DELETE FROM cluster_networks WHERE session_id = $1", session_id)
        return placed.conflicts[session_id]
    await weave(connection, session_id, now=now)
    return None


async def join_cluster(connection: Connection, placement: Placement, *, pool: IPv4Network, now: datetime) -> str | None:
    """One more kernel for a session that runs; the others are told of it. The conflicts are those of `place_cluster`."""
    session_id, [kernel] = placement.session_id, placement.kernels
    await _keep_still(connection, session_id)
    if not await _lock(connection, session_id, "RUNNING", "RUNNING_DEGRADED"):
        return "changed"
    if conflict := await _take(connection, session_id, kernel, now):
        return conflict
    await weave(connection, session_id, now=now)
    session = await connection.fetchrow("SELECT name, user_id, domain FROM sessions WHERE id = $1", session_id)
    assert session is not None
    await emit(
        connection,
        "resources.allocated",
        now=now,
        cause=SCHEDULER,
        session_id=session_id,
        user_id=session["user_id"],
        domain=session["domain"],
        data={"name": session["name"], "agents": [kernel.agent_id], "slots": dict(kernel.amounts)},
    )
    return None


async def _lock(connection: Connection, session_id: SessionId, *statuses: str) -> bool:
    found = await connection.fetchval(
        "SELECT true FROM sessions WHERE id = $1 AND status = ANY($2::text[]) FOR NO KEY UPDATE",
        session_id,
        list(statuses),
    )
    return bool(found)


async def _keep_still(connection: Connection, session_id: SessionId) -> None:
    """Lock, in the order in which everybody does, the live sessions of its owner that this one keeps apart from, and itself.

    Those that wait for a host in a bulk become new versions of their rows: a bulk that had to wait for one of them has
    looked at hosts before, and leaves it for the next look. Those that keep apart as well look when they have the locks.
    """
    locked = await connection.fetch(
        """
        SELECT o.id FROM sessions o WHERE o.id IN (
            SELECT x.id FROM sessions s JOIN sessions x ON x.user_id = s.user_id AND x.ended_at IS NULL
            WHERE s.id = $1 AND s.constraints ? 'apart_from' AND (x.id = s.id OR EXISTS (
                SELECT FROM jsonb_each(s.constraints -> 'apart_from') f WHERE x.labels @> jsonb_build_object(f.key, f.value))))
        ORDER BY o.id FOR NO KEY UPDATE
        """,
        session_id,
    )
    if len(locked) > 1:
        await connection.execute(
            """
            UPDATE sessions SET activity = activity
            WHERE id = ANY($1::uuid[]) AND id <> $2 AND status = 'PENDING' AND NOT constraints ? 'apart_from'
            """,
            [row["id"] for row in locked],
            session_id,
        )


async def _take(connection: Connection, session_id: SessionId, kernel: KernelPlacement, now: datetime) -> str | None:
    """The slots of a kernel that joins, with every check repeated on locked rows; or why not. Its quota is charged already."""
    host = await connection.fetchval(
        f"""
        SELECT a.id FROM agents a JOIN sessions q ON q.id = $2 WHERE a.id = $1 AND {SUITS} FOR KEY SHARE OF a
        """,
        kernel.agent_id,
        session_id,
    )
    if host is None:
        return "changed"
    amounts = {name: amount for name, amount in kernel.amounts.items() if amount > 0}
    rows = await connection.fetch(
        f"""
        SELECT r.name, r.reported - r.used AS free, {_HANDED_OUT} AS proper
        FROM resources r JOIN unnest($2::text[], $3::bigint[]) AS x(name, amount) ON x.name = r.name
        JOIN kernels k ON k.id = $4 JOIN agents a ON a.id = r.agent_id JOIN resource_groups g ON g.name = a.resource_group
        WHERE r.agent_id = $1 ORDER BY r.name FOR UPDATE OF r
        """,
        kernel.agent_id,
        list(amounts),
        list(amounts.values()),
        kernel.kernel_id,
    )
    free = {row["name"]: row["free"] for row in rows}
    if not all(row["proper"] for row in rows):
        return "changed"
    if any(amount > free.get(name, 0) for name, amount in amounts.items()):
        return "no_room"
    taken = await connection.fetchval(
        """
        UPDATE kernels k SET agent_id = $2, want = 'RUN', joining = false, generation = generation + 1, next_try_at = $3,
            tries = 0,
            spec = spec || jsonb_build_object('devices', $4::jsonb, 'profile', g.profile, 'egress', g.egress)
        FROM sessions s JOIN resource_groups g ON g.name = s.resource_group
        WHERE k.id = $1 AND s.id = k.session_id AND s.id = $5 AND k.attempt = s.attempt AND k.joining
            AND k.left_at IS NULL AND k.want = 'NONE' RETURNING true
        """,
        kernel.kernel_id,
        kernel.agent_id,
        now,
        dict(kernel.devices),
        session_id,
    )
    if not taken:
        return "changed"
    await connection.execute(
        "INSERT INTO allocations (kernel_id, agent_id, name, amount) SELECT $1, $2, * FROM unnest($3::text[], $4::bigint[])",
        kernel.kernel_id,
        kernel.agent_id,
        list(amounts),
        list(amounts.values()),
    )
    return None
