"""The one path that every action takes: who asks, stored answer, load, permission, status, run, record."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from datetime import datetime
from functools import cache, partial
from typing import Any, Protocol, TypeVar, get_type_hints
from uuid import NAMESPACE_URL, UUID, uuid5

import orjson
from pydantic import TypeAdapter

from actions.base import (
    Action,
    Audit,
    BatchAction,
    Call,
    Effect,
    Reading,
    Remote,
    Rules,
    ScopeAction,
    Service,
    SessionAction,
    Settles,
    Work,
    no_seal,
)
from domain.crash import reach
from domain.errors import (
    AgentUnavailable,
    DatabaseUnavailable,
    KernelNotFound,
    KeypairNotFound,
    MoorageError,
    NotFound,
    PermissionDenied,
    ScopeMissing,
    SessionEnded,
    SessionNotReady,
    Unauthenticated,
    WrongStatus,
)
from domain.ids import AccessKey, RunId, SessionId, uuid7
from domain.principal import Principal
from domain.session import Session
from manager.coalescing import Coalesced, written
from repositories.database import Database
from repositories.record import AuditRecord, claim_key, store_answer, write_audit
from repositories.session import wrong_status
from repositories.transit import Cause
from repositories.unit import Repositories

R = TypeVar("R")
log = logging.getLogger("moorage.processor")
_RUN_NAMESPACE = uuid5(NAMESPACE_URL, "moorage:run")


class Observer(Protocol):
    """Hears of every finished call: metrics."""

    def __call__(self, action: str, outcome: str, seconds: float) -> None: ...


class Directory(Protocol):
    """Finds principals; answers may be a second old."""

    async def of_access_key(self, access_key: str) -> Principal | None: ...


class Outbox(Protocol):
    """Where announcements go after a commit."""

    def announce(self, topic: str, *session_ids: SessionId) -> None: ...


class SessionMemory(Protocol):
    """Sessions as they were loaded at most a second ago, forgotten when they change. For AGENT actions only: whatever
    these write is guarded by the session's attempt and status, and so is what the agent does."""

    #: how often something was forgotten
    changes: int

    def recall(self, name: tuple[Any, ...]) -> Session | None: ...
    def keep(self, name: tuple[Any, ...], session: Session, changes: int) -> None:
        """Unless something was forgotten since `changes` was read, before the load."""
        ...


