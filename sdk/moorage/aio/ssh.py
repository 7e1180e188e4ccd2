"""Keys for the SSH gateway, and certificates for minutes."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator

from moorage import _wire
from moorage._models import SshAccess, SshKey
from moorage.aio._transport import Transport, decoded


class SshKeys:
    """`client.ssh_keys`: public keys that open one's sessions by SSH."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[SshKey]:
        """One's own. Fetched as they are looked at."""
        return self._transport.items(SshKey.from_json, _wire.path("ssh-keys"), limit=limit)

    async def list(self, *, limit: int | None = None) -> builtins.list[SshKey]:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def add(self, public_key: str, *, name: str | None = None) -> SshKey:
        """Register a public key: the one line of a .pub file."""
        fields = _wire.body(public_key=public_key, name=name)
        return SshKey.from_json(decoded(await self._transport.request("POST", _wire.path("ssh-keys"), json=fields)))

    async def remove(self, key: str) -> SshKey:
        """By its id, fingerprint or name; connections that it opened end within a second."""
        answer = await self._transport.request("DELETE", _wire.path("ssh-keys", key))
        return SshKey.from_json(decoded(answer))


class SessionSsh:
    """The part of a session that SSH reaches."""

    _transport: Transport
    _base: str
    _owner: dict[str, str]

    async def ssh_access(self, public_key: str, *, kernel: str | None = None) -> SshAccess:
        """Where the gateway is, its host key, and a certificate for `public_key` that opens this session for minutes."""
        fields = _wire.body(public_key=public_key, kernel=kernel)
        address = f"{self._base}/ssh-certificate"
        answer = await self._transport.request("POST", address, params=self._owner, json=fields)
        return SshAccess.from_json(decoded(answer))
