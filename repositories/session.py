"""Sessions: one owner's view, and the administrators' view of everybody's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg

from domain.apps import EndReason, WorkerState
from domain.errors import (
    NameTaken,
    PreconditionFailed,
    SessionEnded,
    SessionExpired,
    SessionNotFound,
    SessionNotReady,
    WrongStatus,
)
from domain.ids import AccessKey, AgentId, KernelId, SessionId
from domain.names import as_uuid
from domain.resources import ResourceSlot
from domain.session import (
    ANSWERING,
    FINAL,
    LIVE,
    ClusterMode,
    Event,
    KernelState,
    OnAgentLost,
    Session,
    SessionKernel,
    SessionTypes,
    Status,
)
from repositories import tables
from repositories.database import Connection
from repositories.dependencies import rearm
from repositories.limits import charge, charge_anew, lock_limits
from repositories.transit import Cause, Moved, transit

_COLUMNS: Final = """
    s.id, s.name, s.user_id, s.access_key, s.domain, p.name AS project, s.session_type, s.cluster_mode, s.cluster_size,
    s.image, s.architecture, s.status, s.status_reason, s.attempt, s.version, s.activity, s.requested_slots, s.tag,
    s.environ, s.bootstrap_script, s.bootstrap_required, s.startup_command, s.shm_mib, s.priority, s.timeout_seconds,
    s.max_wait_seconds, s.starts_at, s.batch_timeout_seconds, s.max_retries, s.retry_delay_seconds, s.retries, s.retrying,
    s.outputs, s.labels, s.preopen_ports, s.callback_url, s.idle_timeout_seconds, s.resource_group, s.constraints,
    s.on_agent_lost, s.agent_lease_seconds,
    CASE WHEN s.unmet > 0 THEN ARRAY(
        SELECT o.name FROM session_dependencies d JOIN sessions o ON o.id = d.depends_on_id
        WHERE d.session_id = s.id AND d.met_at IS NULL ORDER BY o.created_at, o.id) END AS waits_for,
    s.result, s.exit_code, s.failed, s.agent_lost, s.notices, s.created_at, s.status_changed_at, s.started_at,
    s.ended_at, s.expires_at, s.last_activity_at, s.execution_count, s.bytes_in, s.bytes_out,
    s.main_kernel_id, k.agent_id, k.observed, k.spec -> 'mounts' AS mounts,
    k.spec ->> 'profile' AS profile, k.spec ->> 'egress' AS egress, k.seen_generation < k.generation AS pending,
    c.members, a.slots AS occupied,
    CASE WHEN s.status IN ('RUNNING', 'RUNNING_DEGRADED') THEN (
        SELECT jsonb_build_object('checker', i.checker, 'reason', i.reason, 'warned_at', i.warned_at, 'due_at', i.due_at)
        FROM idle_warnings i WHERE i.session_id = s.id) END AS idle_warning,
    w.app, CASE WHEN w.ready_attempt = s.attempt THEN w.ready_at END AS ready_at, w.idle_until_at, w.open_calls, w.call_count,
    w.last_call_at, CASE WHEN w.open_calls > 0 THEN (SELECT min(c.created_at) FROM calls c WHERE c.session_id = s.id
        AND c.status = 'open' AND c.sent_at IS NULL AND c.cancel_at IS NULL) END AS waiting_since,
    CASE WHEN w.session_id IS NOT NULL AND s.status IN ('TERMINATING', 'TERMINATED', 'CANCELLED', 'ERROR') THEN (
        SELECT CASE WHEN h.event = 'expire' THEN 'expired' WHEN h.event IN ('destroy', 'force') OR s.exit_code = 0 THEN 'ended'
            ELSE 'lost' END
        FROM status_history h WHERE h.session_id = s.id AND h.attempt = s.attempt
            AND h.event IN ('destroy', 'finish', 'expire', 'fail', 'force', 'skip', 'move')
        ORDER BY h.version LIMIT 1) END AS end_reason
