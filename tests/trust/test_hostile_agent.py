"""An agent in wrong hands: whatever it says of another's kernel, run, ticket or work is refused and on record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import msgpack
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent import pki, wire
from agent.rpc import Peer
from agent.streams import Landing, TlsChannel, dial
from agent.wire import DeviceCheck, Fact, RunDone, Sample, ServiceFact
from domain.errors import AgentUnavailable, InvalidRequest, MoorageError, TransferFailed, Unauthenticated
from repositories.database import Database
from tests.control.rows import NOW
from tests.trust.conftest import MINE, THEIRS, Two

RUN = UUID(int=77)
#: Everything that a session has; a hostile word may change nothing of it.
_ALL_OF = {
    "sessions": "id = $1", "kernels": "session_id = $1", "executions": "session_id = $1", "status_history": "session_id = $1",
    "service_instances": "session_id = $1", "device_checks": "session_id = $1", "allocations":
    "kernel_id IN (SELECT id FROM kernels WHERE session_id = $1)", "samples":
    "kernel_id IN (SELECT id FROM kernels WHERE session_id = $1)",
}  # fmt: skip


async def all_of(database: Database, session_id: UUID) -> dict[str, list[str]]:
    async with database.reader() as connection:
        return {
            table: [
                row[0]
                for row in await connection.fetch(f"SELECT t::text FROM {table} t WHERE {where} ORDER BY 1", session_id)
            ]
            for table, where in _ALL_OF.items()
        }


def a_fact(kernel: UUID) -> dict[str, Any]:
    return Fact(kernel_id=str(kernel), attempt=1, generation=1, observed="GONE", boot_no=9, seq=99).pack()


def a_run(kernel: UUID, run: UUID = RUN) -> dict[str, Any]:
    return RunDone(
        run_id=str(run), kernel_id=str(kernel), attempt=1, started_at=1.0, finished_at=2.0, exit_code=0
    ).pack()


async def facts(two: Two) -> None:
    await two.host.say(wire.FACTS, {"facts": [a_fact(two.their_kernel)]})


async def hello(two: Two) -> None:
    await two.host.greet(facts=[a_fact(two.their_kernel)])


async def runs(two: Two) -> None:
    await two.host.say(wire.RUNS_DONE, {"runs": [a_run(two.their_kernel)]})


async def a_run_of_theirs_on_my_kernel(two: Two) -> None:
    await two.host.say(wire.RUNS_DONE, {"runs": [a_run(two.my_kernel)]})


async def samples(two: Two) -> None:
    sample = Sample(kernel_id=str(two.their_kernel), attempt=1, at=NOW.timestamp() - 5, seconds=5.0, cpu_seconds=1e6)
    await two.host.say(wire.SAMPLES, {"samples": [sample.pack()]})


async def services(two: Two) -> None:
    fact = ServiceFact(
        kernel_id=str(two.their_kernel), attempt=1, name="jupyter", generation=1, state="failed", boot_no=9, seq=9
    )
    await two.host.say(wire.SERVICES, {"services": [fact.pack()]})


async def device_checks(two: Two) -> None:
    check = DeviceCheck(
        check_id="c", device="gpu/1", phase="watch", passed=False, at=1.0, kernel_id=str(two.their_kernel)
    )
    await two.host.say(wire.DEVICE_CHECKS, {"checks": [check.pack()]})


async def progress(two: Two) -> None:
    await two.host.peer.notify(wire.PROGRESS, {"kernel_id": str(two.their_kernel), "image": "i"})


async def progress_of_anothers_work(two: Two) -> None:
    two.hub._pulls["name"] = THEIRS, asyncio.Queue(1)
    await two.host.peer.notify(wire.PROGRESS, {"pull": "name", "status": "done"})
    await two.host.say(wire.HEARTBEAT, {})
    assert two.hub._pulls.pop("name")[1].empty()


async def credentials(two: Two) -> None:
    said = {"kernel_id": str(two.their_kernel), "image": "i"}
    assert await two.host.say(wire.CREDENTIALS, said) is None


async def another_name(two: Two) -> None:
    with pytest.raises(Unauthenticated):
        await two.host.greet(agent_id=THEIRS)


async def a_certificate_of_another(two: Two) -> None:
    """Whatever the request names: what is signed names who asks."""
    _, request = pki.renewal_request(THEIRS)
    answer = await two.host.say(wire.RENEW, {"csr": request.decode()})
    made = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == MINE


async def devices(two: Two) -> None:
    fact = {"name": "gpu/1", "model": "m", "memory_mib": 1, "offered_mib": 1, "agent_id": THEIRS, "info": {}}
    await two.host.say(wire.DEVICES, {"devices": [fact], "resources": {"gpu/1": 1}, "boot_no": 1, "seq": 5})
    async with two.installation.database.reader() as connection:
        assert {row["agent_id"] for row in await connection.fetch("SELECT agent_id FROM devices")} == {MINE}


async def heartbeat(two: Two) -> None:
    async with two.installation.database.reader() as connection:
        before = await connection.fetchval("SELECT seen_at FROM agents WHERE id = $1", THEIRS)
        await two.host.say(wire.HEARTBEAT, {"agent_id": THEIRS, "digest": "x"})
        assert await connection.fetchval("SELECT seen_at FROM agents WHERE id = $1", THEIRS) == before


Attack = Callable[[Two], Awaitable[None]]
#: kind of message -> what is tried with it, and as what it is on record (None: it cannot name another's at all)
ATTACKS: dict[str, list[tuple[Attack, str | None]]] = {
    wire.HELLO: [(hello, "report_facts"), (another_name, "hello")],
    wire.HEARTBEAT: [(heartbeat, None)],
    wire.FACTS: [(facts, "report_facts")],
    wire.RUNS_DONE: [(runs, "report_runs"), (a_run_of_theirs_on_my_kernel, "report_runs")],
    wire.SAMPLES: [(samples, "report_samples")],
    wire.SERVICES: [(services, "report_services")],
    wire.DEVICES: [(devices, None)],
    wire.DEVICE_CHECKS: [(device_checks, "report_device_checks")],
    wire.PROGRESS: [(progress, "report_progress"), (progress_of_anothers_work, "report_progress")],
    wire.CREDENTIALS: [(credentials, "ask_for_credentials")],
    wire.RENEW: [(a_certificate_of_another, None)],
}


async def test_every_kind_of_message_is_tried(two: Two) -> None:
    peer = Peer(None, "x")  # type: ignore[arg-type]
    two.hub._listen_to(peer, MINE, greeted=lambda: None)
    assert {*peer._handlers, *peer._notices} == ATTACKS.keys()


@pytest.mark.parametrize("attack", [pytest.param(one, id=one[0].__name__) for many in ATTACKS.values() for one in many])
async def test_what_is_anothers_stays_as_it_is(two: Two, attack: tuple[Attack, str | None]) -> None:
    database = two.installation.database
    async with database.reader() as connection:
        await connection.execute(
            """
            INSERT INTO executions (run_id, session_id, kernel_id, agent_id, attempt, user_id, request_hash, mode, status, started_at)
            SELECT $1, session_id, id, agent_id, 1, $2, '', 'query', 'running', $4 FROM kernels WHERE id = $3
            """,
            RUN, UUID(int=7), two.their_kernel, NOW,
        )  # fmt: skip
    before = await all_of(database, two.theirs)
    tried, on_record = attack
    await tried(two)
    if on_record is not None:
        async with asyncio.timeout(10):  # notices are not answered
            while not (found := await two.installation.audit()):
                await two.host.say(wire.HEARTBEAT, {}) if not two.host.peer.closed.is_set() else await asyncio.sleep(
                    0.01
                )
        assert [(who, action) for who, action, _ in found] == [(f"agent:{MINE}", on_record)]
    assert await all_of(database, two.theirs) == before


async def test_the_same_again_is_counted_and_not_written_again(two: Two) -> None:
    for _ in range(50):
        await facts(two)
    assert len(await two.installation.audit()) == 1


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - {wire.PROGRESS, wire.HEARTBEAT}))
async def test_what_makes_no_sense_is_refused_in_one_sentence_and_harms_nothing(two: Two, name: str) -> None:
    key = {
        wire.RUNS_DONE: "runs",
        wire.SAMPLES: "samples",
        wire.SERVICES: "services",
        wire.DEVICE_CHECKS: "checks",
    }.get(name, "facts")
    wrong: list[Any] = [
        {}, {key: None}, {key: {}}, {key: "x" * 1000}, {key: [None] * 50_000}, {"devices": [{}], "resources": {"a": "b"}},
        {"csr": b"\0"}, {"kernel_id": None}, {"agent_id": 1}, {"agent_id": MINE, "boot_no": "1"},
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises(MoorageError) as refused:
            await two.host.say(name, arguments)
        assert isinstance(refused.value, InvalidRequest), (arguments, refused.value)
    kinds: tuple[Any, ...] = (
        {"kernel_id": 1},
        {"attempt": "a"},
        {"seq": 2**63},
        {"at": float("nan")},
        7,
        [],
        {"a": {}},
    )
    if key != "facts" or name == wire.FACTS:
        await two.host.say(name, {key: list(kinds)})  # those that make no sense are left out, and the rest is taken
    assert {action for _, action, _ in await two.installation.audit()} == {"speak"}
    await two.host.say(wire.HEARTBEAT, {})


async def test_before_hello_nothing_is_heard(two: Two) -> None:
    second = await two.installation.host(two.hub, two.folder, greets=False)
    for name in ATTACKS.keys() - {wire.HELLO, wire.PROGRESS}:
        with pytest.raises(Unauthenticated):
            await second.say(name, {})


def piece(kind: Any, number: Any, more: Any, content: Any) -> bytes:
    packed: bytes = msgpack.packb([kind, number, more, content])
    return packed


BROKEN: dict[str, list[bytes]] = {
    "no msgpack": [b"\xc1\xff\x00"],
    "no frame": [msgpack.packb({"a": 1})],
    "an unknown kind": [piece(9, 1, False, msgpack.packb([1]))],
    "a request without arguments": [piece(0, 1, False, msgpack.packb(["facts"]))],
    "a request that is none": [piece(0, 1, False, msgpack.packb([[], 1]))],
    "a notice that is none": [piece(3, 1, False, msgpack.packb(["progress", 1]))],
    "deep": [piece(0, 1, False, b"\x91" * 3000 + b"\xc0")],
    "longer than a message may be": [piece(0, 1, True, b"x" * 60_000)] * 150,
    "many that never end": [piece(0, n, True, b"x") for n in range(300)],
    "much that never ends": [piece(0, n % 200, True, b"x" * 60_000) for n in range(700)],
}


@pytest.mark.parametrize("what", sorted(BROKEN))
async def test_broken_frames_end_the_connection_and_no_other(two: Two, what: str) -> None:
    other = await two.installation.host(two.hub, await two.installation.certify("third"), "third")
    for frame in BROKEN[what]:
        if two.host.socket.closed:
            break
        try:
            await two.host.socket.send_bytes(frame)
        except ConnectionError:
            break
    async with asyncio.timeout(10):
        await two.host.reading
    await other.say(wire.HEARTBEAT, {})


async def test_a_ticket_of_another_agent_opens_nothing(two: Two, tmp_path: Any) -> None:
    landing = Landing("127.0.0.1", 0, pki.server_context(two.installation.folder / "ca"))
    landing.encrypted = True
    await landing.start()
    theirs = pki.client_context(await two.installation.certify("third"))
    mine = pki.client_context(two.folder)
    try:
        with landing.expecting(MINE) as (ticket, landed):
            stranger = await dial("127.0.0.1", landing.port, ticket, theirs)
            with pytest.raises(TransferFailed):
                await stranger.receive_exactly(1)
            assert not landed.done()
            nobody = pki.client_context(two.folder, with_certificate=False)
            with pytest.raises(TransferFailed):
                await (await dial("127.0.0.1", landing.port, ticket, nobody)).receive_exactly(1)
            assert not landed.done()
            channel = await dial("127.0.0.1", landing.port, ticket, mine)
            arrived = await asyncio.wait_for(landed, 10)
            landing.cut(MINE)
            with pytest.raises(TransferFailed):
                await channel.receive_exactly(1)
            for one in (channel, arrived, stranger):
                assert isinstance(one, TlsChannel)
                await one.close()
    finally:
        await landing.close()


async def test_answers_that_make_no_sense_are_the_hosts_fault(two: Two) -> None:
    from agent.client import KernelAddress
    from domain.ids import KernelId

    async def nonsense(_arguments: dict[str, Any]) -> Any:
        return {"files": [{"name": 1}], "kernel_id": [], "status": 5}

    where = KernelAddress(agent_id=MINE, kernel_id=KernelId(two.my_kernel), attempt=1)
    for name in (wire.ENSURE, wire.READ, wire.LIST_FILES, wire.MANAGE_FILE, wire.LIST_IMAGES, wire.START_SERVICE):
        two.host.peer.handle(name, nonsense)
    asked: list[Awaitable[Any]] = [
        two.hub.ensure(where, generation=1, want="GONE", spec=None),
        two.hub.read(where, str(uuid4()), from_seq=0, max_bytes=1, wait_seconds=0),
        two.hub.list_files(where, "/", cursor=None, limit=1),
        two.hub.manage_file(where, "stat", {}),
        two.hub.list_images(MINE),
    ]
    for one in asked:
        with pytest.raises(AgentUnavailable, match="makes no sense"):
            await one
