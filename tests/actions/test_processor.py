"""The one path of every action: exactly-once, on record, told only after the commit, and in time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest

from actions import (
    ACTIONS,
    CreateFromParamsAction,
    CreateKeypairAction,
    DestroySessionAction,
    GetSessionInfoAction,
    RenameSessionAction,
    Rules,
    ScopeAction,
    SearchSessionsAction,
)
from actions.base import Effect, Reading, Remote, Result, SessionAction, Work, action, anyone
from domain.errors import (
    AgentUnavailable,
    DatabaseUnavailable,
    IdempotencyMismatch,
    InvalidResources,
    MoorageError,
    NameTaken,
    PermissionDenied,
    SessionNotFound,
    Unauthenticated,
)
from domain.ids import AccessKey
from domain.resources import ResourceSlot
from domain.session import Session
from manager.world import SessionProcessors
from repositories.database import Database
from tests.scenario import ALICE, ID, MALLORY, OTHER_ID, ROOT, Outbox, a_session, stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered(Result):
    number: int


create = CreateFromParamsAction(name="train", image="python", resource_slots=ResourceSlot(cpu=1, mem=512))
rename = RenameSessionAction(session_name=str(ID), new_name="best")


@pytest.fixture(autouse=True)
def declared_actions() -> Iterator[None]:
    """Actions that a test declares go with it."""
    before = dict(ACTIONS)
    yield
    ACTIONS.clear()
    ACTIONS.update(before)


def tried(effect: Effect, body: Callable[[Any], Awaitable[None]], **rules: Any) -> ScopeAction[Any, Result]:
    """An action of this effect that does only this."""
    given: Any = {Effect.READ: Reading, Effect.DATABASE: Work, Effect.AGENT: Remote}[effect]

    class TriedAction(ScopeAction[given, Result]):
        """Tried."""

        async def run(self, call: Any, /) -> Result:
            await body(call)
            return Result()

    return action(Rules(allow=anyone, effect=effect, **rules))(TriedAction)()


async def count(database: Database, table: str, where: str = "true") -> int:
    async with database.reader() as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {where}"))


# -- exactly once ------------------------------------------------------------------------------------------------------
async def test_the_same_key_is_the_same_answer_and_one_effect(database: Database) -> None:
    processor = await stage(database)
    first = await processor.run(create, by=ALICE, key="k")
    again = await processor.run(create, by=ALICE, key="k")
    assert again == first
    assert (await count(database, "sessions"), await count(database, "audit"), await count(database, "events")) == (
        1,
        1,
        1,
    )


async def test_a_replay_is_answered_also_when_it_could_not_be_done_again(database: Database) -> None:
    processor = await stage(database, a_session())
    first = await processor.run(rename, by=ALICE, key="k")
    await processor.run(DestroySessionAction(session_name=str(ID), forced=True), by=ALICE)
    assert await processor.run(rename, by=ALICE, key="k") == first


@pytest.mark.parametrize(
    "other",
    [
        replace(create, name="other"),
        replace(create, resource_slots=ResourceSlot(cpu=2, mem=512)),
        replace(create, environ={"A": "1"}),
        DestroySessionAction(session_name=str(ID)),
    ],
)
async def test_the_same_key_for_another_request_is_refused(database: Database, other: Any) -> None:
    processor = await stage(database, a_session(id=OTHER_ID, name="there"))
    await processor.run(create, by=ALICE, key="k")
    with pytest.raises(IdempotencyMismatch):
        await processor.run(other, by=ALICE, key="k")


async def test_a_key_is_ones_own(database: Database) -> None:
    processor = await stage(database)
    mine = await processor.run(create, by=ALICE, key="k")
    theirs = await processor.run(create, by=MALLORY, key="k")
    assert mine.session_data.id != theirs.session_data.id


async def test_a_refused_request_leaves_its_key_free(database: Database) -> None:
    processor = await stage(database, a_session())
    with pytest.raises(NameTaken):
        await processor.run(create, by=ALICE, key="k")
    assert await count(database, "idempotency_keys") == 0
    await processor.run(DestroySessionAction(session_name=str(ID), forced=True), by=ALICE)
    assert (await processor.run(create, by=ALICE, key="k")).created


async def test_fifty_duplicates_of_which_the_first_dies_have_one_effect(database: Database, dsn: str) -> None:
    """The duplicates wait on the first one's key; it rolls back, one of them becomes the first, the rest replay."""
    go_on, calls = asyncio.Event(), itertools.count(1)

    @action(Rules(allow=anyone, effect=Effect.DATABASE))
    class AddDomainAction(ScopeAction[Work, Numbered]):
        """Add a domain, and die the first time."""

        async def run(self, call: Work, /) -> Numbered:
            number = next(calls)
            await call.db.connection.execute("INSERT INTO domains (name) VALUES ('made-' || $1::text)", str(number))
            if number == 1:
                await go_on.wait()
                raise RuntimeError("the process is gone")
            return Numbered(number=number)

    processor = await stage(database)
    running = [asyncio.create_task(processor.run(AddDomainAction(), by=ALICE, key="k")) for _ in range(50)]
    await _until_blocked(dsn, at_least=10)
    go_on.set()
    answers = await asyncio.gather(*running, return_exceptions=True)
    assert [str(answer) for answer in answers if isinstance(answer, BaseException)] == ["the process is gone"]
    assert [answer.number for answer in answers if isinstance(answer, Numbered)] == [2] * 49
    assert next(calls) == 3
    assert await count(database, "domains", "name LIKE 'made-%'") == 1
    assert await count(database, "audit") == 1


