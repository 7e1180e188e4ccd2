"""What happens when services are started, opened, listed and shut down."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from actions import (
    GetDirectAccessInfoAction,
    ListServicesAction,
    OpenPortAction,
    OpenServiceAction,
    ShutdownServiceAction,
    StartServiceAction,
)
from actions.kinds import check_arguments, command_of, kind_of
from agent.client import KernelAddress
from agent.wire import ServiceFact, ServiceSpec
from domain.errors import (
    AgentUnavailable,
    InvalidConfiguration,
    KernelNotFound,
    PermissionDenied,
    PortConflict,
    ServiceEnded,
    ServiceNotFound,
    ServiceRuns,
    ServiceSilent,
    ServiceUnknown,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
)
from domain.session import Status
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOW,
    WATCHER,
    TestScenario,
    a_row,
    a_session,
    kernel_of,
    scenarios,
    stage,
)

KERNEL = kernel_of(ID)


def start(service: str = "web", **given: Any) -> StartServiceAction:
    return StartServiceAction(**{"session_name": "train", "service": service, "port": 8000, **given})


def a_service(name: str = "web", port: int = 8000, **columns: Any) -> Any:
    """One that runs, and has said so."""
    spec = ServiceSpec(name=name, generation=0, port=port).pack()
    row = {"session_id": ID, "name": name, "kind": "http", "protocol": "http", "port": port, "kernels": "main"}
    more = {"spec": spec, "generation": 7, "settled": True, "started_at": NOW, "deadline_at": NOW}
    return a_row("services", **{**row, **more, **columns})


def an_instance(name: str = "web", state: str = "healthy", kernel_id: UUID = KERNEL) -> Any:
    return a_row(
        "service_instances", session_id=ID, name=name, kernel_id=kernel_id, generation=7, state=state, changed_at=NOW
    )


def fails_with(error: Exception) -> Any:
    def script(fake: FakeAgent) -> None:
        async def start_service(where: KernelAddress, spec: ServiceSpec) -> ServiceFact:
            fake.calls.append(("start_service", where.kernel_id, spec))
            raise error

        fake.start_service = start_service  # type: ignore[method-assign]

    return script


def away(fake: FakeAgent) -> None:
    fake.agents.clear()


@scenarios(
    StartServiceAction,
    success=TestScenario(
        given=(a_session(),),
        do=start(),
        answer=lambda a: a.service.health == "healthy" and a.wsproxy_addr.endswith("/web/"),
        then_rows=("+services web", "+service_instances web", "+service_tickets ticket"),
        then_agent=("start_service",),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=start(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PREPARING),), do=start(), error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=start(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=start("nothing", port=None), error=ServiceUnknown, then_audit=None),
    more={
        "one_that_runs_is_opened": TestScenario(
            given=(a_session(), a_service(spec=ServiceSpec(name="web", generation=0, port=8000).pack()), an_instance()),
            do=start(),
            then_rows=(
                "+service_tickets ticket",
                "service_instances web: boot_no 0 -> 1",
                "service_instances web: report_seq 0 -> 1",
            ),
            then_agent=("start_service",),
        ),
        "one_of_other_settings_is_in_the_way": TestScenario(
            given=(a_session(), a_service(port=8001)), do=start(), error=ServiceRuns, then_audit=None
        ),
        "another_has_the_port": TestScenario(
            given=(a_session(), a_service("other")), do=start(), error=PortConflict, then_audit=None
        ),
        "a_program_has_the_port": TestScenario(
            given=(a_session(),),
            do=start(),
            agent=fails_with(PortConflict()),
            error=PortConflict,
            then_agent=("start_service", "stop_service"),
            then_audit=None,
        ),
        "its_process_dies_at_once": TestScenario(
            given=(a_session(),),
            do=start(),
            agent=fails_with(ServiceEnded()),
            error=ServiceEnded,
            then_agent=("start_service", "stop_service"),
            then_audit=None,
        ),
        "its_path_never_answers": TestScenario(
            given=(a_session(),),
            do=start(path="/health"),
            agent=fails_with(ServiceSilent()),
            error=ServiceSilent,
            then_agent=("start_service", "stop_service"),
            then_audit=None,
        ),
        "a_monitor_starts_none": TestScenario(
            given=(a_session(),),
            do=start(session_name=str(ID)),
            by=WATCHER,
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "there_is_no_such_kernel": TestScenario(
            given=(a_session(),), do=start(kernels="worker9"), error=KernelNotFound, then_audit="kernel_not_found"
        ),
    },
)
async def test_start(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ShutdownServiceAction,
    success=TestScenario(
        given=(a_session(), a_service(), an_instance()),
        do=ShutdownServiceAction(session_name="train", service="web"),
        then_rows=("-services web", "-service_instances web"),
        then_agent=("stop_service",),
    ),
    stranger=TestScenario(
        given=(a_session(), a_service()),
        do=ShutdownServiceAction(session_name="train", service="web"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(  # of a session that has ended, only the row is left
        given=(a_session(Status.TERMINATED), a_service(), an_instance()),
        do=ShutdownServiceAction(session_name=str(ID), service="web"),
        then_rows=("-services web", "-service_instances web"),
    ),
    not_found=TestScenario(
        given=(a_session(),),
        do=ShutdownServiceAction(session_name="train", service="web"),
        error=ServiceNotFound,
        then_audit="service_not_found",
    ),
    bad_input=TestScenario(
        given=(a_session(), a_service(), an_instance()),
        do=ShutdownServiceAction(session_name="train", service="web"),
        agent=away,
        error=AgentUnavailable,
        then_audit=None,
    ),
)
async def test_shutdown(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListServicesAction,
    success=TestScenario(
        given=(a_session(), a_service(), an_instance(state="unhealthy")),
        do=ListServicesAction(session_name="train"),
        answer=lambda a: (
            [(s.name, s.health, s.instances[0].kernel) for s in a.items] == [("web", "unhealthy", "main1")]
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),),
        do=ListServicesAction(session_name="train"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED), a_service(), an_instance()),
        do=ListServicesAction(session_name=str(ID)),
        answer=lambda a: a.items[0].instances[0].state == "stopped",
        then_audit=None,
    ),
    not_found=TestScenario(
        do=ListServicesAction(session_name="train"), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(
        do=ListServicesAction(session_name=""), error=SessionNotFound, then_audit="session_not_found"
    ),
)
async def test_list(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    OpenServiceAction,
    success=TestScenario(
        given=(a_session(), a_service(), an_instance()),
        do=OpenServiceAction(session_name="train", service="web"),
        then_rows=("+service_tickets ticket",),
    ),
    stranger=TestScenario(
        given=(a_session(), a_service()),
        do=OpenServiceAction(session_name="train", service="web"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED), a_service()),
        do=OpenServiceAction(session_name=str(ID), service="web"),
        error=SessionEnded,
        then_audit=None,
    ),
    not_found=TestScenario(
        given=(a_session(), a_service("other")),
        do=OpenServiceAction(session_name="train", service="web"),
        error=ServiceNotFound,
        then_audit="service_not_found",
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=OpenServiceAction(session_name="train", service="web"),
        error=ServiceNotFound,
        then_audit="service_not_found",
    ),
)
async def test_open(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    OpenPortAction,
    success=TestScenario(
        given=(a_session(),),
        do=OpenPortAction(session_name="train", port=80),
        answer=lambda a: a.url.endswith(f"/proxy/{ID}/~80/"),
        then_rows=("+service_tickets pass",),
    ),
    stranger=TestScenario(
        given=(a_session(),),
        do=OpenPortAction(session_name="train", port=80),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.PENDING),),
        do=OpenPortAction(session_name="train", port=80),
        error=SessionNotReady,
        then_audit=None,
    ),
    not_found=TestScenario(
        do=OpenPortAction(session_name="train", port=80), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=OpenPortAction(session_name="train", port=80, kernel="worker1"),
        error=KernelNotFound,
        then_audit="kernel_not_found",
    ),
)
async def test_open_port(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetDirectAccessInfoAction,
    success=TestScenario(
        given=(a_session(), a_service(), an_instance()),
        do=GetDirectAccessInfoAction(session_name="train"),
        answer=lambda a: (
            ([s.name for s in a.services], a.kernels, a.direct) == (["web"], ["main1"], None)
            and "listener" in a.no_direct
        ),
        then_agent=("grant_direct",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),),
        do=GetDirectAccessInfoAction(session_name="train"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=GetDirectAccessInfoAction(session_name=str(ID)),
        error=SessionEnded,
        then_audit=None,
    ),
    not_found=TestScenario(
        do=GetDirectAccessInfoAction(session_name="train"), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(
        do=GetDirectAccessInfoAction(session_name=""), error=SessionNotFound, then_audit="session_not_found"
    ),
)
async def test_direct_access(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


DIRECT = {
    "the_host_serves_files": TestScenario(
        given=(a_session(),),
        do=GetDirectAccessInfoAction(session_name="train", kernel="main1", read_only=True),
        agent=lambda fake: setattr(fake, "direct", "https://10.0.0.7:8443"),
        answer=lambda a: (
            (a.direct.url, a.direct.kernel, a.direct.write, a.no_direct)
            == ("https://10.0.0.7:8443", "main1", False, None)
        ),
        then_agent=("grant_direct",),
        then_audit=None,
    ),
    "the_host_is_away": TestScenario(
        given=(a_session(),),
        do=GetDirectAccessInfoAction(session_name="train"),
        agent=lambda fake: setattr(fake, "fails_with", AgentUnavailable("The host is away.")),
        answer=lambda a: (a.direct, a.no_direct, a.kernels) == (None, "The host is away.", ["main1"]),
        then_agent=("grant_direct",),
        then_audit=None,
    ),
    "no_such_kernel": TestScenario(
        given=(a_session(),),
        do=GetDirectAccessInfoAction(session_name="train", kernel="worker7"),
        error=KernelNotFound,
        then_audit="kernel_not_found",
    ),
}


@pytest.mark.parametrize("name", DIRECT)
async def test_files_straight_from_the_host(name: str, database: Database) -> None:
    await DIRECT[name].play(database)


async def test_one_that_had_failed_begins_anew(database: Database) -> None:
    fake = FakeAgent()
    processor = await stage(database, a_session(), a_service(), an_instance(state="failed"), fake=fake)
    answer = await processor.run(start(), by=ALICE)
    assert (answer.service.health, [call[0] for call in fake.calls]) == ("healthy", ["stop_service", "start_service"])


# -- kinds ---------------------------------------------------------------------------------------------------------------
def test_options_that_are_given_take_the_place_of_ours() -> None:
    words = command_of(("run", "--ip=127.0.0.1", "--port={port}"), ["--ip=0.0.0.0", "-v"], port=9, prefix="/p/")
    assert words == ["run", "--port=9", "--ip=0.0.0.0", "-v"]


def test_an_image_declares_its_own() -> None:
    label = '{"port": 9000, "command": "serve --port {port}", "path": "health"}'
    name, kind = kind_of("mine", None, {"moorage.service.mine": label}, has_own=False)
    assert (name, kind.port, kind.argv, kind.path) == ("mine", 9000, ("/bin/sh", "-c", "serve --port {port}"), "health")
    with pytest.raises(InvalidConfiguration):
        kind_of("mine", None, {"moorage.service.mine": "{"}, has_own=False)


def test_tensor_streams_are_known_everywhere() -> None:
    name, kind = kind_of("tensors", "tensor-stream", {}, has_own=False)
    check_arguments(name, kind, [], ["app:Model"])
    words = command_of(kind.argv, ["app:Model", "--path", "models"], port=kind.port or 0, prefix="/p/")
    assert words[-4:] == ["--port=7070", "app:Model", "--path", "models"]
    assert words[2].endswith("/runner/tensor_server.py")
    with pytest.raises(InvalidConfiguration, match="app:Model"):
        check_arguments(name, kind, [], [])


async def test_events_tell_how_it_goes(database: Database) -> None:
    from domain.ids import AgentId
    from repositories.service import record_services

    processor = await stage(database, a_session())
    answer = await processor.run(start(), by=ALICE)
    async with database.transaction() as connection:
        generation = await connection.fetchval("SELECT generation FROM services")
        for seq, state in enumerate(("unhealthy", "unhealthy", "healthy", "failed"), start=10):
            fact = ServiceFact(
                kernel_id=str(KERNEL), attempt=1, name="web", generation=generation, state=state, boot_no=1, seq=seq
            )
            assert await record_services(connection, AgentId("host-1"), [fact], now=NOW) == {ID}
            assert await record_services(connection, AgentId("host-1"), [fact], now=NOW) == set(), "told twice"
            assert await record_services(connection, AgentId("other"), [fact], now=NOW) == set(), "not its kernel"
        types = [
            r["type"] for r in await connection.fetch("SELECT type FROM events WHERE type LIKE 'service%' ORDER BY id")
        ]
    assert answer.success
    assert types == ["service.started", "service.unhealthy", "service.started", "service.stopped"]