class Processor:
    """Runs actions. Everything it needs is given to it; it keeps no state but coalesced denials."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        outbox: Outbox,
        service: Service,
        *,
        observe: Observer,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID] = uuid7,
        seal: Callable[[str, str], bytes] = no_seal,
        memory: SessionMemory | None = None,
    ) -> None:
        self._database = database
        self._directory = directory
        self._outbox = outbox
        self._service = service
        self._observe = observe
        self._now = now
        self._new_id = new_id
        self._seal = seal
        self._memory = memory
        self._denials = Coalesced(partial(written, database))

    async def run(
        self,
        action: Action[Any, R],
        *,
        by: Principal | None = None,
        key: str | None = None,
        request_id: str | None = None,
        settle_seconds: float | None = 0.0,
    ) -> R:
        """The action's answer, or one domain error.

        `by` is the authenticated principal; without it the action's access key names it (in-process callers are
        trusted). `key` is the Idempotency-Key. An action that `Settles` is waited for `settle_seconds` (None: until it
        has settled; 0: not at all).
        """
        started, outcome, call = time.monotonic(), "crash", None
        try:
            async with asyncio.timeout(action.rules.deadline_seconds):
                call = await self._call(action, by, key, request_id)
                _check_reach(action, call)
                answer = await self._dispatch(action, call)
            outcome = "ok"
        except MoorageError as error:
            outcome = error.code
            await self._audit_denial(action, call, error, action.target())
            raise
        except TimeoutError:
            outcome = "timeout"
            raise _too_late(action.rules) from None
        finally:
            self._observe(action.action_name, outcome, time.monotonic() - started)
        if isinstance(action, Settles) and settle_seconds != 0:
            answer = await action.settled(self._service, answer, settle_seconds)
        return answer

    # -- who asks ------------------------------------------------------------------------------------------------
    async def _call(
        self, action: Action[Any, Any], by: Principal | None, key: str | None, request_id: str | None
    ) -> Call:
        access_key: AccessKey | None = getattr(action, "access_key", None)
        owner_key: AccessKey | None = getattr(action, "owner_access_key", None)
        if by is None:
            by = await self._principal(access_key or owner_key)
        owner = by
        if owner_key is not None and owner_key != by.access_key:
            owner = await self._owner(by, owner_key)
        return Call(
            by=by,
            owner=owner,
            now=self._now(),
            request_id=request_id,
            key=key,
            new_id=self._new_id,
            seal=self._seal,
        )

    async def _owner(self, by: Principal, access_key: AccessKey) -> Principal:
        if (found := await self._directory.of_access_key(access_key)) is not None:
            return found
        if by.sees_all:
            raise KeypairNotFound(access_key=access_key)
        # as for a key that there is: keys are not found out by trying
        raise PermissionDenied("Only administrators act for other owners.")

    async def _principal(self, access_key: AccessKey | None) -> Principal:
        if access_key is None:
            raise Unauthenticated("The action names no access key, and no principal was passed.")
        if (found := await self._directory.of_access_key(access_key)) is None:
            raise Unauthenticated("There is no active keypair with this access key.")
        return found

    # -- run -----------------------------------------------------------------------------------------------------
    async def _dispatch(self, action: Action[Any, R], call: Call) -> R:
        if isinstance(action, BatchAction):
            return await self._run_batch(action, call)  # type: ignore[no-any-return]
        match action.rules.effect:
            case Effect.READ:
                return await self._run_read(action, call)
            case Effect.DATABASE:
                return await self._run_database(action, call)
            case Effect.AGENT:
                return await self._run_agent(action, call)

    async def _run_read(self, action: Action[Any, R], call: Call) -> R:
        async with self._reading(action, call) as reading:
            session = await self._checked(action, reading)
            answer = await _invoke(action, reading, session)
        if _others(call, session) or action.looks_at_others(call.by):
            await self._audit(action, call, "ok", session)
        return answer

    async def _run_database(self, action: Action[Any, R], call: Call) -> R:
        async with self._working(action, call) as work:
            stored = await self._stored(action, work)
            if stored is not None:
                return _answer_adapter(type(action)).validate_python(stored["answer"])  # type: ignore[no-any-return]
            session = await self._checked(action, work)
            answer = await _invoke(action, work, session)
            if call.key is not None:
                await store_answer(work.db.connection, call.by.user_id, call.key, _storable(action, answer))
            await write_audit(work.db.connection, self._record(action, call, "ok", session))
        return answer

    async def _stored(self, action: Action[Any, Any], work: Work) -> Any:
        if work.key is None:
            return None
        return await claim_key(
            work.db.connection,
            work.by.user_id,
            work.key,
            action=action.action_name,
            request_hash=request_hash(action),
            now=work.now,
        )

    async def _run_agent(self, action: Action[Any, R], call: Call) -> R:
        run_id = self._new_id() if call.key is None else run_id_of(call.by, call.key)
        remote = _as(Remote, call, service=self._service, run_id=run_id)
        session = self._recalled(action, call)
        if session is not None:
            try:
                answer = await _invoke(action, remote, session)
            except (SessionEnded, SessionNotReady, WrongStatus, KernelNotFound):
                session = None  # nothing was done; it may have been restarted, or have grown, since it was loaded
        if session is None:
            session = await self._loaded(action, call)
            answer = await _invoke(action, remote, session)
        reach("action", action.action_name, "done")
        if action.rules.audit is Audit.ALWAYS or (action.rules.audit is Audit.OTHERS and _others(call, session)):
            await self._audit(action, call, "ok", session)
        return answer

    def _recalled(self, action: Action[Any, Any], call: Call) -> Session | None:
        """A session of the asker's own that may do this, as far as is remembered."""
        if self._memory is None or not isinstance(action, SessionAction):
            return None
        session = self._memory.recall((call.owner.user_id, action.session_name))
        allowed = session is not None and session.status in action.rules.when and session.user_id == call.by.user_id
        return session if allowed and action.rules.allow(call.by, session) else None

    async def _loaded(self, action: Action[Any, Any], call: Call) -> Session | None:
        changes = self._memory.changes if self._memory is not None else 0
        async with self._reading(action, call) as reading:
            session = await self._checked(action, reading)
        if self._memory is not None and isinstance(action, SessionAction) and session is not None:
            self._memory.keep((call.owner.user_id, action.session_name), session, changes)
        return session

    async def _run_batch(self, action: BatchAction[Any, Any], call: Call) -> Any:
        """One transaction and one outcome for each target, in order."""
        outcomes: list[Any] = []
        for target in action.targets():
            try:
                async with self._working(action, call) as work:
                    session = await self._load(work, target)
                    _check(action, call, session)
                    outcomes.append(await action.run(work, session))
                    await write_audit(work.db.connection, self._record(action, call, "ok", session))
            except MoorageError as error:
                await self._audit_denial(action, call, error, str(target))
                outcomes.append(action.refused(target, error))
        return action.together(outcomes)

    # -- load, permission, status ----------------------------------------------------------------------------------
    async def _checked(self, action: Action[Any, Any], reading: Reading) -> Session | None:
        if not isinstance(action, SessionAction):
            if not action.rules.allow(reading.by, None):
                raise PermissionDenied
            return None
        session = await self._load(reading, action.session_name)
        _check(action, reading, session)
        return session

    async def _load(self, reading: Reading, name_or_id: str | UUID) -> Session:
        """Within the owner's scope; an administrator reaches everybody's by id. Not yours is not there."""
        by = reading.by
        if by.sees_others and reading.owner is by and _is_id(name_or_id):
            return await reading.db.all_sessions.get(name_or_id)
        return await reading.db.sessions.get(name_or_id)

    # -- connections -------------------------------------------------------------------------------------------------
    def cause(self, call: Call, action: str) -> Cause:
        return Cause(by=str(call.by.access_key), action=action, request_id=call.request_id)

    @asynccontextmanager
    async def _reading(self, action: Action[Any, Any], call: Call) -> AsyncIterator[Reading]:
        async with self._database.reader() as connection:
            yield _as(Reading, call, db=self.repositories(connection, call, action.action_name))

    @asynccontextmanager
    async def _working(self, action: Action[Any, Any], call: Call) -> AsyncIterator[Work]:
        async with self.transaction(call, action.action_name) as work:
            yield work

    @asynccontextmanager
    async def transaction(self, call: Call, action: str) -> AsyncIterator[Work]:
        """A unit of work; what it announces goes out after the commit."""
        async with self._database.transaction(f"action.{action}" if action else "") as connection:
            work: Work = _as(Work, call, db=self.repositories(connection, call, action))
            yield work
        for topic, session_id in work.announcements:
            self._outbox.announce(topic, *([session_id] if session_id else []))
        self._outbox.announce("events")
        await asyncio.sleep(0)  # others are told before the answer is composed: they have more to do

    def repositories(self, connection: Any, call: Call, action: str) -> Repositories:
        return Repositories(connection, by=call.by, owner=call.owner, now=call.now, cause=self.cause(call, action))

    # -- audit -------------------------------------------------------------------------------------------------------
    def _record(
        self, action: Action[Any, Any], call: Call, outcome: str, session: Session | None = None
    ) -> AuditRecord:
        owner = session.access_key if session is not None and session.user_id != call.by.user_id else None
        if owner is None and call.owner is not call.by:
            owner = call.owner.access_key
        return AuditRecord(
            at=call.now,
            user_id=call.by.user_id,
            access_key=call.by.access_key,
            owner_access_key=owner,
            action=action.action_name,
            target=str(session.id) if session is not None else action.target(),
            outcome=outcome,
            request_id=call.request_id,
        )

    async def _audit(self, action: Action[Any, Any], call: Call, outcome: str, session: Session | None) -> None:
        async with self._database.reader() as connection:
            await write_audit(connection, self._record(action, call, outcome, session))

    async def _audit_denial(
        self, action: Action[Any, Any], call: Call | None, error: MoorageError, target: str | None
    ) -> None:
        """Refusals are on record too; the same one again within a minute is counted, and written once more."""
        if call is None or not isinstance(error, PermissionDenied | NotFound):
            return
        record = replace(self._record(action, call, error.code), target=target)
        await self._denials.record((call.by.user_id, action.action_name, target, error.code), record)


