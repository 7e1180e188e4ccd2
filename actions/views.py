"""How things look from outside: the shapes that answers are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from actions.base import Result
from domain.apps import EndReason, WorkerState
from domain.ids import AccessKey, AgentId, KernelId, SessionId
from domain.resources import ResourceSlot
from domain.session import (
    ANSWERING,
    ClusterMode,
    KernelState,
    OnAgentLost,
    Session,
    SessionKernel,
    SessionTypes,
    Status,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelData:
    """One container of a session."""

    id: KernelId
    name: str  #: main1, worker1, ...: as `kernel=` takes it, and as the others of the session find it
    role: str
    index: int
    agent: AgentId | None
    status: KernelState | None  #: as its host sees it; none before it has one
    pending: bool  #: its host has not taken on yet what is wanted of it

    @classmethod
    def of(cls, k: SessionKernel) -> KernelData:
        return cls(
            id=k.id, name=k.name, role=k.role, index=k.index, agent=k.agent_id, status=k.observed, pending=k.pending
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleWarning:
    """Why and when a session will be ended by an idle checker."""

    checker: str  #: no_call, low_use, lifetime
    reason: str
    warned_at: datetime
    due_at: datetime

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> IdleWarning:
        times = {name: datetime.fromisoformat(stored[name]) for name in ("warned_at", "due_at")}
        return cls(checker=stored["checker"], reason=stored["reason"], **times)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountData:
    """A volume, where a session sees it."""

    volume: str  #: its name when the session was created
    volume_id: UUID
    path: str
    subpath: str
    read_only: bool

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> MountData:
        told = {name: stored[name] for name in ("path", "subpath", "read_only")}
        return cls(volume=stored["name"], volume_id=UUID(stored["volume"]), **told)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOfSession:
    """The app that a worker session has loaded."""

    id: UUID
    name: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionData:
    """A session as its owner sees it. Memory is in MiB, times are in UTC."""

    id: SessionId
    name: str
    status: Status
    status_reason: str | None
    session_type: SessionTypes
    image: str
    architecture: str
    cluster_mode: ClusterMode
    cluster_size: int
    domain: str
    project: str
    access_key: AccessKey
    requested_slots: ResourceSlot  #: of its main kernel
    occupied_slots: ResourceSlot  #: of all its kernels together, as long as they hold them
    tag: str | None
    environ: Mapping[str, str]
    priority: int
    timeout: float | None  #: lifetime in seconds, counted from RUNNING
    max_wait: float | None
    starts_at: datetime | None  #: not placed before
    waits_for: tuple[str, ...]  #: names of sessions that have to end first
    batch_timeout: float | None
    max_retries: int
    retry_delay: float
    retries: int  #: that have been begun
    outputs: tuple[str, ...]
    mounts: tuple[MountData, ...]  #: its volumes
    labels: Mapping[str, str]
    preopen_ports: tuple[int, ...]
    callback_url: str | None
    idle_timeout: float | None  #: seconds without a call or run, after which it ends
    resource_group: str  #: whose hosts it may get
    constraints: Mapping[str, Any]  #: on its hosts: agent, labels, apart_from, gpu_model, as far as they were asked for
    profile: str | None  #: what may be done inside, from its placement on: hardened, standard
    egress: str | None  #: where it may connect to: none, open
    bootstrap_script: str | None
    bootstrap_required: bool
    startup_command: str | None
    shm_size: int | None  #: MiB
    result: str
    exit_code: int | None
    agent: AgentId | None
    agent_lost: bool
    on_agent_lost: OnAgentLost
    agent_lease: float | None  #: with replace: seconds that its containers outlive the silence of their host
    attempt: int
    version: int
    activity: int
    created_at: datetime
    status_changed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    last_activity_at: datetime | None
    execution_count: int
    bytes_in: int
    bytes_out: int
    notices: tuple[Mapping[str, Any], ...]
    idle_warning: IdleWarning | None = None  #: it will be ended, unless it is used
    app: AppOfSession | None = None  #: of a worker session; what follows is, too
    ready_at: datetime | None = None  #: since when its app is loaded and it takes calls
    open_calls: int = 0  #: that wait or run
    call_count: int = 0  #: that have ended, and were not cancelled
    last_call_at: datetime | None = None
    end_reason: EndReason | None = None  #: ended, expired, lost
    kernels: tuple[KernelData, ...] = ()  #: the main one first

    @classmethod
    def of(cls, s: Session) -> SessionData:
        return cls(
            id=s.id,
            name=s.name,
            status=s.status,
            status_reason=s.status_reason,
            session_type=s.session_type,
            image=s.image,
            architecture=s.architecture,
            cluster_mode=s.cluster_mode,
            cluster_size=s.cluster_size,
            domain=s.domain,
            project=s.project,
            access_key=s.access_key,
            requested_slots=s.requested_slots,
            occupied_slots=s.occupied_slots,
            tag=s.tag,
            environ=s.environ,
            priority=s.priority,
            timeout=s.timeout_seconds,
            max_wait=s.max_wait_seconds,
            starts_at=s.starts_at,
            waits_for=s.waits_for,
            batch_timeout=s.batch_timeout_seconds,
            max_retries=s.max_retries,
            retry_delay=s.retry_delay_seconds,
            retries=s.retries,
            outputs=s.outputs,
            mounts=tuple(MountData.of(mount) for mount in s.mounts),
            labels=s.labels,
            preopen_ports=s.preopen_ports,
            callback_url=s.callback_url,
            idle_timeout=s.idle_timeout_seconds,
            resource_group=s.resource_group,
            constraints=s.constraints,
            profile=s.profile,
            egress=s.egress,
            bootstrap_script=s.bootstrap_script,
            bootstrap_required=s.bootstrap_required,
            startup_command=s.startup_command,
            shm_size=s.shm_mib,
            result=s.result,
            exit_code=s.exit_code,
            agent=s.agent_id,
            agent_lost=s.agent_lost,
            on_agent_lost=s.on_agent_lost,
            agent_lease=s.agent_lease_seconds,
            attempt=s.attempt,
            version=s.version,
            activity=s.activity,
            created_at=s.created_at,
            status_changed_at=s.status_changed_at,
            started_at=s.started_at,
            ended_at=s.ended_at,
            expires_at=_expires_at(s),
            last_activity_at=s.last_activity_at,
            execution_count=s.execution_count,
            bytes_in=s.bytes_in,
            bytes_out=s.bytes_out,
            notices=s.notices,
            idle_warning=None if s.idle_warning is None else IdleWarning.of(s.idle_warning),
            app=None if s.worker is None else _app_of(s.worker),
            ready_at=s.worker.ready_at if s.worker else None,
            open_calls=s.worker.open_calls if s.worker else 0,
            call_count=s.worker.call_count if s.worker else 0,
            last_call_at=s.worker.last_call_at if s.worker else None,
            end_reason=s.end_reason,
            kernels=tuple(KernelData.of(kernel) for kernel in s.kernels),
        )


def _app_of(worker: WorkerState) -> AppOfSession:
    return AppOfSession(id=UUID(worker.app["id"]), name=worker.app["name"], version=worker.app["version"])


def _expires_at(s: Session) -> datetime | None:
    """The end of its lifetime, or that of a worker session's idle time when it comes first."""
    idle = s.worker.idle_until_at if s.worker is not None and s.status in ANSWERING else None
    return min((at for at in (s.expires_at, idle) if at is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult(Result):
    """A session, as it is after the action."""

    session_data: SessionData

    @classmethod
    def of(cls, session: Session) -> SessionResult:
        return cls(session_data=SessionData.of(session))


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Result):
    """It is done, and there is nothing more to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserData:
    id: UUID
    email: str
    username: str
    domain: str
    role: str
    active: bool
    projects: list[str]
    created_at: datetime
    uid: int | None = None  #: of its containers and volumes; None: everybody's 1000
    gid: int | None = None
    administers: list[str] = field(default_factory=list)  #: of the projects


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypairData:
    access_key: str
    user: str
    active: bool
    created_at: datetime
    requests_per_second: float | None = None  #: of all its credentials together, at one manager; None: any number
    rotated_at: datetime | None = None  #: since when its secret is what it is
    previous_until: datetime | None = None  #: until when the secret before it is good as well
    secret_key: str | None = None  #: only in the answer to its creation or rotation
    signing_since: datetime | None = (
        None  #: since when it may sign requests, as clients of Backend.AI do; None: it may not
    )
    signing_secret: str | None = None  #: what it signs with; only in the answer that switched it on


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectData:
    id: UUID
    name: str
    domain: str
    members: list[str]
    created_at: datetime
    admins: list[str] = field(default_factory=list)  #: of the members


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainData:
    name: str
    active: bool
    users: int
    projects: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    name: str
    architecture: str
    aliases: tuple[str, ...]
    labels: Mapping[str, str]
    created_at: datetime
    kind: str  #: registered; snapshot: of a session, on one host; built: of a session, in a registry
    status: str  #: making, ready
    title: str | None  #: what its owner calls it
    owner: str | None
    visibility: str  #: public, project, user
    project: str | None
    agent: AgentId | None  #: the only host that has it
    session_id: SessionId | None  #: that it was made of
    size_bytes: int | None
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentData:
    id: str
    hostname: str
    architecture: str
    version: str
    schedulable: bool
    lost: bool  #: not heard of for longer than its lease
    capacity: ResourceSlot  #: what it offers
    used: ResourceSlot  #: what sessions hold of it
    kernels: int  #: containers of sessions that are there, or may be
    images: list[str]
    info: Mapping[str, Any]
    last_seen_at: datetime | None
    created_at: datetime
    resource_group: str
    labels: Mapping[str, str]  #: that sessions may ask for
    cordoned_at: datetime | None  #: since when it takes no sessions, because an administrator said so
    cordon_reason: str | None
    draining: bool  #: what is there is to go
    drain_moves: bool  #: batch sessions begin again elsewhere
    drain_until: datetime | None  #: when those that are left are ended
    drained_at: datetime | None  #: since when nothing is there any more
    revoked_at: datetime | None  #: since when none of its certificates counts

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> AgentData:
        amounts = row["resources"]
        return cls(
            id=row["id"],
            hostname=row["hostname"],
            architecture=row["architecture"],
            version=row["version"],
            schedulable=row["schedulable"],
            lost=row["lost"],
            capacity=ResourceSlot.from_units({name: each["capacity"] for name, each in amounts.items()}),
            used=ResourceSlot.from_units({name: each["used"] for name, each in amounts.items()}),
            kernels=row["kernels"],
            images=list(row["images"]),
            info=row["info"],
            last_seen_at=row["seen_at"],
            created_at=row["created_at"],
            resource_group=row["resource_group"],
            labels=row["labels"],
            cordoned_at=row["cordoned_at"],
            cordon_reason=row["cordon_reason"],
            draining=row["draining"],
            drain_moves=row["drain_moves"],
            drain_until=row["drain_until"],
            drained_at=row["drained_at"],
            revoked_at=row["revoked_at"],
        )
