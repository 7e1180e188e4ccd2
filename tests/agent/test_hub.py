"""A hub and the links of hosts, over real TLS on loopback: who may connect, what is said, and bytes in bulk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from agent import pki, wire
from agent.client import FileStat, KernelAddress
from agent.hub import AgentHub
from agent.link import Links, open_channel
from agent.rpc import Peer
from agent.streams import Channel, chunks, send_chunk, send_end, send_file
from agent.wire import AgentHello, DeviceCheck, DeviceFact, DeviceList, Fact, RunDone, RunRead, Sample, ServiceFact
from domain.errors import (
    AgentUnavailable,
    DatabaseUnavailable,
    FileExists,
    FileNotFound,
    InvalidRequest,
    MoorageError,
    TransferFailed,
    Unauthenticated,
)
from domain.ids import AgentId, KernelId, RunId

HOST = AgentId("host-1")
KERNEL = KernelAddress(agent_id=HOST, kernel_id=KernelId(UUID(int=5)), attempt=1)
RUN = RunId(UUID(int=6))
SECRET = "a secret that is good for one time"
STAT = FileStat(name="f", type="file", size=3, mtime=1.0, mode=0o644, owner=1000, group=1000)


class Manager:
    """The hub's callbacks, in memory. `refuses` makes it take nothing that is told."""

    def __init__(self) -> None:
        self.known: dict[AgentId, str] = {}
        self.hubs: list[AgentHub] = []
        self.helloes: list[AgentHello] = []
        self.facts: list[Fact] = []
        self.runs: list[RunDone] = []
        self.samples: list[Sample] = []
        self.devices: list[DeviceList] = []
        self.checks: list[DeviceCheck] = []
        self.beats: list[AgentId] = []
        self.progress: list[dict[str, Any]] = []
        self.refuses: MoorageError | None = None
        self.has_refused = asyncio.Event()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _take(self) -> None:
        self._changed.set()
        if self.refuses is not None:
            self.has_refused.set()
            raise self.refuses

    async def is_known(self, agent_id: AgentId, fingerprint: str) -> bool:
        return self.known.get(agent_id) == fingerprint

    async def trusted(self, shown: Sequence[tuple[AgentId, str]]) -> Sequence[tuple[AgentId, str]]:
        return shown

    async def renewing(self, agent_id: AgentId, fingerprint: str) -> None: ...

    async def refused(self, agent_id: AgentId, action: str, target: str) -> None: ...

    async def enrol(self, secret: str, agent_id: AgentId, fingerprint: str) -> None:
        if secret != SECRET:
            raise Unauthenticated("This token has been used, or is too old; make a new one.")
        self.known[agent_id] = fingerprint

    async def managers(self) -> list[dict[str, Any]]:
        return [{"id": str(hub.manager_id), "role": "?", "url": hub.url} for hub in self.hubs]

    async def on_hello(self, said: AgentHello) -> None:
        self._take()
        self.helloes.append(said)

    async def on_heartbeat(self, agent_id: AgentId) -> None:
        self.beats.append(agent_id)
        self._changed.set()

    async def on_facts(self, agent_id: AgentId, facts: Sequence[Fact]) -> None:
        self._take()
        self.facts += facts

    async def on_runs_done(self, agent_id: AgentId, runs: Sequence[RunDone]) -> None:
        self._take()
        self.runs += runs

    async def on_progress(self, agent_id: AgentId, said: dict[str, Any]) -> None:
        self.progress.append(said)
        self._changed.set()

    async def credentials(self, agent_id: AgentId, kernel_id: str, image: str) -> dict[str, str] | None:
        self._take()
        return {"username": kernel_id, "password": image}

    async def on_services(self, agent_id: AgentId, facts: Sequence[ServiceFact]) -> None:
        pass

    async def on_devices(self, agent_id: AgentId, said: DeviceList) -> None:
        self._take()
        self.devices.append(said)
        self._changed.set()

    async def on_device_checks(self, agent_id: AgentId, checks: Sequence[DeviceCheck]) -> None:
        self._take()
        self.checks += checks
        self._changed.set()

    async def on_samples(self, agent_id: AgentId, samples: Sequence[Sample]) -> None:
        self._take()
        self.samples += samples


