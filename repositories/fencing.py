"""Sessions that begin anew elsewhere when their host falls silent: whose lease is over, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from domain.ids import AgentId, SessionId
from domain.session import Event, Status, sources
from repositories import tables
from repositories.database import Connection
from repositories.kernels import settle
from repositories.transit import Asked, Cause, Moved, emit, transit_many

FENCED: Final = Cause(by="lease")
#: Of runs that nobody will hear the end of.
RUN_LOST: Final = "agent_lost"
_NOT_FINAL: Final = tables.NOT_FINAL.replace("status", "s.status")
#: Kernels of sessions that are replaced, on hosts that end them by themselves once their lease is over.
_LEASED: Final = f"""
    sessions s JOIN kernels k ON k.session_id = s.id AND k.attempt = s.attempt JOIN agents a ON a.id = k.agent_id
    WHERE s.on_agent_lost = 'replace' AND {_NOT_FINAL} AND k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE'
        AND k.fenced_at IS NULL AND (a.info ->> 'fences')::boolean
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A host with kernels that have a lease, and when it was heard of, as is written down."""

    agent_id: AgentId
    seen_at: datetime
    seconds: float  #: the shortest of their leases


async def leased(connection: Connection) -> list[Leased]:
    rows = await connection.fetch(
        f"""
        SELECT a.id, a.seen_at, min(s.agent_lease_seconds) AS seconds FROM {_LEASED} AND a.seen_at IS NOT NULL
        GROUP BY a.id, a.seen_at ORDER BY a.id
        """
    )
    return [Leased(agent_id=AgentId(row["id"]), seen_at=row["seen_at"], seconds=row["seconds"]) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """What became of the sessions of a host whose leases are over."""

    moved: tuple[Moved, ...] = ()
    runs_of: frozenset[SessionId] = frozenset()  #: whose executions ended with it


async def replace(
    connection: Connection, agent_id: AgentId, seen_at: datetime, *, longest_lease: float, silent: float, now: datetime
) -> Replaced:
    """Begin anew elsewhere what had a lease of at most `longest_lease` seconds there. Inside the caller's transaction.

    `silent`: for so many seconds the caller has watched that nothing was heard of it since `seen_at`, which is checked
    again on the locked row: who is heard of at this moment keeps what it has. Its slots stay taken until it says that
    they are free.
    """
    rows = await connection.fetch(
        f"""
        SELECT s.id, s.status FROM sessions s WHERE s.id IN (
            SELECT s.id FROM {_LEASED} AND a.id = $1 AND s.agent_lease_seconds <= $2)
        ORDER BY s.id FOR NO KEY UPDATE OF s
        """,
        agent_id,
        longest_lease,
    )
    silent_still = await connection.fetchval(
        "SELECT true FROM agents WHERE id = $1 AND seen_at = $2 FOR NO KEY UPDATE SKIP LOCKED", agent_id, seen_at
    )
    if not rows or not silent_still:
        return Replaced()
    sessions = [SessionId(row["id"]) for row in rows]
    fenced = await _fence(connection, agent_id, sessions, now)
    reason = f"its host {agent_id} was silent for {silent:.0f} s, and its lease there is over"
    moving = [SessionId(row["id"]) for row in rows if Status(row["status"]) in sources(Event.MOVE)]
    await connection.execute("UPDATE sessions SET moves_from = $2 WHERE id = ANY($1::uuid[])", moving, agent_id)
    asked = [Asked(session_id=one, reason=reason) for one in moving]
    moved = await transit_many(connection, Event.MOVE, asked, cause=FENCED, now=now)
    for one in sessions:
        moved += await settle(connection, one, now=now, cause=FENCED)
    data = {"agent": agent_id, "sessions": len(sessions), "silent_seconds": round(silent, 1)}
    await emit(connection, "agent.fenced", now=now, cause=FENCED, data=data)
    return Replaced(moved=tuple(moved), runs_of=await _end_runs(connection, fenced, now))


async def _fence(
    connection: Connection, agent_id: AgentId, sessions: Sequence[SessionId], now: datetime
) -> Collection[object]:
    rows = await connection.fetch(
        """
        UPDATE kernels k SET fenced_at = $3 FROM sessions s
        WHERE s.id = ANY($2::uuid[]) AND k.session_id = s.id AND k.attempt = s.attempt AND k.agent_id = $1
            AND k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE' AND k.fenced_at IS NULL
        RETURNING k.id
        """,
        agent_id,
        sessions,
        now,
    )
    return [row["id"] for row in rows]


async def _end_runs(connection: Connection, kernels: Collection[object], now: datetime) -> frozenset[SessionId]:
    """Who waits for one of them is told; what they have written is on the host that is silent."""
    rows = await connection.fetch(
        """
        UPDATE executions SET status = 'done', reason = $3, finished_at = greatest(started_at, $2)
        WHERE kernel_id = ANY($1::uuid[]) AND status = 'running' RETURNING session_id
        """,
        kernels,
        now,
        RUN_LOST,
    )
    return frozenset(SessionId(row["session_id"]) for row in rows)
