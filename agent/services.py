"""Services of kernels: started, waited for, watched, started again with growing pauses. Goes on after a restart of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agent.health import answer_of
from agent.kernel import Kernel
from agent.rings import RunnerError
from agent.runner_link import RunnerLink
from agent.runs import follow
from agent.store import Store
from agent.wire import ServiceFact, ServiceSpec
from domain.errors import PortConflict, ServiceEnded, ServiceSilent, SessionEnded
from domain.session import KernelState

log = logging.getLogger("moorage.agent.services")

#: What a run of ours is called; no user's run is.
RUN_PREFIX: Final = "service-"
_PAUSES: Final = (0.2, 1.0, 3.0, 10.0, 30.0)
#: Restarts are counted within this time.
_COUNTED_SECONDS: Final = 600.0
_PROBE_SECONDS: Final = 5.0
#: Unhealthy after so many unanswered probes; one answer makes it healthy.
_MISSES: Final = 2
_TAIL_BYTES: Final = 4096
_SHORT_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 5.0


@dataclass(slots=True, kw_only=True)
class Service:
    """One service of one kernel; `fact` is what was last seen of it."""

    kernel_id: str
    attempt: int
    spec: ServiceSpec
    fact: ServiceFact
    starts: int = 0  #: of its program, which number its runs
    settled: bool = False  #: it has answered once; what dies before is not started again
    silent: bool = False  #: it ran, and did not answer in time
    ends: list[float] = field(default_factory=list)  #: when it ended by itself, of late
    seq: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def run_id(self) -> str:
        return f"{RUN_PREFIX}{self.spec.name}-{self.attempt}-{self.spec.generation}-{self.starts}"


class Services:
    """All services of this host. `changed` is set when there is something to tell."""

    def __init__(
        self,
        store: Store,
        find: Callable[[str], Kernel | None],
        *,
        now: Callable[[], float],
        changed: asyncio.Event,
        probe_seconds: float = _PROBE_SECONDS,
    ) -> None:
        self._store = store
        self._find = find
        self._now = now
        self._changed = changed
        self._probe_seconds = probe_seconds
        self._services: dict[tuple[str, str], Service] = {}
        self._seq = 0
        self._told: dict[tuple[str, str], int] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """After a start of the agent: what was started goes on, and is told of again."""
        for row in await self._store.services():
            service = Service(
                kernel_id=row["kernel_id"],
                attempt=row["attempt"],
                spec=ServiceSpec.unpack(row["spec"]),
                fact=ServiceFact.unpack(row["fact"]),
                starts=row["starts"],
                settled=row["settled"],
            )
            self._keep(service)

    async def close(self) -> None:
        """Let go; the programs go on."""
        tasks = [service.task for service in self._services.values() if service.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._background, return_exceptions=True)

    # -- asked for -----------------------------------------------------------------------------------------------------
    async def start(self, kernel: Kernel, spec: ServiceSpec) -> ServiceFact:
        """Until it answers; who asks again for the same generation waits for the same start.

        ServiceEnded or ServiceSilent when it does not, PortConflict when something else listens on its port already;
        nothing is left of it then.
        """
        name, attempt = (kernel.id, spec.name), kernel.state.attempt
        service = self._services.get(name)
        if service is not None and (service.attempt, service.spec.generation) < (attempt, spec.generation):
            await self.stop(kernel, spec.name)
            service = None
        if service is None:
            link = kernel.link
            if spec.argv and link is not None and await link.listening(spec.port):
                raise PortConflict(
                    f"Port {spec.port} is in use in the session already; choose another port, or end what listens there.",
                    port=spec.port,
                )
            service = self._services.get(name)  # somebody else may have been faster
        if service is None:
            fact = ServiceFact(
                kernel_id=kernel.id, attempt=attempt, name=spec.name, generation=spec.generation, state="starting"
            )
            service = Service(kernel_id=kernel.id, attempt=attempt, spec=spec, fact=fact)
            self._services[name] = service
            await self._save(service)
            self._keep(service)
        return await self._settled(service)

    async def _settled(self, service: Service) -> ServiceFact:
        while not service.settled and service.task is not None and not service.task.done():
            service.changed.clear()
            waiting = asyncio.ensure_future(service.changed.wait())
            try:
                await asyncio.wait({waiting, service.task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
        fact = service.fact
        if service.settled:
            return fact
        if fact.state == "stopped":
            raise SessionEnded(fact.message)
        said = fact.message or "The service was shut down before it answered."
        if tail := (fact.log_tail or "").strip():
            said = f"{said} Its last output: {tail}"
        raise (ServiceSilent if service.silent else ServiceEnded)(said)

    async def stop(self, kernel: Kernel, name: str) -> None:
        """SIGTERM, then SIGKILL. Nothing happens when there is no such service."""
        if (service := self._services.pop((kernel.id, name), None)) is None:
            return
        if service.task is not None:
            service.task.cancel()
            await asyncio.gather(service.task, return_exceptions=True)
        if service.spec.argv and service.starts and kernel.link is not None:
            with contextlib.suppress(RunnerError):
                await kernel.link.terminate(service.run_id, _STOP_SECONDS)
        await self._store.forget_service(kernel.id, name)
        service.changed.set()

    # -- told ------------------------------------------------------------------------------------------------------------
    def pending(self) -> Sequence[ServiceFact]:
        return [
            replace(service.fact, boot_no=self._store.boot_no, seq=service.seq)
            for name, service in self._services.items()
            if service.settled and self._told.get(name, 0) < service.seq
        ]

    def tell_again(self) -> None:
        self._told.clear()

    def acknowledged(self, facts: Iterable[ServiceFact]) -> None:
        for fact in facts:
            if fact.boot_no == self._store.boot_no:
                name = (fact.kernel_id, fact.name)
                self._told[name] = max(self._told.get(name, 0), fact.seq)
                service = self._services.get(name)
                if service is not None and service.fact.state == "stopped" and service.seq == fact.seq:
                    del self._services[name]
                    self._spawn(self._store.forget_service(*name))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- supervision -------------------------------------------------------------------------------------------------------
    def _keep(self, service: Service) -> None:
        name = (service.kernel_id, service.spec.name)
        self._services[name] = service
        self._seq += 1
        service.seq = self._seq
        self._changed.set()
        service.task = asyncio.create_task(self._supervise(service), name=f"service {service.spec.name}")

    async def _observe(self, service: Service, state: str, **changes: Any) -> None:
        fact = replace(service.fact, state=state, at=self._now(), run_id=service.run_id, **changes)
        if state == "healthy":
            service.settled = True
        service.fact = fact
        await self._save(service)
        self._seq += 1
        service.seq = self._seq
        service.changed.set()
        self._changed.set()

    async def _save(self, service: Service) -> None:
        await self._store.save_service(
            {
                "kernel_id": service.kernel_id,
                "name": service.spec.name,
                "attempt": service.attempt,
                "spec": service.spec.pack(),
                "fact": service.fact.pack(),
                "starts": service.starts,
                "settled": service.settled,
            }
        )

    async def _supervise(self, service: Service) -> None:
        """Until the kernel, or this attempt of it, is over, or the service has failed for good."""
        try:
            if service.fact.state in ("failed", "stopped"):
                return
            while (kernel := self._there(service)) is not None:
                link = kernel.link
                if link is None:  # on its way, or being looked for
                    await asyncio.sleep(_SHORT_SECONDS)
                    continue
                with contextlib.suppress(RunnerError):
                    if not await self._run_once(service, kernel, link):
                        return
                    continue
                await asyncio.sleep(_SHORT_SECONDS)  # the runner was lost; whether the kernel is, will be known
            await self._observe(service, "stopped", message="The session has ended.")
        finally:
            if not service.settled and service.fact.state in ("failed", "stopped"):
                self._services.pop((service.kernel_id, service.spec.name), None)
                await self._store.forget_service(service.kernel_id, service.spec.name)

    def _there(self, service: Service) -> Kernel | None:
        kernel = self._find(service.kernel_id)
        if kernel is None or kernel.state.attempt != service.attempt:
            return None
        over = (KernelState.EXITED, KernelState.FAILED, KernelState.GONE)
        return None if kernel.state.observed in over else kernel

    async def _run_once(self, service: Service, kernel: Kernel, link: RunnerLink) -> bool:
        """From a start of the program to its end; False when it shall not be started again."""
        if not service.spec.argv:
            return await self._watch(service, link)
        if not service.starts or kernel.rings.done(service.run_id) is not None:
            service.starts += 1
            await self._save(service)  # before it is started: a run id starts once, also for an agent that comes back
        environ = {**service.spec.environ, "MOORAGE_SERVICE": service.spec.name, "PORT": str(service.spec.port)}
        opts = {"argv": service.spec.argv, "stdin": False, "environ": environ}
        await link.execute(service.run_id, mode="batch", code="", opts=opts)
        ended = asyncio.create_task(follow(link, service.run_id))
        watching = asyncio.create_task(self._watch(service, link))
        try:
            await asyncio.wait({ended, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                again = watching.result()  # it never answered; a RunnerError passes on
                await link.terminate(service.run_id, _STOP_SECONDS)
                return again
            ended.result()
        finally:
            for task in (ended, watching):
                task.cancel()
            await asyncio.gather(ended, watching, return_exceptions=True)
        return await self._ended(service, kernel)

    async def _ended(self, service: Service, kernel: Kernel) -> bool:
        done = kernel.rings.done(service.run_id) or {}
        tail = await asyncio.to_thread(kernel.rings.text, service.run_id, _TAIL_BYTES)
        how = f"exit code {done.get('exit_code')}" if not done.get("signal") else f"signal {done.get('signal')}"
        said = f"The service's process ended ({how})."
        if not service.settled:
            await self._observe(service, "failed", message=said, log_tail=tail)
            return False
        now = self._now()
        service.ends = [at for at in service.ends if now - at < _COUNTED_SECONDS] + [now]
        if len(service.ends) > service.spec.most_restarts:
            said = f"{said} It ended {len(service.ends)} times within 10 minutes, and is not started again."
            await self._observe(service, "failed", message=said, log_tail=tail)
            return False
        restarts = service.fact.restarts + 1
        await self._observe(
            service, "unhealthy", message=f"{said} It is started again.", log_tail=tail, restarts=restarts
        )
        await asyncio.sleep(_PAUSES[min(len(service.ends) - 1, len(_PAUSES) - 1)])
        return True

    # -- health ------------------------------------------------------------------------------------------------------------
    async def _watch(self, service: Service, link: RunnerLink) -> bool:
        """Probe until cancelled. False when it did not answer in the time that it has for its first answer."""
        spec, loop = service.spec, asyncio.get_running_loop()
        until, tries, misses = loop.time() + spec.ready_seconds, 0, 0
        while True:
            failure = await answer_of(link, spec.port, spec.path)
            if failure is None:
                misses = 0
                if service.fact.state != "healthy":
                    await self._observe(service, "healthy", message=None)
            else:
                misses += 1
                if not service.settled and loop.time() > until:
                    said = f"The service did not answer within {spec.ready_seconds:g} s: {failure}"
                    service.silent = True
                    await self._observe(service, "failed", message=said, log_tail=await self._tail(service))
                    return False
                if service.fact.state == "healthy" and misses >= _MISSES:
                    await self._observe(service, "unhealthy", message=failure)
            tries = 0 if failure is None else tries + 1
            hurry = 0 < tries <= 8 or not service.settled  # it comes up, or has just gone
            await asyncio.sleep(min(0.02 * 2 ** min(tries, 4), self._probe_seconds) if hurry else self._probe_seconds)

    async def _tail(self, service: Service) -> str | None:
        if (kernel := self._find(service.kernel_id)) is None or not service.spec.argv:
            return None
        return await asyncio.to_thread(kernel.rings.text, service.run_id, _TAIL_BYTES)
