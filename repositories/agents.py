"""Agents: who they are, what they have, whether they are heard of; and the managers that they dial."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from agent.wire import AgentHello, DeviceList
from domain.errors import (
    AgentNotFound,
    AgentRevoked,
    AlreadyExists,
    Conflict,
    ResourceGroupNotFound,
    StillInUse,
    Unauthenticated,
)
from domain.ids import AgentId, SessionId
from domain.names import as_uuid
from domain.placement import DEVICE, GPU, GPU_SHARE
from domain.scheduler.devices import is_of_model
from domain.session import Event
from repositories import devices
from repositories.database import Connection
from repositories.kernels import release
from repositories.transit import Asked, Cause, Moved, emit, transit_many

REMEMBERS_NOTHING: Final = "the host's agent was set up anew and remembers nothing of this session"


# -- joining ---------------------------------------------------------------------------------------------------------
async def issue_token(connection: Connection, *, expires_at: datetime, now: datetime) -> str:
    """A secret with which one agent may join, once. Only its hash is kept."""
    token = secrets.token_urlsafe(32)
    await connection.execute(
        "INSERT INTO agent_tokens (secret_hash, expires_at, created_at) VALUES ($1, $2, $3)",
        _hash(token),
        expires_at,
        now,
    )
    return token


async def enrol(connection: Connection, token: str, agent_id: AgentId, fingerprint: str, *, now: datetime) -> None:
    """Use up a join token: from now on this agent is whoever holds the certificate of this fingerprint.

    A host that was set up anew may take its old name again, but not while an agent of that name is heard of; and that of
    one that was revoked only with a token that was made afterwards. Raises Unauthenticated, AlreadyExists, AgentRevoked.
    """
    made_at = await connection.fetchval(
        """
        UPDATE agent_tokens SET used_at = $2, agent_id = $3
        WHERE secret_hash = $1 AND used_at IS NULL AND expires_at > $2 RETURNING created_at
        """,
        _hash(token),
        now,
        agent_id,
    )
    if made_at is None:
        raise Unauthenticated("This join token is not valid, was used already, or has expired; ask for a new one.")
    pinned = await connection.fetchval(
        """
        INSERT INTO agents (id, fingerprint, created_at) VALUES ($1, $2, $3)
        ON CONFLICT (id) DO UPDATE SET fingerprint = EXCLUDED.fingerprint, revoked_at = NULL, renewed_at = NULL,
            next_fingerprint = NULL, former_fingerprint = NULL, former_until = NULL
            WHERE (agents.lease_until IS NULL OR agents.lease_until <= $3 OR agents.fingerprint = EXCLUDED.fingerprint)
                AND (agents.revoked_at IS NULL OR agents.revoked_at < $4)
        RETURNING true
        """,
        agent_id,
        fingerprint,
        now,
        made_at,
    )
    if not pinned:
        if await connection.fetchval("SELECT revoked_at IS NOT NULL FROM agents WHERE id = $1", agent_id):
            raise AgentRevoked(
                f"The agent '{agent_id}' was revoked after this token was made; ask for a new one.", agent=agent_id
            )
        raise AlreadyExists(f"An agent named '{agent_id}' is connected; stop it first, or choose another name.")
    await emit(connection, "agent.enrolled", now=now, cause=Cause(by=f"agent:{agent_id}"), data={"agent": agent_id})


# -- being heard of ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted:
    """What an agent's hello changed."""

    changed: frozenset[SessionId]
    moved: tuple[Moved, ...]
    returned: bool  #: it had been lost
    forgot: bool  #: its data dir is new
    told: bool = False  #: there are events of its devices


