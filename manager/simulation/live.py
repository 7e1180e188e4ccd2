"""What is asked of a running installation: its hosts, a group's policy, and what has run there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moorage.cli.terminal import connect, moment

from domain.errors import InvalidSimulation
from domain.ids import AgentId
from domain.placement import DEFAULT_GROUP, DEVICE, Device, Host
from domain.resources import ResourceSlot
from domain.simulation.fields import Hole
from domain.simulation.fleet import Fleet
from domain.simulation.native import parse
from domain.simulation.policy import Policy
from domain.simulation.workload import Job, Workload


def live_fleet() -> Fleet:
    """Every host that is there, cordoned or not, with the devices that are handed out; as if all were empty."""
    with connect() as client:
        agents = [agent for agent in client.agents.list() if not agent.lost]
        devices: dict[str, list[Any]] = {}
        for device in client.devices.list():
            if device.out_since is None and device.missing_since is None:
                devices.setdefault(device.agent, []).append(device)
    if not agents:
        raise InvalidSimulation("The installation has no host; describe a fleet in a file.")
    return Fleet(name="live", hosts=tuple(_host(agent, devices.get(agent.id, [])) for agent in agents))


def _host(agent: Any, devices: Iterable[Any]) -> Host:
    plain = {name: amount for name, amount in agent.capacity.items() if not name.startswith("gpu")}
    capacity = {**ResourceSlot(plain), **{f"{DEVICE}{device.device}": device.offered_mib for device in devices}}
    return Host(
        id=AgentId(agent.id),
        architecture=agent.architecture,
        free=capacity,
        capacity=capacity,
        resource_group=agent.resource_group,
        labels=dict(agent.labels),
        devices=tuple(
            Device(
                name=f"{DEVICE}{device.device}",
                model=device.model,
                numa=device.numa,
                whole_only=device.whole_only,
                links={f"{DEVICE}{other}": close for other, close in device.links.items()},
            )
            for device in devices
        ),
        address=agent.info.get("address") or agent.id,
    )


def live_policy(group: str = "") -> Policy:
    """As a resource group has it."""
    with connect() as client:
        found = client.resource_groups.get(group or DEFAULT_GROUP)
    return Policy(
        name=f"live:{found.name}",
        fair_share=found.ordering == "fair_share",
        spread=found.fit == "spread",
        backfill=found.backfill,
        gpu_sharing=found.gpu_sharing,
        half_life_seconds=found.half_life_seconds,
        weights={one.user: one.weight for one in found.weights},
    )


def live_workload(since: str | None, until: str | None, *, anonymous: bool) -> Workload:
    """What has run; of what still runs only the number is told."""
    given = {name: moment(text) for name, text in (("since", since), ("until", until)) if text}
    with connect() as client:
        answer = client.trace(**given)
    names = _Names() if anonymous else None
    jobs = [_job(number, fields, names) for number, fields in enumerate(answer["sessions"], 1)]
    notes = [
        f"{answer[count]:,} left out: {what}"
        for count, what in (("running", "sessions that still run"), ("never_ran", "sessions that never ran"))
        if answer[count]
    ]
    return Workload(jobs=tuple(jobs), source=f"{len(jobs):,} sessions", notes=tuple(notes))


class _Names:
    """Users and projects as numbers, in the order in which they appear."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, kind: str, name: str) -> str:
        number = 1 + sum(other == kind for other, _ in self._known)
        return self._known.setdefault((kind, name), f"{kind}{number}")


def _job(line: int, fields: Mapping[str, Any], names: _Names | None) -> Job:
    hidden = {kind: names(kind, fields[kind]) for kind in ("user", "project")} if names else {}
    try:
        return parse({name: value for name, value in {**fields, **hidden}.items() if value is not None}, line)
    except Hole as hole:
        raise InvalidSimulation(f"The server told of a session whose {hole.field} {hole.reason}.") from None
