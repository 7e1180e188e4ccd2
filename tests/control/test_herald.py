"""Everybody hears at once; who was deaf looks again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import pytest

from domain.errors import InvalidConfiguration
from domain.ids import SessionId
from manager.herald import TOPICS, Herald
from repositories.database import Database
from repositories.listen import Listener

Ids = frozenset[SessionId] | None


class Heard:
    """What a subscriber was told, to be waited for."""

    def __init__(self, herald: Herald, *topics: str) -> None:
        self.told: list[tuple[str, Ids]] = []
        self._news = asyncio.Event()
        for topic in topics:
            herald.subscribe(topic, lambda ids, topic=topic: self._hear(topic, ids))  # type: ignore[misc]

    def _hear(self, topic: str, ids: Ids) -> None:
        self.told.append((topic, ids))
        self._news.set()

    async def until(self, condition: Callable[[list[tuple[str, Ids]]], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition(self.told):
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def heralds(dsn: str) -> AsyncIterator[tuple[Herald, Herald]]:
    first, second = Herald(dsn, check_seconds=0.1), Herald(dsn, check_seconds=0.1)
    await first.start()
    await second.start()
    yield first, second
    await first.close()
    await second.close()


async def test_an_announcement_is_heard_here_at_once_and_elsewhere_soon(heralds: tuple[Herald, Herald]) -> None:
    here, there = heralds
    at_once, soon = Heard(here, "sessions", "queue"), Heard(there, "sessions", "queue")
    one, two = SessionId(uuid4()), SessionId(uuid4())
    here.announce("sessions", one, two)
    here.announce("queue")
    assert at_once.told == [("sessions", {one, two}), ("queue", None)]
    await soon.until(lambda told: len(told) == 2)
    assert soon.told == at_once.told
    assert len(at_once.told) == 2  # nobody hears oneself from outside


async def test_many_announcements_become_few_messages(heralds: tuple[Herald, Herald], dsn: str) -> None:
    payloads: list[str] = []
    listener = await Listener.open(dsn, "moorage", payloads.append, lambda: None, token="of this test")
    here, there = heralds
    heard = Heard(there, "sessions")
    ids = [SessionId(UUID(int=n)) for n in range(150)]
    for one in ids:
        here.announce("sessions", one)
    await heard.until(lambda told: {i for _, some in told for i in some or ()} == set(ids))
    assert len([p for p in payloads if "sessions" in p]) <= 3
    for number in range(1000):
        here.announce("sessions", SessionId(UUID(int=number)))
    await heard.until(lambda told: told[-1] == ("sessions", None))  # too many for one message: any may have changed
    assert all(len(payload) < 8000 for payload in payloads)
    await listener.close()


async def test_one_session_is_watched(heralds: tuple[Herald, Herald]) -> None:
    here, there = heralds
    mine, other = SessionId(uuid4()), SessionId(uuid4())
    told: list[int] = []
    changed = asyncio.Event()
    with there.watching(mine, changed.set), here.watching(mine, lambda: told.append(1)):
        here.announce("sessions", other)
        assert told == []
        here.announce("sessions", mine)
        here.announce("sessions")
        assert told == [1, 1]
        async with asyncio.timeout(5):
            await changed.wait()
    here.announce("sessions", mine)
    assert told == [1, 1]


async def test_after_a_lost_connection_everybody_looks_again(
    heralds: tuple[Herald, Herald], database: Database
) -> None:
    here, there = heralds
    heard = Heard(there, *TOPICS)
    changed = asyncio.Event()
    with there.watching(SessionId(uuid4()), changed.set):
        async with database.reader() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'moorage herald' AND datname = current_database()"
            )
        await heard.until(lambda told: {topic for topic, ids in told if ids is None} == TOPICS)
        assert changed.is_set()
    async with asyncio.timeout(5):
        await here.connected.wait()
    heard.told.clear()
    one = SessionId(uuid4())
    here.announce("sessions", one)
    await heard.until(lambda told: ("sessions", frozenset({one})) in told or ("sessions", None) in told)


async def test_a_subscriber_that_fails_or_leaves_harms_nobody(
    heralds: tuple[Herald, Herald], caplog: pytest.LogCaptureFixture
) -> None:
    here, _ = heralds

    def broken(_ids: Ids) -> None:
        raise ValueError("boom")

    left = Heard(here)
    leave = here.subscribe("tasks", lambda ids: left.told.append(("tasks", ids)))
    here.subscribe("tasks", broken)
    heard = Heard(here, "tasks")
    here.announce("tasks")
    leave()
    here.announce("tasks")
    assert (len(left.told), len(heard.told)) == (1, 2)
    assert "boom" in caplog.text


async def test_strange_messages_are_nobodys(heralds: tuple[Herald, Herald], database: Database) -> None:
    here, _ = heralds
    heard = Heard(here, *TOPICS)
    async with database.reader() as connection:
        for payload in ("", "x", "x sessions", "x sessions not-an-id", "x weather *", "x |||", "x tasks *"):
            await connection.execute("SELECT pg_notify('moorage', $1)", payload)
    await heard.until(lambda told: ("tasks", None) in told)
    assert {topic for topic, _ in heard.told} == {"sessions", "tasks"}


async def test_a_connection_that_delivers_nothing_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_self: Listener, _payload: str) -> None: ...

    monkeypatch.setattr(Listener, "notify", silent)
    monkeypatch.setattr("repositories.listen.SELF_TEST_SECONDS", 0.05)
    with pytest.raises(InvalidConfiguration, match="pooler"):
        await Herald(dsn).start()