@dataclass
class Host:
    """What a host says, and how it answers: `handlers` by the wire's names, asked for anew each time."""

    handlers: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = field(default_factory=dict)
    agent_id: str = HOST
    boot_no: int = 1
    facts: list[Fact] = field(default_factory=list)
    listed: list[Fact] = field(default_factory=list)  #: what is there, told or not
    runs: list[RunDone] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    sample_seconds: float = 0.02
    devices: DeviceList | None = None
    checks: list[DeviceCheck] = field(default_factory=list)
    device_news: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def hello(self) -> AgentHello:
        return AgentHello(
            agent_id=self.agent_id,
            uid="u1",
            boot_no=self.boot_no,
            version="0",
            hostname="h",
            architecture="x86_64",
            resources={"cpu": 4000},
        )

    async def epoch_is(self, epoch: int) -> None: ...

    def inventory(self) -> Sequence[Fact]:
        return self.listed

    def pending_facts(self) -> Sequence[Fact]:
        return self.facts

    def facts_acknowledged(self, facts: Iterable[Fact]) -> None:
        told = list(facts)
        self.facts = [fact for fact in self.facts if fact not in told]
        self._settle()

    def pending_runs(self) -> Sequence[RunDone]:
        return self.runs

    def runs_acknowledged(self, runs: Iterable[RunDone]) -> None:
        told = list(runs)
        self.runs = [run for run in self.runs if run not in told]
        self._settle()

    def pending_samples(self) -> Sequence[Sample]:
        return self.samples

    def pending_services(self) -> Sequence[ServiceFact]:
        return []

    def services_acknowledged(self, facts: Iterable[ServiceFact]) -> None: ...

    def pending_devices(self) -> DeviceList | None:
        return self.devices

    def devices_acknowledged(self, said: DeviceList) -> None:
        self.devices = None if said == self.devices else self.devices

    def pending_checks(self) -> Sequence[DeviceCheck]:
        return self.checks

    def checks_acknowledged(self, checks: Iterable[DeviceCheck]) -> None:
        taken = list(checks)
        self.checks = [check for check in self.checks if check not in taken]

    def samples_acknowledged(self, samples: Sequence[Sample]) -> None:
        self.samples = [sample for sample in self.samples if sample not in samples]

    def _settle(self) -> None:
        if not self.facts and not self.runs:
            self.idle.set()

    def says(self, *said: Fact | RunDone) -> None:
        self.facts += [one for one in said if isinstance(one, Fact)]
        self.runs += [one for one in said if isinstance(one, RunDone)]
        self.idle.clear()
        self.changed.set()


def answering(host: Host) -> Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
    def one(name: str) -> Callable[[dict[str, Any]], Awaitable[Any]]:
        async def answer(arguments: dict[str, Any]) -> Any:
            return await host.handlers[name](arguments)

        return answer

    names = (wire.ENSURE, wire.EXECUTE, wire.READ, wire.OPEN_STREAM, wire.PULL_IMAGE, wire.STATISTICS, wire.INTERRUPT)
    return {name: one(name) for name in (*names, wire.COMMIT, wire.CANCEL_JOB)}


