"""Where a session may run: which resource group, and what it demands of its hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actions.base import Work
from actions.device_requests import check_devices
from actions.kernels import check_possible, sum_of
from domain.errors import (
    InvalidConfiguration,
    NoMatchingHosts,
    PermissionDenied,
    ResourceGroupDenied,
    ResourceGroupInactive,
    ResourceGroupNotFound,
)
from domain.ids import AgentId
from domain.options import check_labels
from domain.placement import DEFAULT_GROUP, Constraints
from domain.resources import ResourceSlot
from domain.session import ClusterMode, Session
from repositories.agents import get_agent, reported_slots
from repositories.database import Connection
from repositories.image import Image
from repositories.resource_groups import groups_for, groups_with_room

Known = list[tuple[str, dict[str, int]]]  #: of every host that might be meant: architecture and slots


class Constrained(Protocol):
    """The fields of a creation that are checked here."""

    @property
    def resource_group(self) -> str | None: ...
    @property
    def agent(self) -> str | None: ...
    @property
    def host_labels(self) -> Mapping[str, str] | None: ...
    @property
    def apart_from(self) -> Mapping[str, str] | None: ...
    @property
    def gpu_model(self) -> str | None: ...
    @property
    def cluster_mode(self) -> ClusterMode: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a session that is created may run."""

    group: str
    constraints: Constraints
    notices: tuple[Mapping[str, str], ...] = ()


async def checked_place(
    call: Work, asked: Constrained, *, project: str, image: Image, sizes: Sequence[ResourceSlot]
) -> Place:
    """Raises what is wrong with the group or the constraints, and when no host could ever hold kernels of these sizes."""
    connection = call.db.connection
    constraints = Constraints(
        agent=None if asked.agent is None else AgentId(asked.agent),
        labels=check_labels(asked.host_labels or {}),
        apart_from=check_labels(asked.apart_from or {}),
        gpu_model=asked.gpu_model,
    )
    at: Mapping[str, Any] | None = None
    if constraints.agent is not None:
        if not call.by.is_admin:
            raise PermissionDenied("Only administrators choose the host of a session; leave `agent` out.")
        at = await get_agent(connection, constraints.agent)
    wanted = asked.resource_group or (at["resource_group"] if at else None)
    owner = call.owner
    who: dict[str, Any] = {"user_id": owner.user_id, "domain": owner.domain}
    total = sum_of(sizes)
    if total.keys() == {"cpu", "mem"} and not (constraints.agent or constraints.labels):
        who |= {"project": project, "architecture": image.architecture}
        groups = await groups_with_room(connection, cpu=total["cpu"], mem=total["mem"], **who)
    else:
        groups = await groups_for(connection, projects=[project], **who)
    group = _usable(groups, call, wanted, project)
    if at is not None and at["resource_group"] != group["name"]:
        raise InvalidConfiguration(
            f"The agent '{at['id']}' is in the resource group '{at['resource_group']}', not in '{group['name']}'.",
            field="agent",
        )
    name, roomy = group["name"], group.get("roomy", False)
    if not roomy:
        known = await reported_slots(
            connection, only=constraints.agent, group=name, labels=constraints.labels, gpu_model=asked.gpu_model
        )
        if not known and group["agents"] and (constraints.labels or constraints.agent):
            _refuse(name, constraints)
    await check_devices(connection, name, constraints, sizes)
    if not roomy:
        check_possible(known, image, sizes, asked.cluster_mode, gpu_model=asked.gpu_model)
    notices = () if group["agents"] or name == DEFAULT_GROUP else (_waits_for_agents(name),)
    return Place(group=name, constraints=constraints, notices=notices)


async def slots_for(connection: Connection, session: Session, *, only: AgentId | None = None) -> Known:
    """Of the hosts that an existing session might get."""
    said = session.constraints
    return await reported_slots(
        connection,
        only=only or said.get("agent"),
        group=session.resource_group,
        labels=said.get("labels"),
        gpu_model=said.get("gpu_model"),
    )


async def check_group_still(call: Work, session: Session) -> None:
    """Before a session that has ended waits again: its owner may have lost the group. Raises what is wrong with it."""
    owner, project = call.owner, session.project
    groups = await groups_for(call.db.connection, user_id=owner.user_id, projects=[project], domain=owner.domain)
    _usable(groups, call, session.resource_group, project)


def _usable(groups: Sequence[Mapping[str, Any]], call: Work, wanted: str | None, project: str) -> Mapping[str, Any]:
    mine = [group for group in groups if group["allowed"] or call.owner.is_admin or call.by.is_admin]
    if wanted is None:  # 'default' comes first
        usual = [group for group in mine if group["active"] and group["allowed"]] or [g for g in mine if g["active"]]
        if not usual:
            raise ResourceGroupDenied(
                f"There is no resource group that you may use in the project '{project}'; ask an administrator."
            )
        return usual[0]
    found = next((group for group in groups if group["name"] == wanted), None)
    if found is None:
        raise ResourceGroupNotFound(resource_group=wanted)
    if found not in mine:
        raise ResourceGroupDenied(
            f"You may not use the resource group '{wanted}' in the project '{project}'; "
            "'moorage resource-group ls' lists those that you may use.",
            resource_group=wanted,
        )
    if not found["active"]:
        raise ResourceGroupInactive(
            f"The resource group '{wanted}' takes no new sessions; choose another, or ask an administrator.",
            resource_group=wanted,
        )
    return found


def _refuse(group: str, constraints: Constraints) -> None:
    labels = ", ".join(f"{name}={value}" for name, value in constraints.labels.items())
    if constraints.agent is not None:
        what = f"the agent '{constraints.agent}' has not been heard of yet" + (
            f", or has not the labels {labels}" if labels else ""
        )
    else:
        what = f"no host of it has the labels {labels}"
    raise NoMatchingHosts(
        f"The session could never start in the resource group '{group}': {what}; change the constraints.",
        resource_group=group,
    )


def _waits_for_agents(group: str) -> Mapping[str, str]:
    return {
        "kind": "resource_group",
        "message": f"The resource group '{group}' has no hosts: the session cannot start before an administrator "
        "gives it some.",
    }
