"""Keeps inference sessions served: their service in every kernel, and as many kernels as were asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, ClassVar, Final

from actions.base import Work
from actions.resizing import resize
from agent.client import KernelAddress
from domain.errors import MoorageError
from domain.ids import KernelId, SessionId, uuid7
from domain.principal import Principal
from domain.session import ANSWERING
from manager.dispatcher import ConnectedAgents
from manager.herald import Herald
from manager.loop import Loop
from manager.starts import ServiceStarter
from repositories.clusters import leave
from repositories.database import Database
from repositories.inference import Serving, ServingKernel, declare_service, serving
from repositories.transit import Cause
from repositories.unit import Repositories

INFERENCE: Final = Cause(by="inference")
_MOST_PAUSE_SECONDS: Final = 60.0
#: After so many starts in a row that failed, a worker is given up for a new one.
_MOST_FAILED_STARTS: Final = 3
#: States of a service in which its agent sees to it.
_SEEN_TO: Final = frozenset({"starting", "healthy", "unhealthy"})


class Inference(Loop):
    """What is to be done is read from the rows; what is asked of agents is asked again until it is so. Any number of
    managers may: an agent starts a service of one generation once."""

    name: ClassVar[str] = "inference"
    gather_seconds: ClassVar[float] = 0.02

    def __init__(
        self, database: Database, herald: Herald, agents: ConnectedAgents, *, clock: Callable[[], datetime]
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock
        self._known: set[SessionId] = set()
        self._refused: dict[SessionId, float] = {}  #: when to try again to replace their workers
        self._starter: ServiceStarter[KernelId] = ServiceStarter(
            database, herald, agents, clock=clock, cause=INFERENCE, log=self._log, landed=super().wake
        )

    def wake(self, session_ids: object = None) -> None:
        """Of all that happens to sessions, only what happens to those that serve is of interest."""
        if not session_ids or (isinstance(session_ids, Collection) and self._known.intersection(session_ids)):
            super().wake()

    async def step(self) -> float | None:
        now = self._clock()
        async with self._database.reader() as connection:
            sessions = await serving(connection, now=now)
        self._known = {session.id for session in sessions}
        self._refused = {one: until for one, until in self._refused.items() if one in self._known}
        self._starter.forget_others({kernel.id for session in sessions for kernel in session.kernels})
        pauses = [await self._see_to(session, now) for session in sessions if session.answers]
        return min((pause for pause in pauses if pause is not None), default=None)

    async def close(self) -> None:
        await self._starter.close()

    async def _see_to(self, session: Serving, now: datetime) -> float | None:
        if session.generation is None:
            async with self._database.transaction() as connection:
                declared = await declare_service(connection, session, now=now)
            if declared:
                self._herald.announce("services", session.id)
            return 0.0
        for kernel in session.kernels:
            if kernel.running and kernel.agent_id is not None and kernel.state not in _SEEN_TO:
                where = KernelAddress(agent_id=kernel.agent_id, kernel_id=kernel.id, attempt=session.attempt)
                spec = {**session.service["spec"], "generation": session.generation}
                # what has failed for good, or was stopped, begins anew
                self._starter.start(kernel.id, where, spec, afresh=kernel.state is not None)
        broken = [kernel.id for kernel in session.kernels if self._is_lost(kernel)]
        if not broken and len(session.kernels) >= session.cluster_size:
            return None
        if time.monotonic() < self._refused.get(session.id, 0.0):
            return None
        if session.replace_at is not None and session.replace_at > now:
            return (session.replace_at - now).total_seconds()
        await self._replace(session, broken)
        return None

    def _is_lost(self, kernel: ServingKernel) -> bool:
        """A worker that is to be replaced by a new one. The main kernel is the session's own: with it the session fails,
        and is tried again as its `max_retries` says."""
        if kernel.is_main:
            return False
        return kernel.ended or self._starter.failures(kernel.id) >= _MOST_FAILED_STARTS

    # -- replacements --------------------------------------------------------------------------------------------------
    async def _replace(self, session: Serving, broken: Collection[KernelId]) -> None:
        """Workers that have ended go, and new ones come, to be placed as those of any cluster that grows."""
        owner = Principal(user_id=session.user_id, access_key=session.access_key, domain=session.domain)
        now = self._clock()
        announcements: list[tuple[str, Any]] = []
        try:
            async with self._database.transaction() as connection:
                rows = Repositories(connection, by=owner, owner=owner, now=now, cause=INFERENCE)
                there = await rows.sessions.lock(session.id)
                if there.status not in ANSWERING:
                    return
                if broken:
                    await leave(connection, sorted(broken), now=now)
                call = Work(by=owner, owner=owner, now=now, db=rows, new_id=uuid7, announcements=announcements)
                await resize(call, there, there.cluster_size)
        except MoorageError as error:
            self._refused[session.id] = time.monotonic() + _MOST_PAUSE_SECONDS
            self._log.warning("session %s: its workers cannot be replaced: %s", session.id, error)
            return
        self._log.info("session %s: %d workers are replaced", session.id, len(broken))
        for topic, session_id in [*announcements, ("queue", None), ("dispatch", None), ("sessions", session.id)]:
            self._herald.announce(topic, *([session_id] if session_id is not None else []))
