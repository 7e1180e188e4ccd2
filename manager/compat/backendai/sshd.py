"""An SSH server at the end of a tunnel, for `backend.ai ssh` and `scp`: this front's, because no image needs to have one.

Who may come has been proven by the tunnel's signature. The key shuts out others on the client's own machine, where the
tunnel ends at a port that everybody there can reach: it is derived from the keypair's secret, so nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import tarfile
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from actions import GetSessionInfoAction, OpenProcessAction
from agent.client import Process
from domain.errors import MoorageError, WrongStatus
from domain.session import ANSWERING
from manager.compat.backendai.tunnel import dial
from manager.gateway.channels import Channel, Forwarded

if TYPE_CHECKING:
    from actions.views import SessionData
    from manager.compat.backendai.ask import Ask

#: The file that the client fetches before it connects; nobody finds it in the session.
KEY_FILE: Final = "id_container"
_LOGIN_SECONDS: Final = 30.0
_ITSELF: Final = frozenset({"localhost", "127.0.0.1", "::1", ""})


async def key_archive(ask: Ask) -> bytes:
    """A tar with the file of the key that opens this session for whoever has signed, as OpenSSH writes it."""
    key = await _private(ask, await _session(ask))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(KEY_FILE)
        member.size, member.mode = len(key), 0o600
        archive.addfile(member, io.BytesIO(key))
    return out.getvalue()


async def _session(ask: Ask) -> SessionData:
    found = await ask.run(GetSessionInfoAction(**ask.session))
    return found.session_info


async def _private(ask: Ask, session: SessionData) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(await ask.derived(f"ssh {session.id}"))
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


async def login(ask: Ask) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The client's end of a connection to the server."""
    session = await _session(ask)
    if session.status not in ANSWERING:
        raise WrongStatus(f"The session '{session.name}' is {session.status}.", status=session.status)
    key = asyncssh.import_private_key(await _private(ask, session)).convert_to_public()
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    serving = asyncio.create_task(_serve(ask, session, key, there), name="ssh in a tunnel")
    ask.door.streams.add(serving)
    serving.add_done_callback(ask.door.streams.discard)
    return await asyncio.open_connection(sock=here)


async def _serve(ask: Ask, session: SessionData, key: asyncssh.SSHKey, there: socket.socket) -> None:
    """Until the client goes: then its end of the pair is closed."""
    asyncssh.set_log_level("WARNING")
    with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
        connection = await asyncssh.run_server(
            there,
            server_factory=lambda: _Inside(ask, session, key),
            server_host_keys=[_host_key()],
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
            compression_algs=None,
            login_timeout=_LOGIN_SECONDS,
            keepalive_interval=30,
        )
        await connection.wait_closed()


@cache
def _host_key() -> asyncssh.SSHKey:
    """One a process: the client does not look at it, and the tunnel is what tells the server from others."""
    return asyncssh.generate_private_key("ssh-ed25519")


class _Inside(asyncssh.SSHServer):
    """One connection, which belongs to one session."""

    def __init__(self, ask: Ask, session: SessionData, key: asyncssh.SSHKey) -> None:
        self._ask = ask
        self._session = session
        self._key = key
        self._channels: set[Channel] = set()

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key == self._key

    def session_requested(self) -> Channel:
        channel = Channel(self._open, self._channels.discard)
        self._channels.add(channel)
        return channel

    async def _open(self, fields: dict[str, Any]) -> Process:
        asked = OpenProcessAction(**{**self._ask.session, "session_name": str(self._session.id)}, **fields)
        return (await self._ask.run(asked)).process

    async def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Forwarded:
        """`ssh -L`: to ports of the session itself, or of another of its containers."""
        names = {kernel.name for kernel in self._session.kernels}
        host = dest_host.lower()
        if host not in _ITSELF | names:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "only ports of the session itself are forwarded"
            )
        try:
            return Forwarded(*await dial(self._ask, str(self._session.id), dest_port, host if host in names else None))
        except MoorageError as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from None
