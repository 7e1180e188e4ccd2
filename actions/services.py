"""Services of sessions: programs that listen on a port in their kernels, kept running and reached through the proxy."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import Field

from actions.base import Audit, Effect, Remote, Result, Rules, SessionAction, action, kernel_of, owner_or_admin
from actions.kinds import Kind, check_arguments, command_of, kind_of
from agent.client import KernelAddress
from agent.wire import ServiceFact, ServiceSpec
from domain.crash import reach
from domain.errors import (
    AgentUnavailable,
    InvalidRequest,
    MoorageError,
    PortConflict,
    ServiceFailed,
    ServiceNotFound,
    ServiceUnknown,
)
from domain.principal import TokenScope
from domain.session import ANSWERING, ENDED, Session
from repositories.record import answer_of, keep_answer
from repositories.service import PASS_HOURS, NewService, ServiceInstance, ServiceRow, hashed

#: A ticket is for the click that follows; what it is exchanged for lasts longer.
TICKET_SECONDS: Final = 300.0
#: Between the start of a program and its first answer.
READY_SECONDS: Final = 60.0
_MOST_SECONDS: Final = 600.0
#: A service whose end was begun and not carried through is cleared away after so long.
_CLEARED_SECONDS: Final = 30.0
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Words = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceData:
    """A service, and how it is."""

    name: str
    kind: str
    protocol: str
    port: int
    kernels: str  #: that run it: main, all, or one by name
    health: str  #: starting, healthy, degraded (some kernels' are), unhealthy, failed
    started_at: datetime
    #: where the proxy serves it to who has come in with a ticket
    url: str
    instances: list[ServiceInstance]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStarted(Result):
    service: ServiceData
    #: the service's address with a ticket in it, good for one use: open it in a browser
    wsproxy_addr: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceList(Result):
    items: list[ServiceData]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStopped(Result):
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPass(Result):
    """Lets its holder connect to one port: `GET url`, `Upgrade: tcp`, `Authorization: Bearer token`."""

    url: str
    token: str
    expires_at: datetime


def prefix_of(session_id: UUID, name: str) -> str:
    return f"/proxy/{session_id}/{name}/"


def origin_of(proxy_url: str, session_id: UUID) -> str:
    """Of a session's services: all share one, or, when the address holds a star, every session has its own."""
    return proxy_url.replace("*", session_id.hex)


def service_data(row: ServiceRow, proxy_url: str) -> ServiceData:
    return ServiceData(
        name=row.name,
        kind=row.kind,
        protocol=row.protocol,
        port=row.port,
        kernels=row.kernels,
        health=row.health,
        started_at=row.started_at,
        url=f"{origin_of(proxy_url, row.session_id)}{prefix_of(row.session_id, row.name)}",
        instances=list(row.instances),
    )


