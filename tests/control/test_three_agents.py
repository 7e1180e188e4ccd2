"""Three hosts, the real scheduler and PostgreSQL: fair shares, a gang that waits, hosts that come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.ids import AgentId, SessionId
from repositories import drains
from repositories.database import Connection, Database
from repositories.drains import Drain
from tests.control.fakes import Clock, ScriptedAgents, until
from tests.control.rows import PROJECT, add_agent, add_sessions, assert_slots_add_up, kernels_of, row_of, status_of
from tests.control.test_control import Manager, end, manager
from tests.scenario import insert

HOSTS = tuple(AgentId(name) for name in "abc")
ALICE, BOB = UUID(int=21), UUID(int=22)
WEEK = 7 * 86400.0
GIB = 1024


@pytest.fixture
async def three(database: Database) -> AsyncIterator[Manager]:
    """Twelve CPUs and 12 GiB, in three hosts alike; by the database's clock, since usage is."""
    clock = Clock(datetime.now(UTC))
    async with database.transaction() as connection:
        for host in HOSTS:
            await add_agent(connection, host, now=clock(), cpu=4000, mem=4 * GIB)
        for user, name in ((ALICE, "alice"), (BOB, "bob")):
            row = {"id": user, "email": f"{name}@x.org", "username": name, "domain": "default"}
            await insert(connection, "users", row)
    async with manager(database, ScriptedAgents(*HOSTS), clock) as made:
        yield made


async def submit(
    connection: Connection, made: Manager, number: int, user: UUID = ALICE, *, after: float = 0.0, **options: Any
) -> list[SessionId]:
    """In the queue since `after` seconds from now: whoever has a lower share goes first all the same."""
    given: dict[str, Any] = {name: options.pop(name) for name in ("session_type", "startup_command") if name in options}
    columns: dict[str, Any] = {"user_id": user, **given}
    created_at = made.clock() + timedelta(seconds=after)
    sessions = await add_sessions(connection, number, created_at=created_at, **options)
    for column, value in columns.items():
        await connection.execute(f"UPDATE sessions SET {column} = $2 WHERE id = ANY($1)", sessions, value)
    return sessions


async def queue(made: Manager, number: int, user: UUID = ALICE, **options: Any) -> list[SessionId]:
    async with made.database.transaction() as connection:
        sessions = await submit(connection, made, number, user, **options)
    made.herald.announce("queue")
    return sessions


async def held_before(connection: Connection, made: Manager, user: UUID, **amounts: int) -> None:
    """All of the last half-life, and then given back: half of it counts."""
    for name, amount in amounts.items():
        about = {"kernel_id": uuid4(), "session_id": uuid4(), "session_name": "x", "project_id": PROJECT}
        row = {"user_id": user, "name": name, "amount": amount, "share": 1.0}
        times = {"since_at": made.clock() - timedelta(seconds=WEEK), "until_at": made.clock()}
        await insert(connection, "usage", {**about, **row, **times, "domain": "default", "agent_id": "a"})


async def running_of(made: Manager, sessions: Sequence[SessionId]) -> Counter[str]:
    async with made.database.reader() as connection:
        rows = await connection.fetch(
            """
            SELECT u.username FROM sessions s JOIN users u ON u.id = s.user_id
            WHERE s.id = ANY($1) AND s.status = 'RUNNING'
            """,
            sessions,
        )
    return Counter(row["username"] for row in rows)


async def all_running(made: Manager, sessions: Sequence[SessionId], number: int) -> Counter[str]:
    async def enough() -> bool:
        return (await running_of(made, sessions)).total() == number

    await until(made.herald, enough)
    return await running_of(made, sessions)


def filled(past: tuple[float, float], weights: tuple[float, float], slots: int) -> Counter[str]:
    """The documented formula, one slot after the other: the lower (held + past) / weight goes first."""
    held = [0, 0]
    for _ in range(slots):
        shares = [(held[n] + past[n]) / weights[n] for n in (0, 1)]
        held[0 if shares[0] < shares[1] else 1] += 1
    return Counter(alice=held[0], bob=held[1])


async def host_of(made: Manager, session_id: SessionId) -> str | None:
    async with made.database.reader() as connection:
        found: str | None = (await kernels_of(connection, session_id))[-1]["agent_id"]
        return found


@pytest.mark.parametrize(
    ("past", "weight", "expected"),
    [
        ({"cpu": 12000}, 1.0, {"alice": 3, "bob": 9}),  # 6 CPUs on average: Bob fills up to them, then both alike
        ({"mem": 8 * GIB}, 1.0, {"alice": 4, "bob": 8}),  # the dominant resource, whichever it is
        ({"cpu": 12000}, 2.0, {"alice": 6, "bob": 6}),  # entitled to twice as much: it counts half
        ({}, 3.0, {"alice": 9, "bob": 3}),
    ],
)
async def test_two_users_share_as_the_formula_says(
    three: Manager, past: dict[str, int], weight: float, expected: dict[str, int]
) -> None:
    """Alice has a history, and asks first for all there is; each of 40 sessions takes a twelfth of the fleet."""
    async with three.database.transaction() as connection:
        await held_before(connection, three, ALICE, **past)
        if weight != 1:
            row = {"resource_group": "default", "user_id": ALICE, "weight": weight}
            await insert(connection, "fair_shares", row)
        sessions = await submit(connection, three, 20, ALICE, cpu=1000, mem=GIB)
        sessions += await submit(connection, three, 20, BOB, after=60, cpu=1000, mem=GIB)
    three.herald.announce("queue")
    running = await all_running(three, sessions, 12)
    before = max(past.get("cpu", 0) / 2000, past.get("mem", 0) / 2 / GIB)
    assert running == filled((before - 1e-4, 0), (weight, 1), 12) == Counter(expected)
    await assert_slots_add_up(three.database)