async def hello(connection: Connection, said: AgentHello, *, now: datetime, lease_seconds: float) -> Greeted:
    """Take over what an agent says of itself, and make everything due again that it has not answered for.

    Inside the caller's transaction, and before its facts are recorded. An agent with a new data dir numbers its reports
    anew; whatever it had brought up is not adopted again but ended, and its slots come free when it says GONE.
    Raises AgentNotFound for one that has not joined, Conflict for an older daemon than was heard already.
    """
    agent_id = AgentId(said.agent_id)
    known = await connection.fetchrow(
        "SELECT uid, boot_no, lost, revoked_at FROM agents WHERE id = $1 FOR NO KEY UPDATE", agent_id
    )
    if known is None:
        raise AgentNotFound(agent=agent_id)
    if known["revoked_at"] is not None:
        raise AgentRevoked(agent=agent_id)
    if known["uid"] == said.uid and said.boot_no < known["boot_no"]:
        raise Conflict("A later start of this agent was heard already; two daemons share one data dir.", agent=agent_id)
    forgot = known["uid"] is not None and known["uid"] != said.uid
    strangers = await _strangers(connection, agent_id, said)
    holds = {name: said.holds[str(kernel)] for kernel, name in strangers.items()}
    taken = {slot: name for name, slots in holds.items() for slot in slots if slot.startswith(DEVICE)}
    await connection.execute(
        """
        UPDATE agents SET uid = $2, boot_no = $3, hostname = $4, architecture = $5, version = $6, info = $7, images = $8,
            seen_at = $9, lease_until = $10 WHERE id = $1
        """,
        agent_id,
        said.uid,
        said.boot_no,
        said.hostname,
        said.architecture,
        said.version,
        {**said.info, "quarantined": [*said.info.get("quarantined", []), *holds], "taken": taken},
        said.images,
        now,
        now + timedelta(seconds=lease_seconds),
    )
    moved = await _forgotten(connection, agent_id, now) if forgot else []
    changed = {one.session_id for one in moved}
    if known["lost"]:
        changed |= await _returned(connection, [agent_id], now)
    inventory = [as_uuid(str(fact.get("kernel_id"))) for fact in said.facts]
    await _ask_again(connection, agent_id, [one for one in inventory if one is not None], now)
    newest = await devices.is_news(connection, agent_id, said.boot_no, said.devices_seq, forgot=forgot)
    usable = _but_taken(said.devices, taken)
    told = await devices.record(connection, agent_id, usable, now) if newest else devices.Changed()
    changed |= told.sessions
    # last: everybody locks sessions before resources
    left = _without(said.resources, [*holds.values()])
    await set_resources(connection, agent_id, left, of_devices=None if newest else False)
    return Greeted(
        changed=frozenset(changed),
        moved=tuple(moved),
        returned=known["lost"],
        forgot=forgot,
        told=bool(told.out or told.back),
    )


async def _strangers(connection: Connection, agent_id: AgentId, said: AgentHello) -> dict[UUID, str]:
    """Kernels that have a container there and none here: of a time after the backup that was restored. Left alone."""
    there = [(as_uuid(str(fact.get("kernel_id"))), fact.get("attempt")) for fact in said.facts]
    attempts = {
        kernel: n for kernel, n in there if kernel is not None and isinstance(n, int) and str(kernel) in said.holds
    }
    rows = await connection.fetch(
        """
        SELECT f.id, f.attempt FROM unnest($2::uuid[], $3::bigint[]) AS f(id, attempt)
        LEFT JOIN kernels k ON k.id = f.id AND k.agent_id = $1
        WHERE k.id IS NULL OR k.attempt < f.attempt OR k.observed = 'GONE' OR k.want = 'NONE'
        """,
        agent_id,
        list(attempts),
        list(attempts.values()),
    )
    return {row["id"]: f"moorage-{row['id'].hex}-{row['attempt']}" for row in rows}


