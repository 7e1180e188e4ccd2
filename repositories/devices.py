"""Hosts' GPUs: what their agents say of them, and which of them are handed to nobody.

A device that is out or missing has nothing in `resources`, so that no placing write can take any of it; what sessions
hold of it stays theirs. Health takes out what an agent reports as bad or does not name any more, and brings it back as
soon as the agent names it as healthy; what an administrator has taken out, only an administrator brings back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from agent.wire import DeviceFact
from domain.errors import AgentNotFound, DeviceNotFound, DeviceUnhealthy
from domain.ids import AgentId, SessionId
from domain.placement import DEVICE
from repositories.database import Connection
from repositories.kernels import plain
from repositories.transit import Cause, emit

MISSING: Final = "its host does not see it any more: it fell off the bus, or was taken away"
_MOST_DEVICES: Final = 1024
_BIG: Final = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a list of devices, or an administrator, changed."""

    taken: bool = True  #: False: a newer list was heard already
    out: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    sessions: frozenset[SessionId] = frozenset()  #: that hold what went out, and have a notice now


async def is_news(connection: Connection, agent_id: AgentId, boot_no: int, seq: int, *, forgot: bool = False) -> bool:
    """Whether this list of its devices is not older than what was heard, which is noted; the agent's row is locked by it.

    `forgot`: its data dir is new, and it counts anew.
    """
    return bool(
        await connection.fetchval(
            """
            UPDATE agents SET devices_boot_no = $2, devices_seq = $3
            WHERE id = $1 AND ((devices_boot_no, devices_seq) <= ($2, $3) OR $4) RETURNING true
            """,
            agent_id,
            int(boot_no),
            seq,
            forgot,
        )
    )


async def record(
    connection: Connection, agent_id: AgentId, said: Sequence[Mapping[str, Any]], now: datetime
) -> Changed:
    """Take over a host's list of devices; `offered` says what they then are in `resources`. The agent's row is locked."""
    facts = {fact.name: fact for fact in map(_checked, said[:_MOST_DEVICES]) if fact is not None}
    known = await _known(connection, agent_id)
    out = {name: _why(facts.get(name)) for name in known.keys() | facts.keys()}
    going = [name for name, why in out.items() if why and (name not in known or known[name]["out_since"] is None)]
    back = [name for name, why in out.items() if not why and name in known and known[name]["out_by"] == "health"]
    sessions = await _lock_holders(connection, agent_id, going)
    await _upsert(connection, agent_id, list(facts.values()), now)
    missing = [name for name in known if name not in facts]
    await connection.execute(
        """
        UPDATE devices SET missing_since = coalesce(missing_since, $3), healthy = false
        WHERE agent_id = $1 AND name = ANY($2::text[])
        """,
        agent_id,
        missing,
        now,
    )
    for name in going:
        await _set_out(connection, agent_id, name, str(out[name]), by="health", now=now)
    for name in back:
        await _set_in(connection, agent_id, name)
    await _say_why(connection, agent_id, {name: why for name, why in out.items() if why and name not in going})
    cause = Cause(by=f"agent:{agent_id}")
    await _tell(connection, agent_id, going, "gpu.out", cause, now)
    await _tell(connection, agent_id, back, "gpu.in", cause, now)
    flagged = await _flag(connection, agent_id, sessions, {name: str(out[name]) for name in going}, cause, now)
    return Changed(out=tuple(sorted(going)), back=tuple(sorted(back)), sessions=flagged)


async def offered(connection: Connection, agent_id: AgentId) -> dict[str, int]:
    """What there is of each known device for sessions: nothing of those that are out or missing."""
    rows = await connection.fetch(
        """
        SELECT name, CASE WHEN out_since IS NULL AND missing_since IS NULL THEN offered_mib ELSE 0 END AS amount
        FROM devices WHERE agent_id = $1
        """,
        agent_id,
    )
    return {row["name"]: row["amount"] for row in rows}


async def take_out(
    connection: Connection, agent_id: AgentId, device: str, reason: str, *, cause: Cause, now: datetime
) -> Changed:
    """Hand it to nobody from now on, until an administrator puts it in again. Raises AgentNotFound, DeviceNotFound."""
    name = await _lock(connection, agent_id, device)
    sessions = await _lock_holders(connection, agent_id, [name])
    await _set_out(connection, agent_id, name, reason, by="admin", now=now)
    await _offer(connection, agent_id, name)
    await _tell(connection, agent_id, [name], "gpu.out", cause, now)
    flagged = await _flag(connection, agent_id, sessions, {name: reason}, cause, now)
    return Changed(out=(name,), sessions=flagged)


