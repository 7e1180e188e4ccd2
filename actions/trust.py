"""Hosts that are not to be believed any more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from actions.administration import AgentResult
from actions.base import Effect, Rules, ScopeAction, Work, action, superadmin
from actions.views import AgentData
from domain.ids import AgentId
from repositories import trust
from repositories.agents import get_agent


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class RevokeAgentAction(ScopeAction[Work, AgentResult]):
    """Believe a host no more: none of its certificates counts, and its connections to all managers end at once.

    What runs there goes on, and is shown as lost; only a join token that is made afterwards brings the host back.
    """

    agent: str
    reason: Annotated[str, Field(max_length=500)] | None = None  #: for the record

    def target(self) -> str:
        return self.agent

    async def run(self, call: Work, /) -> AgentResult:
        agent = AgentId(self.agent)
        await trust.revoke(call.db.connection, agent, reason=self.reason, now=call.now, cause=call.db.cause)
        for topic in ("trust", "agents", "queue"):
            call.announce(topic)
        return AgentResult(agent=AgentData.of(await get_agent(call.db.connection, agent)))
