"""Who is warned, who is ended, and who is left in peace by idle checkers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from agent.wire import Sample
from domain.idle import Checker, IdleFacts, Warned, judge_idle
from domain.ids import AgentId, SessionId
from domain.session import SessionTypes
from domain.watch import SETTINGS, Window, with_changes
from manager.herald import Herald
from manager.idle import IdleCheckers
from repositories.activity import touch
from repositories.database import Database
from repositories.samples import store_samples
from tests.control.fakes import Clock
from tests.control.rows import NOW, PROJECT, kernels_of, running

SECOND = timedelta(seconds=1)


# -- the verdict ---------------------------------------------------------------------------------------------------------
def facts(**changes: Any) -> IdleFacts:
    values: dict[str, Any] = {
        "session_id": SessionId(uuid4()),
        "session_type": SessionTypes.INTERACTIVE,
        "started_at": NOW,
        "used_at": NOW,
        "busy": False,
        "idle_timeout_seconds": None,
        "timeout_seconds": None,
        "expires_at": None,
    }
    return IdleFacts(**{**values, **changes})


ON: Mapping[str, Mapping[str, float]] = {
    "idle_no_call": {"enabled": 1, "timeout_seconds": 3600},
    "idle_lifetime": {"enabled": 1, "max_seconds": 86400},
    "idle_low_use": {"enabled": 1, "window_seconds": 600},
}


def window(cpu: float, *, gpu: float = 0.0, gpus: int = 0, covered: float = 1.0) -> Window:
    since = NOW - timedelta(minutes=10)
    return Window(since=since, until=NOW, covered=covered, cpu=cpu, gpu=gpu, gpus_seen=gpus)


def verdict(changes: Mapping[str, Mapping[str, float]], **given: Any) -> tuple[Checker, float] | None:
    """Which checker, and in how many seconds from NOW."""
    found = judge_idle(facts(**given), with_changes(SETTINGS, changes), NOW)
    return None if found is None else (found.checker, (found.due_at - NOW).total_seconds())


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, {}, None),
        ({}, {"idle_timeout_seconds": 60.0}, (Checker.NO_CALL, 60)),
        ({}, {"idle_timeout_seconds": 60.0, "busy": True}, None),
        ({}, {"idle_timeout_seconds": 60.0, "exempt": True}, None),
        ({}, {"timeout_seconds": 90.0, "expires_at": NOW + 90 * SECOND}, (Checker.LIFETIME, 90)),
        ({}, {"timeout_seconds": 90.0, "expires_at": NOW + 90 * SECOND, "exempt": True}, (Checker.LIFETIME, 90)),
        (ON, {}, (Checker.NO_CALL, 3600)),
        (ON, {"busy": True}, (Checker.LIFETIME, 86400)),
        (ON, {"exempt": True}, None),
        (ON, {"session_type": SessionTypes.SYSTEM}, None),
        (ON, {"session_type": SessionTypes.BATCH}, None),
        ({**ON, "idle": {"enabled": 0}}, {}, None),
        ({**ON, "idle": {"enabled": 0}}, {"idle_timeout_seconds": 60.0}, (Checker.NO_CALL, 60)),
        (ON, {"held_cpu": 2.0, "window": window(0.01)}, (Checker.LOW_USE, 300)),
        (ON, {"held_cpu": 2.0, "window": window(0.5)}, (Checker.NO_CALL, 3600)),
        (ON, {"held_cpu": 2.0, "window": window(0.01, covered=0.5)}, (Checker.NO_CALL, 3600)),
        (ON, {"held_cpu": 2.0, "held_gpus": 1, "window": window(0.01, gpu=0.9, gpus=1)}, (Checker.NO_CALL, 3600)),
        (ON, {"held_cpu": 2.0, "held_gpus": 1, "window": window(0.01, gpu=0.01, gpus=1)}, (Checker.LOW_USE, 300)),
        (ON, {"held_cpu": 2.0, "held_gpus": 1, "window": window(0.01)}, (Checker.NO_CALL, 3600)),
        (
            ON,
            {
                "held_cpu": 2.0,
                "window": window(0),
                "warned": Warned(checker=Checker.LOW_USE, warned_at=NOW, due_at=NOW),
            },
            (Checker.LOW_USE, 0),
        ),
    ],
)
def test_the_first_checker_that_would_end_it(settings: Any, given: Any, expected: Any) -> None:
    assert verdict(settings, **given) == expected


# -- the loop ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def checkers(database: Database, clock: Clock) -> IdleCheckers:
    return IdleCheckers(database, Herald("unused"), clock=clock)


async def settings(database: Database, scope: str = "", **rules: dict[str, float]) -> None:
    async with database.reader() as connection:
        for name, values in rules.items():
            await connection.execute(
                "INSERT INTO watch_rules (scope, name, settings) VALUES ($1, $2, $3)", scope, name, values
            )


async def story(database: Database) -> list[tuple[str, Any]]:
    """What its owner is told, in order."""
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT type, data FROM events WHERE type LIKE 'session.%' ORDER BY id")
    return [(row["type"].removeprefix("session."), row["data"]) for row in rows]


async def words(database: Database) -> list[str]:
    return [word for word, _ in await story(database) if word not in ("pending", "scheduled", "preparing", "running")]


async def status(database: Database, session_id: SessionId) -> tuple[str, str | None]:
    async with database.reader() as connection:
        row = await connection.fetchrow("SELECT status, status_reason FROM sessions WHERE id = $1", session_id)
    assert row is not None
    return row["status"], row["status_reason"]


NO_CALL: dict[str, Any] = {"idle_no_call": {"enabled": 1, "timeout_seconds": 1000}, "idle": {"warn_seconds": 100}}


async def test_the_owner_is_warned_then_the_session_ends(
    database: Database, checkers: IdleCheckers, clock: Clock
) -> None:
    await settings(database, **NO_CALL)
    (session_id,) = await running(database)
    assert await checkers.step() == 900.0
    clock.turn(seconds=899)
    await checkers.step()
    assert await words(database) == []
    clock.turn(seconds=1)
    await checkers.step()
    ((_, told),) = [each for each in await story(database) if each[0] == "idle_warning"]
    assert (told["checker"], told["seconds_left"], told["reason"]) == (
        "no_call",
        100.0,
        "nobody has used it for 16 min 40 s",
    )
    await checkers.step()
    assert await words(database) == ["idle_warning"]  # once
    clock.turn(seconds=99)
    await checkers.step()
    assert (await status(database, session_id))[0] == "RUNNING"
    clock.turn(seconds=1)
    await checkers.step()
    assert await status(database, session_id) == ("TERMINATING", "ended as idle: nobody has used it for 16 min 40 s")


async def test_who_comes_back_keeps_theirs(database: Database, checkers: IdleCheckers, clock: Clock) -> None:
    await settings(database, **NO_CALL)
    (session_id,) = await running(database)
    clock.turn(seconds=950)
    await checkers.step()
    async with database.reader() as connection:
        await connection.execute("UPDATE sessions SET last_activity_at = $2 WHERE id = $1", session_id, clock.now)
    clock.turn(seconds=60)
    await checkers.step()
    assert await words(database) == ["idle_warning", "idle_cleared"]
    clock.turn(seconds=900)
    await checkers.step()
    assert await words(database) == ["idle_warning", "idle_cleared", "idle_warning"]
    assert (await status(database, session_id))[0] == "RUNNING"


async def test_an_open_connection_is_use(database: Database, checkers: IdleCheckers, clock: Clock) -> None:
    """A terminal or a notebook: what managers' processes say of their connections into containers."""
    await settings(database, **NO_CALL)
    (session_id,) = await running(database)
    clock.turn(seconds=950)
    await checkers.step()
    async with database.reader() as connection:
        kernel = (await kernels_of(connection, session_id))[0]
        await touch(connection, [kernel["id"]], now=clock.now)
        await touch(connection, [kernel["id"]], now=NOW)  # of a slower process
    clock.turn(seconds=100)
    await checkers.step()
    assert await words(database) == ["idle_warning", "idle_cleared"]


