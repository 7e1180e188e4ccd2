"""An intent that is asked about again although it was answered: the same answer settles it."""

from __future__ import annotations

from repositories.database import Database
from tests.control.rows import NOW, add_agent, fact_of, kernels_of, running, status_of, tell


async def test_the_same_answer_settles_an_intent_that_a_late_hello_made_due_again(database: Database) -> None:
    """While a hello was on its way to one manager, another had the kernel brought up: its inventory knows nothing of it."""
    [session_id] = await running(database)
    async with database.transaction() as connection:
        await add_agent(connection, "a", cpu=10**9, mem=10**9)
        [kernel] = await kernels_of(connection, session_id)
        assert kernel["seen_generation"] < kernel["generation"]
        fact = await fact_of(connection, session_id, "RUNNING", kernel["report_seq"])
    told = await tell(database, "a", fact, now=NOW)
    assert told.accepted == 1
    assert told.moved == []
    async with database.reader() as connection:
        [kernel] = await kernels_of(connection, session_id)
    assert kernel["seen_generation"] == kernel["generation"]
    assert await status_of(database, session_id) == "RUNNING"
    assert (await tell(database, "a", fact, now=NOW)).accepted == 0
