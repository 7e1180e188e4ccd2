"""Where nodes are, and connections to them: replicas of a session's service through the proxy, or plain addresses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from moorage._errors import MoorageError, NotConfigured
from moorage.mesh.config import ClientConfig
from moorage.mesh.errors import NodeFailed

if TYPE_CHECKING:
    from moorage._models import PortPass
    from moorage.aio import Client, Session

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_READ_BYTES = 512 << 10
_INFO_BYTES = 64 << 10
_MOST_STREAMS = 1_000_000


@dataclass(slots=True, kw_only=True)
class Node:
    """One node, and what is known of it."""

    peer_id: str
    name: str
    identity: str | None = None  #: by which it knows itself; requests are for it alone
    seconds: float | None = None  #: from asking to its answer, of late
    active: int = 0  #: streams, of everybody, when it last said so
    limit: int = 1
    in_flight: int = 0  #: streams of this client
    failures: int = 0  #: in a row
    banned_until: float = 0.0
    busy_until: float = 0.0

    def learn(self, info: dict[str, Any]) -> None:
        """What it says of itself, as far as it makes sense."""
        load = info.get("load")
        if isinstance(load, dict):
            self.active, self.limit = _number(load.get("active"), 0), max(1, _number(load.get("limit"), 1))
        if isinstance(info.get("peer"), str):
            self.identity = info["peer"]

    @property
    def cost(self) -> float:
        """What asking it takes, in seconds as it were: its answer's, once for each stream per place that it has."""
        seconds = self.seconds if self.seconds is not None else 1.0
        streams = max(self.active, self.in_flight)
        return seconds * (1.0 + streams) + (1.0 if streams >= self.limit else streams / self.limit)


class P2P(Protocol):
    """How nodes are found and reached."""

    async def list_peers(self) -> dict[str, str]:
        """Names by id."""
        ...

    async def connect(self, peer_id: str) -> Connection: ...
    async def shutdown(self) -> None: ...


def p2p_of(config: ClientConfig) -> P2P:
    return SessionP2P(config) if config.session is not None else AddressP2P(config)


class AddressP2P:
    """Nodes whose addresses are known: HOST:PORT."""

    def __init__(self, config: ClientConfig) -> None:
        self._peers = {peer: _address(peer) for peer in config.initial_peers}

    async def list_peers(self) -> dict[str, str]:
        return {peer: peer for peer in self._peers}

    async def connect(self, peer_id: str) -> Connection:
        return await asyncio.open_connection(*self._peers[peer_id], limit=_READ_BYTES)

    async def shutdown(self) -> None:
        pass


class SessionP2P:
    """The healthy replicas of a session's service. Each is reached through the proxy with a pass of its own."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._client: Client | None = config.client
        self._session: Session | None = None
        self._port = 0
        self._passes: dict[str, PortPass] = {}

    async def list_peers(self) -> dict[str, str]:
        session = await self._found()
        services = [one for one in await session.services.list() if one.name == self._config.service]
        if not services:
            raise NodeFailed(f"The session '{session.name}' has no service '{self._config.service}'.")
        self._port = services[0].port
        there = {one.kernel_id: one.kernel for one in services[0].instances if one.state == "healthy"}
        self._passes = {peer: found for peer, found in self._passes.items() if peer in there}
        return there

    async def connect(self, peer_id: str) -> Connection:
        from moorage.forwarding import Refused, connect_port

        known = peer_id in self._passes
        try:
            return await connect_port(await self._pass(peer_id), self._settings)
        except Refused:
            if not known:
                raise
        self._passes.pop(peer_id, None)  # it may have been taken back, and another look at the nodes has dropped it
        return await connect_port(await self._pass(peer_id), self._settings)

    async def shutdown(self) -> None:
        client, self._client = self._client, None
        if client is not None and client is not self._config.client:
            await client.close()

    @property
    def _settings(self) -> Any:
        assert self._client is not None
        return self._client.config

    async def _pass(self, peer_id: str) -> PortPass:
        found = self._passes.get(peer_id)
        if found is None or (found.expires_at is not None and _soon(found.expires_at)):
            session = await self._found()
            found = self._passes[peer_id] = await session.services.port_pass(self._port, kernel=peer_id)
        return found

    async def _found(self) -> Session:
        if self._client is None:
            from moorage.aio import Client

            c = self._config
            self._client = await asyncio.to_thread(
                Client, c.endpoint, c.access_key, c.secret_key, token=c.token, config=c.config
            )
        if self._session is None:
            self._session = await self._client.sessions.get(str(self._config.session))
        return self._session


@dataclass(slots=True)
class Head:
    """The beginning of an answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Raises NodeFailed."""
    try:
        line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
        status = int(line.split(" ", 2)[1])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
        raise NodeFailed("The node gave no proper answer.") from None
    return Head(status, headers)


async def read_json(reader: asyncio.StreamReader, head: Head) -> dict[str, Any]:
    """The body of an answer that is not a stream; nothing where it is no JSON."""
    length = head.headers.get("content-length", "")
    try:
        told = json.loads(await reader.readexactly(min(int(length or 0), _INFO_BYTES)))
    except (asyncio.IncompleteReadError, ValueError, OSError):
        return {}
    return told if isinstance(told, dict) else {}


async def ask_info(p2p: P2P, peer_id: str) -> dict[str, Any]:
    """What a node says of itself. Raises NodeFailed, OSError."""
    try:
        reader, writer = await p2p.connect(peer_id)
    except MoorageError as error:
        raise NodeFailed(error.message) from None
    try:
        writer.write(b"GET /info HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        head = await read_head(reader)
        told = await read_json(reader, head)
        if head.status != 200 or "load" not in told:
            raise NodeFailed("What answers there is no tensor stream.")
        return told
    finally:
        writer.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        raise NotConfigured(f"'{text}' is no address of a node; it is HOST:PORT.")
    return host.strip("[]"), int(port)


def _number(value: object, default: int) -> int:
    """Small enough to be reckoned with."""
    return value if isinstance(value, int) and 0 <= value <= _MOST_STREAMS else default


def _soon(at: datetime) -> bool:
    return at - datetime.now(UTC) < timedelta(minutes=1)