"""
#: The main kernel says where the session is; what it holds is what the allocations say, of all its kernels.
_FROM: Final = """
    sessions s
    JOIN projects p ON p.id = s.project_id
    LEFT JOIN kernels k ON k.id = s.main_kernel_id
    LEFT JOIN workers w ON s.session_type = 'worker' AND w.session_id = s.id
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_array(m.id, m.role, m.idx, m.agent_id, m.observed,
                m.seen_generation < m.generation)
            ORDER BY m.id <> s.main_kernel_id, m.role, m.idx) AS members
        FROM kernels m
        WHERE s.cluster_size > 1 AND m.session_id = s.id AND m.attempt = s.attempt AND m.left_at IS NULL
    ) c ON true
    LEFT JOIN LATERAL (
        SELECT jsonb_object_agg(name, amount) AS slots FROM (
            -- whole devices by their number, shares by their memory
            SELECT CASE WHEN ak.slots ? 'gpu-mem' AND starts_with(al.name, 'gpu/') THEN 'gpu-mem'
                ELSE split_part(al.name, '/', 1) END AS name,
                sum(CASE WHEN NOT ak.slots ? 'gpu-mem' AND starts_with(al.name, 'gpu/') THEN 1 ELSE al.amount END) AS amount
            FROM allocations al JOIN kernels ak ON ak.id = al.kernel_id WHERE ak.session_id = s.id GROUP BY 1) held
    ) a ON s.status NOT IN ('PENDING', 'CANCELLED')
"""
_BY_ID: Final = f"""
    SELECT {_COLUMNS} FROM {_FROM}
    WHERE s.id = $1 AND ($2::uuid IS NULL OR s.user_id = $2) AND ($3::text IS NULL OR s.domain = $3)
"""
#: For whoever administers projects: their sessions, and one's own.
_BY_ID_IN_PROJECTS: Final = f"{_BY_ID} AND (s.user_id = $4 OR p.name = ANY($5::text[]))"
_NOT_FINAL: Final = tables.NOT_FINAL.replace("status", "s.status")
_BY_NAME: Final = f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name = $1 AND s.user_id = $2 AND {_NOT_FINAL}"


def session_from_row(row: Mapping[str, Any]) -> Session:
    return Session(
        id=row["id"],
        name=row["name"],
        user_id=row["user_id"],
        access_key=AccessKey(row["access_key"]),
        domain=row["domain"],
        project=row["project"],
        session_type=SessionTypes(row["session_type"]),
        cluster_mode=ClusterMode(row["cluster_mode"]),
        cluster_size=row["cluster_size"],
        image=row["image"],
        architecture=row["architecture"],
        status=Status(row["status"]),
        status_reason=row["status_reason"],
        attempt=row["attempt"],
        version=row["version"],
        activity=row["activity"],
        requested_slots=ResourceSlot.from_units(row["requested_slots"]),
        occupied_slots=ResourceSlot.from_units(row["occupied"] or {}),
        tag=row["tag"],
        environ=row["environ"],
        bootstrap_script=row["bootstrap_script"],
        bootstrap_required=row["bootstrap_required"],
        startup_command=row["startup_command"],
        shm_mib=row["shm_mib"],
        priority=row["priority"],
        timeout_seconds=row["timeout_seconds"],
        max_wait_seconds=row["max_wait_seconds"],
        starts_at=row["starts_at"],
        batch_timeout_seconds=row["batch_timeout_seconds"],
        max_retries=row["max_retries"],
        retry_delay_seconds=row["retry_delay_seconds"],
        retries=row["retries"],
        retrying=row["retrying"],
        outputs=tuple(row["outputs"]),
        mounts=tuple(row["mounts"] or ()),
        waits_for=tuple(row["waits_for"] or ()),
        labels=row["labels"],
        preopen_ports=tuple(row["preopen_ports"]),
        callback_url=row["callback_url"],
        idle_timeout_seconds=row["idle_timeout_seconds"],
        resource_group=row["resource_group"],
        constraints=row["constraints"],
        profile=row["profile"],
        egress=row["egress"],
        result=row["result"],
        exit_code=row["exit_code"],
        failed=row["failed"],
        agent_lost=row["agent_lost"],
        on_agent_lost=OnAgentLost(row["on_agent_lost"]),
        agent_lease_seconds=row["agent_lease_seconds"],
        notices=tuple(row["notices"]),
        idle_warning=row["idle_warning"],
        created_at=row["created_at"],
        status_changed_at=row["status_changed_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        expires_at=row["expires_at"],
        last_activity_at=row["last_activity_at"],
        execution_count=row["execution_count"],
        bytes_in=row["bytes_in"],
        bytes_out=row["bytes_out"],
        main_kernel_id=row["main_kernel_id"],
        agent_id=AgentId(row["agent_id"]) if row["agent_id"] else None,
        kernels=tuple(
            SessionKernel(
                id=KernelId(kernel_id if isinstance(kernel_id, UUID) else UUID(kernel_id)),
                role=role,
                index=index,
                agent_id=AgentId(agent_id) if agent_id else None,
                observed=KernelState(observed) if observed else None,
                pending=bool(pending),
            )
            for kernel_id, role, index, agent_id, observed, pending in row["members"]
            or [(row["main_kernel_id"], "main", 1, row["agent_id"], row["observed"], row["pending"])]
        ),
        worker=_worker(row) if row["app"] is not None else None,
        end_reason=None if row["end_reason"] is None else EndReason(row["end_reason"]),
    )


def _worker(row: Mapping[str, Any]) -> WorkerState:
    return WorkerState(**{name: row[name] for name in WorkerState.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKernel:
    """A kernel to be created with its session."""

    id: KernelId
    role: str
    index: int
    slots: ResourceSlot
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to look for; everything given must hold."""

    statuses: frozenset[Status] | None = None
    name_pattern: str | None = None  #: a LIKE pattern over the name, see `like`
    tag: str | None = None
    project: str | None = None
    labels: Sequence[tuple[str, str | None]] = ()  #: name and value; None: any value
    after: tuple[datetime, UUID] | None = None  #: the last (created_at, id) of the page before
    limit: int = 100


