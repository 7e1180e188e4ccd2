"""Rows for the control role's tests: users, sessions in the queue, agents that have said hello, and their facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from agent.wire import AgentHello, DeviceFact, Fact
from domain.ids import AgentId, KernelId, SessionId
from domain.scheduler import plan
from domain.session import Event
from repositories.agents import enrol, hello, issue_token
from repositories.database import Connection, Database
from repositories.kernels import Recorded, record_facts
from repositories.placement import Placed, place, snapshot
from repositories.transit import Cause, transit

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = datetime(2031, 1, 1, 12, tzinfo=UTC)
TEST = Cause(by="test")
USER = UUID(int=7)
PROJECT = UUID("00000000-0000-7000-8000-000000000001")


async def add_agent(
    connection: Connection,
    name: str,
    *,
    architecture: str = "x86_64",
    uid: str = "first",
    boot_no: int = 1,
    facts: Sequence[Fact] = (),
    now: datetime = NOW,
    lease_seconds: float = 1e6,
    **resources: int,
) -> AgentId:
    """Joined, and heard of for a long time to come."""
    agent_id = AgentId(name)
    if not await connection.fetchval("SELECT true FROM agents WHERE id = $1", agent_id):
        token = await issue_token(connection, expires_at=LATER, now=now)
        await enrol(connection, token, agent_id, f"fingerprint of {name}", now=now)
    said = said_hello(
        name,
        architecture=architecture,
        uid=uid,
        boot_no=boot_no,
        facts=facts,
        resources=resources or {"cpu": 8000, "mem": 8192},
    )
    await hello(connection, said, now=now, lease_seconds=lease_seconds)
    return agent_id


def said_hello(
    name: str,
    *,
    resources: Mapping[str, int],
    architecture: str = "x86_64",
    uid: str = "first",
    boot_no: int = 1,
    facts: Sequence[Fact] = (),
    holds: Mapping[str, Mapping[str, int]] | None = None,
    devices: Sequence[DeviceFact] = (),
) -> AgentHello:
    return AgentHello(
        agent_id=name,
        uid=uid,
        boot_no=boot_no,
        version="1",
        hostname=name,
        architecture=architecture,
        resources=dict(resources),
        facts=[fact.pack() for fact in facts],
        holds={kernel: dict(slots) for kernel, slots in (holds or {}).items()},
        devices=[device.pack() for device in devices],
    )


async def add_sessions(
    connection: Connection,
    number: int = 1,
    *,
    kernels: int = 1,
    priority: int = 10,
    architecture: str = "x86_64",
    created_at: datetime = NOW,
    cluster_mode: str = "single-node",
    max_wait: float | None = None,
    timeout: float | None = None,
    **slots: int,
) -> list[SessionId]:
    """PENDING sessions, as `SessionRepository.create` leaves them; in bulk."""
    ids = [SessionId(uuid4()) for _ in range(number)]
    mains = [uuid4() for _ in ids]
    await connection.execute(
        "INSERT INTO users (id, email, username, domain) VALUES ($1, 'u@example.org', 'u', 'default') ON CONFLICT DO NOTHING",
        USER,
    )
    await connection.execute(
        """
        INSERT INTO sessions (id, name, user_id, access_key, domain, project_id, session_type, cluster_mode, cluster_size,
            image, architecture, status, created_at, status_changed_at, priority, main_kernel_id, max_wait_seconds,
            timeout_seconds, expires_at)
        SELECT id, 's-' || id, $3, 'AK', 'default', $4, 'interactive', $5, $6, 'image', $7, 'PENDING', $8::timestamptz, $8::timestamptz, $9,
            main, $10::float8, $11::float8, $8::timestamptz + make_interval(secs => $10::float8)
        FROM unnest($1::uuid[], $2::uuid[]) AS f(id, main)
        """,
        ids, mains, USER, PROJECT, cluster_mode, kernels, architecture, created_at, priority, max_wait, timeout,
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO status_history (session_id, version, target, at) SELECT id, 1, 'PENDING', $2 FROM unnest($1::uuid[]) id",
        ids,
        created_at,
    )
    rows = [
        (main if index == 1 else uuid4(), session_id, "main" if index == 1 else "worker", index)
        for session_id, main in zip(ids, mains, strict=True)
        for index in range(1, kernels + 1)
    ]
    await connection.execute(
        """
        INSERT INTO kernels (id, session_id, role, idx, slots, spec)
        SELECT id, session_id, role, idx, $5::jsonb, jsonb_build_object('session_id', session_id, 'session_name', 'n', 'image', 'i')
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[]) AS f(id, session_id, role, idx)
        """,
        *([row[at] for row in rows] for at in range(4)),
        slots or {"cpu": 1000, "mem": 1024},
    )
    return ids


async def plan_and_place(connection: Connection, now: datetime = NOW) -> Placed:
    return await place(connection, plan(await snapshot(connection, now=now), now).placements, now=now)


async def kernels_of(connection: Connection, session_id: SessionId) -> list[dict[str, Any]]:
    rows = await connection.fetch("SELECT * FROM kernels WHERE session_id = $1 ORDER BY attempt, idx", session_id)
    return [dict(row) for row in rows]


async def fact_of(connection: Connection, session_id: SessionId, observed: str, seq: int, **changes: Any) -> Fact:
    """What the agent of its main kernel would say, having taken on the present intent."""
    kernel = (await kernels_of(connection, session_id))[0]
    values: dict[str, Any] = {
        "kernel_id": kernel["id"].hex,
        "attempt": kernel["attempt"],
        "generation": kernel["generation"],
        "observed": observed,
        "boot_no": 1,
        "seq": seq,
    }
    return Fact(**{**values, **changes})


async def tell(database: Database, agent_id: AgentId | str, *facts: Fact, now: datetime = NOW) -> Recorded:
    async with database.transaction() as connection:
        return await record_facts(connection, [(AgentId(agent_id), fact) for fact in facts], now=now)


async def running(database: Database, agent_id: str = "a", number: int = 1, **options: Any) -> list[SessionId]:
    """Sessions whose one agent has brought them up; the seq of its last fact is 10."""
    async with database.transaction() as connection:
        if not await connection.fetchval("SELECT true FROM agents WHERE id = $1", agent_id):
            await add_agent(connection, agent_id, cpu=10**9, mem=10**9)
        sessions = await add_sessions(connection, number, **options)
        await plan_and_place(connection)
        facts = [await fact_of(connection, one, "RUNNING", 10) for one in sessions]
    await tell(database, agent_id, *facts)
    return sessions


async def destroy(database: Database, session_id: SessionId, event: Event = Event.DESTROY) -> None:
    async with database.transaction() as connection:
        await transit(connection, session_id, event, cause=TEST, now=NOW)


async def status_of(database: Database, session_id: SessionId) -> str:
    return str((await row_of(database, session_id))["status"])


async def row_of(database: Database, session_id: SessionId) -> dict[str, Any]:
    async with database.reader() as connection:
        row = await connection.fetchrow("SELECT * FROM sessions WHERE id = $1", session_id)
        assert row is not None
        return dict(row)


async def history_of(database: Database, session_id: SessionId) -> list[str]:
    async with database.reader() as connection:
        rows = await connection.fetch(
            "SELECT target FROM status_history WHERE session_id = $1 ORDER BY version", session_id
        )
        return [row["target"] for row in rows]


async def events_of(database: Database, type: str) -> list[dict[str, Any]]:
    async with database.reader() as connection:
        return [dict(row) for row in await connection.fetch("SELECT * FROM events WHERE type = $1 ORDER BY id", type)]


async def assert_slots_add_up(database: Database) -> None:
    """`used` is what the allocations say, and every kernel that has a host and is not gone holds its slots."""
    async with database.reader() as connection:
        wrong = await connection.fetch(
            """
            SELECT r.agent_id, r.name, r.used, coalesce(sum(a.amount), 0) AS held
            FROM resources r LEFT JOIN allocations a USING (agent_id, name) GROUP BY r.agent_id, r.name
            HAVING r.used <> coalesce(sum(a.amount), 0)
            """
        )
        holes = await connection.fetch(
            """
            SELECT k.id FROM kernels k LEFT JOIN allocations a ON a.kernel_id = k.id
            WHERE (k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE') <> (a.kernel_id IS NOT NULL)
            """
        )
    assert wrong == []
    assert holes == []


def kernel_id(row: Mapping[str, Any]) -> KernelId:
    return KernelId(row["id"])
