"""Bulk bytes between manager and agent: one TCP connection for each transfer, dialled by the agent with a ticket.

Plain TCP when both ends are this machine, TLS otherwise. A transfer travels in chunks with their lengths before them;
a chunk of length 0 is its end, so that a connection that breaks is never taken for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Final, Protocol, TypeVar
from weakref import WeakKeyDictionary

from agent import pki
from domain.errors import TransferFailed

T = TypeVar("T")
log = logging.getLogger("moorage.streams")
CHUNK_BYTES: Final = 1 << 20
#: Read from the disk while the chunk before it is sent, so that sending does not wait for it.
_AHEAD_BYTES: Final = 8 * CHUNK_BYTES
TICKET_BYTES: Final = 32
TICKET_SECONDS: Final = 30.0
#: A side that moves no byte for so long is gone.
STALL_SECONDS: Final = 120.0
#: Connections that have not shown their ticket yet; agents show it at once.
_MOST_UNKNOWN: Final = 256
_LENGTH: Final = struct.Struct("!I")


def broken() -> TransferFailed:
    return TransferFailed("The transfer broke off and nothing was kept; repeat it.")


class Channel(Protocol):
    """One connection, either way of speaking. `send` and `receive_exactly` raise TransferFailed when the other side is gone."""

    patience: float | None  #: a step that moves nothing for so many seconds has failed; None: it may wait for ever

    async def send(self, data: bytes | bytearray | memoryview) -> None: ...
    async def send_file(self, fd: int, offset: int, count: int) -> None: ...
    async def receive_exactly(self, count: int) -> bytes | bytearray: ...
    async def close(self) -> None: ...


async def send_chunk(channel: Channel, data: bytes | bytearray | memoryview) -> None:
    for at in range(0, len(data), CHUNK_BYTES):
        piece = memoryview(data)[at : at + CHUNK_BYTES]
        await channel.send(_LENGTH.pack(len(piece)))
        await channel.send(piece)
        await asyncio.sleep(0)  # sending to a fast reader never waits; others want their turn


async def send_end(channel: Channel) -> None:
    await channel.send(_LENGTH.pack(0))


async def chunks(channel: Channel) -> AsyncIterator[bytes | bytearray]:
    """What the other side sends, to its end; TransferFailed when it stops before."""
    while True:
        (length,) = _LENGTH.unpack(await channel.receive_exactly(_LENGTH.size))
        if length == 0:
            return
        if length > CHUNK_BYTES:
            raise broken()
        yield await channel.receive_exactly(length)


async def send_file(channel: Channel, fd: int, offset: int, count: int) -> None:
    """A part of an open file, as chunks. A file that shrinks meanwhile breaks the transfer."""
    at, end = offset, offset + count
    while at < end:
        size = min(CHUNK_BYTES, end - at)
        await channel.send(_LENGTH.pack(size))
        os.posix_fadvise(fd, at + size, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        await channel.send_file(fd, at, size)
        await asyncio.sleep(0)
        at += size
    await send_end(channel)


class PlainChannel:
    """Straight over the socket, without a copy that is not needed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.patience: float | None = STALL_SECONDS

    @property
    def socket(self) -> socket.socket:
        return self._sock

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await _moving(self._loop.sock_sendall(self._sock, data), self.patience)

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        sent = 0
        while sent < count:
            try:
                done = os.sendfile(self._sock.fileno(), fd, offset + sent, count - sent)
            except BlockingIOError:
                await _moving(_writable(self._loop, self._sock), self.patience)
                continue
            except OSError:
                raise broken() from None
            if done == 0:
                raise broken()
            sent += done

    async def receive_exactly(self, count: int) -> bytearray:
        buffer = bytearray(count)
        view, at = memoryview(buffer), 0
        while at < count:
            got = await _moving(self._loop.sock_recv_into(self._sock, view[at:]), self.patience)
            if not got:
                raise broken()
            at += got
        return buffer

    async def close(self) -> None:
        self._sock.close()


class TlsChannel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.patience: float | None = STALL_SECONDS

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        # A transport whose other side has gone takes anything, and drops it.
        if self._writer.is_closing():
            raise broken()
        self._writer.write(bytes(data))
        await _moving(self._writer.drain(), self.patience)

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        data = await asyncio.to_thread(os.pread, fd, count, offset)
        if len(data) < count:
            raise broken()
        await self.send(data)

    async def receive_exactly(self, count: int) -> bytes:
        try:
            return await _moving(self._reader.readexactly(count), self.patience)
        except asyncio.IncompleteReadError:
            raise broken() from None

    def abort(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5.0):
                await self._writer.wait_closed()


