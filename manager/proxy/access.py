"""Who may pass to which service, and where that is: asked of the database, remembered for at most a second."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from domain.ids import SessionId
from repositories.database import Database
from repositories.service import Route, admitted, exchange, hashed, no_longer_admitted, route_of

_LIFETIME_SECONDS: Final = 1.0
_MOST_ENTRIES: Final = 20_000
Key = tuple[UUID, str]


class Announcements(Protocol):
    def subscribe(self, topic: str, callback: Callable[[frozenset[SessionId] | None], None]) -> object: ...


class Access:
    """Forgets what it knows of a session when anything of it changes, and all passes when any keypair does."""

    def __init__(self, database: Database, herald: Announcements, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._routes: dict[Key, tuple[float, Route | None]] = {}
        self._passes: dict[tuple[str, UUID, str], float] = {}
        for topic in ("services", "sessions"):
            herald.subscribe(topic, self._changed)
        herald.subscribe("identity", lambda _: self._passes.clear())

    def known(self, tokens: tuple[str, ...], key: Key) -> tuple[str, Route] | None:
        """The one of these passes that is good, and the route, when both were looked up a moment ago."""
        now = time.monotonic()
        until, route = self._routes.get(key, (0.0, None))
        if route is None or until < now:
            return None
        for token in tokens:
            if self._passes.get((token, *key), 0.0) >= now:
                return token, route
        return None

    async def admit(self, tokens: tuple[str, ...], key: Key) -> tuple[str | None, Route | None]:
        """The one of these passes that is good, and the route when the service can be reached."""
        until = time.monotonic() + _LIFETIME_SECONDS
        async with self._database.reader() as connection:
            for token in tokens:
                if await admitted(connection, token, *key, now=self._now()):
                    break
            else:
                return None, None
            route = await route_of(connection, *key)
        if len(self._passes) > _MOST_ENTRIES or len(self._routes) > _MOST_ENTRIES:
            self._passes.clear()
            self._routes.clear()
        self._passes[token, *key] = until
        self._routes[key] = (until, route)
        return token, route

    async def gone(self, passes: Sequence[tuple[str, Key]]) -> set[tuple[str, Key]]:
        """Those whose holders may not stay."""
        async with self._database.reader() as connection:
            asked = [(hashed(token), *key) for token, key in passes]
            return {passes[place] for place in await no_longer_admitted(connection, asked, now=self._now())}

    async def exchange(self, ticket: str, name: str) -> tuple[UUID, str]:
        """The session that a ticket is for, and a pass in its place. Raises TicketInvalid and its kinds."""
        token = secrets.token_urlsafe(32)
        async with self._database.transaction("proxy.ticket") as connection:
            session_id = await exchange(connection, ticket, name, hashed(token), now=self._now())
        return session_id, token

    def _changed(self, session_ids: frozenset[SessionId] | None) -> None:
        if session_ids is None:
            self._routes.clear()
            self._passes.clear()
            return
        wanted = {UUID(str(session_id)) for session_id in session_ids}
        for key in [key for key in self._routes if key[0] in wanted]:
            del self._routes[key]
        for entry in [entry for entry in self._passes if entry[1] in wanted]:
            del self._passes[entry]
