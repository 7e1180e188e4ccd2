"""GPUs: those of the fleet for its administrators, and those of a session for its owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Reading,
    Result,
    Rules,
    ScopeAction,
    Work,
    action,
    superadmin,
    superadmin_or_monitor,
)
from actions.statistics import Point
from domain.ids import AgentId
from domain.placement import DEVICE
from repositories import agents as agent_rows
from repositories import device_checks, devices
from repositories.device_list import list_devices
from repositories.metrics import Used

DeviceName = Annotated[str, Field(min_length=1, max_length=200)]
Kind = Literal["gpu", "instance"]
State = Literal["free", "shared", "held", "out", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckData:
    """What was found when a device was handed over, given back, or watched."""

    phase: str  #: handover, release, watch
    passed: bool
    message: str
    at: datetime
    details: Mapping[
        str, Any
    ]  #: memory_used_mib, temperature_c, ecc_uncorrected, xid, test, ... as far as they are known

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> CheckData:
        details = {name: value for name, value in row["data"].items() if name != "message"}
        message = str(row["data"].get("message") or "")
        return cls(phase=row["phase"], passed=row["passed"], message=message, at=row["at"], details=details)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHolder:
    """A container that holds a device, or a part of it; what it uses is its mean over its devices."""

    session_id: UUID
    session: str
    owner: str  #: access key
    project: str
    kernel: str
    held_mib: int
    whole: bool
    busy: float | None  #: 1.0: at work all the time; None while there is no sample of the last minute
    used_mib: float | None
    power_watts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceData:
    """One GPU, or one instance of MIG, which is a device of its own."""

    agent: str
    device: str  #: its UUID
    model: str
    kind: Kind
    state: State
    memory_mib: int  #: all it has
    offered_mib: int  #: of that, what is for sessions while it is in
    held_mib: int
    index: int | None  #: the driver's number
    numa: int | None
    links: Mapping[str, int]  #: how close other devices are, by UUID: 90 NVLink ... 10 only the same machine
    parent: str | None  #: of an instance: its GPU
    profile: str | None  #: of an instance: 1g.10gb
    whole_only: bool  #: is not shared
    shared_only: str | None  #: why it is not given out whole: people outside Moorage are on it
    outside_mib: int  #: what they use of its memory
    driver: str
    cuda: str
    simulated: bool
    healthy: bool  #: as its host says
    missing_since: datetime | None
    out_since: datetime | None  #: it is handed to nobody
    out_reason: str | None
    out_by: str | None  #: admin, or health
    seen_at: datetime
    holders: list[DeviceHolder]
    last_check: CheckData | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePage(Result):
    items: list[DeviceData]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResult(Result):
    device: DeviceData


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class ListDevicesAction(ScopeAction[Reading, DevicePage]):
    """The GPUs of all hosts, or of one: model, memory, who holds them, and which are out and why."""

    agent: str | None = None

    async def run(self, call: Reading, /) -> DevicePage:
        if self.agent is not None:
            await agent_rows.get_agent(call.db.connection, AgentId(self.agent))
        return DevicePage(items=await _devices(call, self.agent))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class TakeDeviceOutAction(ScopeAction[Work, DeviceResult]):
    """Hand a GPU to nobody from now on, until an administrator puts it in again; who holds it keeps it, with a notice."""

    agent: str
    device: DeviceName  #: its UUID, or its number
    reason: Annotated[str, Field(min_length=1, max_length=1000)]

    def target(self) -> str:
        return f"{self.agent} {self.device}"

    async def run(self, call: Work, /) -> DeviceResult:
        changed = await devices.take_out(
            call.db.connection, AgentId(self.agent), self.device, self.reason, cause=call.db.cause, now=call.now
        )
        for session_id in sorted(changed.sessions):
            call.announce("sessions", session_id)
        return await _changed(call, self.agent, changed.out)


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class PutDeviceInAction(ScopeAction[Work, DeviceResult]):
    """Offer a GPU again that was taken out; refused as long as its host itself says that it is bad."""

    agent: str
    device: DeviceName

    def target(self) -> str:
        return f"{self.agent} {self.device}"

    async def run(self, call: Work, /) -> DeviceResult:
        name, _ = await devices.put_in(
            call.db.connection, AgentId(self.agent), self.device, cause=call.db.cause, now=call.now
        )
        return await _changed(call, self.agent, (name,))


async def _changed(call: Work, agent: str, names: Sequence[str]) -> DeviceResult:
    call.announce("agents")
    call.announce("queue")
    [device] = [one for one in await _devices(call, agent) if f"{DEVICE}{one.device}" in names]
    return DeviceResult(device=device)


async def _devices(call: Reading, agent: str | None) -> list[DeviceData]:
    agent_id = None if agent is None else AgentId(agent)
    rows = await list_devices(call.db.connection, agent_id)
    checks = await device_checks.newest_of(call.db.connection, agent_id)
    kernels = [UUID(holder["kernel_id"]) for row in rows for holder in row["holders"]]
    newest = await call.db.metrics.newest(kernels, now=call.now) if kernels else {}
    return [_device(row, checks.get((row["agent_id"], row["name"])), newest) for row in rows]


def _device(row: Mapping[str, Any], check: Mapping[str, Any] | None, newest: Mapping[UUID, Used]) -> DeviceData:
    info = row["info"]
    return DeviceData(
        agent=row["agent_id"],
        device=uuid_of(row["name"]),
        model=row["model"],
        kind="instance" if info.get("parent") else "gpu",
        state=_state(row),
        memory_mib=row["memory_mib"],
        offered_mib=row["offered_mib"],
        held_mib=row["used"] or 0,
        index=info.get("index"),
        numa=info.get("numa"),
        links={uuid_of(name): closeness for name, closeness in (info.get("links") or {}).items()},
        parent=uuid_of(info["parent"]) if info.get("parent") else None,
        profile=info.get("profile"),
        whole_only=bool(info.get("whole_only")),
        shared_only=info.get("shared_only"),
        outside_mib=info.get("outside_mib") or 0,
        driver=info.get("driver") or "",
        cuda=info.get("cuda") or "",
        simulated=bool(info.get("simulated")),
        healthy=row["healthy"],
        missing_since=row["missing_since"],
        out_since=row["out_since"],
        out_reason=row["out_reason"],
        out_by=row["out_by"],
        seen_at=row["seen_at"],
        holders=[_holder(holder, newest.get(UUID(holder["kernel_id"]))) for holder in row["holders"]],
        last_check=CheckData.of(check) if check is not None else None,
    )


def _state(row: Mapping[str, Any]) -> State:
    if row["missing_since"] is not None:
        return "missing"
    if row["out_since"] is not None:
        return "out"
    if not row["used"]:
        return "free"
    return "held" if row["used"] >= (row["reported"] or 0) else "shared"


def _holder(said: Mapping[str, Any], used: Used | None) -> DeviceHolder:
    point, number = (None if used is None else Point.of(used)), max(1, said["devices"])
    return DeviceHolder(
        session_id=UUID(said["session_id"]),
        session=said["session"],
        owner=said["owner"],
        project=said["project"],
        kernel=said["kernel"],
        held_mib=said["held_mib"],
        whole=said["whole"],
        busy=None if point is None or point.gpu is None else round(point.gpu / number, 4),
        used_mib=None if point is None or point.gpu_mem is None else round(point.gpu_mem / number, 1),
        power_watts=None if point is None or point.gpu_power is None else round(point.gpu_power / number, 1),
    )


def uuid_of(name: str) -> str:
    return name.removeprefix(DEVICE)