@action(
    Rules(
        allow=owner_or_admin,
        when=ANSWERING,
        effect=Effect.AGENT,
        deadline_seconds=_MOST_SECONDS + 60.0,
        scope=TokenScope.SERVICES,
    )
)
class StartServiceAction(SessionAction[Remote, ServiceStarted]):
    """Start a service and wait until it answers; one that runs with the same settings is only given a new address.

    It is one that the image declares, one that everybody knows (jupyter, tensorboard, ttyd), or any command or port.
    """

    service: Name
    kind: Annotated[str, Field(max_length=32)] | None = None  #: what it is, when its name does not say so
    port: Port | None = None
    command: Words = field(default_factory=list)  #: `{port}` and `{prefix}` are replaced
    arguments: Words = field(default_factory=list)  #: added to the command
    environ: dict[str, str] = field(default_factory=dict)
    path: Annotated[str, Field(max_length=1024, pattern=r"^[\x21-\x7e]*$")] | None = None  #: answers when it is ready
    protocol: Literal["http", "tcp"] | None = None
    keep_prefix: bool | None = None  #: the program is to see the whole path, not only what comes after the service's
    kernels: Annotated[str, Field(max_length=64)] = "main"  #: main, all, or one by name
    ready_timeout: Annotated[float, Field(gt=0, le=_MOST_SECONDS)] = READY_SECONDS
    most_restarts: Annotated[int, Field(ge=0, le=1000)] = 5  #: within 10 minutes
    #: taken from scripts that were written for other systems; addresses carry tickets here
    login_session_token: str | None = None

    async def run(self, call: Remote, session: Session, /) -> ServiceStarted:
        async with call.service.reading(call) as reading:
            image = await reading.db.images.get(session.image)
        new = self._new(call, session, dict(image.labels) if image is not None else {})
        targets = self._targets(session)
        service = await self._declare(call, session, new, targets)
        reach("action.start_service.declared")
        try:
            facts = await _start(call, service, targets)
            async with call.service.work(call) as work:
                told = [(where.agent_id, fact) for where, fact in zip(targets, facts, strict=True)]
                if not await work.db.services_of(session).settle(service, told):
                    raise ServiceFailed("The service was shut down while it started.")
        except BaseException:
            if not service.settled:  # one that ran before goes on
                await asyncio.shield(_undo(call, session, service, targets))
            raise
        reach("action.start_service.settled")
        call.service.announce("services", session.id)
        return await _opened(call, session, new.name)

    def _new(self, call: Remote, session: Session, labels: dict[str, str]) -> NewService:
        has_own = bool(self.command) or self.port is not None
        name, kind = kind_of(self.service, self.kind, labels, has_own=has_own)
        port = self.port or kind.port
        if port is None or (kind.needs_command and not has_own):
            raise ServiceUnknown(f"The service '{self.service}' needs a port; give one with 'port'.")
        check_arguments(name, kind, self.command, self.arguments)
        argv = command_of(
            self.command or kind.argv, self.arguments, port=port, prefix=prefix_of(session.id, self.service)
        )
        if any("\0" in word for word in [*argv, *self.environ, *self.environ.values()]):
            raise InvalidRequest("A command and its environment may not hold NUL.", field="command")
        keep_prefix = kind.keep_prefix if self.keep_prefix is None else self.keep_prefix
        spec = ServiceSpec(
            name=self.service,
            generation=0,
            port=port,
            argv=argv,
            environ=self.environ,
            path=self._path(session, kind, keep_prefix=keep_prefix),
            ready_seconds=self.ready_timeout,
            most_restarts=self.most_restarts,
        )
        return NewService(
            name=self.service,
            kind=name,
            protocol=self.protocol or kind.protocol,
            port=port,
            kernels=self.kernels,
            spec=spec.pack(),
            keep_prefix=keep_prefix,
            deadline_at=call.now + timedelta(seconds=self.ready_timeout + 60.0),
        )

    def _path(self, session: Session, kind: Kind, *, keep_prefix: bool) -> str | None:
        path = self.path if self.path is not None else kind.path
        if path is None:
            return None
        prefix = prefix_of(session.id, self.service)
        if keep_prefix and not path.startswith(prefix):
            return prefix + path.lstrip("/")
        return "/" + path.lstrip("/")

    def _targets(self, session: Session) -> list[KernelAddress]:
        if self.kernels == "main":
            return [kernel_of(session)]
        if self.kernels == "all":
            there = [k for k in session.kernels if k.agent_id is not None and k.observed not in ENDED]
            return [kernel_of(session, kernel.id) for kernel in there]
        return [kernel_of(session, self.kernels)]

    async def _declare(
        self, call: Remote, session: Session, new: NewService, targets: Sequence[KernelAddress]
    ) -> ServiceRow:
        for _ in range(2):
            try:
                async with call.service.work(call) as work:
                    row, fresh = await work.db.services_of(session).declare(new)
            except PortConflict:
                raise PortConflict(
                    f"Another service of this session uses port {new.port} already; choose another port.",
                    port=new.port,
                ) from None
            if fresh or row.health != "failed":
                return row
            await _undo(call, session, row, targets)  # it had failed for good: from the beginning
        raise ServiceFailed("The service was started by somebody else meanwhile, and failed; start it again.")


async def _start(call: Remote, service: ServiceRow, targets: Sequence[KernelAddress]) -> list[ServiceFact]:
    """On all of these kernels, or on none: the first failure is raised when all have come to an end."""
    spec = ServiceSpec.unpack({**service.spec, "generation": service.generation})
    answers = await asyncio.gather(
        *(call.agents.start_service(where, spec) for where in targets), return_exceptions=True
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, ServiceFact)]


