"""A session's store of small JSON values, which its own programs know as `moorage_session.state`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moorage import _wire
from moorage.aio import _io
from moorage.aio._transport import Transport, decoded
from moorage.errors import StateKeyNotFound


class State(_io.Items):
    """`session.state`: one store for all of a session, kept when its worker or runner dies, gone with its containers.

    Values are strict JSON of at most 64 KiB; all of them take 1 MiB and 1,000 keys of 128 characters. Each call is whole by
    itself, whatever others do meanwhile; the last to write a key wins. What is read is a copy.
    """

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str]) -> None:
        self._transport = transport
        self._base = f"{base}/state"
        self._owner = dict(owner)

    async def get(self, key: str, default: Any = None) -> Any:
        try:
            answer = await self._transport.request("GET", self._of(key), params=self._owner)
        except StateKeyNotFound:
            return default
        return decoded(answer)["value"]

    async def set(self, key: str, value: Any) -> None:
        """Raises `StateFull`, and TypeError or ValueError for what is not JSON."""
        await self._transport.request("PUT", self._of(key), params=self._owner, json={"value": value})

    async def delete(self, key: str) -> bool:
        """Whether there was such a key."""
        answer = await self._transport.request("DELETE", self._of(key), params=self._owner)
        return bool(decoded(answer)["deleted"])

    async def exists(self, key: str) -> bool:
        return key in await self.sizes()

    async def sizes(self) -> dict[str, int]:
        """Every key, with the bytes that its value takes as JSON."""
        answer = await self._transport.request("GET", self._base, params=self._owner)
        return {entry["key"]: entry["bytes"] for entry in decoded(answer)["items"]}

    def _of(self, key: str) -> str:
        return f"{self._base}/{_wire.segment(key)}"
