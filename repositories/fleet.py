"""The hosts that take sessions, with their devices and what is free; and what is held there, until when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from domain.ids import AgentId, SessionId
from domain.placement import DEVICE, Device, Holding, Host
from repositories.database import Connection

#: What ends is gone within its grace period, as a rule.
_ENDING: Final = timedelta(seconds=10)


async def hosts_of(connection: Connection, *, now: datetime) -> tuple[Host, ...]:
    """Enrolled, schedulable, and heard of within their lease; without the devices that are taken out."""
    rows = await connection.fetch(
        """
        SELECT a.id, a.architecture, a.resource_group, a.labels, a.info ->> 'address' AS address,
            a.info ->> 'volumes' AS store, r.amounts, d.devices
        FROM agents a JOIN (
            SELECT agent_id, jsonb_object_agg(name, jsonb_build_array(reported - used, reported)) AS amounts
            FROM resources r WHERE NOT EXISTS (
                SELECT FROM devices d WHERE d.agent_id = r.agent_id AND d.name = r.name AND d.out_since IS NOT NULL)
            GROUP BY 1
        ) r ON r.agent_id = a.id LEFT JOIN (
            SELECT agent_id, jsonb_object_agg(name,
                jsonb_build_object('model', model, 'info', info, 'memory_mib', memory_mib)) AS devices
            FROM devices WHERE out_since IS NULL GROUP BY 1
        ) d ON d.agent_id = a.id
        WHERE a.schedulable AND NOT a.lost AND a.uid IS NOT NULL AND a.lease_until > $1 ORDER BY a.id
        """,
        now,
    )
    return tuple(_host(row) for row in rows)


def _host(row: Mapping[str, Any]) -> Host:
    amounts: dict[str, list[int]] = row["amounts"]
    devices: dict[str, dict[str, Any]] = row["devices"] or {}
    capacity = {name: reported for name, (_, reported) in amounts.items()}
    for name, said in devices.items():
        if name in capacity and said["info"].get("shared_only"):  # never all of it is free: nobody gets it whole
            capacity[name] = max(capacity[name] + 1, said["memory_mib"])
    return Host(
        id=AgentId(row["id"]),
        architecture=row["architecture"],
        free={name: free for name, (free, _) in amounts.items()},
        capacity=capacity,
        resource_group=row["resource_group"],
        labels=row["labels"],
        devices=tuple(_device(name, said) for name, said in sorted(devices.items()) if name in amounts),
        address=row["address"],
        store=row["store"],
    )


def _device(name: str, said: Mapping[str, Any]) -> Device:
    info = said["info"]
    assert name.startswith(DEVICE), name
    return Device(
        name=name,
        model=said["model"],
        numa=info.get("numa"),
        whole_only=bool(info.get("whole_only")),
        shared_only=bool(info.get("shared_only")),
        links=info.get("links") or {},
    )


async def holdings_of(connection: Connection, *, now: datetime) -> tuple[Holding, ...]:
    """What every session that has been placed holds on every host, and until when at the latest."""
    rows = await connection.fetch(
        """
        SELECT s.id, h.agent_id, h.amounts, s.name, s.user_id, s.labels, s.constraints -> 'apart_from' AS apart_from, CASE
            WHEN s.status IN ('RUNNING', 'RUNNING_DEGRADED') THEN least(s.expires_at, s.work_until_at)
            WHEN s.status IN ('SCHEDULED', 'PREPARING', 'PULLING', 'RESTARTING') THEN
                s.status_changed_at + make_interval(secs => least(s.timeout_seconds, s.batch_timeout_seconds))
            ELSE $1::timestamptz + $2::interval END AS ends_at
        FROM (
            SELECT session_id, agent_id, jsonb_object_agg(name, amount) AS amounts FROM (
                SELECT k.session_id, a.agent_id, a.name, sum(a.amount)::bigint AS amount
                FROM allocations a JOIN kernels k ON k.id = a.kernel_id GROUP BY 1, 2, 3) one GROUP BY 1, 2
        ) h JOIN sessions s ON s.id = h.session_id ORDER BY s.id, h.agent_id
        """,
        now,
        _ENDING,
    )
    return tuple(
        Holding(
            session_id=SessionId(row["id"]),
            agent_id=AgentId(row["agent_id"]),
            amounts=row["amounts"],
            name=row["name"],
            user_id=row["user_id"],
            labels=row["labels"],
            apart_from=row["apart_from"] or {},
            ends_at=row["ends_at"],
        )
        for row in rows
    )
