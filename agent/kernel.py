"""One kernel: its container, its runner, and what is true of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

from agent import cluster, gpu_request, loops, runtime
from agent.containers import (
    USER,
    Containers,
    ContainerSpec,
    ContainerState,
    EngineError,
    ImageConfig,
    cpu_quota_us,
)
from agent.gpu_handover import Unfit, hand_over, take_back
from agent.gpu_terms import Holding
from agent.gpus import Gpus
from agent.lease import Lease
from agent.mounts import MountFailed
from agent.outputs import keep
from agent.profiles import confinement
from agent.rings import RunnerError, close_unfinished
from agent.runner_link import RunnerConfig, RunnerLink, Tail, prepare_link
from agent.runs import Rings, Runs, follow
from agent.scratch import Folders, make_scratch, set_aside
from agent.statistics import Cgroup
from agent.store import Store, StoredKernel
from agent.volumes import Volumes, mount_all
from agent.wire import Fact, KernelSpec, exit_record
from domain.crash import reach
from domain.isolation import Egress
from domain.session import KernelState, Want
from domain.volumes import is_at_home, may_be_mounted_at
from runner.lease import EXIT_CODE as LEASE_OVER

log = logging.getLogger("moorage.agent.kernel")
T = TypeVar("T")

READY_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = (0.1, 0.3, 1.0, 2.0, 5.0)
_DEFAULT_MILLI_CPU: Final = 1000
_DEFAULT_MIB: Final = 1024
_MIB: Final = 1 << 20
_LOG_TAIL_BYTES: Final = 4096
_LOOK_SECONDS: Final = 1.0
_ALIVE: Final = (KernelState.PREPARING, KernelState.PULLING, KernelState.RUNNING)
_MOST_NOTICES: Final = 20
#: How the process of a worker session's app was lost, by the reason of its end.
_WORKER_LOST: Final = {
    "out_of_memory": "It ran out of memory.",
    "timeout": "A call heeded nothing after its timeout, and was killed.",
    "killed": "A call was killed.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a session's own wishes do not say."""

    pids: int = 4096
    disk_quota_mib: int | None = None
    disk_reserve_mib: int = 0  #: when less than that is free, who wrote most of what came last is ended
    network: str | None = "moorage"
    own_disks: bool = False  #: files of sessions are on file systems of their own, as large as their quota
    mounts: tuple[tuple[Path, str], ...] = ()  #: of the host's, read-only in every session: source, target


class House(Protocol):
    """What kernels share."""

    engine: Containers
    store: Store
    runs: Runs
    defaults: Defaults
    data_dir: Path
    runtime: Path
    starts: asyncio.Semaphore
    networks: cluster.Networks
    lease: Lease
    volumes: Volumes | None
    gpus: Gpus

    def now(self) -> float: ...
    def next_seq(self) -> int: ...
    def news(self) -> None: ...
    async def ensure_image(self, kernel_id: str, image: str) -> ImageConfig: ...
    async def fill(self, kernel: Kernel, image: ImageConfig) -> None: ...
    async def release_network(self, kernel_id: str, session_id: str) -> None: ...


class StartFailed(Exception):
    """The kernel cannot be brought up; `exit` says why."""

    def __init__(self, exit: dict[str, Any]) -> None:
        super().__init__(exit["message"])
        self.exit = exit