class SessionRepository:
    """One owner's sessions: the owner is in every WHERE, so what is not yours is not there."""

    def __init__(self, connection: Connection, user_id: UUID | None, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._user_id = user_id
        self._domain: str | None = None
        self._projects: Sequence[str] | None = None
        self._viewer: UUID | None = None
        self._now = now
        self._cause = cause

    async def get(self, name_or_id: str | UUID) -> Session:
        """By id, or by name among the owner's live sessions. Raises SessionNotFound."""
        session_id = name_or_id if isinstance(name_or_id, UUID) else as_uuid(name_or_id)
        if session_id is not None:
            row = await self._by_id(session_id)
        else:
            row = await self._connection.fetchrow(_BY_NAME, name_or_id, self._user_id)
        if row is None:
            raise SessionNotFound(session=str(name_or_id))
        return session_from_row(row)

    async def _by_id(self, session_id: UUID) -> Mapping[str, Any] | None:
        return await self._connection.fetchrow(_BY_ID, session_id, self._user_id, self._domain)

    async def create(
        self,
        session: Session,
        kernels: Sequence[NewKernel],
        *,
        member: UUID | None,
        chosen: Collection[str] = ("lifetime", "priority"),
    ) -> Session | None:
        """Insert a PENDING session; None when the owner has a live one of this name, or there is no such project.

        `member`: the project must be one of this user's. What is not `chosen` of its lifetime and priority becomes what
        its limits allow. Raises QuotaExceeded.
        """
        row = await self._connection.fetchrow(
            """
            WITH made AS (
                INSERT INTO sessions (id, name, user_id, access_key, domain, project_id, session_type, cluster_mode,
                    cluster_size, image, architecture, status, requested_slots, tag, environ, bootstrap_script,
                    bootstrap_required, startup_command, shm_mib, priority, timeout_seconds, max_wait_seconds,
                    created_at, status_changed_at, expires_at, main_kernel_id, notices, starts_at,
                    batch_timeout_seconds, max_retries, retry_delay_seconds, outputs, labels, preopen_ports, callback_url,
                    idle_timeout_seconds, resource_group, constraints, on_agent_lost, agent_lease_seconds)
                SELECT $1, $2, $3, $4, $5, p.id, $7, $8, $9, $10, $11, 'PENDING', $12, $13, $14, $15, $16, $17, $18, $19,
                    $20, $21::double precision, $22::timestamptz, $22,
                    $22::timestamptz + make_interval(secs => $21::double precision), $23, $26,
                    $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $39, $40
                FROM projects p WHERE p.name = $6 AND p.domain = $5 AND ($38::uuid IS NULL OR EXISTS (
                    SELECT FROM project_members m WHERE m.project_id = p.id AND m.user_id = $38))
                ON CONFLICT (user_id, name) WHERE status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED') DO NOTHING
                RETURNING *
            ), history AS (
                INSERT INTO status_history (session_id, version, target, at, cause)
                SELECT id, 1, 'PENDING', $22, $24::jsonb FROM made
            ), told AS (
                INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
                SELECT $22, 'session.pending', id, user_id, domain, $24::jsonb,
                    jsonb_build_object('name', name, 'status', 'PENDING', 'version', 1, 'attempt', 1) FROM made
            ), kernels AS (
                INSERT INTO kernels (id, session_id, role, idx, spec, slots, created_at)
                SELECT (k->>'id')::uuid, made.id, k->>'role', (k->>'index')::bigint, k->'spec', k->'slots', $22
                FROM made, jsonb_array_elements($25::jsonb) k
            )
            SELECT expires_at FROM made
            """,
            session.id,
            session.name,
            session.user_id,
            session.access_key,
            session.domain,
            session.project,
            session.session_type,
            session.cluster_mode,
            session.cluster_size,
            session.image,
            session.architecture,
            dict(session.requested_slots),
            session.tag,
            dict(session.environ),
            session.bootstrap_script,
            session.bootstrap_required,
            session.startup_command,
            session.shm_mib,
            session.priority,
            session.timeout_seconds,
            session.max_wait_seconds,
            self._now,
            session.main_kernel_id,
            self._cause.to_json(),
            [_kernel_json(kernel) for kernel in kernels],
            list(session.notices),
            session.starts_at,
            session.batch_timeout_seconds,
            session.max_retries,
            session.retry_delay_seconds,
            list(session.outputs),
            dict(session.labels),
            list(session.preopen_ports),
            session.callback_url,
            session.idle_timeout_seconds,
            session.resource_group,
            dict(session.constraints),
            member,
            session.on_agent_lost,
            session.agent_lease_seconds,
        )
        if row is None:
            return None
        if await self._charge(session.id, chosen):
            return await self.get(session.id)
        members = tuple(SessionKernel(id=kernel.id, role=kernel.role, index=kernel.index) for kernel in kernels)
        spec = kernels[0].spec
        return replace(
            session,
            expires_at=row["expires_at"],
            profile=spec.get("profile"),
            egress=spec.get("egress"),
            kernels=members,
        )

    async def _charge(self, session_id: SessionId, chosen: Collection[str]) -> bool:
        """Charge every limit that binds it, and tell its owner of what the limits have chosen, if they have."""
        if not (granted := await charge(self._connection, session_id, chosen)):
            return False
        amounts = {name: limit.amount for name, limit in granted.items()}
        await self._connection.execute(
            """
            UPDATE sessions SET timeout_seconds = coalesce($2, timeout_seconds), priority = coalesce($3, priority),
                notices = notices || $4::jsonb
            WHERE id = $1
            """,
            session_id,
            amounts.get("lifetime"),
            amounts.get("priority"),
            [{"kind": name, "message": limit.message} for name, limit in sorted(granted.items())],
        )
        await charge_anew(self._connection, session_id)
        return True

    async def lock_limits(self, session_id: SessionId) -> None:
        """Of a session whose resources will change: whoever locks limits and resources begins with the limits."""
        await lock_limits(self._connection, session_id)

    async def charge_anew(self, session_id: SessionId) -> None:
        """It has changed in this transaction. Raises QuotaExceeded when it has grown beyond a limit."""
        await charge_anew(self._connection, session_id)

    async def rename(self, session: Session, name: str) -> Session:
        """Raises NameTaken, or WrongStatus when the session has ended meanwhile."""
        return await self._update(session, "session.renamed", {"name": name})

    async def modify(self, session: Session, changes: Mapping[str, Any], *, version: int | None) -> Session:
        """Set columns of a live session; with `version` only while the row still has it, else PreconditionFailed."""
        return await self._update(session, "session.modified", changes, version=version)

    async def _update(
        self, session: Session, event: str, changes: Mapping[str, Any], *, version: int | None = None
    ) -> Session:
        table = tables.sessions
        lifetime: dict[str, Any] = {}
        if "timeout_seconds" in changes:  # counted from RUNNING, also when it is changed later
            running = table.c.status.in_([str(status) for status in ANSWERING])
            end = table.c.started_at + sa.func.make_interval(0, 0, 0, 0, 0, 0, changes["timeout_seconds"])
            lifetime["expires_at"] = sa.case((running, end), else_=table.c.expires_at)
        statement = (
            table.update()
            .where(table.c.id == session.id, table.c.status.in_([str(status) for status in LIVE]))
            .values(version=table.c.version + 1, **{k: _stored(v) for k, v in changes.items()}, **lifetime)
            .returning(table.c.version)
        )
        if self._user_id is not None:
            statement = statement.where(table.c.user_id == self._user_id)
        if version is not None:
            statement = statement.where(table.c.version == version)
        if await fetch(self._connection, statement) == []:
            now = await self.get(session.id)
            if now.status in FINAL:
                raise SessionEnded(status=now.status)
            raise PreconditionFailed(version=now.version)
        if session.worker is not None and "idle_timeout_seconds" in changes:  # what is left changes with it
            await self._connection.execute(
                """
                UPDATE workers SET idle_until_at = idle_until_at + make_interval(secs => $2)
                WHERE session_id = $1 AND idle_until_at IS NOT NULL
                """,
                session.id,
                float(changes["idle_timeout_seconds"]) - (session.idle_timeout_seconds or 0.0),
            )
        await self._connection.execute(
            """
            INSERT INTO events (at, type, session_id, user_id, domain, cause, data) VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            self._now,
            event,
            session.id,
            session.user_id,
            session.domain,
            self._cause.to_json(),
            {
                "before": {k: _plain(getattr(session, k)) for k in changes},
                "after": {k: _plain(v) for k, v in changes.items()},
            },
        )
        return await self.get(session.id)

    async def transit(self, session: Session, event: Event, *, reason: str | None = None) -> Moved:
        """Raises WrongStatus when the row's status, at the time of the write, does not allow `event`."""
        moved = await transit(
            self._connection, session.id, event, cause=self._cause, now=self._now, reason=reason, user_id=self._user_id
        )
        if moved is None:
            raise wrong_status(await self.get(session.id))
        return moved

    async def lock(self, session_id: SessionId) -> Session:
        """The session as it is, and stays until the transaction ends but for what this transaction does."""
        await self._connection.execute("SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE", session_id)
        return await self.get(session_id)

    async def bound_work(self, session_id: SessionId) -> None:
        """Its batch_timeout has changed: it counts from when the work began, also when it is changed later."""
        await self._connection.execute(
            """
            UPDATE sessions SET work_until_at = started_at + make_interval(secs => batch_timeout_seconds)
            WHERE id = $1 AND status IN ('RUNNING', 'RUNNING_DEGRADED')
            """,
            session_id,
        )

    async def serve(self, session_id: SessionId, service: Mapping[str, Any]) -> None:
        """What an inference session, which is being made, keeps running."""
        await self._connection.execute("UPDATE sessions SET inference = $2 WHERE id = $1", session_id, dict(service))

    async def give_up_retries(self, session: Session, *, reason: str) -> None:
        """It ends already, and now for good. The caller holds its lock."""
        await self._connection.execute(
            """
            UPDATE sessions SET retrying = false, status_reason = $2, version = version + 1
            WHERE id = $1 AND status = 'TERMINATING' AND retrying
            """,
            session.id,
            reason,
        )

    async def restart(self, session: Session, kernels: Sequence[NewKernel]) -> Moved:
        """A new attempt: in place while it runs, through the queue, with new kernels, when it had ended."""
        taken = await self._connection.fetchval(
            f"SELECT EXISTS (SELECT FROM sessions WHERE user_id = $1 AND name = $2 AND id <> $3 AND {tables.NOT_FINAL})",
            session.user_id,
            session.name,
            session.id,
        )
        if taken:
            raise NameTaken(name=session.name)
        moved = await self.transit(session, Event.RESTART)
        if moved.target is Status.PENDING:
            await self._connection.execute(
                """
                WITH made AS (
                    INSERT INTO kernels (id, session_id, attempt, role, idx, spec, slots, created_at)
                    SELECT (k->>'id')::uuid, s.id, s.attempt, k->>'role', (k->>'index')::bigint, k->'spec', k->'slots', $3
                    FROM sessions s, jsonb_array_elements($2::jsonb) k WHERE s.id = $1
                )
                UPDATE sessions SET main_kernel_id = $4, agent_lost = false WHERE id = $1
                """,
                session.id,
                [_kernel_json(kernel) for kernel in kernels],
                self._now,
                kernels[0].id,
            )
            await self._charge(session.id, ())  # it begins again, with what limits allow now
            if session.waits_for or session.starts_at is not None:
                await rearm(self._connection, [session.id], now=self._now)
        return moved

    async def grow(self, session: Session, kernels: Sequence[NewKernel]) -> None:
        """Add kernels to a running cluster, to be placed one by one; from now on it is charged for all it has."""
        await self._connection.execute(
            """
            INSERT INTO kernels (id, session_id, attempt, role, idx, spec, slots, created_at, joining)
            SELECT (k->>'id')::uuid, s.id, s.attempt, k->>'role', (k->>'index')::bigint, k->'spec', k->'slots', $3, true
            FROM sessions s, jsonb_array_elements($2::jsonb) k WHERE s.id = $1
            """,
            session.id,
            [_kernel_json(kernel) for kernel in kernels],
            self._now,
        )
        await charge_anew(self._connection, session.id)

    async def kernel_specs(self, session: Session) -> list[dict[str, Any]]:
        """{id, role, index, slots, spec} of the present attempt's kernels, the main one first."""
        rows = await self._connection.fetch(
            """
            SELECT id, role, idx AS index, slots, spec FROM kernels k WHERE session_id = $1
            AND left_at IS NULL
            AND attempt = (SELECT max(attempt) FROM kernels WHERE session_id = $1) ORDER BY id <> $2, role, idx
            """,
            session.id,
            session.main_kernel_id,
        )
        return [dict(row) for row in rows]

    async def ended_kernel(self, session_id: SessionId, attempt: int | None) -> tuple[KernelId, AgentId, int] | None:
        """The main kernel, and its host, of the last attempt of which nothing is left but its output, or of this one."""
        row = await self._connection.fetchrow(
            """
            SELECT id, agent_id, attempt FROM kernels WHERE session_id = $1 AND role = 'main' AND observed = 'GONE'
                AND agent_id IS NOT NULL AND ($2::bigint IS NULL OR attempt = $2) ORDER BY attempt DESC LIMIT 1
            """,
            session_id,
            attempt,
        )
        return None if row is None else (KernelId(row["id"]), AgentId(row["agent_id"]), row["attempt"])

    async def kernels(self, session: Session) -> list[dict[str, Any]]:
        """What there is to say of the present attempt's kernels."""
        rows = await self._connection.fetch(
            """
            SELECT id, role, idx AS index, agent_id AS agent, observed AS status, exit, container_id, started_at, slots
            FROM kernels WHERE session_id = $1 AND attempt = $2 AND left_at IS NULL ORDER BY id <> $3, role, idx
            """,
            session.id,
            session.attempt,
            session.main_kernel_id,
        )
        return [dict(row) for row in rows]

    async def history(self, session_id: SessionId) -> list[dict[str, Any]]:
        """Every status it has had, in order."""
        rows = await self._connection.fetch(
            """
            SELECT version, attempt, source, event, target AS status, reason, cause ->> 'by' AS by, at AS timestamp,
                extract(epoch FROM lead(at) OVER (ORDER BY version) - at)::double precision AS duration_seconds
            FROM status_history WHERE session_id = $1 ORDER BY version
            """,
            session_id,
        )
        return [dict(row) for row in rows]

    async def search(self, search: Search) -> list[Session]:
        """One keyset page, newest first."""
        table = tables.sessions
        wanted = sa.select(table.c.id).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(search.limit)
        if self._user_id is not None:
            wanted = wanted.where(table.c.user_id == self._user_id)
        if self._domain is not None:
            wanted = wanted.where(table.c.domain == self._domain)
        if self._projects is not None:
            led = sa.select(tables.projects.c.id).where(
                tables.projects.c.name.in_(self._projects), tables.projects.c.domain == self._domain
            )
            wanted = wanted.where(sa.or_(table.c.user_id == self._viewer, table.c.project_id.in_(led)))
        if search.statuses is not None:
            wanted = wanted.where(table.c.status.in_(sorted(str(status) for status in search.statuses)))
        if search.name_pattern is not None:
            by_id = sa.cast(table.c.id, sa.Text).like(search.name_pattern)
            wanted = wanted.where(sa.or_(table.c.name.like(search.name_pattern), by_id))
        if search.tag is not None:
            wanted = wanted.where(table.c.tag == search.tag)
        for name, value in search.labels:
            held = table.c.labels.has_key(name) if value is None else table.c.labels.contains({name: value})
            wanted = wanted.where(held)
        if search.project is not None:
            project = sa.select(tables.projects.c.id).where(tables.projects.c.name == search.project)
            wanted = wanted.where(table.c.project_id.in_(project))
        if search.after is not None:
            wanted = wanted.where(sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(*search.after))
        ids = [row["id"] for row in await fetch(self._connection, wanted)]
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.id = ANY($1) ORDER BY s.created_at DESC, s.id DESC", ids
        )
        return [session_from_row(row) for row in rows]

    async def add_transfer(self, session_id: SessionId, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Count bytes that went in or out; activity alone does not change a session's version."""
        await self._connection.execute(
            """
            UPDATE sessions SET bytes_in = bytes_in + $2, bytes_out = bytes_out + $3, activity = activity + 1,
                last_activity_at = greatest(last_activity_at, $4)
            WHERE id = $1
            """,
            session_id,
            bytes_in,
            bytes_out,
            self._now,
        )


class AdminSessionRepository(SessionRepository):
    """Everybody's sessions; all of one domain; or those of some of its projects, and the viewer's own."""

    def __init__(
        self,
        connection: Connection,
        domain: str | None,
        *,
        now: datetime,
        cause: Cause,
        projects: Sequence[str] | None = None,
        viewer: UUID | None = None,
    ) -> None:
        super().__init__(connection, None, now=now, cause=cause)
        self._domain = domain
        self._projects = projects
        self._viewer = viewer

    async def _by_id(self, session_id: UUID) -> Mapping[str, Any] | None:
        if self._projects is None:
            return await super()._by_id(session_id)
        return await self._connection.fetchrow(
            _BY_ID_IN_PROJECTS, session_id, None, self._domain, self._viewer, list(self._projects)
        )


async def fetch(connection: Connection, statement: sa.sql.expression.Executable) -> list[Any]:
    """Run what SQLAlchemy Core has put together, over asyncpg."""
    compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
    assert compiled.positiontup is not None
    return list(await connection.fetch(str(compiled), *(compiled.params[name] for name in compiled.positiontup)))


_DIALECT: Final = asyncpg.dialect()  # type: ignore[no-untyped-call]


def like(glob: str) -> str:
    """A LIKE pattern for a shell-like glob; text without `*` or `?` is a prefix."""
    literal = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    pattern = literal.replace("*", "%").replace("?", "_")
    return pattern if pattern != literal else literal + "%"


def wrong_status(session: Session) -> WrongStatus:
    """The refusal that says most: not ready yet, ended, or just not now."""
    if session.end_reason is EndReason.EXPIRED:
        return SessionExpired(
            f"The session '{session.name}' has expired: {session.status_reason}; create a new one.",
            status=session.status,
        )
    if session.status in FINAL or session.status is Status.TERMINATING:
        return SessionEnded(
            f"The session '{session.name}' is {session.status}; restart it, or create a new one.", status=session.status
        )
    if session.status not in ANSWERING:
        return SessionNotReady(
            f"The session '{session.name}' is {session.status}; wait for RUNNING ('moorage wait {session.name}') and ask again.",
            status=session.status,
        )
    return WrongStatus(
        f"The session '{session.name}' is {session.status}, which does not allow this.", status=session.status
    )


def _kernel_json(kernel: NewKernel) -> dict[str, Any]:
    return {
        "id": str(kernel.id),
        "role": kernel.role,
        "index": kernel.index,
        "slots": dict(kernel.slots),
        "spec": dict(kernel.spec),
    }


def _stored(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _plain(value: object) -> object:
    return value.to_json() if isinstance(value, ResourceSlot) else value
