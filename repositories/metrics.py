"""What kernels have used, read back: series in steps, and sums over a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from domain.ids import AgentId, KernelId, SessionId
from domain.session import KernelState
from repositories.database import Connection

#: Windows up to this are read from samples, longer ones from minutes, which are a tenth of the rows.
FINE_SECONDS: Final = 1800.0
#: $1 kernels, $2 from, $3 until, $4 step in seconds. A sample tells of the time before its `at`, a minute of that after.
_FINE: Final = """
    SELECT kernel_id, date_bin(make_interval(secs => $4::float8), at, $2::timestamptz) AS at,
        sum(seconds) AS seconds, sum(cpu_seconds) AS cpu_seconds, sum(mem_bytes * seconds) AS mem_byte_seconds,
        max(mem_bytes) AS mem_max_bytes, max(disk_bytes) AS disk_bytes, sum(io_read_bytes) AS io_read_bytes,
        sum(io_write_bytes) AS io_write_bytes, sum(net_rx_bytes) AS net_rx_bytes, sum(net_tx_bytes) AS net_tx_bytes,
        max(pids) AS pids, sum(forks_refused) AS forks_refused, sum(oom_kills) AS oom_kills, max(gpus) AS gpus,
        sum(gpu_seconds) AS gpu_seconds, sum(gpu_mem_bytes * seconds) AS gpu_mem_byte_seconds,
        sum(gpu_joules) AS gpu_joules
    FROM samples WHERE kernel_id = ANY($1::uuid[]) AND at >= $2 AND at < $3 GROUP BY 1, 2 ORDER BY 1, 2
"""
_COARSE: Final = """
    SELECT kernel_id, date_bin(make_interval(secs => $4::float8), at, $2::timestamptz) AS at,
        sum(seconds) AS seconds, sum(cpu_seconds) AS cpu_seconds, sum(mem_byte_seconds) AS mem_byte_seconds,
        max(mem_max_bytes) AS mem_max_bytes, max(disk_bytes) AS disk_bytes, sum(io_read_bytes) AS io_read_bytes,
        sum(io_write_bytes) AS io_write_bytes, sum(net_rx_bytes) AS net_rx_bytes, sum(net_tx_bytes) AS net_tx_bytes,
        max(pids_max) AS pids, sum(forks_refused) AS forks_refused, sum(oom_kills) AS oom_kills, max(gpus) AS gpus,
        sum(gpu_seconds) AS gpu_seconds, sum(gpu_mem_byte_seconds) AS gpu_mem_byte_seconds,
        sum(gpu_joules) AS gpu_joules
    FROM sample_minutes WHERE kernel_id = ANY($1::uuid[]) AND at >= $2 AND at < $3 GROUP BY 1, 2 ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """A kernel of any attempt, with what it holds."""

    id: KernelId
    session_id: SessionId
    name: str
    agent_id: AgentId | None
    observed: KernelState | None
    slots: dict[str, int]
    gpus: int  #: devices of which it was given something, as allocations say while it has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Of one kernel, over `seconds` that samples tell of."""

    at: datetime
    seconds: float
    cpu_seconds: float = 0.0
    mem_byte_seconds: float = 0.0
    mem_max_bytes: int = 0
    disk_bytes: int | None = None
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    pids: int = 0
    forks_refused: int = 0
    oom_kills: int = 0
    gpus: int = 0
    gpu_seconds: float = 0.0
    gpu_mem_byte_seconds: float = 0.0
    gpu_joules: float = 0.0


class MetricsRepository:
    """Of kernels that the caller has found within the asker's scope."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def kernels(self, sessions: Sequence[UUID], *, present_only: bool = False) -> list[KernelRow]:
        rows = await self._connection.fetch(
            """
            SELECT k.id, k.session_id, k.role || k.idx AS name, k.agent_id, k.observed, k.slots,
                (SELECT count(*) FROM jsonb_object_keys(coalesce(k.spec -> 'devices', '{}'))) AS gpus
            FROM kernels k JOIN sessions s ON s.id = k.session_id
            WHERE k.session_id = ANY($1::uuid[]) AND (NOT $2 OR (k.attempt = s.attempt AND k.left_at IS NULL))
            ORDER BY k.session_id, k.attempt DESC, k.id <> s.main_kernel_id, k.idx
            """,
            list(sessions),
            present_only,
        )
        return [
            KernelRow(
                id=KernelId(row["id"]),
                session_id=SessionId(row["session_id"]),
                name=row["name"],
                agent_id=AgentId(row["agent_id"]) if row["agent_id"] else None,
                observed=KernelState(row["observed"]) if row["observed"] else None,
                slots=row["slots"],
                gpus=row["gpus"],
            )
            for row in rows
        ]

    async def series(
        self, kernels: Sequence[UUID], *, since: datetime, until: datetime, step_seconds: float, fine: bool
    ) -> dict[UUID, list[Used]]:
        """In steps counted from `since`; a step without samples is left out."""
        rows = await self._connection.fetch(_FINE if fine else _COARSE, list(kernels), since, until, step_seconds)
        return _by_kernel(rows)

    async def newest(self, kernels: Sequence[UUID], *, now: datetime) -> dict[UUID, Used]:
        """The last sample of each, unless it is older than a minute."""
        rows = await self._connection.fetch(
            """
            SELECT DISTINCT ON (kernel_id) kernel_id, at, seconds, cpu_seconds, mem_bytes * seconds AS mem_byte_seconds,
                mem_bytes AS mem_max_bytes, disk_bytes, io_read_bytes, io_write_bytes, net_rx_bytes, net_tx_bytes, pids,
                forks_refused, oom_kills, gpus, gpu_seconds, gpu_mem_bytes * seconds AS gpu_mem_byte_seconds,
                gpu_joules
            FROM samples WHERE kernel_id = ANY($1::uuid[]) AND at > $2 ORDER BY kernel_id, at DESC
            """,
            list(kernels),
            now - timedelta(minutes=1),
        )
        return {kernel_id: used[0] for kernel_id, used in _by_kernel(rows).items()}

    async def sums(self, kernels: Sequence[UUID], *, since: datetime, until: datetime) -> dict[UUID, Used]:
        """Over the whole window, as one step."""
        length = (until - since).total_seconds()
        found = await self.series(
            kernels, since=since, until=until, step_seconds=max(length, 1.0) * 2, fine=length <= FINE_SECONDS
        )
        return {kernel_id: used[0] for kernel_id, used in found.items()}


def _by_kernel(rows: Sequence[Any]) -> dict[UUID, list[Used]]:
    found: dict[UUID, list[Used]] = {}
    for row in rows:
        values = dict(row)
        kernel_id = values.pop("kernel_id")
        whole = {name: int(value) for name, value in values.items() if name in _WHOLE and value is not None}
        found.setdefault(kernel_id, []).append(Used(**{**values, **whole}))
    return found


_WHOLE: Final = frozenset(name for name in Used.__dataclass_fields__ if not name.endswith("seconds")) - {
    "at",
    "gpu_joules",
}
