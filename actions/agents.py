"""Hosts that are taken out of use for a while: cordon, drain, uncordon."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from actions.administration import AgentResult
from actions.base import Effect, Rules, ScopeAction, Work, action, superadmin
from actions.views import AgentData
from domain.ids import AgentId
from repositories import drains
from repositories.agents import get_agent

Reason = Annotated[str, Field(max_length=500)] | None


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class CordonAgentAction(ScopeAction[Work, AgentResult]):
    """Let no more sessions be placed on a host; what runs there goes on. Asked for again, nothing changes."""

    agent: str
    reason: Reason = None  #: that people are told

    def target(self) -> str:
        return self.agent

    async def run(self, call: Work, /) -> AgentResult:
        await drains.cordon(call.db.connection, AgentId(self.agent), reason=self.reason, now=call.now)
        return await _changed(call, self.agent)


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class DrainAgentAction(ScopeAction[Work, AgentResult]):
    """Cordon a host and empty it: whoever is there is told to save and go; the answer counts the kernels that are left.

    Batch sessions go on there unless `move_batch` makes them begin again elsewhere, which takes none of their retries.
    The rest is ended only with `force_after`, so many seconds from now. Asked for again, the last word counts.
    """

    agent: str
    move_batch: bool = False
    force_after: Annotated[float, Field(ge=0, le=30 * 86400)] | None = None
    reason: Reason = None

    def target(self) -> str:
        return self.agent

    async def run(self, call: Work, /) -> AgentResult:
        until = None if self.force_after is None else call.now + timedelta(seconds=self.force_after)
        how = drains.Drain(moves=self.move_batch, until=until)
        await drains.drain(call.db.connection, AgentId(self.agent), how, reason=self.reason, now=call.now)
        return await _changed(call, self.agent)


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class UncordonAgentAction(ScopeAction[Work, AgentResult]):
    """Take a host into use again at once. A drain is called off; what was moved away is not fetched back."""

    agent: str

    def target(self) -> str:
        return self.agent

    async def run(self, call: Work, /) -> AgentResult:
        for session_id in await drains.uncordon(call.db.connection, AgentId(self.agent), now=call.now):
            call.announce("sessions", session_id)
        return await _changed(call, self.agent)


async def _changed(call: Work, agent: str) -> AgentResult:
    call.announce("agents")
    call.announce("queue")
    return AgentResult(agent=AgentData.of(await get_agent(call.db.connection, AgentId(agent))))
