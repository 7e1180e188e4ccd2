"""Which hosts a session is kept off because another session of its owner is there: it says so, or the other one does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from domain.ids import AgentId, SessionId
from domain.placement import Holding, PendingSession

#: A label of a user's sessions.
_Mark = tuple[UUID, str, str]
_There = dict[_Mark, list[tuple[AgentId, SessionId]]]


class Neighbours:
    def __init__(self, pending: Iterable[PendingSession], holdings: Iterable[Holding]) -> None:
        self._carriers: _There = {}
        self._averse: _There = {}
        holdings = list(holdings)
        #: most often nobody keeps apart from anybody
        self.matter = any(s.constraints.apart_from for s in pending) or any(h.apart_from for h in holdings)
        if self.matter:
            for holding in holdings:
                where = (holding.agent_id, holding.session_id)
                self._note(holding.user_id, holding.labels, holding.apart_from, where)

    def add(self, session: PendingSession, hosts: Iterable[AgentId]) -> None:
        for host in hosts:
            self._note(session.user_id, session.labels, session.constraints.apart_from, (host, session.id))

    def _note(
        self, user: UUID, labels: Mapping[str, str], apart: Mapping[str, str], where: tuple[AgentId, SessionId]
    ) -> None:
        for key, value in labels.items():
            self._carriers.setdefault((user, key, value), []).append(where)
        for key, value in apart.items():
            self._averse.setdefault((user, key, value), []).append(where)

    def of(self, session: PendingSession) -> set[AgentId]:
        """Hosts that it must not share."""
        user = session.user_id
        there: list[tuple[AgentId, SessionId]] = []
        for key, value in session.constraints.apart_from.items():
            there += self._carriers.get((user, key, value), ())
        for key, value in session.labels.items():
            there += self._averse.get((user, key, value), ())
        return {host for host, other in there if other != session.id}
