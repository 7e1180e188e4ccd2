"""What kernels used: samples as agents tell them, kept for hours, and summed into minutes, kept for days.

Budget (docs/statistics.md): a kernel that runs all the time has 720 samples an hour and 1,440 minutes a day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from agent.wire import Sample
from domain.ids import AgentId
from domain.names import as_uuid
from repositories.database import Connection

_LATEST: Final = timedelta(minutes=10)  #: agents' clocks may differ so much from ours
_OLDEST: Final = timedelta(hours=2)
_BIG: Final = float(2**60)
_MOST_SECONDS: Final = 3600.0

#: $1 kernels, $2 agents, $3 at, $4 seconds, $5 cpu_seconds, $6 mem, $7 disk, $8 io_read, $9 io_write, $10 rx, $11 tx,
#: $12 pids, $13 forks_refused, $14 oom_kills, $15 gpus, $16 gpu_seconds, $17 gpu_mem, $18 gpu_joules. A sample that is
#: there already is neither stored nor summed again: agents tell theirs until they are acknowledged.
_STORE: Final = """
    WITH told AS (
        SELECT DISTINCT ON (f.kernel_id, f.at) f.* FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::float8[],
            $5::float8[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
            $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::float8[], $17::bigint[],
            $18::float8[])
            AS f(kernel_id, agent_id, at, seconds, cpu_seconds, mem_bytes, disk_bytes, io_read_bytes, io_write_bytes,
                net_rx_bytes, net_tx_bytes, pids, forks_refused, oom_kills, gpus, gpu_seconds, gpu_mem_bytes, gpu_joules)
        JOIN kernels k ON k.id = f.kernel_id AND k.agent_id = f.agent_id ORDER BY f.kernel_id, f.at
    ), stored AS (
        INSERT INTO samples (kernel_id, at, seconds, cpu_seconds, mem_bytes, disk_bytes, io_read_bytes, io_write_bytes,
            net_rx_bytes, net_tx_bytes, pids, forks_refused, oom_kills, gpus, gpu_seconds, gpu_mem_bytes,
            gpu_joules)
        SELECT kernel_id, at, seconds, cpu_seconds, mem_bytes, disk_bytes, io_read_bytes, io_write_bytes,
            net_rx_bytes, net_tx_bytes, pids, forks_refused, oom_kills, gpus, gpu_seconds, gpu_mem_bytes, gpu_joules
        FROM told
        ON CONFLICT DO NOTHING RETURNING *
    ), minutes AS (
        INSERT INTO sample_minutes AS m (kernel_id, at, seconds, cpu_seconds, mem_byte_seconds, mem_max_bytes,
            disk_bytes, io_read_bytes, io_write_bytes, net_rx_bytes, net_tx_bytes, pids_max, forks_refused, oom_kills,
            gpus, gpu_seconds, gpu_mem_byte_seconds, gpu_mem_max_bytes, gpu_joules)
        SELECT kernel_id, date_trunc('minute', at), sum(seconds), sum(cpu_seconds), sum(mem_bytes * seconds),
            max(mem_bytes), max(disk_bytes), sum(io_read_bytes), sum(io_write_bytes), sum(net_rx_bytes),
            sum(net_tx_bytes), max(pids), sum(forks_refused), sum(oom_kills), max(gpus), sum(gpu_seconds),
            sum(gpu_mem_bytes * seconds), max(gpu_mem_bytes), sum(gpu_joules)
        FROM stored GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (kernel_id, at) DO UPDATE SET
            seconds = m.seconds + excluded.seconds,
            cpu_seconds = m.cpu_seconds + excluded.cpu_seconds,
            mem_byte_seconds = m.mem_byte_seconds + excluded.mem_byte_seconds,
            mem_max_bytes = greatest(m.mem_max_bytes, excluded.mem_max_bytes),
            disk_bytes = coalesce(excluded.disk_bytes, m.disk_bytes),
            io_read_bytes = m.io_read_bytes + excluded.io_read_bytes,
            io_write_bytes = m.io_write_bytes + excluded.io_write_bytes,
            net_rx_bytes = m.net_rx_bytes + excluded.net_rx_bytes,
            net_tx_bytes = m.net_tx_bytes + excluded.net_tx_bytes,
            pids_max = greatest(m.pids_max, excluded.pids_max),
            forks_refused = m.forks_refused + excluded.forks_refused,
            oom_kills = m.oom_kills + excluded.oom_kills,
            gpus = greatest(m.gpus, excluded.gpus),
            gpu_seconds = m.gpu_seconds + excluded.gpu_seconds,
            gpu_mem_byte_seconds = m.gpu_mem_byte_seconds + excluded.gpu_mem_byte_seconds,
            gpu_mem_max_bytes = greatest(m.gpu_mem_max_bytes, excluded.gpu_mem_max_bytes),
            gpu_joules = m.gpu_joules + excluded.gpu_joules
    )
    SELECT count(*) FROM stored
"""


async def store_samples(connection: Connection, reports: Sequence[tuple[AgentId, Sample]], *, now: datetime) -> int:
    """Keep what agents tell of their own kernels, inside the caller's transaction; how many were news.

    The disk is not waited for: samples of the last moments before a crash of the database are lost, and nothing else.
    """
    rows = [row for agent_id, sample in reports if (row := _row(agent_id, sample, now)) is not None]
    if not rows:
        return 0
    await connection.execute("SET LOCAL synchronous_commit = off")
    return int(await connection.fetchval(_STORE, *([row[at] for row in rows] for at in range(18))))


def _row(agent_id: AgentId, sample: Sample, now: datetime) -> tuple[object, ...] | None:
    """None for what makes no sense: an agent in wrong hands writes nothing that breaks a sum."""
    kernel_id: UUID | None = as_uuid(str(sample.kernel_id))
    amounts = [
        sample.cpu_seconds, sample.mem_bytes, sample.disk_bytes, sample.io_read_bytes, sample.io_write_bytes,
        sample.net_rx_bytes, sample.net_tx_bytes, sample.pids, sample.forks_refused, sample.oom_kills, sample.gpus,
        sample.gpu_seconds, sample.gpu_mem_bytes, sample.gpu_power_watts,
    ]  # fmt: skip
    if kernel_id is None or not _sane(sample.at, 4e9) or not _sane(sample.seconds, _MOST_SECONDS) or not sample.seconds:
        return None
    if not all(amount is None or _sane(amount, _BIG) for amount in amounts):
        return None
    at = datetime.fromtimestamp(sample.at, UTC)
    if not now - _OLDEST < at < now + _LATEST:
        return None
    whole = [amount if index in (0, 11) or amount is None else int(amount) for index, amount in enumerate(amounts[:-1])]
    joules = float(sample.gpu_power_watts) * sample.seconds
    return kernel_id, str(agent_id), at, float(sample.seconds), *whole, joules


def _sane(value: object, most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value < most  # type: ignore[arg-type,operator]
