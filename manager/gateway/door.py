"""The gateway's listener: limits, failures, and ending what may not stay open any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

import asyncssh

from domain.errors import MoorageError
from manager.gateway.authority import Authority
from manager.gateway.login import Login
from manager.world import World
from repositories.gateway import no_longer_good

log = logging.getLogger("moorage.gateway")
#: Between looks at whether those who are in may stay.
LOOK_SECONDS: Final = 0.5
LOGIN_SECONDS: Final = 30.0
MOST_CONNECTIONS: Final = 1000
#: Of one address that have not shown who they are.
MOST_STRANGERS: Final = 20
#: One address may be wrong so often, and is forgiven one every so many seconds. A client tries each key of its agent.
FAILURE_BURST: Final = 60
FORGIVEN_EVERY_SECONDS: Final = 2.0
_MOST_PEERS: Final = 10_000


class Gateway:
    """`listen`, and at the end `close`."""

    def __init__(self, world: World, authority: Authority) -> None:
        self.world = world
        self.ca_key = asyncssh.import_public_key(authority.ca_key)
        self._host_key = asyncssh.import_private_key(authority.private_host_key)
        self._all: dict[Login, str] = {}  #: connections, and where they come from
        self._inside: set[Login] = set()
        self._debts: dict[str, float] = {}  #: by address: until when its failures are paid for
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()

    async def listen(self, host: str, port: int) -> int:
        """Take connections from now on; the port."""
        asyncssh.set_log_level("WARNING")
        options = asyncssh.SSHServerConnectionOptions(
            server_host_keys=[self._host_key],
            server_version="Moorage",
            encoding=None,
            agent_forwarding=False,
            x11_forwarding=False,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_auth=False,
            gss_kex=False,
            line_editor=False,
            rdns_lookup=False,
            compression_algs=None,
            login_timeout=LOGIN_SECONDS,
            keepalive_interval=30,
            keepalive_count_max=4,
        )
        self._acceptor = await asyncssh.listen(
            host, port, options=options, server_factory=self._arrived, backlog=256, reuse_address=True
        )
        self._looking = asyncio.create_task(self._look(), name="gateway")
        for topic in ("identity", "sessions"):
            self.world.herald.subscribe(topic, lambda _: self._look_now.set())
        return int(self._acceptor.get_port())

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        if self._acceptor is not None:
            self._acceptor.close()
            for login in list(self._all):
                login.end("the gateway stops; connect again")
            await self._acceptor.wait_closed()

    # -- who comes and goes ----------------------------------------------------------------------------------------------
    def _arrived(self) -> Login:
        login = Login(self)
        self._all[login] = ""
        return login

    def admit(self, login: Login, peer: str) -> str | None:
        """Why this connection is refused, or None."""
        self._all[login] = peer
        debt = self._debts.get(peer, 0.0) - time.monotonic()
        if debt > (FAILURE_BURST - 1) * FORGIVEN_EVERY_SECONDS:
            return "too many wrong keys came from this address; wait a minute"
        if len(self._all) > MOST_CONNECTIONS:
            return "the gateway has as many connections as it takes; come back shortly"
        strangers = sum(address == peer and not other.authenticated for other, address in self._all.items())
        return "too many connections of this address are logging in" if strangers > MOST_STRANGERS else None

    def failed(self, peer: str) -> None:
        now = time.monotonic()
        if len(self._debts) >= _MOST_PEERS:
            self._debts = {name: until for name, until in self._debts.items() if until > now}
            if len(self._debts) >= _MOST_PEERS:
                self._debts.clear()
        self._debts[peer] = max(self._debts.get(peer, now), now) + FORGIVEN_EVERY_SECONDS
        log.info("a key that nobody has registered came from %s", peer)

    def entered(self, login: Login) -> None:
        self._inside.add(login)

    def left(self, login: Login) -> None:
        self._inside.discard(login)
        self._all.pop(login, None)

    # -- who may stay ----------------------------------------------------------------------------------------------------
    async def _look(self) -> None:
        """When something has changed, and every so often in any case. Without a database nobody is thrown out."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), LOOK_SECONDS)
            self._look_now.clear()
            inside = [login for login in self._inside if login.session_id is not None]
            if not inside:
                continue
            asked = [(login.access_key, login.fingerprint, login.token_id, login.session_id) for login in inside]
            try:
                async with self.world.database.reader() as connection:
                    found = await no_longer_good(connection, asked, now=self.world.service.now())  # type: ignore[arg-type]  # None was left out
            except MoorageError:
                continue
            for place, reason in found:
                log.info("%s is disconnected: %s", inside[place].access_key, reason)
                self._inside.discard(inside[place])
                inside[place].end(reason)