async def test_nobody_is_ended_unwarned_after_an_outage(
    database: Database, checkers: IdleCheckers, clock: Clock
) -> None:
    """The manager was down while the time passed: the warning comes late, and so does the end."""
    await settings(database, **NO_CALL)
    (session_id,) = await running(database)
    clock.turn(seconds=10_000)
    await checkers.step()
    assert (await status(database, session_id))[0] == "RUNNING"
    clock.turn(seconds=99)
    await checkers.step()
    assert (await status(database, session_id))[0] == "RUNNING"
    clock.turn(seconds=1)
    await checkers.step()
    assert (await status(database, session_id))[0] == "TERMINATING"


async def test_low_use_is_judged_by_samples(database: Database, checkers: IdleCheckers, clock: Clock) -> None:
    await settings(database, idle_low_use={"enabled": 1, "window_seconds": 600}, idle={"warn_seconds": 60})
    idle, busy = await running(database, number=2)
    async with database.transaction() as connection:
        for session_id, share in ((idle, 0.001), (busy, 0.5)):
            kernel = (await kernels_of(connection, session_id))[0]
            reports = [
                (
                    AgentId("a"),
                    Sample(
                        kernel_id=str(kernel["id"]),
                        attempt=1,
                        at=(NOW + n * 30 * SECOND).timestamp(),
                        seconds=30.0,
                        cpu_seconds=30 * share,
                    ),
                )
                for n in range(1, 30)
            ]
            assert await store_samples(connection, reports, now=NOW + 870 * SECOND) == 29
    clock.turn(seconds=600)
    await checkers.step()
    ((_, told),) = [each for each in await story(database) if each[0] == "idle_warning"]
    assert told["reason"] == "it used 0.1 % of its 1 CPUs over 10 min"
    clock.turn(seconds=61)
    await checkers.step()
    assert (await status(database, idle))[0] == "TERMINATING"
    assert (await status(database, busy))[0] == "RUNNING"


