"""What sessions use: in steps over time, and right now beside what they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Kernel,
    Reading,
    Result,
    Rules,
    ScopeAction,
    SessionAction,
    action,
    anyone,
    may_look,
)
from domain.durations import parse_seconds, span
from domain.errors import InvalidRange, KernelNotFound, PermissionDenied, TooManyPoints
from domain.ids import AgentId, KernelId, SessionId
from domain.resources import ResourceSlot
from domain.session import ANSWERING, KernelState, Session
from repositories.agents import list_agents
from repositories.metrics import KernelRow, Used
from repositories.session import Search

#: As the purger keeps them (repositories.upkeep.Retention).
FINE_KEPT: Final = timedelta(hours=6)
COARSE_KEPT: Final = timedelta(days=14)
MOST_POINTS: Final = 2000
_USUAL_POINTS: Final = 120
_MIB: Final = 1024.0 * 1024.0
_MINUTE: Final = 60.0
Span = Annotated[str, Field(min_length=1, max_length=32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one kernel used on average from `at` on, for one step. Amounts of memory and disk are in MiB."""

    at: datetime
    seconds: float  #: of the step, how much samples tell of
    cpu: float  #: CPUs: 0.5 is half of one
    mem: float
    mem_max: float
    disk: float | None  #: of the working folder
    io_read: float  #: bytes per second, as the next three
    io_write: float
    net_rx: float
    net_tx: float
    pids: int  #: processes and threads, the most
    gpu: float | None  #: busy devices: 0.5 is half of one; None where there is none
    gpu_mem: float | None
    gpu_power: float | None  #: watts
    oom_kills: int
    forks_refused: int

    @classmethod
    def of(cls, used: Used) -> Point:
        seconds = used.seconds or 1.0
        return cls(
            at=used.at,
            seconds=round(used.seconds, 3),
            cpu=round(used.cpu_seconds / seconds, 4),
            mem=round(used.mem_byte_seconds / seconds / _MIB, 2),
            mem_max=round(used.mem_max_bytes / _MIB, 2),
            disk=None if used.disk_bytes is None else round(used.disk_bytes / _MIB, 2),
            io_read=round(used.io_read_bytes / seconds, 1),
            io_write=round(used.io_write_bytes / seconds, 1),
            net_rx=round(used.net_rx_bytes / seconds, 1),
            net_tx=round(used.net_tx_bytes / seconds, 1),
            pids=used.pids,
            gpu=round(used.gpu_seconds / seconds, 4) if used.gpus else None,
            gpu_mem=round(used.gpu_mem_byte_seconds / seconds / _MIB, 2) if used.gpus else None,
            gpu_power=round(used.gpu_joules / seconds, 1) if used.gpus else None,
            oom_kills=used.oom_kills,
            forks_refused=used.forks_refused,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMetrics:
    """One container of a session: what it holds, what it used last, and what it has used."""

    kernel_id: KernelId
    name: str  #: main1, worker1, ...
    agent: AgentId | None
    status: KernelState | None
    held: ResourceSlot
    now: Point | None  #: None while there is no sample of the last minute
    points: list[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(Result):
    session_id: SessionId
    name: str
    since: datetime
    until: datetime
    step_seconds: float
    kernels: list[KernelMetrics]


@action(Rules(allow=may_look, effect=Effect.READ))
class GetMetricsAction(SessionAction[Reading, Metrics]):
    """What a session's containers have used, in steps over time: CPU, memory, disk, network, GPU.

    Samples of every few seconds are kept for 6 hours, minutes for 14 days, also after the session's end.
    """

    range: Span = "15m"  #: so far back: 900, 15m, 6h, 7d
    step: Span | None = None  #: by default about 120 points
    until: datetime | None = None
    kernel: Kernel = None  #: all when left out

    async def run(self, call: Reading, session: Session, /) -> Metrics:
        until = min(self.until or call.now, call.now)
        length = _seconds("range", self.range)
        since = until - timedelta(seconds=length)
        step, fine = self._step(length, age=(call.now - since))
        kernels = _named(session, await call.db.metrics.kernels([session.id]), self.kernel)
        ids = [kernel.id for kernel in kernels]
        series = await call.db.metrics.series(ids, since=since, until=until, step_seconds=step, fine=fine)
        newest = await call.db.metrics.newest(ids, now=call.now) if session.status in ANSWERING else {}
        present = {kernel.id for kernel in session.kernels} or {session.main_kernel_id}
        return Metrics(
            session_id=session.id,
            name=session.name,
            since=since,
            until=until,
            step_seconds=step,
            kernels=[
                _metrics(kernel, newest.get(kernel.id), series.get(kernel.id, ()))
                for kernel in kernels
                if kernel.id in present or kernel.id in series
            ],
        )

    def _step(self, length: float, *, age: timedelta) -> tuple[float, bool]:
        """In seconds, and whether it needs samples: those are kept for hours only."""
        kept = age <= FINE_KEPT
        if self.step is None:
            wanted = length / _USUAL_POINTS
            if kept and wanted < _MINUTE:
                return max(5.0, math.ceil(wanted / 5.0) * 5.0), True
            return max(_MINUTE, math.ceil(wanted / _MINUTE) * _MINUTE), False
        step = _seconds("step", self.step)
        if step < 1:
            raise InvalidRange("A step is at least 1 s.", field="step")
        if length / step > MOST_POINTS:
            raise TooManyPoints(
                f"{span(length)} in steps of {step:g} s make {length / step:,.0f} points, and at most {MOST_POINTS:,} are "
                f"answered; take a step of at least {math.ceil(length / MOST_POINTS)} s.",
                field="step",
            )
        if step < _MINUTE and not kept:
            raise InvalidRange(
                f"Steps below a minute are kept for {span(FINE_KEPT.total_seconds())}; take a step of 1m or a shorter range.",
                field="step",
            )
        return step, step < _MINUTE


def _seconds(field: str, text: str) -> float:
    seconds = parse_seconds(text)
    if not seconds:
        raise InvalidRange(f"'{text}' is no span of time; write the {field} as 900, 15m, 6h or 7d.", field=field)
    if seconds > COARSE_KEPT.total_seconds():
        raise InvalidRange(
            f"The {field} is longer than what is kept, {span(COARSE_KEPT.total_seconds())}.", field=field
        )
    return seconds


def _named(session: Session, kernels: Sequence[KernelRow], name: str | None) -> list[KernelRow]:
    if name is None:
        return list(kernels)
    found = [kernel for kernel in kernels if name in (kernel.name, str(kernel.id))]
    if not found:
        names = ", ".join(dict.fromkeys(kernel.name for kernel in kernels))
        raise KernelNotFound(f"The session '{session.name}' has no kernel '{name[:80]}'; it has {names}.")
    return found


def _metrics(kernel: KernelRow, newest: Used | None, series: Sequence[Used]) -> KernelMetrics:
    return KernelMetrics(
        kernel_id=kernel.id,
        name=kernel.name,
        agent=kernel.agent_id,
        status=kernel.observed,
        held=ResourceSlot.from_units(kernel.slots),
        now=None if newest is None else Point.of(newest),
        points=[Point.of(used) for used in series],
    )


# -- who holds and who uses what -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class TopSession:
    """A session that holds something: what, where, and what it uses of it."""

    session_id: SessionId
    name: str
    owner: str  #: access key
    project: str
    status: str
    agents: list[AgentId]
    held: ResourceSlot
    cpu: float | None  #: CPUs in use; None, as the others, while there is no sample of the last minute
    mem: float | None  #: MiB
    gpu: float | None  #: busy devices
    gpu_mem: float | None  #: MiB
    gpu_power: float | None  #: watts
    pids: int | None
    net_tx: float | None  #: bytes per second
    started_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopHost:
    """A host: what it offers, and what sessions hold of it."""

    agent: AgentId
    lost: bool
    capacity: ResourceSlot
    held: ResourceSlot


@dataclass(frozen=True, slots=True, kw_only=True)
class Top(Result):
    sessions: list[TopSession]
    hosts: list[TopHost]  #: empty unless `all`, and for those who see all hosts


@action(Rules(allow=anyone, effect=Effect.READ))
class GetTopAction(ScopeAction[Reading, Top]):
    """Who holds and who uses which CPU, memory and GPU: one's own sessions, for administrators those of `all`."""

    all: bool = False
    sort: Annotated[str, Field(pattern="^(cpu|mem|gpu|held)$")] = "cpu"
    limit: Annotated[int, Field(ge=1, le=1000)] = 200

    async def run(self, call: Reading, /) -> Top:
        if self.all and not call.by.sees_others:
            raise PermissionDenied("Only administrators see what everybody holds.")
        sessions = call.db.all_sessions if self.all else call.db.sessions
        found = await sessions.search(Search(statuses=ANSWERING, limit=1000))
        kernels = await call.db.metrics.kernels([session.id for session in found], present_only=True)
        newest = await call.db.metrics.newest([kernel.id for kernel in kernels], now=call.now)
        rows = [_top(session, [k for k in kernels if k.session_id == session.id], newest) for session in found]
        rows.sort(key=self._weight, reverse=True)
        return Top(sessions=rows[: self.limit], hosts=await _hosts(call) if self.all and call.by.sees_all else [])

    def _weight(self, row: TopSession) -> float:
        used = {"cpu": row.cpu, "mem": row.mem, "gpu": row.gpu, "held": float(row.held.get("cpu", 0))}
        return used[self.sort] or 0.0


def _top(session: Session, kernels: Sequence[KernelRow], newest: Mapping[UUID, Used]) -> TopSession:
    points = [Point.of(newest[kernel.id]) for kernel in kernels if kernel.id in newest]

    def total(name: str) -> Any:
        values = [value for point in points if (value := getattr(point, name)) is not None]
        return round(sum(values), 4) if values else None

    return TopSession(
        session_id=session.id,
        name=session.name,
        owner=str(session.access_key),
        project=session.project,
        status=str(session.status),
        agents=list(dict.fromkeys(kernel.agent_id for kernel in kernels if kernel.agent_id is not None)),
        held=session.occupied_slots,
        cpu=total("cpu"),
        mem=total("mem"),
        gpu=total("gpu"),
        gpu_mem=total("gpu_mem"),
        gpu_power=total("gpu_power"),
        pids=total("pids"),
        net_tx=total("net_tx"),
        started_at=session.started_at,
    )


async def _hosts(call: Reading) -> list[TopHost]:
    return [
        TopHost(
            agent=AgentId(row["id"]),
            lost=row["lost"],
            capacity=ResourceSlot.from_units({name: each["capacity"] for name, each in row["resources"].items()}),
            held=ResourceSlot.from_units({name: each["used"] for name, each in row["resources"].items()}),
        )
        for row in await list_agents(call.db.connection)
    ]
