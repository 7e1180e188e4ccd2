"""Byte tunnels: a connection that was made inside a container, carried to a manager process. Half-closes pass through.

On one machine the connected socket itself is handed to the manager, so that its bytes pass no agent. Elsewhere they are
pumped: raw over a plain connection, in chunks inside TLS, where the end of one direction needs a mark of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agent.streams import TICKET_BYTES, TICKET_SECONDS, Channel, PlainChannel, broken, chunks, send_chunk, send_end
from domain.errors import TransferFailed

_BUFFER_BYTES: Final = 256 << 10
_CREDENTIALS: Final = struct.Struct("iII")
#: A direction that is closed lets the other one go on for so long without a byte.
_HALF_OPEN_SECONDS: Final = 600.0


# -- the same machine: the socket itself --------------------------------------------------------------------------------
class Handover:
    """The manager's side of handing over: an abstract address, which only this network namespace sees."""

    def __init__(self, taken: Callable[[bytes, socket.socket], bool]) -> None:
        self.name = f"moorage-{secrets.token_hex(12)}"
        self._taken = taken
        self._socket: socket.socket | None = None

    def start(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{self.name}")
        self._socket.listen(128)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _accept(self) -> None:
        """One packet on each connection: a ticket and a descriptor. It is there already: agents send before they go."""
        assert self._socket is not None
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        loop = asyncio.get_running_loop()
        peer.setblocking(False)
        late = loop.call_later(TICKET_SECONDS, lambda: self._end(peer))
        loop.add_reader(peer, self._receive, peer, late)

    def _receive(self, peer: socket.socket, late: asyncio.TimerHandle) -> None:
        late.cancel()
        try:
            ticket, descriptors, _, _ = socket.recv_fds(peer, TICKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            ticket, descriptors = b"", []
        if descriptors:
            sock = socket.socket(fileno=descriptors[0])
            sock.setblocking(False)
            if not self._taken(ticket, sock):
                sock.close()
        self._end(peer)

    def _end(self, peer: socket.socket) -> None:
        if peer.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(peer)
            peer.close()


def hand_over(name: str, ticket: bytes, sock: socket.socket) -> bool:
    """The agent's side; False when nobody of ours listens under this name here."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(1.0)
            peer.connect(f"\0{name}")
            _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.geteuid()):
                return False
            socket.send_fds(peer, [ticket], [sock.fileno()])
            return True
    except OSError:
        return False


# -- another machine: pumps ---------------------------------------------------------------------------------------------
async def carry(channel: Channel, sock: socket.socket) -> None:
    """Move bytes both ways until both directions have ended, or one broke. Closes both."""
    channel.patience = None
    try:
        if isinstance(channel, PlainChannel):
            await _both(_pump(sock, channel.socket), _pump(channel.socket, sock))
        else:
            await _both(_pack(sock, channel), _unpack(channel, sock))
    finally:
        sock.close()
        await channel.close()


async def _both(there: Coroutine[Any, Any, None], back: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(there), asyncio.create_task(back)]
    try:
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if left and not any(task.exception() for task in done):
            await asyncio.wait(left, timeout=_HALF_OPEN_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """What is read is written before more is read: a slow reader holds up its writer, and nothing is kept in between."""
    loop, buffer = asyncio.get_running_loop(), bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    while got := await loop.sock_recv_into(source, view):
        await loop.sock_sendall(target, view[:got])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _pack(source: socket.socket, channel: Channel) -> None:
    loop, buffer = asyncio.get_running_loop(), bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    while got := await loop.sock_recv_into(source, view):
        await send_chunk(channel, view[:got])
    await send_end(channel)


async def _unpack(channel: Channel, target: socket.socket) -> None:
    """A connection that breaks instead of ending breaks the tunnel: the reader must not take it for the end."""
    loop = asyncio.get_running_loop()
    async for piece in chunks(channel):
        await loop.sock_sendall(target, piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def as_socket(channel: Channel, keep: Callable[[Coroutine[Any, Any, None]], object]) -> socket.socket:
    """A landed tunnel as a socket of its own: the connection itself, or one end of a pair whose other end is pumped."""
    if isinstance(channel, PlainChannel):
        return channel.socket
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)

    async def move() -> None:
        with contextlib.suppress(TransferFailed, OSError):
            await carry(channel, far)

    keep(move())
    return near


async def streams_of(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reader and writer of a tunnel; the writer's `write_eof` closes one direction."""
    try:
        return await asyncio.open_connection(sock=sock, limit=_BUFFER_BYTES)
    except OSError:
        sock.close()
        raise broken() from None
