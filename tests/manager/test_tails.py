"""The end of a run's output is in the database when its session has ended."""

from __future__ import annotations

from typing import Any

from agent.wire import RECORD, decode_records
from domain.session import Status
from manager.tails import TAIL_BYTES, Tails, last_records
from repositories.database import Database
from tests.agent.fake import FakeAgent, Run, record
from tests.scenario import ID, NOW, RUN_ID, a_run, a_session, people_and_a_host


async def ended_session(database: Database, **run: Any) -> None:
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        for given in (a_session(Status.TERMINATED), a_run(ID, status="done", finished_at=NOW, **run)):
            await given.put(connection)


async def kept(database: Database) -> bytes | None:
    async with database.reader() as connection:
        tail: bytes | None = await connection.fetchval("SELECT tail FROM executions WHERE run_id = $1", RUN_ID)
        return tail


async def test_the_output_is_taken_over_whole_when_it_is_short(database: Database) -> None:
    fake = FakeAgent()
    fake.runs[str(RUN_ID)] = Run().say("stdout", b"hello\n").end()
    await ended_session(database, last_seq=2, output_bytes=6)
    await Tails(database, fake, clock=lambda: NOW).step()
    tail = await kept(database)
    assert tail is not None
    assert [one.kind for one in decode_records(tail)] == ["stdout", "done"]


async def test_of_long_output_the_last_mebibyte_is_kept(database: Database) -> None:
    fake, run = FakeAgent(), Run()
    for number in range(100):
        run.say("stdout", bytes([number]) * 60_000)
    fake.runs[str(RUN_ID)] = run.end()
    await ended_session(database, last_seq=101, output_bytes=6_000_000)
    await Tails(database, fake, clock=lambda: NOW).step()
    tail = await kept(database)
    assert tail is not None
    sequence = [one.seq for one in decode_records(tail)]
    assert TAIL_BYTES * 0.8 < len(tail) <= TAIL_BYTES
    assert sequence == list(range(sequence[0], 102))


async def test_a_host_that_is_away_is_asked_again(database: Database) -> None:
    fake = FakeAgent(agents=())
    await ended_session(database, last_seq=1)
    await Tails(database, fake, clock=lambda: NOW).step()
    assert await kept(database) is None
    assert fake.calls == []


async def test_what_is_not_there_any_more_is_asked_for_once(database: Database) -> None:
    fake = FakeAgent()
    await ended_session(database, last_seq=1)
    tails = Tails(database, fake, clock=lambda: NOW)
    await tails.step()
    await tails.step()
    assert await kept(database) == b""
    assert len([call for call in fake.calls if str(RUN_ID) in map(str, call)]) == 1


def test_records_are_cut_between_two_of_them() -> None:
    records = b"".join(record(seq, "stdout", b"x" * 100) for seq in range(1, 11))
    cut = last_records(records, 3 * (100 + RECORD.size) + 5)
    assert [one.seq for one in decode_records(cut)] == [8, 9, 10]
    assert last_records(records, len(records)) == records
