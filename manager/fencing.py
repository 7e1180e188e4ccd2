"""Begins sessions anew whose host has been silent for longer than their lease, and a margin, by this process's own clock.

The other half is the agent's (agent/lease.py): by then it has ended them, whatever it could not say. Nobody's wall clock
counts, for they may be minutes apart or be set back: what counts is for how long this process has *seen* no sign of life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ClassVar, Final

from domain.elapsed import boottime
from domain.ids import AgentId
from manager.herald import Herald
from manager.loop import Loop
from repositories.database import Database
from repositories.fencing import Leased, Replaced, leased, replace

#: For an agent to notice and to end what it has, and for what a database forgets when it is killed.
MARGIN_SECONDS: Final = 10.0
#: Of the lease, for clocks that do not run at the same speed.
_DRIFT: Final = 0.01


class Watch:
    """For how long each host has been seen to be silent. Pure; forgets all when this process could not look."""

    def __init__(self) -> None:
        self._since: dict[AgentId, tuple[datetime, float]] = {}

    def forget(self) -> None:
        self._since.clear()

    def silent(self, seen: Sequence[Leased], now: float) -> dict[AgentId, float]:
        """Seconds since a sign of life of each was first seen to be its newest."""
        last = self._since
        self._since = {
            one.agent_id: last[one.agent_id]
            if last.get(one.agent_id, (None,))[0] == one.seen_at
            else (one.seen_at, now)
            for one in seen
        }
        return {agent_id: now - at for agent_id, (_, at) in self._since.items()}


def over(silent: float) -> float:
    """The longest lease that is over for certain."""
    return (silent - MARGIN_SECONDS) / (1 + _DRIFT)


class Replacements(Loop):
    """Any number of managers may: who is first has done it, on rows that are locked and looked at again."""

    name: ClassVar[str] = "replacements"

    def __init__(
        self,
        database: Database,
        herald: Herald,
        *,
        clock: Callable[[], datetime],
        elapsed: Callable[[], float] = boottime,
    ) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock
        self._elapsed = elapsed
        self._watch = Watch()

    def failed(self) -> None:
        """While the database was away nobody could be heard, and what it knows now may be older than what it knew."""
        self._watch.forget()

    async def step(self) -> float | None:
        async with self._database.reader() as connection:
            seen = await leased(connection)
        silent = self._watch.silent(seen, self._elapsed())
        for host in seen:
            seconds = silent[host.agent_id]
            if host.seconds <= over(seconds):
                await self._replace(host, seconds)
        return None

    async def _replace(self, host: Leased, silent: float) -> None:
        async with self._database.transaction() as connection:
            done: Replaced = await replace(
                connection, host.agent_id, host.seen_at, longest_lease=over(silent), silent=silent, now=self._clock()
            )
        if not done.moved:
            return
        changed = {one.session_id for one in done.moved}
        self._log.warning("%s was silent for %.0f s: %d sessions begin anew", host.agent_id, silent, len(changed))
        self._herald.announce("sessions", *changed)
        if done.runs_of:
            self._herald.announce("runs", *done.runs_of)
        for topic in ("dispatch", "queue", "events"):
            self._herald.announce(topic)
