"""A manager's door for agents on a real database, and hosts that say whatever a test makes them say."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import aiohttp
import pytest

from agent import pki, wire
from agent.hub import AgentHub
from agent.rpc import Peer
from domain.ids import AgentId, SessionId
from manager.daemon import _Callbacks, _check_trust
from manager.herald import Herald
from manager.ingest import Ingest
from manager.vault import Vault
from repositories.agents import enrol, issue_token
from repositories.database import Database
from tests.control.rows import NOW, kernels_of, running, said_hello
from tests.database import Server
from tests.trust.own import Own, installed

MINE, THEIRS = AgentId("mine"), AgentId("theirs")


class Installation:
    """Managers on one database and one authority; closed with the test."""

    def __init__(self, database: Database, dsn: str, folder: Path, stack: AsyncExitStack) -> None:
        self.database = database
        self.folder = folder
        self._dsn = dsn
        self._stack = stack
        self.heralds: list[Herald] = []
        pki.ensure_authority(folder / "ca")

    async def hub(self, role: str = "control") -> AgentHub:
        """As a process of its own would have it: its own herald, and its own look at whom to trust."""
        herald = Herald(self._dsn)
        await herald.start()
        self._stack.push_async_callback(herald.close)
        self.heralds.append(herald)
        callbacks = _Callbacks(self.database, herald)
        ca = self.folder / "ca"
        hub = AgentHub(
            uuid4(), role, tls=pki.server_context(ca), ca_dir=ca, host="127.0.0.1", port=0, callbacks=callbacks
        )
        if role == "control":
            callbacks.ingest = Ingest(
                self.database, herald, cast(Any, hub), clock=lambda: NOW, lease_seconds=1e6, vault=Vault(bytes(32))
            )
            self._background(callbacks.ingest.run())
        await hub.start()
        self._stack.push_async_callback(hub.close)
        check = asyncio.Event()
        herald.subscribe("trust", lambda _: check.set())
        self._background(_check_trust(hub, check))
        return hub

    def _background(self, work: Any) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    async def certify(self, agent_id: str, **options: Any) -> Path:
        """A host's folder with a certificate that counts as its own from now on."""
        folder = self.folder / f"{agent_id}-{uuid4().hex[:6]}"
        request = pki.make_request(folder, agent_id)
        certificate, fingerprint = pki.sign_request(self.folder / "ca", request, agent_id, **options)
        pki.keep_certificate(folder, certificate)
        (folder / "ca.pem").write_bytes((self.folder / "ca" / "ca.pem").read_bytes())
        async with self.database.reader() as connection:
            known = await connection.fetchval(
                "UPDATE agents SET fingerprint = $2 WHERE id = $1 RETURNING true", agent_id, fingerprint
            )
        if not known:
            async with self.database.transaction() as connection:
                now = datetime.now(UTC)
                token = await issue_token(connection, expires_at=now + timedelta(hours=1), now=now)
                await enrol(connection, token, AgentId(agent_id), fingerprint, now=now)
        return folder

    async def host(self, hub: AgentHub, folder: Path, agent_id: str = MINE, *, greets: bool = True) -> Speaker:
        speaker = await Speaker.dial(hub, pki.client_context(folder), agent_id)
        self._stack.push_async_callback(speaker.close)
        if greets:
            await speaker.greet()
        return speaker

    async def audit(self) -> list[tuple[str, str, str]]:
        """(who, action, target) of what was refused."""
        async with self.database.reader() as connection:
            rows = await connection.fetch(
                "SELECT access_key, action, target FROM audit WHERE outcome = 'permission_denied' ORDER BY id"
            )
        return [(row["access_key"], row["action"], row["target"]) for row in rows]


class Speaker:
    """A host that follows a script, over a real connection."""

    def __init__(self, session: aiohttp.ClientSession, socket: Any, agent_id: str) -> None:
        self._session = session
        self.socket = socket
        self.agent_id = agent_id
        self.peer = Peer(socket, "manager")
        self.reading = asyncio.create_task(self.peer.run())

    @classmethod
    async def dial(cls, hub: AgentHub, tls: ssl.SSLContext, agent_id: str) -> Speaker:
        session = aiohttp.ClientSession()
        try:
            socket = await session.ws_connect(f"{hub.url}/agent/link", ssl=tls, max_msg_size=wire.MAX_FRAME_BYTES)
        except BaseException:
            await session.close()
            raise
        return cls(session, socket, agent_id)

    async def greet(self, **changes: Any) -> dict[str, Any]:
        said = said_hello(self.agent_id, resources={"cpu": 10**9, "mem": 10**9}).pack()
        return dict(await self.say(wire.HELLO, {**said, **changes}))

    async def say(self, name: str, arguments: dict[str, Any]) -> Any:
        return await self.peer.request(name, arguments, timeout_seconds=10)

    async def close(self) -> None:
        await self.peer.close()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self._session.close()


@dataclass(frozen=True, kw_only=True)
class Two:
    """Two hosts with a running session each, and the first one's connection."""

    installation: Installation
    hub: AgentHub
    folder: Path
    host: Speaker
    mine: SessionId
    theirs: SessionId
    my_kernel: UUID
    their_kernel: UUID


@pytest.fixture(scope="session")
def own(
    tmp_path_factory: pytest.TempPathFactory, postgres: Server, template: str, engine_host: str, kernel_image: str
) -> Iterator[Own]:
    """Processes of its own, for tests that break or search an installation."""
    name = f"{postgres.name}_own"
    dsn = postgres.create(name, template)
    with installed(tmp_path_factory.mktemp("own"), dsn, engine_host, kernel_image, small_disk=True) as started:
        yield started
    postgres.drop(name)


@pytest.fixture
async def installation(database: Database, dsn: str, tmp_path: Path) -> AsyncIterator[Installation]:
    async with AsyncExitStack() as stack:
        yield Installation(database, dsn, tmp_path, stack)


@pytest.fixture
async def two(installation: Installation) -> Two:
    database = installation.database
    (theirs,) = await running(database, THEIRS)
    async with database.reader() as connection:
        await connection.execute("UPDATE agents SET schedulable = false")
    (mine,) = await running(database, MINE)
    async with database.reader() as connection:
        kernels = [(await kernels_of(connection, session))[0] for session in (mine, theirs)]
    assert [kernel["agent_id"] for kernel in kernels] == [MINE, THEIRS]
    hub = await installation.hub()
    folder = await installation.certify(MINE)
    host = await installation.host(hub, folder)
    return Two(
        installation=installation,
        hub=hub,
        folder=folder,
        host=host,
        mine=mine,
        theirs=theirs,
        my_kernel=kernels[0]["id"],
        their_kernel=kernels[1]["id"],
    )
