"""Limits hold: for every name and scope, whoever comes first, and whatever becomes of sessions."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actions import (
    AssignPolicyAction,
    CreateClusterAction,
    CreateFromParamsAction,
    CreatePolicyAction,
    DestroySessionAction,
    ModifySessionAction,
    RestartSessionAction,
    SetQuotaAction,
    UnassignPolicyAction,
)
from actions.quotas import LimitSpec
from domain.errors import MoorageError, QuotaExceeded
from domain.ids import SessionId
from domain.resources import ResourceSlot
from domain.scheduler import plan
from domain.session import Event, SessionTypes
from manager.processor import Processor
from repositories.database import Database
from repositories.placement import Placed, place
from repositories.retries import retry
from repositories.snapshot import snapshot
from repositories.transit import transit
from tests.control.rows import TEST, fact_of, tell
from tests.repositories.recount import assert_limits_add_up
from tests.scenario import ALICE, HOST, NOW, ROOT, stage

SCOPES = {"keypair": "KEY-alice", "user": "alice@example.org", "project": "default", "domain": "default"}
#: What a session may be asked for that just reaches, and just exceeds, a limit of so much.
NAMES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "cpu": (2, {"cpu": 2}, {"cpu": 2.001}),
    "mem": ("1g", {"mem": "1g"}, {"mem": 1025}),
    "sessions": (0, {}, {}),
    "pending_sessions": (0, {}, {}),
    "lifetime": ("1h", {"timeout": 3600}, {"timeout": 3601}),
    "priority": (20, {"priority": 20}, {"priority": 21}),
    "session.cpu": (2, {"cpu": 2}, {"cpu": 3}),
    "session.mem": ("1g", {"mem": 1024}, {"mem": "1.1g"}),
}


def create(name: str, *, cpu: float = 1, mem: int | str = 512, **more: Any) -> CreateFromParamsAction:
    return CreateFromParamsAction(name=name, image="python", resource_slots=ResourceSlot(cpu=cpu, mem=mem), **more)


async def set_limits(processor: Processor, scope: Any = "user", **limits: Any) -> None:
    named = {name.replace("__", "."): most for name, most in limits.items()}
    await processor.run(SetQuotaAction(scope=scope, of=SCOPES[scope], limits=named), by=ROOT)


def waits(most: float) -> LimitSpec:
    return LimitSpec(max=most, waits=True)


async def schedule(database: Database) -> Placed:
    """One look of the scheduler."""
    async with database.transaction() as connection:
        await connection.execute("UPDATE agents SET uid = 'it'")
        return await place(connection, plan(await snapshot(connection, now=NOW), NOW).placements, now=NOW)


async def used(database: Database) -> dict[str, tuple[int, int]]:
    async with database.reader() as connection:
        await assert_limits_add_up(connection)
        rows = await connection.fetch("SELECT name, used, queued FROM quotas ORDER BY name")
    return {row["name"]: (row["used"], row["queued"]) for row in rows}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", NAMES)
async def test_every_limit_binds_at_every_scope(database: Database, name: str, scope: str) -> None:
    most, fits, too_much = NAMES[name]
    processor = await stage(database)
    await set_limits(processor, scope, **{name: most})
    with pytest.raises(QuotaExceeded) as caught:
        await processor.run(create("too-much", **too_much), by=ALICE)
    assert caught.value.message.startswith(f"The limit {name} of {scope} {SCOPES[scope]} is ")
    assert (caught.value.facts["limit"], caught.value.facts["of"]) == (name, SCOPES[scope])
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 0
    if fits:
        await processor.run(create("fits", **fits), by=ALICE)
        await used(database)
    else:
        await set_limits(processor, scope, **{name: 1})
        await processor.run(create("fits"), by=ALICE)
        with pytest.raises(QuotaExceeded, match="1 session is queued"):
            await processor.run(create("one-more"), by=ALICE)


async def test_the_tightest_is_named(database: Database) -> None:
    processor = await stage(database)
    for scope, most in (("domain", 9), ("project", 4), ("user", 6), ("keypair", 8)):
        await set_limits(processor, scope, cpu=most)
    with pytest.raises(QuotaExceeded, match="The limit cpu of project default is 4 CPUs"):
        await processor.run(create("train", cpu=5), by=ALICE)


async def test_a_refusal_says_what_runs_and_what_waits(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=4)
    await processor.run(create("runs", cpu=2), by=ALICE)
    await schedule(database)
    await processor.run(create("waits", cpu=1), by=ALICE)
    with pytest.raises(QuotaExceeded) as caught:
        await processor.run(create("more", cpu=2), by=ALICE)
    assert caught.value.message == (
        "The limit cpu of user alice@example.org is 4 CPUs: 2 CPUs are running and 1 CPU is queued, so that 2 CPUs more "
        "would exceed it; end something, or ask an administrator for more."
    )


async def test_a_session_without_a_lifetime_gets_the_limits(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, "domain", lifetime="8h")
    await set_limits(processor, "project", lifetime="2h")
    made = (await processor.run(create("train"), by=ALICE)).session_data
    assert made.timeout == 7200
    assert made.notices[-1]["message"] == "It ends 2 h after its start: the limit lifetime of project default."
    with pytest.raises(QuotaExceeded, match="The limit lifetime of project default is 2 h"):
        await processor.run(ModifySessionAction(session_name="train", timeout=7201), by=ALICE)
    await processor.run(ModifySessionAction(session_name="train", timeout=3600), by=ALICE)


async def test_a_priority_is_checked_when_it_is_changed(database: Database) -> None:
    processor = await stage(database)
    await processor.run(create("train", priority=10), by=ALICE)
    await set_limits(processor, priority=20)
    await processor.run(ModifySessionAction(session_name="train", priority=20), by=ALICE)
    with pytest.raises(
        QuotaExceeded, match=r"The limit priority of user alice@example\.org is 20, and this session alone"
    ):
        await processor.run(ModifySessionAction(session_name="train", priority=21), by=ALICE)
    await set_limits(processor, priority=5)  # what it has, it keeps
    await processor.run(ModifySessionAction(session_name="train", tag="x"), by=ALICE)


async def test_a_priority_that_nobody_has_named_is_what_limits_allow(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, priority=5)
    await set_limits(processor, "project", priority=7)
    made = (await processor.run(create("train"), by=ALICE)).session_data
    assert (made.priority, made.notices[-1]["message"]) == (
        5,
        "Its priority is 5: the limit priority of user alice@example.org.",
    )
    with pytest.raises(QuotaExceeded, match="The limit priority of user"):
        await processor.run(create("other", priority=6), by=ALICE)


async def test_a_restart_begins_with_what_limits_allow_by_then(database: Database) -> None:
    processor = await stage(database)
    made = await processor.run(create("train", timeout=7200, priority=50), by=ALICE)
    await processor.run(DestroySessionAction(session_name="train"), by=ALICE)
    await set_limits(processor, priority=20, lifetime="1h")
    session = (await processor.run(RestartSessionAction(session_name=str(made.session_data.id)), by=ALICE)).session_data
    assert (session.priority, session.timeout) == (20, 3600)
    assert [notice["kind"] for notice in session.notices] == ["lifetime", "priority"]
    await processor.run(ModifySessionAction(session_name="train", timeout=1800, priority=1), by=ALICE)


async def test_a_place_in_the_queue_is_given_back_when_a_session_is_placed(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, pending_sessions=1)
    await processor.run(create("first"), by=ALICE)
    assert await used(database) == {"pending_sessions": (0, 1)}
    with pytest.raises(QuotaExceeded, match="The limit pending_sessions of user"):
        await processor.run(create("second"), by=ALICE)
    await schedule(database)
    assert await used(database) == {"pending_sessions": (0, 0)}
    await processor.run(create("second"), by=ALICE)


async def test_beyond_a_waiting_limit_sessions_wait_until_others_end(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=waits(2), sessions=waits(9))
    for number in range(3):
        await processor.run(create(f"job-{number}"), by=ALICE)
    assert len((await schedule(database)).sessions) == 2
    assert await used(database) == {"cpu": (2000, 1000), "sessions": (2, 1)}
    assert (await schedule(database)).sessions == ()
    with pytest.raises(QuotaExceeded, match="this session alone asks for 3 CPUs"):
        await processor.run(create("never", cpu=3), by=ALICE)
    await processor.run(DestroySessionAction(session_name="job-0", forced=True), by=ALICE)
    assert len((await schedule(database)).sessions) == 1
    assert await used(database) == {"cpu": (2000, 0), "sessions": (2, 0)}


async def test_a_limit_that_was_lowered_is_checked_again_in_the_placing_write(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=4)
    await processor.run(create("train", cpu=3), by=ALICE)
    async with database.transaction() as connection:
        await connection.execute("UPDATE agents SET uid = 'it'")
        planned = plan(await snapshot(connection, now=NOW), NOW)
    assert planned.placements
    await set_limits(processor, cpu=2)
    async with database.transaction() as connection:
        placed = await place(connection, planned.placements, now=NOW)
    assert list(placed.conflicts.values()) == ["quota"]
    assert await used(database) == {"cpu": (0, 3000)}


async def test_what_shrinks_below_a_limit_that_was_lowered_is_not_refused(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=4, sessions=1)
    await processor.run(create("train", cpu=4), by=ALICE)
    await set_limits(processor, cpu=1, sessions=0)
    await processor.run(ModifySessionAction(session_name="train", resource_slots=ResourceSlot(cpu=3)), by=ALICE)
    with pytest.raises(QuotaExceeded, match="The limit cpu of user"):
        await processor.run(ModifySessionAction(session_name="train", resource_slots=ResourceSlot(cpu=3.5)), by=ALICE)
    assert await used(database) == {"cpu": (0, 3000), "sessions": (0, 1)}


async def test_an_administrators_system_session_is_exempt(database: Database) -> None:
    processor = await stage(database)
    await processor.run(SetQuotaAction(scope="domain", of="default", limits={"sessions": 0, "lifetime": 60}), by=ROOT)
    made = await processor.run(create("upkeep", session_type=SessionTypes.SYSTEM, timeout=3600), by=ROOT)
    assert made.session_data.timeout == 3600


# -- whoever comes first -------------------------------------------------------------------------------------------------
async def outcomes(processor: Processor, actions: list[Any]) -> list[str]:
    async def one(action: Any) -> str:
        try:
            await processor.run(action, by=ALICE)
        except MoorageError as error:
            return error.code
        return "ok"

    return await asyncio.gather(*(one(action) for action in actions))


@pytest.mark.parametrize("scope", SCOPES)
async def test_fifty_at_once_against_a_limit_of_ten(database: Database, scope: str) -> None:
    processor = await stage(database)
    await set_limits(processor, scope, sessions=10, cpu=100)
    ended = await outcomes(processor, [create(f"job-{number}") for number in range(50)])
    assert (ended.count("ok"), ended.count("quota_exceeded")) == (10, 40)
    assert await used(database) == {"cpu": (0, 10000), "sessions": (0, 10)}


async def test_a_limit_that_is_set_while_others_create_counts_all_of_them(database: Database) -> None:
    processor = await stage(database)
    racing = [create(f"job-{number}") for number in range(30)]

    async def limits() -> None:
        for most in (100, 200, None, 300):
            await set_limits(processor, "domain", cpu=most, sessions=most)

    ended, _, _, _ = await asyncio.gather(outcomes(processor, racing), limits(), schedule(database), schedule(database))
    assert ended == ["ok"] * 30
    found = await used(database)
    assert sum(found["sessions"]) == 30
    assert sum(found["cpu"]) == 30000


# -- whatever becomes of them --------------------------------------------------------------------------------------------
async def started(database: Database, session_id: SessionId, seq: int) -> None:
    async with database.reader() as connection:
        kernels = await connection.fetch("SELECT id, attempt FROM kernels WHERE session_id = $1", session_id)
        fact = await fact_of(connection, session_id, "RUNNING", seq)
        newest = max(kernel["attempt"] for kernel in kernels)
        facts = [replace(fact, kernel_id=k["id"].hex, attempt=newest) for k in kernels if k["attempt"] == newest]
    await tell(database, HOST, *facts)


async def gone(database: Database, session_id: SessionId, seq: int) -> None:
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT id, attempt, generation FROM kernels WHERE session_id = $1", session_id)
        fact = await fact_of(connection, session_id, "GONE", seq)
    for row in rows:
        await tell(
            database,
            HOST,
            replace(fact, kernel_id=row["id"].hex, attempt=row["attempt"], generation=row["generation"]),
        )


async def test_a_cluster_is_charged_for_all_of_it_also_when_it_grows(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=waits(5), sessions=1, session__cpu=4)
    made = await processor.run(
        CreateClusterAction(name="ring", image="python", workers=2, resource_slots=ResourceSlot(cpu=1, mem=256)),
        by=ALICE,
    )
    assert await used(database) == {"cpu": (0, 3000), "sessions": (0, 1), "session.cpu": (0, 0)}
    session_id = made.session_data.id
    await schedule(database)
    await started(database, session_id, 10)
    await processor.run(ModifySessionAction(session_name="ring", cluster_size=4), by=ALICE)
    assert (await used(database))["cpu"] == (4000, 0)
    with pytest.raises(QuotaExceeded, match=r"The limit session\.cpu of user"):
        await processor.run(ModifySessionAction(session_name="ring", cluster_size=5), by=ALICE)
    await processor.run(ModifySessionAction(session_name="ring", cluster_size=2), by=ALICE)
    assert (await used(database))["cpu"] == (2000, 0)


async def test_a_restart_asks_again_and_a_destroy_gives_back(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=2, sessions=1)
    session_id = (await processor.run(create("train", cpu=2), by=ALICE)).session_data.id
    await schedule(database)
    await started(database, session_id, 10)
    assert await used(database) == {"cpu": (2000, 0), "sessions": (1, 0)}
    await processor.run(DestroySessionAction(session_name="train"), by=ALICE)
    await gone(database, session_id, 20)
    assert await used(database) == {"cpu": (0, 0), "sessions": (0, 0)}
    await processor.run(create("another"), by=ALICE)
    with pytest.raises(QuotaExceeded, match=r"The limit (cpu|sessions) of user"):
        await processor.run(RestartSessionAction(session_name=str(session_id)), by=ALICE)
    await processor.run(DestroySessionAction(session_name="another"), by=ALICE)
    await processor.run(RestartSessionAction(session_name=str(session_id)), by=ALICE)
    assert await used(database) == {"cpu": (0, 2000), "sessions": (0, 1)}


async def test_a_retry_waits_again(database: Database) -> None:
    processor = await stage(database)
    await set_limits(processor, cpu=4, pending_sessions=1)
    work = create("train", session_type=SessionTypes.BATCH, startup_command="false", max_retries=1, retry_delay=0)
    session_id = (await processor.run(work, by=ALICE)).session_data.id
    await schedule(database)
    await processor.run(create("meanwhile"), by=ALICE)
    assert await used(database) == {"cpu": (1000, 1000), "pending_sessions": (0, 1)}
    async with database.transaction() as connection:
        await transit(connection, session_id, Event.FAIL, cause=TEST, now=NOW, exit_code=1)
        await connection.execute("UPDATE kernels SET observed = 'GONE' WHERE session_id = $1", session_id)
        await retry(connection, [session_id], cause=TEST, now=NOW)
    # nobody asks anew: it takes its place in the queue, also where there are no more
    assert await used(database) == {"cpu": (0, 2000), "pending_sessions": (0, 2)}


SOME_POLICIES = ("small", "large")


class Life:
    """Somebody's day: a chain of anything that changes what sessions hold, or what may be held."""

    def __init__(self, database: Database, processor: Processor, seed: int) -> None:
        self.database, self.processor, self.dice = database, processor, random.Random(seed)
        self.seq = 10
        self.kinds = ["create", "create", "create", "place", "start", "end", "gone", "restart", "modify", "grow"]
        self.kinds += ["limit", "policy"]

    async def live(self, *statuses: str) -> SessionId | None:
        async with self.database.reader() as connection:
            rows = await connection.fetch(
                "SELECT id FROM sessions WHERE status = ANY($1::text[]) ORDER BY id", statuses
            )
        return SessionId(self.dice.choice(rows)["id"]) if rows else None

    async def step(self, number: int) -> str:
        self.seq += 10
        kind = self.dice.choice(self.kinds)
        try:
            await getattr(self, kind)(number)
        except MoorageError as error:
            return f"{kind}: {error.code}"
        return kind

    async def create(self, number: int) -> None:
        cpu, mem = self.dice.choice([0.5, 1, 2]), self.dice.choice([64, 256, 512])
        slots = ResourceSlot(cpu=cpu, mem=mem)
        if self.dice.random() < 0.3:
            action: Any = CreateClusterAction(name=f"s-{number:04}", image="python", resource_slots=slots, workers=2)
        else:
            action = create(f"s-{number:04}", cpu=cpu, mem=mem)
        await self.processor.run(action, by=ALICE)

    async def place(self, _number: int) -> None:
        await schedule(self.database)

    async def start(self, _number: int) -> None:
        if one := await self.live("SCHEDULED", "RESTARTING"):
            await started(self.database, one, self.seq)

    async def end(self, _number: int) -> None:
        if one := await self.live("PENDING", "SCHEDULED", "RUNNING"):
            forced = self.dice.random() < 0.3
            await self.processor.run(DestroySessionAction(session_name=str(one), forced=forced), by=ALICE)

    async def gone(self, _number: int) -> None:
        if one := await self.live("TERMINATING"):
            await gone(self.database, one, self.seq)

    async def restart(self, _number: int) -> None:
        if one := await self.live("TERMINATED", "CANCELLED", "ERROR", "RUNNING"):
            await self.processor.run(RestartSessionAction(session_name=str(one)), by=ALICE)

    async def modify(self, _number: int) -> None:
        if one := await self.live("PENDING", "RUNNING"):
            wanted = ResourceSlot(cpu=self.dice.choice([0.5, 1.5, 3]))
            action = ModifySessionAction(
                session_name=str(one), resource_slots=wanted, priority=self.dice.randrange(50), timeout=60
            )
            await self.processor.run(action, by=ALICE)

    async def grow(self, _number: int) -> None:
        if one := await self.live("RUNNING"):
            size = self.dice.randint(1, 4)
            await self.processor.run(ModifySessionAction(session_name=str(one), cluster_size=size), by=ALICE)

    async def limit(self, _number: int) -> None:
        name = self.dice.choice(["cpu", "mem", "sessions", "pending_sessions", "session.cpu"])
        most = self.dice.choice([None, 2, 6, 300, waits(4) if name in ("cpu", "sessions") else 5])
        scope: Any = self.dice.choice(list(SCOPES))
        await self.processor.run(SetQuotaAction(scope=scope, of=SCOPES[scope], limits={name: most}), by=ROOT)

    async def policy(self, _number: int) -> None:
        scope: Any = self.dice.choice(list(SCOPES))
        name = self.dice.choice(SOME_POLICIES)
        kind = self.dice.choice([AssignPolicyAction, AssignPolicyAction, UnassignPolicyAction])
        await self.processor.run(kind(policy=name, scope=scope, of=SCOPES[scope]), by=ROOT)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_the_counters_are_right(database: Database, seed: int) -> None:
    processor = await stage(database)
    small, large = SOME_POLICIES
    await processor.run(CreatePolicyAction(policy=small, limits={"cpu": 4, "mem": "1g"}), by=ROOT)
    await processor.run(CreatePolicyAction(policy=large, limits={"cpu": waits(6), "sessions": 8}), by=ROOT)
    life, done = Life(database, processor, seed), []
    for number in range(250):
        done.append(await life.step(number))
        async with database.reader() as connection:
            await assert_limits_add_up(connection)
    assert {"create", "place", "end", "limit", "policy", "create: quota_exceeded"} <= set(done), Counter(done)


async def test_limits_change_while_everything_else_goes_on(database: Database) -> None:
    """Nobody waits for somebody who waits for them: no call is refused because two were in each other's way."""
    processor = await stage(database)
    for name in SOME_POLICIES:
        await processor.run(CreatePolicyAction(policy=name, limits={"cpu": 200, "sessions": 300}), by=ROOT)
    done: Counter[str] = Counter()

    async def somebody(seed: int) -> None:
        life = Life(database, processor, seed)
        life.kinds = ["create", "create", "end", "restart", "modify", "gone", "start"]
        for number in range(30):
            done[await life.step(100 * seed + number)] += 1

    async def scheduler() -> None:
        for _ in range(15):
            await schedule(database)

    async def administrator(seed: int) -> None:
        life = Life(database, processor, seed)
        life.kinds = ["policy"]
        for number in range(20):
            done[await life.step(number)] += 1

    await asyncio.gather(
        *(somebody(seed) for seed in range(8)), scheduler(), scheduler(), administrator(1), administrator(2)
    )
    assert done["create"] > 50
    assert not {outcome for outcome in done if "request_in_progress" in outcome}
    async with database.reader() as connection:
        await assert_limits_add_up(connection)
