"""Growing and shrinking a cluster that runs: workers come and go, the others are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actions.base import Work
from actions.constraints import slots_for
from actions.kernels import check_possible, once_more
from domain.errors import InvalidConfiguration
from domain.ids import KernelId
from domain.resources import ResourceSlot
from domain.session import ANSWERING, ENDED, ClusterMode, KernelState, Session
from repositories import clusters
from repositories.clusters import MOST_KERNELS, Member
from repositories.kernels import settle
from repositories.session import NewKernel, wrong_status


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What makes a cluster as large as it is to be."""

    leave: tuple[KernelId, ...]
    join: tuple[int, ...]  #: indexes of the workers to come


def change(members: Sequence[Member], size: int) -> Change:
    """Workers that have ended go first and are replaced; then those that wait, then those that came last. Pure."""
    workers = sorted((one for one in members if one.role == "worker"), key=lambda one: one.index)
    alive = [one for one in workers if one.observed not in ENDED]
    stay = sorted(alive, key=lambda one: (one.observed is not KernelState.RUNNING, one.index))[: size - 1]
    kept = {one.id for one in stay}
    taken = {one.index for one in stay}
    free = (index for index in range(1, size + len(workers)) if index not in taken)
    return Change(
        leave=tuple(one.id for one in workers if one.id not in kept),
        join=tuple(next(free) for _ in range(size - 1 - len(stay))),
    )


async def resize(call: Work, session: Session, size: int) -> None:
    """Inside the transaction in which the row already has its new cluster_size, and is locked by that."""
    if session.status not in ANSWERING:
        raise wrong_status(session)
    if size > MOST_KERNELS:
        raise InvalidConfiguration(f"A session has at most {MOST_KERNELS} kernels.", field="cluster_size")
    connection = call.db.connection
    members = await clusters.members(connection, session.id)
    if not any(one.spec.get("cluster") for one in members):
        raise InvalidConfiguration(
            f"The session '{session.name}' was made with one kernel and has no network for more; create a cluster.",
            field="cluster_size",
        )
    what = change(members, size)
    gone = set(what.leave)
    stay = [
        NewKernel(id=one.id, role=one.role, index=one.index, slots=ResourceSlot.from_units(one.slots), spec=one.spec)
        for one in members
        if one.id not in gone
    ]
    new = await _joining(call, session, what.join)
    if new:
        await _check_room(call, session, [*stay, *new])
    await call.db.sessions_of(session).lock_limits(session.id)
    await clusters.leave(connection, what.leave, now=call.now)
    await call.db.sessions_of(session).grow(session, new)
    await clusters.weave(connection, session.id, now=call.now)
    await settle(connection, session.id, now=call.now, cause=call.db.cause)
    call.announce("dispatch")


async def _joining(call: Work, session: Session, indexes: Sequence[int]) -> list[NewKernel]:
    """Like the worker that came last, or the main kernel when there never was one."""
    if not indexes:
        return []
    model = await clusters.model_of_workers(call.db.connection, session.id)
    made = []
    for index in indexes:
        [kernel] = once_more([model], call.new_id)
        spec = {**kernel.spec, "role": "worker", "index": index, "startup_command": None}
        made.append(NewKernel(id=kernel.id, role="worker", index=index, slots=kernel.slots, spec=spec))
    return made


async def _check_room(call: Work, session: Session, kernels: Sequence[NewKernel]) -> None:
    alone = session.cluster_mode is ClusterMode.SINGLE_NODE
    known = await slots_for(call.db.connection, session, only=session.agent_id if alone else None)
    check_possible(known, session, [kernel.slots for kernel in kernels], session.cluster_mode)
