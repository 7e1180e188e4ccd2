"""No status lasts for ever: each that is meant to pass is let pass its deadline, and every end is legal at any time."""

from __future__ import annotations

from datetime import timedelta
from typing import cast
from uuid import uuid4

import pytest

from domain.ids import AgentId, SessionId
from domain.session import ANSWERING, DEADLINES, FINAL, LIVE, TARGETS, Event, Lease, Status
from manager.dispatcher import CLAIM_SECONDS
from manager.herald import Herald
from manager.reconciler import Deadlines
from repositories.agents import find_lost, heartbeats
from repositories.database import Database
from repositories.kernels import claim
from tests.control.fakes import Clock
from tests.control.rows import (
    NOW,
    add_agent,
    add_sessions,
    assert_slots_add_up,
    destroy,
    fact_of,
    history_of,
    plan_and_place,
    row_of,
    status_of,
    tell,
)

A = AgentId("a")
PASSING = sorted(LIVE - ANSWERING - {Status.PENDING})


class Silent:
    """A herald whom nobody hears: the loops below are stepped by hand."""

    def announce(self, topic: str, *ids: object) -> None: ...


async def in_status(database: Database, status: Status) -> SessionId:
    """A session that has come there on its usual way, on a host that answers to nothing from now on."""
    async with database.transaction() as connection:
        await add_agent(connection, A, lease_seconds=30)
        [session_id] = await add_sessions(connection)
        if status is Status.PENDING:
            return session_id
        await plan_and_place(connection)
    said = {
        Status.SCHEDULED: (),
        Status.PREPARING: ("PREPARING",),
        Status.PULLING: ("PREPARING", "PULLING"),
        Status.RUNNING_DEGRADED: ("RUNNING",),
    }.get(status, ("RUNNING",))
    for seq, observed in enumerate(said, 10):
        async with database.reader() as connection:
            fact = await fact_of(connection, session_id, observed, seq)
        await tell(database, A, fact)
    events = {
        Status.RESTARTING: Event.RESTART,
        Status.TERMINATING: Event.DESTROY,
        Status.RUNNING_DEGRADED: Event.DEGRADE,
    }
    if status in events:
        await destroy(database, session_id, events[status])
    assert await status_of(database, session_id) == status
    return session_id


async def freed_by_its_host(database: Database, session_id: SessionId) -> None:
    """The host is back, is told that the kernel has to go, and says that it has gone: only then its slots are free."""
    await assert_slots_add_up(database)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT sum(used) FROM resources") > 0
        late = NOW + timedelta(days=1)
        [intent] = await claim(connection, [A], by=uuid4(), now=late, limit=9, claim_seconds=CLAIM_SECONDS)
        assert intent.want == "GONE"
        gone = await fact_of(connection, session_id, "GONE", 99)
    await tell(database, A, gone)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT sum(used) FROM resources") == 0
    await assert_slots_add_up(database)


@pytest.mark.parametrize("status", PASSING)
async def test_a_deadline_that_passes_leads_to_an_end(database: Database, status: Status) -> None:
    """Its host says nothing any more: by compensation after compensation it ends, with a reason that its owner reads."""
    session_id, clock = await in_status(database, status), Clock()
    loop = Deadlines(database, cast(Herald, Silent()), clock=clock)
    wanted, now_is = [], status
    while now_is not in FINAL:
        deadline = DEADLINES[now_is]
        clock.turn(seconds=deadline.seconds - 0.001)
        waits = await loop.step()
        assert await status_of(database, session_id) == now_is
        assert waits == pytest.approx(0.001)
        clock.turn(seconds=0.001)
        await loop.step()
        now_is = TARGETS[deadline.compensation][now_is]
        wanted.append((now_is, deadline.reason))
        row = await row_of(database, session_id)
        assert (row["status"], row["status_reason"]) == wanted[-1]
    assert (await history_of(database, session_id))[-len(wanted) :] == [target for target, _ in wanted]
    await freed_by_its_host(database, session_id)


@pytest.mark.parametrize("status", [status for status in PASSING if DEADLINES[status].lease is Lease.CLAIM])
async def test_whose_manager_has_died_is_taken_over(database: Database, status: Status) -> None:
    """The claim of the one that was about to tell the host is over after seconds, long before the deadline."""
    await in_status(database, status)
    first, second = uuid4(), uuid4()
    async with database.reader() as connection:
        [_] = await claim(connection, [A], by=first, now=NOW, limit=9, claim_seconds=CLAIM_SECONDS)
        assert await claim(connection, [A], by=second, now=NOW, limit=9, claim_seconds=CLAIM_SECONDS) == []
        later = NOW + timedelta(seconds=CLAIM_SECONDS)
        [_] = await claim(connection, [A], by=second, now=later, limit=9, claim_seconds=CLAIM_SECONDS)
    assert DEADLINES[status].seconds > 10 * CLAIM_SECONDS


@pytest.mark.parametrize("status", [status for status in PASSING if DEADLINES[status].lease is Lease.HOST])
async def test_whose_host_is_silent_says_so_long_before_its_deadline(database: Database, status: Status) -> None:
    session_id = await in_status(database, status)
    async with database.transaction() as connection:
        await heartbeats(connection, [A], now=NOW, lease_seconds=30)
        assert await find_lost(connection, now=NOW + timedelta(seconds=31)) == ([A], frozenset({session_id}))
    assert (await row_of(database, session_id))["agent_lost"]
    assert DEADLINES[status].seconds > 31


@pytest.mark.parametrize("status", sorted(LIVE - {Status.PENDING}))
async def test_a_destroy_is_effective_when_the_host_is_gone(database: Database, status: Status) -> None:
    """Its owner has the end within three minutes at most; the host hears of it when it is back."""
    session_id, clock = await in_status(database, status), Clock()
    async with database.transaction() as connection:
        await find_lost(connection, now=NOW + timedelta(seconds=31))
    await destroy(database, session_id)
    row = await row_of(database, session_id)
    assert (row["status"], row["agent_lost"]) == (Status.TERMINATING, True)
    clock.turn(seconds=DEADLINES[Status.TERMINATING].seconds)
    await Deadlines(database, cast(Herald, Silent()), clock=clock).step()
    row = await row_of(database, session_id)
    assert (row["status"], row["status_reason"]) == ("TERMINATED", DEADLINES[Status.TERMINATING].reason)
    await freed_by_its_host(database, session_id)


@pytest.mark.parametrize("status", sorted(LIVE))
async def test_an_end_by_force_waits_for_nobody(database: Database, status: Status) -> None:
    session_id = await in_status(database, status)
    await destroy(database, session_id, Event.FORCE)
    row = await row_of(database, session_id)
    assert Status(row["status"]) in FINAL
    assert row["ended_at"] == NOW
    if status is not Status.PENDING:
        await freed_by_its_host(database, session_id)
