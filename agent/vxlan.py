"""The VXLAN device that joins a cluster session's bridge with those of its other hosts. Speaks to `ip` and `bridge`."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from agent.containers import EngineError

#: IP, UDP, VXLAN and the inner Ethernet header.
OVERHEAD_BYTES: Final = 50
_ANY: Final = "00:00:00:00:00:00"
_SECONDS: Final = 10.0


async def ensure(device: str, *, vni: int, bridge: str, local: str, peers: Collection[str], port: int) -> None:
    """The device is there, up, on the bridge, and knows exactly these peers; what is so already is left alone."""
    there = await _device(device)
    if there is None:
        try:
            await _run(
                "ip", "link", "add", device, "type", "vxlan", "id", str(vni), "dstport", str(port), "local", local
            )
        except EngineError:
            if await _device(device) is None:  # else somebody was faster
                raise
    if there is None or there.get("master") != bridge or "UP" not in there.get("flags", ()):
        mtu = await mtu_towards(local) - OVERHEAD_BYTES
        await _run("ip", "link", "set", device, "mtu", str(mtu), "master", bridge, "up")
    known = {
        entry["dst"]
        for entry in json.loads(await _run("bridge", "-j", "fdb", "show", "dev", device) or "[]")
        if entry.get("mac") == _ANY and "dst" in entry
    }
    for peer in sorted(set(peers) - known):
        await _run("bridge", "fdb", "append", _ANY, "dev", device, "dst", peer)
    for peer in sorted(known - set(peers)):
        await _run("bridge", "fdb", "del", _ANY, "dev", device, "dst", peer)


async def remove(device: str) -> None:
    """It is no error when it is not there."""
    if available() and await _device(device) is not None:
        await _run("ip", "link", "del", device)


async def orphans(prefix: str) -> list[str]:
    """VXLAN devices of this host whose names begin so and whose bridge has gone."""
    if not available():
        return []
    found = json.loads(await _run("ip", "-j", "link", "show", "type", "vxlan") or "[]")
    return [one["ifname"] for one in found if str(one.get("ifname", "")).startswith(prefix) and "master" not in one]


def available() -> bool:
    return shutil.which("ip") is not None and shutil.which("bridge") is not None


async def mtu_towards(local: str) -> int:
    """Of the device that has this address; 1500 when nobody knows."""
    if not available():
        return 1500
    for one in json.loads(await _run("ip", "-j", "address", "show") or "[]"):
        if any(address.get("local") == local for address in one.get("addr_info", ())):
            return min(int(one.get("mtu", 1500)), 1500)
    return 1500


def own_address(managers: Collection[str]) -> str | None:
    """The address under which other hosts reach this one: that of the way to a manager, else of the default way."""
    for host in [*(urlsplit(url).hostname for url in managers), "192.0.2.1"]:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((host, 9))  # nothing is sent
                address = str(sock.getsockname()[0])
        except OSError:
            continue
        if not address.startswith("127."):
            return address
    return None


async def _device(name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(await _run("ip", "-j", "link", "show", "dev", name) or "[]")
    except EngineError:
        return None
    return found[0] if found else None


async def _run(*command: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError:
        raise EngineError(
            f"'{command[0]}' is not on this host: clusters over several hosts need iproute2 and root."
        ) from None
    try:
        async with asyncio.timeout(_SECONDS):
            out, error = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EngineError(f"'{' '.join(command)}' does not end.", unknown=True) from None
    if process.returncode:
        raise EngineError(f"'{' '.join(command)}' failed: {error.decode('utf-8', 'replace').strip()[:500]}")
    return out.decode("utf-8", "replace")
