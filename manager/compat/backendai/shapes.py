"""Sessions, amounts and times as the client of Backend.AI shows them. No door, no action."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from actions.kinds import BUILT_IN, LABEL_PREFIX, kind_of
from actions.services import prefix_of
from actions.views import SessionData
from domain.errors import InvalidConfiguration, InvalidResources
from domain.resources import ResourceSlot, parse_memory_mib
from domain.session import Status

MIB: Final = 1024 * 1024
#: Where an image is from that names no registry, as engines read names.
USUAL_REGISTRY: Final = "index.docker.io"
_BARE: Final = re.compile(r"\d{1,20}")
_WHOLE: Final = re.compile(r"\d{1,6}(\.0*)?")
#: Slots that have another name there.
_THEIRS: Final = {"gpu": "cuda.device", "gpu-mem": "cuda.mem"}
_OURS: Final = {"cuda.device": "gpu", "cuda.mem": "gpu-mem", "gpu": "gpu", "gpu-mem": "gpu-mem"}


# -- what comes in -------------------------------------------------------------------------------------------------------
def resources(given: Mapping[str, Any], otherwise: ResourceSlot) -> ResourceSlot:
    """`{"cpu": "1", "mem": "512m"}`; a bare number of memory is bytes there, and MiB here. `otherwise`: what is not named."""
    amounts: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in ("mem", "cuda.mem"):
            amounts[_OURS.get(name, name)] = memory_mib(value, name)
        elif name == "cuda.shares":
            if not (isinstance(value, int | float | str) and _WHOLE.fullmatch(str(value))):
                raise InvalidResources(
                    f"{str(value)[:40]} of a device cannot be had: ask for whole ones (cuda.device=1) or for memory of one "
                    "(cuda.mem=8g)."
                )
            amounts["gpu"] = int(float(value))
        else:
            amounts[_OURS.get(name, name)] = value
    return ResourceSlot({**otherwise.to_json(), **amounts})


def memory_mib(value: Any, name: str = "mem") -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and _BARE.fullmatch(value.strip()):
        return math.ceil(int(value) / MIB)
    return parse_memory_mib(value, name)


def image_name(given: Any) -> Any:
    """Lists name the registry of images that name none themselves, as that client does; here they are without it."""
    return given.removeprefix(f"{USUAL_REGISTRY}/") if isinstance(given, str) else given


# -- what goes out -------------------------------------------------------------------------------------------------------
def amounts(slots: ResourceSlot) -> dict[str, str]:
    """As JSON there: `{"cpu": "1", "mem": "536870912"}`."""
    told = {}
    for name, amount in slots.to_json().items():
        told[_THEIRS.get(name, name)] = str(int(amount * MIB) if name in ("mem", "gpu-mem") else amount)
    return told


def printed(slots: ResourceSlot) -> str:
    """`{'cpu': Decimal('1'), 'mem': Decimal('536870912')}`: as Python prints it, which is what the client is told."""
    return repr({name: Decimal(amount) for name, amount in amounts(slots).items()})


def moment(at: datetime | None) -> str | None:
    """`2026-11-21 03:52:07.025892+00:00`"""
    return None if at is None else at.isoformat(sep=" ", timespec="microseconds")


#: Those that the client does not know.
_STATUS: Final = {Status.PULLING: "PULLING", Status.RUNNING_DEGRADED: "RUNNING_DEGRADED"}


def status(session: SessionData) -> str:
    return _STATUS.get(session.status, str(session.status))


def service_ports(
    labels: Mapping[str, str], preopened: Iterable[int] = (), session_id: UUID | None = None
) -> list[dict[str, Any]]:
    """The apps that `app` can be asked for: those that the image declares, those that everybody knows, opened ports.

    With `session_id`, programs that know only the path at which the proxy serves them say where that is.
    """
    found: dict[str, dict[str, Any]] = {"sshd": {"name": "sshd", "protocol": "tcp", "ports": [22]}}
    declared = [label.removeprefix(LABEL_PREFIX) for label in labels if label.startswith(LABEL_PREFIX)]
    for name in (*sorted(declared), *sorted(BUILT_IN)):
        try:
            _, kind = kind_of(name, None, labels, has_own=False)
        except InvalidConfiguration:
            continue  # a label that nobody can read
        if kind.port is not None and name not in found:
            found[name] = {"name": name, "protocol": kind.protocol, "ports": [kind.port]}
            if session_id is not None and kind.protocol == "http":
                found[name]["url_template"] = "http://{host}:{port}" + (
                    prefix_of(session_id, name) if kind.keep_prefix else "/"
                )
    for port in preopened:
        found.setdefault(str(port), {"name": str(port), "protocol": "preopen", "ports": [port]})
    return list(found.values())


def info(
    session: SessionData, *, now: datetime, user_id: UUID | None, project_id: UUID | None, containers: Iterable[str]
) -> dict[str, Any]:
    """`get_info`: 25 keys, slots and environment as Python prints them, the age in milliseconds."""
    registry, _, rest = session.image.partition("/")
    runs = session.occupied_slots or ResourceSlot()
    live = session.ended_at is None
    return {
        "domainName": session.domain,
        "groupId": None if project_id is None else str(project_id),
        "userId": None if user_id is None else str(user_id),
        "lang": session.image,
        "image": session.image,
        "architecture": session.architecture,
        "registry": registry if rest and ("." in registry or ":" in registry) else "",
        "tag": session.tag,
        "containerId": next(iter(containers), None),
        "occupiedSlots": printed(runs),
        "occupyingSlots": printed(runs if live else ResourceSlot()),
        "requestedSlots": printed(session.requested_slots),
        "occupiedShares": "{}",
        "environ": repr(dict(session.environ)),
        "resourceOpts": repr({} if session.shm_size is None else {"shmem": str(session.shm_size * MIB)}),
        "status": status(session),
        "statusInfo": session.status_reason or "",
        "statusData": status_data(session),
        "age": max(0, int(((session.ended_at or now) - session.created_at).total_seconds() * 1000)),
        "creationTime": moment(session.created_at),
        "terminationTime": moment(session.ended_at),
        "numQueriesExecuted": session.execution_count,
        "lastStat": None,
        "idleChecks": idle_checks(session, now),
        "name": session.name,
    }


def status_data(session: SessionData) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if session.exit_code is not None:
        told["kernel"] = {"exit_code": session.exit_code}
    if session.notices:
        told["notices"] = [dict(notice) for notice in session.notices]
    return told


def idle_checks(session: SessionData, now: datetime) -> dict[str, Any]:
    """Until when it lives, as far as that is known."""
    remaining = None if session.expires_at is None else max(0, int((session.expires_at - now).total_seconds()))
    told: dict[str, Any] = {
        "session_lifetime": {"remaining": remaining, "remaining_time_type": "expire_after", "extra": None}
    }
    if session.idle_timeout is not None:
        last = session.last_activity_at or session.started_at
        left = session.idle_timeout if last is None else session.idle_timeout - (now - last).total_seconds()
        told["network_timeout"] = {
            "remaining": max(0, int(left)),
            "remaining_time_type": "grace_period",
            "extra": None,
        }
    return told


def statistics(used: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `rm --stats` shows, in the second form that the client reads: `{current, capacity, pct, unit_hint, stats.*}`."""
    told: dict[str, Any] = {"version": 2}
    if used is None:
        return told
    if (seconds := used.get("cpu_seconds")) is not None:
        told["cpu_used"] = _metric(f"{seconds * 1000:.0f}", "msec")
    for name, key, most in (("mem", "mem_bytes", "mem_peak_bytes"), ("io_scratch_size", "disk_bytes", None)):
        if (value := used.get(key)) is not None:
            told[name] = _metric(str(int(value)), "bytes")
            if most is not None and used.get(most) is not None:
                told[name]["stats.max"] = str(int(used[most]))
    return told


def _metric(current: str, unit: str) -> dict[str, Any]:
    return {"current": current, "capacity": None, "pct": "0.00", "unit_hint": unit}
