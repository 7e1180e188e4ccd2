"""The GPUs of a session, for its owner: which they are, how they were when they were handed over, what is enforced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from actions.base import Effect, Reading, Result, Rules, SessionAction, action, may_look
from actions.devices import CheckData, uuid_of
from actions.statistics import Point
from domain.ids import KernelId, SessionId
from domain.session import ANSWERING, Session
from repositories import device_checks
from repositories.device_checks import HeldDevice

Kind = Literal["whole", "instance", "share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDevice:
    """A device of a container, whole, an instance of MIG, or a share by memory."""

    kernel: str  #: main1, worker1, ...
    agent: str
    device: str  #: its UUID
    model: str
    kind: Kind
    memory_mib: int | None  #: all it has; None when nobody knows the device any more
    held_mib: int
    share: float  #: of its memory: 1.0 is all of it
    held: bool  #: False: given back
    index: int | None  #: the driver's number
    numa: int | None
    profile: str | None  #: of an instance
    links: Mapping[
        str, int
    ]  #: how close the session's other devices of this host are: 90 NVLink ... 10 the same machine
    driver: str
    cuda: str
    simulated: bool
    out_reason: str | None  #: it has been taken out since, because of this
    checks: list[CheckData]  #: oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """What one container uses of its devices now, all of them together."""

    kernel: str
    devices: int
    busy: float  #: devices at work: 0.5 is half of one
    used_mib: float
    power_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCheck:
    """Of a device that an earlier attempt of the session was to have, or had."""

    attempt: int
    agent: str
    device: str
    check: CheckData


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What Moorage sees to, and what it does not."""

    kind: Kind
    enforced: str
    not_enforced: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDevices(Result):
    session_id: SessionId
    name: str
    devices: list[SessionDevice]
    used: list[DeviceUse]  #: by containers that run and have told of themselves within the last minute
    earlier: list[EarlierCheck]
    guarantees: list[Guarantee]


@action(Rules(allow=may_look, effect=Effect.READ))
class GetSessionDevicesAction(SessionAction[Reading, SessionDevices]):
    """A session's GPUs: model, UUID, share, checks at hand-over and release, use now, and what is enforced of it."""

    async def run(self, call: Reading, session: Session, /) -> SessionDevices:
        held = await device_checks.of_session(call.db.connection, session.id)
        records = await device_checks.records_of(call.db.connection, session.id)
        devices = [_device(one, held, records) for one in held]
        present = {(one.kernel_id, one.name) for one in held}
        return SessionDevices(
            session_id=session.id,
            name=session.name,
            devices=devices,
            used=await _used(call, session, held),
            earlier=[_earlier(row) for row in records if (row["kernel_id"], row["name"]) not in present],
            guarantees=[GUARANTEES[kind] for kind in sorted({device.kind for device in devices})],
        )


def _device(one: HeldDevice, all_held: Sequence[HeldDevice], records: Sequence[Mapping[str, Any]]) -> SessionDevice:
    known = one.device or {}
    info: Mapping[str, Any] = known.get("info") or {}
    kind: Kind = "instance" if info.get("parent") else "whole" if one.whole else "share"
    others = {o.name for o in all_held if o.agent_id == one.agent_id} - {one.name}
    size = known.get("memory_mib")
    return SessionDevice(
        kernel=one.kernel,
        agent=one.agent_id,
        device=uuid_of(one.name),
        model=known.get("model") or "",
        kind=kind,
        memory_mib=size,
        held_mib=one.amount,
        share=round(one.amount / size, 4) if kind == "share" and size else 1.0,
        held=one.held,
        index=info.get("index"),
        numa=info.get("numa"),
        profile=info.get("profile"),
        links={uuid_of(name): closeness for name, closeness in (info.get("links") or {}).items() if name in others},
        driver=info.get("driver") or "",
        cuda=info.get("cuda") or "",
        simulated=bool(info.get("simulated")),
        out_reason=known.get("out_reason"),
        checks=[CheckData.of(row) for row in records if (row["kernel_id"], row["name"]) == (one.kernel_id, one.name)],
    )


def _earlier(row: Mapping[str, Any]) -> EarlierCheck:
    return EarlierCheck(
        attempt=row["attempt"], agent=row["agent_id"], device=uuid_of(row["name"]), check=CheckData.of(row)
    )


async def _used(call: Reading, session: Session, held: Sequence[HeldDevice]) -> list[DeviceUse]:
    kernels: dict[UUID, list[HeldDevice]] = {}
    for one in held:
        kernels.setdefault(one.kernel_id, []).append(one)
    if session.status not in ANSWERING:
        return []
    newest = await call.db.metrics.newest([KernelId(kernel_id) for kernel_id in kernels], now=call.now)
    points = [(devices, Point.of(newest[one])) for one, devices in kernels.items() if one in newest]
    return [
        DeviceUse(
            kernel=devices[0].kernel,
            devices=len(devices),
            busy=point.gpu or 0.0,
            used_mib=point.gpu_mem or 0.0,
            power_watts=point.gpu_power or 0.0,
        )
        for devices, point in points
        if point.gpu is not None
    ]


_HEALTH: Final = "Each device is checked before it is handed over and when it is given back, and is handed to nobody else once it is bad."
GUARANTEES: Final[Mapping[Kind, Guarantee]] = {
    "whole": Guarantee(
        kind="whole",
        enforced=f"Its containers see exactly these devices, and no other session is given any part of them. {_HEALTH}",
        not_enforced="People with access to the host itself can use a device past Moorage: their processes are looked for, and "
        "such a device is not handed out whole, but nobody stops them.",
    ),
    "instance": Guarantee(
        kind="instance",
        enforced="The hardware keeps memory and computing units of an instance apart from other instances of its GPU; its "
        f"containers see exactly this instance, and no other session is given it. {_HEALTH}",
        not_enforced="Instances of one GPU share its power and its cooling, and a fault of the GPU reaches all of them.",
    ),
    "share": Guarantee(
        kind="share",
        enforced="Shares of a device never add up to more than its memory, its containers see only this device, and a watcher "
        f"compares the memory that they use with their share, and reports or ends what uses more. {_HEALTH}",
        not_enforced="Nothing holds a program back at its share before the watcher looks, so one that takes more can make others "
        "run out of memory. Computing time is not divided: programs on the device take turns, so each is slower the more "
        "the others do, and a fault that one of them causes can end the others.",
    ),
}
