"""Inference sessions: what each serves, and what is missing for it to be served by as many kernels as were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from domain.ids import AccessKey, AgentId, KernelId, SessionId
from domain.session import ANSWERING, ENDED, Status
from repositories import tables
from repositories.database import Connection

_ENDED: Final = ", ".join(f"'{state}'" for state in sorted(ENDED))
#: Replacements are counted within this time: a worker that dies again and again is replaced ever more slowly.
_COUNTED: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingKernel:
    id: KernelId
    agent_id: AgentId | None
    is_main: bool
    ended: bool
    running: bool
    state: str | None  #: of the service in it: starting, healthy, unhealthy, failed, stopped; None: not known there


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One inference session that has not ended."""

    id: SessionId
    user_id: UUID
    access_key: AccessKey
    domain: str
    status: Status
    attempt: int
    cluster_size: int
    service: Mapping[str, Any]
    generation: int | None  #: of the service; None: not declared yet
    kernels: tuple[ServingKernel, ...]
    left: int  #: kernels that were taken out of late
    last_left_at: datetime | None

    @property
    def answers(self) -> bool:
        return self.status in ANSWERING

    @property
    def replace_at(self) -> datetime | None:
        """When workers may be replaced; None: now."""
        if self.last_left_at is None:
            return None
        return self.last_left_at + timedelta(seconds=min(60.0, 2.0**self.left - 1))


async def serving(connection: Connection, *, now: datetime) -> list[Serving]:
    rows = await connection.fetch(
        f"""
        SELECT s.id, s.user_id, s.access_key, s.domain, s.status, s.attempt, s.cluster_size, s.inference AS service,
            v.generation, l.number AS "left", l.last_at AS last_left_at, k.kernels
        FROM sessions s
        LEFT JOIN services v ON v.session_id = s.id AND v.name = s.inference ->> 'name'
        LEFT JOIN LATERAL (
            SELECT count(*) AS number, max(left_at) AS last_at FROM kernels
            WHERE session_id = s.id AND attempt = s.attempt AND left_at > $1
        ) l ON true
        LEFT JOIN LATERAL (
            SELECT jsonb_agg(jsonb_build_array(k.id, k.agent_id, k.id = s.main_kernel_id, coalesce(k.observed IN ({_ENDED}), false),
                k.want = 'RUN' AND k.observed = 'RUNNING',
                CASE WHEN i.attempt = s.attempt AND i.generation = v.generation THEN i.state END)) AS kernels
            FROM kernels k LEFT JOIN service_instances i ON i.kernel_id = k.id AND i.session_id = s.id AND i.name = v.name
            WHERE k.session_id = s.id AND k.attempt = s.attempt AND k.left_at IS NULL
        ) k ON true
        WHERE s.session_type = 'inference' AND s.inference IS NOT NULL AND {tables.NOT_FINAL.replace("status", "s.status")}
        """,
        now - _COUNTED,
    )
    return [_serving(row) for row in rows]


def _serving(row: Mapping[str, Any]) -> Serving:
    kernels = tuple(
        ServingKernel(
            id=KernelId(UUID(str(kernel_id))),
            agent_id=AgentId(agent_id) if agent_id else None,
            is_main=is_main,
            ended=ended,
            running=running,
            state=state,
        )
        for kernel_id, agent_id, is_main, ended, running, state in row["kernels"] or ()
    )
    values = {name: row[name] for name in Serving.__slots__ if name != "kernels"}
    return Serving(**{**values, "status": Status(row["status"])}, kernels=kernels)


async def declare_service(connection: Connection, session: Serving, *, now: datetime) -> bool:
    """From now on managers see to it that it runs in every kernel. False when it was declared, or has ended, meanwhile."""
    service = session.service
    return bool(
        await connection.fetchval(
            """
            INSERT INTO services (session_id, name, kind, protocol, port, kernels, spec, keep_prefix, generation, settled,
                started_at, deadline_at)
            SELECT s.id, $2, $3, $4, $5, $6, $7, $8, (extract(epoch FROM clock_timestamp()) * 1e6)::bigint, true, $9, $10
            FROM sessions s WHERE s.id = $1 AND s.status IN ('RUNNING', 'RUNNING_DEGRADED')
            ON CONFLICT DO NOTHING RETURNING true
            """,
            session.id,
            service["name"],
            service["kind"],
            service["protocol"],
            service["port"],
            service["kernels"],
            service["spec"],
            service["keep_prefix"],
            now,
            now + timedelta(seconds=service["spec"]["ready_seconds"] + 60.0),
        )
    )
