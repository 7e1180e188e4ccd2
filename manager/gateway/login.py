"""Who comes by SSH, and to which session: a registered key or a certificate of ours, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import asyncssh

from actions.base import Call, kernel_of, owner_or_admin
from actions.gateway import OpenProcessAction
from agent.client import Process
from domain.errors import (
    AgentUnavailable,
    Internal,
    MoorageError,
    NothingListens,
    PermissionDenied,
    SessionNotFound,
    WrongStatus,
)
from domain.names import as_uuid
from domain.principal import Principal
from domain.session import ANSWERING, Session
from manager.gateway.channels import Channel, Forwarded
from repositories.gateway import principal_of_ssh_key, token_is_good
from repositories.record import AuditRecord, write_audit

if TYPE_CHECKING:
    from manager.gateway.door import Gateway

log = logging.getLogger("moorage.gateway")
#: What the client may mean by the session itself.
_ITSELF: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", ""})  # noqa: S104
_MOST_NAME: Final = 200
_TELLING_SECONDS: Final = 0.5
_DIALLING_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)


@dataclass(slots=True)
class Claim:
    """Who somebody is, once the signature of the key is right."""

    access_key: str | None = None
    fingerprint: str | None = None  #: of a registered key; None: it came by certificate
    session: str | None = None  #: of a certificate: its id
    token: UUID | None = None  #: of a certificate: that it was asked for with
    kernel: str | None = None
    by: Principal | None = None


class _Certificates(asyncssh.SSHAuthorizedKeys):
    """Takes certificates that our authority has signed, and notes what they say."""

    def __init__(self, authority: asyncssh.SSHKey, claimed: Any, foreign: Callable[[], None]) -> None:
        super().__init__()
        self._foreign = foreign
        self._authority = authority
        self._claimed = claimed

    def validate(
        self,
        key: asyncssh.SSHKey,
        client_host: str,
        client_addr: str,
        cert_principals: Sequence[str] | None = None,
        ca: bool = False,
    ) -> Any:
        if not ca:
            return None
        if key != self._authority:
            self._foreign()
            return None
        said = dict(word.partition("=")[::2] for word in cert_principals or ())
        if not said.get("access-key") or not said.get("session"):
            return None
        claim = Claim(access_key=said["access-key"], session=said["session"], kernel=said.get("kernel") or None)
        claim.token = as_uuid(said.get("token", ""))
        self._claimed(claim)
        return {"principals": list(cert_principals or ())}  # so that the user's name need not be one of them


class Login(asyncssh.SSHServer):
    """One connection."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._peer = "local"
        self._connection: asyncssh.SSHServerConnection
        self._username = ""
        self._claim: Claim | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ready: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self.authenticated = False
        self.channels: set[Channel] = set()
        self.access_key = ""
        self.fingerprint: str | None = None
        self.token_id: UUID | None = None
        self.session_id: UUID | None = None
        self.kernel: str | None = None
        self.by: Principal | None = None

    # -- who -----------------------------------------------------------------------------------------------------------
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._peer = str((conn.get_extra_info("peername") or ("local",))[0])
        if (refusal := self._gateway.admit(self, self._peer)) is not None:
            self.end(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        self._gateway.left(self)

    def begin_auth(self, username: str) -> bool:
        self._username = username[:_MOST_NAME]
        self._connection.set_authorized_keys(
            _Certificates(self._gateway.ca_key, self._claimed, lambda: self._gateway.failed(self._peer))
        )
        return True

    def _claimed(self, claim: Claim) -> None:
        self._claim = claim

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._claim = None
        fingerprint = key.get_fingerprint()
        async with self._gateway.world.database.reader() as connection:
            by = await principal_of_ssh_key(connection, fingerprint)
        if by is None:
            self._gateway.failed(self._peer)
            return False
        self._claim = Claim(access_key=str(by.access_key), fingerprint=fingerprint, by=by)
        return True

    def auth_completed(self) -> None:
        self.authenticated = True
        task = asyncio.create_task(self._log_in(), name="ssh login")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- which session -------------------------------------------------------------------------------------------------
    async def _log_in(self) -> None:
        assert self._claim is not None  # the signature that was right was of a key that made it
        claim, session = self._claim, None
        try:
            by = claim.by or await self._gateway.world.identities.of_access_key(claim.access_key or "")
            if by is None:
                raise SessionNotFound("Your access has been revoked.")
            self.by, self.access_key, self.fingerprint = by, str(by.access_key), claim.fingerprint
            self.token_id = claim.token
            if claim.token is not None and not await self._still_valid(claim.token):
                raise SessionNotFound("Your access has been revoked.")
            session, self.kernel = await self._find(by, claim)
            if self.kernel is not None:
                kernel_of(session, self.kernel)
            if session.status not in ANSWERING:
                raise WrongStatus(
                    f"The session '{session.name}' is {session.status}; it takes logins while it is RUNNING.",
                    status=session.status,
                )
            self.session_id = session.id
            self._gateway.entered(self)
            await self._audit(session, "ok")
            log.info("%s logged in to %s from %s", self.access_key, session.name, self._peer)
            self._ready.set_result(session)
        except MoorageError as error:
            if self.by is not None:
                await self._audit(session, error.code)
            self._refuse(error)
        except Exception:
            log.exception("a login failed")
            self._refuse(Internal("The gateway failed; the manager's log says why."))

    def _refuse(self, error: MoorageError) -> None:
        """Whatever is opened is told why, and shortly afterwards the connection ends."""
        self._ready.set_exception(error)
        self._ready.exception()  # nobody may ask
        asyncio.get_running_loop().call_later(_TELLING_SECONDS, self.end, error.message)

    async def _still_valid(self, token_id: UUID) -> bool:
        world = self._gateway.world
        async with world.database.reader() as connection:
            return await token_is_good(connection, token_id, now=world.service.now())

    async def _find(self, by: Principal, claim: Claim) -> tuple[Session, str | None]:
        if claim.session is not None:
            name, kernel = self._username, claim.kernel
            session = await self._load(by, claim.session)
            if kernel is None and name.startswith(f"{session.name}."):
                kernel = name.removeprefix(f"{session.name}.")
            return session, kernel
        try:
            return await self._load(by, self._username), None
        except SessionNotFound:
            name, dot, kernel = self._username.rpartition(".")
            if not dot:
                raise
            return await self._load(by, name), kernel

    async def _load(self, by: Principal, name: str) -> Session:
        call = Call(by=by, owner=by, now=self._gateway.world.service.now())
        async with self._gateway.world.service.reading(call) as reading:
            try:
                session = await reading.db.sessions.get(name)
            except SessionNotFound:
                if not by.sees_others:
                    raise
                session = await reading.db.all_sessions.get(name)
        if not owner_or_admin(by, session):
            raise PermissionDenied(f"You may see the session '{session.name}', and not log in to it.")
        return session

    async def _audit(self, session: Session | None, outcome: str) -> None:
        assert self.by is not None
        record = AuditRecord(
            at=self._gateway.world.service.now(),
            user_id=self.by.user_id,
            access_key=self.by.access_key,
            owner_access_key=session.access_key if session and session.user_id != self.by.user_id else None,
            action="ssh_login",
            target=str(session.id) if session is not None else self._username,
            outcome=outcome,
            request_id=None,
        )
        async with self._gateway.world.database.reader() as connection:
            await write_audit(connection, record)

    # -- what -----------------------------------------------------------------------------------------------------------
    def session_requested(self) -> Channel:
        channel = Channel(self._open, self.channels.discard)
        self.channels.add(channel)
        return channel

    async def _open(self, fields: dict[str, Any]) -> Process:
        session = await self._ready
        action = OpenProcessAction(session_name=str(session.id), kernel=self.kernel, **fields)
        for pause in _DIALLING_SECONDS:
            try:
                return (await self._gateway.world.processor.run(action, by=self.by)).process
            except AgentUnavailable:  # a host that has just come up dials one process after the other
                await asyncio.sleep(pause)
        return (await self._gateway.world.processor.run(action, by=self.by)).process

    async def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Forwarded:
        session, host = await self._ready, dest_host.lower()
        names = {kernel.name for kernel in session.kernels}
        if host not in _ITSELF | names:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
                "only ports of the session itself are forwarded: localhost, or a kernel's name",
            )
        try:
            assert self.by is not None
            session = await self._load(self.by, str(session.id))
            if session.status not in ANSWERING:
                raise WrongStatus(status=session.status)
            where = kernel_of(session, host if host in names else self.kernel)
            return Forwarded(*await self._gateway.world.agents.open_tunnel(where, dest_port))
        except NothingListens as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from None
        except MoorageError as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from None

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        """Connections from a session to its user's machine: sessions are not trusted so far."""
        self._connection.send_debug("moorage: remote forwarding (-R) is refused", always_display=True)
        return False

    def end(self, reason: str) -> None:
        """At once. The client shows what comes on a channel, and not always why the connection ended."""
        for channel in list(self.channels):
            channel.refuse(reason)
        self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, f"moorage: {reason}"[:400])