async def _until_blocked(dsn: str, *, at_least: int) -> None:
    """Until so many wait for a lock; asked on a connection of its own, as the pool may be used up."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(10):
            while await connection.fetchval(_BLOCKED) < at_least:
                await asyncio.sleep(0)
    finally:
        await connection.close()


_BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_secrets_are_not_stored(database: Database) -> None:
    processor = await stage(database)
    made = await processor.run(CreateKeypairAction(), by=ALICE, key="k")
    async with database.reader() as connection:
        stored = str(await connection.fetchval("SELECT answer FROM idempotency_keys"))
    assert made.keypair.access_key in stored
    assert str(made.keypair.secret_key) not in stored


# -- who asks ----------------------------------------------------------------------------------------------------------
async def test_the_access_key_names_who_asks_in_process(database: Database) -> None:
    processor = await stage(database, a_session())
    await processor.run(replace(rename, access_key=ALICE.access_key))
    assert await count(database, "audit", "access_key = 'KEY-alice'") == 1


@pytest.mark.parametrize("access_key", [None, AccessKey("KEY-nobody")])
async def test_nobody_does_nothing(database: Database, access_key: AccessKey | None) -> None:
    processor = await stage(database, a_session())
    with pytest.raises(Unauthenticated):
        await processor.run(replace(rename, access_key=access_key))


async def test_a_closed_account_does_nothing(database: Database) -> None:
    processor = await stage(database, a_session())
    async with database.transaction() as connection:
        await connection.execute("UPDATE users SET active = false")
    with pytest.raises(Unauthenticated):
        await processor.run(replace(rename, access_key=ALICE.access_key))


# -- on record ---------------------------------------------------------------------------------------------------------
async def test_the_same_denial_is_written_once_a_minute(database: Database) -> None:
    processor = await stage(database, a_session())
    for new_name in ("one.", "two.", "best"):
        with pytest.raises(SessionNotFound):
            await processor.run(replace(rename, new_name=new_name), by=MALLORY)
    assert await count(database, "audit") == 1
    with pytest.raises(SessionNotFound):
        await processor.run(replace(rename, session_name=str(OTHER_ID)), by=MALLORY)
    assert await count(database, "audit") == 2
    for kind in list(processor._denials._repeats):  # their minute is over
        processor._denials._close(kind)
    await asyncio.gather(*processor._denials._tasks)
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT target, repeats FROM audit ORDER BY id")
    assert [tuple(row) for row in rows] == [(str(ID), 1), (str(OTHER_ID), 1), (str(ID), 2)]
    with pytest.raises(SessionNotFound):
        await processor.run(rename, by=MALLORY)
    assert await count(database, "audit") == 4


async def test_an_audit_row_says_who_did_what_to_whose(database: Database) -> None:
    processor = await stage(database, a_session())
    await processor.run(rename, by=ROOT, request_id="r-1")
    async with database.reader() as connection:
        row = dict(await connection.fetchrow("SELECT * FROM audit") or {})
    assert row["user_id"] == ROOT.user_id
    assert (row["access_key"], row["owner_access_key"]) == ("KEY-root", "KEY-alice")
    assert (row["action"], row["target"], row["outcome"]) == ("rename_session", str(ID), "ok")
    assert row["request_id"] == "r-1"


async def test_reading_is_on_record_only_when_it_is_anothers(database: Database) -> None:
    processor = await stage(database, a_session())
    look = GetSessionInfoAction(session_name=str(ID))
    await processor.run(look, by=ALICE)
    await processor.run(SearchSessionsAction(), by=ALICE)
    assert await count(database, "audit") == 0
    await processor.run(look, by=ROOT)
    await processor.run(SearchSessionsAction(owner_access_key=ALICE.access_key), by=ROOT)
    assert await count(database, "audit", "owner_access_key = 'KEY-alice'") == 2


async def test_every_end_is_counted(database: Database) -> None:
    async def divide(_call: Work) -> None:
        raise ZeroDivisionError

    seen: list[tuple[str, str]] = []
    processor = await stage(database, a_session(), observe=lambda name, outcome, _seconds: seen.append((name, outcome)))
    await processor.run(rename, by=ALICE)
    with pytest.raises(PermissionDenied):
        await processor.run(replace(create, owner_access_key=ALICE.access_key), by=MALLORY)
    with pytest.raises(ZeroDivisionError):
        await processor.run(tried(Effect.DATABASE, divide), by=ALICE)
    assert seen == [("rename_session", "ok"), ("create_from_params", "permission_denied"), ("tried", "crash")]


# -- one unit of work --------------------------------------------------------------------------------------------------
async def test_announcements_go_out_after_the_commit(database: Database) -> None:
    class Watching(Outbox):
        """Looks, through a connection of its own, whether what is announced can be seen already."""

        def __init__(self) -> None:
            super().__init__()
            self.looks: list[asyncio.Task[str]] = []

        def announce(self, topic: str, *session_ids: Any) -> None:
            super().announce(topic, *session_ids)
            self.looks.append(asyncio.create_task(self.look()))

        async def look(self) -> str:
            async with database.reader() as connection:
                return str(await connection.fetchval("SELECT name FROM sessions"))

    outbox = Watching()
    processor = await stage(database, a_session(), outbox=outbox)
    await processor.run(rename, by=ALICE)
    assert outbox.said == [("sessions", (ID,)), ("events", ())]
    assert set(await asyncio.gather(*outbox.looks)) == {"best"}


async def test_nothing_is_announced_or_kept_when_it_fails(database: Database) -> None:
    async def half_done(call: Work) -> None:
        await call.db.connection.execute("INSERT INTO domains (name) VALUES ('half')")
        call.announce("queue")
        raise InvalidResources

    outbox = Outbox()
    processor = await stage(database, outbox=outbox)
    with pytest.raises(InvalidResources):
        await processor.run(tried(Effect.DATABASE, half_done), by=ALICE, key="k")
    assert outbox.said == []
    assert await count(database, "domains", "name = 'half'") == 0
    assert [await count(database, table) for table in ("idempotency_keys", "audit", "events")] == [0, 0, 0]


async def test_reading_cannot_write_by_accident_of_a_transaction(database: Database) -> None:
    """A READ action is given a connection without a transaction, and no way to announce."""
    kinds = {}

    async def look(call: Reading) -> None:
        kinds["in a transaction"] = call.db.connection.is_in_transaction()
        kinds["announces"] = hasattr(call, "announce")

    await (await stage(database)).run(tried(Effect.READ, look), by=ALICE)
    assert kinds == {"in a transaction": False, "announces": False}


async def test_no_transaction_is_open_while_an_agent_is_asked(database: Database) -> None:
    async def ask(call: Remote) -> None:
        async with database.reader() as connection:
            open_ones = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
            )
        assert open_ones == 0

    await (await stage(database)).run(tried(Effect.AGENT, ask), by=ALICE)


def test_database_actions_are_given_no_agents() -> None:
    assert not hasattr(Work, "agents")
    assert not hasattr(Reading, "agents")
    assert not hasattr(Work, "service")


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        (Effect.READ, DatabaseUnavailable),
        (Effect.DATABASE, DatabaseUnavailable),
        (Effect.AGENT, AgentUnavailable),
    ],
)
async def test_an_action_ends_at_its_deadline(database: Database, effect: Effect, error: type[MoorageError]) -> None:
    async def never(_call: object) -> None:
        await asyncio.Event().wait()

    processor = await stage(database)
    with pytest.raises(error) as late:
        await processor.run(tried(effect, never, deadline_seconds=0.1), by=ALICE, key="k")
    assert late.value.retryable
    assert await count(database, "idempotency_keys") == 0


# -- declarations ------------------------------------------------------------------------------------------------------
def test_an_action_without_a_docstring_fails_at_import() -> None:
    with pytest.raises(TypeError, match="needs a docstring"):

        @action(Rules(allow=anyone, effect=Effect.READ))
        class SilentAction(ScopeAction[Reading, Result]):
            async def run(self, call: Reading, /) -> Result:
                return Result()


def test_two_actions_of_one_name_fail_at_import() -> None:
    with pytest.raises(TypeError, match="already"):

        @action(Rules(allow=anyone, effect=Effect.READ))
        class WhoAmIAction(ScopeAction[Reading, Result]):
            """Again."""

            async def run(self, call: Reading, /) -> Result:
                return Result()


@pytest.mark.parametrize("effect", [Effect.READ, Effect.AGENT])
def test_an_effect_that_does_not_fit_what_is_given_fails_at_import(effect: Effect) -> None:
    with pytest.raises(TypeError, match="does not fit"):

        @action(Rules(allow=anyone, effect=effect))
        class MismatchedAction(SessionAction[Work, Result]):
            """It is given a unit of work, and says otherwise."""

            async def run(self, call: Work, session: Session, /) -> Result:
                return Result()


def test_rules_must_say_who_and_what() -> None:
    with pytest.raises(TypeError):
        Rules(allow=anyone)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Rules(effect=Effect.READ)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        action()  # type: ignore[call-arg]


async def test_an_action_that_was_not_declared_is_not_run(database: Database) -> None:
    class UndeclaredAction(ScopeAction[Reading, Result]):
        """No rules."""

        async def run(self, call: Reading, /) -> Result:
            return Result()

    processor = await stage(database)
    with pytest.raises(AttributeError, match="UndeclaredAction"):
        await processor.run(UndeclaredAction(), by=ALICE)


async def test_there_is_one_processor_for_each_action(database: Database) -> None:
    processors = SessionProcessors(await stage(database, a_session()))
    assert dir(processors) == sorted(ACTIONS)
    renamed = await processors.rename_session.wait_for_complete(rename, by=ALICE)
    assert renamed.success
    with pytest.raises(TypeError, match="runs RenameSessionAction"):
        await processors.rename_session.wait_for_complete(create, by=ALICE)
    with pytest.raises(AttributeError, match="no action 'nothing'"):
        _ = processors.nothing
    with pytest.raises(TypeError, match="no background action"):
        await processors.rename_session.start(rename, by=ALICE)
