"""What is said of a session that gets no place: its code, and a sentence."""

from __future__ import annotations

from typing import Final

from domain.placement import DEFAULT_GROUP, Blocked, Group, PendingSession, Reservation
from domain.scheduler.fleet import Fleet, Numbers
from domain.scheduler.obstacles import misplaced
from domain.scheduler.shapes import Part, Shape, added
from domain.scheduler.words import names, words
from domain.session import ClusterMode

#: If several bar it from all hosts, it is the first of these.
_BARS: Final = ("agent", "image_elsewhere", "store", "labels")


def no_hosts(session: PendingSession, group: Group) -> Blocked:
    if not group.active:
        return Blocked(
            code="no_hosts",
            detail=f"resource group {group.name} takes no sessions until an administrator makes it active again",
        )
    where = "" if group.name == DEFAULT_GROUP else f" of resource group {group.name}"
    return Blocked(
        code="no_hosts",
        detail=f"no host{where} of architecture {session.architecture} takes sessions at the moment",
    )


def barred(session: PendingSession, fleet: Fleet) -> Blocked:
    """No host has what its constraints demand, however much is free and whatever its devices."""
    constraints = session.constraints
    if len(session.images_on) > 1:
        detail = f"its snapshots lie on different hosts, {names(session.images_on)}"
        return Blocked(code="impossible", detail=detail)
    by_host = [{bar.code for bar in misplaced(session, seat.host)} for seat in fleet.seats]
    everywhere, anywhere = set.intersection(*by_host), set.union(*by_host)
    match next((code for code in _BARS if code in everywhere), None):
        case "agent":
            which = constraints.agent or names(session.hosts)
            detail = f"{which} takes no sessions of this resource group and architecture at the moment"
            return Blocked(code="agent", detail=detail)
        case "image_elsewhere":
            which = names(session.images_on)
            detail = f"its image is a snapshot that lies on {which}, which takes no sessions at the moment"
            return Blocked(code="image_elsewhere", detail=detail)
        case "store":
            detail = "no host that takes sessions at the moment has the store of its volumes"
            return Blocked(code="no_hosts", detail=detail)
        case "labels":
            said = names(f"{key}={value}" for key, value in constraints.labels.items())
            return Blocked(code="labels", detail=f"no host that takes sessions has the labels {said}")
        case _:
            detail = f"no host meets all of its constraints at once: {names(anywhere)}"
            return Blocked(code="impossible", detail=detail)


def unshared(fleet: Fleet) -> Blocked:
    detail = f"no GPU of resource group {fleet.group.name} is shared: ask for whole ones"
    return Blocked(code="gpu_sharing", detail=detail)


def no_model(shape: Shape, among: Numbers | None) -> Blocked:
    some = "" if among is None else " and meets its constraints"
    return Blocked(code="gpu_model", detail=f"no host that takes sessions{some} has a GPU that is {shape.model}")


def impossible(shape: Shape, part: Part | None) -> Blocked:
    """`part`: that no host holds; None: each by itself would fit."""
    if part is None:
        detail = f"its {len(shape.each)} kernels do not fit on all hosts together, not even when they are empty"
    else:
        asked = words(added(part.slots)) + (f" of model {shape.model}" if shape.model else "")
        detail = f"no host that takes sessions has {asked}, not even when it is empty"
    return Blocked(code="impossible", detail=detail)


def insufficient(session: PendingSession, shape: Shape, fleet: Fleet, among: Numbers | None) -> Blocked:
    parts = [shape.whole] if session.cluster_mode is ClusterMode.SINGLE_NODE else shape.each
    some = "" if among is None else " that meets its constraints"
    for part in parts:
        most = {dim: fleet.most(dim, among) for dim, _ in part.demand}
        if short := {dim.partition(":")[0]: amount for dim, amount in part.demand if amount > most[dim]}:
            free = {dim.partition(":")[0]: most[dim] for dim, amount in part.demand if amount > most[dim]}
            model = f" of model {shape.model}" if shape.model and short.keys() & {"gpu", "gpu-mem"} else ""
            detail = f"needs {words(short)}{model}; the most that is free on one host{some} is {words(free)}"
            return Blocked(code="insufficient", detail=detail)
    if session.images_on:
        host = names(session.images_on)
        detail = f"its image is a snapshot that lies on {host}, which has not enough free"
        return Blocked(code="insufficient", detail=detail)
    if session.constraints.agent is not None:
        return Blocked(code="insufficient", detail=f"{session.constraints.agent} has not enough free")
    if not shape.single and len(shape.each) > 1:
        detail = f"not all of its {len(shape.each)} kernels find room at the same time"
        return Blocked(code="insufficient", detail=detail)
    return Blocked(code="insufficient", detail=f"no host{some} has all of it free at the same time")


def apart(session: PendingSession) -> Blocked:
    return Blocked(
        code="apart_from",
        detail="every host with room for it holds a session of its owner from which it is to be kept apart",
    )


def reserved(reservation: Reservation) -> Blocked:
    at = "" if reservation.at is None else f", which starts at {reservation.at:%Y-%m-%d %H:%M:%S} at the latest"
    comma = "," if at else ""
    detail = f"room that is free is kept for session {reservation.session_id}{at}{comma} and this one would delay it"
    return Blocked(code="reserved", detail=detail, behind=reservation.session_id)


def behind(reservation: Reservation) -> Blocked:
    detail = f"session {reservation.session_id} comes first and waits for room; nobody passes in this resource group"
    return Blocked(code="behind", detail=detail, behind=reservation.session_id)