async def put_in(
    connection: Connection, agent_id: AgentId, device: str, *, cause: Cause, now: datetime
) -> tuple[str, Changed]:
    """Offer it again; its name, and what changed.

    Raises AgentNotFound, DeviceNotFound, and DeviceUnhealthy while its agent says that it is bad.
    """
    name = await _lock(connection, agent_id, device)
    row = (await _known(connection, agent_id))[name]
    if row["missing_since"] is not None or not row["healthy"]:
        why = MISSING if row["missing_since"] is not None else row["info"].get("reason") or "it is not fit to be used"
        raise DeviceUnhealthy(
            f"The device {name.removeprefix(DEVICE)} stays out as long as its host says so ({why}); repair it, and it comes "
            "back by itself.",
            agent=agent_id,
        )
    if row["out_since"] is None:
        return name, Changed()
    await _set_in(connection, agent_id, name)
    await _offer(connection, agent_id, name)
    await _tell(connection, agent_id, [name], "gpu.in", cause, now)
    return name, Changed(back=(name,))


async def _lock(connection: Connection, agent_id: AgentId, device: str) -> str:
    """By UUID, with or without `gpu/`, or by number. Everybody locks an agent before its sessions and its resources."""
    if not await connection.fetchval("SELECT true FROM agents WHERE id = $1 FOR NO KEY UPDATE", agent_id):
        raise AgentNotFound(agent=agent_id)
    known = await _known(connection, agent_id)
    found = [
        name
        for name, row in known.items()
        if device in (name, name.removeprefix(DEVICE), str(row["info"].get("index")))
        and (row["missing_since"] is None or not device.isdigit())
    ]
    if len(found) != 1:  # instances of MIG share the number of their GPU
        raise DeviceNotFound(
            f"The agent '{agent_id}' has {'no device' if not found else 'several devices'} '{device[:80]}'; "
            "'moorage admin gpu ls' lists them by UUID.",
            agent=agent_id,
        )
    return found[0]


def _checked(said: Mapping[str, Any]) -> DeviceFact | None:
    """None for what makes no sense: an agent in wrong hands breaks no table."""
    try:
        fact = DeviceFact.unpack(plain(said))
    except TypeError:
        return None
    amounts = (fact.memory_mib, fact.offered_mib)
    sane = all(isinstance(amount, int) and 0 <= amount < _BIG for amount in amounts)
    named = isinstance(fact.name, str) and fact.name.startswith(DEVICE) and len(fact.name) <= 200
    return fact if sane and named else None


def _why(fact: DeviceFact | None) -> str | None:
    """What is wrong with a device, as its agent has it; None for a good one."""
    if fact is None:
        return MISSING
    return None if fact.healthy else str(fact.reason or "its host says that it is not fit to be used")[:2000]


async def _known(connection: Connection, agent_id: AgentId) -> dict[str, Mapping[str, Any]]:
    rows = await connection.fetch("SELECT * FROM devices WHERE agent_id = $1 ORDER BY name FOR UPDATE", agent_id)
    return {row["name"]: row for row in rows}


async def _upsert(connection: Connection, agent_id: AgentId, facts: Sequence[DeviceFact], now: datetime) -> None:
    await connection.executemany(
        """
        INSERT INTO devices (agent_id, name, model, memory_mib, offered_mib, healthy, info, seen_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (agent_id, name) DO UPDATE SET model = excluded.model, memory_mib = excluded.memory_mib,
            offered_mib = excluded.offered_mib, healthy = excluded.healthy, info = excluded.info,
            seen_at = excluded.seen_at, missing_since = NULL
        """,
        [(agent_id, *_columns(fact), now) for fact in facts],
    )


def _columns(fact: DeviceFact) -> tuple[Any, ...]:
    kept = ("name", "model", "memory_mib", "offered_mib", "healthy")
    info = {name: value for name, value in fact.pack().items() if name not in kept}
    return fact.name, str(fact.model)[:200], fact.memory_mib, fact.offered_mib, bool(fact.healthy), info


async def _set_out(
    connection: Connection, agent_id: AgentId, name: str, reason: str, *, by: str, now: datetime
) -> None:
    await connection.execute(
        """
        UPDATE devices SET out_since = coalesce(out_since, $3), out_reason = $4, out_by = $5
        WHERE agent_id = $1 AND name = $2
        """,
        agent_id,
        name,
        now,
        reason,
        by,
    )


