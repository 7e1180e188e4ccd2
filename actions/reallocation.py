"""Other resources for a session that waits or runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from actions.base import Work
from actions.constraints import slots_for
from actions.device_requests import check_devices
from actions.kernels import check_possible
from domain.errors import InvalidResources, WrongStatus
from domain.ids import KernelId
from domain.placement import Constraints
from domain.resources import ResourceSlot
from domain.session import ANSWERING, ClusterMode, Session, Status
from repositories.reallocation import memory_in_use, reallocate

#: The kernel ends processes when memory is over; between a sample and the change, use may grow by so much.
_MARGIN: Final = 1.05


async def change_resources(call: Work, session: Session, wanted: ResourceSlot, minimum_mib: int) -> ResourceSlot:
    """Inside the transaction that has locked the session. What is left out of `wanted` stays. The new whole."""
    other = {"gpu": "gpu-mem", "gpu-mem": "gpu"}  # devices are asked for whole, or by a share: the one ends the other
    kept = {name: amount for name, amount in session.requested_slots.items() if not wanted.get(other.get(name, ""))}
    slots = ResourceSlot.from_units({**kept, **wanted})
    _check(session, slots, minimum_mib)
    connection = call.db.connection
    await call.db.sessions_of(session).lock_limits(session.id)
    if session.status is Status.PENDING:
        asked = Constraints(gpu_model=session.constraints.get("gpu_model"))
        await check_devices(connection, session.resource_group, asked, [slots])
        check_possible(await slots_for(connection, session), _Meant(session), [slots], ClusterMode.SINGLE_NODE)
        await reallocate(connection, session.main_kernel_id, None, slots, now=call.now)
    else:
        await _check_use(call, session.main_kernel_id, session, slots)
        await reallocate(connection, session.main_kernel_id, session.agent_id, slots, now=call.now)
        call.announce("dispatch")
    return slots


class _Meant:
    """As `check_possible` names it."""

    def __init__(self, session: Session) -> None:
        self.name, self.architecture = session.image, session.architecture


def _check(session: Session, slots: ResourceSlot, minimum_mib: int) -> None:
    if session.status is not Status.PENDING and session.status not in ANSWERING:
        raise WrongStatus(
            f"The session '{session.name}' is {session.status}: its resources change while it is PENDING or RUNNING.",
            status=session.status,
        )
    if len(session.kernels) > 1 or session.cluster_size > 1:
        raise InvalidResources("The kernels of a cluster keep their size; change the number of its workers instead.")
    if not slots.get("cpu") or slots.get("mem", 0) < minimum_mib:
        raise InvalidResources(f"A session needs some CPU and at least {minimum_mib} MiB of memory.")
    if session.shm_mib is not None and session.shm_mib > slots["mem"]:
        raise InvalidResources(f"Its shared memory of {session.shm_mib} MiB would not fit into {slots['mem']} MiB.")
    if session.status is not Status.PENDING and (other := _others(slots, session.requested_slots)):
        raise InvalidResources(
            f"While a session runs, its cpu and mem can be changed, and not {other}; restart it with other ones."
        )


def _others(new: Mapping[str, int], old: Mapping[str, int]) -> str:
    names = sorted((new.keys() | old.keys()) - {"cpu", "mem"})
    return ", ".join(name for name in names if new.get(name, 0) != old.get(name, 0))


async def _check_use(call: Work, kernel_id: KernelId, session: Session, slots: Mapping[str, Any]) -> None:
    if slots["mem"] >= session.requested_slots["mem"]:
        return
    used = await memory_in_use(call.db.connection, kernel_id, now=call.now)
    if used is None:
        raise InvalidResources(
            "How much memory the session uses is not known just now, so it cannot be given less; ask again in a minute."
        )
    if used * _MARGIN > slots["mem"]:
        raise InvalidResources(
            f"The session uses {used} MiB of memory, so {slots['mem']} MiB would end its processes; free some first, or "
            f"ask for at least {int(used * _MARGIN) + 1} MiB.",
            used=used,
        )
