"""Writers that meet: whoever comes first, the rows tell one consistent story."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from actions import (
    CreateFromParamsAction,
    DestroySessionAction,
    ExecuteSessionAction,
    ModifySessionAction,
    RenameSessionAction,
    RestartSessionAction,
)
from domain.errors import MoorageError, NameTaken, PreconditionFailed, QuotaExceeded
from domain.ids import SessionId
from domain.resources import ResourceSlot
from domain.session import Status
from manager.processor import Processor
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, HOST, ID, OTHER_ID, a_row, a_session, insert, kernel_of, stage


async def all_at_once(processor: Processor, actions: Sequence[Any], *, key: str | None = None) -> Counter[str]:
    """How many ended how: `ok`, or the code of the error. Anything but a domain error is a failure of the test."""

    async def one(action: Any) -> str:
        try:
            await processor.run(action, by=ALICE, key=key)
        except MoorageError as error:
            return error.code
        return "ok"

    return Counter(await asyncio.gather(*(one(action) for action in actions)))


def create(name: str, **more: Any) -> CreateFromParamsAction:
    return CreateFromParamsAction(name=name, image="python", resource_slots=ResourceSlot(cpu=1, mem=512), **more)


async def test_twenty_racing_destroys_and_restarts_leave_an_unbroken_history(database: Database) -> None:
    ids = [SessionId(UUID(int=ID.int + number)) for number in range(8)]
    processor = await stage(database, *(a_session(id=one, name=f"race-{n}") for n, one in enumerate(ids)))
    for one in ids:
        racing = [
            (RestartSessionAction if number % 2 else DestroySessionAction)(session_name=str(one))
            for number in range(20)
        ]
        ended = await all_at_once(processor, racing)
        # every destroy succeeds, also the ones that come late; a restart comes first or not at all
        assert ended["ok"] in (10, 11)
        assert set(ended) <= {"ok", "session_ended", "session_not_ready"}
    async with database.reader() as connection:
        for one in ids:
            session = await connection.fetchrow("SELECT status, version, attempt FROM sessions WHERE id = $1", one)
            history = await connection.fetch(
                "SELECT version, source, target FROM status_history WHERE session_id = $1 ORDER BY version", one
            )
            assert session is not None
            assert session["status"] == Status.TERMINATING
            assert [row["version"] for row in history] == list(range(1, session["version"] + 1))
            # the row that was put there says PENDING once; from RUNNING on the chain has to hold
            assert history[1]["source"] == Status.RUNNING
            assert [row["source"] for row in history[2:]] == [row["target"] for row in history[1:-1]]
            kernel = await connection.fetchrow(
                "SELECT want, generation, attempt FROM kernels WHERE session_id = $1", one
            )
            assert kernel is not None
            assert (kernel["want"], kernel["attempt"]) == ("GONE", session["attempt"])
            assert kernel["generation"] == session["version"]


async def test_of_two_renames_to_one_name_one_wins(database: Database) -> None:
    processor = await stage(database, a_session(), a_session(id=OTHER_ID, name="other"))
    renames = [RenameSessionAction(session_name=str(one), new_name="best") for one in (ID, OTHER_ID)]
    assert await all_at_once(processor, renames) == {"ok": 1, NameTaken.code: 1}


async def test_sixteen_renames_of_one_session_come_one_after_the_other(database: Database) -> None:
    processor = await stage(database, a_session())
    renames = [RenameSessionAction(session_name=str(ID), new_name=f"name-{number}") for number in range(16)]
    assert await all_at_once(processor, renames) == {"ok": 16}
    async with database.reader() as connection:
        row = await connection.fetchrow("SELECT version, name FROM sessions")
        told = await connection.fetchval("SELECT count(*) FROM events WHERE type = 'session.renamed'")
    assert row is not None
    assert (row["version"], told) == (17, 16)
    assert row["name"].startswith("name-")


async def test_of_sixteen_changes_of_one_version_one_wins(database: Database) -> None:
    processor = await stage(database, a_session())
    changes = [ModifySessionAction(session_name=str(ID), tag=f"t{number}", version=1) for number in range(16)]
    assert await all_at_once(processor, changes) == {"ok": 1, PreconditionFailed.code: 15}


async def test_a_rename_never_comes_after_the_end(database: Database) -> None:
    processor = await stage(database, a_session())
    ended = await all_at_once(
        processor,
        [
            DestroySessionAction(session_name=str(ID), forced=True),
            *(RenameSessionAction(session_name=str(ID), new_name=f"name-{number}") for number in range(15)),
        ],
    )
    assert set(ended) <= {"ok", "session_ended"}
    async with database.reader() as connection:
        versions = await connection.fetchrow(
            "SELECT s.version, h.version AS ended FROM sessions s JOIN status_history h ON h.session_id = s.id "
            "WHERE h.target = 'TERMINATED'"
        )
    assert versions is not None
    assert versions["version"] == versions["ended"]


async def test_sixteen_writers_share_one_quota(database: Database) -> None:
    quota = a_row("quotas", scope="user", scope_id=str(ALICE.user_id), name="sessions", max_amount=5)
    processor = await stage(database, quota)
    ended = await all_at_once(processor, [create(f"job-{number}") for number in range(16)])
    assert ended == {"ok": 5, QuotaExceeded.code: 11}
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT queued FROM quotas") == 5
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 5


@pytest.mark.parametrize("reuse", [False, True])
async def test_sixteen_creations_of_one_name_make_one_session(database: Database, reuse: bool) -> None:
    processor = await stage(database)
    ended = await all_at_once(processor, [create("train", reuse_if_exists=reuse) for _ in range(16)])
    assert ended == ({"ok": 16} if reuse else {"ok": 1, NameTaken.code: 15})
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 1


async def test_a_restart_and_a_creation_of_its_name_have_one_winner(database: Database) -> None:
    processor = await stage(database, a_session(Status.TERMINATED))
    ended = await all_at_once(processor, [RestartSessionAction(session_name=str(ID)), create("train")])
    assert ended == {"ok": 1, NameTaken.code: 1}


async def test_sixteen_restarts_of_an_ended_session_make_one_attempt(database: Database) -> None:
    processor = await stage(database, a_session(Status.TERMINATED))
    ended = await all_at_once(processor, [RestartSessionAction(session_name=str(ID))] * 16)
    assert ended["ok"] == 1
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT attempt FROM sessions") == 2
        assert await connection.fetchval("SELECT count(*) FROM kernels WHERE attempt = 2") == 1


async def test_sixteen_executions_of_one_key_are_one_run(database: Database) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_session(), fake=fake)
    runs = [ExecuteSessionAction(session_name="train", code="print(1)")] * 16
    assert await all_at_once(processor, runs, key="once") == {"ok": 16}
    assert len(fake.runs) == 1
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM executions") == 1
        assert await connection.fetchval("SELECT count(*) FROM audit") == 1


async def test_sixteen_writers_take_no_more_than_a_host_has(database: Database) -> None:
    """Eight CPUs for sixteen: the first eight get one each, the others are refused, and nobody waits for ever."""
    ids = [SessionId(UUID(int=ID.int + number)) for number in range(16)]
    await stage(database, *(a_session(Status.PENDING, id=one, name=f"job-{n}") for n, one in enumerate(ids)))

    async def take(session_id: SessionId) -> str:
        row = {"kernel_id": kernel_of(session_id), "agent_id": HOST, "name": "cpu", "amount": 1000}
        try:
            async with database.transaction() as connection:
                await insert(connection, "allocations", row)
        except asyncpg.CheckViolationError as refused:
            return str(refused.constraint_name)
        return "taken"

    assert Counter(await asyncio.gather(*map(take, ids))) == {"taken": 8, "resources_used_check": 8}
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT used FROM resources WHERE name = 'cpu'") == 8000