async def test_a_lifetime_is_told_before_it_is_over(database: Database, checkers: IdleCheckers, clock: Clock) -> None:
    (session_id,) = await running(database, timeout=1000)
    async with database.reader() as connection:
        expires_at = await connection.fetchval("SELECT expires_at FROM sessions WHERE id = $1", session_id)
    clock.now = expires_at - 301 * SECOND
    await checkers.step()
    assert await words(database) == []
    clock.turn(seconds=1)
    await checkers.step()
    clock.turn(seconds=400)
    await checkers.step()
    assert await words(database) == ["idle_warning"]
    assert (await status(database, session_id))[0] == "RUNNING"  # its deadline ends it, not this


@pytest.mark.parametrize("peace", ["session", "project"])
async def test_peace(database: Database, checkers: IdleCheckers, clock: Clock, peace: str) -> None:
    await settings(database, **NO_CALL)
    (session_id,) = await running(database)
    if peace == "project":
        await settings(database, str(PROJECT), idle={"enabled": 0})
    else:
        async with database.reader() as connection:
            await connection.execute(
                "INSERT INTO idle_exemptions (session_id, by_access_key) VALUES ($1, 'AK')", session_id
            )
    for _ in range(3):
        clock.turn(seconds=5000)
        await checkers.step()
    assert await words(database) == []
    assert (await status(database, session_id))[0] == "RUNNING"


async def test_a_session_that_ends_meanwhile_has_no_warning_left(
    database: Database, checkers: IdleCheckers, clock: Clock
) -> None:
    await settings(database, **NO_CALL)
    (session_id,) = await running(database)
    clock.turn(seconds=1000)
    await checkers.step()
    async with database.reader() as connection:
        await connection.execute("UPDATE sessions SET status = 'TERMINATING' WHERE id = $1", session_id)
        await checkers.step()
        assert await connection.fetchval("SELECT count(*) FROM idle_warnings") == 0


@pytest.mark.parametrize(
    ("limits", "own", "ends_after"),
    [
        ({"project": 500}, None, 500),
        ({"project": 500, "domain": 300}, None, 300),
        ({"domain": 300}, 200.0, 200),
        ({"domain": 300}, 400.0, 300),
    ],
)
async def test_the_tightest_limit_ends_it_however_long_it_asked_for(
    database: Database, checkers: IdleCheckers, clock: Clock, limits: dict[str, int], own: float | None, ends_after: int
) -> None:
    (session_id,) = await running(database)
    (batch,) = await running(database)
    async with database.reader() as connection:
        for scope, most in limits.items():
            scope_id = str(PROJECT) if scope == "project" else "default"
            await connection.execute(
                "INSERT INTO quotas (scope, scope_id, name, max_amount) VALUES ($1, $2, 'idle', $3)",
                scope,
                scope_id,
                most,
            )
        await connection.execute("UPDATE sessions SET idle_timeout_seconds = $2 WHERE id = $1", session_id, own)
        await connection.execute("UPDATE sessions SET session_type = 'batch' WHERE id = $1", batch)
    await checkers.step()
    clock.turn(seconds=ends_after - 1)
    await checkers.step()
    assert (await status(database, session_id))[0] == "RUNNING"
    clock.turn(seconds=ends_after)  # the warning came late, and has its time
    await checkers.step()
    assert (await status(database, session_id))[0] == "TERMINATING"
    assert (await status(database, batch))[0] == "RUNNING"
