"""Administrators look after devices; owners see what theirs are."""

from __future__ import annotations

from typing import Any

from actions import GetSessionDevicesAction, ListDevicesAction, PutDeviceInAction, TakeDeviceOutAction
from domain.errors import (
    AgentNotFound,
    DeviceNotFound,
    DeviceUnhealthy,
    InvalidRequest,
    PermissionDenied,
    SessionNotFound,
)
from domain.session import Status
from repositories.database import Connection, Database
from tests.scenario import (
    ALICE,
    HOST,
    ID,
    MALLORY,
    NOW,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    insert,
    kernel_of,
    scenarios,
)

H100 = "NVIDIA H100 80GB HBM3"
#: columns of a device that is out
OUT: dict[str, Any] = {"out_since": NOW, "out_reason": "its fan is stuck", "out_by": "admin"}


def a_device(uuid: str, *, offered: int = 81920, **columns: Any) -> tuple[Given, ...]:
    """Known, and among what its host offers."""
    info = columns.pop("info", {"index": 0, "driver": "570.86.15", "cuda": "12.8", "simulated": True})
    there = 0 if "out_since" in columns or "missing_since" in columns else offered
    row = {
        "agent_id": HOST, "name": f"gpu/{uuid}", "model": H100, "memory_mib": 81920, "offered_mib": offered, "info": info,
        "seen_at": NOW, **columns,
    }  # fmt: skip
    return (
        a_row("devices", **row),
        a_row("resources", agent_id=HOST, name=f"gpu/{uuid}", capacity=there, reported=there),
    )


def held(uuid: str, mib: int = 81920) -> Given:
    async def put(connection: Connection) -> None:
        allocation = {"kernel_id": kernel_of(ID), "agent_id": HOST, "name": f"gpu/{uuid}", "amount": mib}
        await insert(connection, "allocations", allocation)
        await connection.execute(
            """
            UPDATE kernels SET slots = slots || jsonb_build_object(CASE WHEN $3 < 81920 THEN 'gpu-mem' ELSE 'gpu' END, 1),
                spec = jsonb_set(jsonb_build_object('devices', '{}'::jsonb) || spec, ARRAY['devices', $2::text], to_jsonb($3))
            WHERE id = $1
            """,
            kernel_of(ID),
            f"gpu/{uuid}",
            mib,
        )

    return Given(put=put)


def a_check(phase: str, *, passed: bool = True, **columns: Any) -> Given:
    row = {
        "agent_id": HOST, "name": "gpu/one", "session_id": ID, "kernel_id": kernel_of(ID), "phase": phase,
        "passed": passed, "data": {"message": "fit", "temperature_c": 40}, "at": NOW, "check_id": phase,
    }  # fmt: skip
    return a_row("device_checks", **{**row, **columns})


ANY_STATUS = NotApplicable("it is about devices, whatever sessions are")


