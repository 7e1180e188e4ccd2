"""Where the manager may be sent by its users: to the world, and not to itself, its neighbours or what is beneath it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_NAT64: Final = IPv6Network("64:ff9b::/96")


class Forbidden(Exception):
    """The address is not one that may be called; the message says why."""


def networks(text: str) -> tuple[Network, ...]:
    """From `manager.toml`: addresses and ranges, between commas. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


class Egress:
    """Resolves a host once, and says which of its addresses may be connected to."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = allowed

    async def resolve(self, host: str, port: int, *, ours: Collection[str] = ()) -> str:
        """The address to connect to, and to no other. `ours`: further hosts of this installation.

        Raises Forbidden, also when only one of several addresses is forbidden: whoever mixes them means harm.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(5.0):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Forbidden(f"the host {host[:100]} is not known") from None
        except TimeoutError:
            raise Forbidden(f"the host {host[:100]} could not be looked up in time") from None
        addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
        for text in addresses:
            if (why := self.refusal(text, ours)) is not None:
                raise Forbidden(
                    f"{host[:100]} is at {text}, which is {why}; an administrator can allow it (callback_allow)"
                )
        if not addresses:
            raise Forbidden(f"the host {host[:100]} has no address")
        return addresses[0]

    def refusal(self, text: str, ours: Collection[str] = ()) -> str | None:
        """Why this address may not be called; None when it may."""
        address = ip_address(text)
        meant = _embedded(address)
        if any(
            one in network for network in self._allowed for one in {address, meant} if one.version == network.version
        ):
            return None
        for one in (meant, address):
            if (kind := _kind(one)) is not None:
                return kind
        if text in ours or str(meant) in ours or is_own(meant):
            return "a host of this installation"
        return None


def _kind(address: Address) -> str | None:
    if address.is_unspecified or address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if not address.is_global:
        return "private or reserved"
    return None


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_own(address: Address) -> bool:
    """Whether it is one of this machine's: only those can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


class Pinned(AbstractResolver):
    """Answers with the address that was looked up and checked, whatever DNS says by now."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        kind = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        found = ResolveResult(
            hostname=host, host=self._address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST
        )
        return [found]

    async def close(self) -> None: ...
