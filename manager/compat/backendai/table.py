"""Which address leads to which handler. A module declares `ROUTES`; `MODULES` names it."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from domain.errors import MethodNotAllowed, RouteNotFound
from manager.rest.exchange import decode_segment

if TYPE_CHECKING:
    from aiohttp import web

    from manager.compat.backendai.ask import Ask

#: Beside this file; each has `ROUTES: Final[tuple[Route, ...]]`.
MODULES: Final = (
    "negotiation", "creation", "sessions", "runs", "streams", "files", "events",
    "gql", "pty", "tunnel", "services", "templates", "resources", "managing", "folders",
)  # fmt: skip


@dataclass(frozen=True)
class Route:
    """`path` as in `/session/{name}/upload`; the handler finds what stands for the names, decoded, in `ask.path`."""

    method: str
    path: str
    handler: Callable[[Ask], Awaitable[web.StreamResponse]]
    public: bool = False  #: without a signature
    #: a GET whose signature is good for one use, as a POST's: its asker acts afterwards, as over a WebSocket, or what is
    #: read stands in the body, which no signature covers
    once: bool = False

    @cached_property
    def segments(self) -> list[str]:
        return self.path[1:].split("/")

    @property
    def uses_signature(self) -> bool:
        return self.once or self.method not in ("GET", "HEAD")


class Table:
    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_length: dict[int, list[Route]] = {}
        # words go before names
        for route in sorted(routes, key=lambda route: [segment.startswith("{") for segment in route.segments]):
            same = self._by_length.setdefault(len(route.segments), [])
            if any(one.method == route.method and one.path == route.path for one in same):
                raise ValueError(f"two rows for {route.method} {route.path}")
            same.append(route)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Raises RouteNotFound, MethodNotAllowed."""
        raw = path[1:].split("/")
        allowed: set[str] = set()
        for route in self._by_length.get(len(raw), ()):
            if not all(
                bool(there) if segment.startswith("{") else segment == there
                for segment, there in zip(route.segments, raw, strict=True)
            ):
                continue
            if route.method == method:
                return route, _values(route, raw)
            allowed.add(route.method)
        if allowed:
            raise MethodNotAllowed(allow=", ".join(sorted(allowed)))
        raise RouteNotFound


def whole_table() -> Table:
    package = __name__.rpartition(".")[0]
    return Table(route for name in MODULES for route in importlib.import_module(f"{package}.{name}").ROUTES)


def _values(route: Route, raw: list[str]) -> dict[str, str]:
    return {
        segment[1:-1]: decode_segment(there)
        for segment, there in zip(route.segments, raw, strict=True)
        if segment.startswith("{")
    }
