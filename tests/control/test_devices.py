"""Devices come, go bad, are taken out and come back; nobody is handed one that is out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.wire import DeviceCheck, Fact, exit_record
from domain.errors import AgentNotFound, DeviceNotFound, DeviceUnhealthy
from domain.ids import AgentId
from repositories import device_checks, devices
from repositories.database import Connection, Database
from repositories.upkeep import Retention, purge
from tests.control.gpus import A40, a_device, add_gpu_host, tell_devices
from tests.control.rows import (
    NOW,
    TEST,
    add_sessions,
    assert_slots_add_up,
    destroy,
    events_of,
    fact_of,
    kernels_of,
    plan_and_place,
    row_of,
    status_of,
    tell,
)

A = AgentId("a")
ONE, TWO = a_device("one"), a_device("two", index=1, numa=1)
BAD = replace(ONE, healthy=False, reason="XID 79: it has fallen off the bus")


async def stored(connection: Connection) -> dict[str, dict[str, Any]]:
    return {row["name"]: dict(row) for row in await connection.fetch("SELECT * FROM devices")}


async def amounts(connection: Connection) -> dict[str, tuple[int, int, int]]:
    rows = await connection.fetch("SELECT * FROM resources WHERE name LIKE 'gpu/%'")
    return {row["name"]: (row["reported"], row["used"], row["capacity"]) for row in rows}


async def test_a_host_tells_of_its_devices(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, a_device("b", A40, 46068, offered_mib=40000)])
        found, there = await stored(connection), await amounts(connection)
    assert (found["gpu/one"]["model"], found["gpu/one"]["memory_mib"]) == (ONE.model, 81920)
    assert found["gpu/one"]["info"]["driver"] == "570.86.15"
    assert there == {"gpu/one": (81920, 0, 81920), "gpu/b": (40000, 0, 40000)}


async def test_a_bad_device_is_handed_to_nobody_and_stays_with_who_has_it(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, TWO])
        [holder] = await add_sessions(connection, cpu=1000, mem=1024, gpu=2)
        assert (await plan_and_place(connection)).sessions == (holder,)
        changed = await tell_devices(connection, "a", [BAD, TWO], seq=1)
        assert changed.out == ("gpu/one",)
        assert changed.sessions == {holder}
        assert (await amounts(connection))["gpu/one"] == (0, 81920, 81920)
        [next_one] = await add_sessions(connection, cpu=1000, mem=1024, gpu=1)
        assert not (await plan_and_place(connection)).sessions
    [notice] = (await row_of(database, holder))["notices"]
    assert "XID 79" in notice["message"]
    told = [(event["session_id"], event["data"]["reason"]) for event in await events_of(database, "gpu.out")]
    assert told == [(None, BAD.reason), (holder, BAD.reason)]
    await tell(database, "a", await _fact(database, holder, "RUNNING", 2))
    await destroy(database, holder)
    await tell(database, "a", await _fact(database, holder, "GONE", 3))
    async with database.transaction() as connection:
        assert (await amounts(connection)) == {"gpu/one": (0, 0, 0), "gpu/two": (81920, 0, 81920)}
        assert (await plan_and_place(connection)).sessions == (next_one,)
        [kernel] = await kernels_of(connection, next_one)
        assert list(kernel["spec"]["devices"]) == ["gpu/two"]
    await assert_slots_add_up(database)


async def test_what_health_took_out_comes_back_with_health(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [BAD, TWO])
        assert (await amounts(connection))["gpu/one"] == (0, 0, 0)
        with pytest.raises(DeviceUnhealthy, match="XID 79"):
            await devices.put_in(connection, A, "one", cause=TEST, now=NOW)
        assert (await tell_devices(connection, "a", [ONE, TWO], seq=1)).back == ("gpu/one",)
        assert (await amounts(connection))["gpu/one"] == (81920, 0, 81920)
        assert (await stored(connection))["gpu/one"]["out_reason"] is None
    assert [event["data"]["device"] for event in await events_of(database, "gpu.in")] == ["gpu/one"]


async def test_what_an_administrator_took_out_only_an_administrator_brings_back(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, TWO])
        assert (await devices.take_out(connection, A, "1", "fan", cause=TEST, now=NOW)).out == ("gpu/two",)
        assert not (await tell_devices(connection, "a", [ONE, TWO], seq=1)).back
        await add_gpu_host(connection, "a", [ONE, TWO], boot_no=2)
        assert (await amounts(connection))["gpu/two"] == (0, 0, 0)
        await tell_devices(connection, "a", [ONE, replace(TWO, healthy=False, reason="ECC")], seq=1, boot_no=2)
        found = (await stored(connection))["gpu/two"]
        assert (found["out_by"], found["out_reason"]) == ("admin", "fan")
        with pytest.raises(DeviceUnhealthy, match="ECC"):
            await devices.put_in(connection, A, "gpu/two", cause=TEST, now=NOW)
        await tell_devices(connection, "a", [ONE, TWO], seq=2, boot_no=2)
        _, changed = await devices.put_in(connection, A, "two", cause=TEST, now=NOW)
        assert changed.back == ("gpu/two",)
        assert (await amounts(connection))["gpu/two"] == (81920, 0, 81920)
        assert not (await devices.put_in(connection, A, "two", cause=TEST, now=NOW))[1].back  # it is in


async def test_a_device_that_is_not_named_any_more_is_missing(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, TWO])
        assert (await tell_devices(connection, "a", [TWO], seq=1)).out == ("gpu/one",)
        found = (await stored(connection))["gpu/one"]
        assert found["missing_since"] == NOW
        assert "fell off the bus" in found["out_reason"]
        assert (await amounts(connection))["gpu/one"] == (0, 0, 0)
        with pytest.raises(DeviceUnhealthy, match="does not see it"):
            await devices.put_in(connection, A, "one", cause=TEST, now=NOW)
        assert (await tell_devices(connection, "a", [ONE, TWO], seq=2)).back == ("gpu/one",)
        assert (await stored(connection))["gpu/one"]["missing_since"] is None


async def test_what_is_missing_for_long_is_forgotten_unless_it_was_taken_out(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, TWO, a_device("three", index=2)])
        await devices.take_out(connection, A, "two", "fan", cause=TEST, now=NOW)
        await tell_devices(connection, "a", [a_device("three", index=2)], seq=1)
    for days, left in ((29, {"gpu/one", "gpu/two", "gpu/three"}), (31, {"gpu/two", "gpu/three"})):
        async with database.reader() as connection:
            await purge(connection, now=NOW + timedelta(days=days), keep=Retention())
            assert set(await stored(connection)) == left


async def test_an_older_list_changes_nothing(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, TWO])
        await tell_devices(connection, "a", [BAD, TWO], seq=5)
        assert not (await tell_devices(connection, "a", [ONE, TWO], seq=4)).taken
        await add_gpu_host(connection, "a", [ONE, TWO])  # another connection of the same daemon, with its first list
        assert (await amounts(connection))["gpu/one"] == (0, 0, 0)
        assert (await amounts(connection))["gpu/two"] == (81920, 0, 81920)
        await add_gpu_host(connection, "a", [ONE, TWO], boot_no=2)
        assert (await amounts(connection))["gpu/one"] == (81920, 0, 81920)


async def test_which_device_is_meant(database: Database) -> None:
    slice_1, slice_2 = (a_device(f"MIG-{n}", mib=9984, parent="gpu/x", whole_only=True) for n in (1, 2))
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [TWO, slice_1, slice_2])
        with pytest.raises(AgentNotFound):
            await devices.take_out(connection, AgentId("b"), "two", "?", cause=TEST, now=NOW)
        with pytest.raises(DeviceNotFound, match="no device"):
            await devices.take_out(connection, A, "three", "?", cause=TEST, now=NOW)
        with pytest.raises(DeviceNotFound, match="several"):
            await devices.take_out(connection, A, "0", "?", cause=TEST, now=NOW)
        assert (await devices.take_out(connection, A, "MIG-2", "?", cause=TEST, now=NOW)).out == ("gpu/MIG-2",)


async def test_nonsense_of_an_agent_is_left_out(database: Database) -> None:
    async with database.transaction() as connection:
        for wrong in ({"name": "cpu"}, {"memory_mib": -1}, {"memory_mib": 2**62}):
            await add_gpu_host(connection, "a", [replace(ONE, **wrong), TWO])
            assert set(await stored(connection)) == {"gpu/two"}
            await connection.execute("DELETE FROM agents")


async def test_checks_are_kept_once_and_only_with_ones_own_kernels(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE])
        [session] = await add_sessions(connection, cpu=1000, mem=1024, gpu=1)
        await plan_and_place(connection)
        [kernel] = await kernels_of(connection, session)
        people = [{"pid": 7, "user": "bob", "command": "python", "mem_mib": 300}]
        check = DeviceCheck(
            check_id="c1", device="gpu/one", phase="handover", passed=True, at=NOW.timestamp(),
            kernel_id=kernel["id"].hex, data={"message": "fit", "memory_used_mib": 300, "processes": people},
        )  # fmt: skip
        wrong = [replace(check, check_id="c2", phase="?"), replace(check, check_id="c3", device="cpu")]
        assert await device_checks.store(connection, A, [check, *wrong], now=NOW) == {session}
        assert not await device_checks.store(connection, A, [check], now=NOW)
        await add_gpu_host(connection, "b", [])
        stranger = replace(check, kernel_id=str(UUID(int=1)))
        assert not await device_checks.store(connection, AgentId("b"), [check], now=NOW)
        assert not await device_checks.store(connection, A, [replace(stranger, check_id="c4", at=1e300)], now=NOW)
        [record] = await device_checks.records_of(connection, session)
        assert record["data"] == {"message": "fit", "memory_used_mib": 300, "outsiders": 1, "outsiders_mib": 300}
        [held] = await device_checks.of_session(connection, session)
        assert (held.name, held.amount, held.whole, held.held) == ("gpu/one", 81920, True, True)
        assert held.device is not None
        assert held.device["model"] == ONE.model
        assert not await device_checks.of_session(connection, uuid4())  # type: ignore[arg-type]
        newest = await device_checks.newest_of(connection, A)
        assert newest["a", "gpu/one"]["passed"] is True


async def test_a_device_that_fails_its_check_costs_the_session_nothing_but_a_new_place(database: Database) -> None:
    async with database.transaction() as connection:
        await add_gpu_host(connection, "a", [ONE, TWO])
        [session] = await add_sessions(connection, cpu=1000, mem=1024, gpu=1)
    failed = exit_record("device_failed", "gpu/one: 3 pages are to be retired")
    for attempt in (1, 2, 3, 4):
        async with database.transaction() as connection:
            assert (await plan_and_place(connection)).sessions == (session,)
            kernel = (await kernels_of(connection, session))[-1]
        assert (await row_of(database, session))["attempt"] == attempt
        await tell(database, "a", _of(kernel, "FAILED", 10 * attempt, exit=failed))
        assert await status_of(database, session) == "TERMINATING"
        async with database.reader() as connection:
            kernel = (await kernels_of(connection, session))[-1]
        await tell(database, "a", _of(kernel, "GONE", 10 * attempt + 1, exit=failed))
        row = await row_of(database, session)
        if attempt < 4:
            assert (row["status"], row["retries"], row["replaced"]) == ("PENDING", 0, attempt)
            assert "3 pages are to be retired" in row["status_reason"]
            assert row["status_reason"].endswith("its work begins again on another")
    assert (row["status"], row["failed"]) == ("ERROR", True)
    await assert_slots_add_up(database)


def _of(kernel: Any, observed: str, seq: int, **facts: Any) -> Fact:
    return Fact(
        kernel_id=kernel["id"].hex, attempt=kernel["attempt"], generation=kernel["generation"], observed=observed,
        boot_no=1, seq=seq, **facts,
    )  # fmt: skip


async def _fact(database: Database, session: Any, observed: str, seq: int) -> Any:
    async with database.reader() as connection:
        return await fact_of(connection, session, observed, seq)