class Place:
    """Hubs and hosts of one test, all closed at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manager = Manager()
        pki.ensure_authority(folder / "ca")
        self._running: list[asyncio.Task[None]] = []
        self.links: Links

    async def hub(self, role: str = "control", port: int = 0, host: str = "127.0.0.1") -> AgentHub:
        ca = self.folder / "ca"
        hub = AgentHub(
            uuid4(), role, tls=pki.server_context(ca), ca_dir=ca, host=host, port=port, callbacks=self.manager
        )
        await hub.start()
        self.manager.hubs.append(hub)
        return hub

    def certify(self, agent_id: str = HOST, *, known: bool = True) -> ssl.SSLContext:
        folder = self.folder / agent_id
        request = pki.make_request(folder, agent_id)
        certificate, fingerprint = pki.sign_request(self.folder / "ca", request, agent_id)
        pki.keep_certificate(folder, certificate)
        (folder / "ca.pem").write_bytes((self.folder / "ca" / "ca.pem").read_bytes())
        if known:
            self.manager.known[AgentId(agent_id)] = fingerprint
        return pki.client_context(folder)

    async def connect(self, host: Host, *hubs: AgentHub) -> ssl.SSLContext:
        """Links that dial these hubs; returns when they are connected."""
        tls = self.certify(host.agent_id)
        self.links = Links([hub.url for hub in hubs], tls, host, answering(host))
        self._running.append(asyncio.create_task(self.links.run()))
        for hub in hubs:
            await hub.wait_until_connected({AgentId(host.agent_id)}, 10)
            assert hub.is_connected(AgentId(host.agent_id))
        return tls

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for hub in self.manager.hubs:
            await hub.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    await made.close()


def a_fact(seq: int) -> Fact:
    return Fact(kernel_id=str(UUID(int=seq)), attempt=1, generation=1, observed="RUNNING", boot_no=1, seq=seq)


def a_run(number: int) -> RunDone:
    run_id, kernel_id = str(UUID(int=number)), str(KERNEL.kernel_id)
    return RunDone(run_id=run_id, kernel_id=kernel_id, attempt=1, started_at=1.0, finished_at=2.0, exit_code=0)


# -- who may connect ---------------------------------------------------------------------------------------------------
async def test_a_host_joins_with_a_token_and_is_certified(place: Place) -> None:
    hub = await place.hub()
    folder = place.folder / "new host"
    token = pki.parse_join_token(pki.join_token(hub.url, (place.folder / "ca" / "ca.pem").read_bytes(), SECRET))
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{token.url}/agent/ca", ssl=False) as shown:
            pki.trust(folder, await shown.read(), token)
        body = {"secret": token.secret, "agent_id": "new-1", "csr": pki.make_request(folder, "new-1").decode()}
        tls = pki.client_context(folder, with_certificate=False)
        async with session.post(f"{token.url}/agent/join", json=body, ssl=tls) as joined:
            answer = await joined.json()
            assert joined.status == 200
            assert [manager["url"] for manager in answer["managers"]] == [hub.url]
        pki.keep_certificate(folder, answer["certificate"].encode())
        async with session.ws_connect(f"{hub.url}/agent/link", ssl=pki.client_context(folder)) as socket:
            await socket.close()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"secret": "guessed"}, 401),
        ({"secret": {}}, 401),
        ({"agent_id": "../etc"}, 400),
        ({"csr": "no request"}, 400),
    ],
)
async def test_no_certificate_without_a_good_token(place: Place, change: dict[str, Any], status: int) -> None:
    hub = await place.hub()
    csr = pki.make_request(place.folder / "new", "new-1").decode()
    async with aiohttp.ClientSession() as session:
        url, body = f"{hub.url}/agent/join", {"secret": SECRET, "agent_id": "new-1", "csr": csr} | change
        async with session.post(url, json=body, ssl=False) as answer:
            assert answer.status == status
            assert "certificate" not in await answer.json()
    assert not place.manager.known


async def test_who_guesses_tokens_is_soon_not_listened_to(place: Place) -> None:
    hub = await place.hub()
    csr = pki.make_request(place.folder / "new", "new-1").decode()
    async with aiohttp.ClientSession() as session:
        url, body = f"{hub.url}/agent/join", {"secret": "guessed", "agent_id": "new-1", "csr": csr}
        answers = [await session.post(url, json=body, ssl=False) for _ in range(31)]
        assert [answer.status for answer in answers] == [401] * 30 + [429]


async def test_a_connection_begins_with_hello(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, tls = await place.hub(), place.certify()
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{hub.url}/agent/link", ssl=tls) as socket:
            peer = Peer(socket, "manager")
            reading = asyncio.create_task(peer.run())
            for name in (wire.HEARTBEAT, wire.FACTS, wire.RUNS_DONE):
                with pytest.raises(Unauthenticated, match="hello"):
                    await peer.request(name, {"facts": [], "runs": []}, timeout_seconds=5)
            await peer.close()
            await reading
        assert not place.manager.beats
        monkeypatch.setattr("agent.hub._HELLO_SECONDS", 0.05)
        async with session.ws_connect(f"{hub.url}/agent/link", ssl=tls) as socket:
            assert (await socket.receive(10)).type is aiohttp.WSMsgType.CLOSE


async def test_a_token_of_another_authority_is_refused(place: Place) -> None:
    pki.ensure_authority(place.folder / "other")
    token = pki.parse_join_token(pki.join_token("https://h:1", (place.folder / "other" / "ca.pem").read_bytes(), "s"))
    with pytest.raises(InvalidRequest, match="not the one"):
        pki.trust(place.folder / "new", (place.folder / "ca" / "ca.pem").read_bytes(), token)
    for text in ("", "moj_", "moj_!!", "moj_e30", "other"):
        with pytest.raises(InvalidRequest):
            pki.parse_join_token(text)


async def test_no_link_without_the_certificate_that_the_host_joined_with(place: Place) -> None:
    hub = await place.hub()
    place.certify()
    stranger = place.certify("host-2", known=False)
    nobody = pki.client_context(place.folder / HOST, with_certificate=False)
    place.manager.known[AgentId("host-2")] = "the fingerprint of another certificate"
    async with aiohttp.ClientSession() as session:
        for tls, status in ((nobody, 401), (stranger, 403)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{hub.url}/agent/link", ssl=tls)
            assert caught.value.status == status


async def test_a_host_cannot_call_itself_like_another(place: Place) -> None:
    hub = await place.hub()
    tls = place.certify("host-2")
    links = Links([hub.url], tls, Host(agent_id="host-1"), {})
    running = asyncio.create_task(links.run())
    await hub.wait_until_connected({HOST}, 0.3)
    assert not hub.connected()
    assert not place.manager.helloes
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_host_does_not_talk_to_a_manager_of_another_authority(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    try:
        hub = await other.hub()
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.ws_connect(f"{hub.url}/agent/link", ssl=place.certify())
    finally:
        await other.close()


async def test_keys_are_readable_by_their_owner_only(place: Place) -> None:
    place.certify()
    for path in place.folder.rglob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (place.folder / "ca").stat().st_mode & 0o777 == 0o700


# -- questions ---------------------------------------------------------------------------------------------------------
async def test_questions_reach_the_host_as_they_were_asked(place: Place) -> None:
    hub, host = await place.hub(), Host()
    asked: list[dict[str, Any]] = []

    async def ensure(arguments: dict[str, Any]) -> Any:
        asked.append(arguments)
        return a_fact(1).pack()

    async def execute(arguments: dict[str, Any]) -> Any:
        return RunRead(run_id=arguments["run_id"], records=b"\x00\xff", next_seq=3, gap=(1, 2)).pack()

    host.handlers = {wire.ENSURE: ensure, wire.EXECUTE: execute}
    await place.connect(host, hub)
    assert await hub.ensure(KERNEL, generation=2, want="GONE", spec=None) == a_fact(1)
    assert asked[0]["kernel_id"] == str(KERNEL.kernel_id)
    assert (asked[0]["attempt"], asked[0]["generation"], asked[0]["want"]) == (1, 2, "GONE")
    read = await hub.execute(
        KERNEL, RUN, mode="query", code="1", opts={}, timeout_seconds=None, wait_seconds=0, max_bytes=10
    )
    assert (read.records, read.gap, read.run_id) == (b"\x00\xff", (1, 2), str(RUN))


async def test_the_hosts_error_is_the_callers(place: Place) -> None:
    hub, host = await place.hub(), Host()

    async def statistics(_arguments: dict[str, Any]) -> Any:
        raise FileNotFound("No such thing.", path="p")

    host.handlers = {wire.STATISTICS: statistics}
    await place.connect(host, hub)
    with pytest.raises(FileNotFound, match="No such thing"):
        await hub.statistics(KERNEL)


async def test_a_host_that_is_not_there_is_unavailable_at_once(place: Place) -> None:
    hub = await place.hub()
    assert not hub.is_connected(HOST)
    with pytest.raises(AgentUnavailable):
        await hub.interrupt(KERNEL, None)
    with pytest.raises(AgentUnavailable):
        await hub.download(KERNEL, "f")
    with pytest.raises(AgentUnavailable):
        await hub.upload(KERNEL, "f", a_body(b"x"), size=1)
    with pytest.raises(AgentUnavailable):
        async for _ in hub.pull_image(HOST, "i"):
            pass


async def test_progress_of_a_pull_arrives_and_its_error_too(place: Place) -> None:
    hub, host = await place.hub(), Host()

    async def pull(arguments: dict[str, Any]) -> Any:
        for step in range(3):
            await place.links.progress({"pull": arguments["pull"], "current": step, "total": 3, "message": ""})
        if arguments["image"] == "bad":
            raise FileNotFound("No such image.")

    host.handlers = {wire.PULL_IMAGE: pull}
    await place.connect(host, hub)
    assert [step["current"] async for step in hub.pull_image(HOST, "good")] == [0, 1, 2]
    with pytest.raises(FileNotFound):
        async for _ in hub.pull_image(HOST, "bad"):
            pass
    await place.links.progress({"kernel_id": "k"})
    await place.manager.until(lambda: place.manager.progress == [{"kernel_id": "k"}])


async def test_a_commit_is_followed_to_its_result_and_goes_on_without_its_follower(place: Place) -> None:
    hub, host, job = await place.hub(), Host(), UUID(int=9)
    asked: list[str] = []
    never = asyncio.Event()

    async def commit(arguments: dict[str, Any]) -> Any:
        asked.append(arguments["job"])
        await place.links.progress({"pull": arguments["pull"], "current": 1, "total": 2, "message": "packing"})
        if arguments["image"] == "endless":
            await never.wait()
        return {"image_id": "sha256:1"}

    async def cancel(arguments: dict[str, Any]) -> bool:
        asked.append(f"cancel {arguments['job']}")
        return True

    host.handlers = {wire.COMMIT: commit, wire.CANCEL_JOB: cancel}
    await place.connect(host, hub)
    said = [one async for one in hub.commit(KERNEL, job, "i", {})]
    assert (said[0]["message"], said[-1]) == ("packing", {"result": {"image_id": "sha256:1"}})
    async for one in hub.commit(KERNEL, job, "endless", {}):
        assert one["current"] == 1
        break
    assert await hub.cancel_job(HOST, job)
    assert asked == [str(job), str(job), f"cancel {job}"]


async def test_a_host_is_told_the_password_for_an_image_by_a_control(place: Place) -> None:
    hub, host = await place.hub(), Host()
    await place.connect(host, hub)
    assert await place.links.credentials("k", "i") == {"username": "k", "password": "i"}
    place.manager.refuses = Unauthenticated("not this one")
    assert await place.links.credentials("k", "i") is None


# -- what hosts say ----------------------------------------------------------------------------------------------------
async def test_samples_are_told_until_they_are_taken(place: Place) -> None:
    samples = [
        Sample(kernel_id=str(KERNEL.kernel_id), attempt=1, at=float(n), seconds=5.0, cpu_seconds=n) for n in (1, 2)
    ]
    host, manager = Host(), place.manager
    hub = await place.hub()
    await place.connect(host, hub)
    manager.refuses = DatabaseUnavailable()
    host.samples = list(samples)
    await asyncio.wait_for(manager.has_refused.wait(), 10)
    assert host.samples == samples
    manager.refuses = None
    await manager.until(lambda: len(manager.samples) == 2)
    assert manager.samples == samples


async def test_devices_and_checks_of_them_are_told_until_they_are_taken(place: Place) -> None:
    devices = DeviceList(
        devices=[DeviceFact(name="gpu/a", model="H100", memory_mib=8, offered_mib=8).pack()], resources={}
    )
    checks = [DeviceCheck(check_id=str(n), device="gpu/a", phase="handover", passed=True, at=1.0) for n in range(450)]
    host, manager = Host(), place.manager
    api, control = await place.hub("api"), await place.hub("control")
    await place.connect(host, api, control)
    manager.refuses = DatabaseUnavailable()
    host.devices, host.checks = devices, list(checks)
    host.device_news.set()
    await asyncio.wait_for(manager.has_refused.wait(), 10)
    assert (host.devices, len(host.checks)) == (devices, 450)
    manager.refuses = None
    await manager.until(lambda: len(manager.checks) == 450)
    assert (manager.devices, manager.checks) == ([devices], checks)


async def test_facts_and_runs_are_told_to_a_control_process_until_it_takes_them(place: Place) -> None:
    api, control, host, manager = await place.hub("api"), await place.hub("control"), Host(), place.manager
    await place.connect(host, api, control)
    manager.refuses = DatabaseUnavailable()
    host.says(*map(a_fact, range(1, 501)), *map(a_run, range(1, 4)))
    await manager.has_refused.wait()
    assert len(host.facts) == 500
    manager.refuses = None
    async with asyncio.timeout(10):
        await host.idle.wait()
    assert [fact.seq for fact in manager.facts] == list(range(1, 501))
    assert [run.run_id for run in manager.runs] == [a_run(n).run_id for n in range(1, 4)]


async def test_what_was_not_acknowledged_is_told_to_the_manager_that_comes_back(place: Place) -> None:
    hub, host, manager = await place.hub(), Host(), place.manager
    await place.connect(host, hub)
    port = int(hub.url.rpartition(":")[2])
    await hub.close()
    host.says(a_fact(1))
    manager.hubs.clear()
    await place.hub(port=port)
    async with asyncio.timeout(10):
        await host.idle.wait()
    assert manager.facts == [a_fact(1)]
    assert len(manager.helloes) == 2


async def test_a_host_dials_the_managers_it_hears_of(place: Place) -> None:
    first, host = await place.hub(), Host()
    await place.connect(host, first)
    second = await place.hub("api")
    await first.tell_managers()
    await second.wait_until_connected({HOST}, 10)
    assert second.is_connected(HOST)


async def test_a_second_connection_of_a_host_takes_the_place_of_the_first(place: Place) -> None:
    hub = await place.hub()
    old, new = Host(), Host(boot_no=2)

    async def interrupt(_arguments: dict[str, Any]) -> bool:
        return True

    new.handlers = {wire.INTERRUPT: interrupt}
    await place.connect(old, hub)
    tls = pki.client_context(place.folder / HOST)
    links = Links([hub.url], tls, new, answering(new))
    running = asyncio.create_task(links.run())
    await place.manager.until(lambda: any(said.boot_no == 2 for said in place.manager.helloes))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    # The first dials again, and is heard again.
    await hub.wait_until_connected({HOST}, 10)
    assert hub.is_connected(HOST)


# -- bulk --------------------------------------------------------------------------------------------------------------
async def a_body(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@dataclass
class Files:
    """A host's answers to OPEN_STREAM, over files in memory."""

    tls: ssl.SSLContext
    content: dict[str, bytes] = field(default_factory=dict)
    broke: asyncio.Event = field(default_factory=asyncio.Event)

    async def open_stream(self, asked: dict[str, Any]) -> Any:
        if asked["op"] == "download" and asked["path"] not in self.content:
            raise FileNotFound
        channel = await open_channel(asked["stream"], self.tls)
        if asked["op"] == "upload":
            return await self._take(channel, asked)
        content = self.content[asked["path"]] if asked["op"] == "download" else b"tar"
        self.sending = asyncio.create_task(self._give(channel, content, whole=asked["path"] != "short"))
        return {"stat": asdict(STAT)}

    async def _take(self, channel: Channel, asked: dict[str, Any]) -> Any:
        try:
            if asked["path"] == "there":
                await anext(chunks(channel))
                raise FileExists
            self.content[asked["path"]] = b"".join([bytes(chunk) async for chunk in chunks(channel)])
            return asdict(STAT)
        except TransferFailed:
            self.broke.set()
            raise
        finally:
            await channel.close()

    async def _give(self, channel: Channel, content: bytes, *, whole: bool) -> None:
        try:
            await send_chunk(channel, content)
            if whole:
                await send_end(channel)
        except TransferFailed:
            self.broke.set()
        finally:
            await channel.close()