async def _set_in(connection: Connection, agent_id: AgentId, name: str) -> None:
    await connection.execute(
        "UPDATE devices SET out_since = NULL, out_reason = NULL, out_by = NULL WHERE agent_id = $1 AND name = $2",
        agent_id,
        name,
    )


async def _say_why(connection: Connection, agent_id: AgentId, reasons: Mapping[str, str]) -> None:
    """What health says of a device that it has taken out already may change; an administrator's reason stays."""
    await connection.execute(
        """
        UPDATE devices d SET out_reason = f.reason FROM unnest($2::text[], $3::text[]) AS f(name, reason)
        WHERE d.agent_id = $1 AND d.name = f.name AND d.out_by = 'health'
        """,
        agent_id,
        list(reasons),
        list(reasons.values()),
    )


async def _offer(connection: Connection, agent_id: AgentId, name: str) -> None:
    """What there is of it now in `resources`; what is held of it stays held."""
    amount = (await offered(connection, agent_id)).get(name, 0)
    await connection.execute(
        """
        INSERT INTO resources (agent_id, name, capacity, reported) VALUES ($1, $2, $3, $3)
        ON CONFLICT (agent_id, name) DO UPDATE
            SET reported = excluded.reported, capacity = greatest(excluded.reported, resources.used)
        """,
        agent_id,
        name,
        amount,
    )


# -- who is told -------------------------------------------------------------------------------------------------------
async def _lock_holders(connection: Connection, agent_id: AgentId, names: Sequence[str]) -> dict[SessionId, set[str]]:
    """The sessions that hold something of these devices, locked before any resource is, as everybody does."""
    if not names:
        return {}
    rows = await connection.fetch(
        """
        SELECT s.id FROM sessions s WHERE s.id IN (
            SELECT k.session_id FROM allocations a JOIN kernels k ON k.id = a.kernel_id
            WHERE a.agent_id = $1 AND a.name = ANY($2::text[])) ORDER BY s.id FOR NO KEY UPDATE
        """,
        agent_id,
        list(names),
    )
    held: dict[SessionId, set[str]] = {SessionId(row["id"]): set() for row in rows}
    for row in await connection.fetch(
        """
        SELECT k.session_id, a.name FROM allocations a JOIN kernels k ON k.id = a.kernel_id
        WHERE a.agent_id = $1 AND a.name = ANY($2::text[]) AND k.session_id = ANY($3::uuid[])
        """,
        agent_id,
        list(names),
        list(held),
    ):
        held[SessionId(row["session_id"])].add(row["name"])
    return held


async def _tell(
    connection: Connection, agent_id: AgentId, names: Sequence[str], type: str, cause: Cause, now: datetime
) -> None:
    rows = await connection.fetch(
        "SELECT name, model, out_reason FROM devices WHERE agent_id = $1 AND name = ANY($2::text[]) ORDER BY name",
        agent_id,
        list(names),
    )
    for row in rows:
        data = {"agent": agent_id, "device": row["name"], "model": row["model"], "reason": row["out_reason"]}
        said = {name: value for name, value in data.items() if value is not None}
        await emit(connection, type, now=now, cause=cause, data=said)


async def _flag(
    connection: Connection,
    agent_id: AgentId,
    sessions: Mapping[SessionId, set[str]],
    reasons: Mapping[str, str],
    cause: Cause,
    now: datetime,
) -> frozenset[SessionId]:
    """A notice on each session, and an event that its owner sees: the device stays theirs as long as they hold it."""
    for session_id, names in sessions.items():
        for name in sorted(names):
            await _notice(connection, session_id, agent_id, name, reasons[name], cause, now)
    return frozenset(sessions)


async def _notice(
    connection: Connection,
    session_id: SessionId,
    agent_id: AgentId,
    name: str,
    reason: str,
    cause: Cause,
    now: datetime,
) -> None:
    device = name.removeprefix(DEVICE)
    message = f"The GPU {device} of its host has been taken out: {reason}. A session that runs on it keeps it: save your work."
    row = await connection.fetchrow(
        """
        UPDATE sessions SET activity = activity + 1,
            notices = CASE WHEN jsonb_array_length(notices) < 50 THEN notices || jsonb_build_array($2::jsonb) ELSE notices END
        WHERE id = $1 RETURNING name, user_id, domain
        """,
        session_id,
        {"kind": "gpu", "message": message, "device": name},
    )
    if row is not None:
        await emit(
            connection,
            "gpu.out",
            now=now,
            cause=cause,
            session_id=session_id,
            user_id=row["user_id"],
            domain=row["domain"],
            data={"name": row["name"], "agent": agent_id, "device": name, "reason": reason},
        )
