"""Channels to the gRPC services in sessions: each through a socket of its own in a private folder, whose other end is a tunnel.

gRPC dials addresses, and a tunnel is a socket that is connected already; so its bytes are passed on here, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import grpc.aio

from agent.client import KernelAddress
from domain.errors import MoorageError
from manager.compat.grpc.budget import Share

#: An open tunnel keeps a session from being idle; so it is closed soon after the last call.
KEPT_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 10.0
_BUFFER_BYTES: Final = 2**20
#: Large messages come in large pieces, with less work for each byte.
FRAME_BYTES: Final = 4 * 2**20
#: What one message of the service may be longer than its own bytes, on the way.
_FRAMES_BYTES: Final = 2**20
Dial = Callable[[KernelAddress, int], Awaitable[socket.socket]]
Key = tuple[UUID, int, int]


class Link:
    """A channel to the service of one session. `refused` says why it could not be reached, `over` that it sent too much."""

    def __init__(self, links: Links, key: Key, where: KernelAddress, share: Share) -> None:
        self.key = key
        self.calls = 0
        self.refused: str | None = None
        self.over = False
        self.broken = False  #: the connection to the service ended while it was in use
        self.channel: grpc.aio.Channel
        self.share = share
        #: bytes that have come from the service, and no message of them has been read yet
        self.unread = 0
        self._links = links
        self._where = where
        self._path = links.new_path()
        self._server: asyncio.Server | None = None
        self._ends: set[_End] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._ending: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accepted, self._path)
        self.channel = grpc.aio.insecure_channel(f"unix:{self._path}", options=self._links.options)

    def _accepted(self) -> _End:
        return _End(self, opened=self._dial)

    def _dial(self, near: _End) -> None:
        task = asyncio.create_task(self._connect(near))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _connect(self, near: _End) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                sock = await self._links.dial(self._where, self.key[2])
            far = _End(self, counts=True)
            await asyncio.get_running_loop().create_connection(lambda: far, sock=sock)
        except (MoorageError, OSError, TimeoutError) as error:
            self.refused = error.message if isinstance(error, MoorageError) else "it does not answer"
            near.transport.abort()
            return
        near.join(far)

    def came(self, amount: int) -> bool:
        """False when its user may not have more in this process."""
        self.unread += amount
        self.over = self.unread > self.share.free + _FRAMES_BYTES
        return not self.over

    def read(self, amount: int) -> None:
        """A message of so many bytes has been read."""
        framed = amount + amount // 256 + 512
        self.unread = max(self.unread - framed, 0) if self.calls > 1 else 0

    # -- how long it is kept ---------------------------------------------------------------------------------------------
    def begin(self) -> None:
        self.calls += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def end(self) -> None:
        self.calls -= 1
        if not self.calls:
            self.unread = 0
            seconds = KEPT_SECONDS if self._links.knows(self) else 0.0
            self._ending = asyncio.get_running_loop().call_later(seconds, self._links.drop, self)

    def hold(self, end: _End) -> None:
        self._ends.add(end)

    def lost(self, end: _End) -> None:
        self._ends.discard(end)
        self.broken = self.broken or bool(self.calls)

    async def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        if self._server is not None:
            self._server.close()
        for task in self._dialling:
            task.cancel()
        if hasattr(self, "channel"):
            await self.channel.close()
        for end in list(self._ends):
            end.transport.abort()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(Path(self._path).unlink)


class _End(asyncio.Protocol):
    """One of two connections; what comes in at the one goes out at the other, as fast as that is taken."""

    transport: asyncio.Transport

    def __init__(self, link: Link, *, opened: Callable[[_End], None] | None = None, counts: bool = False) -> None:
        self._link = link
        self._opened = opened
        self._counts = counts
        self._peer: _End | None = None
        self._early: list[bytes] = []  #: what came before there was another end: a preface, no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is one in all but its bases
        self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self._link.hold(self)
        if self._opened is not None:
            self._opened(self)

    def join(self, other: _End) -> None:
        self._peer, other._peer = other, self
        for end in (self, other):
            if end.transport.is_closing():
                self.transport.abort()
                other.transport.abort()
        for end in (self, other):
            early, end._early = end._early, []
            for data in early:
                end.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._counts and not self._link.came(len(data)):
            self.transport.abort()
            return
        if self._peer is not None:
            self._peer.transport.write(data)
        else:
            self._early.append(data)

    def pause_writing(self) -> None:
        if self._peer is not None and not self._peer.transport.is_closing():
            self._peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None and not self._peer.transport.is_closing():
            self._peer.transport.resume_reading()

    def eof_received(self) -> bool:
        if self._peer is not None and self._peer.transport.can_write_eof():
            self._peer.transport.write_eof()
        return self._peer is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.lost(self)
        if self._peer is not None:
            peer, self._peer = self._peer, None
            if not peer.transport.is_closing():
                peer.transport.close()


class Links:
    """One for each session, made when it is wanted. `async with links.to(...) as link`."""

    def __init__(self, dial: Dial, *, largest: int) -> None:
        self.dial = dial
        self.options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", largest),
            ("grpc.max_receive_message_length", largest),
            ("grpc.http2.max_frame_size", FRAME_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.default_authority", "localhost"),
        ]
        self._links: dict[Key, asyncio.Task[Link]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="moorage-grpc-"))
        self._numbers = itertools.count(1)

    def new_path(self) -> str:
        return str(self._folder / f"{next(self._numbers)}")

    @contextlib.asynccontextmanager
    async def to(self, where: KernelAddress, port: int, share: Share) -> AsyncIterator[Link]:
        key = (where.kernel_id, where.attempt, port)
        making = self._links.get(key)
        if making is None:
            making = self._links[key] = asyncio.create_task(self._open(key, where, share))
        try:
            link = await asyncio.shield(making)
        except Exception:
            self._links.pop(key, None)
            raise
        link.share = share
        link.begin()
        try:
            yield link
        finally:
            if link.refused is not None or link.over or link.broken:
                self.forget(link)
            link.end()

    async def _open(self, key: Key, where: KernelAddress, share: Share) -> Link:
        link = Link(self, key, where, share)
        await link.open()
        return link

    def knows(self, link: Link) -> bool:
        making = self._links.get(link.key)
        return making is not None and making.done() and making.result() is link

    def forget(self, link: Link) -> None:
        """The next call gets a new one; it is closed when no other call is at it any more, which would be broken off."""
        if self.knows(link):
            del self._links[link.key]

    def drop(self, link: Link) -> None:
        self.forget(link)
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for making in list(self._links.values()):
            with contextlib.suppress(Exception):
                await (await making).close()
        self._links.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
