"""What agents were refused, on record in the audit: at once, and what follows within a minute as one more row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

from domain.errors import MoorageError
from domain.ids import AgentId
from manager.herald import Herald
from repositories.database import Database
from repositories.record import AuditRecord, write_audit

log = logging.getLogger("moorage.refusals")
WINDOW_SECONDS: Final = 60.0
_MOST_KINDS: Final = 1000


class Refusals:
    """One process's. Of each agent and kind of message, the first is written at once, and the count of the rest later."""

    def __init__(
        self,
        database: Database,
        herald: Herald,
        *,
        clock: Callable[[], datetime],
        window_seconds: float = WINDOW_SECONDS,
    ) -> None:
        self._database = database
        self._herald = herald
        self._clock = clock
        self._window_seconds = window_seconds
        self._repeats: dict[tuple[AgentId, str], int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def record(self, agent_id: AgentId, action: str, target: str) -> None:
        """Never raises: whoever is refused is refused in any case."""
        kind = (agent_id, action)
        if kind in self._repeats:
            self._repeats[kind] += 1
            return
        if len(self._repeats) >= _MOST_KINDS:
            return
        self._repeats[kind] = 0
        asyncio.get_running_loop().call_later(self._window_seconds, self._close, kind, target)
        log.error("agent %s was refused: %s of %s, which is not its own", agent_id, action, target)
        await self._write(agent_id, action, target, 1)

    def _close(self, kind: tuple[AgentId, str], target: str) -> None:
        if repeats := self._repeats.pop(kind):
            task = asyncio.get_running_loop().create_task(self._write(*kind, target, repeats))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self, agent_id: AgentId, action: str, target: str, repeats: int) -> None:
        record = AuditRecord(
            at=self._clock(),
            user_id=None,
            access_key=f"agent:{agent_id}",
            owner_access_key=None,
            action=action,
            target=target.replace("\x00", "")[:200],
            outcome="permission_denied",
            request_id=None,
            repeats=repeats,
        )
        try:
            async with self._database.reader() as connection:
                await write_audit(connection, record)
        except MoorageError:
            log.warning("a refusal of agent %s could not be written to the audit", agent_id)
            return
        self._herald.announce("events")
