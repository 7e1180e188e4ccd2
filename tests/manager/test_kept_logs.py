"""A container's log stays readable after its session's end, also without its host."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from actions import GetContainerLogsAction
from domain.errors import AgentUnavailable
from domain.session import Status
from manager.tails import LOG_TAIL_BYTES, Tails
from repositories.database import Database
from tests.agent.fake import FakeAgent, Run
from tests.scenario import ALICE, ID, NOW, a_session, kernel_of, stage

LINES = b"one\ntwo\nthree\n"


def agent_with_log(*texts: bytes) -> FakeAgent:
    fake, run = FakeAgent(), Run(mode="log")
    for text in texts:
        run.say("stdout", text)
    fake.log = run.end()
    return fake


async def keep(database: Database, fake: FakeAgent) -> None:
    await Tails(database, fake, clock=lambda: NOW).step()


async def shown(processor: Any, **asked: Any) -> bytes:
    log = await processor.run(GetContainerLogsAction(session_name=str(ID), **asked), by=ALICE)
    return b"".join([chunk async for chunk in log.chunks()])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, LINES),
        ({"tail": 2}, b"two\nthree\n"),
        ({"tail": 0}, b""),
        ({"since": datetime.fromtimestamp(0, UTC)}, LINES),
        ({"since": NOW}, b""),
        ({"follow": True}, LINES),
        ({"follow": True, "tail": 1}, b"three\n"),
        ({"kernel": "main1"}, LINES),
    ],
)
async def test_the_log_of_a_lost_host(database: Database, asked: dict[str, Any], expected: bytes) -> None:
    fake = agent_with_log(LINES[:6], LINES[6:])
    processor = await stage(database, a_session(Status.TERMINATED), fake=fake)
    await keep(database, fake)
    fake.fails_with = AgentUnavailable()
    assert await shown(processor, **asked) == expected


async def test_the_host_tells_more_than_what_is_kept(database: Database) -> None:
    long = [bytes([65 + number % 26]) * 50_000 for number in range(10)]
    fake = agent_with_log(*long)
    processor = await stage(database, a_session(Status.TERMINATED), fake=fake)
    await keep(database, fake)
    assert await shown(processor) == b"".join(long)
    fake.fails_with = AgentUnavailable()
    kept = await shown(processor)
    assert LOG_TAIL_BYTES * 0.7 < len(kept) <= LOG_TAIL_BYTES
    assert b"".join(long).endswith(kept)


async def test_a_running_session_whose_host_is_away_says_so(database: Database) -> None:
    fake = agent_with_log(LINES)
    processor = await stage(database, a_session(), fake=fake)
    await keep(database, fake)  # nothing is taken over while it runs
    fake.fails_with = AgentUnavailable()
    with pytest.raises(AgentUnavailable):
        await shown(processor)


async def test_a_log_is_taken_over_once(database: Database) -> None:
    fake = agent_with_log(LINES)
    await stage(database, a_session(Status.TERMINATED), fake=fake)
    await keep(database, fake)
    asked = len(fake.calls)
    await keep(database, fake)
    assert len(fake.calls) == asked
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT kernel_id FROM kernel_logs") == kernel_of(ID)