class Kernel:
    """An intent cancels what is being done for the one before it, and is pursued by a task of its own."""

    def __init__(self, stored: StoredKernel, house: House) -> None:
        self.state = stored
        self.seq = house.next_seq()
        self.folders = Folders.of(house.data_dir, stored.kernel_id)
        self.rings = Rings(self.folders.link)
        self.link: RunnerLink | None = None
        self.cgroup: Cgroup | None = None
        self.pid: int | None = None  #: of its runner, as the host sees it
        self.intents = asyncio.Lock()  #: one intent at a time is taken on
        self.died = asyncio.Event()  #: the engine hints that the container has ended
        self.thawed = asyncio.Event()  #: not set while a commit holds everything in the container still
        self.thawed.set()
        self._house = house
        self._committing: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._engine_call: asyncio.Future[Any] | None = None
        self._following: dict[str, asyncio.Task[None]] = {}
        self._finished = asyncio.Event()  #: the startup command has ended
        self._network_known: dict[str, Any] | None = None  #: what the container was told of its cluster
        self._telling: asyncio.Task[None] | None = None
        self._adjusting: asyncio.Task[None] | None = None
        self._condemned: dict[str, Any] | None = None  #: why we ended its container ourselves
        self._layer: tuple[str, Sequence[Path]] | None = None  #: by the container's id, where else it writes to
        self._unleased = False  #: its lease is over, and it is being ended
        self._off_network = False  #: no container of it is there any more, which nobody has been told yet

    def __repr__(self) -> str:
        return f"{self.state.kernel_id}/{self.state.attempt}"

    @property
    def id(self) -> str:
        return self.state.kernel_id

    @property
    def name(self) -> str:
        """Of the container: who creates it twice gets the first one."""
        return f"moorage-{self.id.replace('-', '')}-{self.state.attempt}"

    @property
    def spec(self) -> KernelSpec:
        assert self.state.spec is not None, "only a kernel that shall run has a container"
        return self.state.spec

    @property
    def user(self) -> tuple[int, int]:
        """uid and gid of everything in the container."""
        spec = self.state.spec
        return (USER, USER) if spec is None else (spec.uid or USER, spec.gid or spec.uid or USER)

    @property
    def owner(self) -> tuple[int, int]:
        """The same, as this host sees it."""
        first_uid, first_gid = self._house.engine.first_ids
        return self.user[0] + first_uid, self.user[1] + first_gid

    def fact(self) -> Fact:
        return self.state.fact(self._house.store.boot_no, self.seq)

    def holds_network(self, session_id: str) -> bool:
        """Whether a container of this kernel is, or will be, on the network of this cluster session."""
        spec = self.state.spec
        here = spec is not None and spec.session_id == session_id and self.state.observed != KernelState.GONE
        return here and not self._off_network

    async def observe(self, observed: KernelState, **changes: Any) -> None:
        """Something new is true: remember it, then tell it, so that nothing is told that a crash can make untrue."""
        self.state = replace(self.state, observed=observed, changed_at=self._house.now(), told=False, **changes)
        try:
            await self._house.store.save(self.state)
        finally:
            self.seq = self._house.next_seq()
            self._house.news()

    # -- pursuing an intent ----------------------------------------------------------------------------------------
    def pursue(self, *, found: ContainerState | None = None, replaces: bool = False) -> None:
        """Begin to make true what is wanted, in place of what was being done. `found`: this container is there already."""
        before = self._task
        self._off_network, self._condemned, self._unleased = False, None, False
        work = self._bring_up(found, replaces) if self.state.want == Want.RUN else self._take_down()
        if before is not None:
            before.cancel()
        self._task = asyncio.create_task(self._after(before, work), name=f"kernel {self}")

    async def _after(self, before: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
        try:
            if before is not None:
                await asyncio.wait({before})
            if self._engine_call is not None:
                # the engine carries out what it was asked, whoever has gone meanwhile
                await asyncio.wait({self._engine_call})
        except BaseException:
            work.close()
            raise
        try:
            await work
        except Exception:
            log.exception("%s: a mistake of ours", self)
            await self._fail(exit_record("create_failed", "The agent made a mistake; its log says which."))

    async def settle(self) -> None:
        """Wait until what is being done is done, or somebody asks for something else. For tests and shutdown."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def let_go(self) -> None:
        """The agent ends; containers go on."""
        doing = (self._task, self._telling, self._adjusting, *self._following.values())
        tasks = [task for task in doing if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.link is not None:
            await self.link.close()
        self.rings.close()

    # -- up --------------------------------------------------------------------------------------------------------
    async def _bring_up(self, found: ContainerState | None, replaces: bool) -> None:
        try:
            if self.lease_left <= 0:
                raise StartFailed(self._lease_over())
            if replaces:
                await self._clear()
            if self.state.observed in (KernelState.PREPARING, KernelState.PULLING):
                await self._insist(found)
                await self._boot()
            elif found is not None:
                await self._readopt(found)
            else:
                await self._ended(None)
                return
        except StartFailed as failure:
            await self._fail(failure.exit)
            return
        except RunnerError as error:
            if self.state.observed == KernelState.RUNNING:
                await self._ended(await self._look())
            else:
                await self._fail(await self._why_no_runner(error))
            return
        await self._attend()

    async def _clear(self) -> None:
        """Nothing of an earlier attempt is left then. An engine that does not answer is asked for as long as it takes."""
        tries = 0
        while True:
            try:
                await self._remove_containers()
                return
            except EngineError as error:
                log.warning("%s: %s", self, error)
            await asyncio.sleep(_pause_seconds(tries))
            tries += 1

    async def _insist(self, found: ContainerState | None) -> None:
        """An engine that does not answer is asked again, until somebody wants something else."""
        tries = 0
        while True:
            try:
                if tries:  # what was asked for may have been done
                    found = await self._house.engine.inspect(self.name)
                await self._start(found)
                return
            except EngineError as error:
                if not error.unknown:
                    raise StartFailed(self._refusal(error)) from None
                log.warning("%s: %s", self, error)
            await asyncio.sleep(_pause_seconds(tries))
            tries += 1

    def _refusal(self, error: EngineError) -> dict[str, Any]:
        if error.missing == "image":
            said = f"The image {self.spec.image} is not on the host and could not be fetched: {error}"
            return exit_record("image_missing", said)
        if error.missing == "gpus":
            return exit_record("gpu_unsupported", f"The host cannot give its GPUs to a container: {error}.")
        return exit_record("create_failed", f"The container could not be created: {error}")

    async def _start(self, found: ContainerState | None) -> None:
        """Container, then runner. A container that is there from before is used when it runs, else made anew."""
        house = self._house
        if found is not None and found.status == "running":
            await self._reconnect(found)  # it may have been started a moment ago
            return
        if found is not None:
            await house.engine.remove(found.id)
        image = await house.ensure_image(self.id, self.spec.image)
        if self.state.observed == KernelState.PULLING:
            await self.observe(KernelState.PREPARING)
        await self._make_disk()
        await house.fill(self, image)
        await self._get_gpus(image)
        async with house.starts:
            await self._create_and_start(self._runner_config(image.environ))

    @property
    def has_own_disk(self) -> bool:
        return self._house.defaults.own_disks and self._quota_mib is not None

    @property
    def _quota_mib(self) -> int | None:
        spec = self.state.spec
        return (spec.disk_quota_mib if spec is not None else None) or self._house.defaults.disk_quota_mib

    async def _make_disk(self) -> None:
        """Where its files lie; kept over restarts."""
        folders, (uid, gid), quota_mib = self.folders, self.owner, self._quota_mib
        if not self.has_own_disk or quota_mib is None:
            make_scratch(folders.scratch, uid, gid)
            return
        try:
            await asyncio.to_thread(loops.make, folders.image, folders.scratch, size_mib=quota_mib, uid=uid, gid=gid)
        except (loops.NoDisk, OSError) as error:
            said = f"The host could not make a disk for the session's files: {error}"
            raise StartFailed(exit_record("create_failed", said)) from None

    # -- what it writes --------------------------------------------------------------------------------------------
    @property
    def disk_limit_bytes(self) -> int | None:
        return None if self._quota_mib is None else self._quota_mib * _MIB

    @property
    def link_folder(self) -> Path:
        return self.folders.link

    async def written_to(self) -> Sequence[Path]:
        """Where its code can write, and takes room of this host by it; not what has a size of its own."""
        scratch = () if self.has_own_disk else (self.folders.scratch,)
        if confinement(self.spec.profile).read_only or self.state.container_id is None:
            return scratch
        if self._layer is None or self._layer[0] != self.state.container_id:
            try:
                self._layer = self.state.container_id, await self._house.engine.layer(self.state.container_id)
            except EngineError as error:
                log.warning("%s: nobody says where its container writes to: %s", self, error)
                return scratch
        return (*scratch, *self._layer[1])

    async def disk_overused(self, said: str, *, reason: str, end: bool) -> None:
        """It wrote too much. What runs in it is ended, and its owner told; or all of it is."""
        if self.state.observed != KernelState.RUNNING:
            return
        log.warning("%s: %s", self, said)
        if end:
            await self._condemn(exit_record(reason, f"{said} Sessions that go on writing then are ended."))
            return
        self._note("disk", f"{said} What ran was ended; remove something, or the session is ended when it writes more.")
        await self.observe(KernelState.RUNNING)
        for run_id, _ in await self._house.runs.unfinished(self.id):
            with contextlib.suppress(RunnerError):
                await self._linked().kill(run_id)

    async def _get_gpus(self, image: ImageConfig) -> None:
        """Its devices are looked at before anything of the user can touch them."""
        if (holding := Holding.of(self.state)) is None:
            return
        gpus = self._house.gpus
        try:
            await hand_over(gpus, holding)
        except Unfit as unfit:
            raise StartFailed(exit_record("device_failed", str(unfit))) from None
        if said := gpu_request.cuda_mismatch(image.environ, gpus.cuda, gpus.driver):
            self._note("cuda_mismatch", said)

    def _note(self, kind: str, message: str) -> None:
        """For the owner; told with the next fact, once."""
        notice = {"kind": kind, "message": message, "log_tail": ""}
        if notice not in self.state.notices:
            self.state.notices = [*self.state.notices, notice][-_MOST_NOTICES:]

    async def was_frozen(self) -> None:
        """By somebody else: it answers nobody, and nothing in it would ever end. It goes on, and its owner is told."""
        with contextlib.suppress(EngineError):
            await self._house.engine.thaw(self.name)
            log.warning("%s was frozen from outside, and goes on", self)
            self._note("frozen", "The session's container was frozen from outside Moorage for a moment; it goes on.")
            if self.state.observed == KernelState.RUNNING:
                await self.observe(KernelState.RUNNING)

    async def _condemn(self, why: dict[str, Any]) -> None:
        """End it by removing its container, and say why when it is gone."""
        self._condemned = why
        with contextlib.suppress(EngineError):
            await self._house.engine.remove(self.name)

    async def gpu_overused(self, said: str, *, end: bool) -> None:
        """It uses more of a shared device than it was given: its owner is told, and where it is to be ended, it is."""
        if self.state.observed != KernelState.RUNNING:
            return
        log.warning("%s: %s", self, said)
        self._note("gpu_overuse", said)
        if end:
            await self._condemn(exit_record("gpu_overused", f"{said} This host ends sessions that do so."))
        else:
            await self.observe(KernelState.RUNNING)

    async def _create_and_start(self, config: RunnerConfig) -> None:
        engine = self._house.engine
        await self._house.networks.ensure(self.spec)
        self.died.clear()
        signal = await asyncio.to_thread(self._prepare, config)
        waiting = asyncio.ensure_future(signal.wait(READY_SECONDS))
        dying = asyncio.ensure_future(self.died.wait())
        try:
            container_id: str = await self._engine(engine.create(self._container_spec()))
            self.state.container_id = container_id
            await self._engine(engine.start(container_id))
            # the runner comes up while the engine tells its process id
            state = await engine.inspect(container_id)
            if state is None or state.status != "running":
                raise StartFailed(self._classify(state))
            self._house.networks.started(self.spec)
            while True:
                await asyncio.wait({waiting, dying}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    break
                # the engine's word that it has ended may be lost, or come twice
                there = await engine.inspect(container_id)
                if there is None or there.status != "running" or dying.done():
                    raise StartFailed(self._classify(there))
            waiting.result()
        finally:
            for task in (waiting, dying):
                task.cancel()
            await asyncio.gather(waiting, dying, return_exceptions=True)
            signal.close()
        await self._connect(state)

    def _prepare(self, config: RunnerConfig) -> Any:
        self.folders.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folders.places.mkdir(mode=0o555, exist_ok=True)
        if (network := cluster.view(self.spec)) is not None:
            cluster.write_hosts(self.folders.hosts, network)
        if self.state.attempt > 1:  # the startup command runs again, under the same run id
            set_aside(self.folders.link, self.id, f"{self.id}-{self.state.attempt - 1}")
        uid, gid = self.owner
        return prepare_link(self.folders.link, config, uid=uid, gid=gid)

    async def _connect(self, state: ContainerState) -> None:
        self.died.clear()
        self.link = await RunnerLink.connect(self.folders.link, self.folders.private, state.pid)
        await self.tell_lease()
        self.state.container_id = state.id
        self.cgroup, self.pid = Cgroup.of_pid(state.pid) if state.pid else None, state.pid
        for run_id in self.link.runs:
            self.follow(run_id)
        self.tell_network()  # it may have changed while nobody could be told
        self.adjust()

    async def _reconnect(self, state: ContainerState) -> None:
        """A runner on a busy host may be slow to answer; work of hours is not given up for that."""
        for pause in _RETRY_SECONDS:
            try:
                await self._connect(state)
                return
            except RunnerError as error:
                log.warning("%s: %s", self, error)
            await asyncio.sleep(pause)
            with contextlib.suppress(EngineError):
                there = await self._house.engine.inspect(self.name)
                if there is None or there.status != "running":
                    break
        await self._connect(state)

    async def _boot(self) -> None:
        """The runner answers: bootstrap, then RUNNING, then the startup command."""
        link, spec, notices = self._linked(), self.spec, list(self.state.notices)
        await self.network_told(_TELL_SECONDS)  # it may have changed while the container came up
        if spec.mounts:
            await self._mount_volumes()
        if spec.bootstrap_script:
            run = f"bootstrap-{self.state.attempt}"
            await link.bootstrap(spec.bootstrap_script, run=run)
            done = self.rings.done(run) or {}
            if done.get("exit_code") != 0:
                said = f"The bootstrap script failed ({_how(done)})."
                tail = self.rings.text(run, _LOG_TAIL_BYTES)
                notices.append({"kind": "bootstrap_failed", "message": said, "log_tail": tail})
                if spec.bootstrap_required:
                    self.state.notices = notices
                    raise StartFailed(exit_record("bootstrap_failed", said, exit_code=_exit_code(done)))
        if spec.worker:  # before anybody hears that it runs, and asks it to load an app
            await self._serve()
        await self.observe(KernelState.RUNNING, started_at=self._house.now(), notices=notices, exit=None)
        if spec.startup_command:
            await self._start_command(spec.startup_command)

    async def _mount_volumes(self) -> None:
        """Before any code of the user runs. What was mounted before the agent was away stays as it is."""
        spec = self.spec
        try:
            if self.pid is None or self.state.container_id is None:
                raise MountFailed("the container has ended")
            folders = self._house.volumes
            await asyncio.to_thread(
                mount_all, folders, spec.mounts, self.folders.scratch, self.owner, self.pid, self.state.container_id
            )
        except MountFailed as failure:
            raise StartFailed(exit_record("mount_refused", f"{failure}.")) from None

    async def _start_command(self, command: str) -> None:
        await self._house.runs.begin(self.id, self.id, self.state.attempt)
        tail = await self._linked().execute(
            self.id, mode="batch", code=command, opts={"stdin": False}, wait_seconds=0.0
        )
        self.ran(tail)

    async def _serve(self) -> None:
        """The main work of a worker session: a run of the runner's own, which lasts as long as the app's process.

        It is no execution: nobody is told of it but by the kernel's exit.
        """
        self.ran(await self._linked().execute(self.id, mode="serve", code="", wait_seconds=0.0))

    async def _readopt(self, found: ContainerState) -> None:
        """The agent was away; the container may have gone on, or ended."""
        if found.status != "running":
            await self._ended(found)
            return
        await self._reconnect(found)
        if self.spec.startup_command:
            await self._start_command(self.spec.startup_command)
        if self.spec.worker:
            await self._serve()
        await self._account_for_runs()
        log.info("%s: found again, %d runs go on", self, len(self._following))

    # -- its lease -------------------------------------------------------------------------------------------------
    @property
    def lease_left(self) -> float:
        """Seconds that it may live without another word from the manager; not above 0: it has to end."""
        spec = self.state.spec
        if spec is None or spec.lease_seconds is None or self.state.want != Want.RUN:
            return math.inf
        return self._house.lease.left(spec.lease_seconds)

    async def tell_lease(self) -> None:
        """Its runner ends everything by itself when the lease is over: also when there is no agent, or a stopped one."""
        seconds = None if self.state.spec is None else self.state.spec.lease_seconds
        if seconds is not None and (link := self.link) is not None:
            await link.lease(self._house.lease.until(seconds), self._house.lease.left(seconds))

    async def end_unleased(self) -> None:
        """By now it may run elsewhere: first what it does is ended, then the container is removed."""
        if self._unleased or self.state.observed not in _ALIVE:
            return
        if self.state.observed != KernelState.RUNNING:
            self.pursue()
            self._unleased = True
            return
        self._condemned, self._unleased = self._lease_over(), True
        log.warning("%s: %s", self, self._condemned["message"])
        with contextlib.suppress(RunnerError):
            await self.tell_lease()
        with contextlib.suppress(EngineError):
            await self._house.engine.remove(self.name)

    def _lease_over(self) -> dict[str, Any]:
        seconds = self.spec.lease_seconds or 0.0
        said = f"The host had no answer from the manager for {seconds:g} s, and ended it: it may run elsewhere by now."
        return exit_record("fenced", said)

    # -- its size --------------------------------------------------------------------------------------------------
    def adjust(self) -> None:
        """Its slots may have changed: the container's limits follow."""
        if self._adjusting is None or self._adjusting.done():
            self._adjusting = asyncio.create_task(self._adjust(), name=f"size of {self}")

    async def adjusted(self) -> None:
        """Wait until the limits are as they are to be. For tests."""
        if self._adjusting is not None:
            await asyncio.wait({self._adjusting})

    async def _adjust(self) -> None:
        tries = 0
        while self.link is not None and (cgroup := self.cgroup) is not None:
            wanted = self._size()
            if await asyncio.to_thread(cgroup.limits) == (wanted[1] * _MIB, cpu_quota_us(wanted[0])):
                if wanted == self._size():
                    return
                continue  # other limits were asked for while these were looked at
            used = (await asyncio.to_thread(cgroup.read)).get("mem_bytes", 0)
            if used < wanted[1] * _MIB:  # else the kernel would end processes; it shrinks once they have let go
                try:
                    await self._house.engine.limit(self.name, cpu_milli=wanted[0], memory_mib=wanted[1])
                except EngineError as error:
                    log.warning("%s: its limits cannot be changed yet: %s", self, error)
                else:
                    log.info("%s: has %d milli-CPU and %d MiB now", self, *wanted)
                    if wanted == self._size():
                        return
                    continue
            await asyncio.sleep(_pause_seconds(tries))
            tries += 1

    def _size(self) -> tuple[int, int]:
        slots = self.spec.slots
        return slots.get("cpu", _DEFAULT_MILLI_CPU), slots.get("mem", _DEFAULT_MIB)

    # -- the cluster -----------------------------------------------------------------------------------------------
    def tell_network(self) -> None:
        """Kernels of its cluster came or went: its hosts file, its environment and the way to other hosts follow."""
        if self.spec.network is not None and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell_network(), name=f"network of {self}")

    async def network_told(self, seconds: float) -> None:
        """Wait until the container knows, but no longer than that."""
        if self._telling is not None:
            await asyncio.wait({self._telling}, timeout=seconds)

    async def _tell_network(self) -> None:
        tries = 0
        while (link := self.link) is not None and (wanted := self.spec.network) != self._network_known:
            try:
                await self._house.networks.ensure(self.spec)
                if (network := cluster.view(self.spec)) is not None:
                    await asyncio.to_thread(cluster.write_hosts, self.folders.hosts, network)
                await link.set_environ(self._environ({}))
                self._network_known, tries = wanted, 0
            except (EngineError, RunnerError, OSError) as error:
                log.warning("%s: its cluster has changed, which cannot be carried out yet: %s", self, error)
                await asyncio.sleep(_pause_seconds(tries))
                tries += 1

    async def _fail(self, exit: dict[str, Any]) -> None:
        log.warning("%s: %s", self, exit["message"])
        await self._lose_link()
        with contextlib.suppress(EngineError):
            await self._remove_containers()
        await self.observe(KernelState.FAILED, exit=exit)

    # -- while it runs ---------------------------------------------------------------------------------------------
    async def _attend(self) -> None:
        """Until the startup command or the container ends."""
        while self.state.observed == KernelState.RUNNING:
            link = self.link
            if link is None:
                return
            lost, finished = asyncio.ensure_future(link.lost.wait()), asyncio.ensure_future(self._finished.wait())
            try:
                await asyncio.wait({lost, finished}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                lost.cancel()
                finished.cancel()
            if self._finished.is_set():
                await self.observe(KernelState.EXITED, exit=self._main_work_ended(self.rings.done(self.id) or {}))
                return
            oom_kills = self.cgroup.oom_kills() if self.cgroup is not None else 0
            state = await self._look()
            if state is not None and state.status == "running":
                await self._lose_link()
                with contextlib.suppress(RunnerError):
                    await self._reconnect(state)
                    await self._account_for_runs()
                    continue
            await self._ended(state, oom_kills)

    async def _look(self) -> ContainerState | None:
        """The container as it is a moment after its runner was lost: the engine is a little late.

        One that does not answer says nothing, not even that the container has gone: it is asked until it does.
        """
        await self.thawed.wait()
        waits, tries = iter((0.05, 0.1, 0.2, 0.4, 0.8)), 0
        while True:
            try:
                state = await self._house.engine.inspect(self.name)
            except EngineError as error:
                log.warning("%s: %s", self, error)
                await asyncio.sleep(_pause_seconds(tries))
                tries += 1
                continue
            if state is None or state.status != "running" or (wait := next(waits, None)) is None:
                return state
            await asyncio.sleep(wait)

    async def _ended(self, state: ContainerState | None, oom_kills: int = 0) -> None:
        """The runner is gone. Its runs get their end, and the kernel its reason."""
        if state is not None and state.status in ("running", "paused"):
            with contextlib.suppress(EngineError):
                await self._engine(self._house.engine.remove(state.id))
        ended = self._classify(state, oom_kills)
        await self._lose_link()
        await self._close_runs()
        done = (self.rings.done(self.id) if self.spec.startup_command or self.spec.worker else None) or {}
        stopped = done.get("reason") == "killed" and self.spec.worker  # with the container
        if done and done.get("reason") != "worker_lost" and not stopped:
            ended = self._main_work_ended(done)
        ended = self._condemned or ended
        log.warning("%s: %s", self, ended["message"])
        await self.observe(KernelState.EXITED, exit=ended)

    def _main_work_ended(self, done: dict[str, Any]) -> dict[str, Any]:
        """By the end of its run. An app that ends its session has done its work; one whose process is lost has not."""
        if not self.spec.worker:
            ended = exit_record(
                "finished", f"The startup command ended ({_how(done)}).", exit_code=_exit_code(done), finished=True
            )
        elif done.get("reason") == "ended":
            ended = exit_record("ended", "It called moorage_session.end().", exit_code=0, finished=True)
        else:
            said = _WORKER_LOST.get(str(done.get("reason")), f"It ended with {_how(done)}.")
            ended = exit_record("worker_lost", said, exit_code=_exit_code(done))
        ended["signal"] = done.get("signal")
        return ended

    def _classify(self, state: ContainerState | None, oom_kills: int = 0) -> dict[str, Any]:
        """By the cgroup's own counters and the exit code; the engine's word on memory is sometimes wrong."""
        if state is None:
            return exit_record("disappeared", "The container was removed from outside Moorage.")
        if state.status in ("running", "paused", "created"):
            why = f": {state.error}" if state.error else ""
            return exit_record("runner_lost", f"The container's runner does not answer any more{why}.")
        code = state.exit_code
        if code == LEASE_OVER and self.spec.lease_seconds is not None:
            return self._lease_over()
        if code == 137 and (oom_kills or state.out_of_memory):
            return exit_record("out_of_memory", "The session ran out of memory.", exit_code=code, signal=9)
        if code == 137:
            return exit_record("killed", "The container was killed, nobody knows by whom.", exit_code=code, signal=9)
        if code in (0, 143):
            return exit_record("killed", "The container was stopped from outside Moorage.", exit_code=code)
        said = f" ({state.error})" if state.error else ""
        return exit_record("runner_lost", f"The container's runner ended with exit code {code}{said}.", exit_code=code)

    async def _why_no_runner(self, error: RunnerError) -> dict[str, Any]:
        with contextlib.suppress(EngineError):
            state = await self._house.engine.inspect(self.name)
            if state is not None and state.status != "running":
                return self._classify(state)
        return exit_record("create_failed", str(error))

    # -- while it is committed -------------------------------------------------------------------------------------
    async def hold_still(self) -> None:
        """By the task of a commit, before it freezes the container; what runs there is told."""
        await self.thawed.wait()
        self._committing = asyncio.current_task()
        self.thawed.clear()
        if self.link is not None:
            with contextlib.suppress(RunnerError):
                await self.link.note("the session is being committed, and stands still for a moment")

    def go_on(self) -> None:
        self._committing = None
        self.thawed.set()

    # -- runs ------------------------------------------------------------------------------------------------------
    def ran(self, tail: Tail, done: dict[str, Any] | None = None) -> None:
        """A run was started here: take note of its end, now or when it comes."""
        self.rings.saw(tail)
        self.follow(tail.run, tail if tail.done else None, done)

    def follow(self, run_id: str, tail: Tail | None = None, done: dict[str, Any] | None = None) -> None:
        if run_id not in self._following:
            task = asyncio.create_task(self._follow(run_id, tail, done), name=f"run {run_id}")
            self._following[run_id] = task
            task.add_done_callback(lambda _: self._following.pop(run_id, None))

    async def _follow(self, run_id: str, tail: Tail | None, done: dict[str, Any] | None) -> None:
        """A runner that is lost meanwhile is seen by others, and the run closed there."""
        with contextlib.suppress(RunnerError):
            ended = tail or await follow(self._linked(), run_id)
            serves = run_id == self.id and self.state.spec is not None and self.state.spec.worker
            if not serves and not run_id.startswith(("bootstrap", "service-")):
                done = done or self.rings.done(run_id) or {}
                await self._house.runs.finished(run_id, self.id, self.state.attempt, done, ended.seq)
            if run_id == self.id:
                self._finished.set()

    async def _account_for_runs(self) -> None:
        """What ended while the agent was away is told; what was never delivered may be delivered yet."""
        running = self._linked().runs
        for run_id, attempt in await self._house.runs.unfinished(self.id):
            if run_id in running:
                continue
            if (end := await asyncio.to_thread(self.rings.end, run_id)) is not None:
                await self._house.runs.finished(run_id, self.id, attempt, *end)
                if run_id == self.id:
                    self._finished.set()
            else:
                await self._house.runs.refused(run_id)

    async def _close_runs(self) -> None:
        """No runner is alive: every run has ended, one way or another."""
        house = self._house
        uid, gid = self.owner
        await asyncio.to_thread(close_unfinished, self.folders.link, now=house.now(), uid=uid, gid=gid)
        lost = {"reason": "runner_lost", "finished_at": house.now()}
        for run_id, attempt in await house.runs.unfinished(self.id):
            done, last_seq = await asyncio.to_thread(self.rings.end, run_id) or (lost, 0)
            await house.runs.finished(run_id, self.id, attempt, done, last_seq)

    # -- down ------------------------------------------------------------------------------------------------------
    async def _take_down(self) -> None:
        """Gone when the engine's list says so. An engine that does not answer is asked for as long as it takes."""
        tries = 0
        while True:
            try:
                await self._remove_containers()
                self._off_network = True
                if self.state.spec is not None and self.state.spec.cluster is not None:
                    await self._house.release_network(self.id, self.state.spec.session_id)
                break
            except EngineError as error:
                log.warning("%s: %s", self, error)
            await asyncio.sleep(_pause_seconds(tries))
            tries += 1
        await self._give_gpus_back()
        if self.state.spec is not None and self.state.spec.outputs:
            await self._keep_outputs(self.state.spec.outputs)
        await asyncio.to_thread(self.folders.discard, self._house.data_dir / "trash" / uuid4().hex)
        self.rings.close()
        await self.observe(KernelState.GONE, container_id=None)

    async def _give_gpus_back(self) -> None:
        """Before it is told to be gone: then they are given to the next."""
        holding = Holding.of(self.state)
        if holding is None or holding.container_id is None:  # none, or it never had them
            return
        try:
            await take_back(self._house.gpus, holding)
        except Exception:  # the end of a session is not held up by a look at its devices
            log.exception("%s: its GPUs could not be looked at", self)

    async def _keep_outputs(self, patterns: Sequence[str]) -> None:
        try:
            await asyncio.to_thread(keep, self.folders.scratch, self.folders.results, patterns)
            reach("agent.files.results.kept")
        except OSError as error:  # the end of a session is not held up by its files
            log.warning("%s: its results could not all be kept: %s", self, error)

    async def _remove_containers(self) -> None:
        """Everything of this kernel, whatever the attempt; the runner first ends what runs, within the grace."""
        engine = self._house.engine
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.wait({self._committing})
        if self.link is not None and not self.link.lost.is_set():
            with contextlib.suppress(RunnerError, TimeoutError):
                async with asyncio.timeout(self.state.grace_seconds + 5.0):
                    await self.link.shutdown(self.state.grace_seconds)
        while there := await engine.ours(kernel=self.id):
            for container in there:
                await self._engine(engine.remove(container.id))
        await self._lose_link()
        await self._close_runs()

    async def _lose_link(self) -> None:
        if self.link is not None:
            await self.link.close()
        self.link = self.cgroup = self.pid = None
        self._finished.clear()
        following = list(self._following.values())
        for task in following:
            task.cancel()
        if following:
            await asyncio.wait(following)

    # -- pieces ----------------------------------------------------------------------------------------------------
    async def _engine(self, call: Awaitable[T]) -> T:
        """Ask the engine for a change. Who is cancelled meanwhile leaves the call for the next one to wait for."""
        self._engine_call = asyncio.ensure_future(call)
        answer: T = await asyncio.shield(self._engine_call)
        self._engine_call = None
        return answer

    def _linked(self) -> RunnerLink:
        if self.link is None:
            raise RunnerError("runner_lost", "The session's runner is gone.")
        return self.link

    def _environ(self, image: Mapping[str, str]) -> dict[str, str]:
        given = {**cluster.environ(self.spec), **self.spec.environ}
        return gpu_request.process_environ(Holding.of(self.state), image, given)

    def _runner_config(self, image_environ: Any) -> RunnerConfig:
        spec, defaults = self.spec, self._house.defaults
        self._network_known = spec.network  # it may change before the container is there
        quota_mib = self._quota_mib
        return RunnerConfig(
            environ={"HOME": "/home/work", **self._environ(image_environ)},
            file_roots=(*(target for _, target in defaults.mounts), *(str(mount["path"]) for mount in spec.mounts)),
            quota_bytes=quota_mib * 1024 * 1024 if quota_mib else None,
            context={
                "session_id": spec.session_id,
                "session_name": spec.session_name,
                "kernel_id": self.id,
                "role": spec.role,
                "index": spec.index,
                "attempt": self.state.attempt,
                "image": spec.image,
                "slots": spec.slots,
            },
            attempt=self.state.attempt,
        )

    def _container_spec(self) -> ContainerSpec:
        house, spec, holding = self._house, self.spec, Holding.of(self.state)
        network = cluster.view(spec)
        memory = spec.slots.get("mem", _DEFAULT_MIB)
        mounts = [
            (house.runtime, runtime.RUNTIME_IN_CONTAINER, True),
            (self.folders.link, runtime.LINK_IN_CONTAINER, False),
            (self.folders.scratch, "/home/work", False),
            *((source, target, True) for source, target in house.defaults.mounts),
        ]
        if network is not None:
            mounts.append((self.folders.hosts, "/etc/hosts", True))
        # volumes go to the places that they have at home, or over these
        outside = [
            path for mount in spec.mounts if not is_at_home(path := str(mount["path"])) and may_be_mounted_at(path)
        ]
        mounts += [(self.folders.places, path, True) for path in outside]
        return ContainerSpec(
            name=self.name,
            image=spec.image,
            entrypoint=runtime.command(house.runtime),
            hostname=_hostname(spec.session_name) if network is None else cluster.kernel_name(spec),
            labels={
                "moorage.kernel": self.id,
                "moorage.attempt": str(self.state.attempt),
                "moorage.session": spec.session_id,
                "moorage.slots": ",".join(f"{name}={amount}" for name, amount in spec.slots.items()),
            },
            cpu_milli=spec.slots.get("cpu", _DEFAULT_MILLI_CPU),
            memory_mib=memory,
            shm_mib=spec.shm_mib or max(memory // 2, 1),
            pids=spec.pids or house.defaults.pids,
            mounts=mounts,
            gpus={uuid: house.gpus.other_names(uuid) for uuid in holding.devices} if holding is not None else {},
            user=self.user,
            network=self._network(),
            address=None if network is None else network.address,
            profile=spec.profile,
            offline=spec.egress == Egress.NONE,
            layer_mib=self._quota_mib,
        )

    def _network(self) -> str | None:
        """A session of one container that may reach nothing has no network: services come by the runner's socket."""
        if cluster.view(self.spec) is not None:
            return cluster.network_name(self.spec.session_id)
        return None if self.spec.egress == Egress.NONE else self._house.defaults.network


def _pause_seconds(tries: int) -> float:
    """Before asking again what was not answered, the longer the more often it was not."""
    return _RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)]


def _hostname(session_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", session_name).strip("-")[:63] or "session"


def _exit_code(done: dict[str, Any]) -> int | None:
    code = done.get("exit_code")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _how(done: dict[str, Any]) -> str:
    if done.get("signal"):
        return f"signal {done['signal']}"
    code = _exit_code(done)
    return f"exit code {code}" if code is not None else str(done.get("reason") or "no exit code")[:64]
