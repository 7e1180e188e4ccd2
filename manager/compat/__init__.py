"""Doors that speak other systems' protocols under `/compat/NAME`, each switched on by its name in the configuration.

A front translates into actions and back, and does nothing else: permission, quota and audit are the actions'.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    from manager.config import ManagerConfig
    from manager.rest.app import RestDoor

#: What `fronts` may name, and where each is; imported when it is switched on.
FRONTS: Final = {
    "inference": "manager.compat.inference",
    "backendai": "manager.compat.backendai",
    "grpc": "manager.compat.grpc",
}
#: Has a listener of its own (`grpc_port`), so that nothing is mounted for it.
_APART: Final = frozenset({"grpc"})
PREFIX: Final = "/compat/"


class Front(Protocol):
    """Of one system. `front(door, config)` makes it."""

    async def answer(self, request: BaseRequest, path: str, request_id: str) -> web.StreamResponse:
        """`path` is raw, begins with a slash and follows the prefix. Failures are answered as the system's clients expect."""
        ...


def mounted(door: RestDoor, config: ManagerConfig) -> dict[str, Front]:
    """Those that are switched on, by name."""
    return {name: _make(name, door, config) for name in config.front_names() if name not in _APART}


def unknown(names: Iterable[str]) -> list[str]:
    return sorted(set(names) - FRONTS.keys())


def _make(name: str, door: RestDoor, config: ManagerConfig) -> Front:
    return cast(Front, importlib.import_module(FRONTS[name]).front(door, config))
