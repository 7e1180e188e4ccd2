"""What a session waits for, what waits for it, and what was kept of it after its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from actions.base import Audit, Effect, Reading, Remote, Result, Rules, SessionAction, action, may_look, owner_or_admin
from actions.drawing import dot, svg
from actions.files import TRANSFER_SECONDS, Stream, counted_stream
from agent.client import KernelAddress
from domain.errors import ResultsNotFound
from domain.graph import Graph
from domain.principal import TokenScope
from domain.session import Session
from repositories.graph import dependency_graph


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyGraph(Result):
    """As nodes and edges, as a text for Graphviz, or drawn."""

    graph: Graph

    @property
    def dot(self) -> str:
        return dot(self.graph)

    @property
    def svg(self) -> str:
        return svg(self.graph)


@action(Rules(allow=may_look, effect=Effect.READ))
class GetDependencyGraphAction(SessionAction[Reading, DependencyGraph]):
    """Everything that a session waits for or that waits for it, directly or through others, and how each stands.

    As nodes and edges, as a text for Graphviz (`dot`), or drawn (`svg`).
    """

    format: Literal["json", "dot", "svg"] = "json"

    async def run(self, call: Reading, session: Session, /) -> DependencyGraph:
        found = await dependency_graph(call.db.connection, session.id, session.user_id, now=call.now)
        return DependencyGraph(graph=found)


@action(
    Rules(
        allow=owner_or_admin,
        effect=Effect.AGENT,
        deadline_seconds=TRANSFER_SECONDS,
        audit=Audit.OTHERS,
        scope=TokenScope.FILES,
    )
)
class DownloadResultsAction(SessionAction[Remote, Stream]):
    """What a batch session left in the places named by its `outputs`, as one tar stream; kept for 7 days after its end.

    Of the last attempt that has ended, or of the one that is named.
    """

    attempt: Annotated[int, Field(ge=1)] | None = None

    async def run(self, call: Remote, session: Session, /) -> Stream:
        async with call.service.reading(call) as reading:
            found = await reading.db.sessions_of(session).ended_kernel(session.id, self.attempt)
        if found is None:
            raise ResultsNotFound(
                f"The session '{session.name}' is {session.status}: results are there once it has ended."
                if self.attempt is None
                else f"The session '{session.name}' has no attempt {self.attempt} that has ended.",
                status=session.status,
            )
        kernel_id, agent_id, attempt = found
        where = KernelAddress(agent_id=agent_id, kernel_id=kernel_id, attempt=attempt)
        return counted_stream(call, session, await call.agents.results(where))