def _without(amounts: Mapping[str, int], taken: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """What quarantined containers hold is not offered to anybody."""
    return {name: max(0, amount - sum(one.get(name, 0) for one in taken)) for name, amount in amounts.items()}


def _but_taken(said: Sequence[Mapping[str, Any]], taken: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Devices of quarantined containers are given to nobody."""
    return [
        {**one, "healthy": False, "reason": f"the quarantined container {taken[one['name']]} holds it"}
        if one.get("name") in taken
        else one
        for one in said
    ]


async def change_devices(
    connection: Connection, agent_id: AgentId, said: DeviceList, *, now: datetime
) -> devices.Changed:
    """All devices of a host as they are now; an older list than was heard changes nothing. Inside a transaction."""
    if not await devices.is_news(connection, agent_id, said.boot_no, said.seq):
        return devices.Changed(taken=False)
    taken = await connection.fetchval("SELECT info -> 'taken' FROM agents WHERE id = $1", agent_id)
    changed = await devices.record(connection, agent_id, _but_taken(said.devices, taken or {}), now)
    await set_resources(connection, agent_id, said.resources, of_devices=True)
    return changed


async def set_resources(
    connection: Connection, agent_id: AgentId, amounts: Mapping[str, int], *, of_devices: bool | None = None
) -> None:
    """What the agent advertises now; of devices, what is offered of them. Where less than is in use, capacity follows as
    slots come free. `of_devices`: only of those, or only of the others."""
    if of_devices is not False:
        amounts = {**amounts, **await devices.offered(connection, agent_id)}
    await connection.execute(
        """
        WITH said AS (
            SELECT key AS name, value::bigint AS amount FROM jsonb_each_text($2)
            WHERE $3::boolean IS NULL OR starts_with(key, 'gpu/') = $3
        ),
        before AS MATERIALIZED (
            SELECT name FROM resources WHERE agent_id = $1 AND ($3::boolean IS NULL OR starts_with(name, 'gpu/') = $3)
            ORDER BY agent_id, name FOR UPDATE
        ), missing AS (
            UPDATE resources SET reported = 0, capacity = used
            WHERE agent_id = $1 AND name IN (SELECT name FROM before) AND name NOT IN (SELECT name FROM said)
        )
        INSERT INTO resources (agent_id, name, capacity, reported)
        SELECT $1, said.name, said.amount, said.amount FROM said LEFT JOIN before USING (name) ORDER BY said.name
        ON CONFLICT (agent_id, name) DO UPDATE
            SET reported = EXCLUDED.reported, capacity = greatest(EXCLUDED.reported, resources.used)
        """,
        agent_id,
        {str(name): amount for name, amount in amounts.items() if isinstance(amount, int) and 0 <= amount < 2**62},
        of_devices,
    )


async def heartbeats(
    connection: Connection, agents: Sequence[AgentId], *, now: datetime, lease_seconds: float
) -> frozenset[SessionId]:
    """Renew the leases of agents that were heard, and say on the sessions of lost ones that they are back.

    Does not wait for the disk: a lease that is lost with the database's host is renewed by the next heartbeat.
    """
    rows = await connection.fetch(
        """
        UPDATE agents a SET seen_at = $2, lease_until = $3
        WHERE id IN (SELECT id FROM agents WHERE id = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE)
            AND revoked_at IS NULL AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
        RETURNING id, lost
        """,
        list(agents),
        now,
        now + timedelta(seconds=lease_seconds),
    )
    lost = sorted(AgentId(row["id"]) for row in rows if row["lost"])
    return frozenset(await _returned(connection, lost, now)) if lost else frozenset()


async def find_lost(connection: Connection, *, now: datetime) -> tuple[list[AgentId], frozenset[SessionId]]:
    """Mark the agents whose leases are over, and flag their sessions, which go on wherever they are."""
    rows = await connection.fetch(
        """
        UPDATE agents SET lost = true
        WHERE id IN (SELECT id FROM agents WHERE NOT lost AND lease_until < $1 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING id, seen_at
        """,
        now,
    )
    await _lock_sessions(connection, [row["id"] for row in rows])
    sessions: set[SessionId] = set()
    for row in rows:
        reason = f"the host {row['id']} has not been heard of since {row['seen_at']:%Y-%m-%d %H:%M:%S} UTC"
        flagged = await _flag(connection, [row["id"]], lost=True, reason=reason, event="session.agent_lost", now=now)
        sessions |= flagged
        data = {"agent": row["id"], "reason": reason, "sessions": len(flagged)}
        await emit(connection, "agent.lost", now=now, cause=Cause(by="deadline"), data=data)
    return [AgentId(row["id"]) for row in rows], frozenset(sessions)


async def _returned(connection: Connection, agents: Sequence[AgentId], now: datetime) -> set[SessionId]:
    await connection.execute("UPDATE agents SET lost = false WHERE id = ANY($1::text[])", list(agents))
    flagged = await _flag(connection, agents, lost=False, reason=None, event="session.agent_returned", now=now)
    for agent_id in agents:
        await emit(connection, "agent.returned", now=now, cause=Cause(by=f"agent:{agent_id}"), data={"agent": agent_id})
    return flagged


async def _flag(
    connection: Connection, agents: Sequence[str], *, lost: bool, reason: str | None, event: str, now: datetime
) -> set[SessionId]:
    """Say on the sessions of these agents that their host is lost, or back. No status moves by it."""
    rows = await connection.fetch(
        """
        WITH there AS MATERIALIZED (
            SELECT s.id FROM sessions s WHERE s.agent_lost <> $2 AND s.ended_at IS NULL AND s.id IN (
                SELECT session_id FROM kernels
                WHERE agent_id = ANY($1::text[]) AND want <> 'NONE' AND observed IS DISTINCT FROM 'GONE')
            ORDER BY s.id FOR NO KEY UPDATE
        ), flagged AS (
            UPDATE sessions s SET agent_lost = $2, activity = activity + 1,
                status_reason = CASE WHEN $2 AND s.status IN ('RUNNING', 'RUNNING_DEGRADED') THEN $3::text
                    WHEN NOT $2 AND s.status_reason LIKE 'the host % has not been heard of since %' THEN NULL
                    ELSE s.status_reason END
            FROM there t WHERE s.id = t.id RETURNING s.id, s.user_id, s.domain, s.name
        ), told AS (
            INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
            SELECT $4::timestamptz, $5, id, user_id, domain, jsonb_build_object('by', 'manager'),
                jsonb_strip_nulls(jsonb_build_object('name', name, 'agents', $1::text[], 'reason', $3::text)) FROM flagged
        )
        SELECT id FROM flagged
        """,
        list(agents),
        lost,
        reason,
        now,
        event,
    )
    return {SessionId(row["id"]) for row in rows}


async def _lock_sessions(connection: Connection, agents: Sequence[str]) -> list[SessionId]:
    """Those with something on these agents, in the order in which everybody locks them."""
    rows = await connection.fetch(
        """
        SELECT id FROM sessions WHERE id IN (
            SELECT session_id FROM kernels
            WHERE agent_id = ANY($1::text[]) AND want <> 'NONE' AND observed IS DISTINCT FROM 'GONE')
        ORDER BY id FOR NO KEY UPDATE
        """,
        list(agents),
    )
    return [SessionId(row["id"]) for row in rows]


async def _forgotten(connection: Connection, agent_id: AgentId, now: datetime) -> list[Moved]:
    """The data dir is new: number its reports anew, and end what the old one had brought up."""
    sessions = await _lock_sessions(connection, [agent_id])
    rows = await connection.fetch(
        """
        UPDATE kernels SET boot_no = 0, report_seq = 0
        WHERE agent_id = $1 AND want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'
        RETURNING session_id, observed IS NOT NULL OR seen_generation > 0 AS was_there
        """,
        agent_id,
    )
    there = {row["session_id"] for row in rows if row["was_there"]}
    asked = [Asked(session_id=one, reason=REMEMBERS_NOTHING) for one in sessions if one in there]
    return await transit_many(connection, Event.FAIL, asked, cause=Cause(by=f"agent:{agent_id}"), now=now)


async def _ask_again(connection: Connection, agent_id: AgentId, inventory: Sequence[UUID], now: datetime) -> None:
    """Intents without an answer are due at once; a kernel that its inventory leaves out is asked about, not given up."""
    await connection.execute(
        """
        UPDATE kernels SET next_try_at = $3, tries = 0, claimed_until = NULL,
            seen_generation = CASE WHEN id = ANY($2::uuid[]) THEN seen_generation
                ELSE least(seen_generation, generation - 1) END
        WHERE id IN (
            SELECT id FROM kernels WHERE agent_id = $1 AND want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'
                AND (seen_generation < generation OR NOT id = ANY($2::uuid[]))
            FOR UPDATE SKIP LOCKED)  -- what somebody is writing at this moment is heard of without being asked about
        """,
        agent_id,
        list(inventory),
        now,
    )


# -- the administrators' view ------------------------------------------------------------------------------------------
async def list_agents(connection: Connection) -> list[dict[str, Any]]:
    """Every agent with its resources, as administrators see it."""
    return [dict(row) for row in await connection.fetch(f"{_AGENT} GROUP BY a.id ORDER BY a.id")]


async def get_agent(connection: Connection, agent_id: AgentId) -> dict[str, Any]:
    """Raises AgentNotFound."""
    row = await connection.fetchrow(f"{_AGENT} WHERE a.id = $1 GROUP BY a.id", agent_id)
    if row is None:
        raise AgentNotFound(agent=agent_id)
    return dict(row)


async def reported_slots(
    connection: Connection,
    *,
    only: AgentId | None = None,
    group: str | None = None,
    labels: Mapping[str, str] | None = None,
    gpu_model: str | None = None,
) -> list[tuple[str, dict[str, int]]]:
    """(architecture, {slot: amount}) of every agent that has ever said hello, used or not: what could be held at most.

    `group`, `labels`: only of agents that are in this resource group and have these labels. Devices are those of the model,
    also if they are out and may come back: `gpu` says how many, `gpu-mem/UUID` what can be shared of each.
    """
    rows = await connection.fetch(
        """
        SELECT a.architecture, jsonb_object_agg(r.name, greatest(r.reported, d.offered_mib)) AS slots,
            coalesce(jsonb_object_agg(d.name, jsonb_build_object('model', d.model, 'whole_only', d.info -> 'whole_only'))
                FILTER (WHERE d.name IS NOT NULL), '{}') AS devices
        FROM agents a JOIN resources r ON r.agent_id = a.id
        LEFT JOIN devices d ON d.agent_id = r.agent_id AND d.name = r.name
        WHERE ($1::text IS NULL OR a.id = $1) AND ($2::text IS NULL OR a.resource_group = $2) AND a.labels @> $3
        GROUP BY a.id ORDER BY a.id
        """,
        only,
        group,
        dict(labels or {}),
    )
    return [(row["architecture"], _counted(row["slots"], row["devices"], gpu_model)) for row in rows]


def _counted(slots: Mapping[str, int], known: Mapping[str, Mapping[str, Any]], model: str | None) -> dict[str, int]:
    counted = {name: amount for name, amount in slots.items() if not name.startswith(DEVICE)}
    for name in sorted(name for name, amount in slots.items() if name.startswith(DEVICE) and amount > 0):
        device = known.get(name, {})
        if is_of_model(device.get("model") or "", model):
            counted[GPU] = counted.get(GPU, 0) + 1
            if not device.get("whole_only"):
                counted[f"{GPU_SHARE}/{name.removeprefix(DEVICE)}"] = slots[name]
    return counted


_AGENT: Final = """
    SELECT a.id, a.hostname, a.architecture, a.version, a.schedulable, a.lost, a.boot_no, a.info, a.images, a.seen_at,
        a.lease_until, a.created_at, a.resource_group, a.labels, a.cordoned_at, a.cordon_reason, a.draining, a.drain_moves,
        a.drain_until, a.drained_at, a.revoked_at,
        coalesce(jsonb_object_agg(r.name, jsonb_build_object('capacity', r.reported, 'used', r.used))
            FILTER (WHERE r.name IS NOT NULL), '{}') AS resources,
        (SELECT count(*) FROM kernels k WHERE k.agent_id = a.id AND k.want <> 'NONE'
            AND k.observed IS DISTINCT FROM 'GONE') AS kernels
    FROM agents a LEFT JOIN resources r ON r.agent_id = a.id
"""


async def assign(connection: Connection, agent_id: AgentId, group: str) -> None:
    """Into another resource group, while nothing lives there. Raises AgentNotFound, ResourceGroupNotFound, StillInUse."""
    # FOR UPDATE: who places something there holds a key share of this row, and sees what has become of it
    now_in = await connection.fetchval("SELECT resource_group FROM agents WHERE id = $1 FOR UPDATE", agent_id)
    if now_in is None:
        raise AgentNotFound(agent=agent_id)
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM resource_groups WHERE name = $1)", group):
        raise ResourceGroupNotFound(f"There is no resource group '{group}'.", resource_group=group)
    kernels = await connection.fetchval(
        "SELECT count(*) FROM kernels WHERE agent_id = $1 AND want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'",
        agent_id,
    )
    if kernels and now_in != group:
        raise StillInUse(
            f"{kernels} kernels live on the agent '{agent_id}', of sessions of the resource group '{now_in}'; drain it first."
        )
    await connection.execute("UPDATE agents SET resource_group = $2 WHERE id = $1", agent_id, group)


async def set_labels(connection: Connection, agent_id: AgentId, labels: Mapping[str, str]) -> None:
    await connection.execute("UPDATE agents SET labels = $2 WHERE id = $1", agent_id, dict(labels))


async def remove(connection: Connection, agent_id: AgentId, *, now: datetime, lost_for_good: bool = False) -> None:
    """Forget an agent. Raises AgentNotFound, and StillInUse while kernels live there.

    `lost_for_good` is an administrator's word that a lost host will not come back with containers: its slots are freed.
    Sessions there have to be ended first all the same.
    """
    lost = await connection.fetchval("SELECT lost FROM agents WHERE id = $1 FOR UPDATE", agent_id)
    if lost is None:
        raise AgentNotFound(agent=agent_id)
    living = await connection.fetch(
        """
        SELECT k.id, s.ended_at IS NULL AND k.attempt = s.attempt AS live FROM kernels k JOIN sessions s ON s.id = k.session_id
        WHERE k.agent_id = $1 AND k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE'
        """,
        agent_id,
    )
    if any(row["live"] for row in living) or (living and not (lost and lost_for_good)):
        raise StillInUse(f"{len(living)} kernels live on the agent '{agent_id}'; end their sessions first.")
    await release(connection, [row["id"] for row in living], now=now)
    await connection.execute(
        "UPDATE kernels SET agent_id = NULL, want = 'NONE', observed = 'GONE' WHERE agent_id = $1", agent_id
    )
    await connection.execute("DELETE FROM agents WHERE id = $1", agent_id)
    await emit(connection, "agent.removed", now=now, cause=Cause(by="manager"), data={"agent": agent_id})


# -- the managers that agents dial -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerRow:
    id: UUID
    role: str
    agent_url: str

    def to_json(self) -> dict[str, Any]:
        """As `Welcome` and heartbeats tell agents."""
        return {"id": str(self.id), "role": self.role, "url": self.agent_url}


async def addresses(connection: Connection, *, most: int = 256) -> list[str]:
    """Of PostgreSQL and of agents' hosts, which are closed to sessions. A larger installation names its networks to its agents."""
    row = await connection.fetchrow(
        """
        SELECT host(inet_server_addr()) AS postgres,
            ARRAY(SELECT DISTINCT info ->> 'address' FROM agents WHERE info ->> 'address' <> '' ORDER BY 1 LIMIT $1) AS hosts
        """,
        most + 1,
    )
    assert row is not None
    hosts = row["hosts"] if len(row["hosts"]) <= most else []
    return [*([row["postgres"]] if row["postgres"] else []), *hosts]


async def register_manager(
    connection: Connection, manager_id: UUID, *, role: str, agent_url: str | None, now: datetime | None = None
) -> None:
    """Say that this process is there; again and again, as its sign of life. By the database's clock, unless told another."""
    await connection.execute(
        """
        INSERT INTO managers (id, role, agent_url, started_at, seen_at)
        SELECT $1, $2, $3, at, at FROM coalesce($4::timestamptz, clock_timestamp()) AS at
        ON CONFLICT (id) DO UPDATE SET agent_url = EXCLUDED.agent_url, seen_at = EXCLUDED.seen_at
        """,
        manager_id,
        role,
        agent_url,
        now,
    )


async def succeed(connection: Connection, manager_id: UUID, agent_url: str, *, now: datetime) -> bool:
    """Take over from a process that had this address, which is dead then: what it had claimed waits for nobody any more."""
    dead = await connection.fetch(
        "DELETE FROM managers WHERE agent_url = $1 AND id <> $2 RETURNING id", agent_url, manager_id
    )
    if not dead:
        return False
    ids = [row["id"] for row in dead]
    await connection.execute(
        "UPDATE kernels SET claimed_until = NULL WHERE claimed_by = ANY($1::uuid[]) AND claimed_until IS NOT NULL", ids
    )
    await connection.execute(
        "UPDATE tasks SET lease_until = $2 WHERE claimed_by = ANY($1::uuid[]) AND status = 'running'", ids, now
    )
    await connection.execute(
        "UPDATE webhook_deliveries SET lease_until = $2 WHERE claimed_by = ANY($1::uuid[]) AND status = 'queued'",
        ids,
        now,
    )
    return True


async def list_managers(
    connection: Connection, *, now: datetime | None = None, alive_seconds: float = 30.0
) -> list[ManagerRow]:
    """The managers that agents should dial: those with an address that have been seen lately."""
    rows = await connection.fetch(
        """
        SELECT id, role, agent_url FROM managers
        WHERE agent_url IS NOT NULL AND seen_at > coalesce($1::timestamptz, clock_timestamp()) - $2::interval
        ORDER BY started_at, id
        """,
        now,
        timedelta(seconds=alive_seconds),
    )
    return [ManagerRow(id=row["id"], role=row["role"], agent_url=row["agent_url"]) for row in rows]


async def unregister_manager(connection: Connection, manager_id: UUID) -> None:
    await connection.execute("DELETE FROM managers WHERE id = $1", manager_id)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
