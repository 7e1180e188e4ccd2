"""An installation with four people, one image, one host and some sessions, behind the real door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

import aiohttp
import orjson
import pytest

from actions.administration import hash_secret
from agent.client import AgentClient
from manager.herald import Herald
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from manager.world import World
from repositories.database import Database
from tests.rest.host import MemoryHost

SECRET: Final = "s" * 43
PEOPLE: Final = {"alice": "user", "mallory": "user", "root": "superadmin", "watcher": "monitor"}
RUNNING: Final = UUID("11111111-0000-7000-8000-000000000001")
PENDING: Final = UUID("11111111-0000-7000-8000-000000000002")
ENDED: Final = UUID("11111111-0000-7000-8000-000000000003")
HOST: Final = "host-1"
IMAGE: Final = "moorage/python:3.11"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json", self.body[:200]
        assert self.json["request_id"] == self.headers["X-Request-Id"]
        assert self.json["status"] == self.status
        return str(self.json["code"])


@dataclass
class Caller:
    """One person's HTTP client."""

    http: aiohttp.ClientSession
    base: str
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, json: Any = None, **options: Any) -> Answer:
        async with self.request(method, path, json, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    def request(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        from yarl import URL

        headers = {**self.headers, **options.pop("headers", {})}
        if json is not None:
            options["data"] = orjson.dumps(json)
            headers["Content-Type"] = "application/json"
        return self.http.request(method, URL(self.base + path, encoded=True), headers=headers, **options)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> Answer:
        return await self.ask("POST", path, json, **options)


@dataclass
class Installation:
    door: RestDoor
    world: World
    host: MemoryHost
    port: int
    http: aiohttp.ClientSession
    metrics: Metrics

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def caller(self, who: str | None) -> Caller:
        headers = {} if who is None else {"Authorization": f"Bearer KEY-{who}.{SECRET}"}
        return Caller(self.http, self.base, headers)


@pytest.fixture
async def installation(database: Database) -> AsyncIterator[Installation]:
    await populate(database)
    herald = Herald(database.dsn)
    await herald.start()
    host, metrics = MemoryHost(), Metrics()
    world = World.build(database, herald, cast(AgentClient, host), observe=metrics.observe)
    door = RestDoor(world, metrics, join_token=lambda secret: f"join-{secret}")
    port = await door.listen("127.0.0.1", 0)
    # Sockets are closed at once, so that none is left for the next test.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        yield Installation(door, world, host, port, http, metrics)
    await door.close(2.0)
    await herald.close()


@pytest.fixture
def alice(installation: Installation) -> Caller:
    return installation.caller("alice")


@pytest.fixture
def root(installation: Installation) -> Caller:
    return installation.caller("root")


@pytest.fixture
def nobody(installation: Installation) -> Caller:
    return installation.caller(None)


async def populate(database: Database) -> None:
    now = datetime.now(UTC)
    async with database.transaction() as connection:
        project = await connection.fetchval("SELECT id FROM projects WHERE name = 'default'")
        for number, (name, role) in enumerate(PEOPLE.items(), 1):
            user_id = UUID(int=number)
            await connection.execute(
                "INSERT INTO users (id, email, username, domain, role) VALUES ($1, $2, $3, 'default', $4)",
                user_id,
                f"{name}@example.org",
                name,
                role,
            )
            await connection.execute(
                "INSERT INTO project_members (project_id, user_id) VALUES ($1, $2)", project, user_id
            )
            await connection.execute(
                "INSERT INTO keypairs (access_key, secret_hash, user_id) VALUES ($1, $2, $3)",
                f"KEY-{name}",
                hash_secret(SECRET),
                user_id,
            )
        await connection.execute("INSERT INTO images (name, architecture) VALUES ($1, 'x86_64')", IMAGE)
        await connection.execute("INSERT INTO image_aliases (alias, image) VALUES ('python', $1)", IMAGE)
        await connection.execute(
            "INSERT INTO agents (id, fingerprint, architecture, seen_at, lease_until) VALUES ($1, 'f0', 'x86_64', $2, $3)",
            HOST,
            now,
            now + timedelta(days=1),
        )
        for slot, amount in (("cpu", 8000), ("mem", 8192)):
            await connection.execute(
                "INSERT INTO resources (agent_id, name, capacity, reported) VALUES ($1, $2, $3, $3)", HOST, slot, amount
            )
        for session_id, name, status in (
            (RUNNING, "train", "RUNNING"),
            (PENDING, "waits", "PENDING"),
            (ENDED, "over", "TERMINATED"),
        ):
            await add_session(connection, project, session_id, name, status, now)


async def add_session(connection: Any, project: UUID, session_id: UUID, name: str, status: str, now: datetime) -> None:
    kernel_id = UUID(int=session_id.int + 0x1000)
    await connection.execute(
        """
        INSERT INTO sessions (id, name, user_id, access_key, domain, project_id, session_type, cluster_mode, image,
            architecture, status, requested_slots, created_at, status_changed_at, started_at, ended_at, main_kernel_id)
        VALUES ($1, $2, $3, 'KEY-alice', 'default', $4, 'interactive', 'single-node', $5, 'x86_64', $6,
            '{"cpu": 1500, "mem": 512}', $7, $7, $8, $9, $10)
        """,
        session_id,
        name,
        UUID(int=1),
        project,
        IMAGE,
        status,
        now,
        now if status == "RUNNING" else None,
        now if status == "TERMINATED" else None,
        kernel_id,
    )
    await connection.execute(
        "INSERT INTO status_history (session_id, version, target, at) VALUES ($1, 1, 'PENDING', $2)", session_id, now
    )
    placed = status != "PENDING"
    await connection.execute(
        """
        INSERT INTO kernels (id, session_id, slots, agent_id, want, generation, observed, seen_generation)
        VALUES ($1, $2, '{"cpu": 1500, "mem": 512}', $3, $4, $5, $6, $5)
        """,
        kernel_id,
        session_id,
        HOST if placed else None,
        {"PENDING": "NONE", "RUNNING": "RUN"}.get(status, "GONE"),
        int(placed),
        {"PENDING": None, "RUNNING": "RUNNING"}.get(status, "GONE"),
    )
    if status == "RUNNING":
        for slot, amount in (("cpu", 1500), ("mem", 512)):
            await connection.execute(
                "INSERT INTO allocations (kernel_id, agent_id, name, amount) VALUES ($1, $2, $3, $4)",
                kernel_id,
                HOST,
                slot,
                amount,
            )
