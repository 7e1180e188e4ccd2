"""Hosts that are taken out of use: cordoned, so that nothing new comes, or drained, so that what is there goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from domain.errors import AgentNotFound
from domain.ids import AgentId, SessionId
from domain.session import LIVE, Event, SessionTypes, Status, sources
from repositories.database import Connection
from repositories.transit import Asked, Cause, emit, transit_many

DRAIN: Final = Cause(by="drain")
#: Of a session that is told: {kind, agent, message}.
NOTICE: Final = "drain"
#: Their work has not begun, so that nothing is lost when they begin elsewhere.
_NOT_BEGUN: Final = frozenset({Status.SCHEDULED, Status.PREPARING, Status.PULLING})
_THERE: Final = """
    SELECT k.session_id FROM kernels k WHERE k.agent_id = $1 AND k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How a host is drained."""

    moves: bool = False  #: batch sessions begin again elsewhere, and so do those whose work has not begun
    until: datetime | None = None  #: when those that are left are ended


async def cordon(connection: Connection, agent_id: AgentId, *, reason: str | None, now: datetime) -> None:
    """No session is placed there any more; what runs there goes on. Raises AgentNotFound."""
    found = await connection.fetchval(
        """
        UPDATE agents SET schedulable = false, cordoned_at = coalesce(cordoned_at, $2),
            cordon_reason = coalesce($3, cordon_reason) WHERE id = $1 RETURNING true
        """,
        agent_id,
        now,
        reason,
    )
    if not found:
        raise AgentNotFound(agent=agent_id)


async def drain(connection: Connection, agent_id: AgentId, how: Drain, *, reason: str | None, now: datetime) -> None:
    """Cordoned, and what is there is to go, as `how` says; asked for again, the last word counts. Raises AgentNotFound."""
    await cordon(connection, agent_id, reason=reason, now=now)
    await connection.execute(
        "UPDATE agents SET draining = true, drain_moves = $2, drain_until = $3, drained_at = NULL WHERE id = $1",
        agent_id,
        how.moves,
        how.until,
    )


async def uncordon(connection: Connection, agent_id: AgentId, *, now: datetime) -> list[SessionId]:
    """In use again; a drain is called off. Who had been told of it: they stay. Raises AgentNotFound.

    What is moving already goes on moving: its containers are ending.
    """
    await _lock_sessions(connection, agent_id)  # sessions before agents, as everybody
    was = await connection.fetchval("SELECT draining FROM agents WHERE id = $1 FOR NO KEY UPDATE", agent_id)
    if was is None:
        raise AgentNotFound(agent=agent_id)
    await connection.execute(
        """
        UPDATE agents SET schedulable = true, draining = false, drain_moves = false, drain_until = NULL, drained_at = NULL,
            cordoned_at = NULL, cordon_reason = NULL WHERE id = $1
        """,
        agent_id,
    )
    return await _take_back(connection, agent_id, now) if was else []


async def _take_back(connection: Connection, agent_id: AgentId, now: datetime) -> list[SessionId]:
    rows = await connection.fetch(
        f"""
        WITH told AS (
            UPDATE sessions s SET activity = activity + 1, notices = coalesce((
                SELECT jsonb_agg(n) FROM jsonb_array_elements(s.notices) n
                WHERE NOT (n ->> 'kind' = '{NOTICE}' AND n ->> 'agent' = $1)), '[]')
            WHERE s.id IN ({_THERE}) AND s.notices @> jsonb_build_array(jsonb_build_object('kind', '{NOTICE}', 'agent', $1::text))
            RETURNING s.id, s.user_id, s.domain, s.name
        ), events AS (
            INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
            SELECT $2, 'session.stays', id, user_id, domain, $3, jsonb_build_object('name', name, 'agent', $1::text) FROM told
        )
        SELECT id FROM told ORDER BY id
        """,
        agent_id,
        now,
        DRAIN.to_json(),
    )
    return [SessionId(row["id"]) for row in rows]


# -- what a drain does -------------------------------------------------------------------------------------------------
async def draining_agents(connection: Connection) -> list[tuple[AgentId, datetime | None]]:
    """Those that are heard of and not empty yet, and when what is left there is ended."""
    rows = await connection.fetch(
        "SELECT id, drain_until FROM agents WHERE draining AND NOT lost AND drained_at IS NULL ORDER BY id"
    )
    return [(AgentId(row["id"]), row["drain_until"]) for row in rows]


async def carry_out(connection: Connection, agent_id: AgentId, *, now: datetime) -> list[SessionId]:
    """Tell, move and end the sessions of a host that is drained, inside the caller's transaction; those that changed."""
    ids = await _lock_sessions(connection, agent_id)
    agent = await connection.fetchrow(
        "SELECT drain_moves, drain_until, cordon_reason FROM agents WHERE id = $1 AND draining AND NOT lost FOR SHARE",
        agent_id,
    )
    if agent is None:
        return []
    rows = await connection.fetch(
        """
        SELECT id, user_id, domain, name, status, session_type, notices FROM sessions
        WHERE id = ANY($1::uuid[]) AND status = ANY($2::text[]) ORDER BY id
        """,
        ids,
        sorted(LIVE - {Status.TERMINATING}),
    )
    over = agent["drain_until"] is not None and agent["drain_until"] <= now
    moving = [row for row in rows if agent["drain_moves"] and _moves(row)]
    ending = [row for row in rows if over and row not in moving]
    staying = [row for row in rows if row not in moving and row not in ending and not _is_told(row, agent_id)]
    await _move(connection, agent_id, moving, now)
    why = f"its host {agent_id} was drained, and the time until it had to be gone is over"
    asked = [Asked(session_id=SessionId(row["id"]), reason=why) for row in ending]
    if asked:
        await transit_many(connection, Event.DESTROY, asked, cause=DRAIN, now=now)
    for row in staying:
        await _tell(connection, agent_id, row, agent, now)
    if not ids:
        await connection.execute("UPDATE agents SET drained_at = $2 WHERE id = $1", agent_id, now)
        await emit(connection, "agent.drained", now=now, cause=DRAIN, data={"agent": agent_id})
    return [SessionId(row["id"]) for row in (*moving, *ending, *staying)]