async def _moving(step: Awaitable[T], seconds: float | None) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await step
    except (OSError, TimeoutError):
        raise broken() from None


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)


# -- who dials whom ----------------------------------------------------------------------------------------------------
class Landing:
    """Where agents' transfers arrive: hands each connection to the one who gave out its ticket."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._expected: dict[bytes, tuple[asyncio.Future[Channel], str | None]] = {}
        self._open: WeakKeyDictionary[socket.socket | TlsChannel, str] = WeakKeyDictionary()
        self._server: asyncio.Server | None = None
        self._plain: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unknown = 0
        self.port = 0
        self.encrypted = not is_loopback(host)

    async def start(self) -> None:
        if self.encrypted:
            self._server = await asyncio.start_server(
                self._land_tls, self._host, self._port, ssl=self._tls, limit=2 * CHUNK_BYTES
            )
            self.port = self._server.sockets[0].getsockname()[1]
            return
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._plain = socket.create_server((self._host, self._port), family=family, backlog=256)
        self._plain.setblocking(False)
        self.port = self._plain.getsockname()[1]
        self._keep(asyncio.create_task(self._accept(self._plain), name="landing"))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._plain is not None:
            self._plain.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        for future, _ in self._expected.values():
            future.cancel()

    def landed(self, ticket: bytes, channel: Channel, *, by: str | None = None) -> bool:
        """Give a connection to the one who waits for it; False when nobody does. `by`: whom its certificate names."""
        future, agent_id = self._expected.get(ticket, (None, None))
        if future is None or future.done():
            return False
        if by is not None and agent_id is not None and by != agent_id:
            log.error("agent %s shows a ticket that agent %s was given; refused", by, agent_id)
            return False
        del self._expected[ticket]
        if agent_id is not None:
            if isinstance(channel, PlainChannel):
                self._open[channel.socket] = agent_id
            elif isinstance(channel, TlsChannel):
                self._open[channel] = agent_id
        future.set_result(channel)
        return True

    def cut(self, agent_id: str) -> None:
        """End whatever this agent sends or receives at the moment."""
        for ticket, (future, owner) in list(self._expected.items()):
            if owner == agent_id:
                del self._expected[ticket]
                future.cancel()
        for end in [end for end, owner in self._open.items() if owner == agent_id]:
            if isinstance(end, TlsChannel):
                end.abort()
            else:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def expecting(self, agent_id: str | None = None) -> Iterator[tuple[bytes, asyncio.Future[Channel]]]:
        """A ticket, good for one connection of this agent, and the future of that connection."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        future: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        self._expected[ticket] = future, agent_id
        try:
            yield ticket, future
        finally:
            self._expected.pop(ticket, None)
            future.cancel()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(0.05)  # out of descriptors, most likely: those in use come free
                continue
            sock.setblocking(False)
            _tune(sock)
            self._keep(asyncio.create_task(self._land(PlainChannel(sock)), name="transfer"))

    async def _land_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not certificate:  # only agents have anything to bring here
            writer.close()
            return
        await self._land(TlsChannel(reader, writer), by=pki.common_name(certificate))

    async def _land(self, channel: Channel, *, by: str | None = None) -> None:
        if self._unknown >= _MOST_UNKNOWN:
            await channel.close()
            return
        self._unknown += 1
        try:
            async with asyncio.timeout(TICKET_SECONDS):
                ticket = bytes(await channel.receive_exactly(TICKET_BYTES))
        except (TransferFailed, TimeoutError):
            await channel.close()
            return
        finally:
            self._unknown -= 1
        if not self.landed(ticket, channel, by=by):
            await channel.close()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def dial(host: str, port: int, ticket: bytes, tls: ssl.SSLContext | None) -> Channel:
    """The agent's side: connect to a manager's landing. Raises TransferFailed."""
    channel: Channel
    try:
        async with asyncio.timeout(TICKET_SECONDS):
            if tls is not None:
                channel = TlsChannel(*await asyncio.open_connection(host, port, ssl=tls, limit=2 * CHUNK_BYTES))
            else:
                sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
                sock.setblocking(False)
                _tune(sock)
                try:
                    await asyncio.get_running_loop().sock_connect(sock, (host, port))
                except BaseException:
                    sock.close()
                    raise
                channel = PlainChannel(sock)
    except (OSError, TimeoutError) as error:
        raise TransferFailed(f"The host could not reach the manager for the transfer: {error}.") from None
    await channel.send(ticket)
    return channel


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # tunnels may be silent for long
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * CHUNK_BYTES)