async def _undo(call: Remote, session: Session, service: ServiceRow, targets: Sequence[KernelAddress]) -> None:
    """Nothing of it is left; what an agent cannot be told now, it is told by the control process."""
    stops = await _stop(call, service.name, targets)
    if not any(isinstance(answer, AgentUnavailable) for answer in stops):
        async with call.service.work(call) as work:
            await work.db.services_of(session).remove(service.name, generation=service.generation)
    call.service.announce("services", session.id)


async def _stop(call: Remote, name: str, targets: Sequence[KernelAddress]) -> list[Any]:
    return await asyncio.gather(*(call.agents.stop_service(where, name) for where in targets), return_exceptions=True)


async def _opened(call: Remote, session: Session, name: str) -> ServiceStarted:
    """The service, and a ticket for it."""
    ticket = secrets.token_urlsafe(32)
    async with call.service.work(call) as work:
        services = work.db.services_of(session)
        row = await services.get(name)
        await services.issue(name, hashed(ticket), kind="ticket", by=call.by, seconds=TICKET_SECONDS)
    data = service_data(row, call.service.proxy_url)
    address = f"{origin_of(call.service.proxy_url, session.id)}/proxy/{ticket}/{name}/"
    return ServiceStarted(service=data, wsproxy_addr=address, expires_at=call.now + timedelta(seconds=TICKET_SECONDS))


@action(Rules(allow=owner_or_admin, effect=Effect.AGENT, deadline_seconds=120.0, scope=TokenScope.SERVICES))
class ShutdownServiceAction(SessionAction[Remote, ServiceStopped]):
    """Stop a service. The proxy sends it nothing new at once; what is under way has `drain_seconds` before the program ends."""

    service: Name
    drain_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0

    async def run(self, call: Remote, session: Session, /) -> ServiceStopped:
        async with call.service.reading(call) as reading:
            try:
                row = await reading.db.services_of(session).get(self.service)
            except ServiceNotFound:
                if call.key and await answer_of(reading.db.connection, call.by.user_id, call.key, self.action_name):
                    return ServiceStopped(name=self.service)  # whoever did it died before the asker was told
                raise
        live = {kernel.id for kernel in session.kernels if kernel.agent_id and kernel.observed not in ENDED}
        targets = [kernel_of(session, i.kernel_id) for i in row.instances if i.kernel_id in live]
        if session.ended_at is None and not all(call.agents.is_connected(where.agent_id) for where in targets):
            raise AgentUnavailable(
                "The session's host is not connected at the moment, so the service goes on; ask again."
            )
        # from here on it is given nothing new, and is cleared away by the control role if this process dies over it
        overdue_at = call.now + timedelta(seconds=self.drain_seconds + _CLEARED_SECONDS)
        async with call.service.work(call) as work:
            if not await work.db.services_of(session).ending(row.name, row.generation, overdue_at):
                raise ServiceNotFound(f"The service '{row.name}' was shut down by somebody else meanwhile.")
        reach("action.shutdown_service.begun")
        call.service.announce("services", session.id)
        if self.drain_seconds and targets:
            await call.service.sleep(self.drain_seconds)
        if session.ended_at is None:
            for answer in await _stop(call, row.name, targets):
                if isinstance(answer, MoorageError) and answer.code not in ("session_ended", "runner_lost"):
                    raise answer
        reach("action.shutdown_service.stopped")
        stopped = ServiceStopped(name=row.name)
        async with call.service.work(call) as work:
            await work.db.services_of(session).remove(row.name, generation=row.generation, stopped=True)
            if call.key:
                await keep_answer(
                    work.db.connection, call.by.user_id, call.key, self.action_name, {"name": row.name}, now=call.now
                )
        call.service.announce("services", session.id)
        return stopped


