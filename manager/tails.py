"""Takes over the last of each run's output, and of each container's log, when its session has ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, Final

from agent.client import KernelAddress
from agent.wire import RECORD, decode_records
from domain.crash import reach
from domain.errors import AgentUnavailable, MoorageError
from domain.ids import AgentId, KernelId, RunId
from manager.loop import Loop
from manager.tasks import Agents
from repositories.database import Database
from repositories.tail import keep, keep_log, wanting, wanting_logs

TAIL_BYTES: Final = 1 << 20
LOG_TAIL_BYTES: Final = 256 << 10
_LOG_RUN: Final = "log"
_AT_ONCE: Final = 20


class Tails(Loop):
    """Looks every few seconds; what a lost host holds is taken over when it is back, within some hours."""

    name: ClassVar[str] = "tails"
    floor_seconds: ClassVar[float] = 3.0

    def __init__(self, database: Database, agents: Agents, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._agents = agents
        self._clock = clock

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            found = await wanting(connection, self._agents.connected(), now=self._clock(), limit=_AT_ONCE)
        for run in found:
            try:
                tail = await self._read(run)
            except AgentUnavailable:
                return None
            except MoorageError as error:
                self._log.info("the output of run %s is not there any more: %s", run["run_id"], error)
                tail = b""
            async with self._database.reader() as connection:
                reach("control.tails.read")
                await keep(connection, RunId(run["run_id"]), tail)
            reach("control.tails.kept")
        logs = await self._keep_logs()
        return 0.0 if _AT_ONCE in (len(found), logs) else None

    async def _keep_logs(self) -> int:
        now = self._clock()
        async with self._database.reader() as connection:
            found = await wanting_logs(connection, self._agents.connected(), now=now, limit=_AT_ONCE)
        for kernel in found:
            where = KernelAddress(
                agent_id=AgentId(kernel["agent_id"]), kernel_id=KernelId(kernel["kernel_id"]), attempt=kernel["attempt"]
            )
            try:
                records = await self._read_log(where)
            except AgentUnavailable:
                return 0
            except MoorageError as error:
                self._log.info("the log of kernel %s is not there any more: %s", where.kernel_id, error)
                records = b""
            async with self._database.reader() as connection:
                reach("control.logs.read")
                await keep_log(connection, where.kernel_id, where.attempt, records, now=now)
            reach("control.logs.kept")
        return len(found)

    async def _read_log(self, where: KernelAddress) -> bytes:
        next_seq, kept = 0, b""
        while True:
            read = await self._agents.read(where, _LOG_RUN, from_seq=next_seq, max_bytes=TAIL_BYTES, wait_seconds=0.0)
            kept = last_records(kept + read.records, LOG_TAIL_BYTES)
            if read.done is not None or not read.records:
                return kept
            next_seq = read.next_seq

    async def _read(self, run: dict[str, Any]) -> bytes:
        """The last records that fit; how many these may be is guessed from their average size, and cut to fit."""
        where = KernelAddress(
            agent_id=AgentId(run["agent_id"]), kernel_id=KernelId(run["kernel_id"]), attempt=run["attempt"]
        )
        average = max(1, run["output_bytes"] // max(1, run["last_seq"])) + RECORD.size
        next_seq, read_bytes = max(1, run["last_seq"] - TAIL_BYTES // average), b""
        while True:
            read = await self._agents.read(
                where, RunId(run["run_id"]), from_seq=next_seq, max_bytes=TAIL_BYTES, wait_seconds=0.0
            )
            read_bytes = last_records(read_bytes + read.records, TAIL_BYTES)
            if read.done is not None or not read.records:
                return read_bytes
            next_seq = read.next_seq


def last_records(records: bytes, most: int) -> bytes:
    """The last whole records of at most `most` bytes."""
    if len(records) <= most:
        return records
    start = 0
    for record in decode_records(records):
        if len(records) - start <= most:
            break
        start += RECORD.size + len(record.payload)
    return records[start:]
