"""Builds everything of one manager process once, and hands it out as arguments. There are no globals."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from actions import ACTIONS, Action
from actions.administration import hash_secret
from actions.base import AuditSeal, Call, Reading, Settles, SshAuthority, Work, no_seal
from actions.patience import Patience
from agent.client import AgentClient
from domain.errors import InvalidRequest
from domain.ids import SessionId, uuid7
from domain.principal import Principal
from domain.session import Session
from manager.herald import Herald
from manager.passwords import Passwords
from manager.processor import Observer, Processor
from manager.vault import Vault
from repositories.database import Database
from repositories.identity import principal_of_keypair, principal_of_token
from repositories.session import AdminSessionRepository
from repositories.transit import Cause

R = TypeVar("R")


def utc_now() -> datetime:
    """This machine's clock; a manager passes the database's, which all managers share."""
    return datetime.now(UTC)


class Identities:
    """Keypairs and tokens, remembered for half a second and forgotten at once when any of them changes.

    Streams look each half second, so that what is revoked ends within a second, even if nobody says so.
    """

    LIFETIME_SECONDS = 0.5
    MAX_ENTRIES = 10_000

    def __init__(self, database: Database, herald: Herald, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, tuple[float, Principal | None, Sequence[bytes]]] = {}
        self._changes = 0
        herald.subscribe("identity", self._forget)

    async def authenticate(self, credential: str) -> Principal | None:
        """Who sends `ACCESS_KEY.SECRET_KEY`, or a token. Takes as long for a wrong secret as for an unknown key."""
        access_key, dot, secret = credential.partition(".")
        if not dot:
            return await self._of_token(credential)
        principal, hashes = await self._of_keypair(access_key)
        given = hash_secret(secret)
        # each is compared, so that the time says nothing of which it was
        proven = sum(hmac.compare_digest(one, given) for one in hashes)
        return principal if proven else None

    async def of_access_key(self, access_key: str) -> Principal | None:
        return (await self._of_keypair(access_key))[0]

    async def _of_keypair(self, access_key: str) -> tuple[Principal | None, Sequence[bytes]]:
        until, principal, hashes = self._known.get(access_key, (0.0, None, ()))
        if until < time.monotonic():
            changes = self._changes
            async with self._database.reader() as connection:
                found = await principal_of_keypair(connection, access_key, self._clock())
            principal, hashes = found or (None, (bytes(32),))
            self._remember(access_key, principal, hashes, changes)
        return principal, hashes

    async def _of_token(self, token: str) -> Principal | None:
        token_hash = hash_secret(token)
        name = f"token {token_hash.hex()}"
        until, principal, _ = self._known.get(name, (0.0, None, ()))
        if until < time.monotonic():
            changes = self._changes
            async with self._database.reader() as connection:
                principal = await principal_of_token(connection, token_hash, self._clock())
            self._remember(name, principal, (), changes)
        return principal

    def _forget(self, _ids: object) -> None:
        self._changes += 1
        self._known.clear()

    def _remember(self, name: str, principal: Principal | None, hashes: Sequence[bytes], changes: int) -> None:
        if changes != self._changes:
            return  # it was read before the change, perhaps
        if len(self._known) >= self.MAX_ENTRIES:
            self._known.clear()
        self._known[name] = (time.monotonic() + self.LIFETIME_SECONDS, principal, hashes)


class KnownSessions:
    """Implements `manager.processor.SessionMemory`."""

    LIFETIME_SECONDS = 1.0
    MAX_ENTRIES = 10_000

    def __init__(self, herald: Herald) -> None:
        self.changes = 0
        self._known: dict[tuple[Any, ...], tuple[float, Session]] = {}
        self._names: dict[SessionId, set[tuple[Any, ...]]] = {}
        herald.subscribe("sessions", self._forget)

    def recall(self, name: tuple[Any, ...]) -> Session | None:
        until, session = self._known.get(name, (0.0, None))
        return session if until > time.monotonic() else None

    def keep(self, name: tuple[Any, ...], session: Session, changes: int) -> None:
        if changes != self.changes:
            return
        if len(self._known) >= self.MAX_ENTRIES:
            self._forget(None)
        self._known[name] = (time.monotonic() + self.LIFETIME_SECONDS, session)
        self._names.setdefault(session.id, set()).add(name)

    def _forget(self, session_ids: frozenset[SessionId] | None) -> None:
        self.changes += 1
        if session_ids is None:
            self._known.clear()
            self._names.clear()
            return
        for session_id in session_ids:
            for name in self._names.pop(session_id, ()):
                self._known.pop(name, None)


class SessionService:
    """What AGENT actions run against: agents, short transactions, and waiting for sessions to change."""

    #: the gateway, where there is one
    ssh: SshAuthority | None = None
    #: what the audit's chain is proved with, where there is a key
    seal: AuditSeal | None = None

    def __init__(
        self,
        database: Database,
        herald: Herald,
        agents: AgentClient,
        *,
        clock: Callable[[], datetime] = utc_now,
        proxy_url: str = "http://127.0.0.1",
    ) -> None:
        self._database = database
        self._herald = herald
        self.agents = agents
        self.passwords = Passwords(database)
        self.proxy_url = proxy_url
        self._clock = clock
        self.patience = Patience()
        self.processor: Processor | None = None  # set by `World`, which knits the two together
        self.processors: SessionProcessors

    def now(self) -> datetime:
        return self._clock()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @asynccontextmanager
    async def reading(self, call: Call) -> AsyncIterator[Reading]:
        assert self.processor is not None
        async with self._database.reader() as connection:
            db = self.processor.repositories(connection, call, "")
            yield Reading(by=call.by, owner=call.owner, now=self.now(), request_id=call.request_id, key=call.key, db=db)

    def work(self, call: Call) -> AbstractAsyncContextManager[Work]:
        assert self.processor is not None
        return self.processor.transaction(call, "")

    def announce(self, topic: str, *session_ids: SessionId) -> None:
        self._herald.announce(topic, *session_ids)

    async def wait_for_session(
        self, session_id: SessionId, until: Callable[[Session], bool], seconds: float | None
    ) -> Session:
        changed = asyncio.Event()
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._herald.watching(session_id, changed.set), self.patience.waking(changed):
            while True:
                changed.clear()
                session = await self._load(session_id)
                left = None if deadline is None else deadline - time.monotonic()
                if until(session) or (left is not None and left <= 0) or self.patience.ended:
                    return session
                try:  # a second at most: the herald's word can be lost with its connection
                    await asyncio.wait_for(changed.wait(), 1.0 if left is None else min(1.0, left))
                except TimeoutError:
                    continue

    async def _load(self, session_id: SessionId) -> Session:
        async with self._database.reader() as connection:
            rows = AdminSessionRepository(connection, None, now=self.now(), cause=Cause(by="manager"))
            return await rows.get(session_id)


@dataclass(frozen=True, slots=True)
class ActionProcessor(Generic[R]):
    """One attribute of `SessionProcessors`."""

    kind: type[Action[Any, R]]
    processor: Processor

    async def wait_for_complete(
        self,
        action: Action[Any, R],
        *,
        by: Principal | None = None,
        key: str | None = None,
        seconds: float | None = None,
    ) -> R:
        """The action's answer, or one domain error. Creations return when the session runs, has ended, or `max_wait` is over."""
        if not isinstance(action, self.kind):
            raise TypeError(f"this processor runs {self.kind.__name__}, not {type(action).__name__}")
        checked = validated(action)
        return await self.processor.run(
            checked, by=by, key=key, settle_seconds=seconds if isinstance(action, Settles) else 0.0
        )

    async def start(self, action: Action[Any, Any], *, by: Principal | None = None, key: str | None = None) -> UUID:
        """Queue a background action; the id of its task."""
        if not self.kind.rules.background:
            raise TypeError(f"{self.kind.action_name} is no background action")
        answer = await self.wait_for_complete(action, by=by, key=key)
        return answer.task.id  # type: ignore[no-any-return,attr-defined]


