"""Services of sessions: what shall run, what agents say of it, and who may pass the proxy to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from agent.wire import ServiceFact
from domain.errors import ServiceNotFound, ServiceRuns, TicketExpired, TicketInvalid, TicketUsed, WrongStatus
from domain.ids import AgentId, SessionId
from domain.names import as_uuid
from domain.principal import Principal
from domain.session import ANSWERING
from repositories.database import Connection
from repositories.transit import Cause, emit

#: A pass lasts a working day; it ends before with its service, its session or its keypair.
PASS_HOURS: Final = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInstance:
    """One service in one kernel, as its agent last said."""

    kernel_id: UUID
    kernel: str  #: main1, worker1, ...
    state: str  #: starting, healthy, unhealthy, failed, stopped
    restarts: int
    message: str | None
    log_tail: str | None
    run_id: str | None
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    """What shall run in a session, and what is known of it."""

    session_id: UUID
    name: str
    kind: str
    protocol: str
    port: int
    kernels: str
    spec: dict[str, Any]
    keep_prefix: bool
    generation: int
    settled: bool
    started_at: datetime
    instances: list[ServiceInstance] = field(default_factory=list)

    @property
    def health(self) -> str:
        """Of all instances together: one that answers is enough to be served."""
        states = {instance.state for instance in self.instances}
        if not states or not self.settled:
            return "starting"
        if states == {"healthy"}:
            return "healthy"
        if "healthy" in states:
            return "degraded"
        return "failed" if states <= {"failed", "stopped"} else "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewService:
    name: str
    kind: str
    protocol: str
    port: int
    kernels: str
    spec: dict[str, Any]
    keep_prefix: bool
    deadline_at: datetime


_COLUMNS: Final = "session_id, name, kind, protocol, port, kernels, spec, keep_prefix, generation, settled, started_at"
_INSTANCES: Final = """
    SELECT i.session_id, i.name AS service, i.kernel_id, k.role || k.idx AS kernel, i.restarts, i.message, i.log_tail,
        i.run_id, i.changed_at, CASE WHEN i.attempt = s.attempt AND s.ended_at IS NULL AND k.observed = 'RUNNING' THEN i.state
            ELSE 'stopped' END AS state
    FROM service_instances i JOIN kernels k ON k.id = i.kernel_id AND k.left_at IS NULL JOIN sessions s ON s.id = i.session_id
