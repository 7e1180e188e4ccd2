"""The agent's end of its connections: dials every manager process, answers what they ask, tells what has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp

from agent import wire
from agent.rpc import Handler, Peer
from agent.streams import Channel, dial
from agent.wire import AgentHello, DeviceCheck, DeviceList, Fact, RunDone, Sample, ServiceFact, Welcome
from domain.crash import reach
from domain.elapsed import boottime
from domain.errors import AgentUnavailable, InvalidRequest, MoorageError

log = logging.getLogger("moorage.link")
_TELL_SECONDS: Final = 15.0
_MOST_AT_ONCE: Final = 200
_MOST_SAMPLES_AT_ONCE: Final = 2000
_LIST_SECONDS: Final = 60.0
_TELL_AGAIN_SECONDS: Final = 0.2
_TELL_DEVICES_AGAIN_SECONDS: Final = 1.0
#: After a manager has said that this host's certificate does not count: it will hardly say otherwise soon.
_REFUSED_PAUSE: Final = 15.0
_LONGEST_PAUSE: Final = 2.0
_CREDENTIALS_TRIES: Final = 50


class Teller(Protocol):
    """What the agent has to say. `changed` is set whenever there is something new in it."""

    changed: asyncio.Event

    async def hello(self) -> AgentHello: ...
    async def epoch_is(self, epoch: int) -> None: ...
    def inventory(self) -> Sequence[Fact]: ...
    def pending_facts(self) -> Sequence[Fact]: ...
    def facts_acknowledged(self, facts: Iterable[Fact]) -> None: ...
    def pending_runs(self) -> Sequence[RunDone]: ...
    def runs_acknowledged(self, runs: Iterable[RunDone]) -> None: ...
    @property
    def sample_seconds(self) -> float: ...
    def pending_samples(self) -> Sequence[Sample]: ...
    def samples_acknowledged(self, samples: Sequence[Sample]) -> None: ...
    def pending_services(self) -> Sequence[ServiceFact]: ...
    def services_acknowledged(self, facts: Iterable[ServiceFact]) -> None: ...
    @property
    def device_news(self) -> asyncio.Event: ...
    def pending_devices(self) -> DeviceList | None: ...
    def devices_acknowledged(self, said: DeviceList) -> None: ...
    def pending_checks(self) -> Sequence[DeviceCheck]: ...
    def checks_acknowledged(self, checks: Iterable[DeviceCheck]) -> None: ...


#: {name: (free, size)} of the disks that sessions' files and images are on, in bytes; told with every sign of life
Disks = Callable[[], Mapping[str, tuple[int, int]]]


class Connection:
    """One manager process, dialled again and again until it leaves the list."""

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        teller: Teller,
        handlers: Mapping[str, Handler],
        on_managers: Callable[[Sequence[Mapping[str, Any]]], None],
        on_welcome: Callable[[Connection, Welcome], None],
        on_answer: Callable[[float], None],
    ) -> None:
        self.url = url
        self._tls = tls
        self._teller = teller
        self._handlers = handlers
        self._on_managers = on_managers
        self._on_welcome = on_welcome
        self._on_answer = on_answer
        self.peer: Peer | None = None
        self.welcome: Welcome | None = None
        self._hurried = asyncio.Event()
        self._anew = asyncio.Event()
        self._refused = False
        self._failing = False
        self._former: set[asyncio.Task[None]] = set()
        self.disks: Disks = dict

    @property
    def is_control(self) -> bool:
        return self.peer is not None and self.welcome is not None and self.welcome.role == "control"

    async def run(self) -> None:
        pause = 0.0
        try:
            while True:
                started = asyncio.get_running_loop().time()
                if await self._until_it_ends_or_is_made_anew():
                    continue
                lasted = asyncio.get_running_loop().time() - started
                pause = 0.0 if lasted > 5.0 else min(_LONGEST_PAUSE, max(0.05, pause * 1.5))
                pause = _REFUSED_PAUSE if self._refused else pause
                await self._rest(pause * random.uniform(0.7, 1.3))  # noqa: S311 - spreads reconnections, no secret
        finally:
            for task in self._former:
                task.cancel()
            await asyncio.gather(*self._former, return_exceptions=True)

    def hurry(self) -> None:
        """It is said to be there: dial now, whatever the pause that was left."""
        self._hurried.set()

    async def _rest(self, seconds: float) -> None:
        self._hurried.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()

    def make_anew(self) -> None:
        """Dial once more, and use that connection; the one before goes on with what it is at until the manager ends it."""
        self._anew.set()

    async def _until_it_ends_or_is_made_anew(self) -> bool:
        """True when there is to be another one at once."""
        self._anew.clear()
        serving = asyncio.create_task(self._tried(), name=f"serve {self.url}")
        anew = asyncio.create_task(self._anew.wait())
        try:
            await asyncio.wait({serving, anew}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            raise
        finally:
            anew.cancel()
        if serving.done():
            serving.result()
            return False
        self._former.add(serving)
        serving.add_done_callback(self._former.discard)
        return True

    async def _tried(self) -> None:
        try:
            await self._serve()
        except aiohttp.WSServerHandshakeError as error:
            if error.status == HTTPStatus.FORBIDDEN and not self._refused:
                log.error("%s refuses this host: it was revoked or removed; a new join token brings it back", self.url)
            self._refused = error.status == HTTPStatus.FORBIDDEN
        except (aiohttp.ClientError, MoorageError, OSError, TimeoutError) as error:
            # once: a manager that has gone for good is dialled until its row has aged out
            log.log(
                logging.DEBUG if self._failing else logging.INFO, "%s does not answer: %s", self.url, _reason(error)
            )
            self._failing = True
        except Exception:  # whatever it is: a host that stops dialling is lost for good
            log.exception("the connection to the manager at %s failed", self.url)

    async def _serve(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.ws_connect(
                f"{self.url}/agent/link", ssl=self._tls, max_msg_size=wire.MAX_FRAME_BYTES, heartbeat=20.0
            ) as socket,
        ):
            peer = Peer(socket, self.url)
            for name, handler in self._handlers.items():
                peer.handle(name, self._to_here(handler) if name == wire.OPEN_STREAM else handler)
            peer.on_notice(wire.MANAGERS, lambda said: self._on_managers(said.get("managers", [])))
            self._refused = self._failing = False
            reading = asyncio.create_task(peer.run(), name=f"link {self.url}")
            try:
                said = replace(await self._teller.hello(), beside=self.peer is not None)
                sent_at = boottime()
                welcome = await _greet(peer, said)
                if welcome.epoch:
                    await self._teller.epoch_is(welcome.epoch)
                self.peer, self.welcome = peer, welcome
                if self.is_control:
                    self._on_answer(sent_at)
                self._on_managers(self.welcome.managers)
                self._on_welcome(self, self.welcome)
                log.info("connected to the %s process at %s", self.welcome.role, self.url)
                await self._beat(peer, self.welcome.heartbeat_seconds, reading)
            finally:
                if self.peer is peer:
                    self.peer = self.welcome = None
                await peer.close()
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _to_here(self, handler: Handler) -> Handler:
        """A transfer goes to where the request for it came from, by the address that this agent knows."""
        host = urlsplit(self.url).hostname or ""

        async def handle(arguments: dict[str, Any]) -> Any:
            arguments["stream"]["host"] = host
            return await handler(arguments)

        return handle

    async def _beat(self, peer: Peer, seconds: float, reading: asyncio.Task[None]) -> None:
        """Signs of life until the connection ends. Missing answers are a dead connection.

        Each carries a digest of what is there; a manager that has heard otherwise gets the whole list, as everybody
        does once a minute.
        """
        clock = asyncio.get_running_loop().time
        listed_at = clock()
        while not reading.done():
            done, _ = await asyncio.wait({reading}, timeout=seconds)
            if done:
                return
            if self.peer is not peer:  # there is another one, over which everything is told now
                continue
            sign, sent_at = {"digest": wire.digest(self._teller.inventory()), "disks": self.disks()}, boottime()
            answer = await peer.request(wire.HEARTBEAT, sign, timeout_seconds=max(10.0, 2 * seconds))
            if self.is_control:  # the others write nothing down
                self._on_answer(sent_at)
            self._on_managers(answer.get("managers", []))
            if self.is_control and (answer.get("inventory") or clock() - listed_at >= _LIST_SECONDS):
                listed_at = clock()
                everything = [fact.pack() for fact in self._teller.inventory()]
                with contextlib.suppress(MoorageError):  # it is asked for again with the next heartbeat
                    said = {"facts": everything, "complete": True}
                    await peer.request(wire.FACTS, said, timeout_seconds=_TELL_SECONDS)


class Links:
    """Connections to all managers there are. `run` goes on until it is cancelled."""

    def __init__(
        self, urls: Sequence[str], tls: ssl.SSLContext, teller: Teller, handlers: Mapping[str, Handler]
    ) -> None:
        self._tls = tls
        self._teller = teller
        self._handlers = handlers
        self._first = tuple(urls)
        self._connections: dict[str, tuple[Connection, asyncio.Task[None]]] = {}
        self._welcomed = asyncio.Event()
        self._told: Connection | None = None
        self._runs_ended = asyncio.Event()
        #: called with the list of managers' addresses whenever it changes, to be remembered for the next start
        self.on_urls: Callable[[Sequence[str]], None] = lambda _urls: None
        #: called with the time (of runner.lease.boottime) at which a control process was sent what it has answered
        self.on_answer: Callable[[float], None] = lambda _sent_at: None
        #: called with the hosts and addresses of those who run Moorage, whenever they are told
        self.on_addresses: Callable[[Collection[str]], None] = lambda _addresses: None
        self.disks: Disks = dict
        #: called with the authorities that a manager says are to be trusted, at every welcome
        self.on_authorities: Callable[[str], None] = lambda _bundle: None

    async def run(self) -> None:
        self._dial(self._first)
        telling_runs = asyncio.create_task(self._tell_runs(), name="tell runs")
        telling_devices = asyncio.create_task(self._tell_devices(), name="tell devices")
        telling_samples = asyncio.create_task(self._tell_samples(), name="tell samples")
        try:
            await self._tell()
        finally:
            tasks = [telling_runs, telling_devices, telling_samples, *(task for _, task in self._connections.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        return any(connection.peer is not None for connection, _ in self._connections.values())

    async def progress(self, said: dict[str, Any]) -> None:
        """To everybody: only who asked for it listens."""
        for connection, _ in list(self._connections.values()):
            if connection.peer is not None:
                with contextlib.suppress(MoorageError):
                    await connection.peer.notify(wire.PROGRESS, said)

    async def credentials(self, kernel_id: str, image: str) -> dict[str, str] | None:
        """With which the kernel's image is fetched from its registry; asked for at that moment, and kept nowhere.

        A manager that is away for a moment is waited for: without credentials the session would fail.
        """
        said = {"kernel_id": kernel_id, "image": image}
        for _ in range(_CREDENTIALS_TRIES):
            if (control := self._control()) is not None:
                try:
                    answer: dict[str, str] | None
                    answer = await control.request(wire.CREDENTIALS, said, timeout_seconds=_TELL_SECONDS)
                    return answer
                except AgentUnavailable:
                    log.info("the manager was lost while it was asked for credentials")
                except MoorageError as error:
                    log.warning("no credentials for %s were told: %s", image, error)
                    return None
            await asyncio.sleep(_TELL_AGAIN_SECONDS)
        return None

    async def renew(self, request_pem: str) -> dict[str, Any] | None:
        """A new certificate of ours and the authorities to trust, from any manager; None while there is none."""
        for connection, _ in list(self._connections.values()):
            if connection.peer is not None:
                answer = await connection.peer.request(wire.RENEW, {"csr": request_pem}, timeout_seconds=_TELL_SECONDS)
                return dict(answer)
        return None

    def _disks(self) -> Mapping[str, tuple[int, int]]:
        return self.disks()

    def make_anew(self) -> None:
        """All connections, one beside the other: what runs over them is not cut short."""
        for connection, _ in self._connections.values():
            connection.make_anew()

    def _dial(self, urls: Iterable[str]) -> None:
        for url in urls:
            if url not in self._connections:
                connection = Connection(
                    url,
                    self._tls,
                    self._teller,
                    self._handlers,
                    self._managers_are,
                    self._welcomed_by,
                    lambda sent_at: self.on_answer(sent_at),  # noqa: PLW0108 - it is set later
                )
                connection.disks = self._disks
                self._connections[url] = connection, asyncio.create_task(connection.run(), name=f"dial {url}")

    def _managers_are(self, managers: Sequence[Mapping[str, Any]]) -> None:
        """Dial who is new; let go of who is gone, unless the connection still works. An empty list says nothing."""
        urls = [str(manager["url"]) for manager in managers if str(manager.get("url", "")).startswith("https://")]
        if not urls:
            return
        closed = (str(address) for manager in managers for address in manager.get("closed") or ())
        self.on_addresses({*(urlsplit(url).hostname or "" for url in urls), *closed})
        known = set(self._connections)
        for url in known.intersection(urls):
            if self._connections[url][0].peer is None:
                self._connections[url][0].hurry()
        self._dial(urls)
        for url in known - set(urls) - set(self._first):
            connection, task = self._connections[url]
            if connection.peer is None:
                del self._connections[url]
                task.cancel()
        if set(urls) != known:
            self.on_urls(urls)

    def _welcomed_by(self, _connection: Connection, welcome: Welcome) -> None:
        self._welcomed.set()
        if welcome.authorities:
            self.on_authorities(welcome.authorities)
        self._teller.changed.set()
        self._teller.device_news.set()

    async def _tell(self) -> None:
        """Facts, the moment there are any, to one control process; again until it acknowledges."""
        while True:
            await self._teller.changed.wait()
            self._teller.changed.clear()
            if (control := self._control()) is None:
                self._welcomed.clear()
                await self._welcomed.wait()
                self._teller.changed.set()
                continue
            if self._teller.pending_runs():
                self._runs_ended.set()
            try:
                while facts := list(self._teller.pending_facts())[:_MOST_AT_ONCE]:
                    said = {"facts": [fact.pack() for fact in facts]}
                    await control.request(wire.FACTS, said, timeout_seconds=_TELL_SECONDS)
                    reach("agent.told.facts")
                    self._teller.facts_acknowledged(facts)
                while services := list(self._teller.pending_services())[:_MOST_AT_ONCE]:
                    said = {"services": [fact.pack() for fact in services]}
                    await control.request(wire.SERVICES, said, timeout_seconds=_TELL_SECONDS)
                    reach("agent.told.services")
                    self._teller.services_acknowledged(services)
            except MoorageError as error:
                log.warning("the manager did not take what it was told (%s); telling it again", error)
                await asyncio.sleep(_TELL_AGAIN_SECONDS)
                self._teller.changed.set()

    async def _tell_runs(self) -> None:
        """Ends of runs, beside the facts: nobody waits for them as for those."""
        while True:
            await self._runs_ended.wait()
            self._runs_ended.clear()
            try:
                while (control := self._control()) and (runs := list(self._teller.pending_runs())[:_MOST_AT_ONCE]):
                    said = {"runs": [run.pack() for run in runs]}
                    await control.request(wire.RUNS_DONE, said, timeout_seconds=_TELL_SECONDS)
                    reach("agent.told.runs")
                    self._teller.runs_acknowledged(runs)
            except MoorageError as error:
                log.warning("the manager did not take the ends of runs (%s); telling it again", error)
                await asyncio.sleep(_TELL_AGAIN_SECONDS)
                self._runs_ended.set()

    async def _tell_devices(self) -> None:
        """How devices are, and what checks of them found. A manager that takes neither holds up nothing else."""
        while True:
            await self._teller.device_news.wait()
            self._teller.device_news.clear()
            try:
                while (control := self._control()) and (devices := self._teller.pending_devices()) is not None:
                    await control.request(wire.DEVICES, devices.pack(), timeout_seconds=_TELL_SECONDS)
                    self._teller.devices_acknowledged(devices)
                while (control := self._control()) and (checks := list(self._teller.pending_checks())[:_MOST_AT_ONCE]):
                    said = {"checks": [check.pack() for check in checks]}
                    await control.request(wire.DEVICE_CHECKS, said, timeout_seconds=_TELL_SECONDS)
                    self._teller.checks_acknowledged(checks)
            except MoorageError as error:
                log.warning("the manager did not take what it was told of devices (%s); telling it again", error)
                await asyncio.sleep(_TELL_DEVICES_AGAIN_SECONDS)
                self._teller.device_news.set()

    async def _tell_samples(self) -> None:
        """In batches, in the rhythm in which they are taken. Nobody waits for them, and what is not taken is told again."""
        while True:
            await asyncio.sleep(min(self._teller.sample_seconds, _LIST_SECONDS) / 2)
            try:
                while (control := self._control()) and (pending := self._teller.pending_samples()):
                    samples = pending[:_MOST_SAMPLES_AT_ONCE]
                    said = {"samples": [sample.pack() for sample in samples]}
                    await control.request(wire.SAMPLES, said, timeout_seconds=_TELL_SECONDS)
                    reach("agent.told.samples")
                    self._teller.samples_acknowledged(samples)
            except MoorageError as error:
                log.debug("the manager did not take the samples (%s); telling them again", error)

    def _control(self) -> Peer | None:
        """The one that was told last, as long as it is there."""
        if self._told is None or not self._told.is_control:
            controls = [connection for connection, _ in self._connections.values() if connection.is_control]
            self._told = random.choice(controls) if controls else None  # noqa: S311 - spreads the load, no secret
        return self._told.peer if self._told is not None else None


def _reason(error: Exception) -> object:
    """Without the options of the connection, which aiohttp puts in front."""
    return error.os_error.strerror or error if isinstance(error, aiohttp.ClientConnectorError) else error


async def _greet(peer: Peer, said: AgentHello) -> Welcome:
    """A manager of the release before knows nothing of newer protocols, and refuses them: it is spoken to in its own."""
    try:
        answer = await peer.request(wire.HELLO, said.pack(), timeout_seconds=30.0)
    except InvalidRequest:
        if said.protocol <= wire.OLDEST_PROTOCOL:
            raise
        older = replace(said, protocol=wire.OLDEST_PROTOCOL)
        answer = await peer.request(wire.HELLO, older.pack(), timeout_seconds=30.0)
    return Welcome.unpack(answer)


async def open_channel(stream: Mapping[str, Any], tls: ssl.SSLContext) -> Channel:
    """Dial the connection for one transfer, as the `stream` of an OPEN_STREAM request says."""
    return await dial(str(stream["host"]), int(stream["port"]), bytes(stream["ticket"]), tls if stream["tls"] else None)