class SessionProcessors:
    """One attribute per action: `await processors.create_from_params.wait_for_complete(action)`."""

    def __init__(self, processor: Processor) -> None:
        self._by_name = {name: ActionProcessor(kind, processor) for name, kind in ACTIONS.items()}

    def __getattr__(self, name: str) -> ActionProcessor[Any]:
        try:
            return self._by_name[name]
        except KeyError:
            raise AttributeError(f"there is no action '{name}'") from None

    def __dir__(self) -> list[str]:
        return sorted(self._by_name)


def validated(action: Action[Any, R]) -> Action[Any, R]:
    """The action, its fields checked and brought into shape as at every other door."""
    try:
        return adapter(type(action)).validate_python(action)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise invalid(error) from None


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def adapter(kind: type) -> TypeAdapter[Any]:
    if (made := _ADAPTERS.get(kind)) is None:
        made = _ADAPTERS[kind] = TypeAdapter(kind)
    return made


def invalid(error: ValidationError) -> InvalidRequest:
    """The first thing that is wrong with a request, in one sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return InvalidRequest(f"There is no field '{where}'; check the spelling against /docs.", field=where)
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return InvalidRequest(f"The field '{where}' is required.", field=where)
    return InvalidRequest(f"The field '{where}' is wrong: {in_words(first)}.", field=where)


def in_words(error: Mapping[str, Any]) -> str:
    """What pydantic finds wrong; of ids, what people can do about it."""
    return "an id is wanted, such as lists show" if str(error["type"]).startswith("uuid") else str(error["msg"])


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One manager process's parts."""

    database: Database
    herald: Herald
    agents: AgentClient
    identities: Identities
    service: SessionService
    processor: Processor
    processors: SessionProcessors

    @classmethod
    def build(
        cls,
        database: Database,
        herald: Herald,
        agents: AgentClient,
        *,
        observe: Observer,
        clock: Callable[[], datetime] = utc_now,
        proxy_url: str = "http://127.0.0.1",
        vault: Vault | None = None,
    ) -> World:
        identities = Identities(database, herald, clock)
        service = SessionService(database, herald, agents, clock=clock, proxy_url=proxy_url)
        processor = Processor(
            database,
            identities,
            herald,
            service,
            observe=observe,
            now=service.now,
            new_id=uuid7,
            memory=KnownSessions(herald),
            seal=no_seal if vault is None else vault.seal,
        )
        service.processor = processor
        service.processors = SessionProcessors(processor)
        return cls(
            database=database,
            herald=herald,
            agents=agents,
            identities=identities,
            service=service,
            processor=processor,
            processors=service.processors,
        )

    async def authenticate(self, credential: str) -> Principal | None:
        return await self.identities.authenticate(credential)
