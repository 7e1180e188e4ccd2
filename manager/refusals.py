"""What agents were refused, on record in the audit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from domain.ids import AgentId
from manager.coalescing import WINDOW_SECONDS, Coalesced, written
from manager.herald import Herald
from repositories.database import Database
from repositories.record import AuditRecord

log = logging.getLogger("moorage.refusals")


class Refusals:
    """One process's. The same kind of message of an agent is a row of its own once a minute."""

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
        self._kept = Coalesced(self._write, window_seconds=window_seconds, most_kinds=1000)

    async def record(self, agent_id: AgentId, action: str, target: str) -> None:
        """Never raises: whoever is refused is refused in any case."""
        record = AuditRecord(
            at=self._clock(),
            user_id=None,
            access_key=f"agent:{agent_id}",
            owner_access_key=None,
            action=action,
            target=target.replace("\x00", "")[:200],
            outcome="permission_denied",
            request_id=None,
        )
        if await self._kept.record((agent_id, action), record):
            log.error("agent %s was refused: %s of %s, which is not its own", agent_id, action, record.target)

    async def _write(self, record: AuditRecord) -> None:
        if await written(self._database, record):
            self._herald.announce("events")