"""


class ServiceRepository:
    """The services of one session that was loaded and checked."""

    def __init__(self, connection: Connection, session_id: SessionId, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._session_id = session_id
        self._now = now
        self._cause = cause

    async def all(self) -> list[ServiceRow]:
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM services WHERE session_id = $1 ORDER BY name", self._session_id
        )
        found = await self._connection.fetch(
            f"{_INSTANCES} WHERE i.session_id = $1 ORDER BY k.role, k.idx", self._session_id
        )
        return [
            ServiceRow(
                **row,
                instances=[
                    ServiceInstance(
                        **{name: value for name, value in i.items() if name not in ("session_id", "service")}
                    )
                    for i in found
                    if i["service"] == row["name"]
                ],
            )
            for row in rows
        ]

    async def get(self, name: str) -> ServiceRow:
        """Raises ServiceNotFound."""
        for service in await self.all():
            if service.name == name:
                return service
        raise ServiceNotFound(
            f"The session has no service '{name[:80]}'; 'moorage service ls' lists those that it has."
        )

    async def declare(self, new: NewService) -> tuple[ServiceRow, bool]:
        """The row, and whether it is new. Raises ServiceRuns for one with other settings, PortConflict, WrongStatus."""
        row = await self._connection.fetchrow(
            f"""
            INSERT INTO services ({_COLUMNS}, deadline_at)
            SELECT s.id, $2, $3, $4, $5, $6, $7, $8, (extract(epoch FROM clock_timestamp()) * 1e6)::bigint, false, $9, $10
            FROM sessions s WHERE s.id = $1 AND s.status = ANY($11)
            ON CONFLICT (session_id, name) DO NOTHING RETURNING {_COLUMNS}
            """,
            self._session_id,
            new.name,
            new.kind,
            new.protocol,
            new.port,
            new.kernels,
            new.spec,
            new.keep_prefix,
            self._now,
            new.deadline_at,
            sorted(ANSWERING),
        )
        if row is not None:
            return ServiceRow(**row), True
        try:
            there = await self.get(new.name)
        except ServiceNotFound:
            raise WrongStatus("The session has ended meanwhile; nothing was started.") from None
        same = (there.port, there.spec, there.kernels, there.kind) == (new.port, new.spec, new.kernels, new.kind)
        if not same:
            raise ServiceRuns(
                f"The session runs a service '{new.name}' with other settings; 'moorage service stop' it first, or "
                "choose another name."
            )
        return there, False

    async def settle(self, service: ServiceRow, facts: Sequence[tuple[AgentId, ServiceFact]]) -> bool:
        """It answers: from now on managers see to it that it runs. False when it was shut down meanwhile."""
        settled = await self._connection.fetchval(
            "UPDATE services SET settled = true WHERE session_id = $1 AND name = $2 AND generation = $3 RETURNING true",
            self._session_id,
            service.name,
            service.generation,
        )
        for agent_id, fact in facts:
            await record_services(self._connection, agent_id, [fact], now=self._now, cause=self._cause)
        return bool(settled)

    async def ending(self, name: str, generation: int, overdue_at: datetime) -> bool:
        """It is being shut down: the proxy sends it nothing more, and nobody starts it again. False when it was not there."""
        return bool(
            await self._connection.fetchval(
                """
                UPDATE services SET settled = false, deadline_at = $4
                WHERE session_id = $1 AND name = $2 AND generation = $3 RETURNING true
                """,
                self._session_id,
                name,
                generation,
                overdue_at,
            )
        )

    async def remove(self, name: str, *, generation: int | None = None, stopped: bool = False) -> bool:
        """False when it was not there. `stopped`: say so, it had run."""
        row = await self._connection.fetchrow(
            """
            DELETE FROM services v USING sessions s WHERE v.session_id = $1 AND v.name = $2 AND s.id = v.session_id
            AND ($3::bigint IS NULL OR v.generation = $3) RETURNING s.user_id, s.domain, v.settled, v.port
            """,
            self._session_id,
            name,
            generation,
        )
        if row is None:
            return False
        await self._connection.execute(
            "DELETE FROM service_tickets WHERE session_id = $1 AND name = $2", self._session_id, name
        )
        if stopped:
            await emit(
                self._connection,
                "service.stopped",
                now=self._now,
                cause=self._cause,
                session_id=self._session_id,
                user_id=row["user_id"],
                domain=row["domain"],
                data={"service": name, "message": "It was shut down."},
            )
        return True

    async def issue(self, name: str, token_hash: bytes, *, kind: str, by: Principal, seconds: float) -> None:
        """Let its holder pass the proxy: a ticket for one exchange, or a pass."""
        await self._connection.execute(
            """
            INSERT INTO service_tickets (token_hash, kind, session_id, name, user_id, access_key, expires_at, created_at,
                token_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            """,
            token_hash,
            kind,
            self._session_id,
            name,
            by.user_id,
            by.access_key,
            self._now + timedelta(seconds=seconds),
            self._now,
            by.token_id,
        )


# -- what agents say ---------------------------------------------------------------------------------------------------
async def record_services(
    connection: Connection,
    agent_id: AgentId,
    facts: Sequence[ServiceFact],
    *,
    now: datetime,
    cause: Cause | None = None,
) -> set[SessionId]:
    """The sessions of which something new is known. An agent speaks of its own kernels, and of services that shall run."""
    changed: set[SessionId] = set()
    for fact in facts:
        kernel_id = as_uuid(fact.kernel_id)
        row = await connection.fetchrow(
            """
            WITH known AS (
                SELECT v.session_id, v.name, k.id AS kernel_id, k.role || k.idx AS kernel, s.user_id, s.domain, i.state
                FROM kernels k JOIN sessions s ON s.id = k.session_id AND s.attempt = $3
                JOIN services v ON v.session_id = s.id AND v.name = $4 AND v.generation = $5
                LEFT JOIN service_instances i ON i.session_id = v.session_id AND i.name = v.name AND i.kernel_id = k.id
                WHERE k.id = $1 AND k.agent_id = $2
            ), written AS (
                INSERT INTO service_instances AS i (session_id, name, kernel_id, attempt, generation, state, restarts,
                    message, log_tail, run_id, changed_at, boot_no, report_seq)
                SELECT session_id, name, kernel_id, $3, $5, $6, $7, $8, $9, $10, $11, $12, $13 FROM known
                ON CONFLICT (session_id, name, kernel_id) DO UPDATE SET attempt = excluded.attempt,
                    generation = excluded.generation, state = excluded.state, restarts = excluded.restarts,
                    message = excluded.message, log_tail = excluded.log_tail, run_id = excluded.run_id,
                    changed_at = excluded.changed_at, boot_no = excluded.boot_no, report_seq = excluded.report_seq
                WHERE (i.boot_no, i.report_seq) < (excluded.boot_no, excluded.report_seq) OR i.attempt < excluded.attempt
                    OR i.generation < excluded.generation
                RETURNING 1
            )
            SELECT known.* FROM known, written
            """,
            kernel_id,
            agent_id,
            fact.attempt,
            fact.name,
            fact.generation,
            fact.state if fact.state in _STATES else "unhealthy",
            fact.restarts,
            _text(fact.message),
            _text(fact.log_tail),
            _text(fact.run_id),
            now,
            fact.boot_no,
            fact.seq,
        )
        if row is None:
            continue
        changed.add(SessionId(row["session_id"]))
        if (kind := _event(row["state"], fact.state)) is not None:
            data = {"service": fact.name, "kernel": row["kernel"], "message": _text(fact.message)}
            await emit(
                connection,
                kind,
                now=now,
                cause=cause or Cause(by="agent"),
                session_id=SessionId(row["session_id"]),
                user_id=row["user_id"],
                domain=row["domain"],
                data={**data, "restarts": fact.restarts},
            )
    return changed


_STATES: Final = ("starting", "healthy", "unhealthy", "failed", "stopped")


def _event(before: str | None, after: str) -> str | None:
    match before, after:
        case ("healthy", "healthy"):
            return None
        case (_, "healthy"):
            return "service.started"
        case (_, "unhealthy"):
            return "service.unhealthy" if before != "unhealthy" else None
        case (_, "failed" | "stopped"):
            return "service.stopped" if before != after else None
        case _:
            return None


def _text(value: Any) -> str | None:
    return str(value)[:8192].replace("\0", "�") if value is not None else None


# -- the proxy ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    agent_id: AgentId
    kernel_id: UUID
    attempt: int
    healthy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A service as the proxy sees it: where it is, and how it wants to be spoken to."""

    session_id: UUID
    user_id: UUID
    name: str
    protocol: str
    port: int
    keep_prefix: bool
    generation: int
    backends: tuple[Backend, ...]


#: Whether who asked for a ticket may still enter its session: the account, the keypair, the token that it was asked with,
#: and the relation to the session, as `actions.base.owner_or_admin` has it.
_STILL: Final = """
    EXISTS (
        SELECT FROM users u JOIN domains d ON d.name = u.domain AND d.active
        JOIN keypairs p ON p.access_key = t.access_key AND p.active AND p.user_id = u.id
        JOIN sessions s ON s.id = t.session_id AND s.ended_at IS NULL
        WHERE u.id = t.user_id AND u.active AND u.role <> 'monitor'
        AND (s.user_id = u.id AND EXISTS (SELECT FROM project_members m WHERE m.project_id = s.project_id AND m.user_id = u.id)
            OR u.role = 'superadmin' OR (u.role = 'domain_admin' AND u.domain = s.domain))
        AND (t.token_id IS NULL OR EXISTS (SELECT FROM tokens o WHERE o.id = t.token_id AND o.expires_at > {now})))
"""


async def exchange(connection: Connection, ticket: str, name: str, pass_hash: bytes, *, now: datetime) -> UUID:
    """Use up a ticket for a pass; the session's id. Raises TicketInvalid, TicketUsed, TicketExpired, and says no more."""
    row = await connection.fetchrow(
        f"""
        WITH used AS (
            UPDATE service_tickets t SET used_at = $3 FROM services v
            WHERE t.token_hash = $1 AND t.kind = 'ticket' AND t.name = $2 AND t.used_at IS NULL AND t.expires_at > $3
            AND v.session_id = t.session_id AND v.name = t.name AND {_STILL.format(now="$3")} RETURNING t.*
        ), made AS (
            INSERT INTO service_tickets (token_hash, kind, session_id, name, user_id, access_key, expires_at, created_at,
                token_id)
            SELECT $4, 'pass', session_id, name, user_id, access_key, $5, $3, token_id FROM used RETURNING session_id
        )
        SELECT session_id FROM made
        """,
        hashed(ticket),
        name,
        now,
        pass_hash,
        now + timedelta(hours=PASS_HOURS),
    )
    if row is not None:
        return row["session_id"]  # type: ignore[no-any-return]
    known = await connection.fetchrow(
        "SELECT name, used_at, expires_at FROM service_tickets WHERE token_hash = $1 AND kind = 'ticket'",
        hashed(ticket),
    )
    if known is None or known["name"] != name:
        raise TicketInvalid
    if known["used_at"] is not None:
        raise TicketUsed
    if known["expires_at"] <= now:
        raise TicketExpired
    raise TicketInvalid


async def admitted(connection: Connection, token: str, session_id: UUID, name: str, *, now: datetime) -> bool:
    """Whether this pass is good for this service of this session at this moment."""
    return bool(
        await connection.fetchval(
            f"""
            SELECT true FROM service_tickets t
            WHERE t.token_hash = $1 AND t.kind = 'pass' AND t.session_id = $2 AND t.name = $3 AND t.expires_at > $4
            AND {_STILL.format(now="$4")}
            """,
            hashed(token),
            session_id,
            name,
            now,
        )
    )


async def no_longer_admitted(
    connection: Connection, passes: Sequence[tuple[bytes, UUID, str]], *, now: datetime
) -> list[int]:
    """Places of those of (hash of a pass, session, service) whose holders may not stay. What is open outlives its pass."""
    rows = await connection.fetch(
        f"""
        SELECT w.place FROM unnest($1::bytea[], $2::uuid[], $3::text[]) WITH ORDINALITY
            AS w (token_hash, session_id, name, place)
        WHERE NOT EXISTS (
            SELECT FROM service_tickets t WHERE t.token_hash = w.token_hash AND t.kind = 'pass'
            AND t.session_id = w.session_id AND t.name = w.name AND {_STILL.format(now="$4")})
        """,
        [token_hash for token_hash, _, _ in passes],
        [session_id for _, session_id, _ in passes],
        [name for _, _, name in passes],
        now,
    )
    return [row["place"] - 1 for row in rows]


async def port_route(connection: Connection, session_id: UUID, name: str) -> Route | None:
    """The port of a kernel that a pass for `~PORT` or `~PORT.KERNEL` names."""
    port, _, kernel = name.removeprefix("~").partition(".")
    if not port.isdigit() or not 0 < int(port[:6]) < 65536:
        return None
    row = await connection.fetchrow(
        """
        SELECT s.user_id, s.attempt, k.id AS kernel_id, k.agent_id FROM sessions s JOIN kernels k ON k.session_id = s.id
        WHERE s.id = $1 AND s.status = ANY($2) AND k.agent_id IS NOT NULL AND k.observed = 'RUNNING'
        AND CASE WHEN $3 = '' THEN k.id = s.main_kernel_id ELSE k.role || k.idx = $3 END
        """,
        session_id,
        sorted(ANSWERING),
        kernel,
    )
    if row is None:
        return None
    backend = Backend(
        agent_id=AgentId(row["agent_id"]), kernel_id=row["kernel_id"], attempt=row["attempt"], healthy=True
    )
    return Route(
        session_id=session_id,
        user_id=row["user_id"],
        name=name,
        protocol="tcp",
        port=int(port),
        keep_prefix=False,
        generation=0,
        backends=(backend,),
    )


async def route_of(connection: Connection, session_id: UUID, name: str) -> Route | None:
    """None when there is no such service that could be reached now."""
    if name.startswith("~"):
        return await port_route(connection, session_id, name)
    rows = await connection.fetch(
        """
        SELECT v.protocol, v.port, v.keep_prefix, v.generation, s.user_id, s.attempt, k.id AS kernel_id, k.agent_id,
            i.state = 'healthy' AND i.attempt = s.attempt AND i.generation = v.generation AS healthy
        FROM services v JOIN sessions s ON s.id = v.session_id AND s.status = ANY($3)
        JOIN service_instances i ON i.session_id = v.session_id AND i.name = v.name
        JOIN kernels k ON k.id = i.kernel_id AND k.agent_id IS NOT NULL AND k.want = 'RUN' AND k.observed = 'RUNNING'
        WHERE v.session_id = $1 AND v.name = $2 AND v.settled ORDER BY k.role, k.idx
        """,
        session_id,
        name,
        sorted(ANSWERING),
    )
    if not rows:
        return None
    first = rows[0]
    return Route(
        session_id=session_id,
        user_id=first["user_id"],
        name=name,
        protocol=first["protocol"],
        port=first["port"],
        keep_prefix=first["keep_prefix"],
        generation=first["generation"],
        backends=tuple(
            Backend(
                agent_id=AgentId(row["agent_id"]),
                kernel_id=row["kernel_id"],
                attempt=row["attempt"],
                healthy=bool(row["healthy"]),
            )
            for row in rows
        ),
    )


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


# -- what is missing ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A kernel in which a service shall run that has not been started there."""

    session_id: UUID
    name: str
    spec: dict[str, Any]
    generation: int
    kernel_id: UUID
    agent_id: AgentId
    attempt: int

    @property
    def key(self) -> tuple[UUID, str, int]:
        return self.kernel_id, self.name, self.attempt


async def missing(connection: Connection) -> list[Missing]:
    """Inference sessions are seen to by others, with their kernels."""
    rows = await connection.fetch(
        """
        SELECT v.session_id, v.name, v.spec, v.generation, k.id AS kernel_id, k.agent_id, s.attempt
        FROM services v JOIN sessions s ON s.id = v.session_id AND s.status = ANY($1) AND s.session_type <> 'inference'
        JOIN kernels k ON k.session_id = s.id AND k.attempt = s.attempt AND k.want = 'RUN' AND k.observed = 'RUNNING'
            AND CASE v.kernels WHEN 'all' THEN true WHEN 'main' THEN k.id = s.main_kernel_id
                ELSE k.role || k.idx = v.kernels END
        LEFT JOIN service_instances i ON i.session_id = v.session_id AND i.name = v.name AND i.kernel_id = k.id
            AND i.attempt = s.attempt AND i.generation = v.generation
        WHERE v.settled AND i.kernel_id IS NULL ORDER BY v.started_at LIMIT 200
        """,
        sorted(ANSWERING),
    )
    return [Missing(**row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A start that nobody has finished within its time."""

    session_id: UUID
    name: str
    generation: int
    attempt: int
    kernels: list[tuple[AgentId, UUID]]


async def abandoned(connection: Connection, *, now: datetime) -> list[Abandoned]:
    rows = await connection.fetch(
        """
        SELECT v.session_id, v.name, v.generation, s.attempt,
            coalesce(array_agg(k.agent_id) FILTER (WHERE k.id IS NOT NULL), '{}') AS agents,
            coalesce(array_agg(k.id) FILTER (WHERE k.id IS NOT NULL), '{}') AS kernels
        FROM services v JOIN sessions s ON s.id = v.session_id
        LEFT JOIN kernels k ON k.session_id = s.id AND k.want = 'RUN' AND k.observed = 'RUNNING'
        WHERE NOT v.settled AND v.deadline_at < $1 GROUP BY 1, 2, 3, 4 LIMIT 50
        """,
        now,
    )
    return [
        Abandoned(
            session_id=row["session_id"],
            name=row["name"],
            generation=row["generation"],
            attempt=row["attempt"],
            kernels=list(zip(map(AgentId, row["agents"]), row["kernels"], strict=True)),
        )
        for row in rows
    ]


async def discard(connection: Connection, row: Abandoned) -> None:
    await connection.execute(
        "DELETE FROM services WHERE session_id = $1 AND name = $2 AND generation = $3 AND NOT settled",
        row.session_id,
        row.name,
        row.generation,
    )
