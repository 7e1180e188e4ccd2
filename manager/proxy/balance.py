"""Which kernel a request goes to, and connections into kernels that are used again."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol
from uuid import UUID

from agent.client import KernelAddress
from domain.errors import MoorageError, ServiceUnreachable
from domain.ids import KernelId
from repositories.service import Backend, Route

#: A kernel that refused a connection gets none for so long, when there are others.
_OUT_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 30.0
_MOST_IDLE: Final = 64
_CONNECT_SECONDS: Final = 10.0
Dial = Callable[[KernelAddress, int], Awaitable[socket.socket]]


class Owner(Protocol):
    """Whoever uses a connection at the moment."""

    def upstream_data(self, data: bytes) -> None: ...
    def upstream_eof(self) -> None: ...
    def upstream_lost(self) -> None: ...
    def upstream_full(self) -> None: ...
    def upstream_free(self) -> None: ...


class Upstream(asyncio.Protocol):
    """One connection to a service in a kernel."""

    __slots__ = ("backend", "balancer", "fresh", "idle_since", "key", "owner", "sock", "transport")

    def __init__(self, balancer: Balancer, backend: Backend, key: tuple[UUID, int, int], sock: socket.socket) -> None:
        self.balancer = balancer
        self.backend = backend
        self.key = key
        self.sock = sock
        self.owner: Owner | None = None
        self.transport: asyncio.Transport
        self.fresh = True  #: nothing has been asked over it
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        if self.owner is not None:
            self.owner.upstream_data(data)
        else:
            self.transport.abort()  # it speaks unasked

    def eof_received(self) -> bool:
        if self.owner is None:
            return False
        self.owner.upstream_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.balancer.gone(self)
        if self.owner is not None:
            owner, self.owner = self.owner, None
            owner.upstream_lost()

    def pause_writing(self) -> None:
        if self.owner is not None:
            self.owner.upstream_full()

    def resume_writing(self) -> None:
        if self.owner is not None:
            self.owner.upstream_free()


class Balancer:
    """Least connections first; kernels that are not healthy only when no other is there."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._busy: Counter[UUID] = Counter()
        self._out: dict[UUID, float] = {}
        self._idle: dict[tuple[UUID, int, int], deque[Upstream]] = {}
        self._turn = 0

    def chosen(self, route: Route, without: frozenset[UUID] = frozenset()) -> Backend | None:
        """Where the next request goes; None when there is nobody left."""
        if len(route.backends) == 1:
            only = route.backends[0]
            return None if only.kernel_id in without else only
        now, busy, out = time.monotonic(), self._busy, self._out
        self._turn += 1
        count = len(route.backends)
        best: tuple[bool, int, int] | None = None
        found: Backend | None = None
        for index, backend in enumerate(route.backends):
            if backend.kernel_id in without:
                continue
            ill = not backend.healthy or out.get(backend.kernel_id, 0.0) > now
            rank = (ill, busy[backend.kernel_id], (index - self._turn) % count)
            if best is None or rank < best:
                best, found = rank, backend
        return found

    def take_idle(self, route: Route, backend: Backend) -> Upstream | None:
        """A connection that was used before and is open still."""
        waiting = self._idle.get((backend.kernel_id, backend.attempt, route.port))
        while waiting:
            upstream = waiting.pop()
            if not upstream.transport.is_closing() and time.monotonic() - upstream.idle_since < _IDLE_SECONDS:
                self._busy[backend.kernel_id] += 1
                return upstream
            upstream.transport.abort()
        return None

    async def connect(self, route: Route, backend: Backend) -> Upstream:
        """A new connection. Raises ServiceUnreachable, and remembers who refused."""
        where = KernelAddress(agent_id=backend.agent_id, kernel_id=KernelId(backend.kernel_id), attempt=backend.attempt)
        self._busy[backend.kernel_id] += 1
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                sock = await self._dial(where, route.port)
            key = (backend.kernel_id, backend.attempt, route.port)
            upstream = Upstream(self, backend, key, sock)
            await asyncio.get_running_loop().create_connection(lambda: upstream, sock=sock)
            return upstream
        except (MoorageError, OSError, TimeoutError) as error:
            self._busy[backend.kernel_id] -= 1
            self._out[backend.kernel_id] = time.monotonic() + _OUT_SECONDS
            if len(self._out) > 10_000:
                self._out.clear()
            why = f" ({error.message})" if isinstance(error, MoorageError) else ""
            raise ServiceUnreachable(f"The service '{route.name}' cannot be reached at the moment{why}") from None
        except BaseException:
            self._busy[backend.kernel_id] -= 1
            raise

    def give_back(self, upstream: Upstream) -> None:
        """It has answered, and may be asked again."""
        upstream.owner = None
        self._busy[upstream.backend.kernel_id] -= 1
        waiting = self._idle.setdefault(upstream.key, deque())
        if upstream.transport.is_closing() or len(waiting) >= _MOST_IDLE:
            upstream.transport.abort()
            return
        upstream.fresh = False
        upstream.idle_since = time.monotonic()
        upstream.transport.resume_reading()
        waiting.append(upstream)

    def drop(self, upstream: Upstream) -> None:
        """It is of no more use."""
        if upstream.owner is not None:
            upstream.owner = None
            self._busy[upstream.backend.kernel_id] -= 1
        upstream.transport.abort()

    def gone(self, upstream: Upstream) -> None:
        if upstream.owner is not None:
            self._busy[upstream.backend.kernel_id] -= 1
        elif (waiting := self._idle.get(upstream.key)) is not None:
            if upstream in waiting:
                waiting.remove(upstream)
            if not waiting:
                del self._idle[upstream.key]

    def failed(self, backend: Backend) -> None:
        """It broke off in the middle of a request."""
        self._out[backend.kernel_id] = time.monotonic() + _OUT_SECONDS

    async def sweep(self) -> None:
        """Connections that nobody has used for a while; runs until cancelled."""
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 2)
            old = time.monotonic() - _IDLE_SECONDS
            for waiting in list(self._idle.values()):
                for upstream in [one for one in waiting if one.idle_since < old]:
                    upstream.transport.abort()
            self._busy += Counter()  # without the zeros
            self._out = {kernel: until for kernel, until in self._out.items() if until > time.monotonic()}

    def close(self) -> None:
        for waiting in list(self._idle.values()):
            for upstream in list(waiting):
                upstream.transport.abort()
