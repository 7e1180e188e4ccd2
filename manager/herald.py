"""Tells this process and the others that something has changed, so that nobody waits for the next poll.

Never inside a transaction that writes: a NOTIFY there would hold a lock of the whole database across its flush.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias
from uuid import UUID, uuid4

from domain.crash import reach
from domain.errors import MoorageError
from domain.ids import SessionId
from repositories.listen import MAX_PAYLOAD_BYTES, Listener

log = logging.getLogger(__name__)

#: queue: something may be schedulable; dispatch: an intent has changed; sessions: rows have changed; events: rows wait
#: for their seq; identity: users, keypairs, policies; images; agents; runs: executions have finished; tasks;
#: workers: worker sessions have something to load or to answer;
#: trust: the certificate of an agent does not count any more.
TOPICS: Final = frozenset(
    {
        "queue",
        "dispatch",
        "sessions",
        "events",
        "identity",
        "images",
        "agents",
        "managers",
        "runs",
        "services",
        "stamped",
        "tasks",
        "trust",
        "webhooks",
        "workers",
    }
)
#: Nobody's session waits for these: in a burst they are told less often.
_UNHURRIED: Final = frozenset({"events", "runs", "stamped"})
#: What a subscriber is told: the sessions concerned, or None for "anything may have changed", also when messages may
#: have been missed.
Callback: TypeAlias = Callable[[frozenset[SessionId] | None], None]


class Herald:
    """`start` before use. `announce` and `subscribe` belong to the event loop's thread."""

    def __init__(
        self, dsn: str, *, channel: str = "moorage", quiet_seconds: float = 0.005, check_seconds: float = 5.0
    ) -> None:
        self._dsn = dsn
        self._channel = channel
        self._quiet_seconds = quiet_seconds
        self._check_seconds = check_seconds
        self._origin = uuid4().hex[:12]
        self._callbacks: dict[str, list[Callback]] = defaultdict(list)
        self._watching: dict[SessionId, list[Callable[[], None]]] = defaultdict(list)
        self._pending: dict[str, set[SessionId] | None] = {}
        self._unsent = asyncio.Event()
        self._hurry = asyncio.Event()
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None
        #: set while other processes are heard
        self.connected = asyncio.Event()

    async def start(self) -> None:
        """Raises InvalidConfiguration when the connection delivers no notifications, DatabaseUnavailable."""
        self._listener = await self._open()
        self.connected.set()
        self._task = asyncio.create_task(self._run(), name="herald")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    def announce(self, topic: str, *session_ids: SessionId) -> None:
        """After the commit. Without ids: anything of the topic may have changed.

        Subscribers in this process are called before this returns; other processes are told at once, or with whatever
        else is announced within 5 ms (25 ms, when nothing of it is urgent) of the message before.
        """
        assert topic in TOPICS, topic
        known = self._pending.get(topic, set())
        self._pending[topic] = known | set(session_ids) if session_ids and known is not None else None
        self._unsent.set()
        if topic not in _UNHURRIED:
            self._hurry.set()
        self._tell(topic, frozenset(session_ids) or None)

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        """Calls back, on the event loop, for every announcement in any process; returns what ends it."""
        assert topic in TOPICS, topic
        self._callbacks[topic].append(callback)
        return lambda: self._callbacks[topic].remove(callback)

    @contextlib.contextmanager
    def watching(self, session_id: SessionId, callback: Callable[[], None]) -> Iterator[None]:
        """Hear of one session. Begin before reading its row, so that no change falls in between."""
        callbacks = self._watching[session_id]
        callbacks.append(callback)
        try:
            yield
        finally:
            callbacks.remove(callback)
            if not callbacks:
                self._watching.pop(session_id, None)

    def _tell(self, topic: str, session_ids: frozenset[SessionId] | None) -> None:
        for callback in tuple(self._callbacks[topic]):
            try:
                callback(session_ids)
            except Exception:
                log.exception("a subscriber of %s failed", topic)
        if topic in ("sessions", "runs"):
            for session_id in list(self._watching) if session_ids is None else session_ids:
                for changed in tuple(self._watching.get(session_id, ())):
                    changed()

    def _missed(self) -> None:
        for topic in sorted(TOPICS):
            self._tell(topic, None)

    def _receive(self, payload: str) -> None:
        origin, _, message = payload.partition(" ")
        if origin == self._origin:
            return
        for part in message.split("|"):
            topic, *ids = part.split(" ")
            if topic in TOPICS:
                self._tell(topic, _session_ids(ids))

    async def _open(self) -> Listener:
        token = f"{self._origin} self {uuid4().hex}"
        return await Listener.open(self._dsn, self._channel, self._receive, self._unsent.set, token=token)

    async def _run(self) -> None:
        pause_seconds = 0.05
        while True:
            if self._listener is None:
                try:
                    self._listener = await self._open()
                except (MoorageError, OSError):
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(1.0, pause_seconds * 2)
                    continue
                log.warning("the herald's connection is back; everybody looks again")
                self.connected.set()
                self._missed()
            pause_seconds = 0.05
            try:
                await self._send(self._listener)
            except (MoorageError, OSError) as error:
                log.warning("the herald's connection is lost: %s", error)
            self.connected.clear()
            await self._listener.close()
            self._listener = None

    async def _send(self, listener: Listener) -> None:
        """Until the connection ends."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_seconds):
                    await self._unsent.wait()
            if listener.ended:
                return
            self._unsent.clear()
            pending, self._pending = self._pending, {}
            try:
                if pending:
                    reach("notify.before")
                await listener.notify(self._message(pending))  # empty now and then: is the server still there?
            except BaseException:
                self._pending = dict.fromkeys({*pending, *self._pending})
                self._unsent.set()
                raise
            if pending:
                reach("notify.after")
                await self._rest()

    async def _rest(self) -> None:
        """Others send what they have to say, too; longer when nothing of it is urgent."""
        await asyncio.sleep(self._quiet_seconds)
        if self._pending.keys() <= _UNHURRIED:
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._quiet_seconds * 4):
                    await self._hurry.wait()

    def _message(self, pending: dict[str, set[SessionId] | None]) -> str:
        def text(*, every_id: bool) -> str:
            parts = []
            for topic, ids in pending.items():
                listed = [one.hex for one in ids] if ids and every_id else ["*"]
                parts.append(" ".join([topic, *listed]))
            return f"{self._origin} {'|'.join(parts)}"

        message = text(every_id=True)
        return message if len(message) <= MAX_PAYLOAD_BYTES else text(every_id=False)


def _session_ids(texts: list[str]) -> frozenset[SessionId] | None:
    try:
        return frozenset(SessionId(UUID(text)) for text in texts)
    except ValueError:  # `*`
        return None
