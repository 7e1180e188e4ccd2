"""Processes that one is attached to, and who may come by SSH: registered keys, and certificates for minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Kernel,
    Reading,
    Remote,
    Result,
    Rules,
    ScopeAction,
    SessionAction,
    Work,
    action,
    any_user,
    anyone,
    kernel_of,
    owner_or_admin,
)
from actions.credentials import check_makes_credentials
from agent.client import Process
from agent.wire import ProcessSpec
from domain.errors import InvalidRequest, SshGatewayOff
from domain.principal import Principal, TokenScope
from domain.session import ANSWERING, LIVE, Session
from domain.ssh import MAX_KEY_BYTES, PublicKey

#: A certificate is good for so long, to log in with; what it opened stays open.
CERTIFICATE_SECONDS = 300.0
#: Opening waits for the host; what is open afterwards is the door's affair.
OPEN_SECONDS = 30.0
KeyText = Annotated[str, Field(min_length=1, max_length=MAX_KEY_BYTES)]
KeyName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
TerminalId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Words = Annotated[list[Annotated[str, Field(max_length=128 * 1024, pattern=r"^[^\x00]*$")]], Field(max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult(Result):
    """Attached: whoever has this reads and closes it."""

    process: Process
    session: Session


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=OPEN_SECONDS,
        scope=TokenScope.SESSIONS,
    )
)
class OpenProcessAction(SessionAction[Remote, ProcessResult]):
    """Start a process as the session's user and attach to it, or attach again to a terminal that outlived its connection."""

    kernel: Kernel = None
    pty: TerminalId | None = None  #: a terminal's id: one that is known is attached to, else it gets this one
    resume: bool = False  #: the terminal must be there already
    after: Annotated[int, Field(ge=0)] | None = None  #: of its output, the bytes that have been seen already
    rows: Annotated[int, Field(ge=1, le=9999)] = 24
    cols: Annotated[int, Field(ge=1, le=9999)] = 80
    term: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,64}$")] = "xterm-256color"
    command: Words = field(default_factory=list)  #: nothing: the user's shell
    cwd: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")] | None = None
    terminal: bool = True  #: else its stdin, stdout and stderr are pipes, and it ends with its connection
    shell: str | None = None  #: a command for the shell, instead of `command`
    program: str | None = None  #: sftp, instead
    environ: dict[str, str] = field(default_factory=dict)

    async def run(self, call: Remote, session: Session, /) -> ProcessResult:
        if self.resume and self.pty is None:
            raise InvalidRequest("To resume a terminal, say which: its id is 'pty'.", field="pty")
        spec = ProcessSpec(
            process=self.pty,
            resume=self.resume,
            after=self.after,
            terminal=self.terminal,
            rows=self.rows,
            cols=self.cols,
            term=self.term,
            argv=self.command or None,
            shell=self.shell,
            program=self.program,
            cwd=self.cwd,
            environ=self.environ,
        )
        process = await call.agents.open_process(kernel_of(session, self.kernel), spec)
        return ProcessResult(process=process, session=session)


# -- keys --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class SshKeyData:
    """A public key that opens the SSH gateway."""

    id: UUID
    name: str
    access_key: str
    public_key: str
    fingerprint: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SshKeyResult(Result):
    ssh_key: SshKeyData


@dataclass(frozen=True, slots=True, kw_only=True)
class SshKeyPage(Result):
    items: list[SshKeyData]
    next_cursor: str | None = None


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class AddSshKeyAction(ScopeAction[Work, SshKeyResult]):
    """Register a public key: whoever has its private half reaches one's sessions by SSH, until it is removed."""

    public_key: KeyText
    name: KeyName | None = None  #: the key's own comment when left out

    async def run(self, call: Work, /) -> SshKeyResult:
        check_makes_credentials(call.by)
        key = PublicKey.parse(self.public_key)
        name = self.name or "".join(c for c in key.comment if c.isprintable())[:200].strip() or key.kind
        keys = call.db.ssh_keys
        row = await keys.add(call.new_id(), access_key=call.by.access_key, name=name, key=key)
        return SshKeyResult(ssh_key=SshKeyData(**row))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListSshKeysAction(ScopeAction[Reading, SshKeyPage]):
    """One's own registered keys."""

    async def run(self, call: Reading, /) -> SshKeyPage:
        return SshKeyPage(items=[SshKeyData(**row) for row in await call.db.ssh_keys.all()])


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class RemoveSshKeyAction(ScopeAction[Work, SshKeyResult]):
    """Remove a registered key, by its id, fingerprint or name; connections that it opened end within a second."""

    ssh_key: Annotated[str, Field(min_length=1, max_length=200)]

    def target(self) -> str:
        return self.ssh_key

    async def run(self, call: Work, /) -> SshKeyResult:
        row = await call.db.ssh_keys.get(self.ssh_key)
        await call.db.ssh_keys.remove(row["id"])
        call.announce("identity")
        return SshKeyResult(ssh_key=SshKeyData(**row))


# -- certificates ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class SshAccess(Result):
    """How to reach a session by SSH, and a certificate with which that works for some minutes."""

    host: str | None  #: of the gateway; None: the one at which this API is
    port: int
    user: str  #: to log in as
    host_key: str  #: the gateway's, to be pinned
    certificate: str
    expires_at: datetime


@action(Rules(allow=owner_or_admin, when=LIVE, effect=Effect.AGENT, scope=TokenScope.SESSIONS))
class IssueSshCertificateAction(SessionAction[Remote, SshAccess]):
    """Sign a public key for some minutes: its certificate opens this session and no other, as who asks."""

    public_key: KeyText
    kernel: Kernel = None

    async def run(self, call: Remote, session: Session, /) -> SshAccess:
        key = PublicKey.parse(self.public_key)
        if (authority := call.service.ssh) is None:
            raise SshGatewayOff
        if self.kernel is not None:
            kernel_of(session, self.kernel)
        expires_at = call.now + timedelta(seconds=CERTIFICATE_SECONDS)
        certificate = authority.sign(
            key,
            identity=f"moorage {call.by.access_key} {session.id}",
            principals=names_of(session, call.by, self.kernel),
            valid_from=call.now - timedelta(seconds=60),
            valid_until=expires_at,
        )
        return SshAccess(
            host=authority.host,
            port=authority.port,
            user=session.name if self.kernel is None else f"{session.name}.{self.kernel}",
            host_key=authority.host_key,
            certificate=certificate,
            expires_at=expires_at,
        )


def names_of(session: Session, by: Principal, kernel: str | None) -> Sequence[str]:
    """What a certificate says: who, by which token, which session and kernel; other SSH servers let none of them log in."""
    names = (f"access-key={by.access_key}", f"session={session.id}", f"kernel={kernel or ''}")
    return names if by.token_id is None else (*names, f"token={by.token_id}")
