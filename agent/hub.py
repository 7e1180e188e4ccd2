"""The manager's end of the agents' connections: who may connect, what is asked of them, what they say.

Listed with `agent.client`, `agent.wire` and `agent.rpc` as what the manager side may know of agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

from aiohttp import web

from agent import pki, wire
from agent.client import Download, FilePage, FileStat, KernelAddress, Place, Process, VolumeAddress
from agent.hearing import Malformed, all_shaped, is_info, is_modest, is_plain, shaped
from agent.process import StreamedProcess
from agent.rpc import Handler, Peer
from agent.streams import TICKET_SECONDS, Channel, Landing, PlainChannel, chunks, send_chunk, send_end
from agent.tunnel import Handover, as_socket, streams_of
from agent.wire import (
    AgentHello,
    DeviceCheck,
    DeviceList,
    Fact,
    KernelSpec,
    ProcessSpec,
    RunDone,
    RunRead,
    Sample,
    ServiceFact,
    ServiceSpec,
    Welcome,
)
from domain.errors import (
    AgentUnavailable,
    InvalidRequest,
    MoorageError,
    TooManyRequests,
    TransferFailed,
    Unauthenticated,
)
from domain.ids import AgentId, KernelId, RunId

T = TypeVar("T")
log = logging.getLogger("moorage.agents")
#: Asking and answering take milliseconds; a host that is slower than this is in trouble.
CALL_SECONDS: Final = 15.0
#: Listing and managing files walks folders of the user's.
FILES_SECONDS: Final = 60.0
HEARTBEAT_SECONDS: Final = 5.0
LEASE_SECONDS: Final = 30.0
#: Of a pull, a push or a commit.
_JOB_SECONDS: Final = 6 * 3600.0
#: Between the last byte of an upload and the word that it is on disk.
_WRITTEN_SECONDS: Final = 300.0
_HELLO_SECONDS: Final = 30.0
#: A connection beside which its agent has made another ends when nobody waits for anything over it, or after so long.
_RETIRE_SECONDS: Final = 3000.0
_MOST_RETIRING: Final = 4
#: Notices of progress that wait to be written; the next one says the same.
_MOST_BACKGROUND: Final = 10_000
DISKS: Final = ("sessions", "engine")
#: Facts, runs, samples in one message; agents send fewer.
_MOST_AT_ONCE: Final = 20_000
_MAX_JOIN_BYTES: Final = 64 * 1024
_REFUSED_JOINS_PER_MINUTE: Final = 30


class Callbacks(Protocol):
    """What a manager does with what agents say. What returns is acknowledged; what raises is told again."""

    async def is_known(self, agent_id: AgentId, fingerprint: str) -> bool: ...
    async def trusted(self, shown: Sequence[tuple[AgentId, str]]) -> Collection[tuple[AgentId, str]]:
        """Of certificates on open connections, those that still count."""
        ...

    async def enrol(self, secret: str, agent_id: AgentId, fingerprint: str) -> None: ...
    async def renewing(self, agent_id: AgentId, fingerprint: str) -> None: ...
    async def refused(self, agent_id: AgentId, action: str, target: str) -> None:
        """An agent spoke of what is not its own, and was not heard: for the audit."""
        ...

    async def managers(self) -> list[dict[str, Any]]: ...
    async def on_hello(self, said: AgentHello) -> int | None:
        """The epoch of the database, from who writes down what agents say."""
        ...

    async def on_heartbeat(self, agent_id: AgentId) -> None: ...
    async def on_facts(self, agent_id: AgentId, facts: Sequence[Fact]) -> None: ...
    async def on_runs_done(self, agent_id: AgentId, runs: Sequence[RunDone]) -> None: ...
    async def on_progress(self, agent_id: AgentId, said: dict[str, Any]) -> None: ...
    async def credentials(self, agent_id: AgentId, kernel_id: str, image: str) -> dict[str, str] | None: ...
    async def on_samples(self, agent_id: AgentId, samples: Sequence[Sample]) -> None: ...
    async def on_services(self, agent_id: AgentId, facts: Sequence[ServiceFact]) -> None: ...
    async def on_devices(self, agent_id: AgentId, said: DeviceList) -> None: ...
    async def on_device_checks(self, agent_id: AgentId, checks: Sequence[DeviceCheck]) -> None: ...


@web.middleware
async def _tell_no_methods(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Who shows no certificate is not told what else an address would take."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed:
        raise web.HTTPUnauthorized(text="agents show their certificate") from None


@dataclass(frozen=True, slots=True)
class Shown:
    """The certificate of a connection."""

    agent_id: AgentId
    fingerprint: str
    ends_at: datetime


class AgentHub:
    """`start` before use. Implements `agent.client.AgentClient` over the connections that agents have made to this process."""

    def __init__(
        self,
        manager_id: UUID,
        role: str,
        *,
        tls: ssl.SSLContext,
        ca_dir: Path,
        host: str,
        port: int,
        callbacks: Callbacks,
        advertised_host: str | None = None,
        data_port: int = 0,
    ) -> None:
        self.manager_id = manager_id
        self._role = role
        self._tls = tls
        self._ca_dir = ca_dir
        self._host = host
        self._port = port
        self._advertised_host = advertised_host or host
        self._callbacks = callbacks
        self._landing = Landing(host, data_port, tls)
        self._handover = Handover(lambda ticket, sock: self._landing.landed(ticket, PlainChannel(sock)))
        self._peers: dict[AgentId, Peer] = {}
        self._shown: dict[Peer, Shown] = {}  #: of all connections, retiring ones too
        self._retiring: set[Peer] = set()
        self._disks: dict[str, dict[str, tuple[int, int]]] = {}
        self._pulls: dict[str, tuple[AgentId, asyncio.Queue[dict[str, Any] | None]]] = {}  #: None: the answer is there
        self._background: set[asyncio.Task[Any]] = set()
        self._refused_joins: list[float] = []
        self._dug: WeakKeyDictionary[socket.socket, KernelId] = WeakKeyDictionary()
        self._dug_lately: set[KernelId] = set()
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Event()

    # -- the listener ----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        await self._landing.start()
        self._handover.start()
        app = web.Application(client_max_size=_MAX_JOIN_BYTES, middlewares=[_tell_no_methods])
        app.add_routes(
            [
                web.get("/agent/ca", self._show_authority),
                web.post("/agent/join", self._join),
                web.get("/agent/link", self._link),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        for peer in list(self._peers.values()):
            await peer.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._handover.close()
        await self._landing.close()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    @property
    def url(self) -> str:
        host = f"[{self._advertised_host}]" if ":" in self._advertised_host else self._advertised_host
        return f"https://{host}:{self._port}"

    async def _show_authority(self, _request: web.Request) -> web.Response:
        return web.Response(body=(self._ca_dir / "ca.pem").read_bytes(), content_type="application/x-pem-file")

    def _authorities(self) -> str | None:
        try:
            return pki.authorities(self._ca_dir).decode()
        except FileNotFoundError:
            return None

    async def _join(self, request: web.Request) -> web.Response:
        """One-time secret and request in, certificate out. Says nothing more to who guesses, and not often."""
        try:
            now = asyncio.get_running_loop().time()
            self._refused_joins = [at for at in self._refused_joins if now - at < 60.0]
            if len(self._refused_joins) >= _REFUSED_JOINS_PER_MINUTE:
                raise TooManyRequests
            try:
                return web.json_response(await self._joined(request))
            except MoorageError:
                self._refused_joins.append(now)
                raise
        except MoorageError as error:
            return web.json_response({"code": error.code, "message": error.message}, status=error.http_status)

    async def _joined(self, request: web.Request) -> dict[str, Any]:
        try:
            body = await request.json()
            secret, agent_id, csr = str(body["secret"]), str(body["agent_id"]), str(body["csr"])
            wire.check_agent_id(agent_id)
        except (ValueError, LookupError, TypeError) as error:
            raise InvalidRequest("This is not a request to join.") from error
        certificate, fingerprint = pki.sign_request(self._ca_dir, csr.encode(), agent_id)
        await self._callbacks.enrol(secret, AgentId(agent_id), fingerprint)
        log.info("agent %s has joined", agent_id)
        return {"certificate": certificate.decode(), "managers": await self._callbacks.managers()}

    async def _link(self, request: web.Request) -> web.StreamResponse:
        """An agent's connection, for as long as it lasts and its certificate counts."""
        shown = await self._identity(request)
        agent_id = shown.agent_id
        socket = web.WebSocketResponse(max_msg_size=wire.MAX_FRAME_BYTES, heartbeat=20.0, compress=False, autoping=True)
        await socket.prepare(request)
        peer = Peer(socket, str(agent_id))
        self._shown[peer] = shown
        try:
            async with asyncio.timeout(_HELLO_SECONDS) as silence:
                self._listen_to(peer, agent_id, greeted=lambda: silence.reschedule(None))
                await peer.run()
        except TimeoutError:
            log.warning("agent %s connected, and said nothing", agent_id)
        finally:
            del self._shown[peer]
            self._retiring.discard(peer)
            if self._peers.get(agent_id) is peer:
                del self._peers[agent_id]
                self._disks.pop(agent_id, None)
                log.warning("agent %s is not connected any more", agent_id)
        return socket

    async def _identity(self, request: web.Request) -> Shown:
        transport = request.transport
        secured = transport.get_extra_info("ssl_object") if transport is not None else None
        certificate = secured.getpeercert(binary_form=True) if secured is not None else None
        if not certificate:
            raise web.HTTPUnauthorized(text="agents show their certificate")
        agent_id = AgentId(pki.common_name(certificate))
        shown = Shown(agent_id, pki.fingerprint(certificate), pki.ends_at(certificate))
        if not await self._callbacks.is_known(agent_id, shown.fingerprint):
            log.warning("a certificate that names agent %s does not count, or not any more", agent_id)
            await self._callbacks.refused(agent_id, "connect_agent", f"certificate {shown.fingerprint[:16]}")
            raise web.HTTPForbidden(text="this certificate is not the agent's, or not any more")
        return shown

    async def check_trust(self) -> None:
        """End the connections, and what runs over them, of agents whose certificates do not count any more."""
        shown = {peer: (one.agent_id, one.fingerprint) for peer, one in self._shown.items()}
        if not shown:
            return
        counting, now = await self._callbacks.trusted(list(set(shown.values()))), datetime.now(UTC)
        for peer, one in shown.items():
            if peer in self._shown and (one not in counting or self._shown[peer].ends_at < now):
                log.warning("the certificate of agent %s does not count any more; its connection ends", one[0])
                await peer.close()
                if one not in counting:
                    self._landing.cut(one[0])

    def _listen_to(self, peer: Peer, agent_id: AgentId, greeted: Callable[[], None]) -> None:
        def check_greeted() -> None:
            if self._peers.get(agent_id) is not peer and peer not in self._retiring:
                raise Unauthenticated("A connection begins with hello.")

        heard: dict[str, Fact] = {}  #: over this connection: the newest of each kernel

        def hear(facts: Iterable[Fact], *, complete: bool = False) -> None:
            if complete:
                heard.clear()
            for fact in facts:
                before = heard.get(fact.kernel_id)
                if before is None or (before.boot_no, before.seq) <= (fact.boot_no, fact.seq):
                    heard[fact.kernel_id] = fact
                if heard[fact.kernel_id].observed == "GONE":
                    del heard[fact.kernel_id]

        async def several(kind: type[T], said: object) -> list[T]:
            """What makes sense of a list; the rest is on record, and not told again."""
            good, bad = all_shaped(kind, said, most=_MOST_AT_ONCE)
            if bad:
                await self._callbacks.refused(agent_id, "speak", f"malformed: {bad} of {kind.__name__}")
            return good

        async def hello(arguments: dict[str, Any]) -> dict[str, Any]:
            said = shaped(AgentHello, arguments)
            if said.agent_id != agent_id:
                await self._callbacks.refused(agent_id, "hello", f"agent {said.agent_id[:64]}")
                raise Unauthenticated("The agent names itself otherwise than its certificate.")
            protocol = wire.common_protocol(said)
            if not is_modest(said):
                raise Malformed("What the agent says of its host is more than there can be.")
            facts = await several(Fact, said.facts)
            epoch = await self._callbacks.on_hello(replace(said, facts=[fact.pack() for fact in facts]))
            hear(facts, complete=True)
            if (former := self._peers.get(agent_id)) is not None and former is not peer:
                if (
                    said.beside
                    and sum(self._shown[one].agent_id == agent_id for one in self._retiring) < _MOST_RETIRING
                ):
                    self._retiring.add(former)
                    self._spawn(former.retire(_RETIRE_SECONDS))
                else:
                    await former.close()
            self._peers[agent_id] = peer
            self._changed.set()
            greeted()
            log.info("agent %s is connected (boot %d)", agent_id, said.boot_no)
            return Welcome(
                manager_id=str(self.manager_id),
                role=self._role,
                managers=await self._callbacks.managers(),
                heartbeat_seconds=HEARTBEAT_SECONDS,
                lease_seconds=LEASE_SECONDS,
                protocol=protocol,
                epoch=epoch or 0,
                authorities=self._authorities(),
            ).pack()

        async def heartbeat(arguments: dict[str, Any]) -> dict[str, Any]:
            await self._callbacks.on_heartbeat(agent_id)
            self._disks[agent_id] = _disks(arguments.get("disks"))
            differs = arguments.get("digest") not in (None, wire.digest(heard.values()))
            return {"managers": await self._callbacks.managers(), "inventory": differs}

        async def facts(arguments: dict[str, Any]) -> None:
            said = await several(Fact, arguments["facts"])
            await self._callbacks.on_facts(agent_id, said)
            hear(said, complete=bool(arguments.get("complete")))

        async def runs_done(arguments: dict[str, Any]) -> None:
            await self._callbacks.on_runs_done(agent_id, await several(RunDone, arguments["runs"]))

        async def samples(arguments: dict[str, Any]) -> None:
            await self._callbacks.on_samples(agent_id, await several(Sample, arguments["samples"]))

        async def services(arguments: dict[str, Any]) -> None:
            await self._callbacks.on_services(agent_id, await several(ServiceFact, arguments["services"]))

        async def devices(arguments: dict[str, Any]) -> None:
            said = shaped(DeviceList, arguments)
            if not is_modest(said):
                raise Malformed("These are more devices than a host can have.")
            await self._callbacks.on_devices(agent_id, said)

        async def device_checks(arguments: dict[str, Any]) -> None:
            await self._callbacks.on_device_checks(agent_id, await several(DeviceCheck, arguments["checks"]))

        async def credentials(arguments: dict[str, Any]) -> dict[str, str] | None:
            return await self._callbacks.credentials(agent_id, str(arguments["kernel_id"]), str(arguments["image"]))

        async def renew(arguments: dict[str, Any]) -> dict[str, str]:
            certificate, fingerprint = pki.sign_request(self._ca_dir, str(arguments["csr"]).encode(), agent_id)
            await self._callbacks.renewing(agent_id, fingerprint)
            log.info("agent %s renews its certificate", agent_id)
            return {"certificate": certificate.decode(), "authorities": self._authorities() or ""}

        def progress(said: dict[str, Any]) -> None:
            check_greeted()
            owner, queue = self._pulls.get(str(said.get("pull")), (None, None))
            if len(self._background) >= _MOST_BACKGROUND or not is_info(said):
                return
            if queue is not None and owner == agent_id:
                with contextlib.suppress(asyncio.QueueFull):  # progress is worth nothing once it is old
                    queue.put_nowait(said)
            elif queue is not None:
                self._spawn(self._callbacks.refused(agent_id, "report_progress", f"work of agent {owner}"))
            elif said.get("kernel_id"):
                self._spawn(self._callbacks.on_progress(agent_id, said))

        def heard_out(name: str, handler: Handler) -> Handler:
            """After hello only; what makes no sense is refused in one sentence, and on record."""

            async def handle(arguments: dict[str, Any]) -> Any:
                if name != wire.HELLO:
                    check_greeted()
                try:
                    return await handler(arguments)
                except Malformed as error:
                    await self._callbacks.refused(agent_id, "speak", f"malformed: {name}")
                    raise InvalidRequest(str(error)) from None
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    log.warning("what agent %s said with %s makes no sense: %r", agent_id, name, error)
                    await self._callbacks.refused(agent_id, "speak", f"malformed: {name}")
                    raise InvalidRequest(f"What was said with '{name}' makes no sense.") from None

            return handle

        for name, handler in (
            (wire.HELLO, hello),
            (wire.HEARTBEAT, heartbeat),
            (wire.FACTS, facts),
            (wire.RUNS_DONE, runs_done),
            (wire.SAMPLES, samples),
            (wire.CREDENTIALS, credentials),
            (wire.RENEW, renew),
            (wire.SERVICES, services),
            (wire.DEVICES, devices),
            (wire.DEVICE_CHECKS, device_checks),
        ):
            peer.handle(name, heard_out(name, handler))
        peer.on_notice(wire.PROGRESS, progress)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("in the background: %r", task.exception())

    # -- who is there ----------------------------------------------------------------------------------------------------
    def connected(self) -> Collection[AgentId]:
        return self._peers.keys()

    def is_connected(self, agent_id: AgentId) -> bool:
        return agent_id in self._peers

    def disks(self) -> Mapping[str, Mapping[str, tuple[int, int]]]:
        """{disk: (free, size)} in bytes, of each connected agent, as its last sign of life said."""
        return dict(self._disks)

    async def wait_until_connected(self, agents: Collection[AgentId], seconds: float) -> None:
        """Until all of these are connected, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not set(agents) <= self._peers.keys():
                    self._changed.clear()
                    await self._changed.wait()

    async def tell_managers(self) -> None:
        """Let every connected agent know at once which managers there are to dial."""
        managers = await self._callbacks.managers()
        for peer in list(self._peers.values()):
            with contextlib.suppress(MoorageError):
                await peer.notify(wire.MANAGERS, {"managers": managers})

    def _peer(self, agent_id: AgentId) -> Peer:
        if (peer := self._peers.get(agent_id)) is None:
            raise AgentUnavailable(agent=str(agent_id))
        return peer

    async def _ask(self, where: Place, name: str, arguments: dict[str, Any], *, seconds: float = CALL_SECONDS) -> Any:
        if isinstance(where, VolumeAddress):
            arguments["volume"] = where.pack()
        else:
            arguments["kernel_id"] = str(where.kernel_id)
            arguments["attempt"] = where.attempt
        return await self._peer(where.agent_id).request(name, arguments, timeout_seconds=seconds)

    # -- AgentClient -----------------------------------------------------------------------------------------------------
    async def ensure(
        self, where: KernelAddress, *, generation: int, want: str, spec: KernelSpec | None, grace_seconds: float = 10.0
    ) -> Fact:
        arguments = {
            "generation": generation,
            "want": want,
            "spec": spec.pack() if spec is not None else None,
            "grace_seconds": grace_seconds,
        }
        return _made(Fact, await self._ask(where, wire.ENSURE, arguments))

    async def execute(
        self,
        where: KernelAddress,
        run_id: RunId,
        *,
        mode: str,
        code: str,
        opts: dict[str, Any],
        timeout_seconds: float | None,
        wait_seconds: float,
        max_bytes: int,
    ) -> RunRead:
        arguments = {
            "run_id": str(run_id),
            "mode": mode,
            "code": code,
            "opts": opts,
            "timeout_seconds": timeout_seconds,
            "wait_seconds": wait_seconds,
            "max_bytes": max_bytes,
        }
        return _run_read(await self._ask(where, wire.EXECUTE, arguments, seconds=wait_seconds + CALL_SECONDS))

    async def read(
        self, where: KernelAddress, run_id: RunId | str, *, from_seq: int, max_bytes: int, wait_seconds: float
    ) -> RunRead:
        arguments = {
            "run_id": str(run_id),
            "from_seq": from_seq,
            "max_bytes": max_bytes,
            "wait_seconds": wait_seconds,
        }
        return _run_read(await self._ask(where, wire.READ, arguments, seconds=wait_seconds + CALL_SECONDS))

    async def send_input(
        self, where: KernelAddress, run_id: RunId, data: bytes, *, eof: bool = False, key: UUID | None = None
    ) -> None:
        await self._ask(where, wire.INPUT, {"run_id": str(run_id), "data": data, "eof": eof, "key": _text(key)})

    async def interrupt(self, where: KernelAddress, run_id: RunId | None) -> bool:
        return bool(await self._ask(where, wire.INTERRUPT, {"run_id": str(run_id) if run_id else None}))

    async def kill(self, where: KernelAddress, run_id: RunId, grace_seconds: float | None = None) -> bool:
        return bool(await self._ask(where, wire.KILL, {"run_id": str(run_id), "grace_seconds": grace_seconds}))

    async def complete(
        self, where: KernelAddress, *, code: str, row: int, col: int, line: str, post: str
    ) -> dict[str, Any]:
        arguments = {"code": code, "row": row, "col": col, "line": line, "post": post}
        return _map(await self._ask(where, wire.COMPLETE, arguments))

    async def state(
        self, where: KernelAddress, do: str, name: str | None = None, value: Any = None, *, key: UUID | None = None
    ) -> dict[str, Any]:
        asked = {"do": do, "name": name, "value": value, "key": _text(key)}
        return _map(await self._ask(where, wire.STATE, asked, seconds=FILES_SECONDS))

    async def list_files(self, where: Place, path: str, *, cursor: str | None, limit: int) -> FilePage:
        page = await self._ask(
            where, wire.LIST_FILES, {"path": path, "cursor": cursor, "limit": limit}, seconds=FILES_SECONDS
        )
        if not isinstance(page, dict) or not isinstance(page.get("next_cursor"), str | None):
            raise _senseless()
        return FilePage(
            files=[_made(FileStat, stat) for stat in _list(page.get("files"))], next_cursor=page["next_cursor"]
        )

    async def manage_file(
        self, where: Place, op: str, arguments: dict[str, Any], *, key: UUID | None = None
    ) -> FileStat | None:
        asked = {"op": op, "arguments": arguments, "key": _text(key)}
        stat = await self._ask(where, wire.MANAGE_FILE, asked, seconds=FILES_SECONDS)
        return _made(FileStat, stat) if stat is not None else None

    async def statistics(self, where: KernelAddress) -> dict[str, Any]:
        return _map(await self._ask(where, wire.STATISTICS, {}))

    async def pull_image(
        self, agent_id: AgentId, image: str, auth: dict[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        async for said in self._followed(agent_id, wire.PULL_IMAGE, {"image": image, "auth": auth}):
            if "result" not in said:
                yield said

    def push_image(
        self, agent_id: AgentId, job: UUID, image: str, auth: dict[str, str] | None
    ) -> AsyncIterator[dict[str, Any]]:
        return self._followed(agent_id, wire.PUSH_IMAGE, {"job": str(job), "image": image, "auth": auth})

    def commit(
        self, where: KernelAddress, job: UUID, image: str, labels: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        arguments: dict[str, Any] = {"job": str(job), "image": image, "labels": labels}
        arguments |= {"kernel_id": str(where.kernel_id), "attempt": where.attempt}
        return self._followed(where.agent_id, wire.COMMIT, arguments)

    async def volume_usage(self, where: VolumeAddress) -> dict[str, int]:
        return _map(await self._ask(where, wire.VOLUME_USAGE, {}, seconds=FILES_SECONDS))

    def clone_volume(self, where: VolumeAddress, job: UUID, source: UUID) -> AsyncIterator[dict[str, Any]]:
        arguments = {"job": str(job), "volume": where.pack(), "source": str(source)}
        return self._followed(where.agent_id, wire.CLONE_VOLUME, arguments)

    def remove_volume(self, where: VolumeAddress, job: UUID) -> AsyncIterator[dict[str, Any]]:
        return self._followed(where.agent_id, wire.REMOVE_VOLUME, {"job": str(job), "volume": where.pack()})

    async def cancel_job(self, agent_id: AgentId, job: UUID) -> bool:
        asked = self._peer(agent_id).request(wire.CANCEL_JOB, {"job": str(job)}, timeout_seconds=FILES_SECONDS)
        return bool(await asked)

    async def census(self, agent_id: AgentId) -> dict[str, Any]:
        return _map(await self._peer(agent_id).request(wire.CENSUS, {}, timeout_seconds=FILES_SECONDS))

    async def list_images(self, agent_id: AgentId) -> list[dict[str, Any]]:
        return [
            _map(one)
            for one in _list(await self._peer(agent_id).request(wire.LIST_IMAGES, {}, timeout_seconds=FILES_SECONDS))
        ]

    async def remove_image(self, agent_id: AgentId, image: str, *, job: UUID | None = None) -> bool:
        arguments = {"image": image, "job": str(job) if job else None}
        return bool(await self._peer(agent_id).request(wire.REMOVE_IMAGE, arguments, timeout_seconds=FILES_SECONDS))

    async def _followed(self, agent_id: AgentId, what: str, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Ask for long work: its progress, and at last {"result": the answer}."""
        name, peer = uuid4().hex, self._peer(agent_id)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(64)
        self._pulls[name] = agent_id, queue
        asked = self._spawn(peer.request(what, {**arguments, "pull": name}, timeout_seconds=_JOB_SECONDS))
        asked.add_done_callback(lambda _: queue.put_nowait(None) if not queue.full() else None)
        try:
            # What has arrived is told to its end, also when the answer has come meanwhile.
            while not (asked.done() and queue.empty()):
                if (said := await queue.get()) is not None:
                    yield said
            yield {"result": await asked}
        finally:
            del self._pulls[name]
            asked.cancel()

    # -- bulk ------------------------------------------------------------------------------------------------------------
    async def upload(
        self,
        where: Place,
        path: str,
        body: AsyncIterator[bytes],
        *,
        size: int | None,
        mode: int | None = None,
        overwrite: bool = True,
        sha256: str | None = None,
    ) -> FileStat:
        arguments = {"op": "upload", "path": path, "size": size, "mode": mode, "overwrite": overwrite, "sha256": sha256}
        return _made(FileStat, await self._send(where, arguments, body))

    async def unpack(
        self, where: Place, path: str, body: AsyncIterator[bytes], *, size: int | None, overwrite: bool = True
    ) -> dict[str, int]:
        arguments = {"op": "unpack", "path": path, "size": size, "overwrite": overwrite}
        return _map(await self._send(where, arguments, body))

    async def _send(self, where: Place, arguments: dict[str, Any], body: AsyncIterator[bytes]) -> dict[str, Any]:
        with self._landing.expecting(where.agent_id) as (ticket, landed):
            asked = self._spawn(self._open_stream(where, arguments, ticket, seconds=86400.0))
            try:
                channel = await _landed(landed, asked)
                if channel is not None:
                    await self._pump(channel, body, asked)
                return _map(await asked)
            finally:
                asked.cancel()

    async def _pump(self, channel: Channel, body: AsyncIterator[bytes], asked: asyncio.Task[Any]) -> None:
        """Until the body is through, or the agent has refused the rest of it: its answer then says why.

        When the body itself breaks off, closing the connection at once is what tells the agent.
        """
        sending = self._spawn(_send_body(channel, body))
        try:
            await asyncio.wait({sending, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                return
            if (error := sending.exception()) is None:
                await asyncio.wait({asked}, timeout=_WRITTEN_SECONDS)
                return
            await channel.close()
            if not isinstance(error, TransferFailed):
                raise error
            # The agent's own word on it comes over the other connection.
            await asyncio.wait({asked}, timeout=CALL_SECONDS)
            if not asked.done():
                raise error
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            await channel.close()

    async def download(self, where: Place, path: str, *, offset: int = 0, length: int | None = None) -> Download:
        return await self._receive(where, {"op": "download", "path": path, "offset": offset, "length": length})

    async def archive(self, where: Place, paths: Sequence[str]) -> Download:
        return await self._receive(where, {"op": "archive", "paths": list(paths)})

    async def results(self, where: KernelAddress) -> Download:
        return await self._receive(where, {"op": "results"})

    async def _receive(self, where: Place, arguments: dict[str, Any]) -> Download:
        with self._landing.expecting(where.agent_id) as (ticket, landed):
            asked = self._spawn(self._open_stream(where, arguments, ticket, seconds=FILES_SECONDS))
            channel = None
            try:
                channel = await _landed(landed, asked)
                answer = await asked
            except BaseException:
                asked.cancel()
                if channel is not None:
                    await channel.close()
                raise
        if channel is None:
            raise TransferFailed
        stat = _map(answer).get("stat")
        return ChannelDownload(channel, _made(FileStat, stat) if stat else None)

    # -- services --------------------------------------------------------------------------------------------------------
    async def start_service(self, where: KernelAddress, spec: ServiceSpec) -> ServiceFact:
        seconds = spec.ready_seconds + 2 * CALL_SECONDS
        return _made(ServiceFact, await self._ask(where, wire.START_SERVICE, {"spec": spec.pack()}, seconds=seconds))

    async def stop_service(self, where: KernelAddress, name: str) -> None:
        await self._ask(where, wire.STOP_SERVICE, {"name": name})

    async def grant_direct(self, where: KernelAddress, *, write: bool, by: str) -> dict[str, Any]:
        said = _map(await self._ask(where, wire.GRANT_DIRECT, {"write": write, "by": by}))
        if "refused" not in said:
            self._dug_lately.add(where.kernel_id)
        return said

    # -- tunnels ---------------------------------------------------------------------------------------------------------
    async def tunnel_socket(self, where: KernelAddress, port: int) -> socket.socket:
        """A connected, non-blocking socket to a port inside the container; the caller closes it."""
        return (await self._dig(where, {"op": "tunnel", "port": port}))[0]

    async def open_process(self, where: KernelAddress, spec: ProcessSpec) -> Process:
        return await StreamedProcess.over(*await self._dig(where, {"op": "process", "spec": spec.pack()}))

    async def _dig(self, where: KernelAddress, what: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
        """A connection into the container, and what the agent said to it."""
        with self._landing.expecting(where.agent_id) as (ticket, landed):
            arguments = {**what, "handover": self._handover.name}
            asked = self._spawn(self._open_stream(where, arguments, ticket, seconds=CALL_SECONDS))
            try:
                said = await asked
                async with asyncio.timeout(TICKET_SECONDS):  # the answer may come before the connection
                    channel = await landed
            except BaseException as error:
                asked.cancel()
                if isinstance(error, TimeoutError):
                    raise AgentUnavailable("The session's host did not open the tunnel in time; ask again.") from None
                if landed.done() and not landed.cancelled():
                    await landed.result().close()
                raise
        sock = as_socket(channel, self._spawn)
        self._dug[sock] = where.kernel_id
        self._dug_lately.add(where.kernel_id)
        return sock, _map(said)

    def kernels_in_use(self) -> set[KernelId]:
        """Those that a connection leads into, or has led into since this was asked last."""
        used = self._dug_lately | {kernel_id for sock, kernel_id in self._dug.items() if sock.fileno() >= 0}
        self._dug_lately.clear()
        return used

    async def open_tunnel(self, where: KernelAddress, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await streams_of(await self.tunnel_socket(where, port))

    async def _open_stream(self, where: Place, arguments: dict[str, Any], ticket: bytes, *, seconds: float) -> Any:
        stream = {"ticket": ticket, "port": self._landing.port, "tls": self._landing.encrypted}
        return await self._ask(where, wire.OPEN_STREAM, {**arguments, "stream": stream}, seconds=seconds)


class ChannelDownload:
    """A download as it arrives."""

    def __init__(self, channel: Channel, stat: FileStat | None) -> None:
        self._channel = channel
        self.stat = stat

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks(self._channel):
                yield chunk  # type: ignore[misc]  # a bytearray serves as well, without a copy
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._channel.close()


async def _send_body(channel: Channel, body: AsyncIterator[bytes]) -> None:
    async for data in body:
        await send_chunk(channel, data)
    await send_end(channel)


async def _landed(landed: asyncio.Future[Channel], asked: asyncio.Task[Any]) -> Channel | None:
    """The agent's connection; None when it has answered without making one. Raises what it refuses with."""
    done, _ = await asyncio.wait({landed, asked}, timeout=TICKET_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if landed in done:
        return landed.result()
    if asked in done:
        asked.result()
        return landed.result() if landed.done() and not landed.cancelled() else None
    raise AgentUnavailable("The session's host did not open the transfer in time; ask again.")


def _run_read(data: object) -> RunRead:
    read = _made(RunRead, data)
    return read if read.gap is None else replace(read, gap=(read.gap[0], read.gap[1]))


def _disks(said: object) -> dict[str, tuple[int, int]]:
    """The few that make sense: what an agent tells becomes a label of a figure."""
    found = {}
    for name, sizes in list(said.items())[:8] if isinstance(said, dict) else ():
        if name in DISKS and isinstance(sizes, list) and [type(one) for one in sizes] == [int, int]:
            found[name] = (min(max(sizes[0], 0), sizes[1]), max(sizes[1], 0))
    return found


def _made(kind: type[T], answer: object) -> T:
    try:
        return shaped(kind, answer)
    except Malformed as error:
        log.warning("an agent's answer makes no sense: %s", error)
        raise _senseless() from None


def _text(key: UUID | None) -> str | None:
    return str(key) if key is not None else None


def _map(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict) or not is_plain(answer):
        raise _senseless()
    return answer


def _list(answer: object) -> list[Any]:
    if not isinstance(answer, list):
        raise _senseless()
    return answer


def _senseless() -> AgentUnavailable:
    return AgentUnavailable("The answer of the session's host makes no sense; its administrator finds more in its log.")