def _check_reach(action: Action[Any, Any], call: Call) -> None:
    """Whether the credential is for this, and whether the asker may name this owner; before anything is looked at."""
    if action.rules.needs not in call.by.scopes:
        raise ScopeMissing(
            f"This token is for {', '.join(sorted(call.by.scopes))}; this takes one for {action.rules.needs}.",
            scope=action.rules.needs,
        )
    if _others(call, None) and not _acts_for(call.by, call.owner):
        raise PermissionDenied("Only administrators act for other owners.")


def _check(action: Action[Any, Any], call: Call, session: Session) -> None:
    if not action.rules.allow(call.by, session):
        raise PermissionDenied
    if session.status not in action.rules.when:  # said early; every UPDATE says it again
        raise wrong_status(session)


def _too_late(rules: Rules) -> MoorageError:
    """What is left undone, or may not be known to be done, can be asked for again with the same key."""
    if rules.effect is Effect.AGENT:
        return AgentUnavailable("The session's host did not answer in time; ask again with the same Idempotency-Key.")
    return DatabaseUnavailable(
        f"This was not done within {rules.deadline_seconds:g} s, and nothing was changed: ask again shortly."
    )


def _others(call: Call, session: Session | None) -> bool:
    """Whether this touches what is not the asker's own."""
    return call.by.user_id != (call.owner.user_id if session is None else session.user_id)


