"""A session's store of small JSON values, the same that its programs import as `moorage_session.state`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from actions.base import (
    Audit,
    Effect,
    Remote,
    Result,
    Rules,
    SessionAction,
    action,
    main_kernel,
    owner_or_admin,
)
from domain.errors import StateKeyNotFound
from domain.principal import TokenScope
from domain.session import ANSWERING, Session

Name = Annotated[str, Field(min_length=1, max_length=128)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateValue(Result):
    key: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StateEntry:
    key: str
    bytes: int  #: of the value as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class StateEntries(Result):
    items: list[StateEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDeleted(Result):
    deleted: bool  #: false: there was no such key


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.SESSIONS))
class ListStateAction(SessionAction[Remote, StateEntries]):
    """The keys of a session's store, by name, with the size of each value."""

    async def run(self, call: Remote, session: Session, /) -> StateEntries:
        found = await call.agents.state(main_kernel(session), "list")
        sizes = {str(key): int(size) for key, size in dict(found.get("sizes") or {}).items()}
        return StateEntries(items=[StateEntry(key=key, bytes=size) for key, size in sorted(sizes.items())])


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.SESSIONS))
class GetStateAction(SessionAction[Remote, StateValue]):
    """One value of a session's store."""

    key: Name

    async def run(self, call: Remote, session: Session, /) -> StateValue:
        found = await call.agents.state(main_kernel(session), "get", self.key)
        if not found.get("found"):
            raise StateKeyNotFound(key=self.key)
        return StateValue(key=self.key, value=found.get("value"))


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.SESSIONS))
class SetStateAction(SessionAction[Remote, StateValue]):
    """Put a JSON value under a key of a session's store: at most 64 KiB, all of them 1 MiB and 1,000 keys."""

    key: Name
    value: Any

    async def run(self, call: Remote, session: Session, /) -> StateValue:
        await call.agents.state(main_kernel(session), "set", self.key, self.value, key=call.run_id)
        return StateValue(key=self.key, value=self.value)


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.SESSIONS))
class DeleteStateAction(SessionAction[Remote, StateDeleted]):
    """Take a key out of a session's store; of one that is not there, nothing happens."""

    key: Name

    async def run(self, call: Remote, session: Session, /) -> StateDeleted:
        found = await call.agents.state(main_kernel(session), "delete", self.key, key=call.run_id)
        return StateDeleted(deleted=bool(found.get("deleted")))
