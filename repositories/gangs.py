"""Placing clusters: a session with all of its kernels and its network, or one more kernel of a session that runs."""

from __future__ import annotations

from datetime import datetime
from ipaddress import IPv4Network

from domain.ids import SessionId
from domain.placement import KernelPlacement, Placement
from repositories.clusters import reserve, weave
from repositories.database import Connection
from repositories.placement import SCHEDULER, place
from repositories.transit import emit


async def place_cluster(
    connection: Connection, placement: Placement, *, pool: IPv4Network, now: datetime
) -> str | None:
    """All kernels and their network, or nothing of it and why not: not_pending, changed, no_room, no_network.

    Inside the caller's transaction, which holds nothing else.
    """
    session_id = placement.session_id
    if not await _lock(connection, session_id, "PENDING"):
        return "not_pending"
    had_one = await connection.fetchval("SELECT true FROM cluster_networks WHERE session_id = $1", session_id)
    agents = {kernel.agent_id for kernel in placement.kernels}
    if not await reserve(connection, session_id, agents, pool=pool, now=now):
        return "no_network"
    placed = await place(connection, [placement], now=now)
    if placed.conflicts:
        if not had_one:
            await connection.execute("DELETE FROM cluster_networks WHERE session_id = $1", session_id)
        return placed.conflicts[session_id]
    await weave(connection, session_id, now=now)
    return None


async def join_cluster(connection: Connection, placement: Placement, *, pool: IPv4Network, now: datetime) -> str | None:
    """One more kernel for a session that runs; the others are told of it. The conflicts are those of `place_cluster`."""
    session_id, [kernel] = placement.session_id, placement.kernels
    if not await _lock(connection, session_id, "RUNNING", "RUNNING_DEGRADED"):
        return "changed"
    if not await _take(connection, session_id, kernel, now):
        return "no_room"
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
        "SELECT true FROM sessions WHERE id = $1 AND status = ANY($2::text[]) FOR UPDATE", session_id, list(statuses)
    )
    return bool(found)


async def _take(connection: Connection, session_id: SessionId, kernel: KernelPlacement, now: datetime) -> bool:
    """The slots of a kernel that joins, with every check repeated on locked rows."""
    host = await connection.fetchval(
        """
        SELECT a.id FROM agents a JOIN sessions s ON s.id = $2 AND s.architecture = a.architecture
        WHERE a.id = $1 AND a.schedulable AND NOT a.lost AND a.uid IS NOT NULL FOR KEY SHARE OF a
        """,
        kernel.agent_id,
        session_id,
    )
    rows = await connection.fetch(
        """
        SELECT name, reported - used AS free FROM resources WHERE agent_id = $1 AND name = ANY($2::text[])
        ORDER BY name FOR UPDATE
        """,
        kernel.agent_id,
        list(kernel.amounts),
    )
    free = {row["name"]: row["free"] for row in rows}
    if host is None or any(amount > free.get(name, 0) for name, amount in kernel.amounts.items()):
        return False
    taken = await connection.fetchval(
        """
        UPDATE kernels k SET agent_id = $2, want = 'RUN', joining = false, generation = generation + 1, next_try_at = $3,
            tries = 0, spec = spec || jsonb_build_object('devices', $4::jsonb)
        FROM sessions s WHERE k.id = $1 AND s.id = k.session_id AND s.id = $5 AND k.attempt = s.attempt AND k.joining
            AND k.left_at IS NULL AND k.want = 'NONE' RETURNING true
        """,
        kernel.kernel_id,
        kernel.agent_id,
        now,
        dict(kernel.devices),
        session_id,
    )
    if not taken:
        return False
    amounts = {name: amount for name, amount in kernel.amounts.items() if amount > 0}
    await connection.execute(
        "INSERT INTO allocations (kernel_id, agent_id, name, amount) SELECT $1, $2, * FROM unnest($3::text[], $4::bigint[])",
        kernel.kernel_id,
        kernel.agent_id,
        list(amounts),
        list(amounts.values()),
    )
    return True