def _acts_for(by: Principal, owner: Principal) -> bool:
    """Nobody acts for somebody above themselves: what the owner may do would be theirs."""
    return by.sees_all or by.manages(owner.domain, owner.role)


def _is_id(name_or_id: str | UUID) -> bool:
    if isinstance(name_or_id, UUID):
        return True
    try:
        UUID(name_or_id)
    except ValueError:
        return False
    return True


async def _invoke(action: Action[Any, R], context: Call, session: Session | None) -> R:
    if isinstance(action, SessionAction):
        assert session is not None
        return await action.run(context, session)  # type: ignore[no-any-return]
    assert isinstance(action, ScopeAction)
    return await action.run(context)  # type: ignore[no-any-return]


def _as(kind: type[Any], call: Call, **more: Any) -> Any:
    return kind(
        by=call.by,
        owner=call.owner,
        now=call.now,
        request_id=call.request_id,
        key=call.key,
        new_id=call.new_id,
        seal=call.seal,
        **more,
    )


def run_id_of(by: Principal, key: str) -> RunId:
    """Of the run that somebody's request with this key starts, whenever it comes and at whichever manager."""
    return RunId(uuid5(_RUN_NAMESPACE, f"{by.user_id} {key}"))


def request_hash(action: Action[Any, Any]) -> bytes:
    """What makes two requests the same: the action and all it was given but who asks."""
    body = {f.name: getattr(action, f.name) for f in fields(action) if f.name != "access_key"}  # type: ignore[arg-type]
    return hashlib.sha256(
        orjson.dumps([action.action_name, body], default=_jsonable, option=orjson.OPT_SORT_KEYS)
    ).digest()


def _jsonable(value: object) -> object:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError


@cache
def _answer_adapter(action: type[Action[Any, Any]]) -> TypeAdapter[Any]:
    return TypeAdapter(answer_type(action))


@cache
def answer_type(action: type[Action[Any, Any]]) -> Any:
    """The type of an action's answer, as its `run` declares it."""
    return get_type_hints(action.run, vars(sys.modules[action.run.__module__]))["return"]  # type: ignore[attr-defined]


def _storable(action: Action[Any, Any], answer: Any) -> Any:
    data = _answer_adapter(type(action)).dump_python(answer, mode="json")
    return _without(data, action.rules.secrets) if action.rules.secrets else data


def _without(data: Any, names: frozenset[str]) -> Any:
    if isinstance(data, dict):
        return {name: None if name in names else _without(value, names) for name, value in data.items()}
    return [_without(item, names) for item in data] if isinstance(data, list) else data
