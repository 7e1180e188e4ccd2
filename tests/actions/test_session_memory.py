"""Sessions that are remembered for a second: never trusted for longer than a change takes to be told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from actions import ExecuteSessionAction
from domain.errors import SessionEnded, SessionNotFound
from domain.ids import SessionId
from manager.world import KnownSessions
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, ID, MALLORY, Outbox, a_session, stage

run = ExecuteSessionAction(session_name="train", code="print(1)")


class Herald(Outbox):
    """Tells its subscribers at once, as the real one does in its own process."""

    def subscribe(self, topic: str, callback: Any) -> None:
        self.callback = callback

    def announce(self, topic: str, *session_ids: SessionId) -> None:
        if topic == "sessions":
            self.callback(frozenset(session_ids) or None)


async def loads(database: Database, sql: str) -> None:
    async with database.reader() as connection:
        await connection.execute(sql)


async def test_a_session_is_loaded_once_for_many_runs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = KnownSessions(Herald())  # type: ignore[arg-type]
    processor = await stage(database, a_session(), memory=memory)
    await processor.run(run, by=ALICE)
    assert memory.recall((ALICE.user_id, "train")) is not None
    asked: list[str] = []
    before: Any = asyncpg.Connection.fetchrow

    async def fetchrow(self: Any, query: str, *args: Any, **options: Any) -> Any:
        asked.append(query)
        return await before(self, query, *args, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetchrow", fetchrow)
    await processor.run(run, by=ALICE)
    assert len(asked) == 1


async def test_what_is_remembered_is_ones_own(database: Database) -> None:
    processor = await stage(database, a_session(), memory=KnownSessions(Herald()))  # type: ignore[arg-type]
    await processor.run(run, by=ALICE)
    with pytest.raises(SessionNotFound):
        await processor.run(run, by=MALLORY)


async def test_a_restart_that_was_not_told_yet_is_found_out(database: Database) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_session(), fake=fake, memory=KnownSessions(Herald()))  # type: ignore[arg-type]
    await processor.run(run, by=ALICE)
    await loads(database, "UPDATE sessions SET attempt = 2")
    await processor.run(run, by=ALICE)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT array_agg(attempt ORDER BY attempt) FROM executions") == [1, 2]


async def test_an_end_that_was_not_told_yet_is_found_out(database: Database) -> None:
    processor = await stage(database, a_session(), memory=KnownSessions(Herald()))  # type: ignore[arg-type]
    await processor.run(run, by=ALICE)
    await loads(database, "UPDATE sessions SET status = 'TERMINATING'")
    await loads(database, "UPDATE sessions SET status = 'TERMINATED', ended_at = now()")
    with pytest.raises((SessionEnded, SessionNotFound)):
        await processor.run(run, by=ALICE)


async def test_a_change_is_forgotten_also_while_it_is_loaded() -> None:
    herald = Herald()
    memory = KnownSessions(herald)  # type: ignore[arg-type]
    session: Any = SimpleNamespace(id=ID)
    memory.keep((1,), session, memory.changes)
    assert memory.recall((1,)) == session
    herald.announce("sessions", session.id)
    assert memory.recall((1,)) is None
    before = memory.changes
    herald.announce("sessions", session.id)
    memory.keep((1,), session, before)
    assert memory.recall((1,)) is None