def _moves(session: Mapping[str, Any]) -> bool:
    status = Status(session["status"])
    return status in _NOT_BEGUN or (session["session_type"] == SessionTypes.BATCH and status in sources(Event.MOVE))


def _is_told(session: Mapping[str, Any], agent_id: AgentId) -> bool:
    return any(one.get("kind") == NOTICE and one.get("agent") == agent_id for one in session["notices"])


async def _move(
    connection: Connection, agent_id: AgentId, sessions: Sequence[Mapping[str, Any]], now: datetime
) -> None:
    if not sessions:
        return
    ids = [row["id"] for row in sessions]
    await connection.execute("UPDATE sessions SET moves_from = $2 WHERE id = ANY($1::uuid[])", ids, agent_id)
    why = f"its host {agent_id} is drained"
    asked = [Asked(session_id=SessionId(one), reason=why) for one in ids]
    await transit_many(connection, Event.MOVE, asked, cause=DRAIN, now=now)


async def _tell(
    connection: Connection, agent_id: AgentId, session: Mapping[str, Any], agent: Mapping[str, Any], now: datetime
) -> None:
    why = f" ({agent['cordon_reason']})" if agent["cordon_reason"] else ""
    until = agent["drain_until"]
    last = (
        "save what you need and end it when you can" if until is None else f"it is ended at {until:%Y-%m-%d %H:%M} UTC"
    )
    message = f"The host {agent_id} is taken out of use{why}: {last}."
    await connection.execute(
        "UPDATE sessions SET notices = notices || $2::jsonb, activity = activity + 1 WHERE id = $1",
        session["id"],
        [{"kind": NOTICE, "agent": agent_id, "message": message}],
    )
    data = {"name": session["name"], "agent": agent_id, "message": message, "until": until and until.isoformat()}
    await emit(
        connection,
        "session.draining",
        now=now,
        cause=DRAIN,
        session_id=SessionId(session["id"]),
        user_id=session["user_id"],
        domain=session["domain"],
        data={name: value for name, value in data.items() if value},
    )


async def _lock_sessions(connection: Connection, agent_id: AgentId) -> list[SessionId]:
    """Those with something on the host, in the order in which everybody locks them."""
    rows = await connection.fetch(
        f"SELECT id FROM sessions WHERE id IN ({_THERE}) ORDER BY id FOR NO KEY UPDATE", agent_id
    )
    return [SessionId(row["id"]) for row in rows]
