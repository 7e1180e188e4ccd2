"""What was found when devices were handed over, given back and watched; and what a session's devices are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from agent.wire import DeviceCheck
from domain.ids import AgentId, SessionId
from domain.names import as_uuid
from domain.placement import DEVICE
from repositories.database import Connection
from repositories.kernels import plain

_PHASES: Final = frozenset({"handover", "release", "watch"})


async def store(
    connection: Connection, agent_id: AgentId, checks: Sequence[DeviceCheck], *, now: datetime
) -> frozenset[SessionId]:
    """Keep what an agent tells of its own devices, each check once; the sessions whose devices they are.

    A kernel that is not this agent's is left out of its record: nobody writes on another's session.
    """
    rows = [row for check in checks if (row := _row(check, now)) is not None]
    if not rows:
        return frozenset()
    stored = await connection.fetch(
        """
        INSERT INTO device_checks (agent_id, check_id, name, phase, passed, at, data, attempt, kernel_id, session_id)
        SELECT $1, f.check_id, f.name, f.phase, f.passed, f.at, f.data, f.attempt, k.id, k.session_id
        FROM unnest($2::text[], $3::text[], $4::text[], $5::boolean[], $6::timestamptz[], $7::jsonb[], $8::bigint[],
            $9::uuid[]) AS f(check_id, name, phase, passed, at, data, attempt, kernel_id)
        LEFT JOIN kernels k ON k.id = f.kernel_id AND k.agent_id = $1
        ON CONFLICT DO NOTHING RETURNING session_id
        """,
        agent_id,
        *([row[at] for row in rows] for at in range(8)),
    )
    return frozenset(SessionId(row["session_id"]) for row in stored if row["session_id"])


def _row(check: DeviceCheck, now: datetime) -> tuple[object, ...] | None:
    name, phase = str(check.device), str(check.phase)
    if phase not in _PHASES or not name.startswith(DEVICE) or not isinstance(check.data, dict):
        return None
    try:
        at = min(datetime.fromtimestamp(float(check.at), UTC), now)
    except (ValueError, OverflowError, OSError):
        at = now
    attempt = check.attempt if isinstance(check.attempt, int) and 0 < check.attempt < 2**31 else 1
    kernel_id = as_uuid(str(check.kernel_id))
    data = {word: value for word, value in plain(check.data).items() if word != "processes" or kernel_id is None}
    data |= _processes(check, kernel_id)
    return str(check.check_id)[:200], name[:200], phase, bool(check.passed), at, data, attempt, kernel_id


def _processes(check: DeviceCheck, kernel_id: UUID | None) -> dict[str, Any]:
    """Of a session's record, which its owner sees, not who else ran what: how many, and how much memory they used."""
    said = check.data.get("processes")
    if kernel_id is None or not isinstance(said, list):
        return {}
    used = [one.get("mem_mib") for one in said if isinstance(one, dict)]
    return {"outsiders": len(said), "outsiders_mib": sum(amount for amount in used if isinstance(amount, int))}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDevice:
    """A device that a kernel of a session holds, or held in its last attempt."""

    kernel_id: UUID
    kernel: str
    agent_id: AgentId
    name: str
    amount: int  #: MiB of its memory
    whole: bool  #: it was asked for by number, and not by memory
    held: bool
    device: Mapping[str, Any] | None  #: its row; None when nobody knows of it any more


async def of_session(connection: Connection, session_id: SessionId) -> list[HeldDevice]:
    """The devices of the present attempt, as the scheduler gave them to its kernels."""
    rows = await connection.fetch(
        """
        SELECT k.id, k.role || k.idx AS kernel, k.agent_id, v.name, v.amount::bigint AS amount, k.slots ? 'gpu' AS whole,
            EXISTS (SELECT FROM allocations a WHERE a.kernel_id = k.id AND a.name = v.name) AS held,
            CASE WHEN d.name IS NOT NULL THEN to_jsonb(d) END AS device
        FROM sessions s JOIN kernels k ON k.session_id = s.id AND k.attempt = s.attempt
        CROSS JOIN LATERAL jsonb_each_text(coalesce(k.spec -> 'devices', '{}')) AS v(name, amount)
        LEFT JOIN devices d ON d.agent_id = k.agent_id AND d.name = v.name
        WHERE s.id = $1 AND k.left_at IS NULL AND k.agent_id IS NOT NULL
        ORDER BY k.id <> s.main_kernel_id, k.role, k.idx, d.info -> 'index', v.name
        """,
        session_id,
    )
    return [
        HeldDevice(
            kernel_id=row["id"],
            kernel=row["kernel"],
            agent_id=AgentId(row["agent_id"]),
            name=row["name"],
            amount=row["amount"],
            whole=row["whole"],
            held=row["held"],
            device=row["device"],
        )
        for row in rows
    ]


async def records_of(connection: Connection, session_id: SessionId) -> list[Mapping[str, Any]]:
    """All checks of its devices, also of earlier attempts, oldest first."""
    return list(
        await connection.fetch(
            """
            SELECT c.agent_id, c.name, c.kernel_id, c.attempt, c.phase, c.passed, c.data, c.at
            FROM device_checks c WHERE c.session_id = $1 ORDER BY c.at, c.id LIMIT 1000
            """,
            session_id,
        )
    )


async def newest_of(connection: Connection, agent_id: AgentId | None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The last check of each device of one host, or of all."""
    rows = await connection.fetch(
        """
        SELECT d.agent_id, d.name, c.phase, c.passed, c.data, c.at FROM devices d JOIN LATERAL (
            SELECT * FROM device_checks c WHERE c.agent_id = d.agent_id AND c.name = d.name ORDER BY c.at DESC LIMIT 1
        ) c ON true WHERE $1::text IS NULL OR d.agent_id = $1
        """,
        agent_id,
    )
    return {(row["agent_id"], row["name"]): row for row in rows}
