"""The manager's end of the agents' connections: who may connect, what is asked of them, what they say.

Listed with `agent.client`, `agent.wire` and `agent.rpc` as what the manager side may know of agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

from aiohttp import web

from agent import pki, wire
from agent.client import Download, FilePage, FileStat, KernelAddress, Place, Process, VolumeAddress
from agent.process import StreamedProcess
from agent.rpc import Peer
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
    async def on_hello(self, said: AgentHello) -> None: ...
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

        async def hello(arguments: dict[str, Any]) -> dict[str, Any]:
            said = AgentHello.unpack(arguments)
            if said.agent_id != agent_id:
                raise Unauthenticated("The agent names itself otherwise than its certificate.")
            if said.protocol != wire.PROTOCOL_VERSION:
                raise InvalidRequest(f"The manager speaks protocol {wire.PROTOCOL_VERSION}; upgrade the older side.")
            await self._callbacks.on_hello(said)
            hear(map(Fact.unpack, said.facts), complete=True)
            if (former := self._peers.get(agent_id)) is not None and former is not peer:
                if lives == (said.uid, said.boot_no):
                    pass
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
            ).pack()

        async def heartbeat(arguments: dict[str, Any]) -> dict[str, Any]:
            check_greeted()
            await self._callbacks.on_heartbeat(agent_id)
            differs = arguments.get("digest") not in (None, wire.digest(heard.values()))
            return {"managers": await self._callbacks.managers(), "inventory": differs}

        async def facts(arguments: dict[str, Any]) -> None:
            check_greeted()
            said = [Fact.unpack(fact) for fact in arguments["facts"]]
            await self._callbacks.on_facts(agent_id, said)
            hear(said, complete=bool(arguments.get("complete")))

        async def runs_done(arguments: dict[str, Any]) -> None:
            check_greeted()
            await self._callbacks.on_runs_done(agent_id, [RunDone.unpack(run) for run in arguments["runs"]])

        async def samples(arguments: dict[str, Any]) -> None:
            check_greeted()
            await self._callbacks.on_samples(agent_id, [Sample.unpack(sample) for sample in arguments["samples"]])

        async def services(arguments: dict[str, Any]) -> None:
            check_greeted()
            said = [ServiceFact.unpack(fact) for fact in arguments["services"]]
            await self._callbacks.on_services(agent_id, said)

        async def devices(arguments: dict[str, Any]) -> None:
            check_greeted()
            await self._callbacks.on_devices(agent_id, DeviceList.unpack(arguments))

        async def device_checks(arguments: dict[str, Any]) -> None:
            check_greeted()
            said = [DeviceCheck.unpack(check) for check in arguments["checks"]]
            await self._callbacks.on_device_checks(agent_id, said)

        async def credentials(arguments: dict[str, Any]) -> dict[str, str] | None:
            check_greeted()
            return await self._callbacks.credentials(agent_id, str(arguments["kernel_id"]), str(arguments["image"]))

        def progress(said: dict[str, Any]) -> None:
            if (queue := self._pulls.get(str(said.get("pull")))) is not None:
                with contextlib.suppress(asyncio.QueueFull):  # progress is worth nothing once it is old
                    queue.put_nowait(said)
            elif said.get("kernel_id"):
                self._spawn(self._callbacks.on_progress(agent_id, said))

        for name, handler in (
            (wire.HELLO, hello),
            (wire.HEARTBEAT, heartbeat),
            (wire.FACTS, facts),
            (wire.RUNS_DONE, runs_done),
            (wire.SAMPLES, samples),
            (wire.CREDENTIALS, credentials),
            (wire.SERVICES, services),
            (wire.DEVICES, devices),
            (wire.DEVICE_CHECKS, device_checks),
        ):
            peer.handle(name, handler)
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
        return Fact.unpack(await self._ask(where, wire.ENSURE, arguments))

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

    async def send_input(self, where: KernelAddress, run_id: RunId, data: bytes, *, eof: bool = False) -> None:
        await self._ask(where, wire.INPUT, {"run_id": str(run_id), "data": data, "eof": eof})

    async def interrupt(self, where: KernelAddress, run_id: RunId | None) -> bool:
        return bool(await self._ask(where, wire.INTERRUPT, {"run_id": str(run_id) if run_id else None}))

    async def kill(self, where: KernelAddress, run_id: RunId) -> bool:
        return bool(await self._ask(where, wire.KILL, {"run_id": str(run_id)}))

    async def complete(
        self, where: KernelAddress, *, code: str, row: int, col: int, line: str, post: str
    ) -> dict[str, Any]:
        arguments = {"code": code, "row": row, "col": col, "line": line, "post": post}
        return dict(await self._ask(where, wire.COMPLETE, arguments))

    async def list_files(self, where: Place, path: str, *, cursor: str | None, limit: int) -> FilePage:
        page = await self._ask(
            where, wire.LIST_FILES, {"path": path, "cursor": cursor, "limit": limit}, seconds=FILES_SECONDS
        )
        return FilePage(files=[FileStat(**stat) for stat in page["files"]], next_cursor=page["next_cursor"])

    async def manage_file(self, where: Place, op: str, arguments: dict[str, Any]) -> FileStat | None:
        stat = await self._ask(where, wire.MANAGE_FILE, {"op": op, "arguments": arguments}, seconds=FILES_SECONDS)
        return FileStat(**stat) if stat is not None else None

    async def statistics(self, where: KernelAddress) -> dict[str, Any]:
        return dict(await self._ask(where, wire.STATISTICS, {}))

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
        return dict(await self._ask(where, wire.VOLUME_USAGE, {}, seconds=FILES_SECONDS))

    def clone_volume(self, where: VolumeAddress, job: UUID, source: UUID) -> AsyncIterator[dict[str, Any]]:
        arguments = {"job": str(job), "volume": where.pack(), "source": str(source)}
        return self._followed(where.agent_id, wire.CLONE_VOLUME, arguments)

    def remove_volume(self, where: VolumeAddress, job: UUID) -> AsyncIterator[dict[str, Any]]:
        return self._followed(where.agent_id, wire.REMOVE_VOLUME, {"job": str(job), "volume": where.pack()})

    async def cancel_job(self, agent_id: AgentId, job: UUID) -> bool:
        asked = self._peer(agent_id).request(wire.CANCEL_JOB, {"job": str(job)}, timeout_seconds=FILES_SECONDS)
        return bool(await asked)

    async def census(self, agent_id: AgentId) -> dict[str, Any]:
        return dict(await self._peer(agent_id).request(wire.CENSUS, {}, timeout_seconds=FILES_SECONDS))

    async def list_images(self, agent_id: AgentId) -> list[dict[str, Any]]:
        return list(await self._peer(agent_id).request(wire.LIST_IMAGES, {}, timeout_seconds=FILES_SECONDS))

    async def remove_image(self, agent_id: AgentId, image: str, *, job: UUID | None = None) -> bool:
        arguments = {"image": image, "job": str(job) if job else None}
        return bool(await self._peer(agent_id).request(wire.REMOVE_IMAGE, arguments, timeout_seconds=FILES_SECONDS))

    async def _followed(self, agent_id: AgentId, what: str, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Ask for long work: its progress, and at last {"result": the answer}."""
        name, peer = uuid4().hex, self._peer(agent_id)
        queue = self._pulls[name] = asyncio.Queue(64)
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
        return FileStat(**await self._send(where, arguments, body))

    async def unpack(
        self, where: Place, path: str, body: AsyncIterator[bytes], *, size: int | None, overwrite: bool = True
    ) -> dict[str, int]:
        arguments = {"op": "unpack", "path": path, "size": size, "overwrite": overwrite}
        return dict(await self._send(where, arguments, body))

    async def _send(self, where: Place, arguments: dict[str, Any], body: AsyncIterator[bytes]) -> dict[str, Any]:
        with self._landing.expecting() as (ticket, landed):
            asked = self._spawn(self._open_stream(where, arguments, ticket, seconds=86400.0))
            try:
                channel = await _landed(landed, asked)
                if channel is not None:
                    await self._pump(channel, body, asked)
                return dict(await asked)
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
        with self._landing.expecting() as (ticket, landed):
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
        return ChannelDownload(channel, FileStat(**answer["stat"]) if answer.get("stat") else None)

    # -- services --------------------------------------------------------------------------------------------------------
    async def start_service(self, where: KernelAddress, spec: ServiceSpec) -> ServiceFact:
        seconds = spec.ready_seconds + 2 * CALL_SECONDS
        return ServiceFact.unpack(await self._ask(where, wire.START_SERVICE, {"spec": spec.pack()}, seconds=seconds))

    async def stop_service(self, where: KernelAddress, name: str) -> None:
        await self._ask(where, wire.STOP_SERVICE, {"name": name})

    async def grant_direct(self, where: KernelAddress, *, write: bool, by: str) -> dict[str, Any]:
        said = dict(await self._ask(where, wire.GRANT_DIRECT, {"write": write, "by": by}))
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
        with self._landing.expecting() as (ticket, landed):
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
        return sock, dict(said)

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


def _run_read(data: dict[str, Any]) -> RunRead:
    read = RunRead.unpack(data)
    return read if read.gap is None else replace(read, gap=(read.gap[0], read.gap[1]))