@pytest.fixture(params=["plain", "tls"])
async def files(place: Place, request: pytest.FixtureRequest) -> Files:
    """A host with files, connected to the first hub of the place; transfers in the clear and encrypted."""
    hub, host = await place.hub(host="127.0.0.1" if request.param == "plain" else "0.0.0.0"), Host()
    if request.param == "tls":
        hub._advertised_host = "127.0.0.1"
    tls = await place.connect(host, hub)
    made = Files(tls)
    host.handlers = {wire.OPEN_STREAM: made.open_stream}
    return made


async def test_files_arrive_whole_either_way(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]
    parts = [os.urandom(n) for n in (1, 3 << 20, 0, 70_000)]
    assert await hub.upload(KERNEL, "f", a_body(*parts), size=None) == STAT
    assert files.content["f"] == b"".join(parts)
    download = await hub.download(KERNEL, "f")
    assert download.stat == STAT
    arrived = hashlib.sha256()
    async for chunk in download:
        arrived.update(chunk)
    assert arrived.digest() == hashlib.sha256(files.content["f"]).digest()
    await download.aclose()


async def test_an_empty_file_is_a_file(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]
    await hub.upload(KERNEL, "empty", a_body(), size=0)
    assert files.content["empty"] == b""
    assert [chunk async for chunk in await hub.download(KERNEL, "empty")] == []


