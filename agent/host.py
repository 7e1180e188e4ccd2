"""What managers may ask of this host, and what it tells them. The names are those of `agent.wire`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from agent import wire
from agent.client import FileStat
from agent.containers import EngineError
from agent.kernel import Kernel
from agent.kernels import Kernels
from agent.link import open_channel
from agent.once import manage_once
from agent.outputs import archive
from agent.rings import LOG_RUN, RunnerError
from agent.rpc import Handler
from agent.runner_link import RunnerLink
from agent.snapshots import pull_error
from agent.streams import Channel, chunks, is_loopback, send_chunk, send_end, send_file
from agent.tunnel import carry, hand_over
from agent.volumes import VolumeFiles, Volumes
from agent.wire import (
    AgentHello,
    DeviceCheck,
    DeviceList,
    Fact,
    KernelSpec,
    ProcessSpec,
    RunDone,
    Sample,
    ServiceFact,
    ServiceSpec,
)
from domain.errors import (
    AgentUnavailable,
    CommitInProgress,
    InvalidRequest,
    NoVolumeStore,
    RangeNotSatisfiable,
    ResultsNotFound,
    RunnerLost,
    SessionEnded,
    SessionNotReady,
    TransferFailed,
    from_code,
)
from domain.session import ENDED, KernelState

if TYPE_CHECKING:
    from agent.direct import DirectFiles

#: So long a request waits for a session that is being committed; it is refused then, before anything was done.
_STILL_SECONDS: Final = 8.0
#: Of one answer; longer output is read in pieces.
MOST_READ_BYTES: Final = 4 << 20
MOST_WAIT_SECONDS: Final = 60.0
_LOG_WRITTEN_SECONDS: Final = 0.5
Arguments = dict[str, Any]


class Host:
    """Implements `agent.link.Teller`; `handlers` answer requests."""

    def __init__(
        self,
        agent_id: str,
        kernels: Kernels,
        tls: ssl.SSLContext,
        *,
        resources: Mapping[str, int],
        info: Mapping[str, Any],
        version: str,
    ) -> None:
        self._agent_id = agent_id
        self._kernels = kernels
        self._tls = tls
        self._resources = dict(resources)
        self._info = dict(info)
        self._version = version
        self._transfers: set[asyncio.Task[None]] = set()
        self.direct: DirectFiles | None = None
        self.no_direct = "The session's host has no listener for direct transfers; 'direct' in its agent.toml sets one."
        self.changed = kernels.changed
        self.handlers: Mapping[str, Handler] = {
            wire.PING: self.ping,
            wire.CENSUS: self.census,
            wire.ENSURE: self.ensure,
            wire.PULL_IMAGE: self.pull_image,
            wire.PUSH_IMAGE: self.push_image,
            wire.COMMIT: self.commit,
            wire.CANCEL_JOB: self.cancel_job,
            wire.LIST_IMAGES: self.list_images,
            wire.REMOVE_IMAGE: self.remove_image,
            wire.VOLUME_USAGE: _told_as_ours(self.volume_usage),
            wire.CLONE_VOLUME: _told_as_ours(self.clone_volume),
            wire.REMOVE_VOLUME: _told_as_ours(self.remove_volume),
            **{
                name: _told_as_ours(handler, None if name in (wire.READ, wire.STATISTICS) else self._moves)
                for name, handler in (
                    (wire.EXECUTE, self.execute),
                    (wire.READ, self.read),
                    (wire.INPUT, self.input),
                    (wire.INTERRUPT, self.interrupt),
                    (wire.KILL, self.kill),
                    (wire.COMPLETE, self.complete),
                    (wire.STATE, self.state),
                    (wire.LIST_FILES, self.list_files),
                    (wire.MANAGE_FILE, self.manage_file),
                    (wire.OPEN_STREAM, self.open_stream),
                    (wire.STATISTICS, self.statistics),
                    (wire.START_SERVICE, self.start_service),
                    (wire.STOP_SERVICE, self.stop_service),
                    (wire.GRANT_DIRECT, self.grant_direct),
                )
            },
        }

    # -- what it tells -----------------------------------------------------------------------------------------------
    async def hello(self) -> AgentHello:
        images: list[str] = []
        with contextlib.suppress(EngineError):
            images = await self._kernels.engine.images()
        store, gpus = self._kernels.store, self._kernels.gpus
        told = gpus.info()
        return AgentHello(
            agent_id=self._agent_id,
            uid=store.uid,
            boot_no=store.boot_no,
            version=self._version,
            hostname=socket.gethostname(),
            architecture=platform.machine(),
            resources={**self._resources, **gpus.resources()},
            info={
                **self._info,
                **({"gpus": told} if told else {}),
                "warnings": [*self._info.get("warnings", []), *told.get("trouble", [])],
                **await self._kernels.networks.facts(),
                "quarantined": list(self._kernels.quarantined),
            },
            facts=[fact.pack() for fact in self._kernels.inventory()],
            holds=self._kernels.holds(),
            images=images,
            devices=[fact.pack() for fact in gpus.facts()],
            devices_seq=gpus.seq,
        )

    async def epoch_is(self, epoch: int) -> None:
        await self._kernels.epoch_is(epoch)

    def inventory(self) -> Sequence[Fact]:
        return self._kernels.inventory()

    def pending_facts(self) -> Sequence[Fact]:
        return self._kernels.pending()

    def facts_acknowledged(self, facts: Iterable[Fact]) -> None:
        self._kernels.acknowledged(facts)

    def pending_runs(self) -> Sequence[RunDone]:
        return self._kernels.runs.pending()

    def runs_acknowledged(self, runs: Iterable[RunDone]) -> None:
        self._kernels.runs.acknowledged(runs)

    @property
    def sample_seconds(self) -> float:
        return self._kernels.sampler.period_seconds

    def pending_samples(self) -> Sequence[Sample]:
        return self._kernels.sampler.pending()

    def samples_acknowledged(self, samples: Sequence[Sample]) -> None:
        self._kernels.sampler.acknowledged(samples)

    # -- kernels -----------------------------------------------------------------------------------------------------
    async def ping(self, _arguments: Arguments) -> None:
        return

    async def census(self, _arguments: Arguments) -> Arguments:
        return await self._kernels.census()

    async def ensure(self, arguments: Arguments) -> Arguments:
        spec = arguments["spec"]
        seconds = spec.get("lease_seconds") if spec is not None else None
        if seconds is not None and self._kernels.lease.left(seconds) <= 0:
            # it was sent before this host fell silent; what it asks for may run elsewhere by now
            raise AgentUnavailable(
                "The session's host has not heard of a manager for too long to begin this; ask again."
            )
        fact = await self._kernels.ensure(
            arguments["kernel_id"],
            arguments["attempt"],
            generation=arguments["generation"],
            want=arguments["want"],
            spec=KernelSpec.unpack(spec) if spec is not None else None,
            grace_seconds=arguments.get("grace_seconds", 10.0),
        )
        return fact.pack()

    async def pull_image(self, arguments: Arguments) -> None:
        image = str(arguments["image"])
        try:
            await self._kernels.pull(image, {"pull": arguments["pull"]}, arguments.get("auth"))
        except EngineError as error:
            raise pull_error(image, error) from None

    # -- images ------------------------------------------------------------------------------------------------------
    async def commit(self, arguments: Arguments) -> Arguments:
        """Also of a kernel that has ended meanwhile, when the image is there already."""
        return await self._kernels.snapshots.commit(
            self._known(arguments),
            int(arguments["attempt"]),
            str(arguments["job"]),
            str(arguments["image"]),
            arguments["labels"],
            self._listener(arguments),
        )

    async def push_image(self, arguments: Arguments) -> Arguments:
        job, name = str(arguments["job"]), str(arguments["image"])
        return await self._kernels.snapshots.push(job, name, arguments["auth"], self._listener(arguments))

    async def cancel_job(self, arguments: Arguments) -> bool:
        job = str(arguments["job"])
        volumes = self._kernels.volumes
        return await self._kernels.snapshots.cancel(job) or (volumes is not None and await volumes.jobs.cancel(job))

    async def list_images(self, _arguments: Arguments) -> list[Arguments]:
        return await self._kernels.snapshots.list()

    async def remove_image(self, arguments: Arguments) -> bool:
        return await self._kernels.snapshots.remove(str(arguments["image"]), arguments.get("job"))

    def _listener(self, arguments: Arguments) -> Callable[[int, int, str], None]:
        """Carries a job's progress to whoever asked for it, a few times a second."""
        loop, last = asyncio.get_running_loop(), 0.0

        def tell(current: int, total: int, message: str) -> None:
            nonlocal last
            if loop.time() - last >= 0.2:
                last = loop.time()
                said = {"pull": arguments["pull"], "current": current, "total": total, "message": message}
                self._kernels.tell_progress(said)

        return tell

    # -- runs --------------------------------------------------------------------------------------------------------
    async def execute(self, arguments: Arguments) -> Arguments:
        """The run's record is on disk before its code is delivered; who asks again attaches to it, also after the end."""
        runs, run_id = self._kernels.runs, str(arguments["run_id"])
        known = self._known(arguments)
        if known.state.observed in ENDED and known.rings.done(run_id) is not None:
            return await self.read({**arguments, "from_seq": 1})
        kernel, link = self._running(arguments)
        wait = min(float(arguments["wait_seconds"]), MOST_WAIT_SECONDS)
        if run_id == LOG_RUN or run_id.startswith(("bootstrap", "service-")):
            raise InvalidRequest("A run id is a UUID.")
        begun = await runs.begin(run_id, kernel.id, kernel.state.attempt)
        if not begun and kernel.rings.done(run_id) is not None:
            return await self.read({**arguments, "from_seq": 1})
        try:
            tail = await link.execute(
                run_id,
                mode=arguments["mode"],
                code=arguments["code"],
                timeout_seconds=arguments["timeout_seconds"],
                opts=arguments["opts"],
                wait_seconds=wait,
            )
        except RunnerError as error:
            if begun and error.code != "runner_lost":
                await runs.refused(run_id)
            raise
        read = kernel.rings.whole(tail)
        kernel.ran(tail, read.done if read is not None else None)
        if read is not None:
            return read.pack()
        return await self.read({**arguments, "from_seq": 1, "wait_seconds": 0})

    async def read(self, arguments: Arguments) -> Arguments:
        """Needs no running container: rings stay for days."""
        kernel = self._known(arguments)
        if arguments["run_id"] == LOG_RUN and kernel.link is not None:
            # the runner writes the log when it has answered: what was answered before is in it after this
            with contextlib.suppress(RunnerError, TimeoutError):
                await asyncio.wait_for(kernel.link.ping(), _LOG_WRITTEN_SECONDS)
        read = await kernel.rings.read(
            kernel.link,
            str(arguments["run_id"]),
            from_seq=int(arguments["from_seq"]),
            max_bytes=min(int(arguments["max_bytes"]), MOST_READ_BYTES),
            wait_seconds=min(float(arguments["wait_seconds"]), MOST_WAIT_SECONDS),
        )
        return read.pack()

    async def input(self, arguments: Arguments) -> None:
        _, link = self._running(arguments)
        await link.send_input(arguments["run_id"], arguments["data"], eof=arguments["eof"], key=_key(arguments))

    async def interrupt(self, arguments: Arguments) -> bool:
        _, link = self._running(arguments)
        return await link.interrupt(arguments["run_id"])

    async def kill(self, arguments: Arguments) -> bool:
        _, link = self._running(arguments)
        return await link.kill(arguments["run_id"], arguments.get("grace_seconds"))

    async def complete(self, arguments: Arguments) -> Arguments:
        _, link = self._running(arguments)
        asked = {name: arguments[name] for name in ("code", "row", "col", "line", "post")}
        return await link.complete(**asked)

    async def state(self, arguments: Arguments) -> Arguments:
        _, link = self._running(arguments)
        asked = {name: arguments[name] for name in ("do", "name", "value")}
        return await link.state(**asked, key=_key(arguments))

    # -- files -------------------------------------------------------------------------------------------------------
    async def list_files(self, arguments: Arguments) -> Arguments:
        link = self._files(arguments)
        page = await link.list_files(arguments["path"], cursor=arguments["cursor"], limit=arguments["limit"])
        return {"files": [asdict(stat) for stat in page.files], "next_cursor": page.next_cursor}

    async def manage_file(self, arguments: Arguments) -> Arguments | None:
        """Once for each key, whoever died before the answer came through."""
        link, key = self._files(arguments), _key(arguments)
        op, asked = str(arguments["op"]), arguments["arguments"]
        if isinstance(link, VolumeFiles):
            if key is not None:
                store, now = self._kernels.store, self._kernels.now()
                return await manage_once(store, key, op, asked, link.manage_file, now=now)
            stat = await link.manage_file(op, asked)
        else:
            stat = await link.manage_file(op, asked, key=key)
        return asdict(stat) if stat is not None else None

    async def open_stream(self, arguments: Arguments) -> Arguments:
        """Dial, answer, and move the bytes; an upload is answered when the file is there."""
        if arguments["op"] == "results":
            return await self._results(arguments)
        match arguments["op"]:
            case "upload":
                return {**asdict(await self._upload(self._files(arguments), arguments))}
            case "unpack":
                return await self._unpack(self._files(arguments), arguments)
            case "download":
                return await self._download(self._files(arguments), arguments)
            case "archive":
                return await self._archive(self._files(arguments), arguments)
        _, link = self._running(arguments)
        match arguments["op"]:
            case "tunnel":
                return await self._tunnel(link, arguments)
            case "process":
                return await self._process(link, arguments)
            case other:
                raise InvalidRequest(f"There is no transfer called '{other}'.")

    def _files(self, arguments: Arguments) -> RunnerLink | VolumeFiles:
        """Of a session, or of a volume."""
        if "volume" not in arguments:
            return self._running(arguments)[1]
        return self._volumes().open(arguments["volume"])

    async def _unpack(self, link: RunnerLink | VolumeFiles, arguments: Arguments) -> Arguments:
        channel = await open_channel(arguments["stream"], self._tls)
        try:
            return {
                **await link.unpack(
                    arguments["path"], _bytes(channel), size=arguments["size"], overwrite=arguments["overwrite"]
                )
            }
        finally:
            await channel.close()

    async def _upload(self, link: RunnerLink | VolumeFiles, arguments: Arguments) -> FileStat:
        channel = await open_channel(arguments["stream"], self._tls)
        try:
            return await link.put_file(
                arguments["path"],
                _bytes(channel),
                size=arguments["size"],
                mode=arguments["mode"],
                overwrite=arguments["overwrite"],
                sha256=arguments["sha256"],
            )
        finally:
            await channel.close()

    async def _download(self, link: RunnerLink | VolumeFiles, arguments: Arguments) -> Arguments:
        """The runner opens the file as the session's user, and hands over the descriptor."""
        fd, stat = await link.open_file(arguments["path"])
        try:
            offset, length = int(arguments["offset"]), arguments["length"]
            if offset < 0 or offset > stat.size or (length is not None and int(length) < 0):
                raise RangeNotSatisfiable(size=stat.size)
            count = stat.size - offset if length is None else min(int(length), stat.size - offset)
            channel = await open_channel(arguments["stream"], self._tls)
        except BaseException:
            os.close(fd)
            raise

        async def move() -> None:
            try:
                await send_file(channel, fd, offset, count)
            finally:
                os.close(fd)

        self._transfer(channel, move())
        return {"stat": asdict(stat)}

    async def _archive(self, link: RunnerLink | VolumeFiles, arguments: Arguments) -> Arguments:
        archive = await link.archive(arguments["paths"])
        try:
            channel = await open_channel(arguments["stream"], self._tls)
        except BaseException:
            await archive.aclose()
            raise

        async def move() -> None:
            try:
                async for piece in archive:
                    await send_chunk(channel, piece)
                await send_end(channel)
            finally:
                await archive.aclose()

        self._transfer(channel, move())
        return {"stat": None}

    async def _results(self, arguments: Arguments) -> Arguments:
        """Of a kernel that is gone; needs no container."""
        kernel = self._known(arguments)
        if kernel.state.observed != KernelState.GONE or not await asyncio.to_thread(kernel.folders.results.is_dir):
            raise ResultsNotFound
        channel = await open_channel(arguments["stream"], self._tls)
        pieces = archive(kernel.folders.results)

        async def move() -> None:
            try:
                while piece := await asyncio.to_thread(next, pieces, b""):
                    await send_chunk(channel, piece)
                await send_end(channel)
            finally:
                with contextlib.suppress(ValueError):  # cancelled while a thread reads on; its end closes it
                    pieces.close()

        self._transfer(channel, move())
        return {"stat": None}

    async def _tunnel(self, link: RunnerLink, arguments: Arguments) -> Arguments:
        """To a port of the container: on one machine its socket itself, elsewhere its bytes."""
        await self._hand_on(arguments, await link.connect_port(int(arguments["port"])))
        return {}

    async def _hand_on(self, arguments: Arguments, sock: socket.socket) -> None:
        stream = arguments["stream"]
        try:
            if is_loopback(str(stream["host"])) and hand_over(
                str(arguments["handover"]), bytes(stream["ticket"]), sock
            ):
                sock.close()
                return
            channel = await open_channel(stream, self._tls)
        except BaseException:
            sock.close()
            raise
        self._transfer(channel, carry(channel, sock))

    async def _process(self, link: RunnerLink, arguments: Arguments) -> Arguments:
        """Its stream goes the way of tunnels: on one machine it passes no agent."""
        spec = ProcessSpec.unpack(arguments["spec"])
        sock, said = await link.open_process(spec.pack())
        await self._hand_on(arguments, sock)
        return said

    def _transfer(self, channel: Channel, move: Awaitable[None]) -> None:
        """In the background; a transfer that breaks off is seen by the other side."""

        async def run() -> None:
            try:
                with contextlib.suppress(TransferFailed, RunnerError, OSError):
                    await move
            finally:
                await channel.close()

        task = asyncio.create_task(run(), name="transfer")
        self._transfers.add(task)
        task.add_done_callback(self._transfers.discard)

    # -- volumes -----------------------------------------------------------------------------------------------------
    def _volumes(self) -> Volumes:
        if self._kernels.volumes is None:
            raise NoVolumeStore("This host keeps no volumes.")
        return self._kernels.volumes

    async def volume_usage(self, arguments: Arguments) -> Arguments:
        return {**await self._volumes().open(arguments["volume"]).usage()}

    async def clone_volume(self, arguments: Arguments) -> Arguments:
        volumes, target, source = self._volumes(), arguments["volume"], UUID(str(arguments["source"]))
        job = str(arguments["job"])
        return {
            **await volumes.jobs.run(
                job, lambda progress: volumes.clone(target, source, progress), self._listener(arguments)
            )
        }

    async def remove_volume(self, arguments: Arguments) -> None:
        volumes, target = self._volumes(), arguments["volume"]
        await volumes.jobs.run(str(arguments["job"]), lambda _: volumes.remove(target), self._listener(arguments))

    # -- figures -----------------------------------------------------------------------------------------------------
    async def statistics(self, arguments: Arguments) -> Arguments:
        kernel, link = self._running(arguments)
        figures: Arguments = kernel.cgroup.read() if kernel.cgroup is not None else {}
        with contextlib.suppress(RunnerError, TimeoutError):
            async with asyncio.timeout(3.0):
                said = await link.status()
                for name in ("disk_bytes", "ring_bytes", "processes"):
                    if isinstance(value := said.get(name), int):
                        figures[name] = value
        return {**figures, "started_at": kernel.state.started_at, "at": self._kernels.now()}

    # -- services ------------------------------------------------------------------------------------------------------
    async def start_service(self, arguments: Arguments) -> Arguments:
        kernel, _ = self._running(arguments)
        return (await self._kernels.services.start(kernel, ServiceSpec.unpack(arguments["spec"]))).pack()

    async def stop_service(self, arguments: Arguments) -> None:
        await self._kernels.services.stop(self._known(arguments), str(arguments["name"]))

    # -- files without a manager -----------------------------------------------------------------------------------------
    async def grant_direct(self, arguments: Arguments) -> Arguments:
        kernel, _ = self._running(arguments)
        if self.direct is None:
            return {"refused": self.no_direct}
        write, by = bool(arguments["write"]), str(arguments["by"])[:200]
        return self.direct.grant(kernel.id, kernel.state.attempt, write=write, by=by)

    async def files_of(self, kernel_id: str, attempt: int) -> RunnerLink:
        arguments: Arguments = {"kernel_id": kernel_id, "attempt": attempt}
        await self._moves(arguments)
        return self._running(arguments)[1]

    def still_runs(self, kernel_id: str, attempt: int) -> None:
        self._running({"kernel_id": kernel_id, "attempt": attempt})

    def pending_services(self) -> Sequence[ServiceFact]:
        return self._kernels.services.pending()

    def services_acknowledged(self, facts: Iterable[ServiceFact]) -> None:
        self._kernels.services.acknowledged(facts)

    # -- devices -----------------------------------------------------------------------------------------------------
    @property
    def device_news(self) -> asyncio.Event:
        return self._kernels.gpus.news

    def pending_devices(self) -> DeviceList | None:
        return self._kernels.gpus.pending()

    def devices_acknowledged(self, said: DeviceList) -> None:
        self._kernels.gpus.acknowledged(said)

    def pending_checks(self) -> Sequence[DeviceCheck]:
        return self._kernels.gpus.pending_checks()

    def checks_acknowledged(self, checks: Iterable[DeviceCheck]) -> None:
        self._kernels.gpus.checks_acknowledged(checks)

    # -- pieces ------------------------------------------------------------------------------------------------------
    def _known(self, arguments: Arguments) -> Kernel:
        kernel = self._kernels.find(str(arguments["kernel_id"]))
        if kernel is None or not kernel.state.generation:
            raise RunnerLost("The session's host knows nothing of it, or keeps its output no longer.")
        return kernel

    async def _moves(self, arguments: Arguments) -> None:
        """While it is committed, a session stands still: wait for its end, for a while."""
        kernel = self._kernels.find(str(arguments.get("kernel_id")))
        if kernel is None or kernel.thawed.is_set():
            return
        try:
            async with asyncio.timeout(_STILL_SECONDS):
                await kernel.thawed.wait()
        except TimeoutError:
            raise CommitInProgress from None

    def _running(self, arguments: Arguments) -> tuple[Kernel, RunnerLink]:
        """Whoever means an earlier attempt means something that has ended."""
        kernel = self._known(arguments)
        state, asked = kernel.state, int(arguments["attempt"])
        if asked > state.attempt or (asked == state.attempt and state.observed in _ON_THEIR_WAY):
            raise SessionNotReady
        if asked < state.attempt or state.observed != KernelState.RUNNING:
            raise SessionEnded
        if kernel.lease_left <= 0:
            raise SessionEnded
        if kernel.link is None:
            raise AgentUnavailable("The session's host looks for its runner at the moment; ask again.")
        return kernel, kernel.link

    async def close(self) -> None:
        for task in list(self._transfers):
            task.cancel()
        await asyncio.gather(*self._transfers, return_exceptions=True)


_ON_THEIR_WAY: Final = (KernelState.PREPARING, KernelState.PULLING)


def _told_as_ours(handler: Callable[[Arguments], Awaitable[Any]], before: Handler | None = None) -> Handler:
    """What a runner refuses with becomes the error that everybody knows."""

    async def answer(arguments: Arguments) -> Any:
        if before is not None:
            await before(arguments)
        try:
            return await handler(arguments)
        except RunnerError as error:
            raise from_code(error.code, error.message) from None

    return answer


def _key(arguments: Arguments) -> str | None:
    """Of a request that may be repeated; the same key with another content is another request."""
    if (key := arguments.get("key")) is None:
        return None
    asked = [arguments.get(name) for name in ("run_id", "op", "arguments", "eof", "data", "do", "name", "value")]
    return f"{key} {hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}"


async def _bytes(channel: Channel) -> AsyncIterator[bytes]:
    async for chunk in chunks(channel):
        yield chunk  # type: ignore[misc]  # a bytearray serves as well, without a copy
