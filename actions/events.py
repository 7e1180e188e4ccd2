"""What has happened, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from pydantic import Field

from actions.base import Effect, Reading, Result, Rules, ScopeAction, action, anyone
from domain.names import as_uuid
from domain.principal import Role
from repositories import event as event_rows
from repositories.event import StampedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage(Result):
    """Events, and from where to read on. Places in the order mean something within one epoch only."""

    items: list[StampedEvent]
    epoch: int
    next_seq: int  #: pass it as `after` to read on


@action(Rules(allow=anyone, effect=Effect.READ))
class ReadEventsAction(ScopeAction[Reading, EventPage]):
    """Read what has happened to one's sessions and tasks after a place in the order; administrators read everybody's.

    Without `after` it begins now. A new epoch means that the database was restored from a backup: it begins anew.
    """

    session: str | None = None  #: an id, or a name among one's live sessions
    after: Annotated[int, Field(ge=0)] | None = None
    epoch: int | None = None  #: that `after` belongs to
    limit: Annotated[int, Field(ge=1, le=1000)] = 200

    async def run(self, call: Reading, /) -> EventPage:
        epoch, last = await event_rows.head(call.db.connection)
        after = self.after
        if after is None:
            after = last
        elif self.epoch not in (None, epoch):
            after = 0
        everybodys = call.by.sees_all and call.owner is call.by
        domains = call.by.role is Role.DOMAIN_ADMIN and call.owner is call.by
        session_id = await self._session_id(call)
        items, next_seq = await event_rows.after(
            call.db.connection,
            min(after, last),
            # a session that was found is one that the asker may look at
            user_id=None if everybodys or domains or session_id is not None else call.owner.user_id,
            domain=call.by.domain if domains else None,
            session_id=session_id,
            limit=self.limit,
        )
        return EventPage(items=items, epoch=epoch, next_seq=next_seq)

    async def _session_id(self, call: Reading) -> UUID | None:
        if self.session is None:
            return None
        wider = call.by.sees_others and call.owner is call.by
        sessions = call.db.all_sessions if wider and as_uuid(self.session) else call.db.sessions
        return (await sessions.get(self.session)).id