async def test_a_refusal_is_told_before_and_during_the_transfer(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]
    with pytest.raises(FileNotFound):
        await hub.download(KERNEL, "absent")

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        await asyncio.Event().wait()  # a client that sends nothing more, and waits for an answer

    async with asyncio.timeout(10):
        with pytest.raises(FileExists):
            await hub.upload(KERNEL, "there", endless(), size=None)


async def test_a_body_that_breaks_off_is_no_file(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        raise ConnectionResetError("the client is gone")

    async with asyncio.timeout(10):
        with pytest.raises(ConnectionResetError):
            await hub.upload(KERNEL, "f", broken(), size=None)
        await files.broke.wait()
    assert "f" not in files.content


async def test_an_upload_that_is_given_up_is_no_file(place: Place, files: Files) -> None:
    hub, began = place.manager.hubs[0], asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        began.set()
        await asyncio.Event().wait()

    uploading = asyncio.create_task(hub.upload(KERNEL, "f", slow(), size=None))
    async with asyncio.timeout(10):
        await began.wait()
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        await asyncio.wait({asyncio.create_task(files.broke.wait())}, timeout=2)
    assert "f" not in files.content


async def test_a_download_that_ends_too_early_is_an_error(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]
    files.content["short"] = bytes(100_000)
    download = await hub.download(KERNEL, "short")
    with pytest.raises(TransferFailed):
        async for _ in download:
            pass


async def test_a_download_that_is_left_stops_the_host(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]
    files.content["f"] = bytes(64 << 20)
    download = await hub.download(KERNEL, "f")
    async for _ in download:
        break
    await download.aclose()
    async with asyncio.timeout(10):
        await files.broke.wait()


async def test_connections_without_a_ticket_get_nothing(place: Place, files: Files) -> None:
    hub = place.manager.hubs[0]
    tls = pki.client_context(place.folder / HOST) if hub._landing.encrypted else None
    reader, writer = await asyncio.open_connection("127.0.0.1", hub._landing.port, ssl=tls)
    writer.write(bytes(32))
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_connections_that_show_no_ticket_are_few(
    place: Place, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.streams._MOST_UNKNOWN", 1)
    hub = place.manager.hubs[0]
    tls = pki.client_context(place.folder / HOST) if hub._landing.encrypted else None
    _, silent = await asyncio.open_connection("127.0.0.1", hub._landing.port, ssl=tls)
    reader, second = await asyncio.open_connection("127.0.0.1", hub._landing.port, ssl=tls)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    for writer in (silent, second):
        writer.close()
        await writer.wait_closed()


async def test_a_file_is_sent_from_its_descriptor(place: Place, files: Files, tmp_path: Path) -> None:
    hub, content = place.manager.hubs[0], os.urandom((2 << 20) + 7)
    path = tmp_path / "content"
    path.write_bytes(content)

    async def give(channel: Channel, _content: bytes, *, whole: bool) -> None:
        with path.open("rb") as file:
            await send_file(channel, file.fileno(), 5, len(content) - 5)
        await channel.close()

    files.content["f"], files._give = b"", give  # type: ignore[method-assign,assignment]
    arrived = b"".join([bytes(chunk) async for chunk in await hub.download(KERNEL, "f")])
    assert arrived == content[5:]


async def test_a_manager_that_has_missed_something_is_told_everything_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.hub.HEARTBEAT_SECONDS", 0.02)
    host = Host(listed=[a_fact(7), a_fact(8)])
    hub = await place.hub()
    await place.connect(host, hub)

    async def beats(more: int) -> None:
        until = len(place.manager.beats) + more
        async with asyncio.timeout(10):
            while len(place.manager.beats) < until:
                place.manager._changed.clear()
                await place.manager._changed.wait()

    await beats(5)
    assert place.manager.facts == [a_fact(7), a_fact(8)]
    host.listed = [replace(a_fact(7), observed="EXITED", seq=9), a_fact(8)]
    await beats(5)
    assert place.manager.facts[2:] == host.listed
