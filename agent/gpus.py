"""The GPUs of this host: which there are, how they do, who is on them, and whether they may be handed over.

A look every few seconds keeps what is known fresh; questions are answered from that, so that a driver which does not answer
holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from agent.gpu import Found, Gpu, NoDriver, NoLibrary, Nvml, Reading
from agent.gpu_calls import Calls, Unanswered, Xids
from agent.gpu_health import HARMLESS, LEFTOVER_MIB, faults
from agent.gpu_people import Seen, owner_of
from agent.gpu_shares import Shares, used_mib
from agent.gpu_terms import NO_GPUS, GpuSettings, GpuUse, Holding
from agent.store import StoredKernel
from agent.wire import DeviceCheck, DeviceFact, DeviceList
from domain.placement import DEVICE

log = logging.getLogger("moorage.agent.gpus")
_DISCOVER_SECONDS: Final = 60.0
#: Memory that nobody is seen to hold for so long makes a device unfit.
_LEFTOVER_SECONDS: Final = 15.0
_STEP_MIB: Final = 256
_MOST_CHECKS: Final = 10_000
_MOST_NAMED: Final = 4
_MIB: Final = 1 << 20


class Gpus:
    """`open` once, then `run` beside the kernels. `news` is set when there is something to tell a manager."""

    def __init__(
        self,
        settings: GpuSettings = NO_GPUS,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot_no: int = 0,
        proc: Path = Path("/proc"),
    ) -> None:
        self.settings = settings
        self.news = asyncio.Event()
        self.states: Callable[[], Iterable[StoredKernel]] = tuple  #: of the host's kernels
        #: called when a kernel uses more than its share: what to say, and whether it is to be ended
        self.overused: Callable[[str, str, bool], None] = lambda _kernel, _said, _end: None
        self._now = now
        self._monotonic = monotonic
        self._boot_no = boot_no
        self._proc = proc
        self._nvml = Nvml(settings.library)
        self._calls = Calls()
        self._events = Xids(self._xid)
        self._gpus: dict[str, Gpu] = {}
        self._vanished: set[str] = set()
        self._driver = self._cuda = ""
        self._notes: tuple[str, ...] = ()
        self._discovered_at: float | None = None
        self._silent: str | None = None  #: why the driver tells nothing at the moment
        self._nothing_here = settings.offered == ()
        self._readings: dict[str, Reading] = {}
        self._seen: dict[str, tuple[Seen, ...]] = {}
        self._xids: dict[str, list[int]] = {}
        self._leftover: dict[str, float] = {}  #: since when memory is held by nobody
        self._failed_tests: dict[str, str] = {}  #: until one passes, or the agent is restarted
        self._shares = Shares(settings.overuse_seconds, monotonic)
        self._checks: deque[DeviceCheck] = deque(maxlen=_MOST_CHECKS)
        self._facts: list[DeviceFact] = []
        self._seq = self._told = 0

    # -- looking -----------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """The first look. A host without devices is told of in one line of the log."""
        if not self._nothing_here:
            await self.look()
        if not self._nothing_here:
            log.info("%d GPUs of this host are offered", len(self._gpus))

    async def run(self) -> None:
        """Until cancelled; ends by itself where there is nothing to look at."""
        while not self._nothing_here:
            await asyncio.sleep(self.settings.look_seconds)
            try:
                await self.look()
            except Exception:
                log.exception("a look at the GPUs failed")

    async def close(self) -> None:
        self._events.close()
        if self._discovered_at is not None:
            with contextlib.suppress(Unanswered):
                await self._calls(self._nvml.close, seconds=1.0)
        self._calls.close()

    async def look(self) -> None:
        """At everything; what has changed is told."""
        if self._nothing_here:
            return
        try:
            since = self._discovered_at
            if since is None or self._monotonic() - since >= _DISCOVER_SECONDS:
                self._discovered(await self._calls(self._nvml.discover))
            readings = await self._calls(self._nvml.read, tuple(self._gpus.values()))
        except NoLibrary as error:
            log.info("this host has no NVIDIA driver, and offers no GPUs (%s)", error)
            self._nothing_here = True
            return
        except (NoDriver, Unanswered) as error:
            if self._silent is None:
                log.warning("no GPU can be used: %s", error)
            if self._silent is None or isinstance(error, NoDriver):
                self._silent = str(error)
            self._discovered_at = None
        else:
            self._silent = None
            await self._take(readings)
        self._watch_shares()
        self.publish()

    def _discovered(self, found: Found) -> None:
        """What was there and is not any more stays in the list as lost, but for MIG, where devices come and go."""
        there = {gpu.uuid: gpu for gpu in found.gpus}
        divided = {gpu.parent for gpu in found.gpus}
        lost = {
            uuid: gpu
            for uuid, gpu in self._gpus.items()
            if uuid not in there and gpu.parent is None and uuid not in divided
        }
        offered = {uuid: gpu for uuid, gpu in there.items() if self._is_offered(gpu)}
        boards = {gpu.parent or gpu.uuid for gpu in offered.values()}
        if boards != {gpu.parent or gpu.uuid for gpu in self._gpus.values()} or self._discovered_at is None:
            self._events.watch(frozenset(boards))
        for note in set(found.notes) - set(self._notes):
            log.warning("GPUs: %s", note)
        self._gpus, self._vanished = lost | offered, set(lost)
        self._driver, self._cuda, self._notes = found.driver, found.cuda, found.notes
        self._discovered_at = self._monotonic()

    def _is_offered(self, gpu: Gpu) -> bool:
        wanted = self.settings.offered
        return wanted is None or not {gpu.uuid, gpu.parent, *gpu.other_names, str(gpu.index)}.isdisjoint(wanted)

    async def _take(self, readings: Mapping[str, Reading]) -> None:
        self._readings = dict(readings)
        self._seen = await asyncio.to_thread(_owners, readings, self._containers(), self._proc)
        held = {uuid for holding in self.holdings() for uuid in holding.devices}
        for uuid, reading in readings.items():
            if uuid in held or self._seen[uuid] or reading.used_mib <= LEFTOVER_MIB:
                self._leftover.pop(uuid, None)
            else:
                self._leftover.setdefault(uuid, self._monotonic())

    def _watch_shares(self) -> None:
        end = self.settings.end_overuse
        for holding, uuid, said, within in self._shares.judge(self.holdings(), self._seen):
            self.record("watch", uuid, holding, within, {**said, "ended": end and not within})
            if not within:
                self.overused(holding.kernel_id, str(said["message"]), end)

    def _xid(self, uuid: str, number: int) -> None:
        log.warning("GPU %s: the driver reports XID %d", uuid, number)
        known = self._xids.setdefault(uuid, [])
        if number not in known:
            known.append(number)
        self.publish()

    def xids_of(self, gpu: Gpu) -> Sequence[int]:
        return self._xids.get(gpu.parent or gpu.uuid, ())

    def holdings(self) -> list[Holding]:
        return [holding for state in self.states() if (holding := Holding.of(state)) is not None]

    def _containers(self) -> dict[str, str]:
        return {holding.container_id: holding.kernel_id for holding in self.holdings() if holding.container_id}

    # -- for whoever hands them over ---------------------------------------------------------------------------------
    def device(self, uuid: str) -> Gpu | None:
        return self._gpus.get(uuid)

    async def look_at(self, gpu: Gpu) -> tuple[Reading, tuple[Seen, ...]]:
        """As it is at this moment. Raises Unanswered."""
        reading = (await self._calls(self._nvml.read, (gpu,)))[gpu.uuid]
        seen = (await asyncio.to_thread(_owners, {gpu.uuid: reading}, self._containers(), self._proc))[gpu.uuid]
        self._readings[gpu.uuid], self._seen[gpu.uuid] = reading, seen
        return reading, seen

    def forgotten_memory(self, gpu: Gpu, *, there: bool) -> None:
        """Memory is held on it, by nobody who is to be seen: nobody gets it until that is over."""
        if there:
            self._leftover[gpu.uuid] = self._monotonic() - _LEFTOVER_SECONDS
        else:
            self._leftover.pop(gpu.uuid, None)

    def forget_harmless(self, gpu: Gpu) -> None:
        """What programs of former sessions did is no news to the next one."""
        uuid = gpu.parent or gpu.uuid
        self._xids[uuid] = [number for number in self._xids.get(uuid, ()) if number not in HARMLESS]

    def failed_test(self, gpu: Gpu, why: str | None) -> None:
        if why is None:
            self._failed_tests.pop(gpu.uuid, None)
        else:
            self._failed_tests[gpu.uuid] = why

    # -- telling -----------------------------------------------------------------------------------------------------
    def facts(self) -> list[DeviceFact]:
        return [self._fact(gpu) for gpu in self._gpus.values()]

    def resources(self) -> dict[str, int]:
        return {fact.name: fact.offered_mib for fact in self.facts()}

    def info(self) -> dict[str, Any]:
        """For administrators, beside what is told of each device."""
        trouble = ([self._silent] if self._silent else []) + list(self._notes)
        if not self._gpus and not trouble:
            return {}
        return {"driver": self._driver, "cuda": self._cuda, "trouble": trouble}

    @property
    def cuda(self) -> str:
        """The newest version that the driver can."""
        return self._cuda

    @property
    def driver(self) -> str:
        return self._driver

    def other_names(self, uuid: str) -> tuple[str, ...]:
        return self._gpus[uuid].other_names if uuid in self._gpus else ()

    def publish(self) -> None:
        facts = self.facts()
        if facts != self._facts:
            self._facts = facts
            self._seq += 1
            self.news.set()

    def _fact(self, gpu: Gpu) -> DeviceFact:
        outsiders = self.outsiders(gpu.uuid)
        outside = sum(one.process.mem_mib or 0 for one in outsiders)
        kept = self.settings.reserve_mib + -(-outside // _STEP_MIB) * _STEP_MIB
        reasons = self._reasons(gpu)
        return DeviceFact(
            name=DEVICE + gpu.uuid,
            model=gpu.model,
            memory_mib=gpu.memory_mib,
            offered_mib=max(gpu.memory_mib - kept, 0),
            index=gpu.index,
            numa=gpu.numa,
            links={DEVICE + uuid: close for uuid, close in gpu.closeness.items() if uuid in self._gpus},
            parent=DEVICE + gpu.parent if gpu.parent is not None else None,
            profile=gpu.profile,
            whole_only=gpu.parent is not None,
            shared_only=people(outsiders) if outsiders else None,
            outside_mib=-(-outside // _STEP_MIB) * _STEP_MIB,
            driver=self._driver,
            cuda=self._cuda,
            healthy=not reasons,
            reason="; ".join(reasons) or None,
            simulated="mock" in self._driver,
        )

    def _reasons(self, gpu: Gpu) -> list[str]:
        if self._silent is not None:
            return [self._silent]
        if gpu.uuid in self._vanished:
            return ["the driver does not list it any more"]
        reading = self._readings.get(gpu.uuid)
        if failed := self._failed_tests.get(gpu.uuid):
            return [failed]
        reasons = faults(reading, self.xids_of(gpu)) if reading is not None else []
        since = self._leftover.get(gpu.uuid)
        if reading is not None and since is not None and self._monotonic() - since >= _LEFTOVER_SECONDS:
            reasons.append(held_by_nobody(reading))
        return reasons

    def outsiders(self, uuid: str, seen: Iterable[Seen] | None = None) -> list[Seen]:
        """People on a device who are not Moorage's; a few MiB of somebody's desktop are not worth a word.

        A process that we cannot see belongs to whoever holds the device, if anybody does.
        """
        there = self._seen.get(uuid, ()) if seen is None else seen
        held = any(uuid in holding.devices for holding in self.holdings())
        found = [one for one in there if one.owner.kernel_id is None and (one.owner.visible or not held)]
        known = [one.process.mem_mib for one in found]
        return found if None in known or sum(filter(None, known)) > self.settings.tolerate_mib else []

    @property
    def seq(self) -> int:
        """Of the list that was published last: what is told now is that one, or newer."""
        return self._seq

    def pending(self) -> DeviceList | None:
        if self._told >= self._seq:
            return None
        devices = [fact.pack() for fact in self._facts]
        amounts = {fact.name: fact.offered_mib for fact in self._facts}
        return DeviceList(devices=devices, resources=amounts, boot_no=self._boot_no, seq=self._seq)

    def acknowledged(self, said: DeviceList) -> None:
        self._told = max(self._told, said.seq)

    def pending_checks(self) -> Sequence[DeviceCheck]:
        return list(self._checks)

    def checks_acknowledged(self, checks: Iterable[DeviceCheck]) -> None:
        taken = {check.check_id for check in checks}
        self._checks = deque((one for one in self._checks if one.check_id not in taken), maxlen=_MOST_CHECKS)

    def record(self, phase: str, uuid: str, holding: Holding, passed: bool, data: Mapping[str, Any]) -> None:
        self._checks.append(
            DeviceCheck(
                check_id=str(uuid4()),
                device=DEVICE + uuid,
                phase=phase,
                passed=passed,
                at=self._now(),
                kernel_id=holding.kernel_id,
                session_id=holding.session_id,
                attempt=holding.attempt,
                data={**data, "driver": self._driver, **({"simulated": True} if "mock" in self._driver else {})},
            )
        )
        self.news.set()

    # -- use -----------------------------------------------------------------------------------------------------------
    def use(self, state: StoredKernel) -> GpuUse:
        """What a kernel uses of its devices, as they were at the last look."""
        holding = Holding.of(state)
        if holding is None or self._silent is not None:
            return GpuUse()
        uses = [
            self._use(uuid, holding)
            for uuid in holding.devices
            if (reading := self._readings.get(uuid)) is not None and not reading.lost
        ]
        return GpuUse(
            devices=sum(use.devices for use in uses),
            busy=sum(use.busy for use in uses),
            mem_bytes=sum(use.mem_bytes for use in uses),
            power_watts=sum(use.power_watts for use in uses),
        )

    def _use(self, uuid: str, holding: Holding) -> GpuUse:
        """Of a shared device, its processes' part. A device counts as one that tells when it says how busy it is: that
        nobody knows must not look idle.
        """
        reading, seen = self._readings[uuid], self._seen.get(uuid, ())
        power = reading.power_watts or 0.0
        alone = sum(uuid in other.devices for other in self.holdings()) == 1 and not self.outsiders(uuid)
        if not holding.share or alone:
            return GpuUse(int(reading.busy is not None), reading.busy or 0.0, reading.used_mib * _MIB, power)
        own = [one.process for one in seen if one.owner.kernel_id == holding.kernel_id]
        mine = used_mib(holding.kernel_id, seen) or 0
        part = min(mine / reading.used_mib, 1.0) if reading.used_mib else 0.0
        tells = not own or any(process.busy is not None for process in own)
        busy = min(sum(process.busy or 0.0 for process in own), 1.0)
        return GpuUse(int(tells), busy, mine * _MIB, power * part)


def _owners(readings: Mapping[str, Reading], containers: Mapping[str, str], proc: Path) -> dict[str, tuple[Seen, ...]]:
    pids = {process.pid for reading in readings.values() for process in reading.processes}
    owners = {pid: owner_of(pid, containers, proc) for pid in pids}
    return {
        uuid: tuple(Seen(process, owners[process.pid]) for process in reading.processes)
        for uuid, reading in readings.items()
    }


def people(seen: Iterable[Seen]) -> str:
    """In words, without what changes all the time."""
    named = [
        f"{one.owner.command or 'a process'} (pid {one.process.pid}{f', {one.owner.user}' if one.owner.user else ''})"
        for one in seen
    ]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f"used by people outside Moorage: {', '.join(named[:_MOST_NAMED])}{more}"


def held_by_nobody(reading: Reading) -> str:
    return f"{reading.used_mib} MiB of its memory are held, by nobody who can be seen: reset it"