@action(Rules(allow=owner_or_admin, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.SERVICES))
class ListServicesAction(SessionAction[Remote, ServiceList]):
    """List a session's services with their health, kernel by kernel."""

    async def run(self, call: Remote, session: Session, /) -> ServiceList:
        async with call.service.reading(call) as reading:
            rows = await reading.db.services_of(session).all()
        return ServiceList(items=[service_data(row, call.service.proxy_url) for row in rows])


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.SERVICES))
class OpenServiceAction(SessionAction[Remote, ServiceStarted]):
    """Get a new address of a running service, with a ticket in it that is good for one use within five minutes."""

    service: Name

    async def run(self, call: Remote, session: Session, /) -> ServiceStarted:
        return await _opened(call, session, self.service)


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, scope=TokenScope.SERVICES))
class OpenPortAction(SessionAction[Remote, PortPass]):
    """Get a pass for connections to one port of a kernel, whatever listens there: `moorage port-forward` does so."""

    port: Port
    kernel: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    async def run(self, call: Remote, session: Session, /) -> PortPass:
        kernel_of(session, self.kernel)
        names = {str(kernel.id): kernel.name for kernel in session.kernels}
        kernel = names.get(self.kernel or "", self.kernel)
        name = f"~{self.port}" if kernel is None else f"~{self.port}.{kernel}"
        token = secrets.token_urlsafe(32)
        async with call.service.work(call) as work:
            await work.db.services_of(session).issue(
                name, hashed(token), kind="pass", by=call.by, seconds=PASS_HOURS * 3600
            )
        return PortPass(
            url=f"{origin_of(call.service.proxy_url, session.id)}{prefix_of(session.id, name)}",
            token=token,
            expires_at=call.now + timedelta(hours=PASS_HOURS),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SshAddress:
    """Where the SSH gateway lets one into this session."""

    host: str | None  #: None: that of the API
    port: int
    user: str
    host_key: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAddress:
    name: str
    protocol: str
    port: int
    url: str  #: of the proxy; a ticket lets one in


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAddress:
    """Where the host itself serves the files of one kernel: `PUT` and `GET url/files/PATH`, `GET url/archive?path=...`,
    with `Authorization: Bearer token`."""

    url: str
    token: str
    certificate: str  #: of this address, PEM: trust it, and nothing else there
    write: bool
    kernel: str
    expires_at: datetime  #: for beginning; a transfer that has begun goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAccess(Result):
    """All ways into a session that do not go through the API."""

    services: list[ServiceAddress]
    ssh: SshAddress | None  #: None: the installation has no SSH gateway
    kernels: list[str]  #: that can be named, to the gateway and to port-forward
    direct: DirectAddress | None  #: None: `no_direct` says why
    no_direct: str | None


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.AGENT, audit=Audit.OTHERS, scope=TokenScope.SERVICES))
class GetDirectAccessInfoAction(SessionAction[Remote, DirectAccess]):
    """Get the addresses of a session's services, of its SSH access, and of its files on the host itself, with a ticket.

    No container port is published anywhere.
    """

    kernel: Annotated[str, Field(min_length=1, max_length=64)] | None = None  #: whose files; the main one's otherwise
    read_only: bool = False  #: the ticket is not to write files

    async def run(self, call: Remote, session: Session, /) -> DirectAccess:
        async with call.service.reading(call) as reading:
            rows = await reading.db.services_of(session).all()
        data = [service_data(row, call.service.proxy_url) for row in rows]
        ssh = None
        if (gateway := call.service.ssh) is not None:
            where = gateway.host or "localhost"
            ssh = SshAddress(
                host=gateway.host,
                port=gateway.port,
                user=session.name,
                host_key=gateway.host_key,
                command=f"ssh -p {gateway.port} {session.name}@{where}",
            )
        direct, no_direct = await self._direct(call, session)
        return DirectAccess(
            services=[ServiceAddress(name=s.name, protocol=s.protocol, port=s.port, url=s.url) for s in data],
            ssh=ssh,
            kernels=[kernel.name for kernel in session.kernels],
            direct=direct,
            no_direct=no_direct,
        )

    async def _direct(self, call: Remote, session: Session) -> tuple[DirectAddress | None, str | None]:
        """The other ways in are told also when the host cannot be asked."""
        where = kernel_of(session, self.kernel)
        try:
            said = await call.agents.grant_direct(where, write=not self.read_only, by=str(call.by.user_id))
        except MoorageError as error:
            return None, error.message
        if refused := said.get("refused"):
            return None, str(refused)
        address = DirectAddress(
            url=said["url"],
            token=said["token"],
            certificate=said["certificate"],
            write=said["write"],
            kernel=next(kernel.name for kernel in session.kernels if kernel.id == where.kernel_id),
            expires_at=datetime.fromtimestamp(said["expires_at"], UTC),
        )
        return address, None
