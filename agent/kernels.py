"""All kernels of this host: takes on intents, finds everything again after a start, forgets what is long gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from agent import loops
from agent.cluster import Networks
from agent.containers import Containers, ContainerState, EngineError, ImageConfig
from agent.disk import DiskWatch
from agent.gpus import Gpus
from agent.intent import Intent, Step, Stored, decide
from agent.kernel import Defaults, Kernel
from agent.lease import LOOK_SECONDS, Lease
from agent.relief import Relief
from agent.rings import RingReader, RunnerError
from agent.runs import Runs
from agent.sampling import PERIOD_SECONDS, Sampler
from agent.scratch import empty
from agent.services import Services
from agent.snapshots import HELPER_LABEL, Snapshots
from agent.store import Store, StoredKernel
from agent.volumes import Volumes
from agent.wire import Fact, KernelSpec
from domain.errors import InvalidRequest
from domain.session import KernelState, Want

log = logging.getLogger("moorage.agent.kernels")
KEEP_SECONDS: Final = 7 * 86400.0
_LOOK_SECONDS: Final = 10.0
_TELL_SECONDS: Final = 2.0
_PURGE_SECONDS: Final = 600.0
_HOLDING: Final = frozenset({KernelState.PREPARING, KernelState.PULLING, KernelState.RUNNING})
_THAW_SECONDS: Final = 60.0
T = TypeVar("T")
Progress = Callable[[dict[str, Any]], Awaitable[None]]
Credentials = Callable[[str, str], Awaitable[dict[str, str] | None]]


class Kernels:
    """`recover` before use. `changed` is set when there is a fact or the end of a run to tell."""

    def __init__(
        self,
        store: Store,
        engine: Containers,
        data_dir: Path,
        runtime: Path,
        *,
        defaults: Defaults | None = None,
        clock: Callable[[], float] = time.time,
        most_starts: int | None = None,
        sample_seconds: float = PERIOD_SECONDS,
        networks: Networks | None = None,
        lease: Lease | None = None,
        volumes: Volumes | None = None,
        gpus: Gpus | None = None,
    ) -> None:
        self.store = store
        self.engine = engine
        self.data_dir = data_dir
        self.runtime = runtime
        self.defaults = defaults or Defaults()
        self.networks = networks or Networks(engine)
        self.lease = lease or Lease()
        self.volumes = volumes  #: None: this host keeps none
        self.changed = asyncio.Event()
        self.runs = Runs(store, self.changed)
        self.services = Services(store, self.find, now=self.now, changed=self.changed)
        #: beyond this many starts at a time, the engine only gets slower; the rest queues in order
        self.starts = asyncio.Semaphore(most_starts or 2 * (os.cpu_count() or 1))
        self.quarantined: list[str] = []  #: containers with our uid that we do not know
        self.progress: Progress = _nobody_listens
        self.credentials: Credentials = _nobody_knows
        self.snapshots = Snapshots(engine, data_dir, store.uid, clock)
        self._clock = clock
        self._kernels: dict[str, Kernel] = {}
        self.gpus = gpus or Gpus()
        self.gpus.states = lambda: [kernel.state for kernel in self._kernels.values()]
        self.gpus.overused = self._gpu_overused
        self.sampler = Sampler(
            lambda: list(self._kernels.values()), now=clock, period_seconds=sample_seconds, gpus=self.gpus
        )
        self.disk = DiskWatch(self._writing, data_dir, reserve_bytes=self.defaults.disk_reserve_mib << 20)
        self._seq = itertools.count(1)
        self._told: dict[str, int] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()

    # -- what kernels share ------------------------------------------------------------------------------------------
    def now(self) -> float:
        return self._clock()

    def next_seq(self) -> int:
        return next(self._seq)

    def news(self) -> None:
        self.changed.set()

    async def ensure_image(self, kernel_id: str, image: str) -> ImageConfig:
        if (there := await self.engine.image(image)) is not None:
            return there
        await self._kernels[kernel_id].observe(KernelState.PULLING)
        await self.pull(image, {"kernel_id": kernel_id}, await self.credentials(kernel_id, image))
        if (there := await self.engine.image(image)) is None:
            raise EngineError("it was fetched and is not there", missing="image")
        return there

    async def release_network(self, kernel_id: str, session_id: str) -> None:
        """With the last kernel of a cluster, its network goes. One that the engine will not let go stays till the next start."""

        def still_needed() -> bool:
            return any(kernel.id != kernel_id and kernel.holds_network(session_id) for kernel in self._kernels.values())

        try:
            await self.networks.release(session_id, still_needed)
        except EngineError as error:
            if error.unknown:
                raise
            log.warning("the network of session %s stays: %s", session_id, error)

    async def fill(self, kernel: Kernel, image: ImageConfig) -> None:
        await self.snapshots.fill(kernel, image)

    def _gpu_overused(self, kernel_id: str, said: str, end: bool) -> None:
        if (kernel := self._kernels.get(kernel_id)) is not None:
            self._spawn(kernel.gpu_overused(said, end=end))

    async def pull(self, image: str, about: dict[str, Any], auth: dict[str, str] | None = None) -> None:
        """Fetch an image, once however many ask for it. `about` goes with the progress."""
        loop, last = asyncio.get_running_loop(), 0.0

        def progress(current: int, total: int, message: str) -> None:
            nonlocal last
            if loop.time() - last >= 0.25:
                last = loop.time()
                self.tell_progress({**about, "current": current, "total": total, "message": message})

        if (task := self._pulls.get(image)) is None:
            pulling = self.engine.pull(image, progress, auth)
            task = self._pulls[image] = asyncio.create_task(pulling, name=f"pull {image}")
            task.add_done_callback(lambda _: self._pulls.pop(image, None))
        else:
            log.info("%s is being fetched already", image)
        await asyncio.shield(task)

    def tell_progress(self, said: dict[str, Any]) -> None:
        self._spawn(self.progress(said))

    # -- intents -------------------------------------------------------------------------------------------------------
    def find(self, kernel_id: str) -> Kernel | None:
        return self._kernels.get(kernel_id)

    async def ensure(
        self,
        kernel_id: str,
        attempt: int,
        *,
        generation: int,
        want: str,
        spec: KernelSpec | None,
        grace_seconds: float = 10.0,
    ) -> Fact:
        """See `agent.client.AgentClient.ensure`. On disk before anything is done."""
        request = Intent(attempt, generation, Want(want))
        if spec is None and request.want is Want.RUN:
            raise InvalidRequest("An intent to run says what to run.")
        kernel = self._kernels.get(kernel_id)
        if kernel is None and spec is not None and spec.begun:
            log.error(
                "kernel %s has begun, as the manager knows, and nothing of it is here; it does not begin again",
                kernel_id,
            )
            request = replace(request, want=Want.GONE)
        if kernel is None:
            unheard_of = StoredKernel(
                kernel_id=kernel_id,
                attempt=0,
                generation=0,
                want=Want.GONE,
                observed=KernelState.GONE,
                changed_at=self.now(),  # or a purge in between would take it for a very old one
            )
            kernel = self._kernels[kernel_id] = Kernel(unheard_of, self)
        # Who asks may go away meanwhile; an intent that is on disk and pursued by nobody would be stuck for good.
        return await asyncio.shield(self._spawn(self._take_on(kernel, request, spec, grace_seconds)))

    async def _take_on(self, kernel: Kernel, request: Intent, spec: KernelSpec | None, grace_seconds: float) -> Fact:
        async with kernel.intents:
            self._kernels.setdefault(kernel.id, kernel)  # it may have been forgotten a moment ago
            state = kernel.state
            known = Stored(Intent(state.attempt, state.generation, Want(state.want)), KernelState(state.observed))
            step = decide(known if state.attempt or state.generation else None, request)
            if step in (Step.STALE, Step.SAME):
                return kernel.fact()
            changes: dict[str, Any] = {
                "attempt": request.attempt,
                "generation": request.generation,
                "grace_seconds": grace_seconds,
                "told": False,
            }
            match step:
                case Step.START | Step.REPLACE:
                    changes |= {
                        "want": Want.RUN,
                        "spec": spec,
                        "observed": KernelState.PREPARING,
                        "exit": None,
                        "started_at": None,
                        "notices": [],
                        "container_id": None,
                        "changed_at": self.now(),
                    }
                case Step.REMOVE:
                    changes |= {"want": Want.GONE}
                case Step.TOMBSTONE:
                    changes |= {"want": Want.GONE, "observed": KernelState.GONE, "changed_at": self.now()}
                case _ if spec is not None and request.want is Want.RUN and state.want == Want.RUN:
                    # Who belongs to its cluster has changed. Told first: who reads that the intent was taken on may
                    # count on it, and one that was not is sent again.
                    state.spec = changes["spec"] = spec
                    kernel.adjust()
                    kernel.tell_network()
                    await kernel.network_told(_TELL_SECONDS)
                case _:
                    pass
            await self.store.save(replace(state, **changes))
            # What was observed of the former intent while that was written stays with the former intent.
            kernel.state = replace(kernel.state, **changes)
            kernel.seq = self.next_seq()
            self.news()
            if step in (Step.START, Step.REPLACE, Step.REMOVE):
                kernel.pursue(replaces=step is Step.REPLACE)
            return kernel.fact()

    # -- facts -----------------------------------------------------------------------------------------------------------
    def inventory(self) -> list[Fact]:
        """Everything but what is gone and known to be."""
        return [
            kernel.fact()
            for kernel in self._kernels.values()
            if kernel.state.generation and not (kernel.state.told and kernel.state.observed == KernelState.GONE)
        ]

    def holds(self) -> dict[str, dict[str, int]]:
        """The slots and devices of every kernel that has a container, or is to have one."""
        return {
            kernel.id: {**kernel.state.spec.slots, **kernel.state.spec.devices}
            for kernel in self._kernels.values()
            if kernel.state.spec is not None and kernel.state.observed in _HOLDING
        }

    async def epoch_is(self, epoch: int) -> None:
        """Of the managers' database. A new one was restored from a backup: what it was told since then, it does not know."""
        before = await self.store.epoch()
        if epoch == before:
            return
        if before:
            log.warning("the managers' database was restored from a backup; telling everything again")
            for kernel in self._kernels.values():
                kernel.state.told = False
            self._told.clear()
            await self.runs.tell_again()
            self.services.tell_again()
        await self.store.keep_epoch(epoch)
        self.news()

    async def census(self) -> dict[str, Any]:
        """What the engine really has, container by container."""
        containers = []
        for one in await self.engine.ours():
            if HELPER_LABEL in one.labels or (limits := await self.engine.limits(one.id)) is None:
                continue  # it packs or unpacks files for a moment, or has gone meanwhile
            labels = one.labels
            row = {
                "name": one.name,
                "kernel_id": labels.get("moorage.kernel"),
                "attempt": labels.get("moorage.attempt"),
            }
            containers.append({**row, "status": one.status, **limits})
        networks = [labels.get("moorage.session") for labels in (await self.engine.made_networks()).values()]
        return {"containers": containers, "networks": networks}

    def pending(self) -> Sequence[Fact]:
        return [
            kernel.fact()
            for kernel in self._kernels.values()
            if kernel.state.generation and self._told.get(kernel.id, 0) < kernel.seq and not kernel.state.told
        ]

    def acknowledged(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if fact.boot_no != self.store.boot_no:
                continue
            self._told[fact.kernel_id] = max(self._told.get(fact.kernel_id, 0), fact.seq)
            kernel = self._kernels.get(fact.kernel_id)
            if kernel is not None and kernel.seq == fact.seq and fact.observed == KernelState.GONE:
                kernel.state.told = True
                self._spawn(self.store.save(kernel.state))

    # -- start and end ---------------------------------------------------------------------------------------------------
    async def recover(self) -> None:
        """After a start: match containers with what is remembered, and go on where the last daemon was stopped."""
        await self.runs.load()
        await self.snapshots.sweep()
        there: dict[str, list[ContainerState]] = {}
        for container in await self.engine.ours():
            there.setdefault(container.labels.get("moorage.kernel", ""), []).append(container)
        for stored in await self.store.kernels():
            self._kernels[stored.kernel_id] = Kernel(stored, self)
        known = list(self._kernels.values())
        found = await asyncio.gather(*(self._find(kernel, there.pop(kernel.id, [])) for kernel in known))
        for kernel, one in zip(known, found, strict=True):
            self._resume(kernel, one)
        await self._sweep_disks()
        await self.services.recover()
        self.quarantined = [container.name for containers in there.values() for container in containers]
        await self.networks.sweep(
            {
                kernel.state.spec.session_id
                for kernel in self._kernels.values()
                if kernel.state.spec is not None and kernel.state.observed != KernelState.GONE
            }
        )
        await self.sweep_late()
        if self.quarantined:
            log.error("containers that carry our name but are not known, left alone: %s", ", ".join(self.quarantined))

    async def _find(self, kernel: Kernel, there: Sequence[ContainerState]) -> ContainerState | None:
        """Its container, of those that are there; side by side, as many as the engine is asked at a time."""
        found = None
        for container in there:
            if container.status == "paused":
                log.warning("%s was frozen, by a commit that was cut short; thawing it", container.name)
                await self.engine.thaw(container.id)
            if container.name == kernel.name:
                found = await self.engine.inspect(container.id)
        return found

    async def _sweep_disks(self) -> None:
        wanted = {k.folders.root for k in self._kernels.values() if k.state.observed != KernelState.GONE}
        try:
            for folder in await asyncio.to_thread(loops.sweep, self.data_dir / "kernels", wanted):
                log.warning("the disk at %s was left over; removed it", folder)
        except (loops.NoDisk, OSError) as error:
            log.error("disks that were left over cannot be removed: %s", error)

    def _resume(self, kernel: Kernel, found: ContainerState | None) -> None:
        state = kernel.state
        if state.want == Want.GONE:
            if state.observed != KernelState.GONE:
                kernel.pursue()
        elif state.observed in (KernelState.PREPARING, KernelState.PULLING, KernelState.RUNNING):
            kernel.pursue(found=found, replaces=found is None and state.observed != KernelState.RUNNING)

    def _writing(self) -> list[Kernel]:
        return [kernel for kernel in self._kernels.values() if kernel.state.observed == KernelState.RUNNING]

    def on_event(self, container_id: str, action: str) -> None:
        """A hint from the engine: look before the runner's silence tells it."""
        for kernel in self._kernels.values():
            if kernel.state.container_id != container_id:
                continue
            if action != "pause":
                kernel.died.set()
            elif kernel.thawed.is_set():  # else it is we who freeze it, for a commit
                self._spawn(kernel.was_frozen())

    async def watch(self) -> None:
        """Follow the engine's hints, and empty what is thrown away. Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_leases())
            group.create_task(self._watch_engine())
            group.create_task(Relief(self._kernels.values).run())
            group.create_task(self.sampler.run())
            group.create_task(self.gpus.run())
            group.create_task(self._clean())
            group.create_task(self.networks.watch())
            group.create_task(self.disk.run())

    def renewed(self, sent_at: float) -> None:
        """A control process has answered what was sent then."""
        self.lease.renewed(sent_at)
        for kernel in self._kernels.values():
            if (
                kernel.link is not None
                and kernel.state.spec is not None
                and kernel.state.spec.lease_seconds is not None
            ):
                self._spawn(self._tell_lease(kernel))

    async def _tell_lease(self, kernel: Kernel) -> None:
        try:
            await kernel.tell_lease()
        except RunnerError as error:
            log.warning("%s: its runner was not told of its lease: %s", kernel, error)

    async def _watch_leases(self) -> None:
        """On this host's own clock. What is over is ended before anything else is done about it."""
        while True:
            for kernel in list(self._kernels.values()):
                if kernel.lease_left <= 0:
                    self._spawn(kernel.end_unleased())
            await asyncio.sleep(LOOK_SECONDS)

    async def _watch_engine(self) -> None:
        while True:
            with contextlib.suppress(EngineError):
                await self.engine.watch(self.on_event)
            await asyncio.sleep(1.0)
            self.networks.look.set()

    async def _clean(self) -> None:
        next_purge = next_thaw = 0.0
        while True:
            if time.monotonic() >= next_thaw:
                next_thaw = time.monotonic() + _THAW_SECONDS
                with contextlib.suppress(EngineError):
                    await self.snapshots.thaw_forgotten(self._holds_still)
                    await self.sweep_late()
            await asyncio.to_thread(empty, self.data_dir / "trash")
            if time.monotonic() >= next_purge:
                next_purge = time.monotonic() + _PURGE_SECONDS
                await self.purge(self.now())
            await asyncio.sleep(_LOOK_SECONDS)

    async def sweep_late(self) -> None:
        """Containers that came when their kernel had gone: what was asked of the engine, and not answered, may still be done."""
        for container in await self.engine.ours():
            kernel = self._kernels.get(container.labels.get("moorage.kernel", ""))
            if kernel is None or HELPER_LABEL in container.labels:
                continue
            state, attempt = kernel.state, container.labels.get("moorage.attempt", "")
            gone = state.want == Want.GONE and state.observed == KernelState.GONE
            former = attempt.isdigit() and int(attempt) < state.attempt and state.observed == KernelState.RUNNING
            if gone or former:
                log.warning("%s came after its kernel had gone; removing it", container.name)
                await self.engine.remove(container.id)

    def _holds_still(self, kernel_id: str) -> bool:
        kernel = self._kernels.get(kernel_id)
        return kernel is not None and not kernel.thawed.is_set()

    async def purge(self, now: float, keep_seconds: float = KEEP_SECONDS) -> list[str]:
        """Forget kernels that have been gone for so long, with their output; and old runs of those that live. Which."""
        forgotten = []
        for kernel in list(self._kernels.values()):
            async with kernel.intents:
                state = kernel.state
                if state.want != Want.GONE or state.observed != KernelState.GONE:
                    continue
                if state.changed_at < now - keep_seconds:
                    await self._forget(kernel)
                    forgotten.append(kernel.id)
        for kernel in list(self._kernels.values()):
            if kernel.state.observed == KernelState.RUNNING:
                await asyncio.to_thread(_purge_rings, kernel.folders.link, now - keep_seconds)
        return forgotten

    async def _forget(self, kernel: Kernel) -> None:
        kernel.rings.close()
        trash = self.data_dir / "trash" / uuid4().hex
        if kernel.folders.root.exists():
            trash.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kernel.folders.root.rename(trash)
            await asyncio.to_thread(shutil.rmtree, trash, ignore_errors=True)
        await self.store.forget([kernel.id])
        self._kernels.pop(kernel.id, None)
        self._told.pop(kernel.id, None)

    async def close(self) -> None:
        """Let go of everything; containers and what runs in them go on."""
        await self.snapshots.close()
        await self.services.close()
        await self.gpus.close()
        await asyncio.gather(*(kernel.let_go() for kernel in self._kernels.values()))
        for task in list(self._pulls.values()):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.runs.close()

    def _spawn(self, work: Awaitable[T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _purge_rings(link_dir: Path, older_than: float) -> None:
    with contextlib.suppress(RunnerError):
        reader = RingReader(link_dir)
        try:
            reader.purge(older_than)
        finally:
            reader.close()


async def _nobody_listens(_said: dict[str, Any]) -> None:
    return


async def _nobody_knows(_kernel_id: str, _image: str) -> dict[str, str] | None:
    return None
