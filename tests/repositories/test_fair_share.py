"""What users held counts as the formula says: whoever sums it up when, and whatever the half-life is changed to."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from domain.ids import SessionId
from domain.placement import Share
from repositories.database import Connection, Database
from repositories.fair_share import count_ended, recount, shares
from repositories.resource_groups import change_group, lock_group
from repositories.upkeep import current_time, lead
from tests.scenario import ALICE, ID, MALLORY, NOW, PROJECT, a_session, insert, kernel_of, people_and_a_host

WEEK = 7 * 86400.0
USERS = (ALICE.user_id, MALLORY.user_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A row of `usage`."""

    user_id: UUID
    name: str
    amount: int
    since_at: datetime
    until_at: datetime | None
    share: float = 1.0
    group: str = "default"

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def quantity(self) -> float:
        return self.share if "/" in self.name else self.amount

    def past(self, at: datetime, half_life: float) -> float:
        """The integral of quantity * 2^(-age / half-life), times ln2 / half-life: in closed form."""
        begin, end = (max(0.0, (at - t).total_seconds()) for t in (self.since_at, self.until_at or at))
        return float(self.quantity * (2 ** (-end / half_life) - 2 ** (-begin / half_life)))


async def put(connection: Connection, held: Sequence[Held]) -> None:
    for one in held:
        about = {"kernel_id": uuid4(), "session_id": uuid4(), "session_name": "x", "project_id": PROJECT}
        row = {name: getattr(one, name) for name in ("user_id", "name", "amount", "share", "since_at", "until_at")}
        await insert(
            connection,
            "usage",
            {**about, **row, "domain": "default", "agent_id": "host-1", "resource_group": one.group},
        )