async def test_whoever_holds_less_gets_what_comes_free(three: Manager) -> None:
    """Alice was alone and took everything; what she gives back is Bob's until he has as much."""
    first = await queue(three, 12, ALICE, cpu=1000, mem=GIB)
    await all_running(three, first, 12)
    async with three.database.transaction() as connection:
        waiting = await submit(connection, three, 12, ALICE, cpu=1000, mem=GIB)
        waiting += await submit(connection, three, 12, BOB, after=60, cpu=1000, mem=GIB)
    three.herald.announce("queue")
    for number, session_id in enumerate(first, 1):
        await end(three, session_id)
        running = await all_running(three, [*first, *waiting], 12)
        assert running["bob"] == min(number, 6), f"after {number} ends"


async def test_a_gang_waits_without_starving_or_idling_the_fleet(three: Manager) -> None:
    """It needs all three hosts. Short work passes it as long as that delays nothing; what could delay it waits."""
    spread = await queue(three, 3, BOB, cpu=3000, mem=GIB, timeout=600)  # one on each host, for ten minutes
    await three.is_in("RUNNING", *spread)
    [gang] = await queue(three, 1, ALICE, kernels=3, cluster_mode="multi-node", cpu=4000, mem=GIB)
    short = await queue(three, 3, BOB, after=1, cpu=1000, mem=GIB, timeout=300)
    await three.is_in("RUNNING", *short)  # nothing stands idle
    assert await status_of(three.database, gang) == "PENDING"
    endless = await queue(three, 4, BOB, after=2, cpu=1000, mem=GIB)
    long = await queue(three, 4, BOB, after=3, cpu=1000, mem=GIB, timeout=3600)
    for one in short:  # there is room for them now, and they would delay the gang
        await end(three, one)
    await three.is_in("TERMINATED", *short)
    again = await queue(three, 3, BOB, after=4, cpu=1000, mem=GIB, timeout=300)
    await three.is_in("RUNNING", *again)
    assert {await status_of(three.database, one) for one in (gang, *endless, *long)} == {"PENDING"}
    for one in (*spread, *again):
        await end(three, one)
    await three.is_in("RUNNING", gang)  # the first that there was room for
    async with three.database.reader() as connection:
        assert {kernel["agent_id"] for kernel in await kernels_of(connection, gang)} == set(HOSTS)
    assert {await status_of(three.database, one) for one in (*endless, *long)} == {"PENDING"}
    await end(three, gang)
    await three.is_in("RUNNING", *endless, *long)
    await assert_slots_add_up(three.database)


async def test_a_host_is_cordoned_another_drained(three: Manager) -> None:
    async with three.database.transaction() as connection:
        await drains.cordon(connection, HOSTS[2], reason="for an upgrade", now=three.clock())
    first = await queue(three, 6, BOB, cpu=1000, mem=GIB, session_type="batch", startup_command="train")
    await three.is_in("RUNNING", *first)
    hosts = Counter([await host_of(three, one) for one in first])
    assert hosts.keys() == {"a", "b"}
    drained = max(hosts, key=lambda host: hosts[host] or 0)
    assert drained is not None
    async with three.database.transaction() as connection:
        await drains.uncordon(connection, HOSTS[2], now=three.clock())
        await drains.drain(connection, AgentId(drained), Drain(moves=True), reason=None, now=three.clock())
    three.herald.announce("agents")

    async def empty() -> bool:
        found = {await host_of(three, one) for one in first}
        return drained not in found | {None} and (await running_of(three, first)).total() == 6

    await until(three.herald, empty)
    assert {(await row_of(three.database, one))["retries"] for one in first} == {0}
    await assert_slots_add_up(three.database)


async def test_a_host_is_killed(three: Manager) -> None:
    """Its sessions are flagged and left to themselves, others run elsewhere; when it is back all goes on."""
    first = await queue(three, 12, BOB, cpu=1000, mem=GIB)
    await three.is_in("RUNNING", *first)
    there = [one for one in first if await host_of(three, one) == "c"]
    three.agents.names.discard(HOSTS[2])
    async with three.database.transaction() as connection:
        await connection.execute("UPDATE agents SET lease_until = $1 WHERE id = 'c'", three.clock())
    three.clock.turn(seconds=1)
    three.control.lost_agents.look_again(after_seconds=0)  # this manager has seen enough to say so
    three.control.lost_agents.wake()

    async def flagged() -> bool:
        return all([(await row_of(three.database, one))["agent_lost"] for one in there])

    await until(three.herald, flagged)
    assert len(there) == 4
    waiting = await queue(three, 2, ALICE, cpu=1000, mem=GIB)
    elsewhere = [one for one in first if one not in there]
    for one in (*there[:1], *elsewhere[:2]):  # what ends on the lost host frees nothing yet
        await end(three, one)
    await three.is_in("RUNNING", *waiting)
    assert {await host_of(three, one) for one in waiting} <= {"a", "b"}
    assert await status_of(three.database, there[0]) == "TERMINATING"
    three.agents.names.add(HOSTS[2])
    async with three.database.transaction() as connection:
        await add_agent(connection, "c", cpu=4000, mem=4 * GIB, now=three.clock(), boot_no=2)
    three.herald.announce("agents")
    three.herald.announce("dispatch")
    await three.is_in("TERMINATED", there[0])
    assert {await status_of(three.database, one) for one in there[1:]} == {"RUNNING"}
    [last] = await queue(three, 1, ALICE, cpu=1000, mem=GIB)
    await three.is_in("RUNNING", last)
    assert await host_of(three, last) == "c"
    await assert_slots_add_up(three.database)