@scenarios(
    ListDevicesAction,
    success=TestScenario(
        given=(*a_device("one"), *a_device("two", **OUT), a_session(), held("one", 20480), a_check("handover")),
        do=ListDevicesAction(),
        by=WATCHER,
        answer=lambda a: (
            [(d.device, d.state, d.held_mib, d.out_reason) for d in a.items]
            == [("one", "shared", 20480, None), ("two", "out", 0, "its fan is stuck")]
            and [(h.session, h.owner, h.held_mib, h.whole, h.busy) for h in a.items[0].holders]
            == [("train", ALICE.access_key, 20480, False, None)]
            and (a.items[0].driver, a.items[0].simulated, a.items[0].last_check.message) == ("570.86.15", True, "fit")
        ),
        then_audit=None,
    ),
    stranger=TestScenario(do=ListDevicesAction(), by=MALLORY, error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=ANY_STATUS,
    not_found=TestScenario(
        do=ListDevicesAction(agent="nowhere"), by=ROOT, error=AgentNotFound, then_audit="agent_not_found"
    ),
    bad_input=NotApplicable("a host that is not there is not found"),
    more={
        "of_one_host": TestScenario(
            given=a_device("one", missing_since=NOW, out_since=NOW, out_reason="gone", out_by="health", healthy=False),
            do=ListDevicesAction(agent=HOST),
            by=ROOT,
            answer=lambda a: [(d.state, d.out_by, d.healthy) for d in a.items] == [("missing", "health", False)],
            then_audit=None,
        ),
    },
)
async def test_list_devices(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


take_out = TakeDeviceOutAction(agent=HOST, device="one", reason="its fan is stuck")


@scenarios(
    TakeDeviceOutAction,
    success=TestScenario(
        given=(*a_device("one"), *a_device("two", info={"index": 1})),
        do=take_out,
        by=ROOT,
        answer=lambda a: (a.device.device, a.device.state, a.device.out_by) == ("one", "out", "admin"),
        then_rows=(
            f"devices {HOST} gpu/one: out_by null -> admin",
            f"devices {HOST} gpu/one: out_reason null -> its fan is stuck",
            f"devices {HOST} gpu/one: out_since null -> 2026-03-01T12:00:01+00:00",
            "resources gpu/one: capacity 81920 -> 0",
            "resources gpu/one: reported 81920 -> 0",
        ),
    ),
    stranger=TestScenario(given=a_device("one"), do=take_out, error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=ANY_STATUS,
    not_found=TestScenario(do=take_out, by=ROOT, error=DeviceNotFound, then_audit="device_not_found"),
    bad_input=TestScenario(
        do=TakeDeviceOutAction(agent=HOST, device="one", reason=""), by=ROOT, error=InvalidRequest, then_audit=None
    ),
    more={
        "no_such_host": TestScenario(
            do=TakeDeviceOutAction(agent="nowhere", device="one", reason="?"),
            by=ROOT,
            error=AgentNotFound,
            then_audit="agent_not_found",
        ),
    },
)
async def test_take_device_out(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


put_in = PutDeviceInAction(agent=HOST, device="one")


@scenarios(
    PutDeviceInAction,
    success=TestScenario(
        given=a_device("one", **OUT),
        do=put_in,
        by=ROOT,
        answer=lambda a: (a.device.state, a.device.out_reason) == ("free", None),
        then_rows=(
            f"devices {HOST} gpu/one: out_by admin -> null",
            f"devices {HOST} gpu/one: out_reason its fan is stuck -> null",
            f"devices {HOST} gpu/one: out_since 2026-03-01T12:00:00+00:00 -> null",
            "resources gpu/one: capacity 0 -> 81920",
            "resources gpu/one: reported 0 -> 81920",
        ),
    ),
    stranger=TestScenario(
        given=a_device("one", **OUT), do=put_in, error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=ANY_STATUS,
    not_found=TestScenario(do=put_in, by=ROOT, error=DeviceNotFound, then_audit="device_not_found"),
    bad_input=TestScenario(do=PutDeviceInAction(agent=HOST, device=""), by=ROOT, error=InvalidRequest, then_audit=None),
    more={
        "while_its_host_says_that_it_is_bad": TestScenario(
            given=a_device(
                "one", healthy=False, info={"reason": "XID 79"}, out_since=NOW, out_reason="x", out_by="health"
            ),
            do=put_in,
            by=ROOT,
            error=DeviceUnhealthy,
            then_audit=None,
        ),
        "one_that_is_in": TestScenario(
            given=a_device("one"), do=put_in, by=ROOT, answer=lambda a: a.device.state == "free"
        ),
    },
)
async def test_put_device_in(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def _out(connection: Connection) -> None:
    await connection.execute(
        "UPDATE devices SET out_since = $1, out_by = 'admin', out_reason = 'its fan is stuck'", NOW
    )


taken_out = Given(put=_out)
look = GetSessionDevicesAction(session_name="train")
_two_linked = {"index": 1, "numa": 0, "links": {"gpu/one": 90, "gpu/three": 10}}


@scenarios(
    GetSessionDevicesAction,
    success=TestScenario(
        given=(
            *a_device("one"),
            *a_device("two", info=_two_linked),
            a_session(),
            held("one"),
            held("two"),
            a_check("handover"),
            a_check("release", passed=False, data={"message": "hot"}),
        ),
        do=look,
        answer=lambda a: (
            [(d.device, d.model, d.held_mib, d.held, d.links) for d in a.devices]
            == [("one", H100, 81920, True, {}), ("two", H100, 81920, True, {"one": 90})]
            and [(c.phase, c.passed, c.message) for c in a.devices[0].checks]
            == [("handover", True, "fit"), ("release", False, "hot")]
            and a.devices[0].checks[0].details == {"temperature_c": 40}
            and (a.used, a.earlier) == ([], [])
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=look, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("it tells of sessions in every status"),
    not_found=TestScenario(do=look, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=NotApplicable("it takes nothing but a session"),
    more={
        "a_share_and_what_it_is": TestScenario(
            given=(*a_device("one", info={"reason": "XID 48"}), a_session(), held("one", 20480), taken_out),
            do=look,
            answer=lambda a: (
                [(d.kind, d.share, d.out_reason) for d in a.devices] == [("share", 0.25, "its fan is stuck")]
                and [g.kind for g in a.guarantees] == ["share"]
                and "watcher" in a.guarantees[0].enforced
                and "take turns" in a.guarantees[0].not_enforced
            ),
            then_audit=None,
        ),
        "what_an_earlier_try_was_refused": TestScenario(
            given=(a_session(Status.PENDING, attempt=2), a_check("handover", passed=False, kernel_id=None)),
            do=look,
            answer=lambda a: [(e.attempt, e.device, e.check.passed) for e in a.earlier] == [(1, "one", False)],
            then_audit=None,
        ),
        "one_without_devices": TestScenario(
            given=(a_session(),), do=look, answer=lambda a: (a.devices, a.guarantees) == ([], []), then_audit=None
        ),
    },
)
async def test_get_session_devices(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
