"""Which node is asked next: the nodes there are, how fast and how busy they are, and which are banned for a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from moorage._errors import MoorageError
from moorage.mesh.config import ClientConfig
from moorage.mesh.errors import NoNodes
from moorage.mesh.nodes import P2P, Node, ask_info, p2p_of

_MOST_PINGS = 16


@dataclass(kw_only=True)
class RemoteManagerState:
    """`p2p` reaches nodes; `nodes` are those that were found, by id."""

    p2p: P2P
    nodes: dict[str, Node] = field(default_factory=dict)
    updated_at: float | None = None


class RemoteManager:
    """Shared by any number of sessions of one event loop. `async with`, or `await shutdown()` at the end.

    Nothing of it blocks, and it works in the background only while somebody asks: what it knows is brought up to date when
    it is older than `update_period`.
    """

    def __init__(
        self, config: ClientConfig, *, p2p: P2P | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.state = RemoteManagerState(p2p=p2p or p2p_of(config))
        self._now = now
        self._updating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def shutdown(self) -> None:
        if self._updating is not None:
            self._updating.cancel()
            await asyncio.gather(self._updating, return_exceptions=True)
        await self.state.p2p.shutdown()

    # -- what there is -------------------------------------------------------------------------------------------------
    def update(self, *, wait: bool = True) -> Awaitable[None]:
        """Look which nodes there are, and how they are. `await` it to wait; with `wait=False` that is over at once."""
        if self._updating is None or self._updating.done():
            self._updating = asyncio.ensure_future(self._update())
            self._updating.add_done_callback(_heard)
        if wait:
            return asyncio.shield(self._updating)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def ready(self) -> None:
        """Something is known; what is old is looked up in the background."""
        at = self.state.updated_at
        if at is None or not self.state.nodes:
            await self.update()
        elif self._now() - at > self.config.update_period:
            await self.update(wait=False)

    async def wait_for_nodes(self, count: int = 1, *, timeout: float = 60.0) -> None:  # noqa: ASYNC109 - an error of ours
        """Until so many nodes answer, as after the start of their session. Raises NoNodes when they do not in time."""
        until, pause = self._now() + timeout, 0.05
        while True:
            why: Exception | None = None
            try:
                await self.update()
            except MoorageError as error:
                why = error
            there = [node for node in self.state.nodes.values() if node.identity is not None]
            if len(there) >= count:
                return
            if self._now() > until:
                raise NoNodes(f"{len(there)} of {count} nodes answer after {timeout:.0f} seconds. {why or ''}".strip())
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 1.5)

    async def _update(self) -> None:
        """Raises MoorageError when it cannot be known which nodes there are."""
        state = self.state
        try:
            async with asyncio.timeout(self.config.request_timeout):
                there = await state.p2p.list_peers()
        except (OSError, TimeoutError) as error:
            raise NoNodes(f"It cannot be found out which nodes there are: {error or type(error).__name__}.") from None
        names = {peer: name for peer, name in there.items() if self._is_allowed(peer, name)}
        for peer, name in names.items():
            state.nodes.setdefault(peer, Node(peer_id=peer, name=name)).name = name
        for gone in state.nodes.keys() - names.keys():
            del state.nodes[gone]
        places = asyncio.Semaphore(_MOST_PINGS)
        await asyncio.gather(*(self._ping(node, places) for node in list(state.nodes.values())))
        state.updated_at = self._now()

    def _is_allowed(self, peer: str, name: str) -> bool:
        allowed, blocked = self.config.allowed_servers, self.config.blocked_servers
        if blocked is not None and (peer in blocked or name in blocked):
            return False
        return allowed is None or peer in allowed or name in allowed

    async def _ping(self, node: Node, places: asyncio.Semaphore) -> None:
        """Its latency and load. A node that does not answer stays known, as the slowest."""
        async with places:
            asked_at = time.perf_counter()
            try:
                async with asyncio.timeout(self.config.ping_timeout):
                    node.learn(await ask_info(self.state.p2p, node.peer_id))
            except (MoorageError, OSError, TimeoutError, asyncio.IncompleteReadError):
                node.seconds = self.config.ping_timeout * 2
                return
            seconds = time.perf_counter() - asked_at
            known = node.seconds is not None and node.seconds < self.config.ping_timeout
            node.seconds = 0.5 * seconds + 0.5 * (node.seconds or 0.0) if known else seconds

    # -- whom to ask -----------------------------------------------------------------------------------------------------
    def make_sequence(self) -> list[Node]:
        """Nodes that may be asked, the best first: those that answer fast and have few streams. Raises NoNodes."""
        now = self._now()
        nodes = list(self.state.nodes.values())
        free = [node for node in nodes if node.banned_until <= now]
        if not free:
            if not nodes:
                raise NoNodes("No healthy node is known.")
            seconds = min(node.banned_until for node in nodes) - now
            raise NoNodes(f"All {len(nodes)} nodes failed of late; the first is tried again in {seconds:.0f} seconds.")
        return sorted(free, key=lambda node: (node.busy_until > now, node.cost, node.peer_id))

    @contextlib.contextmanager
    def using(self, peer_id: str) -> Iterator[None]:
        """Counts a stream of this client."""
        node = self.state.nodes.get(peer_id)
        if node is not None:
            node.in_flight += 1
        try:
            yield
        finally:
            if node is not None:
                node.in_flight -= 1
                node.active = max(0, node.active - 1)  # it was counted when the stream was opened

    def on_request_failure(self, peer: str | Node) -> None:
        """Ban it, for twice as long as last time when it has not done anything right since."""
        if (node := self._node(peer)) is not None:
            ban = min(self.config.ban_timeout * 2.0 ** min(node.failures, 60), self.config.max_ban)
            node.failures += 1
            node.banned_until = self._now() + ban

    def on_request_success(self, peer: str | Node) -> None:
        if (node := self._node(peer)) is not None:
            node.failures, node.banned_until = 0, 0.0

    def on_request_busy(self, peer: str | Node, seconds: float = 1.0) -> None:
        """It is asked only when all others are banned or busy."""
        if (node := self._node(peer)) is not None:
            node.busy_until = self._now() + seconds

    def get_retry_delay(self, attempt_no: int) -> float:
        """Seconds before an attempt: none before the first repetition, then doubling."""
        if attempt_no <= 0:
            return 0.0
        return float(min(self.config.min_backoff * 2.0 ** min(attempt_no - 1, 60), self.config.max_backoff))

    def _node(self, peer: str | Node) -> Node | None:
        return self.state.nodes.get(peer if isinstance(peer, str) else peer.peer_id)


def _heard(task: asyncio.Task[None]) -> None:
    """Whoever does not wait for an update does not hear of its failure; what was known holds."""
    if not task.cancelled():
        task.exception()
