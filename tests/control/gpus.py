"""Hosts with made-up devices, for tests of what the manager does with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.wire import DeviceFact, DeviceList
from domain.ids import AgentId
from repositories.agents import change_devices, enrol, hello, issue_token
from repositories.database import Connection
from repositories.devices import Changed
from tests.control.rows import LATER, NOW, said_hello

H100, A40, MIG = "NVIDIA H100 80GB HBM3", "NVIDIA A40", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"


def a_device(uuid: str, model: str = H100, mib: int = 81920, **facts: Any) -> DeviceFact:
    """As an agent would tell of it."""
    values: dict[str, Any] = {"driver": "570.86.15", "cuda": "12.8", "simulated": True, "offered_mib": mib}
    return DeviceFact(name=f"gpu/{uuid}", model=model, memory_mib=mib, **{**values, **facts})


async def add_gpu_host(
    connection: Connection, name: str, devices: Sequence[DeviceFact], *, boot_no: int = 1, **amounts: int
) -> AgentId:
    """A host that has joined and said hello with these devices."""
    agent_id = AgentId(name)
    if not await connection.fetchval("SELECT true FROM agents WHERE id = $1", agent_id):
        token = await issue_token(connection, expires_at=LATER, now=NOW)
        await enrol(connection, token, agent_id, f"fingerprint of {name}", now=NOW)
    resources = {"cpu": 64_000, "mem": 512 * 1024} | amounts | {one.name: one.offered_mib for one in devices}
    said = said_hello(name, resources=resources, boot_no=boot_no).pack() | {"devices": [one.pack() for one in devices]}
    await hello(connection, type(said_hello(name, resources={}))(**said), now=NOW, lease_seconds=1e6)
    return agent_id


async def tell_devices(
    connection: Connection, agent_id: str, devices: Sequence[DeviceFact], *, seq: int, boot_no: int = 1
) -> Changed:
    """The host's list has changed."""
    said = DeviceList(
        devices=[one.pack() for one in devices],
        resources={one.name: one.offered_mib for one in devices if one.healthy},
        boot_no=boot_no,
        seq=seq,
    )
    return await change_devices(connection, AgentId(agent_id), said, now=NOW)
