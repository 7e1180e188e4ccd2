"""The wires between agents and managers, and between managers: frames that are late, lost, doubled, out of order; partitions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
from aiohttp import WSMsgType

from tests.sim.virtual import PROCESS, Process, VirtualLoop


class Message(NamedTuple):
    type: WSMsgType
    data: bytes


class Fate(NamedTuple):
    """What becomes of one frame: seconds until each copy arrives, and whether it may overtake others."""

    arrivals: tuple[float, ...]
    overtakes: bool = False


class End:
    """One end of a WebSocket. As much of one as `agent.rpc.Peer` uses."""

    def __init__(self, network: Network, here: str, there: str, process: Process) -> None:
        self._network = network
        self.here, self.there = here, there
        self.process = process
        self.other: End
        self.closed = False
        self._inbox: deque[Message] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._last_arrival = 0.0
        process.on_death.append(self.broken)

    async def send_bytes(self, data: bytes) -> None:
        await self._network.point("network.send")
        if self.closed:
            raise ConnectionResetError
        if (self.here, self.there) in self._network.cut:
            return
        fate = self._network.fate()
        for seconds in fate.arrivals:
            at = self._network.loop.now + seconds
            if not fate.overtakes:
                at = self._last_arrival = max(at, self._last_arrival)
            self._network.loop.call_at(at, self.other.arrive, data, context=self.other.process.context)

    async def receive(self) -> Message:
        while not self._inbox:
            if self.closed:
                return Message(WSMsgType.CLOSED, b"")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._inbox.popleft()

    async def close(self) -> None:
        self.broken()

    def broken(self) -> None:
        """This end is no more; the other one hears of it, unless the wire is cut."""
        if not self.closed:
            self.end()
            if (self.here, self.there) not in self._network.cut:
                seconds = max(0.001, self._last_arrival - self._network.loop.now)
                self._network.loop.call_later(seconds, self.other.end, context=self.other.process.context)

    def end(self) -> None:
        self.closed = True
        self._wake()

    def arrive(self, data: bytes) -> None:
        if not self.closed:
            self._inbox.append(Message(WSMsgType.BINARY, data))
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Network:
    """`servers` by address: what is called with each new connection, in the server's own process."""

    def __init__(self, loop: VirtualLoop, fate: Callable[[], Fate], point: Callable[[str], Awaitable[None]]) -> None:
        self.loop = loop
        self.fate = fate
        self.point = point
        self.cut: set[tuple[str, str]] = set()  #: (from, to): nothing passes
        self.servers: dict[str, tuple[Process, Callable[[End], None]]] = {}
        self._ends: list[End] = []

    async def connect(self, here: str, address: str) -> End:
        """As from `here`. Raises aiohttp.ClientConnectionError."""
        process = PROCESS.get()
        assert process is not None
        await asyncio.sleep(0.002)
        server = self.servers.get(address)
        if {(here, address), (address, here)} & self.cut:
            await asyncio.sleep(5.0)
            raise aiohttp.ClientConnectionError("no route")
        if server is None or not server[0].alive:
            raise aiohttp.ClientConnectionError("refused")
        mine, theirs = End(self, here, address, process), End(self, address, here, server[0])
        mine.other, theirs.other = theirs, mine
        self._ends += [mine, theirs]
        self.loop.call_later(0.001, server[1], theirs, context=server[0].context)
        return mine

    def part(self, a: str, b: str, *, one_way: bool) -> None:
        """From now on nothing passes from `a` to `b`, nor back. Connections notice after their heartbeats' time."""
        self.cut |= {(a, b)} if one_way else {(a, b), (b, a)}
        for end in self._ends:
            if {end.here, end.there} == {a, b} and not end.closed:
                self.loop.call_later(30.0, self._noticed, end, context=end.process.context)

    def join(self, a: str, b: str) -> None:
        self.cut -= {(a, b), (b, a)}

    def _noticed(self, end: End) -> None:
        if {(end.here, end.there), (end.there, end.here)} & self.cut:
            end.broken()


class Http:
    """Stands in for the module `aiohttp` in `agent.link`: connections go over the simulated network."""

    def __init__(self, network: Callable[[], Network], here: Callable[[], str]) -> None:
        self._network = network
        self._here = here

    def __getattr__(self, name: str) -> Any:
        return getattr(aiohttp, name)

    def ClientTimeout(self, **_options: Any) -> None:
        return None

    def ClientSession(self, **_options: Any) -> _Session:
        return _Session(self._network(), self._here())


class _Session:
    def __init__(self, network: Network, here: str) -> None:
        self._network = network
        self._here = here

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def ws_connect(self, url: str, **_options: Any) -> _Connecting:
        return _Connecting(self._network, self._here, url.removeprefix("https://").partition("/")[0])


class _Connecting:
    def __init__(self, network: Network, here: str, address: str) -> None:
        self._network, self._here, self._address = network, here, address
        self._end: End | None = None

    async def __aenter__(self) -> End:
        self._end = await self._network.connect(self._here, self._address)
        return self._end

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end is not None:
            await self._end.close()