def expected(held: Sequence[Held], at: datetime, half_life: float) -> dict[UUID, dict[str, float]]:
    sums: dict[UUID, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in held:
        sums[one.user_id][one.kind] += one.past(at, half_life)
    return sums


def check(found: Sequence[Share], held: Sequence[Held], at: datetime, half_life: float) -> None:
    wanted = expected(held, at, half_life)
    assert {one.user_id for one in found} == set(wanted)
    for one in found:
        assert dict(one.past) == pytest.approx({k: v for k, v in wanted[one.user_id].items() if v}, rel=1e-9)
        now_held: dict[str, float] = defaultdict(float)
        for each in held:
            if each.user_id == one.user_id and each.until_at is None:
                now_held[each.kind] += each.quantity
        assert dict(one.held) == pytest.approx(dict(now_held))


def drawn(seed: int, number: int) -> list[Held]:
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        name = draw.choice(("cpu", "mem", "gpu/GPU-1", "gpu"))
        since = NOW - timedelta(seconds=draw.expovariate(1 / (2 * WEEK)) + 7200)
        until = min(since + timedelta(seconds=draw.expovariate(1 / 40000)), NOW - timedelta(seconds=3600))
        found.append(
            Held(
                user_id=draw.choice(USERS),
                name=name,
                amount=draw.randint(1, 4000),
                share=draw.choice((1.0, 0.25)),
                since_at=since,
                until_at=draw.choice((until, until, until, None)),
            )
        )
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_the_sum_is_the_closed_form_whatever_is_counted_when(database: Database, seed: int) -> None:
    held = drawn(seed, 120)
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await put(connection, held)
        check(await shares(connection, NOW), held, NOW, WEEK)
        for hours, limit in ((-1, 7), (0, 20), (5, 1), (5, 1000), (40, 1000)):  # in batches, at any time
            at = NOW + timedelta(hours=hours)
            await count_ended(connection, now=at, limit=limit)
            check(await shares(connection, NOW + timedelta(hours=50)), held, NOW + timedelta(hours=50), WEEK)
        assert await count_ended(connection, now=NOW) == 0
        for half_life in (3600.0, 30 * 86400.0):
            await connection.execute("UPDATE resource_groups SET half_life_seconds = $1", half_life)
            await recount(connection, "default", now=NOW + timedelta(hours=50))
            later = NOW + timedelta(hours=60)
            check(await shares(connection, later), held, later, half_life)


async def test_what_is_a_thousand_half_lives_old_counts_nothing(database: Database) -> None:
    old = Held(user_id=ALICE.user_id, name="cpu", amount=8000, since_at=NOW - timedelta(days=900), until_at=NOW)
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await connection.execute("UPDATE resource_groups SET half_life_seconds = 60")
        await put(connection, [old])
        await count_ended(connection, now=NOW)
        [share] = await shares(connection, NOW)
        assert share.past == {"cpu": pytest.approx(8000)}  # always held it, as far as it counts
        [share] = await shares(connection, NOW + timedelta(days=30))
        assert share.past == {}


async def test_groups_weights_and_allocations(database: Database) -> None:
    """Allocations are in the share from their beginning, and go on counting when they have ended."""
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await insert(connection, "resource_groups", {"name": "big"})
        await insert(connection, "fair_shares", {"resource_group": "big", "user_id": MALLORY.user_id, "weight": 2.5})
        await a_session(resource_group="big").put(connection)
        begun = await connection.fetchval("SELECT now()")  # by the database's clock
        found = {(one.resource_group, one.user_id): one for one in await shares(connection, begun)}
        assert found.keys() == {("big", ALICE.user_id), ("big", MALLORY.user_id)}
        assert found["big", ALICE.user_id].held == {"cpu": 1000, "mem": 512}
        assert found["big", MALLORY.user_id].weight == 2.5
        later = begun + timedelta(seconds=WEEK)
        assert (await shares(connection, later))[0].past == {"cpu": pytest.approx(500), "mem": pytest.approx(256)}
        assert await shares(connection, later, ["default"]) == ()
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM allocations WHERE kernel_id = $1", kernel_of(ID))
        ended = await connection.fetchval("SELECT now()")
        after = ended + timedelta(seconds=WEEK)
        one = (await shares(connection, after))[0]
        held_for = (ended - begun).total_seconds()
        assert one.held == {}
        assert one.past["cpu"] == pytest.approx(1000 * (0.5 - math.exp2(-1 - held_for / WEEK)), rel=1e-3)
        assert await count_ended(connection, now=ended) == 2
        assert (await shares(connection, after))[0].past["cpu"] == pytest.approx(one.past["cpu"])
        counted: Mapping[str, float] = dict(await connection.fetch("SELECT name, amount FROM fair_usage ORDER BY name"))
        assert counted["cpu"] == pytest.approx(1000 * held_for, rel=1e-3)  # slot-seconds


async def test_ends_counts_and_another_half_life_at_once(database: Database) -> None:
    """Nobody waits for anybody for ever, nothing is counted twice or forgotten, and no half-lives are mixed."""
    ids = [SessionId(UUID(int=ID.int + number)) for number in range(30)]
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await connection.execute("UPDATE resources SET capacity = capacity * 100, reported = reported * 100")
        for number, one in enumerate(ids):
            await a_session(id=one, name=f"s-{number}", owner=(ALICE, MALLORY)[number % 2]).put(connection)
        await connection.execute("UPDATE usage SET since_at = since_at - interval '3 days'")

    async def end(some: Sequence[SessionId]) -> None:
        for one in some:
            async with database.transaction() as connection:
                await connection.execute("DELETE FROM allocations WHERE kernel_id = $1", kernel_of(one))

    async def count() -> None:
        for _ in range(25):
            async with database.transaction() as connection:
                if await lead(connection, "fair_shares"):
                    await count_ended(connection, now=await current_time(connection), limit=3)

    async def change() -> None:
        for days in (1, 30, 3):
            async with database.transaction() as connection:
                await lock_group(connection, "default")
                await change_group(connection, "default", {"half_life_seconds": days * 86400.0})
                await recount(connection, "default", now=await current_time(connection))

    await asyncio.gather(end(ids[:10]), end(ids[10:20]), end(ids[20:]), count(), count(), change())
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT user_id, name, amount, share, since_at, until_at FROM usage")
        assert len(rows) == 60
        held = [Held(**dict(row)) for row in rows]
        at = await current_time(connection) + timedelta(hours=1)
        check(await shares(connection, at), held, at, 3 * 86400.0)
