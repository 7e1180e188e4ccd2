"""The fleet's GPUs, for its administrators."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from moorage import _wire
from moorage._models import Device
from moorage.aio._transport import Transport, decoded

DeviceList = list[Device]


class Devices:
    """`client.devices`; a device is named by its UUID, or on one host by its number."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, agent: str | None = None, limit: int | None = None) -> AsyncGenerator[Device]:
        """Those of all hosts, or of one: what they are, who holds them, which are out and why. Fetched as they are looked at."""
        address = _wire.path("devices") if agent is None else _wire.path("agents", agent, "devices")
        return self._transport.items(Device.from_json, address, limit=limit)

    async def list(self, *, agent: str | None = None, limit: int | None = None) -> DeviceList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(agent=agent, limit=limit)]

    async def take_out(self, agent: str, device: str, *, reason: str) -> Device:
        """Hand it to nobody from now on; who holds it keeps it, and is told."""
        address = _wire.path("agents", agent, "devices", device, "out")
        return Device.from_json(decoded(await self._transport.request("POST", address, json={"reason": reason})))

    async def put_in(self, agent: str, device: str) -> Device:
        """Offer it again; refused while its host says that it is bad."""
        address = _wire.path("agents", agent, "devices", device, "in")
        return Device.from_json(decoded(await self._transport.request("POST", address, json={})))
